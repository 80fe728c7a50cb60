//! What is delivered: a document, and the environment variables that say the same.

use std::borrow::Cow;
use std::ffi::OsString;

use headcount::{Event, Snapshot};
use headcount_report::{EventDocument, timestamp};
use serde_json::{Map, Value, json};

use super::node_event::NodeEvent;
use super::rules::LOST;

/// The members of a document that commands have in their environment. Those that a document lacks are unset there.
const VARIABLES: [(&str, &str); 31] = [
    ("kind", "HEADCOUNT_EVENT"),
    ("host", "HEADCOUNT_HOST"),
    ("revision", "HEADCOUNT_REVISION"),
    ("node", "HEADCOUNT_NODE"),
    ("id", "HEADCOUNT_ID"),
    ("attempt", "HEADCOUNT_ATTEMPT"),
    ("retry", "HEADCOUNT_RETRY"),
    ("seq", "HEADCOUNT_SEQ"),
    ("generation", "HEADCOUNT_GENERATION"),
    ("cause", "HEADCOUNT_CAUSE"),
    ("role", "HEADCOUNT_ROLE"),
    ("pid", "HEADCOUNT_PID"),
    ("worker_id", "HEADCOUNT_WORKER_ID"),
    ("age", "HEADCOUNT_AGE"),
    ("state", "HEADCOUNT_STATE"),
    ("in_state_for", "HEADCOUNT_IN_STATE_FOR"),
    ("prev", "HEADCOUNT_PREV"),
    ("mine", "HEADCOUNT_MINE"),
    ("next", "HEADCOUNT_NEXT"),
    ("total", "HEADCOUNT_TOTAL"),
    ("draining", "HEADCOUNT_DRAINING"),
    ("signal", "HEADCOUNT_SIGNAL"),
    ("exit_code", "HEADCOUNT_EXIT_CODE"),
    ("previous_run", "HEADCOUNT_PREVIOUS_RUN"),
    ("previous_generation", "HEADCOUNT_PREVIOUS_GENERATION"),
    ("previous_workers", "HEADCOUNT_PREVIOUS_WORKERS"),
    ("about", "HEADCOUNT_ABOUT"),
    ("heartbeat_age", "HEADCOUNT_HEARTBEAT_AGE"),
    ("lost", "HEADCOUNT_LOST"),
    ("time", "HEADCOUNT_TIME"),
    ("timestamp", "HEADCOUNT_TIMESTAMP"),
];

/// A document to be delivered.
#[derive(Clone, Debug, PartialEq)]
pub struct Notification {
    /// The event's name, as rules have it.
    pub event: Cow<'static, str>,
    /// Its position in the journal: the event's number, or that of the event that would have been next.
    pub at: u64,
    /// All but `id`, `attempt` and `retry`.
    pub document: Map<String, Value>,
}

impl Notification {
    /// About an event of the journal.
    pub fn event(node: &str, event: &Event) -> Notification {
        Notification { event: event.kind.name().into(), at: event.seq, document: document(node, event) }
    }

    /// About the node, by an event of the journal.
    pub fn node(node: &str, what: NodeEvent, event: &Event) -> Notification {
        if what == NodeEvent::Died {
            // The event is what a later run found; the death is older, and nobody knows when it was.
            return Notification {
                at: event.seq,
                ..Notification::died(node, event.seq, Some(event.generation), event.time_ns)
            };
        }
        let mut document = document(node, event);
        document.insert("kind".into(), what.name().into());
        Notification { event: what.name().into(), at: event.seq, document }
    }

    /// No process is alive, which no event says.
    pub fn died(node: &str, at: u64, generation: Option<u64>, time_ns: u64) -> Notification {
        let mut document = plain(node, NodeEvent::Died.name(), time_ns);
        document.extend(generation.filter(|&id| id != 0).map(|id| ("generation".into(), id.into())));
        document.insert("total".into(), 0.into());
        Notification { event: NodeEvent::Died.name().into(), at, document }
    }

