//! A node as one of its processes holds it: what all the rest of the engine works on.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use crate::engine::liveness::{Asking, LockPace};
use crate::engine::look::View;
use crate::error::{Error, ErrorKind, Result};
use crate::event::GenerationId;
use crate::lifecycle::{Facts, SlotFacts};
use crate::registry::journal::Journal;
use crate::registry::layout::{Generation as GenerationRecord, Header, Slot};
use crate::registry::store::Store;
use crate::sys::clock::nanos;
use crate::sys::identity::{Identity, Liveness};
use crate::sys::per_process::PerProcess;
use crate::sys::process;

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
}

/// The timings of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) heartbeat_interval: Duration,
    pub(crate) stall_after: Duration,
    pub(crate) lock_timeout: Duration,
}

/// A slot that a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotRef {
    pub(crate) index: u32,
    /// The slot's version while it is held by this claim.
    pub(crate) version: u64,
}

pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) name: String,
    /// The path that was asked for; that of the store may be a namesake's.
    pub(crate) wanted: PathBuf,
    settings: [AtomicU64; 3],
    process: PerProcess<Process>,
}

/// What is true of this process only. What a forked child wants to know of it is in atomics: see `PerProcess`.
pub(crate) struct Process {
    pub(crate) identity: Identity,
    /// The slot that it holds as a master: its index + 1, 0 for none; and its version.
    master: (AtomicU32, AtomicU64),
    /// The master that this process was forked from, or was before it went into the background.
    pub(crate) inherited_master: Option<(SlotRef, Identity)>,
    /// The newest generation that this process, as a master, has begun, also before it went into the background; 0: none.
    begun: AtomicU64,
    /// A child of a master, found out by a fork of its own: it is not to be asked again at each of them.
    pub(crate) is_no_master: AtomicBool,
    /// The lock file in which it has proved that it is a member; 0: in none.
    lock_tag: AtomicU32,
    pub(crate) locks: LockPace,
    pub(crate) joined: Mutex<Vec<SlotRef>>,
    /// Which of our threads holds the node lock.
    pub(crate) holder: Mutex<Option<ThreadId>>,
    pub(crate) released: Condvar,
    notices: Mutex<VecDeque<Notice>>,
}

const MAX_NOTICES: usize = 64;

/// A poisoned mutex only says that a thread panicked: none of ours guards an invariant that a panic
/// could break, since what must be consistent lies in the registry.
pub(crate) fn relock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Process {
    fn new(parent: Option<&Process>) -> Process {
        let masters = parent.and_then(|p| p.master().map(|slot| (slot, p.identity)));
        Process {
            identity: Identity::own(),
            master: (AtomicU32::new(0), AtomicU64::new(0)),
            inherited_master: masters.or_else(|| parent.and_then(|p| p.inherited_master)),
            begun: AtomicU64::new(parent.map_or(0, |p| p.begun.load(Relaxed))),
            // What a child forks is no master either.
            is_no_master: AtomicBool::new(
                parent.is_some_and(|p| p.is_no_master.load(Relaxed) && p.master().is_none()),
            ),
            lock_tag: AtomicU32::new(0),
            locks: LockPace::default(),
            joined: Mutex::default(),
            holder: Mutex::default(),
            released: Condvar::new(),
            notices: Mutex::default(),
        }
    }

    pub(crate) fn master(&self) -> Option<SlotRef> {
        let index = self.master.0.load(Acquire).checked_sub(1)?;
        Some(SlotRef { index, version: self.master.1.load(Relaxed) })
    }

    pub(crate) fn set_master(&self, slot: Option<SlotRef>) {
        // In this order, so that a child that is forked meanwhile finds the pair, or none.
        self.master.0.store(0, Release);
        if let Some(slot) = slot {
            self.master.1.store(slot.version, Relaxed);
            self.master.0.store(slot.index + 1, Release);
        }
    }

    pub(crate) fn begun(&self) -> Option<GenerationId> {
        Some(self.begun.load(Relaxed)).filter(|&id| id != 0)
    }

    pub(crate) fn set_begun(&self, id: GenerationId) {
        self.begun.store(id, Relaxed);
    }

    /// The slots that it holds.
    pub(crate) fn slots(&self) -> Vec<SlotRef> {
        let joined = relock(&self.joined);
        self.master().iter().chain(joined.iter()).copied().collect()
    }
}

impl Inner {
    pub(crate) fn new(store: Store, name: String, wanted: PathBuf, settings: Settings) -> Inner {
        let inner = Inner { store, name, wanted, settings: Default::default(), process: PerProcess::new() };
        inner.set_settings(settings);
        inner
    }

    pub(crate) fn settings(&self) -> Settings {
        let [heartbeat_interval, stall_after, lock_timeout] =
            self.settings.each_ref().map(|ns| Duration::from_nanos(ns.load(Relaxed)));
        Settings { heartbeat_interval, stall_after, lock_timeout }
    }

