//! A snapshot as a JSON document.
//!
//! Written by hand: sixty lines against three more libraries in other people's servers. Only two strings
//! of it can hold anything that needs care, the node's name and its path.

use std::fmt::Write as _;
use std::time::Duration;

use headcount_core::{GenerationStatus, Liveness, Phase, ProcessStatus, Role, Snapshot};

/// One JSON object that grows. A member without a value is left out.
struct Object(String);

impl Object {
    fn new() -> Object {
        Object("{".to_owned())
    }

    /// `json` must be JSON.
    fn raw(mut self, name: &str, json: impl std::fmt::Display) -> Object {
        let comma = if self.0.len() > 1 { "," } else { "" };
        // Writing to a string cannot fail.
        let _ = write!(self.0, "{comma}\"{name}\":{json}");
        self
    }

    fn number(self, name: &str, value: impl Into<Option<u64>>) -> Object {
        match value.into() {
            Some(value) => self.raw(name, value),
            None => self,
        }
    }

    fn seconds(self, name: &str, value: Duration) -> Object {
        self.raw(name, format_args!("{:.6}", value.as_secs_f64()))
    }

    fn text(self, name: &str, value: &str) -> Object {
        self.raw(name, quoted(value))
    }

    fn list(self, name: &str, values: impl Iterator<Item = String>) -> Object {
        self.raw(name, format_args!("[{}]", values.collect::<Vec<_>>().join(",")))
    }

    fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

pub fn document(snapshot: &Snapshot) -> String {
    let mut object = Object::new().text("node", &snapshot.node);
    if let Some(path) = &snapshot.path {
        object = object.text("path", &path.to_string_lossy());
    }
    object = object
        .number("head", snapshot.head)
        .number("total", u64::from(snapshot.total))
        .number("sentinel", snapshot.sentinel.map(u64::from));
    if let Some(holder) = &snapshot.holder {
        let mut inner =
            Object::new().number("pid", u64::from(holder.pid)).seconds("held_for", holder.held_for);
        if let Some((kind, since)) = holder.callback {
            inner = inner.text("callback", kind.name()).seconds("callback_for", since);
        }
        object = object.raw("holder", inner.end());
    }
    object
        .list("generations", snapshot.generations.iter().map(generation))
        .list("processes", snapshot.processes.iter().map(process))
        .end()
}

fn generation(g: &GenerationStatus) -> String {
    let phase = match g.phase {
        Phase::Announced => "announced",
        Phase::Committed => "committed",
        Phase::Abandoned => "abandoned",
    };
    let mut object = Object::new()
        .number("id", g.id)
        .text("phase", phase)
        .text("cause", g.cause.name())
        .number("master", u64::from(g.master));
    if let Some(alive) = g.master_alive {
        object = object.raw("master_alive", alive);
    }
    let c = &g.counts;
    object
        .seconds("age", g.age)
        .seconds("begun", Duration::from_nanos(g.begun_ns))
        .number("expected", g.expected.map(u64::from))
        .number("prev", c.prev.map(u64::from))
        .number("mine", u64::from(c.mine))
        .number("next", c.next.map(u64::from))
        .number("draining", u64::from(c.draining))
        .number("prev_draining", c.prev.map(|_| u64::from(c.prev_draining)))
        .number("next_draining", c.next.map(|_| u64::from(c.next_draining)))
        .end()
}

fn process(p: &ProcessStatus) -> String {
    let liveness = match p.liveness {
        Liveness::Alive => "alive",
        Liveness::Gone => "gone",
        Liveness::Unknown(_) => "unknown",
    };
    // A master never beats.
    let beats = p.role != Role::Master;
    let mut object = Object::new()
        .number("pid", u64::from(p.pid))
        .text("role", p.role.name())
        .number("generation", p.generation)
        .number("worker_id", p.worker_id.map(u64::from))
        .text("state", p.state.name())
        .text("liveness", liveness)
        .text("cause", p.cause.name())
        .seconds("age", p.age)
        .seconds("in_state_for", p.in_state_for);
    if beats {
        object = object.seconds("heartbeat_age", p.heartbeat_age);
    }
    object.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_care_in_a_string_gets_it() {
        assert_eq!(quoted("a\"b\\c\nd\u{1}é"), r#""a\"b\\c\u000ad\u0001é""#);
        assert_eq!(Object::new().number("a", 1).number("b", None).text("c", "").end(), r#"{"a":1,"c":""}"#);
    }
}
