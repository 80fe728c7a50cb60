//! Each event that has a callback has had it once, in the order of the events; and again only where one died in it.

use std::collections::BTreeMap;

use super::lives::Owners;
use super::{Class, Evidence, Tally, Violation};
use crate::journal::{Event, Kind};

/// What one callback wrote.
#[derive(Clone, Debug)]
pub struct Call {
    /// The event that it was about.
    pub seq: u64,
    /// Whether it said that somebody had died in it before.
    pub retry: bool,
    /// The process that ran it.
    pub runner: i32,
    /// When, on CLOCK_BOOTTIME in nanoseconds, where it knows.
    pub at: Option<u64>,
}

/// Checks them.
pub fn check(evidence: &Evidence, owners: &Owners, tally: &mut Tally) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut calls: BTreeMap<u64, Vec<&Call>> = BTreeMap::new();
    let mut last = 0;
    for call in evidence.calls {
        if !call.retry {
            if call.seq < last {
                let text = format!("the callback of #{} ran after that of #{last}, in {}", call.seq, call.runner);
                found.push(Violation::new(Class::OutOfOrder, text));
            }
            last = last.max(call.seq);
        }
        calls.entry(call.seq).or_default().push(call);
    }
    let mut broken: BTreeMap<u64, u64> = BTreeMap::new();
    for event in evidence.events {
        if let (Kind::CallbackDied | Kind::CallbackFailed, Some(about)) = (event.kind, event.about) {
            *broken.entry(about).or_default() += 1;
        }
    }
    for (event, owner) in evidence.events.iter().zip(owners) {
        let calls = calls.remove(&event.seq).unwrap_or_default();
        let broken = broken.get(&event.seq).copied().unwrap_or(0);
        one(event, &calls, broken, tally, &mut found);
        if let (Kind::WorkerDied, Some(at), Some(owner)) =
            (event.kind, calls.first().and_then(|call| call.at), owner)
            && let Some(ended) = evidence.processes[*owner].ended
        {
            tally.to_callback.push(at.saturating_sub(ended));
        }
    }
    for (seq, calls) in calls {
        let text = format!("a callback about #{seq}, which is not in the journal, in {}", calls[0].runner);
        found.push(Violation::new(Class::Callback, text));
    }
    found
}

fn one(event: &Event, calls: &[&Call], broken: u64, tally: &mut Tally, found: &mut Vec<Violation>) {
    let first = calls.iter().filter(|call| !call.retry).count() as u64;
    let again = calls.len() as u64 - first;
    tally.add("callbacks", calls.len() as u64);
    // Nobody is told what died with the whole node.
    let promised = event.kind.has_callback() && event.cause != "unclean";
    let mut say = |what: &str| {
        let text = format!("{what} ({first} times, {again} again, {broken} broken): {}", event.show());
        found.push(Violation::new(Class::Callback, text));
    };
    if first > 1 {
        say("its callback ran twice");
    } else if !promised && first > 0 {
        say("it has no callback, and one ran");
    } else if again > broken {
        say("its callback ran again, and nobody had died in it");
    } else if promised && calls.is_empty() && broken == 0 {
        say("its callback did not run");
    }
    tally.add("callbacks that ran again", again);
}
