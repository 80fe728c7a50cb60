//! What one look at a node brought, in types of our own: the view is a pure function of them, and the core's cannot
//! be made by hand for its tests.

use std::time::Duration;

use headcount::{Cause, Event, Kind, Phase, Role, Snapshot, State};
use headcount_report::{History, sentence};

/// A node at one instant.
#[derive(Clone, Debug, Default)]
pub struct Look {
    pub node: String,
    pub path: String,
    /// Nanoseconds since boot, as in the journal.
    pub boot_ns: u64,
    pub head: u64,
    pub total: u32,
    pub stall_after: Duration,
    pub sentinel: Option<u32>,
    pub holder: Option<Holder>,
    /// Oldest first.
    pub generations: Vec<Generation>,
    pub processes: Vec<Process>,
    /// Whether the kernel could not be asked who is alive: the lock file is its owner's alone.
    pub by_pid_only: bool,
}

/// Who holds the node lock.
#[derive(Clone, Debug)]
pub struct Holder {
    pub pid: u32,
    pub held_for: Duration,
    pub callback: Option<Kind>,
}

#[derive(Clone, Debug)]
pub struct Generation {
    pub id: u64,
    pub phase: Phase,
    pub cause: Cause,
    pub master: u32,
    pub master_alive: Option<bool>,
    pub age: Duration,
    pub expected: Option<u32>,
    pub workers: u32,
    pub draining: u32,
}

#[derive(Clone, Debug)]
pub struct Process {
    pub pid: u32,
    pub role: Role,
    pub generation: u64,
    pub number: Option<u32>,
    pub state: State,
    pub cause: Cause,
    pub age: Duration,
    pub in_state_for: Duration,
    /// A master never beats.
    pub heartbeat_age: Option<Duration>,
}

/// One event, and what it says to people.
#[derive(Clone, Debug)]
pub struct Fact {
    pub seq: u64,
    pub kind: Kind,
    pub cause: Cause,
    pub generation: u64,
    pub pid: u32,
    pub role: Option<Role>,
    pub number: Option<u32>,
    pub boot_ns: u64,
    pub time_ns: u64,
    pub sentence: String,
}

/// What the last minutes brought.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    pub deaths: u32,
    pub respawns: u32,
    /// How many died young, and how long ago the last of them did.
    pub crash_loop: Option<(u32, Duration)>,
}

impl From<&Snapshot> for Look {
    fn from(s: &Snapshot) -> Look {
        Look {
            node: printable(&s.node),
            path: s.path.as_ref().map_or_else(String::new, |p| printable(&p.to_string_lossy())),
            boot_ns: s.boot_ns,
            head: s.head,
            total: s.total,
            stall_after: s.settings.stall_after,
            sentinel: s.sentinel,
            holder: s.holder.as_ref().map(|h| Holder {
                pid: h.pid,
                held_for: h.held_for,
                callback: h.callback.map(|(kind, _)| kind),
            }),
            generations: s
                .generations
                .iter()
                .map(|g| Generation {
                    id: g.id,
                    phase: g.phase,
                    cause: g.cause,
                    master: g.master,
                    master_alive: g.master_alive,
                    age: g.age,
                    expected: g.expected,
                    workers: g.counts.mine,
                    draining: g.counts.draining,
                })
                .collect(),
            processes: s
                .processes
                .iter()
                .map(|p| Process {
                    pid: p.pid,
                    role: p.role,
                    generation: p.generation,
                    number: p.worker_id,
                    state: p.state,
                    cause: p.cause,
                    age: p.age,
                    in_state_for: p.in_state_for,
                    heartbeat_age: (p.role != Role::Master).then_some(p.heartbeat_age),
                })
                .collect(),
            by_pid_only: false,
        }
    }
}

impl From<&Event> for Fact {
    fn from(e: &Event) -> Fact {
        Fact {
            seq: e.seq,
            kind: e.kind,
            cause: e.cause,
            generation: e.generation,
            pid: e.pid,
            role: e.role,
            number: e.worker_id,
            boot_ns: e.boot_ns,
            time_ns: e.time_ns,
            sentence: sentence(e),
        }
    }
}

impl From<&History> for Recent {
    fn from(h: &History) -> Recent {
        Recent {
            deaths: u32::try_from(h.deaths.len()).unwrap_or(u32::MAX),
            respawns: h.respawns,
            crash_loop: h.crash_loop.as_ref().map(|c| (c.deaths, c.last)),
        }
    }
}

/// Without what would move the cursor, change colours, or turn the direction of writing: a registry may say anything.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c == ' ' || c.is_alphanumeric() || c.is_ascii_graphic() { c } else { '?' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_reach_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\n\u{202e}c é/x"), "a?[2Jb??c é/x");
    }
}
