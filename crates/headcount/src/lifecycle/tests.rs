//! The lifecycle against whatever can be in the table. Against what a server does: `server_tests.rs`.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::Config;

use super::*;
use crate::event::Cause;
use crate::sys::identity::{Birth, Doubt, Identity};

#[path = "server_tests.rs"]
mod server;

pub(super) const SECOND: u64 = 1_000_000_000;
const STALL_AFTER: u64 = 5 * SECOND;

fn config() -> Config {
    Config { cases: 512, failure_persistence: None, ..Config::default() }
}

/// A number that a report may have: none, or one of the first ten events.
fn seq() -> impl Strategy<Value = u64> {
    prop_oneof![3 => Just(0), 2 => 1..10u64]
}

fn any_slot() -> impl Strategy<Value = SlotFacts> {
    let liveness = prop_oneof![3 => Just(Liveness::Alive), 3 => Just(Liveness::Gone), 1 => Just(Liveness::Unknown(Doubt::Refused))];
    let intent = prop_oneof![
        Just(Intent::Starting),
        Just(Intent::Serving),
        Just(Intent::Draining),
        Just(Intent::Leaving)
    ];
    let role = prop_oneof![1 => Just(Role::Master), 4 => Just(Role::Worker), 1 => Just(Role::Helper), 1 => Just(Role::Visitor)];
    let reports = (seq(), seq(), seq(), seq(), seq());
    let times = (0..20 * SECOND, 0..20 * SECOND);
    (role, 0..6u64, liveness, intent, reports, times).prop_map(
        |(role, generation, liveness, intent, reports, times)| {
            let (started_seq, exited_seq, died_seq, stalled_seq, recovered_seq) = reports;
            SlotFacts {
                generation: if role == Role::Master { 0 } else { generation },
                role,
                liveness,
                intent,
                started_seq,
                exited_seq,
                died_seq,
                stalled_seq,
                recovered_seq,
                heartbeat_ns: times.0,
                intent_since_ns: times.1,
                ..slot(0)
            }
        },
    )
}

pub(super) fn slot(index: u32) -> SlotFacts {
    SlotFacts {
        index,
        version: 2,
        role: Role::Worker,
        generation: 0,
        identity: Identity { pid: 100 + index, namespace: 1, birth: Birth::Inode(u64::from(index)) },
        lock_tag: 0,
        worker_id: None,
        cause: Cause::Start,
        joined_ns: 0,
        joined_wall_ns: 0,
        intent: Intent::Starting,
        intent_since_ns: 0,
        heartbeat_ns: 0,
        slept_ns: 0,
        tries: 0,
        started_seq: 0,
        exited_seq: 0,
        died_seq: 0,
        stalled_seq: 0,
        recovered_seq: 0,
        wait_status: None,
        stands_for: 0,
        waits_for: None,
        liveness: Liveness::Alive,
    }
}

fn any_generation() -> impl Strategy<Value = GenerationFacts> {
    let phase = prop_oneof![Just(Phase::Announced), Just(Phase::Committed), Just(Phase::Abandoned)];
    (phase, 0..8u32, (0..4u32, 0..4u32, 0..16u64), seq(), seq(), seq(), 0..20 * SECOND).prop_map(
        |(phase, master_slot, (expected, joined, came), started_seq, ended_seq, abandoned_seq, begun_ns)| {
            let facts = generation(0, 0);
            GenerationFacts {
                phase,
                master_slot,
                expected,
                joined,
                came,
                started_seq,
                ended_seq,
                abandoned_seq,
                begun_ns,
                ..facts
            }
        },
    )
}

pub(super) fn generation(index: u32, id: GenerationId) -> GenerationFacts {
    GenerationFacts {
        index,
        id,
        phase: Phase::Announced,
        cause: Cause::Start,
        master_slot: 0,
        master_version: 2,
        master_pid: 100,
        begun_ns: 0,
        begun_wall_ns: 0,
        expected: 0,
        joined: 0,
        came: 0,
        lost_at_work: 0,
        started_seq: 0,
        ended_seq: 0,
        abandoned_seq: 0,
        start_delivered: true,
        tries: 0,
        previous_run: None,
        joining: false,
        nobody_comes: false,
    }
}

/// Anything that a table can hold, also what no honest process would have written.
fn any_facts() -> impl Strategy<Value = Facts> {
    (vec(any_slot(), 0..10), vec(any_generation(), 0..6), seq()).prop_map(
        |(mut slots, mut generations, redeliver_seq)| {
            (0..).zip(&mut slots).for_each(|(i, s)| (s.index, s.identity.pid) = (i, 100 + i));
            (0..).zip(&mut generations).for_each(|(i, g)| (g.index, g.id) = (i, u64::from(i) + 1));
            Facts {
                slots,
                generations,
                singletons: Vec::new(),
                next_token: 1,
                now: 20 * SECOND,
                stall_after: STALL_AFTER,
                redeliver_seq,
                redeliver_tries: 0,
                as_reported: false,
                own: Vec::new(),
                is_patient: false,
            }
        },
    )
}

