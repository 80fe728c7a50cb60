//! What stands in an event, and what a step takes besides.

use super::edge_tests::{STALL_AFTER, node, reported, serving, worker};
use super::tests::SECOND;
use super::*;
use crate::event::{Cause, Event, Kind, PreviousRun};

#[test]
fn a_wait_status_is_a_signal_or_an_exit_code() {
    let node = node();
    let death = |wait_status| {
        let event = node.death(&SlotFacts { wait_status, ..worker(1, 1, SECOND) }, Kind::WorkerDied);
        (event.cause, event.signal, event.exit_code)
    };
    assert_eq!(death(None), (Cause::Unknown, None, None));
    assert_eq!(death(Some(9)), (Cause::Signal, Some(9), None));
    assert_eq!(death(Some(11 | 0x80)), (Cause::Signal, Some(11), None), "with a core");
    assert_eq!(death(Some(0)), (Cause::Exit, None, Some(0)));
    assert_eq!(death(Some(3 << 8)), (Cause::Exit, None, Some(3)));
    assert_eq!(death(Some(0x1_ff_00)), (Cause::Exit, None, Some(0xff)));
}

#[test]
fn of_who_is_gone_the_last_state_is_told_and_since_when() {
    let node = node();
    let was = |change: &dyn Fn(&mut SlotFacts)| {
        let mut s = SlotFacts { joined_ns: 1, intent_since_ns: 2, heartbeat_ns: 3, ..worker(1, 1, SECOND) };
        change(&mut s);
        let event = node.about_gone(&s, Kind::WorkerDied, Cause::Unknown);
        assert_eq!((event.joined_ns, event.heartbeat_ns, event.pid), (1, s.heartbeat_ns, s.pid()));
        (event.state.expect("it had one"), event.state_since_ns)
    };
    assert_eq!(was(&|_| ()), (State::Serving, 2));
    assert_eq!(was(&|s| s.heartbeat_ns = 2), (State::Starting, 1), "its loop never turned");
    assert_eq!(was(&|s| (s.role, s.heartbeat_ns) = (Role::Helper, 2)), (State::Serving, 2));
    assert_eq!(was(&|s| s.intent = Intent::Starting), (State::Starting, 1));
    assert_eq!(was(&|s| s.intent = Intent::Listening), (State::Serving, 2));
    assert_eq!(was(&|s| s.intent = Intent::Draining), (State::Draining, 2));
    assert_eq!(was(&|s| s.intent = Intent::Leaving), (State::Leaving, 2));
    assert_eq!(was(&|s| s.stalled_seq = 1), (State::Stalled, 3 + STALL_AFTER));
    assert_eq!(was(&|s| (s.stalled_seq, s.recovered_seq) = (1, 2)), (State::Serving, 2));
}

#[test]
fn of_who_is_of_another_boot_only_the_date_is_told() {
    let mut s = SlotFacts { joined_ns: 5, joined_wall_ns: 100, heartbeat_ns: 7, ..worker(1, 1, SECOND) };
    let event = node().about_gone(&s, Kind::WorkerDied, Cause::Unclean);
    assert_eq!((event.joined_ns, event.heartbeat_ns, event.time_ns), (5, 7, 0));
    s.identity.birth = crate::sys::identity::OF_ANOTHER_BOOT;
    let event = node().about_gone(&s, Kind::WorkerDied, Cause::Unclean);
    assert_eq!((event.joined_ns, event.state_since_ns, event.heartbeat_ns), (0, 0, 0));
    assert_eq!((event.state, event.time_ns), (Some(State::Serving), 102));
}

#[test]
fn an_event_names_its_process() {
    let s = SlotFacts { worker_id: Some(3), ..worker(1, 7, SECOND) };
    let event = act::about(&s, Kind::WorkerStarted, Cause::Reload);
    assert_eq!(
        (event.kind, event.cause, event.generation, event.pid),
        (Kind::WorkerStarted, Cause::Reload, 7, 101)
    );
    assert_eq!((event.role, event.worker_id, event.heartbeat_ns), (Some(Role::Worker), Some(3), SECOND));
    let event = act::about_generation(&serving(0, 7, 1), Kind::GenerationEnded, Cause::Stop);
    assert_eq!(
        (event.kind, event.cause, event.generation, event.pid),
        (Kind::GenerationEnded, Cause::Stop, 7, 100)
    );
    assert_eq!(event.role, Some(Role::Master));
}

