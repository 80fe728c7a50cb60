//! Starts, and what is cleared away at them.

use super::edge_tests::{UNKNOWN, node, reported, serving, worker};
use super::tests::SECOND;
use super::*;
use crate::event::{Cause, Kind, PreviousRun};

#[test]
fn why_a_generation_begins() {
    let mut node = node();
    assert_eq!(node.begin_cause(false, false, Some(0)), Cause::Start);
    assert_eq!(node.begin_cause(true, false, Some(0)), Cause::Reload);
    assert_eq!(node.begin_cause(true, true, Some(0)), Cause::Reload);
    assert_eq!(node.begin_cause(false, true, Some(0)), Cause::Upgrade);
    assert_eq!(node.begin_cause(false, false, None), Cause::Upgrade, "another master lives");
    assert_eq!(node.begin_cause(false, false, Some(1)), Cause::Upgrade);
    node.slots[0].liveness = UNKNOWN;
    assert_eq!(node.begin_cause(false, false, None), Cause::Start);
}

#[test]
fn why_a_process_joins() {
    let mut node = node();
    node.generations[0].cause = Cause::Reload;
    node.generations[0].expected = 2;
    let cause = |node: &Facts, role, respawned| node.join_cause(1, role, None, respawned);
    assert_eq!(cause(&node, Role::Worker, false), Cause::Reload);
    assert_eq!(cause(&node, Role::Worker, true), Cause::Respawn);
    assert_eq!(cause(&node, Role::Helper, true), Cause::Reload);
    node.generations[0].joined = 2;
    assert_eq!(cause(&node, Role::Worker, false), Cause::Respawn);
    node.generations[0].ended_seq = 3;
    assert!(node.joinable(1).is_none());
    assert_eq!(cause(&node, Role::Worker, false), Cause::Resume);
    assert_eq!(cause(&node, Role::Worker, true), Cause::Respawn);
    (node.generations[0].ended_seq, node.generations[0].abandoned_seq) = (0, 3);
    assert!(node.joinable(1).is_none() && node.joinable(2).is_none());
}

#[test]
fn how_the_run_before_ended_is_read_off_what_it_left() {
    let mut node = node();
    assert_eq!(node.find_previous_run(0), PreviousRun::None);
    assert_eq!(node.find_previous_run(1), PreviousRun::Clean, "the master lives, so nothing is left");
    node.slots[0].liveness = Liveness::Gone;
    let unclean = |generation, workers| PreviousRun::Unclean { generation, workers };
    assert_eq!(node.find_previous_run(1), unclean(1, 1));
    node.generations.push(serving(1, 2, 1));
    node.slots.extend([worker(2, 2, SECOND), worker(3, 2, SECOND), worker(4, 9, SECOND)]);
    node.slots[2].exited_seq = 4;
    assert_eq!(node.find_previous_run(1), unclean(2, 2));
    node.slots[3].role = Role::Helper;
    assert_eq!(node.find_previous_run(1), unclean(2, 1));
    node.generations[1].phase = Phase::Announced;
    assert_eq!(node.find_previous_run(1), unclean(1, 1), "it never had a worker");
    (node.generations[1].phase, node.generations[1].ended_seq) = (Phase::Committed, 5);
    assert_eq!(node.find_previous_run(1), unclean(1, 1), "it had ended");
    // A master that died as it started had found out.
    node.generations[1].previous_run = Some(PreviousRun::Clean);
    assert_eq!(node.find_previous_run(1), unclean(1, 1), "and had told it");
    node.generations[1].start_delivered = false;
    assert_eq!(node.find_previous_run(1), PreviousRun::Clean);
    // Who began after that one as an upgrade, and died too, knew nothing.
    node.generations.push(GenerationFacts { start_delivered: false, previous_run: None, ..serving(2, 3, 1) });
    assert_eq!(node.find_previous_run(1), PreviousRun::Clean);
    node.generations.clear();
    assert_eq!(node.find_previous_run(1), PreviousRun::Clean);
    assert_eq!(node.find_previous_run(0), PreviousRun::None);
}

#[test]
fn what_a_run_left_is_told_and_cleared_away() {
    let mut node = node();
    assert!(node.next_leftover().is_none());
    node.slots[0].liveness = Liveness::Gone;
    assert!(node.next_leftover().is_none(), "an orphan serves on");
    node.slots[1].liveness = Liveness::Gone;
    let act = node.next_leftover().expect("a dead worker");
    assert_eq!((reported(&act).0.kind, reported(&act).0.cause), (Kind::WorkerDied, Cause::Unclean));
    assert_eq!((reported(&act).1, &act.after[..]), (Some(Mark::Died(1)), &[Change::FreeSlot(1)][..]));
    let silent = |node: &Facts| {
        let act = node.next_leftover().expect("it is freed");
        assert!(matches!(act.subject, Subject::Nothing), "{act:?}");
        act.before
    };
    for (exited, died, started) in [(2, 0, 1), (0, 2, 1), (0, 0, 0)] {
        let s = &mut node.slots[1];
        (s.exited_seq, s.died_seq, s.started_seq) = (exited, died, started);
        assert_eq!(silent(&node), [Change::FreeSlot(1)]);
    }
    // Its generation comes when nobody is in it.
    node.slots[1].role = Role::Helper;
    let act = node.next_leftover().expect("a generation");
    assert_eq!((reported(&act).0.kind, reported(&act).0.cause), (Kind::GenerationEnded, Cause::Unclean));
    assert_eq!((reported(&act).1, &act.after[..]), (Some(Mark::Ended(0)), &[Change::FreeGeneration(0)][..]));
    node.generations[0].phase = Phase::Announced;
    let act = node.next_leftover().expect("a generation");
    assert_eq!(
        (reported(&act).0.kind, reported(&act).1),
        (Kind::GenerationAbandoned, Some(Mark::Abandoned(0)))
    );
    for (started, ended, abandoned) in [(0, 0, 0), (1, 2, 0), (1, 0, 2)] {
        let g = &mut node.generations[0];
        (g.started_seq, g.ended_seq, g.abandoned_seq) = (started, ended, abandoned);
        assert_eq!(silent(&node), [Change::FreeGeneration(0)]);
    }
    node.slots[0].liveness = Liveness::Alive;
    assert!(node.next_leftover().is_none());
    // The worker of a generation that is not left over is not, either.
    node.slots[1] = SlotFacts { liveness: Liveness::Gone, ..worker(1, 1, SECOND) };
    assert!(node.next_leftover().is_none());
}

