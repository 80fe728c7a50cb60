//! How a command ends: the exit codes, which the manual promises.

use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Done,
    /// `wait`, `reload`: not within the time; `doctor`: there is something to mend.
    NotReached,
    /// `wait`, `reload`: the new generation was abandoned, or never came.
    ReloadFailed,
    /// There is no such node, it may not be read, or the system failed. The message says which.
    Failed,
}

impl Outcome {
    /// The exit code. 2 is missing: it is clap's, for wrong use.
    pub const fn code(self) -> u8 {
        match self {
            Outcome::Done => 0,
            Outcome::NotReached => 1,
            Outcome::ReloadFailed => 3,
            Outcome::Failed => 4,
        }
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> ExitCode {
        ExitCode::from(outcome.code())
    }
}
