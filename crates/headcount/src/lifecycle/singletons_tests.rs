//! Roles, onces and locks: each decision about them.

use super::edge_tests::reported;
use super::tests::{generation, slot};
use super::*;
use crate::event::{Cause, Kind};
use crate::sys::identity::Doubt;

const NOW: u64 = 100;
const STALL_AFTER: u64 = 10;

fn any(kind: SingletonKind, state: SingletonState) -> SingletonFacts {
    SingletonFacts { kind, state, ..lock(0) }
}

/// Owned by the worker in slot 1.
fn owned(kind: SingletonKind, state: SingletonState) -> SingletonFacts {
    SingletonFacts { owner: Some(slot(1).at()), owner_pid: 101, token: 7, ..any(kind, state) }
}

fn role(state: SingletonState) -> SingletonFacts {
    owned(SingletonKind::Role, state)
}

fn once(state: SingletonState) -> SingletonFacts {
    owned(SingletonKind::Once, state)
}

/// Fit for role 0.
fn fit(index: u32, id: GenerationId) -> SlotFacts {
    SlotFacts {
        generation: id,
        worker_id: Some(index - 1),
        started_seq: 1,
        intent: Intent::Serving,
        intent_since_ns: NOW - 5,
        heartbeat_ns: NOW - 1,
        stands_for: 1,
        ..slot(index)
    }
}

/// A master that listens, a generation, two fit workers, and one singleton.
fn node(x: SingletonFacts) -> Facts {
    let master = SlotFacts { role: Role::Master, intent: Intent::Listening, ..slot(0) };
    Facts {
        slots: vec![master, fit(1, 1), fit(2, 1)],
        generations: vec![GenerationFacts { phase: Phase::Committed, ..generation(0, 1) }],
        singletons: vec![x],
        next_token: 8,
        now: NOW,
        stall_after: STALL_AFTER,
        as_reported: true,
        ..Facts::default()
    }
}

fn dead(s: &mut SlotFacts, status: Option<i32>) {
    (s.liveness, s.wait_status) = (Liveness::Gone, status);
}

pub(super) fn lock(word: u64) -> SingletonFacts {
    SingletonFacts {
        index: 0,
        kind: SingletonKind::Lock,
        state: SingletonState::Free,
        name: "keys".to_owned(),
        word,
        token: 1,
        broken_from: 0,
        last_dead: 0,
        owner: None,
        owner_pid: 0,
        owner_worker_id: None,
        attempts: 0,
        cause: Cause::Unknown,
        wait_status: None,
        since_ns: 0,
        generation: 0,
        asked_ns: 0,
        number: 0,
        next_state: None,
        seq: 0,
    }
}

#[test]
fn nobody_is_elected_whose_master_was_told_to_stop() {
    let mut facts = Facts { now: 20, stall_after: 5, as_reported: true, ..Facts::default() };
    for number in [1u32, 2] {
        let (index, id) = (2 * number, u64::from(number));
        let master = SlotFacts { role: Role::Master, version: 2, intent: Intent::Listening, ..slot(index) };
        let worker = SlotFacts {
            generation: id,
            started_seq: id,
            intent: Intent::Serving,
            intent_since_ns: 18,
            heartbeat_ns: 19,
            stands_for: 1,
            ..slot(index + 1)
        };
        facts.slots.extend([master, worker]);
        facts.generations.push(GenerationFacts { master_slot: index, ..generation(index, id) });
    }
    let best = |facts: &Facts| facts.best_leader(0).map(|s| s.generation);
    assert_eq!(best(&facts), Some(2));
    facts.slots[2].intent = Intent::Leaving;
    assert_eq!(best(&facts), Some(1), "an upgrade that is rolled back");
    facts.slots[0].intent = Intent::Leaving;
    assert_eq!(best(&facts), None, "a stop");
    facts.slots[2].liveness = Liveness::Gone;
    assert_eq!(best(&facts), Some(2), "orphans serve on");
}

