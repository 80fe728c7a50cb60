//! The roles, onces and locks of one process.

use std::sync::Arc;

use headcount_core::{ErrorKind, Leader, LockGuard, NamedLock, OnceRun, OnceScope};

use crate::border::entry::Failure;

/// What is true of one process only, as all of [`super::process::Process`].
#[derive(Default)]
pub(crate) struct Singletons {
    pub(crate) leaders: Vec<Leader>,
    pub(crate) runs: Vec<(OnceScope, String, OnceRun)>,
    pub(crate) locks: Vec<Arc<NamedLock>>,
    pub(crate) held: Vec<Held>,
}

/// A lock that this process holds.
pub(crate) struct Held {
    pub(crate) name: String,
    guard: LockGuard,
}

// SAFETY: a guard only stays on its thread so that nobody sends it to another by mistake. C says itself when, and by which
// thread, a lock is released; releasing it elsewhere touches nothing that is the thread's own.
unsafe impl Send for Held {}

impl Held {
    pub(crate) fn new(name: &str, guard: LockGuard) -> Held {
        Held { name: name.to_owned(), guard }
    }
}

impl Singletons {
    /// This process is leaving. What it holds is not released, but left to the next, who is told so.
    pub(crate) fn leave(&mut self) {
        let left = std::mem::take(self);
        left.held.into_iter().for_each(|held| held.guard.leave_to_the_next());
    }

    pub(crate) fn leader(&self, role: &str) -> Result<&Leader, Failure> {
        let found = self.leaders.iter().find(|leader| leader.role() == role);
        found.ok_or_else(|| {
            Failure::new(ErrorKind::NotFound, format!("this process does not stand for the role {role}"))
        })
    }
}
