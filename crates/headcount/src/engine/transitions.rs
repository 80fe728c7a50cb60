//! Transitions: what is reported, one after the other, while the node lock is held.
//!
//! A transition is journalled first, then handed out for its callback, and completed when the next one is
//! asked for. Whoever dies in between leaves enough behind for the next holder to go on: a slot or a
//! generation is only freed once its last report has been delivered.

use std::collections::VecDeque;

use crate::engine::node_lock::Hold;
use crate::error::Result;
use crate::event::{Cause, Event, GenerationId, Kind, Role};
use crate::lifecycle::{Facts, GenerationFacts, Intent, Phase, Scope, SlotFacts, Step, coarse};
use crate::node::NoticeLevel;
use crate::registry::layout::{Generation as GenerationRecord, Slot};
use crate::sys::atomic::AtomicU64;
use crate::sys::atomic::Ordering::{Relaxed, Release};
use crate::sys::clock;

/// One event that is to be acted upon, while the node lock is held.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transition {
    /// What happened, with the counts.
    pub event: Event,
    /// A process died while it acted upon this very event: it may have been acted upon in part.
    pub retry: bool,
}

/// What is left to do in this hold of the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Settle what is open, until nothing is.
    Settle(Scope),
    /// Put a generation into the table that is not there (any more).
    Revive(GenerationId),
    /// A worker of it is there.
    Commit(GenerationId, Option<u32>),
    StartGeneration(GenerationId),
    StartProcess(u32),
    Drain(u32),
    Exit(u32),
    /// The master's own slot, last of all.
    ExitMaster(u32),
}

/// What completes a transition after its callback has run.
#[derive(Clone, Copy, Debug)]
enum After {
    Nothing,
    FreeSlot(u32),
    FreeGeneration(u32),
    GenerationStarted(u32),
    Serving(u32),
    Redelivered,
}

/// The transitions of one call, and the node lock that is held meanwhile.
///
/// Hand each to your handler and then ask for the next one; the lock is released after the last one or
/// when this is dropped. A handler may be slow, fail, or kill its process: the registry stays consistent.
///
/// While this lives, every other process that wants to report something waits. Do not start it and keep it.
#[must_use = "the node lock is held until this is dropped"]
pub struct Transitions {
    hold: Option<Hold>,
    stages: VecDeque<Stage>,
    current: Option<(Event, After)>,
}

impl std::fmt::Debug for Transitions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transitions")
            .field("stages", &self.stages)
            .field("current", &self.current)
            .finish_non_exhaustive()
    }
}

impl Transitions {
    pub(crate) fn new(hold: Hold, stages: impl IntoIterator<Item = Stage>) -> Transitions {
        Transitions { hold: Some(hold), stages: stages.into_iter().collect(), current: None }
    }

    /// Nothing to report, and no lock.
    pub(crate) fn none() -> Transitions {
        Transitions { hold: None, stages: VecDeque::new(), current: None }
    }

    /// Whether there never was anything to report.
    pub(crate) fn is_none(&self) -> bool {
        self.hold.is_none()
    }

    /// Completes the transition handed out before, and hands out the next one. `None`: that was the last,
    /// and the lock is released.
    ///
    /// Not an `Iterator`, because an adaptor that collects would complete transitions that nobody has
    /// acted upon.
    #[expect(clippy::should_implement_trait, reason = "see above")]
    pub fn next(&mut self) -> Option<Transition> {
        self.leave_to_parent();
        self.complete();
        while let Some(hold) = &self.hold {
            let Some(&stage) = self.stages.front() else {
                self.hold = None;
                break;
            };
            match perform(hold, stage) {
                Performed::Callback { event, after, tries, last } => {
                    if last {
                        self.stages.pop_front();
                    }
                    if !event.kind.has_callback() || !Hold::may_retry(tries) {
                        finish(hold, after);
                        continue;
                    }
                    hold.callback_begins(&event);
                    self.current = Some((event.clone(), after));
                    return Some(Transition { event, retry: tries > 0 });
                }
                Performed::Silent => {}
                Performed::StageDone => {
                    self.stages.pop_front();
                }
            }
        }
        None
    }

