//! One process at a time is inside a lock, and whoever comes after one that died inside is told so.

use super::{Class, Known, SLACK, Tally, Violation};
use crate::deeds::What;
use crate::journal::{Event, Kind};

/// Between the report of a death and that of the lock that it left, at most: they are made in one hold of the node lock.
const REPORTED: u64 = 100_000_000;

/// One section.
struct Section {
    pid: i32,
    token: u64,
    from: u64,
    /// When it was left, or when its process died inside.
    until: Option<u64>,
    died: bool,
    told: Option<i32>,
}

/// Checks them.
pub fn check(known: &Known, tally: &mut Tally) -> Vec<Violation> {
    let mut found = Vec::new();
    let sections = sections(known);
    tally.add("sections under a lock", sections.len() as u64);
    for section in &sections {
        tally.add("sections whose process died inside", u64::from(section.died));
        let ended = |pid| known.has_ended_by(pid, section.from + SLACK) || known.let_go(pid, 0).is_some();
        if let Some(told) = section.told.filter(|&told| !ended(told)) {
            let text = format!("{} was told that {told} had died inside, which lives", section.pid);
            found.push(Violation::new(Class::Untrue, text));
        }
    }
    for pair in sections.windows(2) {
        let [before, after] = pair else { continue };
        one_after_the_other(known, before, after, tally, &mut found);
    }
    reported(known, &sections, tally, &mut found);
    found
}

fn sections(known: &Known) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for deed in known.evidence.deeds {
        match deed.what {
            What::Entered { token, abandoned_by } => {
                // One that leaves while it is inside is out from then on, and ends a moment later.
                let end =
                    known.end_of(deed.pid, deed.at).into_iter().chain(known.let_go(deed.pid, deed.at)).min();
                sections.push(Section {
                    pid: deed.pid,
                    token,
                    from: deed.at,
                    until: end,
                    died: end.is_some(),
                    told: abandoned_by,
                });
            }
            What::Left { token } => {
                let is_it = |section: &&mut Section| (section.pid, section.token) == (deed.pid, token);
                if let Some(section) = sections.iter_mut().rev().find(is_it) {
                    (section.until, section.died) = (Some(deed.at), false);
                }
            }
            _ => {}
        }
    }
    sections
}

fn one_after_the_other(
    known: &Known,
    before: &Section,
    after: &Section,
    tally: &mut Tally,
    found: &mut Vec<Violation>,
) {
    let slack = if before.died { SLACK } else { 0 };
    if before.until.is_none_or(|until| until > after.from + slack) {
        let text = format!(
            "{} entered at {}, and {} had been inside since {} and was until {:?}",
            after.pid, after.from, before.pid, before.from, before.until
        );
        found.push(Violation::new(Class::TwoInside, text));
    }
    if after.token <= before.token && before.pid != 0 {
        let text = format!("{} has the token {}, after {}", after.pid, after.token, before.token);
        found.push(Violation::new(Class::OutOfOrder, text));
    }
    // If nobody was between the two who could write nothing of it any more. One who died in the very step in which it took the lock has not
    // counted itself.
    if after.token != before.token + 1 {
        return;
    }
    let came_between = |pid| known.end_of(pid, after.from).is_some_and(|end| end >= before.from);
    let is_known = after.told.is_some_and(|told| told == before.pid || came_between(told));
    if before.died && !starts_between(known, before.from, after.from) {
        tally.add("locks that passed from one who died inside to one who was told", 1);
        if !is_known {
            let text = format!(
                "{} came after {}, who died inside, and was told {:?}",
                after.pid, before.pid, after.told
            );
            found.push(Violation::new(Class::Missed, text));
        }
    } else if after.told.is_some() && !is_known {
        let text = format!("{} came after {}, and was told {:?}", after.pid, before.pid, after.told);
        found.push(Violation::new(Class::Untrue, text));
    }
}

/// Each one who died inside stands in the journal once.
fn reported(known: &Known, sections: &[Section], tally: &mut Tally, found: &mut Vec<Violation>) {
    let abandoned = |event: &&Event| event.kind == Kind::LockAbandoned;
    let mut told: Vec<(i32, u64, &Event)> = Vec::new();
    for event in known.evidence.events.iter().filter(abandoned) {
        let Some(pid) = event.pid else { continue };
        let birth = known.process(pid, event.at).map_or(0, |process| process.began);
        if let Some((.., before)) = told.iter().find(|(p, born, _)| (*p, *born) == (pid, birth)) {
            found
                .push(Violation::new(Class::Twice, format!("{}, and again {}", before.show(), event.show())));
        }
        if !known.has_ended_by(pid, event.at + SLACK) && event.cause != "exit" {
            found.push(Violation::new(Class::Untrue, format!("it lives: {}", event.show())));
        }
        told.push((pid, birth, event));
    }
    for (at, section) in sections.iter().enumerate().filter(|(_, section)| section.died) {
        let birth = known.process(section.pid, section.from).map_or(0, |process| process.began);
        let is_told = told.iter().any(|(pid, born, _)| (*pid, *born) == (section.pid, birth));
        // A start frees what the run before has left.
        if is_told || starts_between(known, section.from, u64::MAX) {
            continue;
        }
        // A lock remembers one: if another one dies inside before the first is reported, the next holder is told each time, and of the
        // first nobody else is.
        let until =
            known.goings.get(&section.pid).into_iter().flatten().filter(|&&told| told >= section.from);
        let told = until.max().copied().unwrap_or(u64::MAX);
        let is_forgotten =
            |next: &Section| next.died && next.until.is_some_and(|end| end <= told.saturating_add(REPORTED));
        if sections[at + 1..].iter().any(is_forgotten) {
            tally.add("abandoned locks not reported, because another one died inside before", 1);
            continue;
        }
        let text = format!("{} died inside, where it was since {}", section.pid, section.from);
        found.push(Violation::new(Class::Missed, text));
    }
}

fn starts_between(known: &Known, from: u64, to: u64) -> bool {
    let is_start = |event: &Event| event.kind == Kind::GenerationStarted && event.cause == "start";
    known.evidence.events.iter().any(|event| is_start(event) && event.at >= from && event.at <= to)
}
