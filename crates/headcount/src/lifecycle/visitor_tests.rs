//! What a process beside the server is for the decisions: nobody who counts, and the owner of what it has.

use super::tests::{SECOND, generation, slot};
use super::*;
use crate::event::{Cause, Kind};

fn visitor(index: u32) -> SlotFacts {
    SlotFacts {
        role: Role::Visitor,
        intent: Intent::Serving,
        intent_since_ns: SECOND,
        heartbeat_ns: 2 * SECOND,
        stands_for: 1,
        ..slot(index)
    }
}

fn worker(index: u32, generation: GenerationId) -> SlotFacts {
    SlotFacts {
        generation,
        intent: Intent::Serving,
        intent_since_ns: SECOND,
        heartbeat_ns: 2 * SECOND,
        started_seq: 1,
        stands_for: 1,
        ..slot(index)
    }
}

fn role() -> SingletonFacts {
    SingletonFacts {
        kind: SingletonKind::Role,
        state: SingletonState::Free,
        name: "cron".to_owned(),
        ..singletons_tests::lock(0)
    }
}

fn led_by(slot: &SlotFacts) -> SingletonFacts {
    SingletonFacts {
        state: SingletonState::Held,
        owner: Some(slot.at()),
        generation: slot.generation,
        ..role()
    }
}

fn facts(slots: Vec<SlotFacts>, singletons: Vec<SingletonFacts>) -> Facts {
    Facts {
        slots,
        singletons,
        generations: vec![generation(0, 1)],
        now: 3 * SECOND,
        stall_after: 5 * SECOND,
        ..Facts::default()
    }
}

#[test]
fn it_leads_only_where_no_worker_that_is_fit_stands() {
    let elected = |slots: Vec<SlotFacts>| facts(slots, vec![role()]).next_of_singletons();
    assert_eq!(elected(vec![visitor(0), visitor(1)]), Some(SingletonStep::Elect(0, 0)));
    assert_eq!(elected(vec![visitor(0), worker(1, 1)]), Some(SingletonStep::Elect(0, 1)));
    let draining = SlotFacts { intent: Intent::Draining, ..worker(1, 1) };
    assert_eq!(elected(vec![visitor(0), draining]), Some(SingletonStep::Elect(0, 0)));
    // One that has not beaten yet runs nothing that could lead.
    let new = SlotFacts { heartbeat_ns: SECOND, ..visitor(0) };
    assert_eq!(elected(vec![new]), None);
    // It leads, and a worker comes.
    let leader = visitor(0);
    let mut all = facts(vec![leader.clone(), worker(1, 1)], vec![led_by(&leader)]);
    assert_eq!(all.next_of_singletons(), Some(SingletonStep::Ask(0)));
    all.slots.pop();
    assert_eq!(all.next_of_singletons(), None);
}

#[test]
fn one_that_hangs_loses_its_role_without_an_event_about_itself() {
    let leader = SlotFacts { heartbeat_ns: 2 * SECOND, ..visitor(0) };
    let mut all = facts(vec![leader.clone(), visitor(1)], vec![led_by(&leader)]);
    all.now = 8 * SECOND;
    all.slots[1].heartbeat_ns = 8 * SECOND;
    assert_eq!(all.next_of_singletons(), Some(SingletonStep::Lose(0, Cause::Overdue)));
    // Who has slept judges nobody.
    all.is_patient = true;
    assert_eq!(all.next_of_singletons(), None);
    all.is_patient = false;
    all.own = vec![0];
    assert_eq!(all.next_of_singletons(), None);
    // One that only holds a lock does not beat.
    all.singletons.clear();
    all.slots[0].stands_for = 0;
    assert_eq!(all.slots[0].progress(all.now, all.stall_after), Progress::Unwatched);
}

#[test]
fn what_it_had_is_told_before_its_slot_is_free_and_nothing_else() {
    let dead = SlotFacts { liveness: Liveness::Gone, ..visitor(0) };
    let word = dead.identity.to_word();
    let mut all = facts(vec![dead.clone(), worker(1, 1)], vec![singletons_tests::lock(word)]);
    all.slots[1].stands_for = 0;
    let step = all.next_step(Scope::Everything);
    assert_eq!(step, Some(Step::Singleton(SingletonStep::Abandon(0, word))));
    let act = all.act(Stage::Settle(Scope::Everything)).expect("an act");
    let Subject::New(report) = act.subject else { panic!("a report") };
    assert_eq!((report.event.kind, report.event.pid), (Kind::LockAbandoned, dead.pid()));
    // Somebody has taken it from it, and that is not told yet.
    (all.singletons[0].word, all.singletons[0].broken_from) = (7, word);
    assert!(matches!(all.next_step(Scope::Everything), Some(Step::Singleton(_))));
    all.singletons[0].broken_from = 0;
    assert_eq!(all.next_step(Scope::Everything), Some(Step::Release(0)));
    // A role, too.
    all.singletons = vec![led_by(&dead)];
    let lost = Some(Step::Singleton(SingletonStep::Lose(0, Cause::Unknown)));
    assert_eq!(all.next_step(Scope::Everything), lost);
    all.singletons[0].state = SingletonState::Free;
    assert_eq!(all.next_step(Scope::Everything), Some(Step::Release(0)));
    assert_eq!(all.total(), 1);
}

#[test]
fn a_start_of_the_server_leaves_it_what_it_has() {
    let (here, gone) = (visitor(0), SlotFacts { liveness: Liveness::Gone, ..visitor(1) });
    let held = |slot: &SlotFacts| singletons_tests::lock(slot.identity.to_word());
    let number = |number| SingletonFacts { number, ..role() };
    let once = SingletonFacts { kind: SingletonKind::Once, owner: Some(here.at()), ..role() };
    let other = SlotFacts { stands_for: 2, ..worker(2, 1) };
    let all = facts(vec![here.clone(), gone.clone(), other.clone()], Vec::new());
    assert!(all.is_in_use(&held(&here)) && all.is_in_use(&number(0)));
    // An orphan.
    assert!(all.is_in_use(&held(&other)) && all.is_in_use(&number(1)));
    assert!(!all.is_in_use(&held(&gone)) && !all.is_in_use(&number(2)));
    assert!(!all.is_in_use(&once) && !all.is_in_use(&singletons_tests::lock(0)));
}

#[test]
fn it_leaves_without_an_event_and_gives_back_what_it_has() {
    let me = visitor(0);
    let mut all = facts(vec![me.clone()], vec![led_by(&me)]);
    let act = all.act(Stage::LetGo(0)).expect("an act");
    let Subject::New(report) = act.subject else { panic!("a report") };
    assert_eq!((report.event.kind, report.event.cause), (Kind::LeaderLost, Cause::Resigned));
    all.singletons.clear();
    assert!(all.act(Stage::LetGo(0)).is_none());
    let act = all.act(Stage::Exit(0)).expect("an act");
    assert_eq!((&act.before[..], act.is_last), (&[Change::FreeSlot(0)][..], true));
    assert!(matches!(act.subject, Subject::Nothing));
}