    /// The node is up, but the event that said so was overwritten.
    pub fn present(node: &str, at: u64, snapshot: &Snapshot) -> Notification {
        let mut document = plain(node, NodeEvent::Started.name(), snapshot.time_ns);
        if let Some(newest) = snapshot.generations.last() {
            document.insert("generation".into(), newest.id.into());
            document.insert("pid".into(), newest.master.into());
            document.insert("cause".into(), newest.cause.name().into());
            document.insert("mine".into(), newest.counts.mine.into());
        }
        document.insert("total".into(), snapshot.total.into());
        Notification { event: NodeEvent::Started.name().into(), at, document }
    }

    /// Events were overwritten before they were read.
    pub fn lost(node: &str, from: u64, count: u64, time_ns: u64) -> Notification {
        let mut document = plain(node, LOST, time_ns);
        document.insert("lost".into(), count.into());
        document.insert("first".into(), from.into());
        document.insert("last".into(), from.saturating_add(count.saturating_sub(1)).into());
        Notification { event: LOST.into(), at: from, document }
    }
}

fn document(node: &str, event: &Event) -> Map<String, Value> {
    match serde_json::to_value(EventDocument::new(node, event)) {
        Ok(Value::Object(document)) => document,
        other => unreachable!("an event's document is an object of plain values: {other:?}"),
    }
}

fn plain(node: &str, event: &str, time_ns: u64) -> Map<String, Value> {
    let document = json!({
        "node": node,
        "kind": event,
        "time": time_ns as f64 / 1e9,
        "timestamp": timestamp(time_ns),
    });
    match document {
        Value::Object(document) => document,
        other => unreachable!("this is an object: {other}"),
    }
}

/// The variables of a document, and those that are to be unset.
pub fn variables(document: &Map<String, Value>) -> impl Iterator<Item = (&'static str, Option<OsString>)> {
    VARIABLES.into_iter().map(|(member, variable)| {
        let value = match document.get(member) {
            None | Some(Value::Null | Value::Bool(false)) => None,
            Some(Value::Bool(true)) => Some("1".into()),
            // Another host may have written anything, and no variable can have a NUL.
            Some(Value::String(text)) => Some(text.replace('\0', "\u{fffd}").into()),
            Some(other) => Some(other.to_string().into()),
        };
        (variable, value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(notification: &Notification) -> String {
        let set = variables(&notification.document).filter_map(|(name, value)| Some((name, value?)));
        set.map(|(name, value)| format!("{name}={}\n", value.to_string_lossy())).collect()
    }

    #[test]
    fn a_death_has_a_generation_and_no_number() {
        insta::assert_snapshot!(shown(&Notification::died("nginx", 17, Some(3), 1_700_000_000_000_000_000)), @r"
        HEADCOUNT_EVENT=node_died
        HEADCOUNT_NODE=nginx
        HEADCOUNT_GENERATION=3
        HEADCOUNT_TOTAL=0
        HEADCOUNT_TIME=1700000000.0
        HEADCOUNT_TIMESTAMP=2023-11-14T22:13:20.000000Z
        ");
    }

    #[test]
    fn lost_events_are_counted_and_numbered() {
        let notification = Notification::lost("nginx", 5, 3, 0);
        assert_eq!(
            (notification.document["first"].as_u64(), notification.document["last"].as_u64()),
            (Some(5), Some(7))
        );
        assert!(shown(&notification).contains("HEADCOUNT_LOST=3\n"));
    }

    #[test]
    fn a_variable_has_no_nul() {
        let document = Map::from_iter([("host".to_owned(), Value::from("a\0b"))]);
        let set: Vec<_> = variables(&document).filter(|(_, value)| value.is_some()).collect();
        assert_eq!(set, [("HEADCOUNT_HOST", Some("a\u{fffd}b".into()))]);
    }

    #[test]
    fn what_does_not_apply_is_unset() {
        let mut document = Map::new();
        document.insert("retry".into(), false.into());
        assert!(variables(&document).all(|(_, value)| value.is_none()));
        document.insert("retry".into(), true.into());
        let set: Vec<_> = variables(&document).filter(|(_, value)| value.is_some()).collect();
        assert_eq!(set, [("HEADCOUNT_RETRY", Some("1".into()))]);
    }
}
