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
    /// The generation that this was about.
    pub generation: u64,
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
    let reporters: BTreeMap<u64, i32> =
        evidence.events.iter().map(|event| (event.seq, event.reporter)).collect();
    for call in evidence.calls {
        // Whoever wrote the event died before its callback began: another one runs it when it finds that.
        let handed_on = reporters.get(&call.seq).is_some_and(|&reporter| reporter != call.runner);
        tally.add(
            "callbacks handed on, because who was to run them had died",
            u64::from(handed_on && !call.retry),
        );
        if !call.retry && !handed_on {
            if call.seq < last {
                let text =
                    format!("the callback of #{} ran after that of #{last}, in {}", call.seq, call.runner);
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
    let ended: BTreeMap<i32, u64> =
        evidence.processes.iter().filter_map(|process| Some((process.pid, process.ended?))).collect();
    let node_died = |event: &Event| {
        let later = evidence.events.iter().skip_while(|other| other.seq <= event.seq);
        later
            .take_while(|other| other.kind != Kind::GenerationStarted || other.cause != "start")
            .any(|other| other.cause == "unclean")
    };
    for (event, owner) in evidence.events.iter().zip(owners) {
        let about_itself = event.pid == Some(event.reporter);
        if event.kind.has_callback()
            && event.cause != "unclean"
            && !calls.contains_key(&event.seq)
            && ended.contains_key(&event.reporter)
            && (about_itself || node_died(event))
        {
            tally.add("callbacks that did not run, because who was to run them had died", 1);
            continue;
        }
        let calls = calls.remove(&event.seq).unwrap_or_default();
        let broken = broken.get(&event.seq).copied().unwrap_or(0);
        one(event, &calls, broken, tally, &mut found);
        if let (Kind::WorkerDied, Some(at), Some(owner)) =
            (event.kind, calls.first().and_then(|call| call.at), owner)
        {
            let counts = |ended: &_| evidence.complete && !evidence.was_hindered(*ended, at);
            if let Some(ended) = evidence.processes[*owner].ended.filter(counts) {
                tally.to_callback.push(at.saturating_sub(ended));
            }
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
