//! Compares what headcount said with what the kernel said. Shares no code with the library, and knows of it only what the
//! documents promise. Pure, so that doctored histories show that it fails when it must.

mod callbacks;
mod counts;
mod lives;
mod log;

use std::collections::BTreeMap;
use std::fmt;

use crate::journal::Event;
use crate::kernel::Process;

pub use callbacks::Call;
pub use log::bad_lines;

/// The clocks of kernel, journal and callbacks are read a moment apart, and the wall clock is steered meanwhile.
const SLACK: u64 = 2_000_000;

/// What kind of promise was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// The kernel saw it, and the journal does not say it.
    Missed,
    /// Said twice.
    Twice,
    /// Said of a process that is not there, or is not dead.
    Untrue,
    /// Another signal or exit code than the kernel's.
    WrongCause,
    /// What comes later was said earlier.
    OutOfOrder,
    /// The journal's numbers have a gap, or a reader missed some.
    Gap,
    /// Counts that the journal itself contradicts.
    WrongCount,
    /// A callback did not run, or ran too often.
    Callback,
    /// `status` or `metrics` differ from the kernel at rest.
    Status,
    /// The server did not come to rest, start or stop.
    Hung,
    /// Processor time at rest.
    Busy,
    /// Memory, files or descriptors grow.
    Growth,
    /// A line in the server's log that nobody caused.
    Log,
    /// Messages of the kernel were lost, or the server's folder was removed, so that nothing is proven. Not headcount's fault.
    Blind,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missed => "missed",
            Self::Twice => "twice",
            Self::Untrue => "untrue",
            Self::WrongCause => "wrong cause",
            Self::OutOfOrder => "out of order",
            Self::Gap => "gap",
            Self::WrongCount => "wrong count",
            Self::Callback => "callback",
            Self::Status => "status",
            Self::Hung => "hung",
            Self::Busy => "busy",
            Self::Growth => "growth",
            Self::Log => "log",
            Self::Blind => "blind",
        })
    }
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Of which kind.
    pub class: Class,
    /// What exactly.
    pub text: String,
}

impl Violation {
    /// One of this kind.
    pub fn new(class: Class, text: impl Into<String>) -> Self {
        Self { class, text: text.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.class, self.text)
    }
}

/// All that is known of a server's life so far, at a moment of rest.
pub struct Evidence<'a> {
    /// By the kernel, of all that this program started.
    pub processes: &'a [Process],
    /// Whether every fork and exit is among them, with its status.
    pub complete: bool,
    /// The number of the first event.
    pub first: u64,
    /// By the journal, in the order in which a reader got them.
    pub events: &'a [Event],
    /// What the callbacks wrote.
    pub calls: &'a [Call],
    /// When workers were stopped, frozen or busy, or held the lock, from and to: deaths meanwhile are told later.
    pub hindered: &'a [(u64, u64)],
}

impl Evidence<'_> {
    fn was_hindered(&self, from: u64, to: u64) -> bool {
        self.hindered.iter().any(|&(begun, ended)| begun <= to && from <= ended)
    }
}

/// What was checked, for the summary.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How often, by name.
    pub counts: BTreeMap<&'static str, u64>,
    /// Nanoseconds from the kernel's exit to the journal, of deaths that a surviving process reported while nobody was
    /// stopped, frozen, busy or held the lock.
    pub to_journal: Vec<u64>,
    /// The same until the callback runs.
    pub to_callback: Vec<u64>,
    /// Until the journal, while somebody was.
    pub hindered: Vec<u64>,
}

impl Tally {
    fn add(&mut self, what: &'static str, n: u64) {
        *self.counts.entry(what).or_default() += n;
    }

    /// Adds another's.
    pub fn absorb(&mut self, other: Tally) {
        for (what, n) in other.counts {
            self.add(what, n);
        }
        self.to_journal.extend(other.to_journal);
        self.to_callback.extend(other.to_callback);
        self.hindered.extend(other.hindered);
    }
}

/// Checks all of it.
pub fn check(evidence: &Evidence) -> (Vec<Violation>, Tally) {
    let mut tally = Tally::default();
    let mut found = numbers(evidence.events, evidence.first);
    let owners = lives::owners(evidence);
    found.extend(lives::check(evidence, &owners, &mut tally));
    found.extend(counts::check(evidence, &owners, &mut tally));
    found.extend(callbacks::check(evidence, &owners, &mut tally));
    tally.add("events", evidence.events.len() as u64);
    (found, tally)
}

/// Whether the journal begins with this number and goes on without a gap.
pub fn numbers(events: &[Event], first: u64) -> Vec<Violation> {
    let mut found = Vec::new();
    for pair in events.windows(2) {
        let (before, after) = (pair[0].seq, pair[1].seq);
        if after > before + 1 {
            found.push(Violation::new(Class::Gap, format!("after event #{before} comes {}", pair[1].show())));
        } else if after <= before {
            found.push(Violation::new(
                Class::Twice,
                format!("after event #{before} comes {}", pair[1].show()),
            ));
        }
    }
    if let Some(event) = events.first().filter(|event| event.seq != first) {
        found.push(Violation::new(Class::Gap, format!("the first event is {}", event.show())));
    }
    found
}

#[cfg(test)]
mod tests;
