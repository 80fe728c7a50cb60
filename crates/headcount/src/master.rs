//! What only a master may do: begin generations, say how its children ended, leave.

use std::sync::Arc;

use crate::engine::inner::Inner;
use crate::engine::node_lock::{Operation, Wait};
use crate::engine::opening;
use crate::engine::session::Session;
use crate::engine::tables::NewGeneration;
use crate::engine::transitions::Transitions;
use crate::error::Result;
use crate::event::{Cause, GenerationId, LAST_GENERATION, Role};
use crate::generation::Generation;
use crate::lifecycle::{Facts, Intent, Phase, Scope, SlotFacts, Stage};
use crate::node::Node;
use crate::sys::atomic::Ordering::{AcqRel, Acquire};
use crate::sys::identity::Liveness;
use crate::sys::stop_signals;

/// How a generation begins.
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct Begin {
    cause: Option<Cause>,
    workers: u32,
}

impl Begin {
    /// The cause is found out: a reload if this process has begun a generation before, an upgrade if
    /// another master of the node is alive, else a start.
    pub fn new() -> Begin {
        Begin::default()
    }

    /// The server says the cause itself: [`Cause::Start`], [`Cause::Reload`] or [`Cause::Upgrade`].
    pub fn because(mut self, cause: Cause) -> Begin {
        self.cause = Some(cause);
        self
    }

    /// How many workers the generation is going to get. It makes the difference between its last worker
    /// and one that only left before the others had come; give it if you can.
    pub fn workers(mut self, workers: u32) -> Begin {
        self.workers = workers;
        self
    }
}

/// The process that spawns the workers, and what only it may do.
///
/// [`crate::Options::open`] gives it, before the server forks. A server that goes into the background after that calls
/// [`Master::adopt`] in the process that goes on. Threads may share it.
#[derive(Clone)]
pub struct Master {
    node: Node,
}

impl Master {
    pub(crate) fn new(inner: Arc<Inner>) -> Master {
        Master { node: Node { inner } }
    }

