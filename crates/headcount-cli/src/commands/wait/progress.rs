//! The progress: on a terminal one line that is rewritten, elsewhere a new line at each change.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use headcount_report::age;

use crate::clock::Deadline;

/// How often the line is rewritten only because time passes.
const TICK: Duration = Duration::from_millis(200);

/// Between two lines, where they are not rewritten: in a crash loop there is always a change.
const PAUSE: Duration = Duration::from_secs(1);

/// Shows on standard error what is waited for.
pub struct Progress {
    deadline: Deadline,
    terminal: bool,
    shown: String,
    shown_at: Duration,
    dirty: bool,
}

impl Progress {
    pub fn new(deadline: Deadline) -> Progress {
        let terminal = std::io::stderr().is_terminal();
        Progress { deadline, terminal, shown: String::new(), shown_at: Duration::ZERO, dirty: false }
    }

    /// How often to show it even if nothing has changed.
    pub fn tick(&self) -> Option<Duration> {
        self.terminal.then_some(TICK)
    }

    /// What cannot be shown is waited for all the same.
    pub fn show(&mut self, what: &str) {
        let elapsed = self.deadline.elapsed();
        let changed = what != self.shown;
        let since = elapsed.saturating_sub(self.shown_at);
        let due = match self.terminal {
            true => changed || since >= TICK,
            false => changed && (since >= PAUSE || self.shown.is_empty()),
        };
        if !due {
            return;
        }
        what.clone_into(&mut self.shown);
        self.shown_at = elapsed;
        let mut out = std::io::stderr().lock();
        if !self.terminal {
            let _ = writeln!(out, "waiting: {what}");
            return;
        }
        let width = rustix::termios::tcgetwinsize(&out).map_or(80, |size| usize::from(size.ws_col));
        self.dirty = true;
        let _ = write!(out, "\r\x1b[K{}", line(what, elapsed, self.deadline.timeout(), width));
        let _ = out.flush();
    }

    /// Clears the line, for what is said next.
    pub fn end(&mut self) {
        if std::mem::take(&mut self.dirty) {
            let mut out = std::io::stderr().lock();
            let _ = write!(out, "\r\x1b[K");
            let _ = out.flush();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // On the way out with an error, which is said next.
        self.end();
    }
}

/// One line that fits: a longer one could not be rewritten.
fn line(what: &str, elapsed: Duration, timeout: Duration, width: usize) -> String {
    let time = format!("{} of {}", age(elapsed), age(timeout));
    let room = width.saturating_sub(1 + time.len() + 2);
    let mut text: String = what.chars().take(room).collect();
    if what.chars().count() > room {
        text.pop();
        text.push('…');
    }
    format!("{time}  {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_fits_the_terminal() {
        let long = "generation 2: 3 of 4 workers serving, 1 starting (pid 11)".repeat(3);
        for width in [0, 1, 20, 80] {
            let text = line(&long, Duration::from_secs(3), Duration::from_secs(60), width);
            assert!(text.chars().count() < width.max(16), "{width}: {text}");
        }
        insta::assert_snapshot!(
            line("generation 2: 3 of 4 workers serving", Duration::from_millis(1200), Duration::from_secs(60), 80),
            @"1.2 s of 1 m  generation 2: 3 of 4 workers serving"
        );
        insta::assert_snapshot!(
            line(&long, Duration::from_millis(1200), Duration::from_secs(60), 40),
            @"1.2 s of 1 m  generation 2: 3 of 4 wor…"
        );
    }
}