    /// Runs `handler` for every transition, then releases the lock. A panic of the handler is noted in
    /// the journal, and passed on with the lock released.
    pub fn run(mut self, mut handler: impl FnMut(&Transition)) {
        while let Some(transition) = self.next() {
            handler(&transition);
        }
    }

    /// Notes in the journal that the callback of the current transition failed. It counts as run.
    pub fn callback_failed(&mut self) {
        if let (Some(hold), Some((event, _))) = (&self.hold, &self.current) {
            let mut failed = Event::new(Kind::CallbackFailed, event.cause);
            failed.generation = event.generation;
            failed.pid = crate::sys::process::pid();
            failed.worker_id = event.worker_id;
            failed.detail = event.seq;
            hold.report(failed);
        }
    }

    /// A child that was forked in a callback, and goes on in it, has nothing to do here.
    fn leave_to_parent(&mut self) {
        if self.hold.as_ref().is_some_and(|hold| !hold.is_ours()) {
            self.current = None;
            self.stages.clear();
            self.hold = None;
        }
    }

    fn complete(&mut self) {
        if let (Some(hold), Some((_, after))) = (&self.hold, self.current.take()) {
            finish(hold, after);
            hold.callback_ends();
        }
    }
}

impl Drop for Transitions {
    fn drop(&mut self) {
        self.leave_to_parent();
        if self.current.is_some() && std::thread::panicking() {
            self.callback_failed();
        }
        // What concerns this process itself must still become a fact; what concerns others is left to
        // them, callbacks and all.
        self.complete();
        self.stages.retain(|s| !matches!(s, Stage::Settle(_)));
        while self.next().is_some() {}
    }
}

enum Performed {
    /// An event was journalled; `last` when the stage has nothing more.
    Callback {
        event: Event,
        after: After,
        tries: u32,
        last: bool,
    },
    /// Something was done of which nobody needs to hear.
    Silent,
    StageDone,
}

fn perform(hold: &Hold, stage: Stage) -> Performed {
    match stage {
        Stage::Settle(scope) => match hold.next_step(scope) {
            Some(step) => settle(hold, step),
            None => Performed::StageDone,
        },
        Stage::Revive(id) => {
            if let Err(error) = hold.revive_generation(id) {
                hold.node.inner.notice(NoticeLevel::Warning, error.to_string());
            }
            Performed::StageDone
        }
        Stage::Commit(id, number) => {
            if let Some(record) = hold.node.generation_record(id) {
                record.joined.fetch_add(1, Relaxed);
                if let Some(number) = number.filter(|&n| n < 64) {
                    record.came.fetch_or(1 << number, Relaxed);
                }
                record.phase.store(Phase::Committed.code(), Release);
                if hold.facts().is_complete(id) {
                    record.died_at_work.store(0, Relaxed);
                }
            }
            Performed::StageDone
        }
        Stage::StartGeneration(id) => start_generation(hold, id),
        Stage::StartProcess(index) => own(hold, index, start_process),
        Stage::Drain(index) => own(hold, index, |hold, facts, slot| {
            slot.intent_since_ns.store(clock::boot_ns(), Relaxed);
            slot.intent.store(Intent::Draining.code(), Release);
            let event = hold.report(about(facts, Kind::WorkerDraining, going(hold, facts.generation)));
            // If it is the sentinel, somebody else had better be.
            hold.node.inner.wake();
            Performed::Callback { event, after: After::Nothing, tries: 0, last: true }
        }),
        Stage::Exit(index) => own(hold, index, |hold, facts, slot| {
            slot.intent_since_ns.store(clock::boot_ns(), Relaxed);
            slot.intent.store(Intent::Leaving.code(), Release);
            let kind = if facts.role == Role::Worker { Kind::WorkerExited } else { Kind::HelperExited };
            let event = announce(hold, &slot.exited_seq, about(facts, kind, going(hold, facts.generation)));
            Performed::Callback { event, after: After::FreeSlot(facts.index), tries: 0, last: true }
        }),
        Stage::ExitMaster(index) => own(hold, index, |hold, facts, slot| {
            let event =
                announce(hold, &slot.exited_seq, about(facts, Kind::MasterExited, going(hold, u64::MAX)));
            Performed::Callback { event, after: After::FreeSlot(facts.index), tries: 0, last: true }
        }),
    }
}