/// Whoever was to be told is gone: told after the start of the next run, it would be out of order.
#[test]
fn a_lost_master_that_nobody_was_told_is_cleared_away_with_the_last_it_left() {
    let mut node = node();
    (node.slots[0].liveness, node.slots[0].died_seq) = (Liveness::Gone, 6);
    assert!(node.next_leftover().is_none(), "its orphan is to be told");
    node.slots.truncate(1);
    assert_eq!(node.next_leftover().expect("its generation").after, [Change::FreeGeneration(0)]);
    node.generations.clear();
    assert_eq!(node.next_leftover().expect("its slot").before, [Change::FreeSlot(0)]);
    node.slots[0].died_seq = 0;
    assert!(node.next_leftover().is_none(), "nothing was reported: the slot is free at once");
}

#[test]
fn a_full_table_is_emptied_of_who_is_gone() {
    let mut node = node();
    assert!(node.next_empty().is_none() && node.next_unreported().is_none());
    node.generations.push(serving(4, 2, 1));
    let act = node.next_empty().expect("nobody is in it");
    assert!(matches!(act.subject, Subject::Nothing) && act.before == [Change::FreeGeneration(4)], "{act:?}");
    (node.slots[0].liveness, node.slots[1].liveness) = (Liveness::Gone, UNKNOWN);
    assert!(node.next_unreported().is_none(), "no worker is known to be gone");
    (node.slots[1].liveness, node.slots[1].wait_status) = (Liveness::Gone, Some(9));
    let act = node.next_unreported().expect("it is gone");
    assert_eq!((reported(&act).0.kind, reported(&act).0.signal), (Kind::WorkerDied, Some(9)));
    assert_eq!((reported(&act).1, &act.after[..]), (Some(Mark::Died(1)), &[Change::FreeSlot(1)][..]));
    node.slots[1].died_seq = 3;
    let act = node.next_unreported().expect("it is gone");
    assert!(matches!(act.subject, Subject::Nothing) && act.before == [Change::FreeSlot(1)], "{act:?}");
}

#[test]
fn a_new_run_takes_over_only_what_orphans_of_the_one_before_have() {
    let mut node = node();
    node.slots[1].stands_for = 1;
    let me = node.slots[1].at();
    let word = node.slots[1].identity.to_word();
    let new = |index, kind, state| SingletonFacts { index, kind, state, ..super::singletons_tests::lock(0) };
    let freed = |facts: &Facts| {
        let mut facts = facts.clone();
        let mut freed = Vec::new();
        while let Some(act) = facts.next_left_singleton() {
            let [Change::FreeSingleton(index)] = act.before[..] else { panic!("{act:?}") };
            freed.push(index);
            facts.singletons.retain(|x| x.index != index);
        }
        freed
    };
    let (role, once, lock) = (SingletonKind::Role, SingletonKind::Once, SingletonKind::Lock);
    node.singletons = vec![
        new(0, role, SingletonState::Held),
        SingletonFacts { number: 1, ..new(1, role, SingletonState::Free) },
        SingletonFacts { owner: Some(me), ..new(2, once, SingletonState::Running) },
        SingletonFacts { owner: Some(me), ..new(3, once, SingletonState::Done) },
        SingletonFacts { owner: None, ..new(4, once, SingletonState::Running) },
        SingletonFacts { generation: 1, ..new(5, once, SingletonState::Done) },
        SingletonFacts { generation: 7, ..new(6, once, SingletonState::Done) },
        SingletonFacts { word, ..new(7, lock, SingletonState::Free) },
        SingletonFacts { word: 0, ..new(8, lock, SingletonState::Free) },
        SingletonFacts { word: 77, ..new(9, lock, SingletonState::Free) },
    ];
    assert_eq!(freed(&node), [1, 3, 4, 6, 8, 9]);
    node.slots[1].liveness = UNKNOWN;
    assert_eq!(freed(&node), [1, 3, 4, 6, 8, 9], "one that may live keeps what it has");
    node.slots[1].liveness = Liveness::Gone;
    assert_eq!(freed(&node), [0, 1, 2, 3, 4, 6, 7, 8, 9]);
}
