//! How the demo fails.

use std::{fmt, io};

/// Why the demo ended early.
#[derive(Debug)]
pub enum Failure {
    /// By Ctrl-C or a signal.
    Interrupted,
    /// What was reported of the server is wrong.
    Unexpected(Vec<String>),
    Other(String),
}

impl Failure {
    pub fn io(action: &str, error: &io::Error) -> Self {
        Self::Other(format!("cannot {action}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interrupted => f.write_str("interrupted"),
            Self::Unexpected(what) => write!(f, "wrong reports: {}", what.join("; ")),
            Self::Other(text) => f.write_str(text),
        }
    }
}
