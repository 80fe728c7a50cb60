//! Each decision at its edges: the moments, numbers and bits at which the answer changes. `make mutants` says what is missing.
//!
//! Here: single processes, and who is waited for. `over_tests.rs`: when generations and masters are over. `act_tests.rs`: what a step
//! takes, and what stands in an event. `start_tests.rs`: starts.

use super::tests::{SECOND, generation, slot};
use super::*;
use crate::event::Event;
use crate::sys::identity::Doubt;

pub(super) const STALL_AFTER: u64 = 5 * SECOND;
pub(super) const UNKNOWN: Liveness = Liveness::Unknown(Doubt::Refused);

/// Joined, at work, and it has just beaten.
pub(super) fn worker(index: u32, of: GenerationId, now: u64) -> SlotFacts {
    SlotFacts {
        generation: of,
        started_seq: 1,
        intent: Intent::Serving,
        intent_since_ns: now - SECOND,
        heartbeat_ns: now,
        ..slot(index)
    }
}

pub(super) fn master(index: u32) -> SlotFacts {
    SlotFacts { role: Role::Master, intent: Intent::Serving, started_seq: 0, ..slot(index) }
}

/// Reported, all of its workers have come, and its master is in slot 0.
pub(super) fn serving(index: u32, id: GenerationId, expected: u32) -> GenerationFacts {
    GenerationFacts {
        phase: Phase::Committed,
        expected,
        joined: expected,
        started_seq: 1,
        ..generation(index, id)
    }
}

pub(super) fn facts(slots: Vec<SlotFacts>, generations: Vec<GenerationFacts>) -> Facts {
    Facts {
        slots,
        generations,
        now: 20 * SECOND,
        stall_after: STALL_AFTER,
        as_reported: true,
        ..Facts::default()
    }
}

/// A master, and a generation of one worker, in slot 1.
pub(super) fn node() -> Facts {
    facts(vec![master(0), worker(1, 1, 20 * SECOND)], vec![serving(0, 1, 1)])
}

pub(super) fn reported(act: &Act) -> (&Event, Option<Mark>) {
    let Subject::New(report) = &act.subject else { panic!("no news: {act:?}") };
    (&report.event, report.mark)
}

#[test]
fn a_worker_is_overdue_after_its_time_and_not_at_it() {
    let beaten = SlotFacts { heartbeat_ns: SECOND, ..worker(1, 1, SECOND) };
    assert_eq!(beaten.progress(SECOND + STALL_AFTER, STALL_AFTER), Progress::Current);
    assert_eq!(beaten.progress(SECOND + STALL_AFTER + 1, STALL_AFTER), Progress::Overdue);
    assert_eq!(beaten.stall_deadline(SECOND, STALL_AFTER), Some(SECOND + STALL_AFTER + 1));
    assert_eq!(beaten.stall_deadline(SECOND + STALL_AFTER + 1, STALL_AFTER), None);
    // While the machine was suspended, nobody could beat.
    let slept = SlotFacts { slept_ns: 3, ..beaten };
    assert_eq!(slept.progress(SECOND + STALL_AFTER + 3, STALL_AFTER), Progress::Current);
    assert_eq!(slept.progress(SECOND + STALL_AFTER + 4, STALL_AFTER), Progress::Overdue);
    assert_eq!(slept.stall_deadline(SECOND, STALL_AFTER), Some(SECOND + STALL_AFTER + 4));
}

