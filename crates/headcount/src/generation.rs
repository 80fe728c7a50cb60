//! A generation, and how a process joins one.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::engine::inner::Inner;
use crate::engine::node_lock::{Operation, Wait};
use crate::engine::process::NoticeLevel;
use crate::engine::session::Session;
use crate::engine::transitions::Transitions;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{GenerationId, Role};
use crate::lifecycle::{Facts, Intent, Scope, SlotFacts, SlotRef, Stage};
use crate::node::Node;
use crate::sys::atomic::AtomicU64;
use crate::sys::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sys::identity::{Identity, Liveness};
use crate::sys::{clock, futex};
use crate::worker::Worker;

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
/// meanwhile must not take himself for the generation's last. It ends with the process.
struct Joining<'a> {
    inner: &'a Inner,
    entry: &'a AtomicU64,
    word: u64,
}

impl<'a> Joining<'a> {
    fn announce(inner: &'a Inner, id: GenerationId) -> Option<Joining<'a>> {
        let header = inner.header();
        let word = inner.process().identity.to_word();
        inner.process().engage(&inner.store);
        for (entry, generation) in header.joiners.iter().zip(&header.joining) {
            let named = entry.load(Acquire);
            if named != 0 && inner.is_real(named) {
                continue;
            }
            if entry.compare_exchange(named, word, AcqRel, Acquire).is_ok() {
                generation.store(id, Release);
                return Some(Joining { inner, entry, word });
            }
        }
        // So many wait already: one of them will do. Without any, the worst is a generation that is reported to end and
        // to be resumed.
        inner.process().disengage(&inner.store);
        None
    }
}

impl Drop for Joining<'_> {
    fn drop(&mut self) {
        // Failing means that somebody has spoiled it.
        let _ = self.entry.compare_exchange(self.word, 0, AcqRel, Relaxed);
        self.inner.process().disengage(&self.inner.store);
    }
}

/// A generation of a node.
#[derive(Clone)]
pub struct Generation {
    node: Node,
    id: GenerationId,
}

impl Generation {
    /// A handle for a generation that was begun, as a forked worker needs it.
    #[must_use]
    pub fn of(node: &Node, id: GenerationId) -> Generation {
        Generation { node: node.clone(), id }
    }

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

    /// Sets one of its 32 marks, which are for the layers above and have no meaning here. `true`: it was not
    /// set before, so whoever gets this answer is the only one. Takes no lock.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] if `mark` is not below 32, [`ErrorKind::NotFound`] if the generation is
    /// not there.
    pub fn mark(&self, mark: u32) -> Result<bool> {
        let inner = &self.node.inner;
        let bit = 1u32.checked_shl(mark).ok_or_else(|| {
            Error::new(ErrorKind::InvalidOption, format!("the mark is {mark}; allowed are 0 to 31"))
        })?;
        let record = inner.generation_record(self.id).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("{} has no generation {}", inner.place(), self.id))
        })?;
        Ok(record.marks.fetch_or(bit, AcqRel) & bit == 0)
    }

    /// Whether a worker of this number has joined before.
    fn has_had(&self, worker_id: Option<u32>) -> bool {
        let came = self.node.inner.generation_record(self.id).map_or(0, |g| g.came.load(Relaxed));
        worker_id.is_none_or(|id| id >= 64 || came >> id & 1 == 1)
    }

    /// Joins the generation with this process, and reports it.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] if this process has joined this generation already,
    /// [`ErrorKind::Full`] if there is no free slot, [`ErrorKind::LockTimeout`] or [`ErrorKind::Busy`] if
    /// somebody else holds the node lock. The process is not counted then, and may try again.
    pub fn join(&self, join: Join) -> Result<(Worker, Transitions)> {
        let inner = &self.node.inner;
        if let Some(worker) = joined_worker(inner, self.id) {
            return Err(Error::new(
                ErrorKind::WrongState,
                format!("this process has joined generation {} already, in slot {}", self.id, worker.index),
            ));
        }
        inner.prove_membership();
        let joining = (join.role == Role::Worker).then(|| Joining::announce(inner, self.id)).flatten();
        let replaces = join.wait != Wait::Try && (join.respawn || self.has_had(join.worker_id));
        let is_left_to_us = replaces && !let_sentinel_go_first(inner);
        let mut session = Session::begin(inner, join.wait, Operation::Join)?;
        // Nobody is there who would report what is open, or who is does not run: then it is for us to do, before we are
        // counted.
        let nobody_watches = |session: &Session| {
            let facts = session.facts();
            is_left_to_us || !facts.slots.iter().any(|s| s.is_fit(facts.now, facts.stall_after))
        };
        if join.role == Role::Worker && nobody_watches(&session) && has_unexplained(session.facts()) {
            drop(session);
            wait_for_causes(inner);
            session = Session::begin(inner, join.wait, Operation::Join)?;
        }
        session.tidy();
        let nobody_watches = nobody_watches(&session);
        let facts = session.facts();
        let is_known = facts.joinable(self.id).is_some();
        let cause = facts.join_cause(self.id, join.role, join.worker_id, join.respawn);
        let number = join.worker_id.and_then(|i| i32::try_from(i).ok()).unwrap_or(-1);
        let claim = |session: &mut Session| {
            session.claim_slot(join.role, |slot| {
                slot.generation.store(self.id, Relaxed);
                slot.worker_id.store(number, Relaxed);
                slot.cause.store(cause.code(), Relaxed);
                slot.intent.store(Intent::Starting.code(), Relaxed);
            })
        };
        let slot = match claim(&mut session) {
            Err(error) if error.kind() == ErrorKind::Full => {
                inner.free_unreadable(session.facts(), true);
                bury_unreported(&mut session);
                claim(&mut session)?
            }
            claimed => claimed?,
        };
        drop(joining);
        let mut stages = Vec::new();
        if join.role == Role::Worker {
            if nobody_watches {
                stages.push(Stage::Settle(Scope::Everything));
            }
            if !is_known {
                stages.extend([Stage::Settle(Scope::Generation(self.id)), Stage::Revive(self.id)]);
            }
            stages.extend([Stage::Commit(self.id, join.worker_id), Stage::StartGeneration(self.id)]);
        }
        stages.push(Stage::StartProcess(slot.index));
        self.master_is_certain(&session);
        Ok((Worker::new(self.node.clone(), self.id, slot), Transitions::new(session, stages)))
    }

    /// If our parent is the master that the registry knows, or we are ourselves, the server has gone into the background
    /// or is not about to.
    fn master_is_certain(&self, session: &Session) {
        let mut masters = session.facts().slots.iter().filter(|s| s.role == Role::Master);
        let is_ours = self.node.inner.process().master().is_some();
        let parent = Identity::parent();
        if is_ours || masters.any(|s| parent.is_some_and(|p| p.is(&s.identity))) {
            self.node.inner.store.opened();
        }
    }
}

