//! What is to be done once is done once in its scope, by one process at a time, three times at most.

use std::collections::BTreeMap;

use super::{Class, Known, SLACK, Tally, Violation};
use crate::deeds::{Deed, ONCES, What};
use crate::journal::{Event, Kind};

/// A run of the node; or a generation, and how often that has ended: one that resumes begins anew.
type Scope = (bool, u64, usize);

/// Checks them.
pub fn check(known: &Known, tally: &mut Tally) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut settled: BTreeMap<(Scope, &str), &Event> = BTreeMap::new();
    for event in
        known.evidence.events.iter().filter(|event| matches!(event.kind, Kind::OnceDone | Kind::OnceFailed))
    {
        let scope = match event.generation {
            0 => (true, run_at(known, event.at, Some(event.seq)), 0),
            generation => (false, generation, ends_before(known, generation, event.at)),
        };
        tally.add("onces settled", 1);
        tally.add("onces that failed, after three deaths", u64::from(event.kind == Kind::OnceFailed));
        if event.kind == Kind::OnceFailed && event.attempts < 3 {
            let text = format!("it was given up too early: {}", event.show());
            found.push(Violation::new(Class::Untrue, text));
        }
        if let Some(before) = settled.insert((scope, &event.name), event) {
            found
                .push(Violation::new(Class::Twice, format!("{}, and again {}", before.show(), event.show())));
        }
    }
    let mut attempts: BTreeMap<(Scope, &str), Vec<(&Deed, u32)>> = BTreeMap::new();
    let mut finished = Vec::new();
    for deed in known.evidence.deeds {
        match &deed.what {
            What::Begun { once, attempt } => {
                let scope = scope_of(known, deed, once);
                attempts.entry((scope, once)).or_default().push((deed, *attempt));
            }
            What::Finished { once, .. } => finished.push((deed, scope_of(known, deed, once), once)),
            _ => {}
        }
    }
    for (&(scope, once), all) in &attempts {
        tally.add("attempts at onces", all.len() as u64);
        in_turn(known, once, all, &mut found);
        let Some(end) = settled.get(&(scope, once)) else { continue };
        for (deed, _) in all.iter().filter(|(deed, _)| deed.at > end.at + SLACK) {
            let text = format!("{once} was begun by {} at {}, after {}", deed.pid, deed.at, end.show());
            found.push(Violation::new(Class::Twice, text));
        }
    }
    for (&(scope, once), event) in settled.iter().filter(|(_, event)| event.kind == Kind::OnceDone) {
        let did = |(deed, of, what): &(&Deed, Scope, &String)| {
            (*of, what.as_str()) == (scope, once)
                && Some(deed.pid) == event.pid
                && deed.at <= event.at + SLACK
        };
        if !finished.iter().any(did) {
            found.push(Violation::new(Class::Untrue, format!("nobody had done it: {}", event.show())));
        }
    }
    // Whoever has done it and lives on has said so.
    for (deed, scope, once) in finished {
        let lives = known.out_at(deed.pid, deed.at).is_none();
        let mut settled = settled.iter().filter(|((of, what), _)| *what == once && is_same(scope, *of));
        if lives && !settled.any(|(_, end)| end.kind == Kind::OnceDone) {
            let text = format!("{once} was done by {}, who lives, and nothing is said of it", deed.pid);
            found.push(Violation::new(Class::Missed, text));
        }
    }
    found
}

/// An orphan that is at it when a new run begins is at it for that one too.
fn is_same(begun: Scope, settled: Scope) -> bool {
    begun == settled || begun.0 && settled.0 && begun.1 + 1 == settled.1
}

/// One after the other, each when the one before had died.
fn in_turn(known: &Known, once: &str, all: &[(&Deed, u32)], found: &mut Vec<Violation>) {
    for pair in all.windows(2) {
        let [(before, first), (after, second)] = pair else { continue };
        let mut say = |what: &str| {
            let text = format!("{once}, attempt {second} of {} at {}: {what}", after.pid, after.at);
            found.push(Violation::new(Class::Twice, text));
        };
        if second <= first {
            say("there was this attempt before");
        } else if known.out_at(before.pid, before.at).is_none_or(|end| end > after.at + SLACK) {
            say(&format!("process {} was still at it", before.pid));
        }
    }
    if let Some((deed, attempt)) = all.iter().find(|(_, attempt)| *attempt > 3) {
        let text = format!("{once} was tried {attempt} times, the last time by {}", deed.pid);
        found.push(Violation::new(Class::Twice, text));
    }
}

fn scope_of(known: &Known, deed: &Deed, once: &str) -> Scope {
    if once == ONCES[0] {
        return (true, run_at(known, deed.at, None), 0);
    }
    let is_start = |event: &&Event| event.kind == Kind::WorkerStarted && event.pid == Some(deed.pid);
    let start = known.evidence.events.iter().filter(|event| event.at <= deed.at + SLACK).rfind(is_start);
    let generation = start.map_or(0, |event| event.generation);
    (false, generation, ends_before(known, generation, deed.at))
}

fn ends_before(known: &Known, generation: u64, at: u64) -> usize {
    let ended = |event: &&Event| event.kind == Kind::GenerationEnded && event.generation == generation;
    known.evidence.events.iter().filter(ended).filter(|event| event.at <= at).count()
}

/// The number of the node's run at that time.
fn run_at(known: &Known, at: u64, seq: Option<u64>) -> u64 {
    let is_start = |event: &&Event| event.kind == Kind::GenerationStarted && event.cause == "start";
    let is_before = |event: &&Event| seq.map_or(event.at <= at, |seq| event.seq < seq);
    known.evidence.events.iter().filter(is_start).filter(is_before).count() as u64
}