#[test]
fn only_workers_that_can_beat_are_watched() {
    let of = |role, intent| SlotFacts { role, intent, heartbeat_ns: 1, ..worker(1, 1, SECOND) };
    let progress = |s: SlotFacts| s.progress(100 * SECOND, STALL_AFTER);
    assert_eq!(progress(of(Role::Worker, Intent::Serving)), Progress::Overdue);
    for intent in [Intent::Starting, Intent::Leaving, Intent::Listening] {
        assert_eq!(progress(of(Role::Worker, intent)), Progress::Unwatched);
    }
    for role in [Role::Master, Role::Helper] {
        assert_eq!(progress(of(role, Intent::Serving)), Progress::Unwatched);
    }
    let draining = |heartbeat_ns, intent_since_ns| SlotFacts {
        intent_since_ns,
        heartbeat_ns,
        ..of(Role::Worker, Intent::Draining)
    };
    assert_eq!(progress(draining(SECOND, SECOND)), Progress::Unwatched, "it has not beaten since");
    assert_eq!(progress(draining(SECOND + 1, SECOND)), Progress::Overdue);
}

#[test]
fn a_cause_is_looked_for_until_something_is_told_of_the_end() {
    assert!(slot(1).needs_cause());
    assert!(!SlotFacts { exited_seq: 1, ..slot(1) }.needs_cause());
    assert!(!SlotFacts { died_seq: 1, ..slot(1) }.needs_cause());
    assert!(!SlotFacts { wait_status: Some(9), ..slot(1) }.needs_cause());
}

#[test]
fn who_watches_others_is_a_live_worker_that_starts_or_serves_and_beats() {
    let now = 20 * SECOND;
    let fit = |s: SlotFacts| s.is_fit(now, STALL_AFTER);
    assert!(fit(worker(1, 1, now)));
    assert!(fit(SlotFacts { intent: Intent::Starting, ..worker(1, 1, now) }));
    assert!(!fit(SlotFacts { intent: Intent::Draining, ..worker(1, 1, now) }));
    assert!(!fit(SlotFacts { intent: Intent::Leaving, ..worker(1, 1, now) }));
    assert!(!fit(SlotFacts { role: Role::Helper, ..worker(1, 1, now) }));
    assert!(!fit(SlotFacts { liveness: UNKNOWN, ..worker(1, 1, now) }));
    assert!(!fit(SlotFacts { heartbeat_ns: SECOND, ..worker(1, 1, now) }));
}

#[test]
fn a_state_is_what_the_kernel_says_then_the_heartbeat_then_the_process() {
    let mut node = node();
    let now = node.now;
    let state = |node: &Facts, change: &dyn Fn(&mut SlotFacts)| {
        let mut s = worker(1, 1, now);
        change(&mut s);
        node.state(&s)
    };
    assert_eq!(state(&node, &|_| ()), State::Serving);
    assert_eq!(state(&node, &|s| s.heartbeat_ns = s.intent_since_ns), State::Starting);
    assert_eq!(state(&node, &|s| s.heartbeat_ns = 1), State::Stalled);
    assert_eq!(state(&node, &|s| s.intent = Intent::Starting), State::Starting);
    assert_eq!(state(&node, &|s| s.intent = Intent::Draining), State::Draining);
    assert_eq!(state(&node, &|s| s.intent = Intent::Leaving), State::Leaving);
    assert_eq!(state(&node, &|s| s.liveness = UNKNOWN), State::Unknown);
    assert_eq!(state(&node, &|s| s.liveness = Liveness::Gone), State::Died);
    assert_eq!(state(&node, &|s| (s.liveness, s.exited_seq) = (Liveness::Gone, 3)), State::Exited);
    // A helper has no beat that would show that its loop turns.
    let helper = |s: &mut SlotFacts| (s.role, s.heartbeat_ns) = (Role::Helper, 0);
    assert_eq!(state(&node, &helper), State::Serving);
    node.slots[0].liveness = UNKNOWN;
    assert_eq!(node.master_alive(&node.generations[0]), None);
    assert_eq!(state(&node, &|_| ()), State::Serving, "nobody knows that its master is gone");
    node.slots[0].liveness = Liveness::Gone;
    assert_eq!(node.master_alive(&node.generations[0]), Some(false));
    assert_eq!(state(&node, &|_| ()), State::Orphaned);
    assert_eq!(state(&node, &helper), State::Serving);
    node.slots[0].liveness = Liveness::Alive;
    assert_eq!(node.master_alive(&node.generations[0]), Some(true));
    node.slots[0].version = 4;
    assert_eq!(node.master_alive(&node.generations[0]), Some(false), "another one has its slot");
    assert_eq!(state(&node, &|_| ()), State::Orphaned);
}

