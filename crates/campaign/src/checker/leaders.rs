//! At most one leader at any instant, whose tokens only grow; told in order; and always one if any worker is fit.

use std::collections::BTreeMap;

use super::{BEAT, Class, Known, SLACK, STALL_AFTER, Tally, Violation};
use crate::deeds::{Deed, ROLE, What};
use crate::journal::{Event, Kind};

/// What one leader wrote.
struct Tenure {
    pid: i32,
    /// It had the role at some instant before this one.
    first: u64,
    /// When it looked for the last time and found that it leads, at the earliest.
    last: u64,
    elected: Option<u64>,
    stopped: Option<u64>,
}

/// Checks them.
pub fn check(known: &Known, tally: &mut Tally) -> Vec<Violation> {
    let mut found = Vec::new();
    let tenures = tenures(known.evidence.deeds, &mut found);
    tally.add("tenures of leaders that did something", tenures.len() as u64);
    one_at_a_time(&tenures, &mut found);
    journal(known, &tenures, tally, &mut found);
    found
}

fn tenures(deeds: &[Deed], found: &mut Vec<Violation>) -> BTreeMap<u64, Tenure> {
    let mut tenures: BTreeMap<u64, Tenure> = BTreeMap::new();
    for deed in deeds {
        let (token, from) = match deed.what {
            What::Elected { token } | What::Stopped { token } => (token, None),
            What::Led { token, from } => (token, Some(from)),
            _ => continue,
        };
        let new = || Tenure { pid: deed.pid, first: deed.at, last: 0, elected: None, stopped: None };
        let tenure = tenures.entry(token).or_insert_with(new);
        if tenure.pid != deed.pid {
            let text = format!("{} and {} both have the token {token}: {deed:?}", tenure.pid, deed.pid);
            found.push(Violation::new(Class::Twice, text));
        }
        tenure.first = tenure.first.min(deed.at);
        tenure.last = tenure.last.max(from.unwrap_or(0));
        match deed.what {
            What::Elected { .. } => tenure.elected = Some(deed.at),
            What::Stopped { .. } => tenure.stopped = Some(deed.at),
            _ => {}
        }
    }
    tenures
}

/// Nobody leads after somebody with a greater token has.
fn one_at_a_time(tenures: &BTreeMap<u64, Tenure>, found: &mut Vec<Violation>) {
    let mut next: Option<(u64, &Tenure)> = None;
    for (token, tenure) in tenures.iter().rev() {
        if let Some((later, successor)) = next.filter(|(_, successor)| tenure.last > successor.first) {
            let text = format!(
                "{} led with the token {token} at {}, and {} had led with {later} at {}",
                tenure.pid, tenure.last, successor.pid, successor.first
            );
            found.push(Violation::new(Class::TwoLeaders, text));
        }
        if next.is_none_or(|(_, successor)| tenure.first < successor.first) {
            next = Some((*token, tenure));
        }
    }
}

fn journal(known: &Known, tenures: &BTreeMap<u64, Tenure>, tally: &mut Tally, found: &mut Vec<Violation>) {
    let mut before: Option<&Event> = None;
    let mut left: Option<&Event> = None;
    let mut lost: Option<&Event> = None;
    let mut newest = 0;
    let mut all: BTreeMap<u64, &Event> = BTreeMap::new();
    for event in known.evidence.events {
        match event.kind {
            // What a run before has left is gone without a word, but what its orphans have.
            Kind::GenerationStarted if event.cause == "start" => {
                (left, before, lost) = (before.or(left), None, None);
            }
            Kind::LeaderElected if event.name == ROLE => {
                tally.add("elections", 1);
                if event.token <= newest {
                    let text = format!("the token was {newest} before: {}", event.show());
                    found.push(Violation::new(Class::OutOfOrder, text));
                }
                let lives = |old: &&Event| {
                    let end = known.end_of(old.pid.unwrap_or(0), old.at);
                    end.is_none_or(|end| end > event.at + SLACK) && known.evidence.complete
                };
                if let Some(before) = before.or(left.filter(lives)) {
                    let text = format!("{} has not lost it: {}", before.show(), event.show());
                    found.push(Violation::new(Class::TwoLeaders, text));
                }
                if let Some(lost) = lost {
                    handed_over(known, tenures, (lost, event), tally, found);
                }
                newest = event.token.max(newest);
                all.insert(event.token, event);
                (left, before, lost) = (None, Some(event), None);
            }
            Kind::LeaderLost if event.name == ROLE => {
                if before.or(left).is_none_or(|before| before.token != event.token) {
                    let text = format!("it had not been elected: {}", event.show());
                    found.push(Violation::new(Class::OutOfOrder, text));
                }
                (left, before, lost) = (None, None, Some(event));
            }
            _ => {}
        }
    }
    for (token, tenure) in tenures {
        if all.get(token).is_none_or(|event| event.pid != Some(tenure.pid)) {
            let text = format!("{} led with the token {token}, and was not elected", tenure.pid);
            found.push(Violation::new(Class::Untrue, text));
        }
    }
}

/// From one leader to the next.
fn handed_over(
    known: &Known,
    tenures: &BTreeMap<u64, Tenure>,
    (lost, elected): (&Event, &Event),
    tally: &mut Tally,
    found: &mut Vec<Violation>,
) {
    let in_order = matches!(lost.cause.as_str(), "superseded" | "stop" | "recycled" | "resigned");
    let stopped = tenures.get(&lost.token).and_then(|tenure| tenure.stopped);
    let begun = tenures.get(&elected.token).and_then(|tenure| tenure.elected);
    if let (true, Some(stopped), Some(begun)) = (in_order, stopped, begun) {
        tally.add("roles that were handed over in order", 1);
        // Whoever takes longer to stop than a heartbeat may take loses it.
        if stopped > begun && !known.evidence.was_hindered(begun.saturating_sub(STALL_AFTER + BEAT), stopped)
        {
            let text = format!("{} had not stopped until {stopped}, {begun} was its end", lost.show());
            found.push(Violation::new(Class::OutOfOrder, text));
        }
    }
    let death = known.end_of(lost.pid.unwrap_or(0), lost.at);
    let hung = lost.cause == "overdue";
    let from = death.filter(|&death| death < lost.at).unwrap_or(lost.at);
    let Some(fit) = fit_since(known, elected.at) else { return };
    let from = from.max(fit);
    let gap = elected.at.saturating_sub(from);
    if from >= elected.at || known.evidence.was_hindered(from, elected.at) {
        return;
    }
    if !hung {
        tally.without_leader.push(gap);
    }
    if gap > STALL_AFTER {
        let text = format!(
            "nobody had it for {} ms, and a worker that stood for it was fit: {}, then {}",
            gap / 1_000_000,
            lost.show(),
            elected.show()
        );
        found.push(Violation::new(Class::Leaderless, text));
    }
}

/// Since when somebody was fit to lead all the time until then: it stands for the role, has had time for a heartbeat, lives, and neither
/// drains nor leaves nor is stalled.
fn fit_since(known: &Known, until: u64) -> Option<u64> {
    let stands = known.evidence.deeds.iter().filter(|deed| deed.what == What::Stands && deed.at < until);
    let is_fit = |deed: &&Deed| {
        let goes = known.goings.get(&deed.pid).into_iter().flatten();
        let mut goes = goes.filter(|at| (deed.at..=until + SLACK).contains(at));
        goes.next().is_none() && known.end_of(deed.pid, deed.at).is_none_or(|end| end > until)
    };
    stands.filter(is_fit).map(|deed| deed.at + 2 * BEAT).min()
}
