//! What this process says in error.log: an event as its name, one sentence, and then its facts as `name=value`, for
//! programs; the core's notices; and whom a call waits for.

use std::fmt::{Display, Write as _};
use std::time::{Duration, Instant};

use headcount_core::{
    Error, ErrorKind, Event, Kind, Node, NoticeLevel, PreviousRun, Transition, Transitions, Wait,
};
use headcount_report::sentence;

use crate::nginx::facts;
use crate::nginx::log::{Level, log};

/// Acts on what a call has to report: a line for each.
pub(crate) fn report(transitions: Transitions) {
    transitions.run(|transition| {
        tell(transition);
    });
}

/// Hands on to error.log what the core has to say.
pub(crate) fn log_notices(node: &Node) {
    for notice in node.take_notices() {
        let level = match notice.level {
            NoticeLevel::Notice => Level::Notice,
            NoticeLevel::Error => Level::Error,
            _ => Level::Warn,
        };
        log(level, &notice.text);
    }
}

/// Calls again while somebody else holds the node lock and there is time; logs who that is.
pub(crate) fn with_lock<T>(
    limit: Duration,
    mut call: impl FnMut(Wait) -> Result<T, Error>,
) -> Result<T, Error> {
    const SLICE: Duration = Duration::from_secs(1);
    let begun = Instant::now();
    let mut next_word = SLICE;
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        let answer = call(Wait::For(left.min(SLICE)));
        let waited = begun.elapsed();
        if waited > Duration::from_millis(1) {
            facts::update_time();
        }
        match answer {
            Err(error) if error.kind() == ErrorKind::LockTimeout && waited < limit => {
                if waited >= next_word {
                    log(Level::Notice, &format!("waiting for the node lock: {error}"));
                    next_word *= 2;
                }
            }
            answer => return answer,
        }
    }
}

/// Writes the line of an event.
pub(crate) fn tell(transition: &Transition) {
    let (level, line) = line(transition);
    log(level, &line);
}

/// The line, and how much it should worry somebody.
fn line(transition: &Transition) -> (Level, String) {
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
    if let Some(age) = event.age() {
        fact("age", &format_args!("{:.3}", age.as_secs_f64()));
    }
    if let Some((state, time)) = event.was() {
        fact("state", &state);
        fact("in_state_for", &format_args!("{:.3}", time.as_secs_f64()));
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
