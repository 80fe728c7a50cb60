//! A node as one of its processes holds it.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::event::{GenerationId, Role};
use crate::generation::Generation;
use crate::lifecycle::{Facts, Liveness};
use crate::registry::journal::{Batch, Cursor, Journal};
use crate::registry::layout::{SLOT_LOCK_BASE, Slot, joining_byte};
use crate::registry::seqlock::rewrite;
use crate::registry::store::Store;
use crate::registry::view::View;
use crate::snapshot::Snapshot;
use crate::sys::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sys::{clock, lock, pipe, process};

/// One server instance on one host, as one of its processes sees it.
///
/// Cheap to clone; all clones of a process are the same node. It is made by
/// [`crate::Options::open`] in the master, before it forks, and is then used in the master and in each forked
/// worker alike: every call finds out in which process it is.
///
/// Threads may share it. After a fork only the child's one thread may use the child's copy, which is what
/// `fork` demands anyway. It is never closed: see invariant 2 in ARCHITECTURE.md.
#[derive(Clone)]
pub struct Node {
    pub(crate) inner: Arc<NodeInner>,
}

/// A message for the log of the server that headcount lives in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Notice {
    /// How much it should worry somebody.
    pub level: NoticeLevel,
    /// One line, which names the file or process concerned and the mend.
    pub text: String,
}

/// How much a [`Notice`] should worry somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoticeLevel {
    /// Good to know.
    Notice,
    /// Something is less than was asked for.
    Warning,
    /// Something that was asked for is not there at all.
    Error,
}

pub(crate) struct NodeInner {
    pub(crate) store: Store,
    pub(crate) name: String,
    pub(crate) settings: Mutex<Settings>,
    local: Mutex<Local>,
    pub(crate) released: Condvar,
    notices: Mutex<VecDeque<Notice>>,
}

#[derive(Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) heartbeat_interval: Duration,
    pub(crate) stall_after: Duration,
    pub(crate) lock_timeout: Duration,
}

/// A slot that this process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotRef {
    pub(crate) index: u32,
    /// The slot's version while it is held by this claim.
    pub(crate) version: u64,
}

/// What is true of this process only. A forked child starts it afresh.
#[derive(Debug, Default)]
pub(crate) struct Local {
    pid: u32,
    pub(crate) master: Option<SlotRef>,
    pub(crate) joined: Vec<SlotRef>,
    /// The master that this process was forked from, or was before it went into the background.
    pub(crate) inherited_master: Option<(SlotRef, u32)>,
    /// Which of our threads holds the node lock.
    pub(crate) holder: Option<ThreadId>,
    /// The newest generation that this process, as a master, has begun.
    pub(crate) begun: Option<GenerationId>,
    /// A child of a master, found out by a fork of its own: it is not to be asked again at each of them.
    pub(crate) no_master: bool,
    start_time: Option<u64>,
}

const MAX_NOTICES: usize = 64;

