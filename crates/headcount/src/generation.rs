//! Generations: announced, committed, ended or abandoned; and how a process joins one.

use std::os::fd::AsFd;

use crate::engine::node_lock::{Hold, Operation, Wait};
use crate::engine::transitions::{Stage, Transitions, tidy};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Cause, GenerationId, Role};
use crate::lifecycle::{Intent, Liveness, Phase, Scope};
use crate::node::{Node, SlotRef};
use crate::registry::layout::joining_byte;
use crate::sys::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use crate::sys::{clock, lock, process};
use crate::worker::Worker;

/// How a generation begins.
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct Begin {
    pub(crate) cause: Option<Cause>,
    pub(crate) workers: u32,
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

/// How a process joins a generation.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Join {
    pub(crate) role: Role,
    pub(crate) worker_id: Option<u32>,
    pub(crate) respawn: bool,
    wait: Wait,
}

impl Join {
    /// As a worker, with its number within the generation if it has one.
    pub fn worker(worker_id: Option<u32>) -> Join {
        Join { role: Role::Worker, worker_id, respawn: false, wait: Wait::Timeout }
    }

    /// As a process that does not serve: a cache manager, a privileged agent. It is shown, not counted.
    pub fn helper() -> Join {
        Join { role: Role::Helper, worker_id: None, respawn: false, wait: Wait::Timeout }
    }

    /// It replaces a worker that is gone.
    pub fn respawned(mut self, respawned: bool) -> Join {
        self.respawn = respawned;
        self
    }

    /// How long to wait for the node lock.
    pub fn wait(mut self, wait: Wait) -> Join {
        self.wait = wait;
        self
    }
}

/// The word that this process is about to join a generation, for as long as it waits for the node lock: whoever leaves
/// meanwhile must not take himself for the generation's last. A shared record lock, so that it ends with the process.
struct Joining<'a>(&'a Node, GenerationId);

impl<'a> Joining<'a> {
    fn announce(node: &'a Node, id: GenerationId) -> Option<Joining<'a>> {
        // Without it, the worst is a generation that is reported to end and to be resumed.
        matches!(lock::try_share(node.inner.store.lock_file.as_fd(), joining_byte(id)), Ok(true))
            .then_some(Joining(node, id))
    }
}

impl Drop for Joining<'_> {
    fn drop(&mut self) {
        // It cannot fail for an open descriptor; if it did, the process's end would free it.
        let _ = lock::unlock(self.0.inner.store.lock_file.as_fd(), joining_byte(self.1));
    }
}

/// A generation of a node.
#[derive(Clone)]
pub struct Generation {
    pub(crate) node: Node,
    pub(crate) id: GenerationId,
}

impl Generation {
    /// Its number.
    #[must_use]
    pub fn id(&self) -> GenerationId {
        self.id
    }

    /// Its node.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// It is certain that it gets workers: from now on it is a neighbour of the others. The first worker
    /// that joins commits it as well. Takes no lock.
    pub fn commit(&self) {
        self.change_phase(Phase::Announced, Phase::Committed);
    }

    /// It never gets a worker: the configuration could not be put into force. It is reported as abandoned
    /// by the next process that looks. Takes no lock; does nothing to a generation that is committed.
    pub fn abandon(&self) {
        self.change_phase(Phase::Announced, Phase::Abandoned);
        self.node.inner.wake();
    }

