//! An event as a line of error.log: its name, one sentence, and then its facts as `name=value`, for programs.

use std::fmt::{Display, Write as _};

use headcount_core::{Event, Kind, PreviousRun, Transition};
use headcount_report::sentence;

use crate::log::Level;

/// The line, and how much it should worry somebody.
pub(crate) fn line(transition: &Transition) -> (Level, String) {
    let event = &transition.event;
    let mut line = format!("{}: {};", event.kind, sentence(event));
    add_facts(&mut line, event);
    if transition.retry {
        // Who told it before has died of it, or meanwhile.
        line.push_str(" retry=1");
    }
    (level(event), line)
}

fn add_facts(line: &mut String, event: &Event) {
    let mut fact = |name: &str, value: &dyn Display| {
        // Writing to a string cannot fail.
        let _ = write!(line, " {name}={value}");
    };
    let count = |n: Option<u32>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let counts = event.counts;
    fact("event", &event.seq);
    fact("generation", &event.generation);
    if event.pid != 0 {
        fact("pid", &event.pid);
    }
    if let Some(id) = event.worker_id {
        fact("worker", &id);
    }
    fact("cause", &event.cause);
    if let Some(signal) = event.signal {
        fact("signal", &signal);
    }
    if let Some(code) = event.exit_code {
        fact("exit_code", &code);
    }
    fact("prev", &count(counts.prev));
    fact("mine", &counts.mine);
    fact("next", &count(counts.next));
    fact("draining", &counts.draining);
    fact("total", &counts.total);
    match event.previous_run {
        Some(PreviousRun::Unclean { generation, workers }) => {
            fact("previous_run", &"unclean");
            fact("previous_generation", &generation);
            fact("previous_workers", &workers);
        }
        Some(PreviousRun::Clean) => fact("previous_run", &"clean"),
        Some(PreviousRun::None) => fact("previous_run", &"none"),
        _ => {}
    }
}

fn level(event: &Event) -> Level {
    match event.kind {
        Kind::WorkerDied | Kind::MasterLost => Level::Error,
        Kind::WorkerStalled => Level::Warn,
        _ if matches!(event.previous_run, Some(PreviousRun::Unclean { .. })) => Level::Warn,
        _ => Level::Notice,
    }
}
