//! Two of the three axes (the third, [`Liveness`](crate::Liveness), is the kernel's), and what is derived from all three.
//! They are three types so that nobody can mix them.

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

/// What a process says that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Intent {
    /// Joined, and its start callback has not ended.
    Starting,
    /// Takes work.
    Serving,
    /// Finishes its work, takes no new.
    Draining,
    /// Its exit callback runs.
    Leaving,
}

impl Intent {
    pub(crate) fn code(self) -> u32 {
        match self {
            Intent::Starting => 1,
            Intent::Serving => 2,
            Intent::Draining => 3,
            Intent::Leaving => 4,
        }
    }

    /// Garbage reads as serving, the intent that hides nothing.
    pub(crate) fn from_code(code: u32) -> Intent {
        match code {
            1 => Intent::Starting,
            3 => Intent::Draining,
            4 => Intent::Leaving,
            _ => Intent::Serving,
        }
    }
}

/// What is shown. Derived from the three axes at every look, and stored nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Its start callback runs.
    Starting,
    /// At work.
    Serving,
    /// Finishes its work, takes no new.
    Draining,
    /// Its exit callback runs.
    Leaving,
    /// Alive, with an overdue heartbeat.
    Stalled,
    /// Alive, and its master is gone.
    Orphaned,
    /// Gone after leaving properly, its slot not released yet.
    Exited,
    /// Gone without leaving, not reported or not released yet.
    Died,
    /// The reader cannot tell whether it is alive.
    Unknown,
}

impl State {
    /// The name used in C, Lua and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Serving => "serving",
            State::Draining => "draining",
            State::Leaving => "leaving",
            State::Stalled => "stalled",
            State::Orphaned => "orphaned",
            State::Exited => "exited",
            State::Died => "died",
            State::Unknown => "unknown",
        }
    }
}

/// How far a generation is. Only moves forward, but for a resumed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Its configuration was read; whether it gets workers is open.
    Announced,
    /// It has, or had, a worker, or its master went on to start them.
    Committed,
    /// It never got a worker, and never will.
    Abandoned,
}

impl Phase {
    /// The name used in C, Lua and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Phase::Announced => "announced",
            Phase::Committed => "committed",
            Phase::Abandoned => "abandoned",
        }
    }

    pub(crate) fn code(self) -> u32 {
        match self {
            Phase::Announced => 1,
            Phase::Committed => 2,
            Phase::Abandoned => 3,
        }
    }

    pub(crate) fn from_code(code: u32) -> Option<Phase> {
        match code {
            1 => Some(Phase::Announced),
            2 => Some(Phase::Committed),
            3 => Some(Phase::Abandoned),
            _ => None,
        }
    }
}
