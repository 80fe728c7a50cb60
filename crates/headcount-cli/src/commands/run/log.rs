//! One line on standard error for each delivery and each failure.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Display;
use std::io::Write;

use crate::paint;
use crate::plain::plain;

/// Where messages go.
pub struct Log {
    quiet: bool,
    /// The last warning about each thing that is looked at again and again.
    said: RefCell<HashMap<&'static str, String>>,
}

impl Log {
    pub fn new(quiet: bool) -> Log {
        Log { quiet, said: RefCell::default() }
    }

    /// What goes as it should.
    pub fn note(&self, message: impl Display) {
        if !self.quiet {
            write(format_args!("headcount run: {}", plain(&message.to_string())));
        }
    }

    /// What went wrong.
    pub fn warn(&self, message: impl Display) {
        let (paint, reset) = (paint::WARNING, anstyle::Reset);
        let message = message.to_string();
        write(format_args!("headcount run: {paint}warning:{reset} {}", plain(&message)));
    }

    /// The same about something that is looked at again and again: once, as long as it stays the same.
    pub fn warn_once(&self, about: &'static str, message: impl Display) {
        let message = message.to_string();
        if self.said.borrow().get(about) != Some(&message) {
            self.warn(&message);
            self.said.borrow_mut().insert(about, message);
        }
    }

    /// Nothing is wrong with it any more.
    pub fn is_well(&self, about: &'static str) {
        self.said.borrow_mut().remove(about);
    }
}

fn write(line: std::fmt::Arguments<'_>) {
    // Whoever read our messages may be gone. Events are to be delivered all the same.
    let _ = writeln!(anstream::stderr().lock(), "{line}");
}