#[test]
fn a_generation_goes_for_a_newer_one_or_for_an_older_one_that_serves() {
    let cause = |node: &Facts| {
        let act = node.act(Stage::Exit(1)).expect("it leaves");
        reported(&act).0.cause
    };
    let mut node = node();
    assert_eq!(cause(&node), Cause::Stop);
    node.generations.push(serving(1, 2, 1));
    assert_eq!(cause(&node), Cause::Superseded);
    node.slots[1].generation = 2;
    assert_eq!(cause(&node), Cause::Stop, "nobody of the older one is there");
    node.slots.push(worker(2, 1, node.now));
    assert_eq!(cause(&node), Cause::Superseded, "rolled back");
    node.slots[2].intent = Intent::Draining;
    assert_eq!(cause(&node), Cause::Stop, "all of the older one drain");
}

#[test]
fn each_step_of_a_process_is_one_report() {
    let node = node();
    let act = node.act(Stage::StartProcess(1)).expect("it starts");
    assert_eq!((reported(&act).0.kind, reported(&act).1), (Kind::WorkerStarted, Some(Mark::Started(1))));
    assert_eq!((act.deliver, act.ring, act.is_last), (true, true, true));
    assert_eq!((act.before, act.after), (vec![], vec![Change::Serving(1)]));

    let act = node.act(Stage::Drain(1)).expect("it drains");
    assert_eq!((reported(&act).0.kind, reported(&act).1), (Kind::WorkerDraining, None));
    assert_eq!((act.deliver, act.ring, act.is_last), (true, true, true));
    assert_eq!((act.before, act.after), (vec![Change::Intent(1, Intent::Draining)], vec![]));

    let act = node.act(Stage::Exit(1)).expect("it leaves");
    assert_eq!((reported(&act).0.kind, reported(&act).1), (Kind::WorkerExited, Some(Mark::Exited(1))));
    assert_eq!((act.deliver, act.ring, act.is_last), (true, false, true));
    assert_eq!(
        (act.before, act.after),
        (vec![Change::Intent(1, Intent::Leaving)], vec![Change::FreeSlot(1)])
    );

    let act = node.act(Stage::ExitMaster(0)).expect("it leaves");
    assert_eq!((reported(&act).0.kind, reported(&act).1), (Kind::MasterExited, Some(Mark::Exited(0))));
    assert_eq!((act.deliver, act.is_last, act.after), (false, true, vec![Change::FreeSlot(0)]));

    let act = node.act(Stage::Commit(1, Some(5))).expect("it has come");
    let joined = Change::Joined { generation: 0, number: Some(5), is_complete: true };
    assert_eq!((act.before, act.deliver, act.is_last), (vec![joined], false, true));

    let mut node = node;
    node.slots[1].role = Role::Helper;
    let act = node.act(Stage::StartProcess(1)).expect("it starts");
    assert_eq!((reported(&act).0.kind, act.deliver), (Kind::HelperStarted, false));
    let act = node.act(Stage::Exit(1)).expect("it leaves");
    assert_eq!((reported(&act).0.kind, act.deliver), (Kind::HelperExited, false));
    let nothing = [
        Stage::StartProcess(7),
        Stage::Drain(7),
        Stage::Exit(7),
        Stage::ExitMaster(7),
        Stage::Revive(1),
        Stage::Shrink,
    ];
    assert!(nothing.into_iter().all(|stage| node.act(stage).is_none()));
}

#[test]
fn a_start_is_told_once_with_how_the_run_before_ended() {
    let mut node = node();
    assert!(node.act(Stage::StartGeneration(1)).is_none(), "it is told");
    let g = &mut node.generations[0];
    (g.start_delivered, g.started_seq, g.previous_run) = (false, 0, Some(PreviousRun::Clean));
    let act = node.act(Stage::StartGeneration(1)).expect("it starts");
    let (event, mark) = reported(&act);
    assert_eq!((event.kind, event.previous_run), (Kind::GenerationStarted, Some(PreviousRun::Clean)));
    assert_eq!((mark, act.deliver, act.is_last), (Some(Mark::GenerationStarted(0)), true, true));
    assert_eq!(act.after, [Change::StartDelivered(0)]);
    let g = &mut node.generations[0];
    (g.started_seq, g.tries) = (4, MOST_TRIES - 1);
    let act = node.act(Stage::StartGeneration(1)).expect("its runner died");
    let Subject::Known(4, Some(event)) = &act.subject else { panic!("{act:?}") };
    assert_eq!((event.seq, event.counts.mine, event.previous_run), (4, 1, Some(PreviousRun::Clean)));
    assert_eq!((act.deliver, act.tries), (true, MOST_TRIES - 1));
    node.generations[0].tries = MOST_TRIES;
    assert!(!node.act(Stage::StartGeneration(1)).expect("it is over").deliver, "it has killed enough");
}

