//! The roles, onces and locks of one process.

use std::collections::HashMap;
use std::sync::Arc;

use headcount_core::{ErrorKind, GenerationId, Leader, NamedLock, OnceRun, OnceScope, Wait};

use crate::border::entry::Failure;

/// What is true of one process only, as all of [`super::process::Process`].
#[derive(Default)]
pub(crate) struct Singletons {
    pub(crate) leaders: Vec<Leader>,
    pub(crate) runs: Vec<(OnceScope, String, OnceRun)>,
    /// By their names: those that are in use, and some that were.
    locks: HashMap<String, Arc<Lock>>,
}

/// So many locks are remembered that nobody uses: servers make names of their keys.
const MOST_UNUSED: usize = 256;

/// A lock that has a name.
pub struct Lock {
    pub(crate) named: NamedLock,
    /// That of the worker who found it, and for whom it is of use.
    generation: GenerationId,
}

impl Lock {
    /// Takes it; gives the token, and who died inside.
    pub(crate) fn acquire(&self, wait: Wait) -> Result<(u64, Option<u32>), Failure> {
        Ok(self.named.hold(wait)?)
    }

    pub(crate) fn release(&self) -> Result<(), Failure> {
        if self.named.release() { Ok(()) } else { Err(not_held(self.named.name())) }
    }

    /// Whether this process has it, or a thread of it or a host has something to do with it.
    fn is_in_use(self: &Arc<Lock>) -> bool {
        Arc::strong_count(self) > 1 || self.named.is_held()
    }
}

fn not_held(name: &str) -> Failure {
    Failure::new(ErrorKind::WrongState, format!("this process does not hold the lock {name}"))
}

impl Singletons {
    /// This process is leaving. What it holds is not released, but left to the next, who is told so.
    pub(crate) fn leave(&mut self) {
        let left = std::mem::take(self);
        left.locks.values().for_each(|lock| lock.named.leave_to_the_next());
    }

    pub(crate) fn leader(&self, role: &str) -> Result<&Leader, Failure> {
        let found = self.leaders.iter().find(|leader| leader.role() == role);
        found.ok_or_else(|| {
            Failure::new(ErrorKind::NotFound, format!("this process does not stand for the role {role}"))
        })
    }

    /// One that the worker of another generation has found is found again: this process may have left that.
    pub(crate) fn known_lock(&self, name: &str, generation: GenerationId) -> Option<&Arc<Lock>> {
        self.locks.get(name).filter(|lock| lock.generation == generation || lock.is_in_use())
    }

    /// The lock of this name that this process has.
    pub(crate) fn held_lock(&self, name: &str) -> Result<Arc<Lock>, Failure> {
        self.locks.get(name).cloned().ok_or_else(|| not_held(name))
    }

    /// Makes it the lock of its name, unless another thread has just done that: there is one for all threads.
    pub(crate) fn add_lock(&mut self, named: NamedLock, generation: GenerationId) -> Arc<Lock> {
        if let Some(known) = self.known_lock(named.name(), generation) {
            return known.clone();
        }
        if self.locks.len() >= MOST_UNUSED {
            self.locks.retain(|_, lock| lock.is_in_use());
        }
        let lock = Arc::new(Lock { named, generation });
        self.locks.insert(lock.named.name().to_owned(), lock.clone());
        lock
    }
}
