//! Decisions in surroundings that are not as they should be: rows 36 to 50 of the contract, as far as they are decided here.

use super::tests::{SECOND, generation, slot};
use super::*;
use crate::event::{Cause, PreviousRun};

/// A master in slot 0, and a generation of one worker, which has come.
fn node(master: Intent) -> Facts {
    let mut boss = slot(0);
    (boss.role, boss.intent, boss.version) = (Role::Master, master, 2);
    let mut g = generation(0, 1);
    (g.phase, g.expected, g.joined, g.came, g.started_seq) = (Phase::Committed, 1, 1, 1, 1);
    Facts {
        slots: vec![boss],
        generations: vec![g],
        now: 20 * SECOND,
        stall_after: 5 * SECOND,
        as_reported: true,
        ..Facts::default()
    }
}

fn dead_worker(index: u32, died_seq: u64) -> SlotFacts {
    SlotFacts { generation: 1, started_seq: 2, died_seq, liveness: Liveness::Gone, ..slot(index) }
}

#[test]
fn the_last_worker_to_leave_ends_a_generation_unless_its_master_goes_on() {
    let last_has_left = |facts: &Facts| facts.next_step(Scope::Generation(1));
    assert_eq!(
        last_has_left(&node(Intent::Serving)),
        Some(Step::ReportEnded(0)),
        "it says nothing of itself"
    );
    assert_eq!(last_has_left(&node(Intent::Leaving)), Some(Step::ReportEnded(0)), "it was told to stop");
    let goes_on = node(Intent::Listening);
    assert_eq!(last_has_left(&goes_on), None, "it starts another one");
    assert!(goes_on.is_kept(1) && !goes_on.is_kept(2));

    let mut superseded = node(Intent::Listening);
    superseded.generations.push(GenerationFacts { index: 1, id: 2, ..superseded.generations[0].clone() });
    assert_eq!(last_has_left(&superseded), Some(Step::ReportEnded(0)), "another one has taken over");

    let mut gone = node(Intent::Listening);
    gone.slots[0].liveness = Liveness::Gone;
    assert!(!gone.is_kept(1), "the dead start nobody");
}

#[test]
fn a_worker_of_a_master_that_goes_on_is_recycled() {
    for (master, cause) in [(Intent::Listening, Cause::Recycled), (Intent::Leaving, Cause::Stop)] {
        let mut facts = node(master);
        facts.slots.push(SlotFacts { generation: 1, started_seq: 2, ..slot(1) });
        let act = facts.act(Stage::Exit(1)).expect("it leaves");
        let Subject::New(report) = act.subject else { panic!("it is news") };
        assert_eq!(report.event.cause, cause);
        // Only who goes on replaces it.
        let is_to_be_replaced = act.before.contains(&Change::LostAtWork(0, coarse(facts.now)));
        assert_eq!(is_to_be_replaced, cause == Cause::Recycled);
    }
}

#[test]
fn a_worker_serves_when_its_loop_has_turned() {
    let mut facts = node(Intent::Listening);
    let at = facts.now - SECOND;
    let worker = SlotFacts {
        generation: 1,
        started_seq: 2,
        intent: Intent::Serving,
        intent_since_ns: at,
        heartbeat_ns: at,
        ..slot(1)
    };
    assert_eq!(facts.state(&worker), State::Starting);
    assert_eq!(facts.state(&SlotFacts { heartbeat_ns: at + 1, ..worker.clone() }), State::Serving);
    // It is counted all the same: it is there.
    facts.slots.push(worker);
    assert_eq!(facts.total(), 1);
}

#[test]
fn who_was_reported_dead_is_not_counted_once_more_at_the_next_start() {
    let mut facts = node(Intent::Serving);
    facts.slots[0].liveness = Liveness::Gone;
    facts.slots.extend([dead_worker(1, 0), dead_worker(2, 7)]);
    assert_eq!(facts.find_previous_run(1), PreviousRun::Unclean { generation: 1, workers: 1 });
}

#[test]
fn a_start_whose_runner_died_is_told_by_others_if_its_master_is_gone() {
    let mut facts = node(Intent::Listening);
    facts.generations[0].start_delivered = false;
    // Its master runs it at this moment.
    assert_eq!(facts.next_step(Scope::Everything), None);
    facts.slots[0].liveness = Liveness::Gone;
    facts.slots.push(SlotFacts { generation: 1, started_seq: 2, ..slot(1) });
    assert_eq!(facts.next_step(Scope::Everything), Some(Step::DeliverStarted(0)));
    let act = facts.act(Stage::Settle(Scope::Everything)).expect("it is told");
    assert!(act.deliver && !act.is_last, "and what is left after it");
    assert!(act.after.contains(&Change::StartDelivered(0)));
}

