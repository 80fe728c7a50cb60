//! A role that at most one worker of a node has.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use crate::engine::inner::Inner;
use crate::engine::node_lock::{Operation, Wait};
use crate::engine::session::Session;
use crate::engine::singletons::Name;
use crate::engine::words::RoleWord;
use crate::error::Result;
use crate::lifecycle::{Intent, SingletonKind, SingletonState};
use crate::registry::layout::{Singleton, Slot};
use crate::sys::atomic::Ordering::AcqRel;
use crate::sys::clock;
use crate::worker::Worker;

/// A worker that stands for a role.
///
/// At most one worker of the node has the role at any instant, and one has it whenever one of those who stand for it is fit: it
/// serves, its loop has turned, and its heartbeat is not overdue. If it dies or hangs, another is elected. After a reload the role
/// goes to the new generation as soon as that serves.
///
/// Call [`Leader::poll`] whenever the worker's [`crate::Watch`] was readable, or after each step of its [`crate::Member`].
/// Dropping this gives the role up.
///
/// ```no_run
/// # fn start_the_scheduler(token: u64) {}
/// # fn stop_the_scheduler() {}
/// # fn f(worker: &headcount::Worker) -> headcount::Result<()> {
/// use headcount::LeaderChange;
///
/// let scheduler = worker.leader("scheduler")?;
/// // … in the loop:
/// match scheduler.poll() {
///     Some(LeaderChange::Elected { token }) => start_the_scheduler(token),
///     Some(LeaderChange::GiveUp) => {
///         stop_the_scheduler();
///         scheduler.give_up();
///     }
///     Some(LeaderChange::Lost) => stop_the_scheduler(),
///     _ => {}
/// }
/// # Ok(())
/// # }
/// ```
pub struct Leader {
    worker: Worker,
    role: String,
    key: Name,
    index: u32,
    /// Of the tenure that was told; 0: none.
    token: AtomicU64,
    /// It was told to give it up.
    is_asked: AtomicBool,
    /// When it last had a look itself.
    nudged_ns: AtomicU64,
}

/// What became of a role that a worker stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaderChange {
    /// This worker has it from now on.
    Elected {
        /// The number of this tenure: larger than all before, also over restarts of the node.
        token: u64,
    },
    /// It still has it, and is to call [`Leader::give_up`] when it has stopped what it does: another one waits. It has as long
    /// as a heartbeat may take (`stall_after`).
    GiveUp,
    /// It has it no more: it was stalled, or did not give it up in time.
    Lost,
}

/// How long who sees something to do about a role leaves it to the sentinel.
const PATIENCE_NS: u64 = 10_000_000;

impl Worker {
    /// Stands for the role of this name: 1 to 48 letters, digits, `.`, `_` and `-`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::InvalidOption`] for a name that is none; [`crate::ErrorKind::WrongState`] if this process has left, or
    /// is not the one that joined; [`crate::ErrorKind::Full`] if there are 64 roles, or too many roles, onces and locks;
    /// [`crate::ErrorKind::LockTimeout`] if somebody else holds the node lock.
    pub fn leader(&self, role: &str) -> Result<Leader> {
        self.leader_within(role, Wait::Timeout)
    }

    /// The same, for those whose loop may not wait for the node lock for so long.
    ///
    /// # Errors
    /// As those of [`Worker::leader`]; with [`Wait::Try`] also [`crate::ErrorKind::Busy`].
    pub fn leader_within(&self, role: &str, wait: Wait) -> Result<Leader> {
        self.check()?;
        let key = Name::new("role", role)?;
        let index = stand(self, &key, wait)?;
        Ok(Leader {
            worker: self.clone(),
            role: role.to_owned(),
            key,
            index,
            token: AtomicU64::new(0),
            is_asked: AtomicBool::new(false),
            nudged_ns: AtomicU64::new(0),
        })
    }
}

fn stand(worker: &Worker, key: &Name, wait: Wait) -> Result<u32> {
    let inner = &worker.node.inner;
    let mut session = Session::begin(inner, wait, Operation::Singletons)?;
    let index = match inner.find_singleton(SingletonKind::Role, key, 0) {
        Some(index) => index,
        None => inner.make_singleton(SingletonKind::Role, key, 0)?,
    };
    if let (Some(x), Some(slot)) = (inner.singleton(index), inner.slot(worker.slot.index)) {
        slot.stands_for.fetch_or(bit(x), AcqRel);
    }
    inner.process().hears_calls.store(true, Relaxed);
    session.look();
    session.settle_singletons();
    Ok(index)
}

fn bit(x: &Singleton) -> u64 {
    1u64.checked_shl(x.number.load(Relaxed)).unwrap_or(0)
}

impl Leader {
    /// The role.
    #[must_use]
    pub fn role(&self) -> &str {
        &self.role
    }

