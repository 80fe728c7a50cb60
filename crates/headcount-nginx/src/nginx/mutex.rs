//! Mutexes of ours.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A poisoned mutex only says that there was a panic; what must be consistent lies in the registry.
pub(crate) fn relock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