#[test]
fn a_lock_whose_abandonment_was_reported_by_one_who_died_then_is_not_reported_again() {
    let dead = SlotFacts { liveness: Liveness::Gone, died_seq: 3, started_seq: 1, ..slot(1) };
    let word = dead.identity.to_word();
    let mut facts = Facts { slots: vec![dead], singletons: vec![lock(word)], ..Facts::default() };
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Abandon(0, word)));
    // The reporter got as far as the event.
    facts.singletons[0].seq = 4;
    facts.singletons[0].next_state = Some(SingletonState::Free);
    let act = facts.next_about_singletons().expect("something to complete");
    assert_eq!(act.before, [Change::Turn(0), Change::Unlock(0, word)]);
    assert!(matches!(act.subject, Subject::Nothing));
    // Somebody waited for it, and took it: what is left to do is the same.
    (facts.singletons[0].word, facts.singletons[0].broken_from) = (77, word);
    let act = facts.next_about_singletons().expect("something to complete");
    assert_eq!(act.before, [Change::Turn(0), Change::Unlock(0, word)]);
    // Of one that lives nothing is taken.
    facts.slots[0].liveness = Liveness::Alive;
    assert_eq!(facts.next_about_singletons().expect("something to complete").before, [Change::Turn(0)]);
}

#[test]
fn the_first_of_the_fit_is_elected_or_the_one_who_decides() {
    let mut facts = node(any(SingletonKind::Role, SingletonState::Free));
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Elect(0, 1)));
    facts.own = vec![2];
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Elect(0, 2)));
    facts.slots[1].generation = 2;
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Elect(0, 1)), "of the newest generation");
    facts.singletons[0].number = 1;
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Free(0)), "nobody stands for that one");
    facts.slots[2].stands_for = 2;
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Elect(0, 2)));
    facts.singletons[0].number = 64;
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Free(0)), "no role has this number");
}

#[test]
fn who_is_not_fit_is_not_elected_and_the_role_waits_for_it() {
    let unfit: [fn(&mut SlotFacts); 8] = [
        |s| s.role = Role::Helper,
        |s| s.liveness = Liveness::Unknown(Doubt::Refused),
        |s| s.started_seq = 0,
        |s| s.intent = Intent::Starting,
        |s| s.intent = Intent::Draining,
        // Its loop has not turned.
        |s| s.heartbeat_ns = s.intent_since_ns,
        |s| (s.heartbeat_ns, s.intent_since_ns) = (NOW - STALL_AFTER - 1, 1),
        |s| s.stalled_seq = 3,
    ];
    for spoil in unfit {
        let mut facts = node(any(SingletonKind::Role, SingletonState::Free));
        facts.slots.truncate(2);
        spoil(&mut facts.slots[1]);
        assert_eq!(facts.next_of_singletons(), None, "{:?}", facts.slots[1]);
        facts.slots[1].liveness = Liveness::Gone;
        assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Free(0)));
    }
}

#[test]
fn an_election_is_an_event_with_the_next_token() {
    let mut facts =
        node(SingletonFacts { cause: Cause::Overdue, ..any(SingletonKind::Role, SingletonState::Free) });
    facts.slots[1].generation = 3;
    let act = facts.next_about_singletons().expect("an election");
    let (event, mark) = reported(&act);
    assert_eq!(
        (event.kind, event.cause, mark),
        (Kind::LeaderElected, Cause::Overdue, Some(Mark::Singleton(0)))
    );
    assert_eq!((event.pid, event.worker_id, event.generation, event.token), (101, Some(0), 3, 8));
    assert_eq!(event.name.as_deref(), Some("keys"));
    let nominate = Change::Nominate { singleton: 0, slot: 1, token: 8 };
    assert_eq!(act.before, [Change::Next(0, SingletonState::Held), nominate]);
    assert_eq!(act.after, [Change::Turn(0)]);
    assert!(act.call && !act.deliver);
}

