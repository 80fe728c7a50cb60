//! Each worker that joined has one start and one end, in this order, with what the kernel says of it.

use std::collections::BTreeMap;

use super::{Class, Evidence, SLACK, Tally, Violation};
use crate::journal::{Event, Kind};
use crate::kernel::Process;

/// Which process each event is about, as an index into the evidence.
pub type Owners = Vec<Option<usize>>;

/// Finds them: of those with this number, the last one that had begun by then.
pub fn owners(evidence: &Evidence) -> Owners {
    let mut by_pid: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    for (at, process) in evidence.processes.iter().enumerate() {
        by_pid.entry(process.pid).or_default().push(at);
    }
    // Who only looks sees a process some time after its fork, and on a busy machine long after.
    let slack = if evidence.complete { SLACK } else { 1_000_000_000 };
    let owner = |event: &Event| {
        let known = by_pid.get(&event.pid?)?;
        let until = event.at + slack;
        let newest = |fits: &dyn Fn(&Process) -> bool| {
            let begun = known.iter().copied().filter(|&at| evidence.processes[at].began <= until);
            begun.filter(|&at| fits(&evidence.processes[at])).max_by_key(|&at| evidence.processes[at].began)
        };
        // Its number may have been used again before its end was told.
        let has_ended = |process: &Process| process.ended.is_some_and(|ended| ended <= until);
        let dead = matches!(event.kind, Kind::WorkerDied | Kind::MasterLost).then(|| newest(&has_ended));
        dead.flatten().or_else(|| newest(&|_| true))
    };
    evidence.events.iter().map(owner).collect()
}

fn is_about_a_worker(kind: Kind) -> bool {
    use Kind::{WorkerDied, WorkerDraining, WorkerExited, WorkerRecovered, WorkerStalled, WorkerStarted};
    matches!(
        kind,
        WorkerStarted | WorkerDraining | WorkerExited | WorkerDied | WorkerStalled | WorkerRecovered
    )
}

/// Checks them.
pub fn check(evidence: &Evidence, owners: &Owners, tally: &mut Tally) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut lives: BTreeMap<usize, Vec<&Event>> = BTreeMap::new();
    let mut lost: BTreeMap<i32, u64> = BTreeMap::new();
    for (event, owner) in evidence.events.iter().zip(owners) {
        if event.kind == Kind::MasterLost {
            master_lost(evidence, event, *owner, &mut lost, &mut found);
        }
        if !is_about_a_worker(event.kind) {
            continue;
        }
        match owner {
            Some(owner) => lives.entry(*owner).or_default().push(event),
            None if evidence.complete => {
                found.push(Violation::new(
                    Class::Untrue,
                    format!("the kernel knows no such process: {}", event.show()),
                ));
            }
            None => tally.add("events about processes that the looks have missed", 1),
        }
    }
    for (&owner, events) in &lives {
        one(evidence, &evidence.processes[owner], events, tally, &mut found);
    }
    found
}

fn master_lost(
    evidence: &Evidence,
    event: &Event,
    owner: Option<usize>,
    lost: &mut BTreeMap<i32, u64>,
    found: &mut Vec<Violation>,
) {
    if let Some(before) = lost.insert(event.pid.unwrap_or(0), event.seq) {
        found.push(Violation::new(Class::Twice, format!("#{before}, and again {}", event.show())));
    }
    let process = owner.map(|at| &evidence.processes[at]);
    if evidence.complete
        && process.is_none_or(|process| process.ended.is_none_or(|end| end > event.at + SLACK))
    {
        found.push(Violation::new(Class::Untrue, format!("this master had not ended: {}", event.show())));
    }
}

fn one(
    evidence: &Evidence,
    process: &Process,
    events: &[&Event],
    tally: &mut Tally,
    found: &mut Vec<Violation>,
) {
    let mut say = |class, text: String| found.push(Violation::new(class, text));
    let all = || events.iter().map(|event| event.show()).collect::<Vec<_>>().join("; ");
    let is_end = |event: &&&Event| matches!(event.kind, Kind::WorkerExited | Kind::WorkerDied);
    let starts: Vec<usize> = (0..events.len()).filter(|&at| events[at].kind == Kind::WorkerStarted).collect();
    let ends: Vec<&&Event> = events.iter().filter(is_end).collect();

    if starts.len() > 1 || ends.len() > 1 {
        say(Class::Twice, format!("process {}: {}", process.pid, all()));
        return;
    }
    tally.add("workers that joined", starts.len() as u64);
    if starts.is_empty() && ends.first().is_some_and(|end| end.kind == Kind::WorkerDied) {
        tally.add("deaths told of workers that had not joined yet", 1);
    } else if starts.first() != Some(&0) {
        say(Class::OutOfOrder, format!("something before its start: {}", all()));
    }
    let Some(&&end) = ends.first() else {
        if let Some(ended) = process.ended {
            let how = process.status.map_or("unknown".into(), |status| status.to_string());
            say(
                Class::Missed,
                format!(
                    "process {} ended ({how}) at {ended}, and the journal does not say so: {}",
                    process.pid,
                    all()
                ),
            );
        }
        return;
    };
    if events.last().is_none_or(|last| last.seq != end.seq) {
        say(Class::OutOfOrder, format!("something after its end: {}", all()));
    }
    match (end.kind, process.ended) {
        (Kind::WorkerDied, None) => say(Class::Untrue, format!("it lives: {}", end.show())),
        (Kind::WorkerDied, Some(ended)) if ended > end.at + SLACK && evidence.complete => {
            say(Class::Untrue, format!("it ended {} ms later: {}", (ended - end.at) / 1_000_000, end.show()));
        }
        (Kind::WorkerDied, Some(ended)) => {
            tally.add("deaths", 1);
            let late = end.at.saturating_sub(ended);
            match end.cause.as_str() {
                "unclean" => {}
                // When it ended is not known to the millisecond.
                _ if !evidence.complete => {}
                _ if evidence.was_hindered(ended, end.at) => tally.hindered.push(late),
                _ => tally.to_journal.push(late),
            }
            cause(process, end, tally, found);
        }
        (_, None) => tally.add("workers that have said goodbye and still live", 1),
        (_, Some(_)) => {
            tally.add("exits", 1);
            if process.status.is_some_and(|status| status.code() != Some(0)) {
                tally.add("exits of workers that were killed after they had said goodbye", 1);
            }
        }
    }
}

fn cause(process: &Process, end: &Event, tally: &mut Tally, found: &mut Vec<Violation>) {
    let Some(status) = process.status else {
        return tally.add("deaths whose status the checker does not know", 1);
    };
    match (end.signal, end.exit_code) {
        (None, None) if end.cause == "unclean" => tally.add("deaths found at the next start", 1),
        (None, None) => tally.add("deaths whose cause headcount does not know", 1),
        (signal, code) if (signal, code) == (status.signal(), status.code()) => {
            tally.add("deaths whose signal or exit code is right", 1);
            if status.code() == Some(0) {
                tally.add("deaths with exit code 0", 1);
            }
        }
        _ => {
            found.push(Violation::new(Class::WrongCause, format!("the kernel says {status}: {}", end.show())))
        }
    }
}
