//! What is in etcd under the keys: small JSON documents, each with the version of its form.

use headcount::{Phase, Role, Snapshot, State};
use headcount_report::{History, Newest};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The version of the documents. A member that is added leaves it; one that goes or means something else raises it.
pub const VERSION: u32 = 1;

/// That a host is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostValue {
    /// The version of this document.
    pub v: u32,
    /// The version of the agent.
    pub agent: String,
    /// The boot of the machine, and the pid namespace, in which the agent's process has its number.
    pub place: String,
    /// The machine's own name.
    pub machine: String,
    /// The agent's process.
    pub pid: u32,
    /// When that began, in the kernel's ticks since the boot.
    pub birth: u64,
    /// Since when the host is there. Seconds since 1970, by its own clock.
    pub since: f64,
}

/// How it is with a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// It is there.
    Here,
    /// It has said that it leaves.
    Left,
    /// Its lease has run out.
    Lost,
}

/// What is known of a host, also when it is not there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KnownValue {
    /// The version of this document.
    pub v: u32,
    /// How it is with it, as far as was noted.
    pub presence: Presence,
    /// Since when, by the clock of whoever noted it.
    pub since: f64,
    /// The lease that it had.
    pub lease: i64,
}

/// The state of a node, of what does not change by itself as time goes by.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeValue {
    /// The version of this document.
    pub v: u32,
    /// Which registry: it tells one history of events from the next.
    pub registry: String,
    /// The number of the last event that was told.
    pub head: u64,
    /// How many events of this registry were not told.
    #[serde(default)]
    pub missed: u64,
    /// When this was written, by the clock of the host.
    pub time: f64,
    /// `serving`, `starting`, `short`, `crash_loop`, `orphaned`, `stopped`, `unknown`, or `none`.
    pub state: String,
    /// The newest generation that was not abandoned.
    #[serde(default)]
    pub generation: Option<u64>,
    /// When it began.
    #[serde(default)]
    pub begun: Option<f64>,
    /// How many workers it should have.
    #[serde(default)]
    pub expected: Option<u32>,
    /// How many of its workers serve.
    #[serde(default)]
    pub serving: u32,
    /// How many workers drain, in all generations.
    #[serde(default)]
    pub draining: u32,
    /// How many workers hang, in all generations.
    #[serde(default)]
    pub stalled: u32,
    /// How many older generations have not ended.
    #[serde(default)]
    pub old_generations: u32,
    /// How many workers died in the last five minutes.
    #[serde(default)]
    pub deaths: u32,
    /// Whether its agent reloads it when the cluster asks for it.
    #[serde(default)]
    pub reload: bool,
}

impl NodeValue {
    /// The state of a node, by what its host knows of it.
    #[must_use]
    pub fn of(snapshot: &Snapshot, history: &History) -> NodeValue {
        let newest = Newest::of(snapshot);
        let workers = |state| {
            let all = snapshot.processes.iter();
            all.filter(|p| p.role == Role::Worker && p.state == state).count()
        };
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let state = match (snapshot.liveness(), &newest) {
            // The last one to leave has cleared the table, but not the journal.
            (headcount::Liveness::Gone, _) if newest.is_some() || snapshot.head > 0 => "stopped",
            (_, None) => "none",
            (headcount::Liveness::Unknown(_), _) => "unknown",
            (_, Some(n)) if n.generation.master_alive == Some(false) => "orphaned",
            (_, Some(n)) if n.generation.master_alive.is_none() => "unknown",
            (_, Some(n)) if n.generation.phase == Phase::Announced => "starting",
            _ if history.crash_loop.is_some() => "crash_loop",
            (_, Some(n)) if n.serves() => "serving",
            (_, Some(n)) if n.count(State::Starting) > 0 => "starting",
            _ => "short",
        };
        let serving = newest.as_ref().map_or(0, |n| n.count(State::Serving));
        let newest = newest.map(|n| n.generation);
        NodeValue {
            v: VERSION,
            state: state.to_owned(),
            generation: newest.map(|g| g.id),
            begun: newest.map(|g| g.begun_ns as f64 / 1e9),
            expected: newest.and_then(|g| g.expected),
            serving,
            draining: count(workers(State::Draining) + workers(State::Leaving)),
            stalled: count(workers(State::Stalled)),
            old_generations: count(
                snapshot
                    .generations
                    .iter()
                    .filter(|g| g.phase == Phase::Committed && newest.is_some_and(|newest| g.id < newest.id))
                    .count(),
            ),
            deaths: count(history.deaths.len()),
            ..NodeValue::default()
        }
    }

    /// Whether it says the same of the node, whatever else it says.
    pub(crate) fn agrees(&self, other: &NodeValue) -> bool {
        let plain = |value: &NodeValue| NodeValue { time: 0.0, ..value.clone() };
        plain(self) == plain(other)
    }

    /// Whether something is in progress whose end no event tells.
    pub(crate) fn is_in_progress(&self) -> bool {
        self.state == "starting"
    }
}

/// An event: the document that `headcount events --json` prints, or one about the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventValue {
    /// The version of this document.
    pub v: u32,
    /// Its members.
    #[serde(flatten)]
    pub document: Map<String, Value>,
}