fn any_scope() -> impl Strategy<Value = Scope> {
    prop_oneof![
        Just(Scope::Tidy),
        (0..7u64).prop_map(Scope::Generation),
        Just(Scope::Everything),
        Just(Scope::LastWord)
    ]
}

/// What `transitions.rs` does with a step, and the number of the event that was reported or delivered.
fn apply(facts: &mut Facts, head: &mut u64, step: Step) -> Option<u64> {
    fn of(slots: &mut [SlotFacts], index: u32) -> &mut SlotFacts {
        slots.iter_mut().find(|s| s.index == index).expect("a slot that is there")
    }
    fn generation_of(generations: &mut [GenerationFacts], index: u32) -> &mut GenerationFacts {
        generations.iter_mut().find(|g| g.index == index).expect("a generation that is there")
    }
    let mut report = |seq: &mut u64| {
        assert_eq!(*seq, 0, "reported twice: {step:?}");
        *head += 1;
        *seq = *head;
        Some(*head)
    };
    match step {
        Step::Singleton(_) => unreachable!("there are none"),
        Step::Redeliver(seq) => {
            assert_eq!(std::mem::take(&mut facts.redeliver_seq), seq);
            Some(seq)
        }
        Step::ReportDied(slot) | Step::ReportMasterLost(slot) => {
            report(&mut of(&mut facts.slots, slot).died_seq)
        }
        Step::ReportHelperExited(slot) => report(&mut of(&mut facts.slots, slot).exited_seq),
        Step::ReportAbandoned(generation) => {
            report(&mut generation_of(&mut facts.generations, generation).abandoned_seq)
        }
        Step::ReportEnded(generation) => {
            report(&mut generation_of(&mut facts.generations, generation).ended_seq)
        }
        Step::ReportStalled(slot) | Step::ReportRecovered(slot) => {
            let s = of(&mut facts.slots, slot);
            let seq = if matches!(step, Step::ReportStalled(_)) {
                &mut s.stalled_seq
            } else {
                &mut s.recovered_seq
            };
            *head += 1;
            *seq = *head;
            assert_eq!(
                std::mem::replace(&mut facts.redeliver_seq, *head),
                0,
                "another callback would be lost"
            );
            Some(*head)
        }
        Step::DeliverDied(slot) | Step::DeliverMasterLost(slot) => {
            let seq = of(&mut facts.slots, slot).died_seq;
            facts.slots.retain(|s| s.index != slot);
            Some(seq)
        }
        Step::DeliverAbandoned(generation) | Step::DeliverEnded(generation) => {
            let g = generation_of(&mut facts.generations, generation).clone();
            facts.generations.retain(|g| g.index != generation);
            Some(if matches!(step, Step::DeliverEnded(_)) { g.ended_seq } else { g.abandoned_seq })
        }
        Step::DeliverStarted(generation) => {
            let g = generation_of(&mut facts.generations, generation);
            assert!(!std::mem::replace(&mut g.start_delivered, true), "delivered twice: {step:?}");
            Some(g.started_seq)
        }
        Step::Release(slot) => {
            let s = of(&mut facts.slots, slot).clone();
            assert_eq!(s.liveness, Liveness::Gone, "a living process lost its slot");
            let is_told_of = !matches!(s.role, Role::Master | Role::Visitor);
            let told = !is_told_of || s.exited_seq != 0 || s.started_seq == 0;
            assert!(told, "forgotten without a word: {s:?}");
            facts.slots.retain(|s| s.index != slot);
            None
        }
        Step::ReleaseGeneration(generation) => {
            let g = generation_of(&mut facts.generations, generation);
            assert_eq!(g.started_seq, 0, "forgotten without a word: {g:?}");
            facts.generations.retain(|g| g.index != generation);
            None
        }
    }
}