/// A poisoned mutex only says that a thread panicked: none of ours guards an invariant that a panic
/// could break, since what must be consistent lies in the registry.
pub(crate) fn relock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NodeInner {
    pub(crate) fn new(store: Store, name: String, settings: Settings) -> NodeInner {
        NodeInner {
            store,
            name,
            settings: Mutex::new(settings),
            local: Mutex::default(),
            released: Condvar::new(),
            notices: Mutex::default(),
        }
    }

    pub(crate) fn settings(&self) -> Settings {
        *relock(&self.settings)
    }

    /// The state of this very process.
    pub(crate) fn local(&self) -> MutexGuard<'_, Local> {
        let mut local = relock(&self.local);
        let pid = process::pid();
        if local.pid != pid {
            let inherited_master = match (local.master, local.pid) {
                (Some(slot), parent) => Some((slot, parent)),
                (None, _) => local.inherited_master,
            };
            let begun = local.begun;
            // What a child forks is no master either.
            let no_master = local.no_master && local.master.is_none();
            *local = Local { pid, inherited_master, begun, no_master, ..Local::default() };
        }
        local
    }

    /// Waits on `released` without losing sight of the process's state.
    pub(crate) fn wait_released<'a>(
        &self,
        local: MutexGuard<'a, Local>,
        limit: Duration,
    ) -> MutexGuard<'a, Local> {
        self.released.wait_timeout(local, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    pub(crate) fn notice(&self, level: NoticeLevel, text: String) {
        let mut notices = relock(&self.notices);
        if notices.len() == MAX_NOTICES {
            notices.pop_front();
        }
        notices.push_back(Notice { level, text });
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

    /// What a message calls this node.
    pub(crate) fn place(&self) -> String {
        match &self.store.path {
            Some(path) => format!("node {} ({})", self.name, path.display()),
            None => format!("node {} (without a file)", self.name),
        }
    }

    /// Whether the process in a slot is alive, by the kernel.
    pub(crate) fn liveness(&self, own: &[SlotRef], index: u32, version: u64, pid: u32) -> Liveness {
        if own.contains(&SlotRef { index, version }) {
            return Liveness::Alive;
        }
        match lock::test(self.store.lock_file.as_fd(), SLOT_LOCK_BASE + u64::from(index)) {
            // Pid 0 is one in a pid namespace that we cannot see into.
            Ok(lock::ByteLock::Held(holder)) if holder == 0 || holder == pid => Liveness::Alive,
            // Another pid is another process, and the slot's is gone; unless it is the same one, called otherwise
            // in our pid namespace.
            Ok(lock::ByteLock::Held(holder)) if self.started_at(index, holder) => Liveness::Alive,
            Ok(_) => Liveness::Gone,
            Err(_) => Liveness::Unknown,
        }
    }

    /// Read once, and by who is about to take the lock before it does.
    pub(crate) fn own_start_time(&self, pid: u32) -> u64 {
        if let Some(known) = self.local().start_time {
            return known;
        }
        let read = process::start_time(pid).unwrap_or(0);
        self.local().start_time = Some(read);
        read
    }

    fn started_at(&self, index: u32, pid: u32) -> bool {
        let then = self.slot(index).map_or(0, |s| s.start_time.load(Relaxed));
        then != 0 && process::start_time(pid) == Some(then)
    }

    /// The slots that this process holds, which the kernel does not show to it as locked.
    pub(crate) fn own_slots(&self) -> Vec<SlotRef> {
        let local = self.local();
        local.master.iter().chain(&local.joined).copied().collect()
    }

    /// Asks of each generation without workers whether somebody is about to join it.
    pub(crate) fn find_joining(&self, facts: &mut Facts) {
        let empty: Vec<bool> = facts.generations.iter().map(|g| facts.is_empty(g.id)).collect();
        for (g, _) in facts.generations.iter_mut().zip(empty).filter(|(_, empty)| *empty) {
            g.joining = matches!(
                lock::test(self.store.lock_file.as_fd(), joining_byte(g.id)),
                Ok(lock::ByteLock::Held(_))
            );
        }
    }

    /// Tells the sentinel to look. Never blocks; a full pipe has told it already.
    pub(crate) fn wake(&self) {
        pipe::put(&self.store.wake_write, &self.store.wake_read, &self.store.sink);
    }
}

impl Node {
    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The registry's file; `None` if the node runs on memory of its own.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.inner.store.path.as_deref()
    }

    /// Takes the messages that have come up for the log, oldest first.
    #[must_use]
    pub fn take_notices(&self) -> Vec<Notice> {
        relock(&self.inner.notices).drain(..).collect()
    }

    /// The newest generation that this process, as a master, has begun, also before it went into the
    /// background.
    #[must_use]
    pub fn newest_begun(&self) -> Option<GenerationId> {
        self.inner.local().begun
    }

    /// A handle for a generation that was begun, as a forked worker needs it.
    #[must_use]
    pub fn generation(&self, id: GenerationId) -> Generation {
        Generation { node: self.clone(), id }
    }

    /// Tells what `waitpid` told: how a child ended. Its death is then reported with this cause, also
    /// where the kernel does not tell strangers. Takes no lock.
    ///
    /// `wait_status` is the status as `waitpid` gives it.
    pub fn child_exited(&self, pid: u32, wait_status: i32) {
        let facts = self.facts();
        for s in facts.slots.iter().filter(|s| s.pid == pid && s.liveness != Liveness::Alive) {
            if let Ok(slot) = self.inner.slot(s.index) {
                slot.wait_status.store(1 << 32 | u64::from(wait_status as u32), Release);
            }
        }
        self.inner.wake();
    }

    /// The state of the node at this instant. Takes no lock, and holds nobody up.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::take(&self.inner.view(), &self.facts(), self.name(), self.path())
    }

    /// Reads on in the journal, at most `limit` events. Takes no lock, and holds nobody up.
    #[must_use]
    pub fn events(&self, cursor: &mut Cursor, limit: usize) -> Batch {
        self.inner.journal().batch(cursor, limit)
    }

    /// The number of the newest event in the journal; 0 if there is none yet. One load.
    #[must_use]
    pub fn newest_seq(&self) -> u64 {
        self.inner.store.region.header().head.load(Acquire)
    }

    pub(crate) fn facts(&self) -> Facts {
        let own = self.inner.own_slots();
        let mut facts = self
            .inner
            .view()
            .facts(&mut |index, version, pid| self.inner.liveness(&own, index, version, pid));
        self.inner.find_joining(&mut facts);
        facts.own = own.iter().map(|s| s.index).collect();
        facts
    }

    /// Claims a free slot for this process: the lock first, then the record.
    ///
    /// Only for the holder of the node lock.
    pub(crate) fn claim_slot(&self, role: Role, fill: impl FnOnce(&Slot)) -> Result<SlotRef> {
        let slots = self.inner.store.region.slots();
        let header = self.inner.store.region.header();
        for (index, slot) in (0u32..).zip(slots) {
            if slot.role.load(Relaxed) != 0 {
                continue;
            }
            let locked =
                lock::try_lock(self.inner.store.lock_file.as_fd(), SLOT_LOCK_BASE + u64::from(index))
                    .map_err(|e| Error::io("lock a slot", e))?;
            if !locked {
                // Somebody lives there whom the registry does not know (any more).
                continue;
            }
            let now = clock::boot_ns();
            let pid = process::pid();
            // First of all: a repair looks no further than this.
            header.slots_used.fetch_max(index + 1, Release);
            let version = rewrite(&slot.version, || {
                slot.pid.store(pid, Relaxed);
                slot.start_time.store(self.inner.own_start_time(pid), Relaxed);
                slot.joined_ns.store(now, Relaxed);
                slot.joined_wall_ns.store(clock::wall_ns(), Relaxed);
                slot.heartbeat_ns.store(now, Relaxed);
                slot.intent_since_ns.store(now, Relaxed);
                slot.generation.store(0, Relaxed);
                slot.worker_id.store(-1, Relaxed);
                slot.cause.store(0, Relaxed);
                slot.retry.store(0, Relaxed);
                for seq in [
                    &slot.started_seq,
                    &slot.exited_seq,
                    &slot.died_seq,
                    &slot.stalled_seq,
                    &slot.recovered_seq,
                    &slot.wait_status,
                ] {
                    seq.store(0, Relaxed);
                }
                fill(slot);
                slot.role.store(role.code(), Relaxed);
            });
            return Ok(SlotRef { index, version });
        }
        Err(Error::new(
            ErrorKind::Full,
            format!(
                "{}: all {} slots are taken; set the option `slots` higher, stop the server, remove the registry and \
                 start again",
                self.inner.place(),
                slots.len()
            ),
        ))
    }

    /// Frees a slot, and the lock on it if it is ours. Only for the holder of the node lock.
    pub(crate) fn free_slot(&self, index: u32) {
        let Ok(slot) = self.inner.slot(index) else { return };
        rewrite(&slot.version, || slot.role.store(0, Relaxed));
        let mut local = self.inner.local();
        local.joined.retain(|s| s.index != index);
        if local.master.is_some_and(|s| s.index == index) {
            local.master = None;
        }
        drop(local);
        // Failing means that we did not hold it.
        let _ = lock::unlock(self.inner.store.lock_file.as_fd(), SLOT_LOCK_BASE + u64::from(index));
    }
}
