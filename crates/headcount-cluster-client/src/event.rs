//! What a process is told.

use std::time::SystemTime;

/// A process that runs what is to be run once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WhoRuns {
    /// Its host.
    pub host: String,
    /// That process, if it is known.
    pub pid: Option<u32>,
    /// What it is called, if that is known.
    pub process: Option<String>,
    /// Since when, by the clock of its host.
    pub since: Option<SystemTime>,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The agent answers: this is the cluster, and this host's name in it.
    Connected {
        /// The cluster.
        cluster: String,
        /// The host.
        host: String,
    },
    /// The agent does not answer, or refuses: why. What was had is lost. It is tried again, and said once.
    Disconnected {
        /// Why.
        why: String,
    },
    /// etcd does not answer the agent.
    Away {
        /// Why.
        why: String,
    },
    /// It answers again.
    Back,
    /// This process leads the role.
    Elected {
        /// Which.
        role: String,
        /// The number of the tenure. It only grows.
        token: u64,
    },
    /// It leads the role no more, and stands for it on.
    Lost {
        /// Which.
        role: String,
        /// Why.
        why: String,
    },
    /// It is to stop what it does as the leader, and then to call [`crate::Client::leave`].
    GiveUp {
        /// Which.
        role: String,
    },
    /// It has the lock.
    Locked {
        /// The number of the request.
        id: u64,
        /// It only grows from holder to holder.
        token: u64,
    },
    /// The lock could not be had.
    NotLocked {
        /// The number of the request.
        id: u64,
        /// Why.
        why: String,
    },
    /// The lock is lost: another may have it.
    LockLost {
        /// The number of the request.
        id: u64,
        /// Why.
        why: String,
    },
    /// It is to run this, and then to call [`crate::Client::end`].
    Run {
        /// Which.
        key: String,
        /// Its number, from 1 on.
        attempt: u32,
        /// How the attempt before ended: `failed`, `died`, `stalled`, `lost`.
        last: Option<String>,
        /// It only grows from attempt to attempt.
        token: u64,
    },
    /// Another process is at it. It is told again when more is known, or another one is at it; an agent of an older version does not tell it.
    Running {
        /// Which.
        key: String,
        /// That process.
        by: WhoRuns,
    },
    /// The attempt is not its own any more: another may begin one.
    RunLost {
        /// Which.
        key: String,
        /// Why.
        why: String,
    },
    /// It has succeeded.
    Done {
        /// Which.
        key: String,
    },
    /// It has failed too often.
    Failed {
        /// Which.
        key: String,
        /// How often it was tried.
        attempts: u32,
        /// How the last attempt ended.
        last: String,
    },
    /// What was asked for is not possible.
    Error {
        /// What is wrong, and what is allowed.
        error: String,
    },
}