/// Applies steps until there is none left.
fn settle(facts: &mut Facts, scope: Scope) -> Vec<Step> {
    let mut head = 10;
    let mut steps = Vec::new();
    let most = 64 + 8 * facts.slots.len().max(facts.generations.len());
    while let Some(step) = facts.next_step(scope) {
        assert!(steps.len() < most, "no end: {steps:?}");
        apply(facts, &mut head, step);
        steps.push(step);
    }
    steps
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn settling_comes_to_an_end(mut facts in any_facts(), scope in any_scope()) {
        settle(&mut facts, scope);
        prop_assert_eq!(facts.next_step(scope), None);
        if matches!(scope, Scope::Everything | Scope::LastWord) {
            let open = |s: &&SlotFacts| s.liveness == Liveness::Gone && s.role != Role::Master;
            prop_assert!(facts.slots.iter().find(open).is_none(), "{:?}", facts.slots);
            prop_assert!(facts.generations.iter().all(|g| g.ended_seq == 0 && g.abandoned_seq == 0 && g.phase != Phase::Abandoned));
            prop_assert_eq!(facts.redeliver_seq, 0);
        }
        if scope == Scope::LastWord {
            // Nothing is there that has no worker and could get none.
            let alone = |g: &&GenerationFacts| g.is_there() && !facts.slots.iter().any(|s| s.role == Role::Worker && s.generation == g.id);
            prop_assert!(facts.generations.iter().find(alone).is_none(), "{:?}", facts.generations);
        }
    }

    /// What was reported before this hold is delivered first, and everything else right after its report.
    #[test]
    fn callbacks_run_in_the_order_of_the_journal(mut facts in any_facts()) {
        let mut head = 10;
        let mut delivered = 0;
        let mut steps = Vec::new();
        while let Some(step) = facts.next_step(Scope::Everything) {
            let seq = apply(&mut facts, &mut head, step);
            steps.push(step);
            if matches!(step, Step::Redeliver(_) | Step::DeliverDied(_) | Step::DeliverMasterLost(_) | Step::DeliverAbandoned(_) | Step::DeliverEnded(_)) {
                prop_assert!(seq.is_some_and(|seq| seq >= delivered), "{seq:?} after {delivered}: {steps:?}");
                delivered = seq.unwrap_or(0);
            }
        }
    }

    #[test]
    fn a_scope_keeps_to_its_own_matters(mut facts in any_facts(), mine in 0..7u64) {
        let before = facts.clone();
        for step in settle(&mut facts.clone(), Scope::Tidy) {
            prop_assert!(matches!(step, Step::Release(_)), "{step:?}");
        }
        for step in settle(&mut facts, Scope::Generation(mine)) {
            let about = match step {
                Step::Release(_) => continue,
                Step::ReportDied(slot) | Step::DeliverDied(slot) | Step::ReportHelperExited(slot) => {
                    before.slots.iter().find(|s| s.index == slot).map(|s| s.generation)
                }
                // A master is of no generation, and generation 0 is none.
                Step::ReportMasterLost(_) | Step::DeliverMasterLost(_) => Some(0),
                Step::ReportAbandoned(generation)
                | Step::DeliverAbandoned(generation)
                | Step::ReportEnded(generation)
                | Step::DeliverEnded(generation)
                | Step::DeliverStarted(generation)
                | Step::ReleaseGeneration(generation) => {
                    before.generations.iter().find(|g| g.index == generation).map(|g| g.id)
                }
                Step::Redeliver(_)
                | Step::ReportStalled(_)
                | Step::ReportRecovered(_)
                | Step::Singleton(_) => None,
            };
            prop_assert_eq!(about, Some(mine), "{:?}", step);
        }
    }

    #[test]
    fn each_worker_is_counted_once_or_not_at_all(facts in any_facts()) {
        let mut sum = 0;
        for id in 0..7 {
            let counts = facts.counts(id);
            let of = |id| facts.slots.iter().filter(move |s| s.generation == id);
            let right = of(id).filter(|s| {
                s.role == Role::Worker
                    && s.liveness == Liveness::Alive
                    && s.started_seq != 0
                    && s.progress(facts.now, facts.stall_after) != Progress::Overdue
            });
            prop_assert_eq!(counts.mine as usize, right.count());
            prop_assert!(counts.draining <= counts.mine);
            prop_assert_eq!(counts.total, facts.total());
            sum += counts.mine;

            // The neighbours are the nearest that are there; no others ever.
            let there: Vec<_> = facts.generations.iter().filter(|g| g.phase == Phase::Committed && g.ended_seq == 0).map(|g| g.id).collect();
            let prev = there.iter().copied().filter(|&g| g < id).max();
            let next = there.iter().copied().filter(|&g| g > id).min();
            prop_assert_eq!(counts.prev, prev.map(|g| facts.counts(g).mine));
            prop_assert_eq!(counts.next, next.map(|g| facts.counts(g).mine));
            prop_assert_eq!(counts.prev_draining, prev.map_or(0, |g| facts.counts(g).draining));
            prop_assert_eq!(counts.next_draining, next.map_or(0, |g| facts.counts(g).draining));
        }
        prop_assert_eq!(sum, facts.total());
    }

    #[test]
    fn an_overview_says_the_same_as_each_question_by_itself(facts in any_facts()) {
        let overview = Overview::of(&facts);
        prop_assert_eq!(overview.total(), facts.total());
        for id in 0..8 {
            prop_assert_eq!(overview.counts(id), facts.counts(id));
        }
        for g in &facts.generations {
            prop_assert_eq!(overview.master_alive(g), facts.master_alive(g));
        }
        for s in &facts.slots {
            prop_assert_eq!(overview.state(s), facts.state(s));
        }
    }

    #[test]
    fn nobody_unknown_is_judged(mut facts in any_facts()) {
        facts.slots.iter_mut().for_each(|s| s.liveness = Liveness::Unknown(Doubt::OtherNamespace));
        let slots = facts.slots.clone();
        settle(&mut facts, Scope::Everything);
        prop_assert_eq!(&facts.slots, &slots);
        prop_assert!(slots.iter().all(|s| facts.state(s) == State::Unknown && !facts.is_counted(s)));
    }
}
