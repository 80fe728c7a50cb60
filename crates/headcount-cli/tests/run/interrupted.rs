//! `headcount run` is killed, again and again, and nothing is lost or delivered twice unmarked.

use std::fs;
use std::path::Path;
use std::time::Duration;

use testkit::{Folder, Nginx, Signal, permit, wait};

use super::follower::{Follower, await_gate, registry, server};
use super::record::{Delivered, assert_all_once, cat_to, deliveries, journal, kinds};

/// A command that is under way for a moment, and writes down both its ends.
fn slow(seen: &Path) -> String {
    format!("any=e=$(cat); echo \"$e\" >> '{0}.begun'; sleep 0.01; echo \"$e\" >> '{0}'", seen.display())
}

#[test]
fn killed_in_every_phase_it_delivers_each_event_once_or_marked() {
    const KILLS: u32 = 60;
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(server(&own).workers(2));
    let seen = own.at("seen");
    let rule = slow(&seen);
    let mut generation = 1;
    for kill in 0..KILLS {
        let mut run = Follower::start(&own, &["--on", &rule]);
        if kill % 2 == 0 {
            generation += 1;
            nginx.reload_and_settle(generation);
        }
        // From the moment of its start on, through some deliveries, in steps that don't fit their length.
        let delay = Duration::from_micros(u64::from(kill) * 7_919 % 120_000);
        wait::poll(delay, || None::<()>);
        run.kill();
    }
    nginx.end(Signal::QUIT);
    let mut run = Follower::start(&own, &["--on", &rule]);
    let last = journal(&registry(&own)).last().expect("events").seq;
    run.wait_until("the last event", || (deliveries(&seen).last()?.seq()? >= last).then_some(()));
    run.end();

    let begun = deliveries(Path::new(&format!("{}.begun", seen.display())));
    let all = deliveries(&seen);
    // Never two side by side, not even with one whose `headcount run` was killed.
    assert_eq!(begun, all, "each that began ended before the next began");
    let mut once: Vec<Delivered> = Vec::new();
    let mut again = 0_usize;
    for delivered in all {
        if let Some(before) = once.last().filter(|before| before.id() == delivered.id()) {
            again += 1;
            assert!(delivered.is_retry(), "delivered twice and not marked: {delivered:?}");
            assert!(delivered.attempt() > before.attempt(), "{delivered:?} after {before:?}");
            continue;
        }
        assert!(once.iter().all(|d| d.id() != delivered.id()), "out of order: {delivered:?}");
        once.push(delivered);
    }
    // At most one of them for each kill, and all others in their first attempt.
    let marked = once.iter().filter(|d| d.is_retry()).count();
    assert!(marked + again <= KILLS as usize, "{marked} marked and {again} repeated by {KILLS} kills");
    assert!(again > 0, "no kill came while a command was under way: this test tests nothing");
    let of_node: Vec<_> = once.iter().filter(|d| d.is_derived()).cloned().collect();
    assert_eq!(kinds(&of_node), ["node_started", "node_stopped"]);
    let seqs: Vec<_> = once.iter().filter(|d| !d.is_derived()).map(|d| d.seq()).collect();
    let expected: Vec<_> = journal(&registry(&own)).iter().map(|e| Some(e.seq)).collect();
    assert_eq!(seqs, expected);
}

/// Brings one into the middle of a command: the gate is a file that the command waits for.
fn in_the_middle(own: &Folder, seen: &Path) -> (String, Follower) {
    let rule = format!(
        "worker_started=e=$(cat); : > '{0}.under-way'; {1}; echo \"$e\" >> '{0}'",
        seen.display(),
        await_gate(own)
    );
    let run = Follower::start(own, &["--on", &rule, "--if-interrupted", "retry"]);
    run.wait_until("the command", || {
        Path::new(&format!("{}.under-way", seen.display())).exists().then_some(())
    });
    (rule, run)
}