/// Frees what has nothing to tell.
pub(crate) fn tidy(hold: &Hold) {
    while let Some(step) = hold.next_step(Scope::Tidy) {
        if !matches!(settle(hold, step), Performed::Silent) {
            break;
        }
    }
}

/// Writes the event's number into the record that it is about, then the event. A writer that dies in
/// between leaves a number beyond the journal's head, which reads as "not reported".
pub(crate) fn announce(hold: &Hold, seq: &AtomicU64, event: Event) -> Event {
    seq.store(hold.next_seq(), Release);
    hold.report(event)
}

fn own(hold: &Hold, index: u32, act: impl FnOnce(&Hold, &SlotFacts, &Slot) -> Performed) -> Performed {
    let facts = hold.facts();
    let found = facts.slots.iter().find(|s| s.index == index);
    match (found, hold.node.inner.slot(index)) {
        (Some(facts), Ok(slot)) => act(hold, facts, slot),
        // Somebody has spoiled the registry. There is nothing left to report about.
        _ => Performed::StageDone,
    }
}

/// Why a process goes: another generation has taken over, a newer one or, after an upgrade that was rolled back,
/// an older one that serves; or else the node stops.
fn going(hold: &Hold, generation: GenerationId) -> Cause {
    let counts = hold.facts().counts(generation);
    let rolled_back = counts.prev.is_some_and(|workers| workers > counts.prev_draining);
    if counts.next.is_some() || rolled_back { Cause::Superseded } else { Cause::Stop }
}

pub(crate) fn about(slot: &SlotFacts, kind: Kind, cause: Cause) -> Event {
    let mut event = Event::new(kind, cause);
    event.generation = slot.generation;
    event.pid = slot.pid;
    event.role = Some(slot.role);
    event.worker_id = slot.worker_id;
    event.heartbeat_ns = slot.heartbeat_ns;
    event
}

pub(crate) fn about_generation(generation: &GenerationFacts, kind: Kind, cause: Cause) -> Event {
    let mut event = Event::new(kind, cause);
    event.generation = generation.id;
    event.pid = generation.master_pid;
    event.role = Some(Role::Master);
    event
}

/// How a process ended, from its wait status.
pub(crate) fn death(slot: &SlotFacts, kind: Kind) -> Event {
    let mut event = about(slot, kind, Cause::Unknown);
    if let Some(status) = slot.wait_status {
        let signal = status & 0x7f;
        if signal == 0 {
            event.cause = Cause::Exit;
            event.exit_code = Some(status >> 8 & 0xff);
        } else {
            event.cause = Cause::Signal;
            event.signal = Some(signal);
        }
    }
    event
}

fn start_generation(hold: &Hold, id: GenerationId) -> Performed {
    let facts = hold.facts();
    let Some(generation) = facts.generation(id) else { return Performed::StageDone };
    let Some(record) = hold.node.inner.view().used_generations().get(generation.index as usize) else {
        return Performed::StageDone;
    };
    if generation.start_delivered {
        return Performed::StageDone;
    }
    let after = After::GenerationStarted(generation.index);
    let event = if generation.started_seq == 0 {
        let mut event = about_generation(generation, Kind::GenerationStarted, generation.cause);
        event.previous_run = hold.previous_run(generation);
        announce(hold, &record.started_seq, event)
    } else {
        // Its first runner died in the callback.
        match hold.node.inner.journal().read(generation.started_seq) {
            Some(event) => event,
            None => about_generation(generation, Kind::GenerationStarted, generation.cause),
        }
    };
    Performed::Callback { event, after, tries: record.retry.load(Relaxed), last: true }
}

