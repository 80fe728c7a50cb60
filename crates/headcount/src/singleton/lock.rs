//! A lock that has a name, over all processes of a node.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::engine::inner::Inner;
use crate::engine::node_lock::{Operation, Wait};
use crate::engine::session::Session;
use crate::engine::singletons::{Name, Taken, is_held, let_go, take, wait_until_free};
use crate::error::Result;
use crate::lifecycle::SingletonKind;
use crate::sys::process;
use crate::worker::Worker;

impl Worker {
    /// The lock of this name: 1 to 48 letters, digits, `.`, `_` and `-`. It takes no place in the registry before it is
    /// acquired.
    ///
    /// # Errors
    /// [`crate::ErrorKind::InvalidOption`] for a name that is none; [`crate::ErrorKind::WrongState`] if this process has left, or
    /// is not the one that joined.
    pub fn lock(&self, name: &str) -> Result<NamedLock> {
        self.check()?;
        let key = Name::new("lock", name)?;
        Ok(NamedLock { worker: self.clone(), name: name.to_owned(), key, index: AtomicU32::new(UNKNOWN) })
    }
}

const UNKNOWN: u32 = u32::MAX;
/// Between two tries to take a lock that has no place in the registry yet: making one takes the node lock, which somebody may have for long.
const UNTIL_NEXT_TRY: Duration = Duration::from_millis(5);

/// A mutex over all processes of a node, and all their threads.
///
/// Whoever waits for it sleeps in the kernel. If the holder dies, the next one gets it at once, and is told so. If the holder is
/// slow, the others wait, and time out; nobody ever goes on without it.
///
/// It belongs to the process that made it; its threads may share it.
///
/// ```no_run
/// # fn rotate_the_keys() {}
/// # fn set_right() {}
/// # fn f(worker: &headcount::Worker) -> headcount::Result<()> {
/// let keys = worker.lock("keys")?;
/// let guard = keys.acquire(headcount::Wait::Timeout)?;
/// if guard.abandoned_by().is_some() {
///     set_right();
/// }
/// rotate_the_keys();
/// # Ok(())
/// # }
/// ```
pub struct NamedLock {
    worker: Worker,
    name: String,
    key: Name,
    index: AtomicU32,
}

impl NamedLock {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits for it, and takes it. Without a system call if nobody has it.
    ///
    /// # Errors
    /// [`crate::ErrorKind::LockTimeout`] or, for [`Wait::Try`], [`crate::ErrorKind::Busy`]: the message says who has it and for
    /// how long; [`crate::ErrorKind::WrongState`] if this thread has it already, or the process is no worker any more;
    /// [`crate::ErrorKind::Full`] if the node has too many roles, onces and locks.
    pub fn acquire(&self, wait: Wait) -> Result<LockGuard> {
        let (index, taken) = self.take(wait)?;
        let inner = self.worker.node.inner.clone();
        Ok(LockGuard { inner, index, pid: process::pid(), taken, _stays_on_its_thread: PhantomData })
    }

    /// As [`NamedLock::acquire`], for hosts that say themselves when it is released. Gives the token, and who died inside.
    #[doc(hidden)]
    pub fn hold(&self, wait: Wait) -> Result<(u64, Option<u32>)> {
        self.take(wait).map(|(_, taken)| (taken.token, taken.abandoned_by))
    }

    /// Releases what [`NamedLock::hold`] took, whichever thread that was. `false`: this process does not have it.
    #[doc(hidden)]
    pub fn release(&self) -> bool {
        let_go(&self.worker.node.inner, self.index.load(Relaxed), false)
    }

    /// Whether this process has it.
    #[doc(hidden)]
    pub fn is_held(&self) -> bool {
        is_held(&self.worker.node.inner, self.index.load(Relaxed))
    }

    /// This process is leaving: if it has the lock, that is not released, and the next holder is told so.
    #[doc(hidden)]
    pub fn leave_to_the_next(&self) {
        let_go(&self.worker.node.inner, self.index.load(Relaxed), true);
    }

    fn take(&self, wait: Wait) -> Result<(u32, Taken)> {
        self.worker.check_slot()?;
        let inner = &self.worker.node.inner;
        loop {
            let index = match self.index.load(Relaxed) {
                UNKNOWN => self.find(wait)?,
                index => index,
            };
            match take(inner, self.worker.slot, index, (&self.name, &self.key), wait)? {
                Some(taken) => return Ok((index, taken)),
                // Another lock has its place by now.
                None => self.index.store(UNKNOWN, Relaxed),
            }
        }
    }

    /// Waits until it is worth trying to take it, and does not take it: for a thread that waits on behalf of an event loop, which
    /// then calls [`NamedLock::acquire`] with [`Wait::Try`]. It counts as a waiter meanwhile. `false`: that was not so within this
    /// time, or `goes_on`, which is asked every few milliseconds, said no.
    ///
    /// # Errors
    /// [`crate::ErrorKind::WrongState`] if the process is no worker any more.
    pub fn wait_until_free(&self, limit: Duration, goes_on: impl FnMut() -> bool) -> Result<bool> {
        self.worker.check()?;
        match self.index.load(Relaxed) {
            UNKNOWN => {
                std::thread::sleep(UNTIL_NEXT_TRY.min(limit));
                Ok(true)
            }
            index => {
                let inner = &self.worker.node.inner;
                Ok(wait_until_free(inner, self.worker.slot, index, &self.key, limit, goes_on))
            }
        }
    }

    fn find(&self, wait: Wait) -> Result<u32> {
        let inner = &self.worker.node.inner;
        let find = || inner.find_singleton(SingletonKind::Lock, &self.key, 0);
        let index = match find() {
            Some(index) => index,
            None => {
                let _session = Session::begin(inner, wait, Operation::Singletons)?;
                match find() {
                    Some(index) => index,
                    None => inner.make_singleton(SingletonKind::Lock, &self.key, 0)?,
                }
            }
        };
        self.index.store(index, Relaxed);
        Ok(index)
    }
}

/// A lock that is held. Dropping it releases the lock.
#[must_use = "the lock is released when this is dropped"]
pub struct LockGuard {
    inner: Arc<Inner>,
    index: u32,
    pid: u32,
    taken: Taken,
    _stays_on_its_thread: PhantomData<*const ()>,
}

impl LockGuard {
    /// How often the lock was taken: a number that only grows, for whoever has to tell this tenure from an older one.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.taken.token
    }

    /// The process that ended while it held the lock, if that is how it became free: what the lock guards may be half-done.
    #[must_use]
    pub fn abandoned_by(&self) -> Option<u32> {
        self.taken.abandoned_by
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        // In a forked child it is its parent's.
        if self.pid == process::pid() {
            let_go(&self.inner, self.index, false);
        }
    }
}