#[test]
fn the_one_under_way_is_awaited_and_repeated_as_a_retry() {
    let _permit = permit();
    let own = Folder::new();
    let _nginx = Nginx::start_ready(server(&own).workers(2));
    let seen = own.at("seen");
    let (rule, mut run) = in_the_middle(&own, &seen);
    run.kill();
    let mut run = Follower::start(&own, &["--on", &rule]);
    // It waits for the command that the first one has left behind, and starts none beside it.
    wait::poll(Duration::from_millis(300), || None::<()>);
    assert!(!run.log().contains("trying again"), "{}", run.log());
    fs::write(own.at("gate"), "").expect("our own folder");
    run.wait_until("all", || (deliveries(&seen).len() == 3).then_some(()));
    run.end();
    let all = deliveries(&seen);
    let marks: Vec<_> = all.iter().map(|d| (d.attempt(), d.is_retry())).collect();
    assert_eq!(marks, [(1, false), (2, true), (1, false)]);
    assert_eq!((all[0].id(), all[0].seq()), (all[1].id(), all[1].seq()));
}

#[test]
fn the_one_under_way_is_skipped_if_that_is_wanted() {
    let _permit = permit();
    let own = Folder::new();
    let _nginx = Nginx::start_ready(server(&own).workers(2));
    let seen = own.at("seen");
    let (rule, mut run) = in_the_middle(&own, &seen);
    run.kill();
    fs::write(own.at("gate"), "").expect("our own folder");
    let mut run = Follower::start(&own, &["--on", &rule, "--if-interrupted", "skip"]);
    run.wait_until("all", || (deliveries(&seen).len() == 2).then_some(()));
    run.wait_for_log(": skipped");
    run.end();
    let marks: Vec<_> = deliveries(&seen).iter().map(|d| (d.seq(), d.attempt(), d.is_retry())).collect();
    assert_eq!(marks, [(Some(2), 1, false), (Some(3), 1, false)]);
}

#[test]
fn one_that_was_written_down_and_not_started_is_repeated() {
    let _permit = permit();
    let own = Folder::new();
    let _nginx = Nginx::start_ready(server(&own).workers(1));
    let seen = own.at("seen");
    let rule = format!("any={}", cat_to(&seen));
    let mut run = Follower::start(&own, &["--on", &rule]);
    run.wait_until("all", || (deliveries(&seen).len() == 3).then_some(()));
    run.end();
    assert_all_once(&deliveries(&seen), &registry(&own));
    // As a kill between the two leaves it: the state says that the last one is under way.
    let path = own.at("state.json");
    let text = fs::read_to_string(&path).expect("a state");
    let mut state: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let last = deliveries(&seen).pop().expect("some");
    state["next_seq"] = last.seq().into();
    let rule_key = rule_key(&own, &rule);
    state["finished"] = serde_json::json!([]);
    state["in_flight"] = serde_json::json!({
        "delivery": { "at": last.seq(), "event": last.kind(), "rule": rule_key },
        "attempt": 1, "failures": 0, "running": true, "interrupted": false, "document": last.0,
    });
    fs::write(&path, state.to_string()).expect("our own file");
    let mut run = Follower::start(&own, &["--on", &rule]);
    run.wait_until("the retry", || (deliveries(&seen).len() == 4).then_some(()));
    run.end();
    let again = deliveries(&seen).pop().expect("some");
    assert_eq!((again.id(), again.attempt(), again.is_retry()), (last.id(), 2, true));
}

/// As a state file has it: of a delivery that waits.
fn rule_key(own: &Folder, rule: &str) -> String {
    let hash = rule
        .bytes()
        .chain([0])
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    assert!(own.at("state.json").exists());
    format!("{hash:016x}")
}

#[test]
fn what_was_said_to_be_delivered_is_not_repeated() {
    let _permit = permit();
    let own = Folder::new();
    let _nginx = Nginx::start_ready(server(&own).workers(1));
    let seen = own.at("seen");
    let rule = format!("worker_started={}", cat_to(&seen));
    let mut run = Follower::start(&own, &["--on", &rule]);
    run.wait_for_log("worker_started at 2 to rule 1: delivered");
    run.kill();
    let mut run = Follower::start(&own, &["--on", &rule]);
    run.wait_for_log("following node");
    run.end();
    assert_eq!(deliveries(&seen).len(), 1);
}
