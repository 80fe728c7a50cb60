//! One line for each delivery and each failure: on standard error, or in the agent's log.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Display;
use std::io::Write;
use std::time::{Duration, Instant};

use headcount_report::plural;

use crate::escape::escape;
use crate::paint;

/// Where messages go.
pub struct Log {
    speaker: Speaker,
    /// The last warning on each subject that is checked again and again.
    said: RefCell<HashMap<&'static str, String>>,
    /// Subjects that never end.
    rare: RefCell<HashMap<&'static str, Rare>>,
}

enum Speaker {
    /// A command.
    Command { name: &'static str, quiet: bool },
    /// The hook of this name, of an agent.
    Hook(String),
}

impl Log {
    /// Of `headcount run`.
    pub fn new(quiet: bool) -> Log {
        Log::of("run", quiet)
    }

    /// Of another command.
    pub fn of(name: &'static str, quiet: bool) -> Log {
        Log::by(Speaker::Command { name, quiet })
    }

    pub fn of_hook(name: &str) -> Log {
        Log::by(Speaker::Hook(name.to_owned()))
    }

    fn by(speaker: Speaker) -> Log {
        Log { speaker, said: RefCell::default(), rare: RefCell::default() }
    }

    /// Progress, unless `--quiet`.
    pub fn note(&self, message: impl Display) {
        let message = message.to_string();
        match &self.speaker {
            Speaker::Command { quiet: true, .. } => {}
            Speaker::Command { name, .. } => write(format_args!("headcount {name}: {}", escape(&message))),
            Speaker::Hook(name) => tracing::info!("hook {name}: {}", escape(&message)),
        }
    }

    /// A problem.
    pub fn warn(&self, message: impl Display) {
        let (paint, reset) = (paint::WARNING, anstyle::Reset);
        let message = message.to_string();
        match &self.speaker {
            Speaker::Command { name, .. } => {
                write(format_args!("headcount {name}: {paint}warning:{reset} {}", escape(&message)));
            }
            Speaker::Hook(name) => tracing::warn!("hook {name}: {}", escape(&message)),
        }
    }

    /// A problem that is found again and again: once, as long as the message stays the same.
    pub fn warn_once(&self, about: &'static str, message: impl Display) {
        let message = message.to_string();
        if self.said.borrow().get(about) != Some(&message) {
            self.warn(&message);
            self.said.borrow_mut().insert(about, message);
        }
    }

    /// A problem that comes again and again, each time another: at most one line in ten seconds.
    pub fn warn_rarely(&self, about: &'static str, message: impl Display) {
        match self.rare.borrow_mut().entry(about).or_default().admit(Instant::now()) {
            None => {}
            Some(0) => self.warn(message),
            Some(hidden) => {
                self.warn(format_args!("{message} ({} like this before)", plural(hidden, "more warning")));
            }
        }
    }

    /// The problem is over: the next one is reported again.
    pub fn is_well(&self, about: &'static str) {
        self.said.borrow_mut().remove(about);
    }
}

/// When something was last said, and how often it was not since.
#[derive(Default)]
struct Rare {
    said: Option<Instant>,
    hidden: u64,
}

impl Rare {
    const PAUSE: Duration = Duration::from_secs(10);

    /// Whether it is to be said again; if so, how many were not said before.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.said.is_some_and(|said| now.saturating_duration_since(said) < Rare::PAUSE) {
            self.hidden = self.hidden.saturating_add(1);
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.hidden))
    }
}

fn write(line: std::fmt::Arguments<'_>) {
    // Whoever read our messages may be gone. Events must be delivered all the same.
    let _ = writeln!(anstream::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_is_said_once_in_ten_seconds() {
        let begin = Instant::now();
        let mut rare = Rare::default();
        let said: Vec<_> =
            (0..25_000).filter_map(|ms| Some((ms, rare.admit(begin + Duration::from_millis(ms))?))).collect();
        assert_eq!(said, [(0, 0), (10_000, 9_999), (20_000, 9_999)]);
    }
}