    /// Sets one of its 32 marks, which are for the layers above and have no meaning here. `true`: it was not
    /// set before, so whoever gets this answer is the only one. Takes no lock.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] if `mark` is not below 32, [`ErrorKind::NotFound`] if the generation is
    /// not there.
    pub fn mark(&self, mark: u32) -> Result<bool> {
        let bit = 1u32.checked_shl(mark).ok_or_else(|| {
            Error::new(ErrorKind::InvalidOption, format!("the mark is {mark}; allowed are 0 to 31"))
        })?;
        let record = self.node.generation_record(self.id).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("{} has no generation {}", self.node.inner.place(), self.id),
            )
        })?;
        Ok(record.marks.fetch_or(bit, AcqRel) & bit == 0)
    }

    /// Whether a worker of this number has joined before.
    fn has_had(&self, worker_id: Option<u32>) -> bool {
        let came = self.node.generation_record(self.id).map_or(0, |g| g.came.load(Relaxed));
        worker_id.is_none_or(|id| id >= 64 || came >> id & 1 == 1)
    }

    fn change_phase(&self, from: Phase, to: Phase) {
        if let Some(record) = self.node.generation_record(self.id) {
            // Losing the race means that it is past this already.
            let _ = record.phase.compare_exchange(from.code(), to.code(), AcqRel, Acquire);
        }
    }

    /// Joins the generation with this process, and reports it.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] if this process has joined this generation already,
    /// [`ErrorKind::Full`] if there is no free slot, [`ErrorKind::LockTimeout`] or [`ErrorKind::Busy`] if
    /// the node lock was not to be had. The process is not counted then, and may try again.
    pub fn join(&self, join: Join) -> Result<(Worker, Transitions)> {
        let node = &self.node;
        if let Some(worker) = node.joined_worker(self.id) {
            return Err(Error::new(
                ErrorKind::WrongState,
                format!("this process has joined generation {} already, in slot {}", self.id, worker.index),
            ));
        }
        let joining = (join.role == Role::Worker).then(|| Joining::announce(node, self.id)).flatten();
        if join.wait != Wait::Try && (join.respawn || self.has_had(join.worker_id)) {
            node.let_sentinel_go_first();
        }
        node.inner.own_start_time(process::pid());
        let hold = Hold::acquire(node, join.wait, Operation::Join)?;
        tidy(&hold);
        let facts = hold.facts();
        // One that was reported to have ended, or that the master could not announce, is begun (again).
        let known = facts.generation(self.id).filter(|g| g.ended_seq == 0 && g.abandoned_seq == 0);
        let replaces = known.is_some_and(|g| g.is_replacement(join.worker_id));
        let cause = match known {
            _ if join.role == Role::Worker && (join.respawn || replaces) => Cause::Respawn,
            Some(g) => g.cause,
            None => Cause::Resume,
        };
        let claim = || {
            node.claim_slot(join.role, |slot| {
                slot.generation.store(self.id, Relaxed);
                slot.worker_id
                    .store(join.worker_id.and_then(|i| i32::try_from(i).ok()).unwrap_or(-1), Relaxed);
                slot.cause.store(cause.code(), Relaxed);
                slot.intent.store(Intent::Starting.code(), Relaxed);
            })
        };
        let slot = match claim() {
            Err(error) if error.kind() == ErrorKind::Full && hold.bury_unreported() => claim()?,
            claimed => claimed?,
        };
        node.inner.local().joined.push(slot);
        drop(joining);
        let mut stages = Vec::new();
        if join.role == Role::Worker {
            if known.is_none() {
                stages.extend([Stage::Settle(Scope::Generation(self.id)), Stage::Revive(self.id)]);
            }
            stages.extend([Stage::Commit(self.id, join.worker_id), Stage::StartGeneration(self.id)]);
        }
        stages.push(Stage::StartProcess(slot.index));
        Ok((Worker::new(node.clone(), self.id, slot), Transitions::new(hold, stages)))
    }
}

impl Node {
    /// A worker that replaces a dead one is often quicker than the report of the death. The sentinel reports
    /// from its event loop, where a callback may do everything, so it gets a moment to do that first: then
    /// also the callbacks run in the order of the journal. It is not waited for longer than that.
    fn let_sentinel_go_first(&self) {
        const MOMENT_NS: u64 = 50_000_000;
        let deadline = clock::boot_ns().saturating_add(MOMENT_NS);
        let header = self.inner.store.region.header();
        loop {
            let word = header.wake_word.load(Acquire);
            let facts = self.facts();
            // If the sentinel itself is the dead one, another takes over at once. Without any, nobody watches.
            let at_work = header.sentinel.load(Acquire) != 0
                && facts.slots.iter().any(|s| s.is_fit(facts.now, facts.stall_after));
            let open = facts.slots.iter().any(|s| s.role == Role::Worker && s.liveness == Liveness::Gone);
            if !at_work || !open || facts.now > deadline {
                return;
            }
            self.inner.wake();
            lock::wait_for_change(&header.wake_word, word, std::time::Duration::from_millis(1));
        }
    }

    fn joined_worker(&self, generation: GenerationId) -> Option<SlotRef> {
        let joined = self.inner.local().joined.clone();
        joined.into_iter().find(|s| {
            self.inner.slot(s.index).is_ok_and(|slot| {
                slot.version.load(Relaxed) == s.version && slot.generation.load(Relaxed) == generation
            })
        })
    }
}
