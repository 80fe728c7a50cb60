//! Events: past-tense facts, with the counts as they were when they became facts.

use std::time::Duration;

use crate::coded::coded;

/// Identifies a generation of one node. Numbers only grow, also over restarts.
pub type GenerationId = u64;

/// The last number of a generation. No node has ever so many, a Lua number holds it exactly, and what is beyond somebody has made up.
pub(crate) const LAST_GENERATION: GenerationId = 1 << 52;

coded! {
    /// What happened.
    #[non_exhaustive]
    Kind {
        /// A configuration was loaded; its workers are about to come.
        GenerationStarted = 1, "generation_started";
        /// The last worker of a generation is gone, and no more will come.
        GenerationEnded = 2, "generation_ended";
        /// A generation that was announced never got a worker.
        GenerationAbandoned = 3, "generation_abandoned";
        /// A worker has joined.
        WorkerStarted = 4, "worker_started";
        /// A worker takes no new work, and finishes what it has.
        WorkerDraining = 5, "worker_draining";
        /// A worker is leaving properly; it is still counted in the event's counts.
        WorkerExited = 6, "worker_exited";
        /// A worker is gone without having left.
        WorkerDied = 7, "worker_died";
        /// A worker is alive with an overdue heartbeat; it is out of the counts.
        WorkerStalled = 8, "worker_stalled";
        /// A stalled worker beats again; it is in the counts again.
        WorkerRecovered = 9, "worker_recovered";
        /// A master is gone without having left, and its workers live on.
        MasterLost = 10, "master_lost";
        /// A helper (cache manager, privileged agent) has joined.
        HelperStarted = 11, "helper_started";
        /// A helper is gone.
        HelperExited = 12, "helper_exited";
        /// A process died inside a callback; `detail` is the number of the event that it was about.
        CallbackDied = 13, "callback_died";
        /// A callback raised an error; `detail` is the number of the event that it was about.
        CallbackFailed = 14, "callback_failed";
        /// A master has left properly.
        MasterExited = 15, "master_exited";
        /// A worker has a role from now on; `name` and `token` say which, and for which tenure.
        LeaderElected = 16, "leader_elected";
        /// A worker has a role no more: `cause` says why.
        LeaderLost = 17, "leader_lost";
        /// What is to be done once was done; `name` says what.
        OnceDone = 18, "once_done";
        /// What is to be done once was tried as often as allowed, in vain: `cause` says how the last attempt ended.
        OnceFailed = 19, "once_failed";
        /// A process ended while it held a named lock, and may have left things half-done.
        LockAbandoned = 20, "lock_abandoned";
    }
}

impl Kind {
    /// Whether a callback exists for it. The others are in the journal only.
    #[must_use]
    pub const fn has_callback(self) -> bool {
        self.code() <= 10
    }

    /// Whether it is about a role, a once or a lock: it has a name then, and no counts.
    #[must_use]
    pub const fn has_name(self) -> bool {
        matches!(
            self,
            Kind::LeaderElected | Kind::LeaderLost | Kind::OnceDone | Kind::OnceFailed | Kind::LockAbandoned
        )
    }
}

coded! {
    /// Why it happened.
    #[non_exhaustive]
    Cause {
        /// Not known, or not told by this kernel.
        Unknown = 0, "unknown";
        /// The server was started.
        Start = 1, "start";
        /// The configuration was loaded anew by the same master.
        Reload = 2, "reload";
        /// A new binary took over from a running master.
        Upgrade = 3, "upgrade";
        /// Replaces a worker that is gone.
        Respawn = 4, "respawn";
        /// A generation that had ended got workers again (a binary upgrade that was rolled back).
        Resume = 5, "resume";
        /// The node stops: no other generation is there.
        Stop = 6, "stop";
        /// Another generation has taken over.
        Superseded = 7, "superseded";
        /// Ended by a signal, see `signal`.
        Signal = 8, "signal";
        /// Ended by itself, see `exit_code`.
        Exit = 9, "exit";
        /// The heartbeat is overdue.
        Overdue = 10, "overdue";
        /// Found when the node was started again: it had ended uncleanly.
        Unclean = 11, "unclean";
        /// The master never came to start workers.
        NoWorkers = 12, "no_workers";
        /// Told to leave, though its master was not told to stop: the master replaces it.
        Recycled = 13, "recycled";
        /// It stands for the role no more.
        Resigned = 14, "resigned";
        /// It said that it had failed.
        Failed = 15, "failed";
    }
}

