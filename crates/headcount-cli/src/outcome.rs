//! How a command ends: the exit codes that the manual promises.

use std::fmt;
use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Success.
    Done,
    /// `wait`, `reload`: timed out. `doctor`: problems found.
    NotReached,
    /// `wait`, `reload`: the new generation was abandoned, or never came.
    ReloadFailed,
    /// No such node, it may not be read, or the system failed. The message says which.
    Failed,
    /// `lock`: as the command that it has run, or as it was asked to.
    Exit(u8),
}

impl Outcome {
    /// The exit code. 2 is missing: clap uses it for usage errors.
    pub const fn code(self) -> u8 {
        match self {
            Outcome::Done => 0,
            Outcome::NotReached => 1,
            Outcome::ReloadFailed => 3,
            Outcome::Failed => 4,
            Outcome::Exit(code) => code,
        }
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> ExitCode {
        ExitCode::from(outcome.code())
    }
}

/// The arguments contradict each other, which only the command itself can see. Ends with code 2, as any usage error.
#[derive(Debug)]
pub struct UsageError(pub String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}