impl EventValue {
    /// An event of a host: `joined`, `left` or `lost`.
    pub(crate) fn of_host(host: &str, what: &str, sentence: &str) -> EventValue {
        let time = crate::now();
        let document = [
            ("kind", Value::from(format!("host_{what}"))),
            ("time", Value::from(time)),
            ("timestamp", Value::from(headcount_report::timestamp((time * 1e9) as u64))),
            ("sentence", Value::from(format!("host {host} {sentence}"))),
        ];
        let document = document.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        EventValue { v: VERSION, document }
    }

    /// A member that is a text.
    #[must_use]
    pub fn text(&self, name: &str) -> &str {
        self.document.get(name).and_then(Value::as_str).unwrap_or_default()
    }
}

/// Why a value cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is no document of this kind.
    #[error("it is not what headcount writes there: {0}")]
    Garbage(String),
    /// Its form is not known yet.
    #[error("it is of version {0}, and this headcount knows version {VERSION}: use a newer one here")]
    Newer(u64),
}

/// Documents that are longer are nobody's who means well. They are not kept in memory either.
const LONGEST: usize = 64 << 10;

/// Reads a document. Members that are not known are skipped.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Unreadable> {
    if bytes.len() > LONGEST {
        return Err(Unreadable::Garbage(format!("it has {} bytes", bytes.len())));
    }
    let garbage = |error: serde_json::Error| Unreadable::Garbage(error.to_string());
    let value: Value = serde_json::from_slice(bytes).map_err(garbage)?;
    match value.get("v").and_then(Value::as_u64) {
        Some(version) if version > u64::from(VERSION) => Err(Unreadable::Newer(version)),
        _ => serde_json::from_value(value).map_err(garbage),
    }
}

#[cfg(test)]
mod tests {
    use headcount::{GenerationStatus, ProcessStatus};

    use super::*;

    #[test]
    fn what_is_newer_is_said_and_what_is_more_is_skipped() {
        let known = r#"{"v":1,"presence":"left","since":1.5,"lease":7,"mood":"good"}"#;
        assert_eq!(parse::<KnownValue>(known.as_bytes()).unwrap().presence, Presence::Left);
        assert_eq!(parse::<KnownValue>(br#"{"v":2,"presence":{}}"#), Err(Unreadable::Newer(2)));
        for garbage in [
            &b"\xff\x00"[..],
            b"",
            b"[]",
            b"{}",
            b"{\"v\":1}",
            br#"{"v":1,"presence":"away","since":1,"lease":1}"#,
        ] {
            assert!(matches!(parse::<KnownValue>(garbage), Err(Unreadable::Garbage(_))));
        }
        // As deep, or as long, as anybody likes.
        for garbage in ["[".repeat(60_000), format!("{}{}", " ".repeat(LONGEST), known)] {
            assert!(matches!(parse::<KnownValue>(garbage.as_bytes()), Err(Unreadable::Garbage(_))));
        }
    }

    fn node(expected: Option<u32>, workers: &[State]) -> Snapshot {
        let mut snapshot = Snapshot::new("nginx");
        let mut generation = GenerationStatus::new(3, Phase::Committed);
        (generation.expected, generation.master_alive) = (expected, Some(true));
        snapshot.generations.push(generation);
        snapshot.processes.push(ProcessStatus::new(Role::Master, 1, State::Serving));
        for (&state, pid) in workers.iter().zip(2..) {
            let mut worker = ProcessStatus::new(Role::Worker, pid, state);
            worker.generation = 3;
            snapshot.processes.push(worker);
        }
        snapshot
    }

    fn state(snapshot: &Snapshot) -> String {
        NodeValue::of(snapshot, &History::default()).state
    }

    #[test]
    fn a_node_serves_with_all_its_workers_and_not_with_fewer() {
        use State::{Died, Serving, Starting, Unknown};
        for (expected, workers, is) in [
            (Some(2), &[Serving, Serving][..], "serving"),
            (Some(2), &[Serving], "short"),
            (Some(2), &[Serving, Starting], "starting"),
            (None, &[Serving], "serving"),
            (None, &[Serving, Starting], "starting"),
            (None, &[], "short"),
            (Some(1), &[Died], "short"),
            (Some(1), &[Unknown], "short"),
        ] {
            assert_eq!(state(&node(expected, workers)), is, "{expected:?} {workers:?}");
        }
        assert_eq!(state(&Snapshot::new("x")), "none");
        let mut over = Snapshot::new("x");
        over.head = 19;
        assert_eq!(state(&over), "stopped", "there was a generation, and nobody is left");
        let mut orphaned = node(Some(1), &[State::Orphaned]);
        orphaned.generations[0].master_alive = Some(false);
        assert_eq!(state(&orphaned), "orphaned");
        let mut stopped = node(Some(1), &[Died]);
        stopped.processes[0] = ProcessStatus::new(Role::Master, 1, Died);
        assert_eq!(state(&stopped), "stopped");
    }

    #[test]
    fn one_that_loops_in_crashes_does_not_serve() {
        let events: Vec<_> = (0..3)
            .map(|n| {
                let mut event = headcount::Event::new(headcount::Kind::WorkerDied, headcount::Cause::Signal);
                (event.pid, event.generation, event.boot_ns, event.joined_ns) = (n, 3, 1_000_000_000, 1);
                event
            })
            .collect();
        let mut snapshot = node(Some(1), &[State::Serving]);
        snapshot.boot_ns = 2_000_000_000;
        let history = History::of(&events, &snapshot);
        assert_eq!(NodeValue::of(&snapshot, &history).state, "crash_loop");
    }
}
