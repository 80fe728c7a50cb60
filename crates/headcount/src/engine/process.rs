//! What is true of one process of a node: a forked child starts it afresh.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use crate::engine::liveness::LockPace;
use crate::event::GenerationId;
use crate::lifecycle::SlotRef;
use crate::registry::store::Store;
use crate::sys::identity::Identity;

/// A message for the log of the server that headcount lives in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Notice {
    /// How much it should worry somebody.
    pub level: NoticeLevel,
    /// One line, which names the file or process concerned and how to fix it.
    pub text: String,
}

/// How much a [`Notice`] should worry somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum NoticeLevel {
    /// Good to know.
    Notice,
    /// Something is less than was asked for.
    Warning,
    /// Something that was asked for is not there at all.
    Error,
}

/// What is true of this process only. What a forked child wants to know of it is in atomics: see `PerProcess`.
pub(crate) struct Process {
    pub(crate) identity: Identity,
    /// The slot that it holds as a master: its index + 1, 0 for none; and its version.
    master: (AtomicU32, AtomicU64),
    last_master: (AtomicU32, AtomicU64),
    /// The master that this process was forked from, or was before it went into the background.
    pub(crate) inherited_master: Option<(SlotRef, Identity)>,
    /// The newest generation that this process, as a master, has begun, also before it went into the background; 0: none.
    begun: AtomicU64,
    /// How many workers its last generations were to have, by number: its children may have to begin one of them again.
    expected: [(AtomicU64, AtomicU32); REMEMBERED],
    /// It takes over from a master that is in another registry, which was removed: what it begins first is an upgrade.
    pub(crate) upgrades: AtomicBool,
    /// A child of a master, found out by a fork of its own: it is not to be asked again at each of them.
    pub(crate) is_no_master: AtomicBool,
    /// The lock file in which it has proved that it is a member; 0: in none.
    lock_tag: AtomicU32,
    /// How many of its threads wait to join or hold the node lock; and whether the lock file says so.
    engaged: Mutex<(u32, bool)>,
    pub(crate) locks: LockPace,
    pub(crate) joined: Mutex<Vec<SlotRef>>,
    /// Which of our threads holds the node lock.
    pub(crate) holder: Mutex<Option<ThreadId>>,
    pub(crate) released: Condvar,
    pub(crate) named: Mutex<Named>,
    pub(crate) named_released: Condvar,
    /// It stands for a role, or waits for a once.
    pub(crate) hears_calls: AtomicBool,
    notices: Mutex<VecDeque<Notice>>,
}

/// The named locks that the threads of this process hold, by their records; and how many of its threads wait for their turn, since
/// telling nobody costs a system call.
#[derive(Default)]
pub(crate) struct Named {
    pub(crate) held: Vec<(u32, ThreadId)>,
    pub(crate) waiting: u32,
}

const MAX_NOTICES: usize = 64;

/// An old master of an upgrade starts workers of its last generation again; in between, reloads may have failed.
const REMEMBERED: usize = 16;

