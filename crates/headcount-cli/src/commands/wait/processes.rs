//! Processes in words: short for a line that is rewritten, long for the message of a time-out.

use std::collections::BTreeMap;

use headcount::{ProcessStatus, Role, State};
use headcount_report::age;

/// So many pids are listed at most.
const NAMED: usize = 8;

/// `2 draining (pids 11, 12), 1 stalled (pid 13)`. Those that are gone are only counted: in a crash loop they are many.
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

/// The same, to be appended.
pub fn states(processes: &[ProcessStatus]) -> String {
    if processes.is_empty() { String::new() } else { format!(", {}", pids(processes)) }
}

/// `pid 17: worker 0 of generation 3, draining for 2.1 s, started 3.7 s ago`
pub fn describe(p: &ProcessStatus) -> String {
    let who = match (p.role, p.worker_id) {
        (Role::Worker, Some(id)) => format!("worker {id} of generation {}", p.generation),
        (Role::Master, _) => "master".to_owned(),
        (role, _) => format!("{role} of generation {}", p.generation),
    };
    let since = match p.state {
        // It is not known for how long.
        State::Died | State::Exited | State::Unknown => p.state.name().to_owned(),
        State::Stalled => format!("stalled, its last heartbeat is {} old", age(p.heartbeat_age)),
        state => format!("{} for {}", state.name(), age(p.in_state_for)),
    };
    format!("pid {}: {who}, {since}, started {} ago", p.pid, age(p.age))
}