#[test]
fn whoever_has_not_beaten_judges_nobody() {
    let mut node = node();
    node.slots[1].heartbeat_ns = SECOND;
    assert_eq!(node.next_step(Scope::Everything), Some(Step::ReportStalled(1)));
    node.is_patient = true;
    assert_eq!(node.next_step(Scope::Everything), None);
    node.is_patient = false;
    node.own = vec![1];
    assert_eq!(node.next_step(Scope::Everything), None);
    // That it recovered it may say.
    (node.slots[1].heartbeat_ns, node.slots[1].stalled_seq) = (node.now, 5);
    assert_eq!(node.next_step(Scope::Everything), Some(Step::ReportRecovered(1)));
    node.slots[1].recovered_seq = 6;
    assert_eq!(node.next_step(Scope::Everything), None);
}

#[test]
fn one_that_has_not_started_or_is_not_known_to_live_is_not_said_to_stall() {
    for (started_seq, liveness) in [(0, Liveness::Alive), (1, UNKNOWN)] {
        let mut node = node();
        let s = &mut node.slots[1];
        (s.heartbeat_ns, s.started_seq, s.liveness) = (SECOND, started_seq, liveness);
        assert_eq!(node.next_step(Scope::Everything), None);
    }
}

#[test]
fn workers_are_counted_by_their_numbers_where_these_are_known() {
    let came =
        |expected, joined, came| GenerationFacts { joined, came, ..serving(0, 1, expected) }.all_came();
    assert!(came(2, 2, 0) && came(2, 3, 0) && !came(2, 1, 0));
    assert!(!came(2, 2, 0b01), "a replacement of the first stands for itself");
    assert!(came(2, 2, 0b11) && came(2, 2, 0b110), "numbered from one");
    assert!(!came(0, 0, 0) && came(0, 1, 0), "as many as come, and one at least");
    assert!(came(64, 0, u64::MAX) && !came(64, 64, u64::MAX >> 1));
    assert!(came(65, 65, 1) && !came(65, 64, u64::MAX), "more than there are bits");
}

#[test]
fn a_number_that_came_comes_again_as_a_replacement() {
    let g = |expected, joined, came| GenerationFacts { joined, came, ..serving(0, 1, expected) };
    assert!(g(4, 1, 0b100).is_replacement(Some(2)));
    assert!(!g(4, 4, 0b100).is_replacement(Some(1)));
    assert!(g(64, 1, 1 << 63).is_replacement(Some(63)) && !g(64, 1, 1).is_replacement(Some(63)));
    for number in [None, Some(64)] {
        assert!(g(2, 2, 1).is_replacement(number) && g(2, 3, 1).is_replacement(number));
        assert!(!g(2, 1, 1).is_replacement(number));
        assert!(!g(0, 3, 1).is_replacement(number), "nobody knows how many it is to have");
    }
}

#[test]
fn a_replacement_is_awaited_for_a_moment() {
    let now = 20 * SECOND;
    let died = |at: u64| GenerationFacts { lost_at_work: coarse(at), ..serving(0, 1, 1) };
    assert_eq!(coarse(1 << 20), 1);
    assert_eq!(coarse(3 << 20 | 1), 3);
    assert!(!serving(0, 1, 1).awaits_replacement(0), "nobody died");
    assert!(died(now).awaits_replacement(now));
    let grace = u64::from(coarse(REPLACEMENT_GRACE_NS)) << 20;
    assert!(died(now - grace).awaits_replacement(now));
    assert!(!died(now - grace - (1 << 20)).awaits_replacement(now));
    // The 32 bits overflow, after 52 days.
    let late = GenerationFacts { lost_at_work: u32::MAX, ..serving(0, 1, 1) };
    assert!(late.awaits_replacement(1 << 52));
}