#[test]
fn a_leader_stays_and_loses_the_role_when_it_is_gone() {
    let mut facts = node(role(SingletonState::Held));
    assert_eq!(facts.next_of_singletons(), None);
    facts.singletons[0].owner = None;
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Lose(0, Cause::Unknown)));
    facts.singletons[0].owner = Some(SlotRef { index: 1, version: 4 });
    assert_eq!(
        facts.next_of_singletons(),
        Some(SingletonStep::Lose(0, Cause::Unknown)),
        "another has its slot"
    );
    facts.singletons[0].owner = Some(slot(1).at());
    dead(&mut facts.slots[1], Some(9));
    assert_eq!(facts.next_of_singletons(), None, "its death is told first");
    facts.slots[1].died_seq = 5;
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Lose(0, Cause::Signal)));
    let act = facts.next_about_singletons().expect("a loss");
    let (event, _) = reported(&act);
    assert_eq!((event.kind, event.cause, event.signal), (Kind::LeaderLost, Cause::Signal, Some(9)));
    assert_eq!((event.pid, event.token), (101, 7));
    assert_eq!(act.before, [Change::Next(0, SingletonState::Free), Change::End(0, Cause::Signal, Some(9))]);
    facts.slots[1].wait_status = Some(3 << 8);
    assert_eq!(reported(&facts.next_about_singletons().expect("a loss")).0.exit_code, Some(3));
    (facts.slots[1].died_seq, facts.slots[1].exited_seq, facts.slots[1].wait_status) = (0, 5, Some(9));
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Lose(0, Cause::Exit)), "it left first");
}

#[test]
fn a_leader_that_resigns_or_hangs_loses_the_role() {
    let mut facts = node(role(SingletonState::Held));
    facts.slots[1].stalled_seq = 4;
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Lose(0, Cause::Overdue)));
    facts.slots[1].wait_status = Some(9);
    let act = facts.next_about_singletons().expect("a loss");
    assert_eq!(reported(&act).0.signal, None, "it lives");
    facts.slots[1].stands_for = 2;
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Lose(0, Cause::Resigned)));
    facts.slots[1] = fit(1, 1);
    facts.singletons[0].state = SingletonState::GivenUp;
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Lose(0, Cause::Resigned)));
    facts.slots[1].intent = Intent::Draining;
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Lose(0, Cause::Recycled)));
}

#[test]
fn a_leader_on_its_way_out_or_of_an_old_generation_is_asked_and_has_so_much_time() {
    for intent in [Intent::Draining, Intent::Leaving] {
        let mut facts = node(role(SingletonState::Held));
        facts.slots[1].intent = intent;
        assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Ask(0)));
        let act = facts.next_about_singletons().expect("it is asked");
        assert_eq!((&act.before[..], act.call), (&[Change::Ask(0)][..], true));
        assert!(matches!(act.subject, Subject::Nothing));
    }
    let mut facts = node(role(SingletonState::Held));
    facts.slots[2].generation = 2;
    facts.generations.push(GenerationFacts { phase: Phase::Committed, ..generation(1, 2) });
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Ask(0)));
    facts.singletons[0].state = SingletonState::Asked;
    facts.singletons[0].asked_ns = NOW - STALL_AFTER;
    assert_eq!(facts.next_of_singletons(), None);
    assert_eq!(facts.answer_deadlines().collect::<Vec<_>>(), [NOW + 1]);
    facts.singletons[0].asked_ns -= 1;
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Lose(0, Cause::Superseded)));
    facts.slots[2].generation = 1;
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Lose(0, Cause::Overdue)), "it never answered");
    facts.singletons[0].state = SingletonState::Held;
    assert_eq!(facts.answer_deadlines().count(), 0);
}