coded! {
    /// What a process is for its node.
    #[non_exhaustive]
    Role {
        /// Spawns the workers.
        Master = 1, "master";
        /// Serves.
        Worker = 2, "worker";
        /// Neither.
        Helper = 3, "helper";
        /// None of the server's processes: it takes part beside it, for the node's roles and locks.
        Visitor = 4, "visitor";
    }
}

coded! {
    /// What is shown. Derived from the three axes at every look, and stored nowhere.
    #[non_exhaustive]
    State {
        /// Its start callback runs.
        Starting = 1, "starting";
        /// At work.
        Serving = 2, "serving";
        /// Finishes its work, takes no new.
        Draining = 3, "draining";
        /// Its exit callback runs.
        Leaving = 4, "leaving";
        /// Alive, with an overdue heartbeat.
        Stalled = 5, "stalled";
        /// Alive, and its master is gone.
        Orphaned = 6, "orphaned";
        /// Gone after leaving properly, its slot not released yet.
        Exited = 7, "exited";
        /// Gone without leaving, not reported or not released yet.
        Died = 8, "died";
        /// The reader cannot tell whether it is alive.
        Unknown = 9, "unknown";
    }
}

/// How the run before this one ended, told with the first generation of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PreviousRun {
    /// There was none, or none that this registry knows of.
    None,
    /// It was stopped properly.
    Clean,
    /// Processes died, or lost their master, without the node having been stopped.
    Unclean {
        /// The newest generation that was running.
        generation: GenerationId,
        /// How many workers were running.
        workers: u32,
    },
}

impl PreviousRun {
    /// As words of a record: a code, and of an unclean one its generation and workers.
    pub(crate) fn to_words(run: Option<PreviousRun>) -> (u32, GenerationId, u32) {
        match run {
            None => (0, 0, 0),
            Some(PreviousRun::None) => (1, 0, 0),
            Some(PreviousRun::Clean) => (2, 0, 0),
            Some(PreviousRun::Unclean { generation, workers }) => (3, generation, workers),
        }
    }

    pub(crate) fn from_words(code: u32, generation: GenerationId, workers: u32) -> Option<PreviousRun> {
        match code {
            1 => Some(PreviousRun::None),
            2 => Some(PreviousRun::Clean),
            3 => Some(PreviousRun::Unclean { generation, workers }),
            _ => None,
        }
    }
}

