//! What exactly one process of a node does: who leads, what runs once, who holds a lock that has a name.

mod leader;
mod lock;
mod once;

pub use leader::{Leader, LeaderChange};
pub use lock::{LockGuard, NamedLock};
pub use once::{Attempt, Begun, Once, OnceRun, OnceScope, WhoRuns};
