//! A node as one of its processes holds it.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::event::{GenerationId, Role};
use crate::generation::Generation;
use crate::journal::{Batch, Cursor, Journal};
use crate::layout::{SLOT_LOCK_BASE, Slot, joining_byte};
use crate::lifecycle::{Facts, Liveness};
use crate::master::Claim;
use crate::options::Options;
use crate::seqlock::rewrite;
use crate::snapshot::Snapshot;
use crate::store::Store;
use crate::sys::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sys::{clock, lock, pipe, process};
use crate::view::View;

/// One server instance on one host, as one of its processes sees it.
///
/// Cheap to clone; all clones of a process are the same node. It is made by
/// [`Options::open`] in the master, before it forks, and is then used in the master and in each forked
/// worker alike: every call finds out in which process it is.
///
/// Threads may share it. After a fork only the child's one thread may use the child's copy, which is what
/// `fork` demands anyway. It is never closed: see "Decisions" in ARCHITECTURE.md.
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

/// Every node that this process has open, by the path that was asked for. Nothing is ever taken out.
static OPEN: Mutex<Vec<(PathBuf, Node)>> = Mutex::new(Vec::new());

const MAX_NOTICES: usize = 64;

/// A poisoned mutex only says that a thread panicked: none of ours guards an invariant that a panic
/// could break, since what must be consistent lies in the registry.
pub(crate) fn relock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NodeInner {
    fn new(store: Store, name: String, settings: Settings) -> NodeInner {
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
    pub(crate) fn open(options: &Options) -> Result<Node> {
        let settings = options.settings()?;
        let wanted = options.registry_path();
        let mut open = relock(&OPEN);
        let identity = crate::store::lock_identity(&wanted);
        let same = |(path, node): &&(PathBuf, Node)| {
            *path == wanted || identity.is_some() && node.inner.store.lock_identity() == identity
        };
        if let Some((_, node)) = open.iter().find(same) {
            // The same master again, at a reload: a second descriptor of the lock file would drop every
            // lock of this process when it is closed.
            let node = node.clone();
            *relock(&node.inner.settings) = settings;
            node.publish_settings();
            let local = node.inner.local();
            let has_left =
                local.master.is_none() && local.joined.is_empty() && local.inherited_master.is_none();
            drop(local);
            if has_left {
                // A master that had left (the server was reconfigured to do without), and is back.
                node.claim_master(options.predecessor())?;
            }
            return Ok(node);
        }
        let node = Node::open_files(options, &wanted, settings).or_else(|error| {
            if error.kind() == ErrorKind::InvalidOption {
                return Err(error);
            }
            Node::without_files(options, settings, &error)
        })?;
        node.publish_settings();
        open.push((wanted, node.clone()));
        Ok(node)
    }

    fn open_files(options: &Options, wanted: &Path, settings: Settings) -> Result<Node> {
        const MOST_NAMESAKES: u32 = 64;
        const MOST_REMOVED: u32 = 64;
        let geometry = options.geometry()?;
        let mut taken = None;
        let mut removed = 0;
        let mut number = 1;
        while number <= MOST_NAMESAKES {
            let (path, name) = match number {
                1 => (wanted.to_owned(), options.node_name().to_owned()),
                _ => namesake(wanted, options.node_name(), number),
            };
            if already_open(&path) {
                number += 1;
                continue;
            }
            let (store, remarks) = Store::open(&path, &name, geometry, settings.lock_timeout)?;
            let node = Node { inner: Arc::new(NodeInner::new(store, name, settings)) };
            for remark in remarks {
                node.inner.notice(NoticeLevel::Warning, remark);
            }
            match node.claim_master(options.predecessor())? {
                Claim::Ours => {
                    if let Some((pid, name)) = taken {
                        node.inner.notice(
                            NoticeLevel::Warning,
                            format!(
                                "node {name} is in use by another server (master process {pid}): this one is \
                                 tracked as node {}; give it a name of its own with the option `node`",
                                node.name()
                            ),
                        );
                    }
                    return Ok(node);
                }
                Claim::Taken(master) => {
                    taken.get_or_insert((master, node.name().to_owned()));
                    // Dropping the descriptor is harmless: this process holds no lock of that file.
                    number += 1;
                }
                // Between our opening and our claiming it: the same once more, with new files.
                Claim::Removed if removed < MOST_REMOVED => removed += 1,
                Claim::Removed => {
                    return Err(Error::new(
                        ErrorKind::Busy,
                        format!(
                            "{} is removed again and again while this server opens it (find out by whom)",
                            path.display()
                        ),
                    ));
                }
            }
        }
        Err(Error::new(
            ErrorKind::InUse,
            format!(
                "{} and its {MOST_NAMESAKES} namesakes are in use by other servers: give this one a name of its own \
                 with the option `node`",
                wanted.display()
            ),
        ))
    }

    /// The server must run whatever is wrong with the file.
    fn without_files(options: &Options, settings: Settings, why: &Error) -> Result<Node> {
        let store = Store::anonymous(options.node_name(), options.geometry()?)?;
        let node = Node { inner: Arc::new(NodeInner::new(store, options.node_name().to_owned(), settings)) };
        node.inner.notice(
            NoticeLevel::Warning,
            format!(
                "{why}; the node {} runs on memory of its own: counts and callbacks work, no program outside \
                 can see it, and a binary upgrade or restart will not know of it",
                options.node_name()
            ),
        );
        node.claim_master(None)?;
        Ok(node)
    }

    fn publish_settings(&self) {
        let header = self.inner.store.region.header();
        let settings = self.inner.settings();
        let ns = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        header.heartbeat_interval_ns.store(ns(settings.heartbeat_interval), Relaxed);
        header.stall_after_ns.store(ns(settings.stall_after), Relaxed);
        header.lock_timeout_ns.store(ns(settings.lock_timeout), Relaxed);
    }

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

fn already_open(path: &Path) -> bool {
    // `OPEN` is locked by the caller. A path is open if its lock file is one that we hold: opening it a
    // second time and closing it again would drop our locks on it.
    let Some(identity) = crate::store::lock_identity(path) else { return false };
    OPEN_LOCKS.lock().unwrap_or_else(PoisonError::into_inner).contains(&identity)
}

/// The identities of all lock files that this process has open for good.
pub(crate) static OPEN_LOCKS: Mutex<Vec<(u64, u64)>> = Mutex::new(Vec::new());

fn namesake(path: &Path, name: &str, number: u32) -> (PathBuf, String) {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let file = match path.extension() {
        Some(extension) => format!("{stem}-{number}.{}", extension.to_string_lossy()),
        None => format!("{stem}-{number}"),
    };
    (path.with_file_name(file), format!("{name}-{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namesake_keeps_its_suffix() {
        let (path, name) = namesake(Path::new("/run/headcount/nginx.registry"), "nginx", 2);
        assert_eq!(path, Path::new("/run/headcount/nginx-2.registry"));
        assert_eq!(name, "nginx-2");
    }
    #[test]
    fn who_claims_files_that_were_removed_is_told_so() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("node.registry");
        let options = Options::new("node").path(&path).slots(16);
        let settings = options.settings().expect("they are right");
        let geometry = options.geometry().expect("it is right");
        let (store, _) = Store::open(&path, "node", geometry, settings.lock_timeout).expect("open");
        let node = Node { inner: Arc::new(NodeInner::new(store, "node".into(), settings)) };
        std::fs::remove_file(crate::store::lock_path(&path)).expect("remove");
        assert!(matches!(node.claim_master(None), Ok(Claim::Removed)));
        assert!(node.snapshot().processes.is_empty());
    }
}
