//! The lifecycle against a server that does whatever a server can do.

use proptest::collection::vec;
use proptest::prelude::*;

use super::{SECOND, STALL_AFTER, apply, config, generation, slot};
use crate::event::{GenerationId, Kind, Role};
use crate::lifecycle::{Facts, GenerationFacts, Intent, Phase, Scope, SlotFacts, Step};
use crate::sys::identity::Liveness;

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_server_is_reported_as_it_was(actions in vec(any_action(), 0..120)) {
        let mut server = Server::new();
        actions.into_iter().for_each(|action| server.act(action));
        server.stop();
    }
}

/// What can happen to a server.
#[derive(Clone, Copy, Debug)]
enum Action {
    /// A generation is announced, for so many workers, and: 0 abandoned, else committed.
    Load(u32, u32),
    /// A worker of the newest generation, or of an older one that it replaces one of.
    Join(usize),
    Beat(usize),
    Drain(usize),
    Leave(usize),
    Die(usize),
    Time(u64),
    Settle,
}

fn any_action() -> impl Strategy<Value = Action> {
    let which = 0..8usize;
    prop_oneof![
        1 => (1..4u32, 0..3u32).prop_map(|(workers, fate)| Action::Load(workers, fate)),
        4 => which.clone().prop_map(Action::Join),
        2 => which.clone().prop_map(Action::Beat),
        1 => which.clone().prop_map(Action::Drain),
        2 => which.clone().prop_map(Action::Leave),
        1 => which.prop_map(Action::Die),
        2 => (0..4 * SECOND).prop_map(Action::Time),
        2 => Just(Action::Settle),
    ]
}

/// A server whose processes do what worker.rs and generation.rs do, with its journal.
struct Server {
    facts: Facts,
    head: u64,
    journal: Vec<(Kind, GenerationId, u32)>,
    newest: GenerationId,
    next_index: u32,
}

impl Server {
    fn new() -> Server {
        let master = SlotFacts { role: Role::Master, intent: Intent::Serving, ..slot(0) };
        let facts = Facts { slots: vec![master], now: SECOND, stall_after: STALL_AFTER, ..Facts::default() };
        Server { facts, head: 0, journal: Vec::new(), newest: 0, next_index: 1 }
    }

    fn report(&mut self, kind: Kind, generation: GenerationId, index: u32) -> u64 {
        self.head += 1;
        self.journal.push((kind, generation, index));
        self.head
    }

    fn worker(&mut self, which: usize) -> Option<&mut SlotFacts> {
        let mut workers: Vec<_> = self
            .facts
            .slots
            .iter_mut()
            .filter(|s| s.role == Role::Worker && s.liveness == Liveness::Alive)
            .collect();
        let which = which.checked_rem(workers.len())?;
        Some(workers.swap_remove(which))
    }

    fn act(&mut self, action: Action) {
        let now = self.facts.now;
        match action {
            Action::Load(expected, fate) => {
                self.newest += 1;
                let seq = self.report(Kind::GenerationStarted, self.newest, 0);
                let phase = if fate == 0 { Phase::Abandoned } else { Phase::Committed };
                let index = self.next_index;
                self.next_index += 1;
                let facts = generation(index, self.newest);
                let facts = GenerationFacts { phase, expected, started_seq: seq, begun_ns: now, ..facts };
                self.facts.generations.push(facts);
            }
            Action::Join(which) => {
                // One that has not got all of its workers yet, or lost some.
                let open: Vec<_> = self.facts.generations.iter_mut().filter(|g| g.is_there()).collect();
                let Some(which) = which.checked_rem(open.len()) else { return };
                let Some(g) = open.into_iter().nth(which) else { return };
                g.joined += 1;
                let id = g.id;
                let index = self.next_index;
                self.next_index += 1;
                let seq = self.report(Kind::WorkerStarted, id, index);
                let worker = slot(index);
                self.facts.slots.push(SlotFacts {
                    generation: id,
                    started_seq: seq,
                    intent: Intent::Serving,
                    heartbeat_ns: now,
                    intent_since_ns: now,
                    ..worker
                });
            }
            Action::Beat(which) => _ = self.worker(which).map(|s| s.heartbeat_ns = now),
            Action::Drain(which) => {
                let Some(s) = self.worker(which) else { return };
                (s.intent, s.intent_since_ns) = (Intent::Draining, now);
            }
            Action::Leave(which) => {
                let Some(s) = self.worker(which) else { return };
                let (index, id) = (s.index, s.generation);
                self.settle(Scope::Tidy);
                self.report(Kind::WorkerExited, id, index);
                self.facts.slots.retain(|s| s.index != index);
                self.settle(Scope::Generation(id));
                if self.facts.nobody_else(Some(index)) {
                    self.settle(Scope::Everything);
                }
            }
            Action::Die(which) => _ = self.worker(which).map(|s| s.liveness = Liveness::Gone),
            Action::Time(passed) => self.facts.now += passed,
            Action::Settle => {
                // There is a worker to do it.
                if self.worker(0).is_some() {
                    self.settle(Scope::Everything);
                }
            }
        }
        self.check_counts();
    }