#[test]
fn a_once_is_open_again_when_its_runner_is_gone_and_fails_after_three() {
    let mut facts = node(once(SingletonState::Running));
    assert_eq!(facts.next_of_singletons(), None);
    dead(&mut facts.slots[1], Some(11));
    assert_eq!(facts.next_of_singletons(), None, "its death is told first");
    facts.slots[1].died_seq = 4;
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Interrupt(0)));
    let act = facts.next_about_singletons().expect("it is open again");
    let open = |cause, status| {
        [Change::End(0, cause, status), Change::Next(0, SingletonState::Open), Change::Turn(0)]
    };
    assert_eq!((act.before, act.call), (open(Cause::Signal, Some(11)).to_vec(), true));
    facts.singletons[0].owner = None;
    let act = facts.next_about_singletons().expect("it is open again");
    assert_eq!(act.before, open(Cause::Unknown, None));
    assert_eq!(facts.failed(0).expect("a failure").before, open(Cause::Failed, None));

    facts.singletons[0].state = SingletonState::Open;
    facts.singletons[0].attempts = MOST_TRIES - 1;
    assert_eq!(facts.next_of_singletons(), None);
    facts.singletons[0].attempts = MOST_TRIES;
    (facts.singletons[0].cause, facts.singletons[0].wait_status) = (Cause::Signal, Some(11));
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Fail(0)));
    let act = facts.next_about_singletons().expect("a failure");
    let (event, mark) = reported(&act);
    assert_eq!((event.kind, event.cause, event.signal), (Kind::OnceFailed, Cause::Signal, Some(11)));
    assert_eq!((event.attempts, event.token, mark), (MOST_TRIES, 0, Some(Mark::Singleton(0))));
    assert_eq!(act.before, [Change::Next(0, SingletonState::Failed)]);
    facts.singletons[0].attempts = 2;
    let act = facts.singletons[0].done();
    assert_eq!((reported(&act).0.kind, reported(&act).0.attempts), (Kind::OnceDone, 2));
    assert_eq!((act.before, act.after), (vec![Change::Next(0, SingletonState::Done)], vec![Change::Turn(0)]));
}

#[test]
fn the_onces_of_a_generation_go_with_it() {
    for state in [SingletonState::Open, SingletonState::Done, SingletonState::Failed] {
        let mut facts = node(SingletonFacts { generation: 1, ..once(state) });
        assert_eq!(facts.next_of_singletons(), None);
        facts.singletons[0].generation = 0;
        assert_eq!(facts.next_of_singletons(), None, "the node's");
        facts.singletons[0].generation = 2;
        assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Free(0)));
        assert_eq!(facts.next_about_singletons().expect("it is freed").before, [Change::FreeSingleton(0)]);
    }
}

#[test]
fn the_lock_of_a_dead_holder_is_abandoned_after_its_death_is_told() {
    let mut facts = node(lock(fit(1, 1).identity.to_word()));
    let word = facts.singletons[0].word;
    assert_eq!(facts.next_of_singletons(), None, "it lives");
    dead(&mut facts.slots[1], Some(9));
    assert_eq!(facts.next_of_singletons(), None, "its death is told first");
    facts.slots[1].died_seq = 4;
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Abandon(0, word)));
    let act = facts.next_about_singletons().expect("it is abandoned");
    let (event, _) = reported(&act);
    assert_eq!((event.kind, event.cause, event.signal), (Kind::LockAbandoned, Cause::Signal, Some(9)));
    assert_eq!((event.pid, event.worker_id, event.generation, event.token), (101, Some(0), 1, 1));
    assert_eq!(act.before, [Change::Next(0, SingletonState::Free)]);
    assert_eq!(act.after, [Change::Turn(0), Change::Unlock(0, word)]);
    facts.slots[1].died_seq = 0;
    facts.slots[1].exited_seq = 4;
    assert_eq!(reported(&facts.next_about_singletons().expect("it is abandoned")).0.cause, Cause::Signal);
    facts.slots[1].wait_status = None;
    assert_eq!(reported(&facts.next_about_singletons().expect("it is abandoned")).0.cause, Cause::Exit);

    (facts.slots[1].died_seq, facts.slots[1].exited_seq) = (4, 0);
    assert_eq!(reported(&facts.next_about_singletons().expect("it is abandoned")).0.cause, Cause::Unknown);
    (facts.slots[1].died_seq, facts.slots[1].exited_seq) = (0, 4);

    // Whoever waited for it has taken it from the dead.
    (facts.singletons[0].word, facts.singletons[0].broken_from) = (fit(2, 1).identity.to_word(), word);
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Abandon(0, word)));
    facts.slots[1].exited_seq = 0;
    assert_eq!(facts.next_of_singletons(), None, "its death is told first");
    facts.slots.remove(1);
    assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Abandon(0, word)));
    facts.singletons[0].last_dead = word;
    let act = facts.next_about_singletons().expect("it is freed");
    assert!(matches!(act.subject, Subject::Nothing), "it was reported before");
    assert_eq!(act.before, [Change::Unlock(0, word)]);
    (facts.singletons[0].word, facts.singletons[0].broken_from) = (0, 0);
    assert_eq!(facts.next_of_singletons(), None, "nobody has it");
}