/// The table is full of workers that died so early that none lived long enough to report the others: they
/// are written into the journal, and their callbacks do not run.
fn bury_unreported(session: &mut Session) {
    let buried = session.clear(|facts| facts.next_unreported());
    if buried > 0 {
        let text = format!(
            "{}: {buried} workers died and none lived long enough to report it by its callback: they stand in the journal \
             (is the server in a crash loop?)",
            session.inner.place()
        );
        session.inner.notice(NoticeLevel::Error, text);
    }
}

/// Whether somebody has died, and nobody has told yet how.
fn has_unexplained(facts: &Facts) -> bool {
    let is_news =
        |s: &&SlotFacts| s.role == Role::Worker && s.liveness == Liveness::Gone && s.started_seq != 0;
    facts.slots.iter().filter(is_news).any(SlotFacts::needs_cause)
}

/// How a worker ended is known by its zombie; then by its master, who tells the replacement that it forks, which tells
/// us. That takes some milliseconds, and is not waited for longer than that.
fn wait_for_causes(inner: &Inner) {
    const PATIENCE_NS: u64 = 100_000_000;
    let deadline = clock::boot_ns().saturating_add(PATIENCE_NS);
    let mut held = BTreeMap::new();
    loop {
        let facts = inner.facts();
        let dead = facts.slots.iter().filter(|s| s.role == Role::Worker && s.liveness == Liveness::Gone);
        dead.filter(|s| s.needs_cause()).for_each(|s| inner.find_cause(s, &mut held));
        if !has_unexplained(&facts) || facts.now > deadline {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A worker that replaces a dead one is often quicker than the report of the death. The sentinel reports
/// from its event loop, where a callback may do everything, so it gets a moment to do that first: then
/// also the callbacks run in the order of the journal. It is not waited for longer than that: `false` then.
fn let_sentinel_go_first(inner: &Inner) -> bool {
    const MOMENT_NS: u64 = 50_000_000;
    let deadline = clock::boot_ns().saturating_add(MOMENT_NS);
    let header = inner.header();
    loop {
        let released = header.released.load(Acquire);
        let facts = inner.facts();
        // If the sentinel itself is the dead one, another takes over at once. Without any, nobody watches.
        let at_work = header.sentinel.load(Acquire) != 0
            && facts.slots.iter().any(|s| s.is_fit(facts.now, facts.stall_after));
        // One that stands in the journal, and whose callback is to run again, can wait for those who have an event loop: one
        // that starts may have none yet for what the callback does.
        let is_open = |s: &SlotFacts| s.liveness == Liveness::Gone && s.died_seq == 0;
        let open = facts.slots.iter().any(|s| s.role == Role::Worker && is_open(s));
        if !at_work || !open {
            return true;
        }
        if facts.now > deadline {
            return false;
        }
        inner.ring();
        futex::wait_for_change(&header.released, released, Duration::from_millis(1));
    }
}

fn joined_worker(inner: &Inner, generation: GenerationId) -> Option<SlotRef> {
    let is_in = |slot: &SlotRef| {
        inner.slot(slot.index).is_some_and(|record| record.generation.load(Relaxed) == generation)
    };
    inner.own_slots(inner.process()).into_iter().find(is_in)
}
