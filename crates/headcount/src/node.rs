//! A node as any of its processes sees it: whatever needs no particular role.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::inner::Inner;
use crate::engine::process::Notice;
use crate::event::{GenerationId, Kind, Role};
use crate::registry::journal::{Batch, Cursor};
use crate::snapshot::Snapshot;
use crate::sys::atomic::Ordering::{Acquire, Release};
use crate::sys::clock;
use crate::sys::identity::Liveness;

/// One server instance on one host, as one of its processes sees it.
///
/// Cheap to clone; all clones of a process are the same node. It comes with the [`crate::Master`] that
/// [`crate::Options::open`] gives before the server forks, and is then used in the master and in each forked worker alike:
/// every call finds out in which process it is.
///
/// Threads may share it, and any of them may fork at any time: the child's calls take no lock of the parent's. It is
/// never closed: see invariant 2 in ARCHITECTURE.md.
#[derive(Clone)]
pub struct Node {
    pub(crate) inner: Arc<Inner>,
}

impl Node {
    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Whether both are the same node, in the same registry.
    #[must_use]
    pub fn is_same(&self, other: &Node) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The registry's file; `None` if the node runs on memory of its own.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.inner.store.path.as_deref()
    }

    /// Takes the messages that have come up for the log in this process, oldest first.
    #[must_use]
    pub fn take_notices(&self) -> Vec<Notice> {
        self.inner.process().take_notices()
    }

    /// The newest generation that this process, as a master, has begun, also before it went into the
    /// background.
    #[must_use]
    pub fn newest_begun(&self) -> Option<GenerationId> {
        self.inner.process().begun()
    }

    /// The state of the node at this instant. Takes no lock, and holds nobody up.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let (name, path) = (self.name(), self.path());
        Snapshot::take(&self.inner.view(), &self.inner.facts(), name, path, &|word| self.inner.is_real(word))
    }

    /// Reads on in the journal, at most `limit` events. Takes no lock, and holds nobody up.
    #[must_use]
    pub fn events(&self, cursor: &mut Cursor, limit: usize) -> Batch {
        self.inner.journal().batch(cursor, limit)
    }

    /// The number of the newest event in the journal; 0 if there is none yet. One load.
    #[must_use]
    pub fn newest_seq(&self) -> u64 {
        self.inner.header().head.load(Acquire)
    }

    /// Tells what `wait` told the master: how a child ended. Its death is then reported with this cause, also
    /// where the kernel does not tell strangers. To be called as soon as it is known, by whoever knows: the
    /// master, or the replacement that it forks with that knowledge. Takes no lock.
    pub fn child_exited(&self, pid: u32, status: ExitStatus) {
        let facts = self.inner.facts();
        for s in facts.slots.iter().filter(|s| s.pid() == pid && s.liveness != Liveness::Alive) {
            if let Some(slot) = self.inner.slot(s.index) {
                slot.wait_status.store(1 << 32 | u64::from(status.into_raw() as u32), Release);
            }
        }
        self.inner.ring();
    }

    /// How many workers of this generation have died whose last heartbeat is younger than `within`, whether
    /// their deaths have been reported yet or not. Takes no lock.
    #[must_use]
    pub fn recent_deaths(&self, generation: GenerationId, within: Duration) -> usize {
        /// How many events one look brings. Deaths are few, so one look is nearly always enough.
        const AT_ONCE: u64 = 256;
        let since = clock::boot_ns().saturating_sub(clock::nanos(within));
        let unreported = self.inner.facts().slots.into_iter().filter(|s| {
            s.role == Role::Worker
                && s.liveness == Liveness::Gone
                && s.generation == generation
                && s.started_seq != 0
                && s.exited_seq == 0
                && s.heartbeat_ns > since
        });
        // By process: one may be reported between the two looks.
        let mut dead: BTreeSet<u32> = unreported.map(|s| s.pid()).collect();
        let mut end = self.newest_seq().saturating_add(1);
        // As many looks as the journal has room for, whatever its head says.
        let looks = self.inner.store.region.geometry().journal_records() as u64 / AT_ONCE + 2;
        for _ in 0..looks {
            if end <= 1 {
                break;
            }
            let start = end.saturating_sub(AT_ONCE).max(1);
            let batch = self.events(&mut Cursor::at(start), usize::try_from(end - start).unwrap_or(0));
            let deaths =
                batch.events.iter().filter(|e| e.kind == Kind::WorkerDied && e.generation == generation);
            dead.extend(deaths.filter(|e| e.heartbeat_ns > since).map(|e| e.pid));
            // What was reported before that time had its heartbeat before it as well.
            if batch.lost > 0 || batch.events.first().is_none_or(|e| e.boot_ns <= since) {
                break;
            }
            end = start;
        }
        dead.len()
    }
}