    pub(crate) fn set_settings(&self, settings: Settings) {
        let Settings { heartbeat_interval, stall_after, lock_timeout } = settings;
        for (word, value) in self.settings.iter().zip([heartbeat_interval, stall_after, lock_timeout]) {
            word.store(nanos(value), Relaxed);
        }
    }

    /// Tells everybody else of the settings.
    pub(crate) fn publish_settings(&self) {
        let (header, settings) = (self.header(), self.settings());
        header.heartbeat_interval_ns.store(nanos(settings.heartbeat_interval), Relaxed);
        header.stall_after_ns.store(nanos(settings.stall_after), Relaxed);
        header.lock_timeout_ns.store(nanos(settings.lock_timeout), Relaxed);
    }

    /// The state of this very process.
    pub(crate) fn process(&self) -> &Process {
        self.process.get(Process::new)
    }

    pub(crate) fn notice(&self, level: NoticeLevel, text: String) {
        let mut notices = relock(&self.process().notices);
        if notices.len() == MAX_NOTICES {
            notices.pop_front();
        }
        notices.push_back(Notice { level, text });
    }

    pub(crate) fn take_notices(&self) -> Vec<Notice> {
        relock(&self.process().notices).drain(..).collect()
    }

    pub(crate) fn header(&self) -> &Header {
        self.store.region.header()
    }

    pub(crate) fn view(&self) -> View<'_> {
        View { region: &self.store.region }
    }

    pub(crate) fn journal(&self) -> Journal<'_> {
        self.view().journal()
    }

    pub(crate) fn slot(&self, index: u32) -> Result<&Slot> {
        self.store.region.slots().get(index as usize).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("{}: there is no slot {index}", self.place()))
        })
    }

    pub(crate) fn generation_at(&self, index: u32) -> Result<&GenerationRecord> {
        self.store.region.generations().get(index as usize).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("{}: there is no generation record {index}", self.place()))
        })
    }

    pub(crate) fn generation_record(&self, id: GenerationId) -> Option<&GenerationRecord> {
        self.view().used_generations().iter().find(|g| {
            g.version.load(Acquire) % 2 == 0 && g.phase.load(Relaxed) != 0 && g.id.load(Relaxed) == id
        })
    }

    /// What a message calls this node.
    pub(crate) fn place(&self) -> String {
        match &self.store.path {
            Some(path) => format!("node {} ({})", self.name, path.display()),
            None => format!("node {} (without a file)", self.name),
        }
    }

    /// Tells the others to look. Never waits.
    pub(crate) fn ring(&self) {
        self.store.bell.ring();
    }

    /// Proves that this process is a member; and gives the word of the lock file for that, 0 if it cannot be proved.
    pub(crate) fn prove_membership(&self) -> u32 {
        let process = self.process();
        match process.lock_tag.load(Relaxed) {
            0 => {
                let tag = self.store.prove_membership(process.identity.pid);
                process.lock_tag.store(tag, Relaxed);
                tag
            }
            tag => tag,
        }
    }

    /// Everything at this moment.
    pub(crate) fn facts(&self) -> Facts {
        let process = self.process();
        let own = process.slots();
        let mut asking = Asking::new(self, process, &own);
        let mut facts = self.view().facts(&mut |slot| asking.liveness(slot));
        self.find_joining(&mut facts);
        facts.own = own.iter().map(|s| s.index).collect();
        facts
    }

    /// Asks how a dead process ended, where nobody has watched it: known as long as its master has not asked.
    pub(crate) fn find_cause(&self, dead: &SlotFacts) {
        let Ok(pidfd) = process::open_pidfd(dead.pid()) else { return };
        // Only now is it certain that it is that process's.
        if dead.wait_status.is_none()
            && dead.identity.liveness() == Liveness::Gone
            && let Some(status) = process::zombie_status(pidfd.as_fd(), dead.pid())
        {
            self.note_end(dead.index, dead.version, status);
        }
    }

    /// Notes how the process in a slot ended.
    pub(crate) fn note_end(&self, index: u32, version: u64, status: i32) {
        if let Ok(slot) = self.slot(index)
            && slot.version.load(Acquire) == version
        {
            slot.wait_status.store(1 << 32 | u64::from(status as u32), Release);
        }
    }

    /// What a slot of this very process says.
    pub(crate) fn own_facts(&self, slot: SlotRef) -> Option<SlotFacts> {
        self.view().slot(slot.index, &mut |_| Liveness::Alive)
    }

    /// Asks of each generation without workers whether somebody is about to join it.
    fn find_joining(&self, facts: &mut Facts) {
        let header = self.header();
        for (who, generation) in header.joiners.iter().zip(&header.joining) {
            let (who, id) = (who.load(Acquire), generation.load(Relaxed));
            if who == 0 || !facts.is_empty(id) {
                continue;
            }
            if let Some(g) = facts.generations.iter_mut().find(|g| g.id == id && !g.joining) {
                g.joining = self.is_real(who);
            }
        }
    }
}
