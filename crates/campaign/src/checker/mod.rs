//! Compares what headcount said with what the kernel said. Shares no code with the library, and knows of it only what the
//! documents promise. Pure, so that doctored histories show that it fails when it must.

mod callbacks;
mod counts;
mod leaders;
mod lives;
mod locks;
mod log;
mod onces;

use std::collections::BTreeMap;
use std::fmt;

use crate::deeds::Deed;
use crate::journal::{Event, Kind};
use crate::kernel::Process;

pub use callbacks::Call;
pub use log::bad_lines;

/// The clocks of kernel, journal and callbacks are read a moment apart, and the wall clock is steered meanwhile.
const SLACK: u64 = 2_000_000;
/// Between two heartbeats of a worker, and without one before it counts as stalled: what the servers are configured with.
const BEAT: u64 = 250_000_000;
const STALL_AFTER: u64 = 1_500_000_000;

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
    /// Two had a role at one instant.
    TwoLeaders,
    /// Nobody had a role, though somebody who stood for it was fit.
    Leaderless,
    /// Two held a lock at one instant.
    TwoInside,
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
            Self::TwoLeaders => "two leaders",
            Self::Leaderless => "leaderless",
            Self::TwoInside => "two inside",
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
    /// What workers wrote of what only one of them does, in the order of their times.
    pub deeds: &'a [Deed],
    /// When workers were stopped, frozen or busy, or held the lock, from and to: deaths meanwhile are told later.
    pub hindered: &'a [(u64, u64)],
}

impl Evidence<'_> {
    fn was_hindered(&self, from: u64, to: u64) -> bool {
        self.hindered.iter().any(|&(begun, ended)| begun <= to && from <= ended)
    }
}

/// The evidence, in an order in which it is found quickly.
struct Known<'a> {
    evidence: &'a Evidence<'a>,
    by_pid: BTreeMap<i32, Vec<&'a Process>>,
    /// When it was told of a process that it drains, leaves, has ended or is stalled.
    goings: BTreeMap<i32, Vec<u64>>,
    /// When a worker was told to have left: nothing of it runs any more, though its process may take a moment to end.
    exits: BTreeMap<i32, Vec<u64>>,
    /// When it was told that it let a lock go which it had not released.
    let_go: BTreeMap<i32, Vec<u64>>,
}

impl<'a> Known<'a> {
    fn of(evidence: &'a Evidence<'a>) -> Self {
        let (mut by_pid, mut goings) = (BTreeMap::new(), BTreeMap::new());
        let (mut exits, mut let_go) = (BTreeMap::new(), BTreeMap::new());
        for process in evidence.processes {
            by_pid.entry(process.pid).or_insert_with(Vec::new).push(process);
        }
        for event in evidence.events {
            if event.kind == Kind::WorkerExited {
                exits.entry(event.pid.unwrap_or(0)).or_insert_with(Vec::new).push(event.at);
            }
            let list = match event.kind {
                Kind::WorkerDraining | Kind::WorkerExited | Kind::WorkerDied | Kind::WorkerStalled => {
                    &mut goings
                }
                Kind::LockAbandoned => &mut let_go,
                _ => continue,
            };
            list.entry(event.pid.unwrap_or(0)).or_insert_with(Vec::new).push(event.at);
        }
        Self { evidence, by_pid, goings, exits, let_go }
    }

    /// The process that had this number at that time.
    fn process(&self, pid: i32, at: u64) -> Option<&'a Process> {
        let of = self.by_pid.get(&pid)?.iter().filter(|process| process.began <= at + SLACK);
        of.max_by_key(|process| process.began).copied()
    }

    /// When the process that had this number at that time ended.
    fn end_of(&self, pid: i32, at: u64) -> Option<u64> {
        self.process(pid, at)?.ended
    }

    /// The same, or when it has left before it ended.
    fn out_at(&self, pid: i32, at: u64) -> Option<u64> {
        let left = self.exits.get(&pid).into_iter().flatten().copied().filter(|left| *left >= at);
        left.chain(self.end_of(pid, at)).min()
    }

    /// Whether somebody who had this number had ended by then.
    fn has_ended_by(&self, pid: i32, at: u64) -> bool {
        let ended = |process: &&Process| process.ended.is_some_and(|end| end <= at);
        self.by_pid.get(&pid).is_some_and(|of| of.iter().any(ended))
    }

    /// When a process that had a lock at that time was told to have let it go as it left or died.
    fn let_go(&self, pid: i32, from: u64) -> Option<u64> {
        self.let_go.get(&pid)?.iter().copied().filter(|at| *at >= from).min()
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
    /// Without a leader while somebody was fit and nobody was hindered, after one that died or gave the role up.
    pub without_leader: Vec<u64>,
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
        self.without_leader.extend(other.without_leader);
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
    let known = Known::of(evidence);
    found.extend(leaders::check(&known, &mut tally));
    // Who only looks does not know when exactly somebody died.
    if evidence.complete {
        found.extend(onces::check(&known, &mut tally));
        found.extend(locks::check(&known, &mut tally));
    }
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
mod singleton_tests;
#[cfg(test)]
mod tests;