#[test]
fn a_superseded_generation_waits_for_a_worker_that_was_forked_and_no_longer() {
    let mut facts = node(Intent::Listening);
    facts.generations[0].expected = 2;
    facts.generations[0].begun_ns = facts.now - SECOND;
    facts.generations.push(GenerationFacts { index: 1, id: 2, ..facts.generations[0].clone() });
    facts.slots.push(SlotFacts { generation: 2, started_seq: 3, ..slot(1) });
    assert_eq!(facts.awaiting(), [0]);
    assert_eq!(facts.next_step(Scope::Everything), None, "one has not come yet");
    facts.generations[0].nobody_comes = true;
    assert_eq!(facts.next_step(Scope::Everything), Some(Step::ReportEnded(0)));
}

#[test]
fn a_generation_from_the_future_is_over() {
    let mut facts = node(Intent::Serving);
    let forged = GenerationFacts {
        index: 1,
        id: 900,
        joined: 0,
        came: 0,
        master_slot: 77,
        begun_ns: u64::MAX,
        ..facts.generations[0].clone()
    };
    facts.generations.push(forged);
    assert_ne!(facts.next_step(Scope::Everything), Some(Step::ReportEnded(1)), "it seems to be young");
    facts.forget_the_future();
    assert_eq!(facts.next_step(Scope::Everything), Some(Step::ReportEnded(1)));
}

/// Found by `models/protocol.rs`: the master died after it had forked its workers, and before the first of them had joined.
#[test]
fn a_master_that_dies_before_its_workers_join_is_not_forgotten() {
    let mut facts = node(Intent::Listening);
    facts.slots[0].liveness = Liveness::Gone;
    assert_eq!(facts.next_step(Scope::Tidy), Some(Step::Release(0)), "nobody is there, and nobody comes");
    facts.generations[0].joining = true;
    assert_eq!(facts.next_step(Scope::Tidy), None);
    assert_eq!(facts.next_step(Scope::Everything), Some(Step::ReportMasterLost(0)));

    // They have been forked, and not said so yet.
    let g = &mut facts.generations[0];
    (g.joining, g.joined, g.came, g.begun_ns) = (false, 0, 0, facts.now - SECOND);
    assert_eq!(facts.next_step(Scope::Tidy), None);
    facts.now += 2 * SECOND;
    assert_eq!(facts.next_step(Scope::Tidy), Some(Step::Release(0)), "they do not come");
}

/// Found by `models/history.rs`: a worker left alone, and the master died after it had forked the replacement.
#[test]
fn a_master_that_dies_before_the_replacement_joins_is_not_forgotten() {
    let mut facts = node(Intent::Listening);
    facts.slots[0].liveness = Liveness::Gone;
    let g = &mut facts.generations[0];
    (g.begun_ns, g.lost_at_work) = (facts.now - SECOND, coarse(facts.now));
    assert!(g.all_came());
    assert_eq!(facts.next_step(Scope::Tidy), None);
    // Or it died, and nobody has reported it yet.
    facts.generations[0].lost_at_work = 0;
    facts.slots.push(dead_worker(1, 0));
    assert_eq!(facts.next_step(Scope::Tidy), None);
    facts.slots.pop();
    assert_eq!(facts.next_step(Scope::Tidy), Some(Step::Release(0)), "all are there, and have left");
    facts.generations[0].lost_at_work = coarse(facts.now);
    facts.now += 2 * SECOND;
    assert_eq!(facts.next_step(Scope::Tidy), Some(Step::Release(0)), "it does not come");
}

/// Found by `models/history.rs`: a generation was resumed by its first worker, which died before it had told so; and ended.
#[test]
fn a_start_that_nobody_was_told_is_told_before_the_end() {
    let mut facts = node(Intent::Listening);
    facts.generations[0].start_delivered = false;
    facts.generations.push(GenerationFacts {
        index: 1,
        id: 2,
        start_delivered: true,
        ..facts.generations[0].clone()
    });
    facts.slots.push(SlotFacts { generation: 2, started_seq: 3, ..slot(1) });
    assert_eq!(facts.next_step(Scope::Everything), Some(Step::DeliverStarted(0)));
    facts.generations[0].start_delivered = true;
    assert_eq!(facts.next_step(Scope::Everything), Some(Step::ReportEnded(0)));
}
