//! Nodes for programs: `docs/cli/status.md` describes each member.

use headcount_report::{Death, NodeDocument, SCHEMA};
use serde::Serialize;

use super::reading::{Reading, Unreadable};

#[derive(Serialize)]
pub struct Document {
    schema: u32,
    nodes: Vec<Node>,
    unreadable: Vec<UnreadableDocument>,
}

#[derive(Serialize)]
struct Node {
    #[serde(flatten)]
    node: NodeDocument,
    runs: u64,
    of_this_boot: Option<bool>,
    nobody_is_alive: bool,
    deaths: Vec<DeathDocument>,
}

#[derive(Serialize)]
struct DeathDocument {
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker_id: Option<u32>,
    generation: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    age: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    lived: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    in_state_for: Option<f64>,
}

#[derive(Serialize)]
struct UnreadableDocument {
    path: String,
    kind: &'static str,
    error: String,
}

impl Document {
    pub fn new(readings: &[Reading], unreadable: &[Unreadable]) -> Document {
        Document {
            schema: SCHEMA,
            nodes: readings.iter().map(node).collect(),
            unreadable: unreadable
                .iter()
                .map(|(path, error)| UnreadableDocument {
                    path: path.to_string_lossy().into_owned(),
                    kind: error.kind().name(),
                    error: error.to_string(),
                })
                .collect(),
        }
    }
}

fn node(reading: &Reading) -> Node {
    Node {
        node: NodeDocument::new(&reading.snapshot, &reading.history),
        runs: reading.registry.runs,
        of_this_boot: reading.registry.of_this_boot,
        nobody_is_alive: reading.nobody_is_alive(),
        deaths: reading.history.deaths.iter().map(death).collect(),
    }
}

fn death(death: &Death) -> DeathDocument {
    DeathDocument {
        pid: death.pid,
        worker_id: death.worker_id,
        generation: death.generation,
        signal: death.signal,
        exit_code: death.exit_code,
        age: death.age.as_secs_f64(),
        lived: death.lived.map(|lived| lived.as_secs_f64()),
        state: death.was.map(|(state, _)| state.name()),
        in_state_for: death.was.map(|(_, time)| time.as_secs_f64()),
    }
}