/// A poisoned mutex only says that a thread panicked: none of ours guards an invariant that a panic
/// could break, since what must be consistent lies in the registry.
pub(crate) fn relock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Process {
    pub(crate) fn new(parent: Option<&Process>) -> Process {
        let masters = parent.and_then(|p| p.master().map(|slot| (slot, p.identity)));
        Process {
            identity: Identity::own(),
            master: (AtomicU32::new(0), AtomicU64::new(0)),
            last_master: (AtomicU32::new(0), AtomicU64::new(0)),
            inherited_master: masters.or_else(|| parent.and_then(|p| p.inherited_master)),
            begun: AtomicU64::new(parent.map_or(0, |p| p.begun.load(Relaxed))),
            expected: std::array::from_fn(|i| {
                let (id, workers) =
                    parent.map_or((0, 0), |p| (p.expected[i].0.load(Relaxed), p.expected[i].1.load(Relaxed)));
                (AtomicU64::new(id), AtomicU32::new(workers))
            }),
            upgrades: AtomicBool::new(parent.is_some_and(|p| p.upgrades.load(Relaxed))),
            // What a child forks is no master either.
            is_no_master: AtomicBool::new(
                parent.is_some_and(|p| p.is_no_master.load(Relaxed) && p.master().is_none()),
            ),
            lock_tag: AtomicU32::new(0),
            engaged: Mutex::default(),
            locks: LockPace::default(),
            joined: Mutex::default(),
            holder: Mutex::default(),
            released: Condvar::new(),
            named: Mutex::default(),
            named_released: Condvar::new(),
            hears_calls: AtomicBool::new(false),
            notices: Mutex::default(),
        }
    }

    pub(crate) fn notice(&self, notice: Notice) {
        let mut notices = relock(&self.notices);
        if notices.len() == MAX_NOTICES {
            notices.pop_front();
        }
        notices.push_back(notice);
    }

    pub(crate) fn take_notices(&self) -> Vec<Notice> {
        relock(&self.notices).drain(..).collect()
    }

    /// Proves that this process is a member; and gives the word of the lock file for that, 0 if it cannot be proved.
    pub(crate) fn prove_membership(&self, store: &Store) -> u32 {
        match self.lock_tag.load(Relaxed) {
            0 => {
                let tag = store.prove_membership(&self.identity);
                self.lock_tag.store(tag, Relaxed);
                tag
            }
            tag => tag,
        }
    }

    /// Says in the lock file that this process waits to join or holds the node lock, until it has disengaged as often.
    /// `false`: it cannot.
    pub(crate) fn engage(&self, store: &Store) -> bool {
        let mut engaged = relock(&self.engaged);
        if engaged.0 == 0 {
            engaged.1 = store.engage(&self.identity);
        }
        engaged.0 += 1;
        engaged.1
    }

    pub(crate) fn is_engaged(&self) -> bool {
        relock(&self.engaged).0 > 0
    }

    pub(crate) fn disengage(&self, store: &Store) {
        let mut engaged = relock(&self.engaged);
        engaged.0 = engaged.0.saturating_sub(1);
        if engaged.0 == 0 {
            store.disengage(&self.identity);
        }
    }

    pub(crate) fn master(&self) -> Option<SlotRef> {
        let index = self.master.0.load(Acquire).checked_sub(1)?;
        Some(SlotRef { index, version: self.master.1.load(Relaxed) })
    }

    /// The slot that it holds as a master, or held: until it has left.
    pub(crate) fn master_once(&self) -> Option<SlotRef> {
        let index = self.last_master.0.load(Relaxed).checked_sub(1)?;
        Some(SlotRef { index, version: self.last_master.1.load(Relaxed) })
    }

    pub(crate) fn set_master(&self, slot: Option<SlotRef>) {
        // In this order, so that a child that is forked meanwhile finds the pair, or none.
        self.master.0.store(0, Release);
        if let Some(slot) = slot {
            self.last_master.1.store(slot.version, Relaxed);
            self.last_master.0.store(slot.index + 1, Relaxed);
            self.master.1.store(slot.version, Relaxed);
            self.master.0.store(slot.index + 1, Release);
        }
    }

    pub(crate) fn begun(&self) -> Option<GenerationId> {
        Some(self.begun.load(Relaxed)).filter(|&id| id != 0)
    }

    pub(crate) fn set_begun(&self, id: GenerationId, workers: u32) {
        self.begun.store(id, Relaxed);
        let (of, expected) = &self.expected[id as usize % REMEMBERED];
        expected.store(workers, Relaxed);
        of.store(id, Relaxed);
    }

    /// How many workers a generation was to have that this process, or the master that it was forked from, has begun; 0 if
    /// that is not known.
    pub(crate) fn expected_of(&self, id: GenerationId) -> u32 {
        let (of, expected) = &self.expected[id as usize % REMEMBERED];
        if of.load(Relaxed) == id { expected.load(Relaxed) } else { 0 }
    }

    /// The slots that it holds.
    pub(crate) fn slots(&self) -> Vec<SlotRef> {
        let joined = relock(&self.joined);
        self.master().iter().chain(joined.iter()).copied().collect()
    }
}
