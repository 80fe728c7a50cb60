//! Two of the three axes (the third, [`Liveness`](crate::Liveness), is the kernel's), and what is derived from all three.
//! They are three types so that nobody can mix them.

use crate::coded::coded;

/// What the heartbeat says. Never a proof of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Progress {
    /// Recent enough.
    Current,
    /// Older than `stall_after`.
    Overdue,
    /// Not asked for: the process starts, leaves, or drains without beating.
    Unwatched,
}

coded! {
    /// What a process says that it is about.
    Intent {
        /// Joined, and its start callback has not ended.
        Starting = 1, "starting";
        /// Takes work.
        Serving = 2, "serving";
        /// Finishes its work, takes no new.
        Draining = 3, "draining";
        /// Its exit callback runs. A master was told to stop.
        Leaving = 4, "leaving";
        /// A master that has not been told to stop, and would say so.
        Listening = 5, "listening";
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

coded! {
    /// How far a generation is. Only moves forward, but for a resumed one.
    Phase {
        /// Its configuration was read; whether it gets workers is open.
        Announced = 1, "announced";
        /// It has, or had, a worker, or its master went on to start them.
        Committed = 2, "committed";
        /// It never got a worker, and never will.
        Abandoned = 3, "abandoned";
    }
}
