//! An event as a line of error.log: its name, one sentence, and then its facts as `name=value`, for programs.

use std::fmt::{Display, Write as _};

use headcount_core::{Cause, Event, Kind, PreviousRun, Transition};

use crate::log::Level;

/// The line, and how much it should worry somebody.
pub(crate) fn line(transition: &Transition) -> (Level, String) {
    let event = &transition.event;
    let mut line = format!("{}: {};", event.kind, told(event));
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

fn told(event: &Event) -> String {
    let generation = event.generation;
    let number = event.worker_id.map_or_else(String::new, |id| format!(" {id}"));
    let worker = format!("worker{number} (process {}) of generation {generation}", event.pid);
    match event.kind {
        Kind::GenerationStarted => {
            let before = match event.previous_run {
                Some(PreviousRun::Clean) => "; the run before it was stopped properly".to_owned(),
                Some(PreviousRun::Unclean { generation, workers }) => format!(
                    "; the run before it ended uncleanly: {workers} workers of generation {generation} were running"
                ),
                _ => String::new(),
            };
            format!("generation {generation} begins, by {}{before}", event.cause)
        }
        Kind::GenerationEnded => match event.cause {
            Cause::Superseded => format!("generation {generation} has ended, another has taken over"),
            Cause::Stop => format!("generation {generation} has ended, the node stops"),
            cause => format!("generation {generation} has ended ({cause})"),
        },
        Kind::GenerationAbandoned => {
            format!("generation {generation} never comes, its configuration could not be put into force")
        }
        Kind::WorkerStarted => match event.cause {
            Cause::Respawn => format!("{worker} is there, in place of one that died"),
            cause => format!("{worker} is there, by {cause}"),
        },
        Kind::WorkerDraining => format!("{worker} takes no new work and finishes what it has"),
        Kind::WorkerExited => format!("{worker} leaves"),
        Kind::WorkerDied => format!("{worker} {}", ending(event)),
        Kind::WorkerStalled => format!("{worker} is alive and makes no progress{}", silence(event)),
        Kind::WorkerRecovered => format!("{worker} makes progress again"),
        Kind::MasterLost => {
            format!(
                "master (process {}) of generation {generation} {}, its workers live on",
                event.pid,
                ending(event)
            )
        }
        _ => format!("process {} of generation {generation}, {}", event.pid, event.cause),
    }
}

fn ending(event: &Event) -> String {
    match (event.signal, event.exit_code) {
        (Some(signal), _) => format!("was ended by signal {signal}"),
        (None, Some(code)) => format!("ended by itself with exit code {code}"),
        (None, None) => "is gone without having left, for a cause that this kernel does not tell".to_owned(),
    }
}

fn silence(event: &Event) -> String {
    if event.heartbeat_ns == 0 {
        return String::new();
    }
    format!(", since {:.1} s", event.boot_ns.saturating_sub(event.heartbeat_ns) as f64 / 1e9)
}
