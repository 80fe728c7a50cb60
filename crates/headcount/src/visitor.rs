//! A process beside a server, which takes part in its node.

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::engine::node_lock::{Operation, Wait};
use crate::engine::session::Session;
use crate::engine::transitions::Transitions;
use crate::engine::visiting;
use crate::error::Result;
use crate::lifecycle::Stage;
use crate::node::Node;
use crate::singleton::{Leader, NamedLock};
use crate::sys::clock;
use crate::worker::Worker;

/// A process that is none of the server's, and has roles and locks of its node: a cron job, a maintenance script.
///
/// It is shown, and neither counted nor reported: of what it had, its end is told as that of a worker is. It needs the right to
/// write the registry, so it runs as its owner, in the server's pid namespace. The server may stop and start meanwhile: what it
/// has stays its own.
///
/// ```no_run
/// # fn migrate() {}
/// # fn f() -> headcount::Result<()> {
/// use headcount::{Visitor, Wait};
///
/// let visitor = Visitor::enter("/run/headcount/nginx.registry".as_ref())?;
/// let schema = visitor.lock("schema")?;
/// let guard = schema.acquire(Wait::Timeout)?;
/// migrate();
/// drop(guard);
/// visitor.leave(Wait::Timeout)?;
/// # Ok(())
/// # }
/// ```
pub struct Visitor {
    worker: Worker,
    /// Until when it does not look at the others, on the boot clock: somebody may have filled the table up, and then a look takes
    /// its time.
    rests_until: AtomicU64,
}

/// How much of the processor's time it may take to look, as a share: one part of so many.
const SHARE: u64 = 10;

impl Visitor {
    /// Takes part in the node whose registry is at `path`. It must be there; whether its server runs does not matter.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] without a registry or its lock file; [`crate::ErrorKind::Permission`] if they are another
    /// user's; [`crate::ErrorKind::WrongState`] in another pid namespace than the server's, after a reboot without a start, or if
    /// this process takes part already; [`crate::ErrorKind::Full`] without a free slot; [`crate::ErrorKind::LockTimeout`] if
    /// somebody else holds the node lock; what [`crate::Observer::open`] says of a registry that cannot be read.
    pub fn enter(path: &Path) -> Result<Visitor> {
        let (inner, slot) = visiting::visit(path)?;
        Ok(Visitor { worker: Worker::new(Node { inner }, 0, slot), rests_until: AtomicU64::new(0) })
    }

    /// Its node.
    #[must_use]
    pub fn node(&self) -> &Node {
        self.worker.node()
    }

    /// As [`Worker::lock`].
    ///
    /// # Errors
    /// As there.
    pub fn lock(&self, name: &str) -> Result<NamedLock> {
        self.worker.lock(name)
    }

    /// As [`Worker::leader`]. Workers come first: a visitor leads as long as no worker stands for the role that is fit.
    /// [`Visitor::tend`] is its heartbeat.
    ///
    /// # Errors
    /// As there.
    pub fn leader(&self, role: &str) -> Result<Leader> {
        self.worker.leader(role)
    }

    /// "I make progress", and a look at what is to be done about roles and locks, for the time in which no server runs. To be
    /// called from its loop at least every `heartbeat_interval`. Never waits.
    pub fn tend(&self) {
        self.worker.beat();
        let begun = clock::boot_ns();
        if begun < self.rests_until.load(Relaxed) {
            return;
        }
        let inner = &self.node().inner;
        if inner.facts().next_of_singletons().is_some() {
            // Who has the lock does the same, or has it looked at again.
            if let Ok(mut session) = Session::begin(inner, Wait::Try, Operation::Singletons) {
                session.settle_singletons();
                session.tidy();
            }
        }
        let end = clock::boot_ns();
        self.rests_until.store(end.saturating_add(SHARE * end.saturating_sub(begun)), Relaxed);
    }

    /// Whether the registry is still where it was found. If not, whoever comes now takes part in another one, and does not see
    /// what this process has.
    #[must_use]
    pub fn is_current(&self) -> bool {
        !self.node().inner.store.is_missing()
    }

    /// It leaves; what it still has becomes free.
    ///
    /// # Errors
    /// [`crate::ErrorKind::LockTimeout`] or [`crate::ErrorKind::Busy`] if somebody else holds the node lock: it is seen to be gone
    /// when the process ends.
    pub fn leave(self, wait: Wait) -> Result<()> {
        self.worker.check()?;
        let index = self.worker.slot.index;
        let session = Session::begin(&self.node().inner, wait, Operation::Leave)?;
        Transitions::new(session, [Stage::LetGo(index), Stage::Exit(index)]).run(|_| {});
        Ok(())
    }
}
