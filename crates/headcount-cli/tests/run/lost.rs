//! A command that is slower than the journal is long.

use std::os::unix::fs::FileExt;

use testkit::{Folder, Nginx, Signal, permit};

use super::follower::{Follower, await_gate, registry, server};
use super::record::{cat_to, deliveries, journal};

#[test]
fn what_was_overwritten_is_counted_and_told() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(server(&own).workers(2).option("journal_records", "64"));
    let (seen, gate) = (own.at("seen"), own.at("gate"));
    // The first worker's start takes until the gate is open, and is read ahead of by three events.
    let rule = format!("worker_started={}; cat >> '{}'", await_gate(&own), seen.display());
    let rest = format!("node_started,node_died,node_stopped,lost,generation_started={}", cat_to(&seen));
    let mut run = Follower::start(&own, &["--on", &rule, "--on", &rest, "--queue", "3"]);
    run.wait_until("the generation's start", || (deliveries(&seen).len() == 2).then_some(()));
    let mut generation = 1;
    let head = || journal(&registry(&own)).last().expect("events").seq;
    while head() < 200 {
        generation += 1;
        nginx.reload_and_settle(generation);
    }
    nginx.end(Signal::QUIT);
    let head = head();
    std::fs::write(&gate, "").expect("our own folder");
    run.wait_until("the stop", || (deliveries(&seen).last()?.kind() == "node_stopped").then_some(()));
    run.end();
    let all = deliveries(&seen);
    let lost: Vec<_> = all.iter().filter(|d| d.kind() == "lost").collect();
    assert_eq!(lost.len(), 1, "{lost:?}");
    let number = |member: &str| lost[0].0[member].as_u64().expect("a number");
    // Two of the queue's three and the worker's start had been read: the next one is the first that is lost.
    let first = number("first");
    assert_eq!(number("lost"), number("last") - first + 1);
    assert_eq!(number("last"), head - 64, "all that the journal still has is delivered");
    assert!((4..=6).contains(&first), "{first}");
    // What is not lost is delivered once, and in order: before the gap, and after it.
    let expected: Vec<u64> = journal(&registry(&own))
        .iter()
        .filter(|e| matches!(e.kind, headcount::Kind::WorkerStarted | headcount::Kind::GenerationStarted))
        .map(|e| e.seq)
        .collect();
    let seqs: Vec<u64> = all.iter().filter(|d| !d.is_derived()).filter_map(|d| d.seq()).collect();
    assert!(seqs.is_sorted_by(|a, b| a < b), "{seqs:?}");
    assert_eq!(seqs.iter().copied().filter(|&seq| seq > number("last")).collect::<Vec<_>>(), expected);
    assert!(seqs.iter().all(|&seq| seq < first || seq > number("last")), "{seqs:?}");
    assert!(run.log().contains("overwritten before they could be read"), "{}", run.log());
    // The node was up before and stopped after, whatever was missed.
    let of_node: Vec<_> = all.iter().map(|d| d.kind()).filter(|kind| kind.starts_with("node_")).collect();
    assert_eq!(of_node, ["node_started", "node_stopped"]);
}

#[test]
fn a_queue_reads_ahead_of_a_slow_command() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(server(&own).workers(2).option("journal_records", "64"));
    let (seen, gate) = (own.at("seen"), own.at("gate"));
    let rule = format!("any={}; cat >> '{}'", await_gate(&own), seen.display());
    let mut run = Follower::start(&own, &["--on", &rule]);
    run.wait_for_log("following node");
    let mut generation = 1;
    let head = || journal(&registry(&own)).last().expect("events").seq;
    while head() < 150 {
        generation += 1;
        // Slowly enough for somebody who looks twenty times a second.
        nginx.reload_and_settle(generation);
        nginx.wait_for("the old generation's end", testkit::wait::PATIENCE, |all| {
            all.at_least(1, testkit::Kind::GenerationEnded, generation - 1)
        });
        let before = head();
        testkit::wait::poll(std::time::Duration::from_millis(150), || None::<()>);
        assert_eq!(before, head(), "it is quiet");
    }
    let last = head();
    std::fs::write(&gate, "").expect("our own folder");
    run.wait_until("all", || (deliveries(&seen).last()?.seq()? >= last).then_some(()));
    run.end();
    let seqs: Vec<_> = deliveries(&seen).iter().filter(|d| !d.is_derived()).filter_map(|d| d.seq()).collect();
    assert_eq!(seqs, (1..=last).collect::<Vec<_>>());
}

#[test]
fn a_journal_that_was_set_back_is_gone_on_with() {
    /// docs/format.md
    const HEAD: u64 = 152;
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(server(&own).workers(2));
    let seen = own.at("seen");
    let mut run = Follower::start(&own, &["--on", &format!("any={}", cat_to(&seen))]);
    run.wait_until("the start", || (deliveries(&seen).len() == 4).then_some(()));
    let file = std::fs::File::options().write(true).open(registry(&own)).expect("our own file");
    file.write_all_at(&1_u64.to_ne_bytes(), HEAD).expect("it is written");
    run.wait_for_log("the journal now ends before event 3");
    nginx.reload();
    run.wait_until("what comes", || {
        let later = deliveries(&seen).split_off(4);
        later.iter().any(|d| d.kind() == "generation_started" && d.0["generation"] == 2).then_some(())
    });
    run.end();
    // Nothing that was delivered comes again, and no second start of a node that was up all the time.
    let later = deliveries(&seen).split_off(4);
    assert!(later.iter().all(|d| !d.kind().starts_with("node_")), "{later:?}");
    assert!(later.iter().all(|d| d.kind() != "generation_started" || d.0["generation"] == 2), "{later:?}");
}
