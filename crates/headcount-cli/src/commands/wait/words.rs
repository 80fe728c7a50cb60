//! Processes in words: short for a line that is rewritten, long for the last word before a time-out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use headcount::{ProcessStatus, Role, State};
use headcount_report::age;

use super::condition::{Lack, may_live};

/// More than these are counted only.
const NAMED: usize = 8;

/// So many that are gone get a line of their own.
const GONE: usize = 3;

/// `2 draining (pids 11, 12), 1 stalled (pid 13)`. Whoever is gone is only counted: in a crash loop they are many.
pub fn pids(processes: &[ProcessStatus]) -> String {
    let mut by_state: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for p in processes {
        let what = if p.role == Role::Worker { p.state.name() } else { p.role.name() };
        by_state.entry(what).or_default().push(p.pid);
    }
    let gone = [State::Died.name(), State::Exited.name()];
    let groups: Vec<_> = by_state
        .iter()
        .map(|(state, pids)| match gone.contains(state) {
            true => format!("{} {state}", pids.len()),
            false => format!("{} {state} ({})", pids.len(), list(pids)),
        })
        .collect();
    groups.join(", ")
}

fn list(pids: &[u32]) -> String {
    let named: Vec<_> = pids.iter().take(NAMED).map(u32::to_string).collect();
    let word = if pids.len() == 1 { "pid" } else { "pids" };
    let more = if pids.len() > NAMED { ", …" } else { "" };
    format!("{word} {}{more}", named.join(", "))
}

/// The same to be put behind something else.
pub fn states(processes: &[ProcessStatus]) -> String {
    if processes.is_empty() { String::new() } else { format!(", {}", pids(processes)) }
}

/// All that lacks, in one line.
pub fn line(lacks: &[Lack]) -> String {
    lacks.iter().map(|lack| lack.why.as_str()).collect::<Vec<_>>().join("; ")
}

/// What stood in the way when the time was over: a line for each process. Of those that are gone only the last ones.
pub fn not_reached(timeout: Duration, lacks: &[Lack]) -> String {
    let mut text = format!("not reached within {}: {}", age(timeout), line(lacks));
    let mut told = BTreeSet::new();
    let who = lacks.iter().flat_map(|lack| &lack.who).filter(|p| told.insert((p.pid, p.generation)));
    let (alive, mut gone): (Vec<_>, Vec<_>) = who.partition(|p| may_live(p));
    gone.sort_by_key(|p| p.age);
    for p in alive.into_iter().chain(gone.iter().copied().take(GONE)) {
        text.push_str("\n  ");
        text.push_str(&process(p));
    }
    if gone.len() > GONE {
        text.push_str(&format!("\n  and {} more that are gone", gone.len() - GONE));
    }
    text
}

fn process(p: &ProcessStatus) -> String {
    let who = match (p.role, p.worker_id) {
        (Role::Worker, Some(id)) => format!("worker {id} of generation {}", p.generation),
        (Role::Master, _) => "master".to_owned(),
        (role, _) => format!("{role} of generation {}", p.generation),
    };
    let since = match p.state {
        // How long it has been dead is not what is known of it.
        State::Died | State::Exited | State::Unknown => p.state.name().to_owned(),
        State::Stalled => format!("stalled, its last heartbeat is {} old", age(p.heartbeat_age)),
        state => format!("{} for {}", state.name(), age(p.in_state_for)),
    };
    format!("pid {}: {who}, {since}, started {} ago", p.pid, age(p.age))
}