#[test]
fn what_stands_in_the_journal_and_killed_its_runners_is_delivered_thrice() {
    let mut node = node();
    (node.redeliver_seq, node.redeliver_tries) = (4, MOST_TRIES - 1);
    let settle = |node: &Facts| node.act(Stage::Settle(Scope::Everything)).expect("there is something");
    let act = settle(&node);
    assert!(matches!(act.subject, Subject::Known(4, None)), "{act:?}");
    assert_eq!((act.deliver, act.tries, act.after), (true, MOST_TRIES - 1, vec![Change::Redelivered]));
    node.redeliver_tries = MOST_TRIES;
    assert!(!settle(&node).deliver);
    node.redeliver_seq = 0;
    assert!(node.act(Stage::Settle(Scope::Everything)).is_none());
    // What was reported first is delivered first.
    (node.slots[1].liveness, node.slots[1].died_seq, node.slots[1].tries) = (Liveness::Gone, 6, 2);
    node.redeliver_seq = 7;
    let act = settle(&node);
    let Subject::Known(6, Some(event)) = &act.subject else { panic!("{act:?}") };
    assert_eq!((event.kind, event.seq, event.counts.mine), (Kind::WorkerDied, 6, 0));
    assert_eq!((act.deliver, act.tries, act.after), (true, 2, vec![Change::FreeSlot(1)]));
    node.redeliver_seq = 5;
    assert!(matches!(settle(&node).subject, Subject::Known(5, None)));
}

#[test]
fn a_death_at_work_is_noted_and_one_of_who_was_told_to_go_is_not() {
    let mut node = node();
    node.slots[1].liveness = Liveness::Gone;
    let settle = |node: &Facts| node.act(Stage::Settle(Scope::Everything)).expect("it died");
    for intent in [Intent::Starting, Intent::Serving] {
        node.slots[1].intent = intent;
        let act = settle(&node);
        assert_eq!((reported(&act).0.kind, reported(&act).1), (Kind::WorkerDied, Some(Mark::Died(1))));
        assert_eq!(
            (act.deliver, act.is_last),
            (false, false),
            "it is delivered when it stands in the journal"
        );
        assert_eq!(act.before, [Change::LostAtWork(0, coarse(node.now))]);
    }
    for intent in [Intent::Draining, Intent::Leaving] {
        node.slots[1].intent = intent;
        assert_eq!(settle(&node).before, []);
    }
    node.slots[1].intent = Intent::Serving;
    node.now = 0;
    assert_eq!(settle(&node).before, [Change::LostAtWork(0, 1)], "0 is nobody");
    node.slots[1].role = Role::Helper;
    let act = settle(&node);
    assert_eq!((reported(&act).0.kind, reported(&act).1), (Kind::HelperExited, Some(Mark::Exited(1))));
    node.slots[1].exited_seq = 3;
    assert_eq!(settle(&node).before, [Change::FreeSlot(1)]);
}

#[test]
fn the_end_of_a_generation_is_reported_then_delivered_then_forgotten() {
    let mut node = node();
    node.slots.truncate(1);
    node.slots[0].liveness = Liveness::Gone;
    node.slots[0].exited_seq = 1;
    node.slots.clear();
    let settle = |node: &Facts| node.act(Stage::Settle(Scope::Everything)).expect("it is over");
    let act = settle(&node);
    assert_eq!((reported(&act).0.kind, reported(&act).1), (Kind::GenerationEnded, Some(Mark::Ended(0))));
    assert_eq!((act.before, act.deliver), (vec![Change::ForgetTries(0)], false));
    (node.generations[0].ended_seq, node.generations[0].tries) = (5, 1);
    let act = settle(&node);
    let Subject::Known(5, Some(event)) = &act.subject else { panic!("{act:?}") };
    assert_eq!((event.kind, act.deliver, act.tries), (Kind::GenerationEnded, true, 1));
    assert_eq!(act.after, [Change::FreeGeneration(0)]);

    let g = &mut node.generations[0];
    (g.ended_seq, g.phase) = (0, Phase::Abandoned);
    let act = settle(&node);
    assert_eq!(
        (reported(&act).0.kind, reported(&act).1),
        (Kind::GenerationAbandoned, Some(Mark::Abandoned(0)))
    );
    assert_eq!((reported(&act).0.cause, act.before), (Cause::NoWorkers, vec![Change::ForgetTries(0)]));
    node.generations[0].abandoned_seq = 6;
    let act = settle(&node);
    let Subject::Known(6, Some(event)) = &act.subject else { panic!("{act:?}") };
    assert_eq!((event.kind, &act.after[..]), (Kind::GenerationAbandoned, &[Change::FreeGeneration(0)][..]));
    let g = &mut node.generations[0];
    (g.abandoned_seq, g.started_seq) = (0, 0);
    assert_eq!(settle(&node).before, [Change::FreeGeneration(0)]);
}