fn start_process(hold: &Hold, facts: &SlotFacts, slot: &Slot) -> Performed {
    let kind = if facts.role == Role::Worker { Kind::WorkerStarted } else { Kind::HelperStarted };
    let event = announce(hold, &slot.started_seq, about(facts, kind, facts.cause));
    Performed::Callback { event, after: After::Serving(facts.index), tries: 0, last: true }
}

fn settle(hold: &Hold, step: Step) -> Performed {
    match step {
        Step::Redeliver(seq) => {
            let header = hold.node.inner.store.region.header();
            match hold.node.inner.journal().read(seq) {
                Some(event) => {
                    let tries = header.redeliver_tries.load(Relaxed);
                    Performed::Callback { event, after: After::Redelivered, tries, last: false }
                }
                None => {
                    finish(hold, After::Redelivered);
                    Performed::Silent
                }
            }
        }
        Step::Release { slot } => {
            hold.node.free_slot(slot);
            Performed::Silent
        }
        Step::ReportDied { slot } => with_slot(hold, slot, |facts, record| {
            if matches!(facts.intent, Intent::Starting | Intent::Serving)
                && let Some(generation) = hold.node.generation_record(facts.generation)
            {
                generation.died_at_work.store(coarse(clock::boot_ns()).max(1), Relaxed);
            }
            announce(hold, &record.died_seq, death(facts, Kind::WorkerDied));
            Performed::Silent
        }),
        Step::ReportMasterLost { slot } => with_slot(hold, slot, |facts, record| {
            // The counts are those of the newest generation that it leaves behind.
            let left = hold.facts();
            let newest = left
                .generations
                .iter()
                .filter(|g| g.master_slot == slot && g.master_version == facts.version)
                .map(|g| g.id)
                .max();
            let mut event = death(facts, Kind::MasterLost);
            event.generation = newest.unwrap_or(0);
            announce(hold, &record.died_seq, event);
            Performed::Silent
        }),
        Step::DeliverDied { slot } | Step::DeliverMasterLost { slot } => {
            with_slot(hold, slot, |facts, record| {
                let tries = record.retry.load(Relaxed);
                deliver(hold, facts.died_seq, tries, After::FreeSlot(slot)).unwrap_or_else(|| {
                    // Overwritten in the journal: report what the slot still knows.
                    let kind = if facts.role == Role::Master { Kind::MasterLost } else { Kind::WorkerDied };
                    let mut event = death(facts, kind);
                    event.seq = facts.died_seq;
                    event.counts = hold.facts().counts(event.generation);
                    Performed::Callback { event, after: After::FreeSlot(slot), tries, last: false }
                })
            })
        }
        Step::ReportHelperExited { slot } => with_slot(hold, slot, |facts, record| {
            announce(hold, &record.exited_seq, death(facts, Kind::HelperExited));
            Performed::Silent
        }),
        Step::ReleaseGeneration { generation } => {
            hold.free_generation(generation);
            Performed::Silent
        }
        Step::ReportAbandoned { generation } => with_generation(hold, generation, |facts, record| {
            // Those who died in the callback of its start have nothing to do with this one.
            record.retry.store(0, Relaxed);
            announce(
                hold,
                &record.abandoned_seq,
                about_generation(facts, Kind::GenerationAbandoned, Cause::NoWorkers),
            );
            Performed::Silent
        }),
        Step::ReportEnded { generation } => with_generation(hold, generation, |facts, record| {
            // Its own announcement makes it one that is not there any more, so that its counts must be
            // taken as those of its neighbours see it.
            record.retry.store(0, Relaxed);
            announce(
                hold,
                &record.ended_seq,
                about_generation(facts, Kind::GenerationEnded, going(hold, facts.id)),
            );
            Performed::Silent
        }),
        Step::DeliverAbandoned { generation } => with_generation(hold, generation, |facts, _| {
            deliver_generation(hold, facts, facts.abandoned_seq, Kind::GenerationAbandoned)
        }),
        Step::DeliverEnded { generation } => with_generation(hold, generation, |facts, _| {
            deliver_generation(hold, facts, facts.ended_seq, Kind::GenerationEnded)
        }),
        Step::ReportStalled { slot } => with_slot(hold, slot, |facts, record| {
            deliver_next(hold);
            announce(hold, &record.stalled_seq, about(facts, Kind::WorkerStalled, Cause::Overdue));
            Performed::Silent
        }),
        Step::ReportRecovered { slot } => with_slot(hold, slot, |facts, record| {
            deliver_next(hold);
            announce(hold, &record.recovered_seq, about(facts, Kind::WorkerRecovered, Cause::Unknown));
            Performed::Silent
        }),
    }
}

