//! `headcount agent` and `headcount cluster`: hosts that share a real etcd, with real servers on them. Each host of a test is an
//! agent with a folder of its own, in which its servers' registries are.

mod program;
#[allow(dead_code, reason = "it is the tests' of `headcount run`, too")]
#[path = "run/record.rs"]
mod record;
mod scripted;
#[allow(dead_code, reason = "it is the tests' of `headcount top`, too")]
mod tmux;
mod traced;

mod cluster {
    pub mod fleet;

    mod bounds;
    mod engine;
    mod exporter;
    mod hooks;
    mod hooks_of_all;
    mod hosts;
    mod late;
    mod lua;
    mod once;
    mod partition;
    mod process;
    mod reload;
    mod reload_killed;
    mod reload_many;
    mod roles;
    mod socket;
    mod strange;
    mod top;
    mod unheard;
    mod wrong_use;
}