    fn settle(&mut self, scope: Scope) {
        while let Some(step) = self.facts.next_step(scope) {
            let (slots, generations) = (self.facts.slots.clone(), self.facts.generations.clone());
            let of = |index: u32| slots.iter().find(|s| s.index == index).expect("a slot");
            let generation_of =
                |index: u32| generations.iter().find(|g| g.index == index).expect("a generation");
            match step {
                Step::ReportDied(slot) => self.journal.push((Kind::WorkerDied, of(slot).generation, slot)),
                Step::ReportStalled(slot) => {
                    self.journal.push((Kind::WorkerStalled, of(slot).generation, slot))
                }
                Step::ReportRecovered(slot) => {
                    self.journal.push((Kind::WorkerRecovered, of(slot).generation, slot))
                }
                Step::ReportEnded(generation) => {
                    let id = generation_of(generation).id;
                    assert!(
                        !slots.iter().any(|s| s.role == Role::Worker && s.generation == id),
                        "it has workers"
                    );
                    self.journal.push((Kind::GenerationEnded, id, 0));
                }
                Step::ReportAbandoned(generation) => {
                    self.journal.push((Kind::GenerationAbandoned, generation_of(generation).id, 0));
                }
                _ => {}
            }
            apply(&mut self.facts, &mut self.head, step);
        }
        assert_eq!(self.head, self.journal.len() as u64);
    }

    /// The counts follow from the journal and from who is dead or overdue, which the journal may not know yet.
    fn check_counts(&self) {
        for g in 1..=self.newest {
            let live =
                self.journal.iter().filter(|(kind, id, _)| (*kind, *id) == (Kind::WorkerStarted, g)).filter(
                    |(.., index)| {
                        let gone = |(kind, _, i): &(Kind, GenerationId, u32)| {
                            i == index && matches!(kind, Kind::WorkerExited | Kind::WorkerDied)
                        };
                        let s = self.facts.slots.iter().find(|s| s.index == *index);
                        !self.journal.iter().any(gone) && s.is_some_and(|s| self.facts.is_counted(s))
                    },
                );
            assert_eq!(self.facts.counts(g).mine as usize, live.count());
        }
    }

    /// Everybody leaves, some are dead; the master has the last word. Then everything is told, once.
    fn stop(&mut self) {
        while self.worker(0).is_some() {
            self.act(Action::Leave(0));
        }
        self.settle(Scope::LastWord);
        assert!(self.facts.generations.is_empty(), "{:?}", self.facts.generations);
        assert_eq!(self.facts.slots.len(), 1, "{:?}", self.facts.slots);
        for id in 1..=self.newest {
            let of = |kind: Kind| self.journal.iter().filter(|e| (e.0, e.1) == (kind, id)).count();
            assert_eq!(of(Kind::GenerationStarted), 1);
            assert_eq!(
                of(Kind::GenerationEnded) + of(Kind::GenerationAbandoned),
                1,
                "generation {id}: {:?}",
                self.journal
            );
            assert_eq!(
                of(Kind::WorkerStarted),
                of(Kind::WorkerExited) + of(Kind::WorkerDied),
                "generation {id}"
            );
            let last = self.journal.iter().rposition(|e| e.1 == id).expect("events");
            let last = self.journal[last].0;
            assert!(
                matches!(last, Kind::GenerationEnded | Kind::GenerationAbandoned),
                "{last} is the last of generation {id}"
            );
        }
        for index in 1..self.next_index {
            let life: Vec<Kind> = self.journal.iter().filter(|e| e.2 == index).map(|e| e.0).collect();
            let stalls: Vec<Kind> = life
                .iter()
                .copied()
                .filter(|k| matches!(k, Kind::WorkerStalled | Kind::WorkerRecovered))
                .collect();
            let alternate = stalls
                .iter()
                .enumerate()
                .all(|(i, k)| *k == if i % 2 == 0 { Kind::WorkerStalled } else { Kind::WorkerRecovered });
            assert!(alternate, "{life:?}");
        }
    }
}
