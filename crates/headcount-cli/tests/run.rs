//! `headcount run` beside a real nginx.

mod program;

mod run {
    mod follower;
    mod record;
    mod web;

    mod failures;
    mod interrupted;
    mod leader;
    mod lost;
    mod node;
    mod order;
    mod stalled;
    mod stopping;
    mod systemd;
    mod wrong_use;
}