#[test]
fn a_lost_master_is_told_about_the_newest_generation_that_it_leaves() {
    let mut node = node();
    node.generations.extend([serving(1, 2, 1), GenerationFacts { master_slot: 9, ..serving(2, 3, 1) }]);
    node.slots[0].liveness = Liveness::Gone;
    let settle = |node: &Facts| node.act(Stage::Settle(Scope::Everything)).expect("it is lost");
    let act = settle(&node);
    let (event, mark) = reported(&act);
    assert_eq!((event.kind, event.generation, event.pid), (Kind::MasterLost, 2, 100));
    assert_eq!(mark, Some(Mark::Died(0)));
    (node.slots[0].died_seq, node.slots[0].tries) = (5, 2);
    let act = settle(&node);
    let Subject::Known(5, Some(event)) = &act.subject else { panic!("{act:?}") };
    assert_eq!((event.kind, event.generation, act.deliver, act.tries), (Kind::MasterLost, 2, true, 2));
    assert_eq!(act.after, [Change::FreeSlot(0)]);
}

#[test]
fn a_stall_is_told_again_by_others_if_its_runner_dies() {
    let mut node = node();
    node.slots[1].heartbeat_ns = SECOND;
    let settle = |node: &Facts| node.act(Stage::Settle(Scope::Everything)).expect("it is news");
    let is_kept = |act: &Act| matches!(&act.subject, Subject::New(report) if report.redeliver);
    let act = settle(&node);
    assert_eq!((reported(&act).0.kind, reported(&act).0.cause), (Kind::WorkerStalled, Cause::Overdue));
    assert!(is_kept(&act) && reported(&act).1 == Some(Mark::Stalled(1)));
    (node.slots[1].heartbeat_ns, node.slots[1].stalled_seq) = (node.now, 4);
    let act = settle(&node);
    assert_eq!((reported(&act).0.kind, reported(&act).1), (Kind::WorkerRecovered, Some(Mark::Recovered(1))));
    assert!(is_kept(&act));
    assert!(!is_kept(&node.act(Stage::Drain(1)).expect("it drains")));
}

#[test]
fn who_dies_in_a_callback_is_noted_where_its_event_is() {
    let mut node = node();
    (node.slots[1].died_seq, node.slots[1].tries) = (4, 2);
    (node.generations[0].started_seq, node.generations[0].tries) = (5, 1);
    node.redeliver_tries = 3;
    let about = |kind, seq| Event { seq, ..Event::new(kind, Cause::Unknown) };
    let noted = |node: &Facts, kind, seq| {
        let event = about(kind, seq);
        (node.died_in_callback(&event), node.tries_of(&event))
    };
    for kind in [Kind::WorkerDied, Kind::MasterLost] {
        assert_eq!(noted(&node, kind, 4), (vec![Change::SlotTries(1)], 2));
        assert_eq!(noted(&node, kind, 6), (vec![], 0));
    }
    for kind in [Kind::GenerationStarted, Kind::GenerationEnded, Kind::GenerationAbandoned] {
        assert_eq!(noted(&node, kind, 5), (vec![Change::GenerationTries(0)], 1));
        assert_eq!(noted(&node, kind, 6), (vec![], 0));
    }
    for kind in [Kind::WorkerStalled, Kind::WorkerRecovered] {
        assert_eq!(noted(&node, kind, 9), (vec![Change::RedeliverTries, Change::Redeliver(9)], 3));
    }
    assert_eq!(noted(&node, Kind::WorkerStarted, 7), (vec![], 0));
    node.generations[0].started_seq = 1;
    node.generations[0].ended_seq = 5;
    assert_eq!(noted(&node, Kind::GenerationEnded, 5).1, 1);
    (node.generations[0].ended_seq, node.generations[0].abandoned_seq) = (0, 5);
    assert_eq!(noted(&node, Kind::GenerationAbandoned, 5).1, 1);
}
