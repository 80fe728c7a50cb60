//! Who has a lock, in words.

use std::time::Duration;

use headcount::{SingletonKind, Visitor};
use headcount_report::age;

/// The holder of a lock.
pub struct Who {
    pub pid: u32,
    worker_id: Option<u32>,
    since: Duration,
}

impl Who {
    /// Who has the lock of this name; `None`: nobody, at this instant.
    pub fn has(visitor: &Visitor, name: &str) -> Option<Who> {
        let all = visitor.node().snapshot().singletons;
        let lock = all.into_iter().find(|x| x.kind == SingletonKind::Lock && x.name == name)?;
        Some(Who { pid: lock.holder?, worker_id: lock.worker_id, since: lock.since })
    }

    /// `worker 2 (process 4711) has held it for 1.2 s`
    pub fn with(&self, what: &str) -> String {
        let pid = self.pid;
        let who = self
            .worker_id
            .map_or_else(|| format!("process {pid}"), |id| format!("worker {id} (process {pid})"));
        format!("{who} has held {what} for {}", age(self.since))
    }
}
