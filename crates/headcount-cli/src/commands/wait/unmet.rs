//! Conditions that are not met yet, in words.

use std::collections::BTreeSet;
use std::time::Duration;

use headcount::ProcessStatus;
use headcount_report::age;

use super::processes::describe;
use crate::alive::may_be_alive;

/// So many processes that are gone get a line of their own.
const GONE: usize = 3;

/// A condition that is not met.
#[derive(Clone, Debug)]
pub struct Unmet {
    /// Why not. Without ages, so that it changes only when something has.
    pub reason: String,
    /// The processes that stand in the way.
    pub processes: Vec<ProcessStatus>,
}

impl Unmet {
    /// One that no process stands in the way of.
    pub fn of(reason: impl Into<String>) -> Unmet {
        Unmet { reason: reason.into(), processes: Vec::new() }
    }
}

/// All of them, in one line.
pub fn line(unmet: &[Unmet]) -> String {
    unmet.iter().map(|unmet| unmet.reason.as_str()).collect::<Vec<_>>().join("; ")
}

/// The message of a time-out, with a line for each process that stood in the way; of those that are gone, only the last.
pub fn not_reached(timeout: Duration, unmet: &[Unmet]) -> String {
    let mut text = format!("timed out after {}: {}", age(timeout), line(unmet));
    let mut told = BTreeSet::new();
    let processes =
        unmet.iter().flat_map(|unmet| &unmet.processes).filter(|p| told.insert((p.pid, p.generation)));
    let (alive, mut gone): (Vec<_>, Vec<_>) = processes.partition(|p| may_be_alive(p));
    gone.sort_by_key(|p| p.age);
    for p in alive.into_iter().chain(gone.iter().copied().take(GONE)) {
        text.push_str("\n  ");
        text.push_str(&describe(p));
    }
    if gone.len() > GONE {
        text.push_str(&format!("\n  and {} more that are gone", gone.len() - GONE));
    }
    text
}
