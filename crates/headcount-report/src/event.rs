//! One event as a document: `docs/cli.md` describes it.

use headcount::{Event, Kind, PreviousRun, State};
use serde::Serialize;

use crate::sentence::sentence;
use crate::words::timestamp;

/// An event for programs. The names are those of the Lua interface; what does not apply is left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "docs/cli.md describes each member")]
pub struct EventDocument {
    pub node: String,
    pub seq: u64,
    pub kind: &'static str,
    pub cause: &'static str,
    pub generation: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev: Option<u32>,
    /// The counts are left out of events that have a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mine: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draining: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev_draining: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_draining: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u32>,
    /// Of a role, a once or a lock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_run: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_workers: Option<u32>,
    /// The event whose callback died or failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<u64>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_age: Option<f64>,
    /// Of a process that is gone: how old it had become, in which state it had been, and for how long. Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_state_for: Option<f64>,
    /// Seconds since 1970.
    pub time: f64,
    /// The same for people.
    pub timestamp: String,
    pub reporter: u32,
    /// All of it for people.
    pub sentence: String,
}

impl EventDocument {
    /// The document about an event of the node of this name.
    #[must_use]
    pub fn new(node: &str, event: &Event) -> EventDocument {
        let (previous_run, unclean) = match event.previous_run {
            None => (None, None),
            Some(PreviousRun::None) => (Some("none"), None),
            Some(PreviousRun::Clean) => (Some("clean"), None),
            Some(PreviousRun::Unclean { generation, workers }) => {
                (Some("unclean"), Some((generation, workers)))
            }
            Some(_) => (None, None),
        };
        let c = &event.counts;
        let has_counts = !event.kind.has_name();
        let beaten = event.heartbeat_ns != 0 && event.heartbeat_ns <= event.boot_ns;
        EventDocument {
            node: node.to_owned(),
            seq: event.seq,
            kind: event.kind.name(),
            cause: event.cause.name(),
            generation: event.generation,
            role: event.role.map(|role| role.name()),
            pid: (event.pid != 0).then_some(event.pid),
            worker_id: event.worker_id,
            prev: c.prev,
            mine: has_counts.then_some(c.mine),
            next: c.next,
            draining: has_counts.then_some(c.draining),
            prev_draining: c.prev.map(|_| c.prev_draining),
            next_draining: c.next.map(|_| c.next_draining),
            total: has_counts.then_some(c.total),
            name: event.name.clone(),
            token: (event.token != 0).then_some(event.token),
            attempts: (event.attempts != 0).then_some(event.attempts),
            signal: event.signal,
            exit_code: event.exit_code,
            previous_run,
            previous_generation: unclean.map(|u| u.0),
            previous_workers: unclean.map(|u| u.1),
            about: matches!(event.kind, Kind::CallbackDied | Kind::CallbackFailed).then_some(event.detail),
            heartbeat_age: beaten.then(|| (event.boot_ns - event.heartbeat_ns) as f64 / 1e9),
            age: event.age().map(|age| age.as_secs_f64()),
            state: event.state.map(State::name),
            in_state_for: event.was().map(|(_, time)| time.as_secs_f64()),
            time: event.time_ns as f64 / 1e9,
            timestamp: timestamp(event.time_ns),
            reporter: event.reporter_pid,
            sentence: sentence(event),
        }
    }
}
