//! One line on standard error for each delivery and each failure.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Display;
use std::io::Write;

use crate::escape::escape;
use crate::paint;

/// Where messages go.
pub struct Log {
    quiet: bool,
    /// The last warning on each subject that is checked again and again.
    said: RefCell<HashMap<&'static str, String>>,
}

impl Log {
    pub fn new(quiet: bool) -> Log {
        Log { quiet, said: RefCell::default() }
    }

    /// Progress, unless `--quiet`.
    pub fn note(&self, message: impl Display) {
        if !self.quiet {
            write(format_args!("headcount run: {}", escape(&message.to_string())));
        }
    }

    /// A problem.
    pub fn warn(&self, message: impl Display) {
        let (paint, reset) = (paint::WARNING, anstyle::Reset);
        let message = message.to_string();
        write(format_args!("headcount run: {paint}warning:{reset} {}", escape(&message)));
    }

    /// A problem that is found again and again: once, as long as the message stays the same.
    pub fn warn_once(&self, about: &'static str, message: impl Display) {
        let message = message.to_string();
        if self.said.borrow().get(about) != Some(&message) {
            self.warn(&message);
            self.said.borrow_mut().insert(about, message);
        }
    }

    /// The problem is over: the next one is reported again.
    pub fn is_well(&self, about: &'static str) {
        self.said.borrow_mut().remove(about);
    }
}

fn write(line: std::fmt::Arguments<'_>) {
    // Whoever read our messages may be gone. Events must be delivered all the same.
    let _ = writeln!(anstream::stderr().lock(), "{line}");
}
