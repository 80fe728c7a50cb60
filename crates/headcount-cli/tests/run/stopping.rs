//! How it ends, and that there is one only.

use std::time::{Duration, Instant};

use testkit::{Folder, Nginx, Signal, permit};

use super::follower::{Follower, await_gate, hang, server};
use super::record::{cat_to, deliveries};

#[test]
fn it_lets_the_command_under_way_finish() {
    let _permit = permit();
    let own = Folder::new();
    let _nginx = Nginx::start_ready(server(&own).workers(2));
    let (seen, gate, under_way) = (own.at("seen"), own.at("gate"), own.at("under-way"));
    let rule =
        format!("worker_started=: > '{}'; {}; {}", under_way.display(), await_gate(&own), cat_to(&seen));
    let mut run = Follower::start(&own, &["--on", &rule]);
    run.wait_until("the command", || under_way.exists().then_some(()));
    // A terminal's end is none of its concern.
    run.signal(Signal::HUP);
    run.signal(Signal::TERM);
    // It would take no time to end: that it does not is seen only by waiting.
    testkit::wait::poll(Duration::from_millis(300), || None::<()>);
    assert!(testkit::process::is_alive(run.pid()), "{}", run.log());
    std::fs::write(&gate, "").expect("our own folder");
    assert_eq!(run.ended().code(), Some(0), "{}", run.log());
    let mut run = Follower::start(&own, &["--on", &rule]);
    run.wait_until("the other", || (deliveries(&seen).len() == 2).then_some(()));
    run.end();
    let marks: Vec<_> = deliveries(&seen).iter().map(|d| (d.seq(), d.attempt(), d.is_retry())).collect();
    assert_eq!(marks, [(Some(2), 1, false), (Some(3), 1, false)]);
}

#[test]
fn asked_twice_it_ends_the_command() {
    let _permit = permit();
    let own = Folder::new();
    let _nginx = Nginx::start_ready(server(&own).workers(1));
    let under_way = own.at("under-way");
    let rule = format!("worker_started=: > '{}'; {}", under_way.display(), hang(&own));
    let mut run = Follower::start(&own, &["--on", &rule, "--timeout", "1h"]);
    run.wait_until("the command", || under_way.exists().then_some(()));
    run.wait_until("its end", || {
        run.signal(Signal::INT);
        run.log().contains("stopped before it was delivered").then_some(())
    });
    assert_eq!(run.ended().code(), Some(0));
    let state = std::fs::read_to_string(own.at("state.json")).expect("a state");
    let state: serde_json::Value = serde_json::from_str(&state).expect("JSON");
    let flight = &state["in_flight"];
    assert_eq!(
        (flight["running"].as_bool(), flight["interrupted"].as_bool()),
        (Some(false), Some(true)),
        "{flight}"
    );
}

#[test]
fn a_wait_for_the_next_attempt_is_no_hindrance() {
    let _permit = permit();
    let own = Folder::new();
    let _nginx = Nginx::start_ready(server(&own).workers(1));
    let (seen, mended) = (own.at("seen"), own.at("mended"));
    let rule = format!("worker_started={}; [ -e '{}' ]", cat_to(&seen), mended.display());
    let mut run = Follower::start(&own, &["--on", &rule, "--backoff", "1h..2h"]);
    run.wait_for_log("next attempt in");
    let asked = Instant::now();
    run.end();
    assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
    std::fs::write(&mended, "").expect("our own folder");
    let mut run = Follower::start(&own, &["--on", &rule, "--backoff", "1h..2h"]);
    run.wait_for_log("attempt 2");
    run.end();
    // It is known how the first attempt ended: this one is no retry of something unknown.
    let marks: Vec<_> = deliveries(&seen).iter().map(|d| (d.attempt(), d.is_retry())).collect();
    assert_eq!(marks, [(1, false), (2, false)]);
}

#[test]
fn one_state_file_is_for_one_process() {
    let _permit = permit();
    let own = Folder::new();
    let _nginx = Nginx::start_ready(server(&own).workers(1));
    let mut first = Follower::start(&own, &["--on", "any=true"]);
    first.wait_for_log("following node");
    let mut second = Follower::start(&own, &["--on", "any=true"]);
    assert_eq!(second.ended().code(), Some(4));
    let said =
        format!("state.json is in use by process {}: stop it, or choose another with --state", first.pid());
    assert!(second.log().contains(&said), "{}", second.log());
    // Killed, it leaves nothing that would be in the way.
    first.kill();
    let mut third = Follower::start(&own, &["--on", "any=true"]);
    third.wait_for_log("following node");
    third.end();
}