#[test]
fn what_was_reported_is_completed_first_of_all() {
    for kind in [SingletonKind::Role, SingletonKind::Once, SingletonKind::Lock] {
        let mut facts = node(SingletonFacts { seq: 4, ..owned(kind, SingletonState::Held) });
        facts.singletons[0].word = fit(1, 1).identity.to_word();
        assert_eq!(facts.next_of_singletons(), Some(SingletonStep::Complete(0)));
        let act = facts.next_about_singletons().expect("something to complete");
        assert_eq!((act.before, act.call), (vec![Change::Turn(0)], true), "its owner lives");
        assert_eq!(facts.let_go(&facts.slots[1]).expect("as well").before, [Change::Turn(0)]);
    }
}

#[test]
fn who_leaves_lets_go_of_what_it_has() {
    let facts = node(role(SingletonState::Held));
    assert!(facts.let_go(&facts.slots[2]).is_none(), "another's");
    let act = facts.let_go(&facts.slots[1]).expect("its role");
    assert_eq!((reported(&act).0.kind, reported(&act).0.cause), (Kind::LeaderLost, Cause::Recycled));
    let facts = node(role(SingletonState::Free));
    assert!(facts.let_go(&facts.slots[1]).is_none(), "it had it once");

    let facts = node(once(SingletonState::Running));
    assert!(facts.let_go(&facts.slots[2]).is_none(), "another's");
    let act = facts.let_go(&facts.slots[1]).expect("its once");
    assert_eq!(act.before[0], Change::End(0, Cause::Exit, None));
    let facts = node(once(SingletonState::Done));
    assert!(facts.let_go(&facts.slots[1]).is_none(), "it is done");

    let word = fit(1, 1).identity.to_word();
    let facts = node(lock(word));
    assert!(facts.let_go(&facts.slots[2]).is_none(), "another's");
    let act = facts.let_go(&facts.slots[1]).expect("its lock");
    assert_eq!((reported(&act).0.kind, reported(&act).0.cause), (Kind::LockAbandoned, Cause::Exit));
    assert_eq!(act.after, [Change::Turn(0), Change::Unlock(0, word)]);

    // A process that is in two generations leaves the one, and has its lock still.
    let mut facts = node(lock(word));
    facts.slots[2].identity = facts.slots[1].identity;
    assert!(facts.let_go(&facts.slots[1]).is_none(), "it goes on in the other");
    facts.slots[2].exited_seq = 5;
    assert!(facts.let_go(&facts.slots[1]).is_some(), "it has left that");
    facts.slots[2] = SlotFacts { role: Role::Master, exited_seq: 0, ..facts.slots[2].clone() };
    assert!(facts.let_go(&facts.slots[1]).is_some(), "masters have no locks");
}
