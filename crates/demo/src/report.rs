//! Who said what, and when.

use headcount::Event;

/// One thing that was said.
#[derive(Clone, Debug)]
pub struct Report {
    /// When, on the clock of [`crate::clock::boot_ns`]: a line of the log when it arrived, an event when it happened.
    pub at_ns: u64,
    pub said: Said,
}

#[derive(Clone, Debug)]
pub enum Said {
    /// A callback of the Synopsis, in the server's log.
    Callback { callback: Callback, pid: u32 },
    /// Anything else in the server's log that an operator should see.
    Server { level: Level, text: String },
    /// An event of the node's journal.
    Event(Box<Event>),
}

/// The four callbacks of the Synopsis, by the text that each of them logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callback {
    MasterStart,
    MasterExit,
    WorkerStart,
    WorkerExit,
}

impl Callback {
    pub const ALL: [Self; 4] = [Self::MasterStart, Self::MasterExit, Self::WorkerStart, Self::WorkerExit];

    pub const fn text(self) -> &'static str {
        match self {
            Self::MasterStart => "Master start",
            Self::MasterExit => "Master exit",
            Self::WorkerStart => "Worker start",
            Self::WorkerExit => "Worker exit",
        }
    }
}

/// nginx's levels from `warn` up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Warn,
    Error,
    Crit,
    Alert,
    Emerg,
}

impl Level {
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "warn" => Self::Warn,
            "error" => Self::Error,
            "crit" => Self::Crit,
            "alert" => Self::Alert,
            "emerg" => Self::Emerg,
            _ => return None,
        })
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Crit => "crit",
            Self::Alert => "alert",
            Self::Emerg => "emerg",
        }
    }
}
