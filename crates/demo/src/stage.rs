//! The server, its two witnesses, and what is expected of them.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use headcount::Kind;

use crate::clock::boot_ns;
use crate::failure::Failure;
use crate::journal::Journal;
use crate::log::LogTail;
use crate::options::Options;
use crate::report::{Callback, Report, Said};
use crate::screen::Screen;
use crate::server::Server;

/// How often the journal is looked at. Its events carry their own time, so this delays only their display.
const TICK: Duration = Duration::from_millis(10);
/// An act is over when everything expected has come, and nothing more for this long.
const SETTLED: Duration = Duration::from_millis(400);
/// An act has failed if what was expected has not come by then.
const LIMIT: Duration = Duration::from_secs(10);

/// Something that happens to the server.
pub struct Act<'a> {
    pub title: &'a str,
    /// The command that a person would type.
    pub how: &'a str,
    /// What the library that the Synopsis was written for reports of it.
    pub original: &'a str,
    pub expected: &'a Expected,
}

/// What must be reported of one act: each of these exactly so many times.
pub struct Expected {
    pub callbacks: &'static [(Callback, usize)],
    pub events: &'static [(Kind, usize)],
    /// What the server itself must complain about; it may complain about nothing else.
    pub complaint: Option<&'static str>,
}

impl Expected {
    /// Every difference, in words.
    fn compare(&self, reports: &[Report]) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut mark = |what: &str, expected: usize, came: usize| {
            if came != expected {
                wrong.push(format!("{what}: {came} instead of {expected}"));
            }
        };
        for callback in Callback::ALL {
            let expected = self.callbacks.iter().find(|(c, _)| *c == callback).map_or(0, |(_, n)| *n);
            let came = reports
                .iter()
                .filter(|r| matches!(r.said, Said::Callback { callback: c, .. } if c == callback))
                .count();
            mark(&format!("callback {}", callback.text()), expected, came);
        }
        for &kind in Kind::ALL.iter().filter(|kind| kind.has_callback()) {
            let expected = self.events.iter().find(|(k, _)| *k == kind).map_or(0, |(_, n)| *n);
            let came = reports
                .iter()
                .filter(|r| matches!(&r.said, Said::Event(event) if event.kind == kind))
                .count();
            mark(kind.name(), expected, came);
        }
        let complaints = || {
            reports.iter().filter_map(|r| match &r.said {
                Said::Server { level, text } if *level >= crate::report::Level::Error => Some(text.as_str()),
                _ => None,
            })
        };
        let unsaid = |complaint: &&str| !complaints().any(|text| text.contains(*complaint));
        if let Some(complaint) = self.complaint.filter(unsaid) {
            wrong.push(format!("the server did not say \"{complaint}\""));
        }
        wrong.extend(
            complaints()
                .filter(|text| !self.complaint.is_some_and(|complaint| text.contains(complaint)))
                .map(|text| format!("the server says \"{text}\"")),
        );
        wrong
    }

    fn met(&self, reports: &[Report]) -> bool {
        self.compare(reports).is_empty()
    }
}

pub struct Stage {
    server: Server,
    log: LogTail,
    journal: Option<Journal>,
    screen: Screen,
    interrupted: Arc<AtomicBool>,
    said: usize,
}

impl Stage {
    pub fn build(options: &Options, screen: Screen, interrupted: Arc<AtomicBool>) -> Result<Self, Failure> {
        let server = Server::lay_out(options).map_err(|error| Failure::io("lay out the server", &error))?;
        let log = LogTail::follow(&server.log()).map_err(|error| Failure::io("follow error.log", &error))?;
        Ok(Self { server, log, journal: None, screen, interrupted, said: 0 })
    }

    pub fn server(&self) -> &Server {
        &self.server
    }

    pub fn screen(&mut self) -> &mut Screen {
        &mut self.screen
    }

    /// How many reports were shown.
    pub fn said(&self) -> usize {
        self.said
    }

    /// Does `cause`, shows what is said of it, and compares that with what must be said.
    pub fn act(
        &mut self,
        act: &Act<'_>,
        cause: impl FnOnce(&Server) -> io::Result<()>,
    ) -> Result<(), Failure> {
        self.check_interrupt()?;
        let expected = act.expected;
        self.screen.act(act.title, act.how, act.original);
        let began = boot_ns();
        let caused = cause(&self.server);
        // Ctrl-C also reaches a server that is just starting: not a failure of the server.
        self.check_interrupt()?;
        caused.map_err(|error| Failure::io(act.how, &error))?;

        let mut reports = Vec::new();
        let mut latest = boot_ns();
        loop {
            let new = self.listen()?;
            self.check_interrupt()?;
            if !new.is_empty() {
                latest = boot_ns();
            }
            for report in &new {
                self.screen.report(report, began);
            }
            self.said += new.len();
            reports.extend(new);
            let quiet = boot_ns() - latest;
            if u128::from(quiet) > SETTLED.as_nanos() && expected.met(&reports) {
                return Ok(());
            }
            if u128::from(boot_ns() - began) > LIMIT.as_nanos() {
                break;
            }
        }
        let wrong = expected.compare(&reports);
        self.screen.wrong(&wrong);
        Err(Failure::Unexpected(wrong))
    }

    /// What has been said since the last time, in the order of its time.
    fn listen(&mut self) -> Result<Vec<Report>, Failure> {
        // The log first: what a callback says of an event must not be shown before the event.
        let mut reports = self.log.read(TICK).map_err(|error| Failure::io("read error.log", &error))?;
        self.find_journal()?;
        if let Some(journal) = &mut self.journal {
            reports.extend(journal.read()?);
        }
        reports.sort_by_key(|report| report.at_ns);
        Ok(reports)
    }

    fn find_journal(&mut self) -> Result<(), Failure> {
        if self.journal.is_none() {
            if let Ok(master) = self.server.master() {
                self.journal = Journal::of_master(master.as_raw_nonzero().get())?;
            }
        }
        Ok(())
    }

    fn check_interrupt(&self) -> Result<(), Failure> {
        if self.interrupted.load(Ordering::Relaxed) { Err(Failure::Interrupted) } else { Ok(()) }
    }

    /// For a failure: what the server last wrote.
    pub fn show_log_end(&self) {
        let text = fs::read_to_string(self.server.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("the end of {}:", self.server.log().display());
        for line in &lines[lines.len().saturating_sub(40)..] {
            eprintln!("  {line}");
        }
    }
}