#[test]
fn a_generation_that_others_took_over_waits_for_that_replacement() {
    let mut node = node();
    node.slots[1].generation = 2;
    node.generations.push(serving(1, 2, 1));
    node.generations[0].lost_at_work = coarse(node.now);
    assert_eq!(node.next_step(Scope::Everything), None);
    node.now += 2 * SECOND;
    node.slots[1].heartbeat_ns = node.now;
    assert_eq!(node.next_step(Scope::Everything), Some(Step::ReportEnded(0)));
    node.generations[0].lost_at_work = coarse(node.now);
    node.slots[0].liveness = Liveness::Gone;
    // After the news that the master is lost.
    node.slots[0].died_seq = 3;
    let steps = [node.next_step(Scope::Everything), node.report(Scope::Everything)];
    assert_eq!(steps, [Some(Step::DeliverMasterLost(0)), Some(Step::ReportEnded(0))], "it forks nobody");
}

#[test]
fn complete_is_who_has_all_its_workers_alive() {
    let mut node = node();
    assert!(node.is_complete(1) && !node.is_complete(2));
    node.generations[0].expected = 2;
    assert!(!node.is_complete(1));
    node.slots.push(worker(2, 1, node.now));
    assert!(node.is_complete(1));
    for change in [
        |s: &mut SlotFacts| s.liveness = Liveness::Gone,
        |s: &mut SlotFacts| s.exited_seq = 4,
        |s: &mut SlotFacts| s.generation = 2,
        |s: &mut SlotFacts| s.role = Role::Helper,
    ] {
        let mut node = node.clone();
        change(&mut node.slots[2]);
        assert!(!node.is_complete(1), "{:?}", node.slots[2]);
    }
    let mut empty = facts(vec![master(0)], vec![serving(0, 1, 0)]);
    assert!(!empty.is_complete(1), "it is to have one at least");
    empty.slots.push(worker(1, 1, empty.now));
    assert!(empty.is_complete(1));
}

#[test]
fn a_joiner_makes_a_difference_where_nobody_lives() {
    let mut node = node();
    assert!(!node.needs_joiner(1) && node.needs_joiner(2));
    assert!(!node.nobody_else(None) && node.nobody_else(Some(1)) && !node.nobody_else(Some(2)));
    node.slots[1].liveness = UNKNOWN;
    assert!(!node.needs_joiner(1) && !node.nobody_else(None), "it may live");
    node.slots[1].liveness = Liveness::Gone;
    assert!(node.needs_joiner(1) && node.nobody_else(None));
    assert!(!node.is_empty(1) && node.is_empty(2));
    (node.slots[1].liveness, node.slots[1].role) = (Liveness::Alive, Role::Helper);
    assert!(node.needs_joiner(1) && node.nobody_else(None) && node.is_empty(1));
}

#[test]
fn whether_anybody_may_still_join_is_asked_of_old_generations_without_workers() {
    let waiting = || {
        let old = GenerationFacts { expected: 2, ..serving(0, 1, 1) };
        let newer = GenerationFacts { expected: 2, ..serving(1, 2, 1) };
        facts(vec![master(0)], vec![old, newer])
    };
    assert_eq!(waiting().awaiting(), [0]);
    let mut unlike = waiting();
    unlike.generations[0].joining = true;
    assert!(unlike.awaiting().is_empty());
    let mut unlike = waiting();
    unlike.generations[0].expected = 1;
    assert!(unlike.awaiting().is_empty(), "all have come");
    let mut unlike = waiting();
    unlike.generations[0].phase = Phase::Announced;
    assert!(unlike.awaiting().is_empty());
    let mut unlike = waiting();
    unlike.slots.push(worker(1, 1, SECOND));
    assert!(unlike.awaiting().is_empty(), "it has one");
}