/// The workers of three neighbouring generations.
///
/// A count is the number of live workers that are not stalled. `None`: there is no such generation;
/// `Some(0)`: it is there and has no worker now. Draining workers are alive and counted; their number
/// stands beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Counts {
    /// Of the nearest older generation that is still there.
    pub prev: Option<u32>,
    /// Of the generation itself.
    pub mine: u32,
    /// Of the nearest newer generation that is there.
    pub next: Option<u32>,
    /// Of all generations.
    pub total: u32,
    /// How many of `mine` drain.
    pub draining: u32,
    /// How many of `prev` drain.
    pub prev_draining: u32,
    /// How many of `next` drain.
    pub next_draining: u32,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// Its number in the node's journal: 1, 2, 3, …
    pub seq: u64,
    /// What happened.
    pub kind: Kind,
    /// Why.
    pub cause: Cause,
    /// The generation concerned; 0 if none.
    pub generation: GenerationId,
    /// The process concerned; 0 if none.
    pub pid: u32,
    /// What that process is.
    pub role: Option<Role>,
    /// The worker's number within its generation, where the server gives one.
    pub worker_id: Option<u32>,
    /// The counts at that moment; all 0 if the event has a name.
    pub counts: Counts,
    /// The signal that ended the process, where the kernel tells.
    pub signal: Option<i32>,
    /// The exit code of the process, where the kernel tells.
    pub exit_code: Option<i32>,
    /// With the first generation of a run: how the run before it ended.
    pub previous_run: Option<PreviousRun>,
    /// For `callback_died` and `callback_failed`: the number of the event whose callback it was.
    pub detail: u64,
    /// Of what is about a role, a once or a lock: its name.
    pub name: Option<String>,
    /// Of a leader and of a lock: the number of the tenure.
    pub token: u64,
    /// Of a once: how often it was tried.
    pub attempts: u32,
    /// Wall clock, nanoseconds since 1970. For people: it may jump. Of a process that was found after a reboot: when it gave
    /// its last sign of life.
    pub time_ns: u64,
    /// Nanoseconds since boot, suspend included. To compute with.
    pub boot_ns: u64,
    /// The last heartbeat of the process concerned, on the clock of `boot_ns`; 0 if none, or in an earlier boot.
    pub heartbeat_ns: u64,
    /// Of a process that is gone: when it had joined, on the clock of `boot_ns`; 0 if that is not told.
    pub joined_ns: u64,
    /// Of a process that is gone: in which state it had been.
    pub state: Option<State>,
    /// Since when it had been in that state, on the clock of `boot_ns`, to the millisecond.
    pub state_since_ns: u64,
    /// The process that reported it.
    pub reporter_pid: u32,
}

impl Event {
    /// An event of `kind` about nothing in particular yet: for tests of what reads events. Those that count come from
    /// a journal.
    #[must_use]
    pub fn new(kind: Kind, cause: Cause) -> Event {
        Event {
            seq: 0,
            kind,
            cause,
            generation: 0,
            pid: 0,
            role: None,
            worker_id: None,
            counts: Counts::default(),
            signal: None,
            exit_code: None,
            previous_run: None,
            detail: 0,
            name: None,
            token: 0,
            attempts: 0,
            time_ns: 0,
            boot_ns: 0,
            heartbeat_ns: 0,
            joined_ns: 0,
            state: None,
            state_since_ns: 0,
            reporter_pid: 0,
        }
    }

    /// When a process that is gone had ended, on the clock of `boot_ns`: when that was reported, or, if its whole node was
    /// killed and nobody was there to report it, its last sign of life. If it is of an earlier boot, this clock does not say.
    #[must_use]
    pub fn end_ns(&self) -> u64 {
        let is_unclean = self.cause == Cause::Unclean && self.heartbeat_ns != 0;
        if is_unclean { self.heartbeat_ns.min(self.boot_ns) } else { self.boot_ns }
    }

    /// Of a process that is gone: how old it had become.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        self.since(self.joined_ns)
    }

    /// Of a process that is gone: in which state it had been, and for how long.
    #[must_use]
    pub fn was(&self) -> Option<(State, Duration)> {
        Some((self.state?, self.since(self.state_since_ns)?))
    }

    /// Until its end. A registry may say anything.
    fn since(&self, ns: u64) -> Option<Duration> {
        self.end_ns().checked_sub(ns).filter(|_| ns != 0).map(Duration::from_nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_go_there_and_back() {
        for &kind in Kind::ALL {
            assert_eq!(Kind::from_code(kind.code()), Some(kind));
        }
        for &cause in Cause::ALL {
            assert_eq!(Cause::from_code(cause.code()), Some(cause));
        }
        for &role in Role::ALL {
            assert_eq!(Role::from_code(role.code()), Some(role));
        }
        assert_eq!(Kind::from_code(0), None);
    }
}