/// The callback of the next event is to be run, here or, if this process dies, elsewhere: its subject lives on, so
/// that no record waits for it. The header does.
fn deliver_next(hold: &Hold) {
    hold.node.inner.store.region.header().redeliver_seq.store(hold.next_seq(), Release);
}

fn with_slot(hold: &Hold, index: u32, act: impl FnOnce(&SlotFacts, &Slot) -> Performed) -> Performed {
    own(hold, index, |_, facts, slot| act(facts, slot))
}

fn with_generation(
    hold: &Hold,
    index: u32,
    act: impl FnOnce(&GenerationFacts, &GenerationRecord) -> Performed,
) -> Performed {
    let facts: Facts = hold.facts();
    let found = facts.generations.iter().find(|g| g.index == index);
    match (found, hold.node.inner.view().used_generations().get(index as usize)) {
        (Some(facts), Some(record)) => act(facts, record),
        _ => Performed::StageDone,
    }
}

fn deliver(hold: &Hold, seq: u64, tries: u32, after: After) -> Option<Performed> {
    let event = hold.node.inner.journal().read(seq)?;
    Some(Performed::Callback { event, after, tries, last: false })
}

fn deliver_generation(hold: &Hold, facts: &GenerationFacts, seq: u64, kind: Kind) -> Performed {
    let after = After::FreeGeneration(facts.index);
    let record = hold.node.inner.view().used_generations().get(facts.index as usize);
    let tries = record.map_or(0, |r| r.retry.load(Relaxed));
    deliver(hold, seq, tries, after).unwrap_or_else(|| {
        let mut event = about_generation(facts, kind, Cause::Unknown);
        event.seq = seq;
        event.counts = hold.facts().counts(facts.id);
        Performed::Callback { event, after, tries, last: false }
    })
}

fn finish(hold: &Hold, after: After) {
    let inner = &hold.node.inner;
    match after {
        After::Nothing => {}
        After::FreeSlot(index) => hold.node.free_slot(index),
        After::FreeGeneration(index) => hold.free_generation(index),
        After::GenerationStarted(index) => {
            if let Some(record) = inner.view().used_generations().get(index as usize) {
                record.start_delivered.store(1, Relaxed);
                record.retry.store(0, Relaxed);
            }
        }
        After::Serving(index) => {
            if let Ok(slot) = inner.slot(index) {
                // A long callback is no stall: the heartbeat begins now.
                let now = clock::boot_ns();
                slot.heartbeat_ns.store(now, Relaxed);
                slot.intent_since_ns.store(now, Relaxed);
                slot.intent.store(Intent::Serving.code(), Release);
            }
            inner.wake();
        }
        After::Redelivered => {
            let header = inner.store.region.header();
            header.redeliver_seq.store(0, Relaxed);
            header.redeliver_tries.store(0, Relaxed);
        }
    }
}

/// A call that had nothing to report. For symmetry with those that have.
pub(crate) type Reported = Result<Transitions>;
