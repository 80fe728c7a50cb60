//! Two of the three axes (the third, [`Liveness`](crate::Liveness), is the kernel's), and what is derived from all three.
//! They are three types so that nobody can mix them.

use crate::coded::coded;
pub use crate::event::State;

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
