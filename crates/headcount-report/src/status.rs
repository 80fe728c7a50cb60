//! A node as a document, the only place that writes one: `docs/cli/status.md` describes it.

use headcount::{
    Event, GenerationStatus, Liveness, ProcessStatus, Role, SingletonKind, SingletonStatus, Snapshot,
};
use serde::Serialize;

use crate::event::EventDocument;
use crate::history::History;
use crate::words::timestamp;

/// The version of the documents. A member that is added leaves it; one that goes or means something else raises it.
pub const SCHEMA: u32 = 1;

/// What `headcount status --json` prints and `headcount_status json` answers. Durations are seconds.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "docs/cli/status.md describes each member")]
pub struct StatusDocument {
    pub schema: u32,
    pub nodes: Vec<NodeDocument>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<serde_json::Value>,
}

impl StatusDocument {
    /// The document about these nodes.
    #[must_use]
    pub fn new(nodes: Vec<NodeDocument>) -> StatusDocument {
        StatusDocument { schema: SCHEMA, nodes, cluster: None }
    }

    /// With the cluster that the host belongs to, as `headcount cluster status --json` has it.
    #[must_use]
    pub fn with_cluster(self, cluster: Option<serde_json::Value>) -> StatusDocument {
        StatusDocument { cluster, ..self }
    }
}

/// One node at one instant.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "docs/cli/status.md describes each member")]
pub struct NodeDocument {
    pub node: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    pub time: f64,
    pub timestamp: String,
    pub head: u64,
    pub total: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentinel: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<HolderDocument>,
    pub settings: SettingsDocument,
    pub generations: Vec<GenerationDocument>,
    pub processes: Vec<ProcessDocument>,
    pub singletons: Vec<SingletonDocument>,
    pub recent: RecentDocument,
    /// Where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<Vec<EventDocument>>,
}

/// Who holds the node lock.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "docs/cli/status.md describes each member")]
pub struct HolderDocument {
    pub pid: u32,
    pub held_for: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callback: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callback_for: Option<f64>,
}

/// The settings of a node.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "docs/cli/status.md describes each member")]
pub struct SettingsDocument {
    pub heartbeat_interval: f64,
    pub stall_after: f64,
    pub lock_timeout: f64,
}

/// One generation.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "docs/cli/status.md describes each member")]
pub struct GenerationDocument {
    pub id: u64,
    pub phase: &'static str,
    pub cause: &'static str,
    pub master: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master_alive: Option<bool>,
    pub age: f64,
    pub begun: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev: Option<u32>,
    pub mine: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<u32>,
    pub draining: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev_draining: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_draining: Option<u32>,
}

/// One process.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "docs/cli/status.md describes each member")]
pub struct ProcessDocument {
    pub pid: u32,
    pub role: &'static str,
    pub generation: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<u32>,
    pub state: &'static str,
    pub liveness: &'static str,
    /// Why its liveness is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown_because: Option<&'static str>,
    pub cause: &'static str,
    pub age: f64,
    pub in_state_for: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_age: Option<f64>,
}

/// A role, a once or a lock.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "docs/cli/status.md describes each member")]
pub struct SingletonDocument {
    pub kind: &'static str,
    pub name: String,
    /// Of a once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<&'static str>,
    pub state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<u32>,
    pub since: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiters: Option<u32>,
}

/// What the last [`History::WINDOW`] brought.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "docs/cli/status.md describes each member")]
pub struct RecentDocument {
    pub window: f64,
    pub deaths: u32,
    pub respawns: u32,
    pub crash_loop: bool,
}

impl NodeDocument {
    /// The document about a snapshot and what came before it.
    #[must_use]
    pub fn new(snapshot: &Snapshot, history: &History) -> NodeDocument {
        let settings = &snapshot.settings;
        NodeDocument {
            node: snapshot.node.clone(),
            path: snapshot.path.as_ref().map(|p| p.to_string_lossy().into_owned()),
            time: snapshot.time_ns as f64 / 1e9,
            timestamp: timestamp(snapshot.time_ns),
            head: snapshot.head,
            total: snapshot.total,
            sentinel: snapshot.sentinel,
            holder: snapshot.holder.as_ref().map(|holder| HolderDocument {
                pid: holder.pid,
                held_for: holder.held_for.as_secs_f64(),
                callback: holder.callback.map(|(kind, _)| kind.name()),
                callback_for: holder.callback.map(|(_, since)| since.as_secs_f64()),
            }),
            settings: SettingsDocument {
                heartbeat_interval: settings.heartbeat_interval.as_secs_f64(),
                stall_after: settings.stall_after.as_secs_f64(),
                lock_timeout: settings.lock_timeout.as_secs_f64(),
            },
            generations: snapshot.generations.iter().map(generation).collect(),
            processes: snapshot.processes.iter().map(process).collect(),
            singletons: snapshot.singletons.iter().map(singleton).collect(),
            recent: RecentDocument {
                window: History::WINDOW.as_secs_f64(),
                deaths: u32::try_from(history.deaths.len()).unwrap_or(u32::MAX),
                respawns: history.respawns,
                crash_loop: history.crash_loop.is_some(),
            },
            events: None,
        }
    }

    /// The same with these events.
    #[must_use]
    pub fn with_events<'a>(mut self, events: impl IntoIterator<Item = &'a Event>) -> NodeDocument {
        self.events = Some(events.into_iter().map(|event| EventDocument::new(&self.node, event)).collect());
        self
    }
}

fn generation(g: &GenerationStatus) -> GenerationDocument {
    let c = &g.counts;
    GenerationDocument {
        id: g.id,
        phase: g.phase.name(),
        cause: g.cause.name(),
        master: g.master,
        master_alive: g.master_alive,
        age: g.age.as_secs_f64(),
        begun: g.begun_ns as f64 / 1e9,
        expected: g.expected,
        prev: c.prev,
        mine: c.mine,
        next: c.next,
        draining: c.draining,
        prev_draining: c.prev.map(|_| c.prev_draining),
        next_draining: c.next.map(|_| c.next_draining),
    }
}

fn singleton(x: &SingletonStatus) -> SingletonDocument {
    let is = |kind| x.kind == kind;
    SingletonDocument {
        kind: x.kind.name(),
        name: x.name.clone(),
        scope: is(SingletonKind::Once).then_some(if x.generation == 0 { "node" } else { "generation" }),
        state: x.state.name(),
        generation: (x.generation != 0).then_some(x.generation),
        holder: x.holder,
        worker_id: x.worker_id,
        since: x.since.as_secs_f64(),
        token: (x.token != 0).then_some(x.token),
        attempts: is(SingletonKind::Once).then_some(x.attempts),
        waiters: is(SingletonKind::Lock).then_some(x.waiters),
    }
}

fn process(p: &ProcessStatus) -> ProcessDocument {
    ProcessDocument {
        pid: p.pid,
        role: p.role.name(),
        generation: p.generation,
        worker_id: p.worker_id,
        state: p.state.name(),
        liveness: p.liveness.name(),
        unknown_because: match p.liveness {
            Liveness::Unknown(doubt) => Some(doubt.reason()),
            _ => None,
        },
        cause: p.cause.name(),
        age: p.age.as_secs_f64(),
        in_state_for: p.in_state_for.as_secs_f64(),
        // A master never beats, and a visitor only while it stands for a role.
        heartbeat_age: matches!(p.role, Role::Worker | Role::Helper).then_some(p.heartbeat_age.as_secs_f64()),
    }
}