    /// Where [`Leader::is_leader`] looks: shared memory that stays where it is until the process ends. For those who cannot
    /// afford a call.
    #[doc(hidden)]
    #[must_use]
    pub fn word(&self) -> Option<*const u64> {
        Some(std::ptr::from_ref(&self.record()?.word).cast())
    }

    /// Whether this worker has the role now: between an [`LeaderChange::Elected`] and the end of the tenure. One load of shared
    /// memory; false from the instant in which another one is elected.
    #[inline]
    #[must_use]
    pub fn is_leader(&self) -> bool {
        let token = self.token.load(Relaxed);
        token != 0 && self.record().is_some_and(|x| RoleWord::of(x).leads() == token)
    }

    /// The token of the tenure, if this worker has the role.
    #[must_use]
    pub fn token(&self) -> Option<u64> {
        Some(self.token.load(Relaxed)).filter(|_| self.is_leader())
    }

    /// What has changed. Never waits.
    pub fn poll(&self) -> Option<LeaderChange> {
        let x = self.record()?;
        let (mine, now_leads) = (self.token.load(Relaxed), RoleWord::of(x).leads());
        if mine != 0 {
            if now_leads != mine {
                self.ends();
                return Some(LeaderChange::Lost);
            }
            // One that is on its way out need not be asked.
            let is_asked = RoleWord::of(x).is(SingletonState::Asked) || self.is_leaving();
            return (is_asked && !self.is_asked.swap(true, Relaxed)).then_some(LeaderChange::GiveUp);
        }
        if now_leads != 0 && self.is_owner(x) && RoleWord::of(x).is(SingletonState::Held) {
            self.token.store(now_leads, Relaxed);
            return Some(LeaderChange::Elected { token: now_leads });
        }
        self.nudge(x);
        None
    }

    /// It has stopped what it did as the leader. Another one is elected, or this one again if it is still the best. Never waits.
    pub fn give_up(&self) {
        let mine = self.token.load(Relaxed);
        self.ends();
        let Some(x) = self.record().filter(|x| mine != 0 && RoleWord::of(x).leads() == mine) else { return };
        RoleWord::of(x).give_up();
        self.settle();
    }

    fn ends(&self) {
        self.token.store(0, Relaxed);
        self.is_asked.store(false, Relaxed);
    }

    fn inner(&self) -> &std::sync::Arc<Inner> {
        &self.worker.node.inner
    }

    fn record(&self) -> Option<&Singleton> {
        self.inner().singleton(self.index)
    }

    fn slot(&self) -> Option<&Slot> {
        let slot = self.inner().slot(self.worker.slot.index)?;
        (slot.version.load(Acquire) == self.worker.slot.version).then_some(slot)
    }

    fn is_leaving(&self) -> bool {
        let intent = self.slot().and_then(|slot| Intent::from_code(slot.intent.load(Acquire)));
        matches!(intent, Some(Intent::Draining | Intent::Leaving) | None)
    }

    fn is_owner(&self, x: &Singleton) -> bool {
        let me = self.worker.slot;
        x.owner_slot.load(Relaxed) == me.index + 1
            && x.owner_version.load(Relaxed) == me.version
            && self.is_ours(x)
    }

    fn is_ours(&self, x: &Singleton) -> bool {
        self.inner().is_singleton(x, SingletonKind::Role, &self.key, 0)
    }

    /// Has an election held, if one is due and the sentinel is not about to: this one may just have begun to serve.
    fn nudge(&self, x: &Singleton) {
        let Some(slot) = self.slot() else { return };
        let is_serving = slot.heartbeat_ns.load(Relaxed) > slot.intent_since_ns.load(Relaxed);
        let is_free = x.state.load(Relaxed) == SingletonState::Free.code();
        let is_older = x.generation.load(Relaxed) < self.worker.generation()
            && x.state.load(Relaxed) == SingletonState::Held.code();
        let is_gone = !self.is_ours(x);
        if !is_gone && !(is_serving && (is_free || is_older)) {
            return;
        }
        let now = clock::boot_ns();
        if now.saturating_sub(self.nudged_ns.swap(now, Relaxed)) < PATIENCE_NS {
            return;
        }
        if is_gone {
            // Somebody has spoiled it. A later call tries again.
            let _ = stand(&self.worker, &self.key, Wait::Try);
        }
        self.settle();
    }

    fn settle(&self) {
        match Session::begin(self.inner(), Wait::Try, Operation::Singletons) {
            Ok(mut session) => session.settle_singletons(),
            // Whoever watches the node does it.
            Err(_) => self.inner().ring(),
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        let own = self.slot().filter(|_| self.inner().holds(self.worker.slot));
        if let (Some(x), Some(slot)) = (self.record(), own) {
            slot.stands_for.fetch_and(!bit(x), AcqRel);
            self.ends();
            self.settle();
        }
    }
}