    /// Its node: what its workers and everybody else use.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    fn inner(&self) -> &Arc<Inner> {
        &self.node.inner
    }

    /// Begins a generation: the configuration has been read, its workers are about to be forked. It is announced, and
    /// reported as started; see [`Master::commit`] and [`Master::abandon`].
    ///
    /// # Errors
    /// [`crate::ErrorKind::LockTimeout`] or [`crate::ErrorKind::Busy`] if somebody else holds the node lock: then
    /// [`Master::reserve`] gives a number that workers can join all the same. [`crate::ErrorKind::Full`] if there are
    /// too many generations.
    pub fn begin(&self, begin: Begin, wait: Wait) -> Result<(Generation, Transitions)> {
        let inner = self.inner();
        let process = inner.process();
        let mut session = Session::begin(inner, wait, Operation::Begin)?;
        session.heal(true);
        session.reclaim_master();
        if process.begun().is_some() {
            self.change_intent(Intent::Leaving, Intent::Serving);
        }
        let master = process.master();
        let upgrades = process.upgrades.load(Acquire);
        let guess =
            || session.facts().begin_cause(process.begun().is_some(), upgrades, master.map(|m| m.index));
        let cause = begin.cause.unwrap_or_else(guess);
        // Written down with the generation before anything of it is cleared away: should this process die
        // meanwhile, the next start finds both.
        let runs = &inner.header().runs;
        let previous_run =
            (cause == Cause::Start).then(|| session.facts().find_previous_run(runs.load(Acquire)));
        let id = self.reserve();
        let new = NewGeneration {
            id,
            cause,
            phase: Phase::Announced,
            expected: begin.workers,
            master,
            master_pid: process.identity.pid,
            previous_run,
        };
        if let Err(full) = session.new_generation(new) {
            // Room is made by what nobody is in: no server gets here but with a registry that somebody has filled up.
            inner.free_unreadable(session.facts(), true);
            session.clear(|facts| facts.next_leftover().or_else(|| facts.next_empty()));
            session.new_generation(new).map_err(|_| full)?;
        }
        if previous_run.is_some() {
            runs.fetch_add(1, AcqRel);
            inner.free_unreadable(session.facts(), true);
            session.clear(|facts| facts.next_leftover());
            session.look();
            session.clear(Facts::next_left_singleton);
        }
        process.set_begun(id, begin.workers);
        let stages = [Stage::Settle(Scope::Tidy), Stage::StartGeneration(id)];
        Ok((Generation::of(&self.node, id), Transitions::new(session, stages)))
    }

    /// A number for a generation that could not be begun because somebody else holds the node lock. Its first
    /// worker begins it. Takes no lock.
    #[must_use]
    pub fn reserve(&self) -> GenerationId {
        let last = &self.inner().header().last_generation;
        // No other is one that we have given out.
        let is_sound = |id: &GenerationId| *id < LAST_GENERATION;
        let mut old = last.load(Acquire);
        loop {
            // A worker may have set it back as well. The newest generation is the one with the highest number, and each is found by
            // its number: so none in the table may have it, or the workers would join the other one.
            let known = || self.inner().view().used_generations().iter().filter(|g| g.is_taken());
            let known = || known().map(|g| g.id.load(Acquire));
            let newest = known().chain([old]).filter(is_sound).max().unwrap_or(0);
            let mut numbers = (newest + 1..=LAST_GENERATION).chain(1..);
            let next = numbers.find(|&id| known().all(|other| other != id)).unwrap_or(1);
            match last.compare_exchange(old, next, AcqRel, Acquire) {
                Ok(_) => return next,
                Err(now) => old = now,
            }
        }
    }

    /// It is certain that this generation gets workers: from now on it is a neighbour of the others. The first worker
    /// that joins commits it as well. Takes no lock; does nothing to a generation that is not there.
    pub fn commit(&self, generation: GenerationId) {
        self.change_phase(generation, Phase::Committed);
    }

    /// This generation never gets a worker: the configuration could not be put into force. It is reported as abandoned
    /// by the next process that looks. Takes no lock; does nothing to one that is not there.
    ///
    /// One that is committed, and the newest that this master has begun, is the last: the server goes on without being
    /// tracked, so that the node ends with its workers, until this master begins another.
    pub fn abandon(&self, generation: GenerationId) {
        self.change_phase(generation, Phase::Abandoned);
        let inner = self.inner();
        let is_there = inner
            .generation_record(generation)
            .is_some_and(|record| record.phase.load(Acquire) == Phase::Committed.code());
        if is_there && inner.process().begun() == Some(generation) {
            self.change_intent(Intent::Listening, Intent::Leaving);
        }
        inner.ring();
    }

    fn change_intent(&self, from: Intent, to: Intent) {
        let own = self.inner().process().master();
        if let Some(record) = own.and_then(|slot| self.inner().slot(slot.index)) {
            // Losing the race means that it has another one.
            let _ = record.intent.compare_exchange(from.code(), to.code(), AcqRel, Acquire);
        }
    }

    fn change_phase(&self, generation: GenerationId, to: Phase) {
        if let Some(record) = self.inner().generation_record(generation) {
            // Losing the race means that it is past this already.
            let _ = record.phase.compare_exchange(Phase::Announced.code(), to.code(), AcqRel, Acquire);
        }
    }

    /// Makes this process the master, if the one that opened the node was only its parent, which went into
    /// the background. To be called before the first worker is forked; costs nothing when there is nothing
    /// to do. `Ok(true)`: it has become the master.
    ///
    /// Until then no other server can take the node.
    ///
    /// # Errors
    /// [`crate::ErrorKind::LockTimeout`] or [`crate::ErrorKind::Busy`] if somebody else holds the node lock,
    /// [`crate::ErrorKind::Full`] if there is no free slot.
    pub fn adopt(&self, wait: Wait) -> Result<bool> {
        opening::adopt_master(self.inner(), wait)
    }

    /// Has this process say at once when a signal tells it to stop (SIGTERM, SIGINT or SIGQUIT, those of them that it
    /// handles). Then a worker that leaves is known to leave alone, and to be replaced, or together with its node; without it,
    /// the last worker to leave is taken for the node's end. To be called after the server has set its handlers: they are
    /// called by one of ours, as before. Best before each fork: it costs a few microseconds. Does nothing in a process that
    /// is no master.
    pub fn watch_stop_signals(&self) {
        let inner = self.inner();
        let own = inner.process().master();
        let Some(record) = own.and_then(|slot| opening::kept(inner)?.slot(slot.index)) else { return };
        let (serving, listening) = (Intent::Serving.code(), Intent::Listening.code());
        if stop_signals::watch(&record.intent, Intent::Leaving.code()) {
            // Losing the race means that it was told to stop.
            let _ = record.intent.compare_exchange(serving, listening, AcqRel, Acquire);
        }
    }

    /// The master leaves properly. If no process of the node is left, it reports what nobody was left to
    /// report. Does nothing in a process that is no master.
    ///
    /// # Errors
    /// [`crate::ErrorKind::LockTimeout`] or [`crate::ErrorKind::Busy`] if somebody else holds the node lock.
    pub fn leave(&self, wait: Wait) -> Result<Transitions> {
        let inner = self.inner();
        inner.store.opened();
        let Some(master) = inner.process().master() else { return Ok(Transitions::none()) };
        let mut session = Session::begin(inner, wait, Operation::Leave)?;
        // What the next start and those who wait for the stop go by must not be what a worker has made of it.
        session.heal(true);
        let is_of_the_server = |s: &&SlotFacts| matches!(s.role, Role::Master | Role::Worker);
        let others = session.facts().slots.iter().filter(|s| is_of_the_server(s) && s.index != master.index);
        let is_alone = !others.clone().any(|s| s.liveness != Liveness::Gone);
        let scope = if is_alone { Scope::LastWord } else { Scope::Tidy };
        Ok(Transitions::new(session, [Stage::Settle(scope), Stage::ExitMaster(master.index), Stage::Shrink]))
    }
}
