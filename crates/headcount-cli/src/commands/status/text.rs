//! One node for people. Pure: what it says was read before.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Duration;

use anstyle::Style;
use headcount::{Cause, GenerationId, GenerationStatus, Liveness, Phase, ProcessStatus, Role, State};
use headcount_report::{Death, History, age, plural, sentence, signal_name};

use super::reading::{Drain, Reading};
use super::singletons;
use crate::alive;
use crate::escape::{escape, escape_path};
use crate::paint;
use crate::table::{Cell, Side, Table, paragraph};

/// So many deaths are shown one by one.
const MOST_DEATHS: usize = 8;

/// Everything about one node.
pub fn node(reading: &Reading) -> String {
    let mut out = String::new();
    head(reading, &mut out);
    warnings(reading, &mut out);
    // Of another boot are also the clocks that ages are computed with.
    if reading.registry.of_this_boot != Some(false) {
        generations(reading, &mut out);
        processes(reading, &mut out);
        singletons::write(&reading.snapshot.singletons, &mut out);
        watch(reading, &mut out);
        recent(reading, &mut out);
    }
    out
}

/// A registry that cannot be read.
pub fn unreadable(path: &std::path::Path, error: &headcount::Error) -> String {
    let mut out = String::new();
    let (bold, bad) = (paint::HEADING, paint::ERROR);
    // Writing into a `String` does not fail, here and below.
    let _ = writeln!(out, "{bold}registry {}{bold:#}", escape_path(path));
    paragraph(&mut out, 2, bad, &format!("cannot be read: {}", escape(&error.to_string())));
    out
}

fn head(reading: &Reading, out: &mut String) {
    let snapshot = &reading.snapshot;
    let bold = paint::HEADING;
    let _ = writeln!(out, "{bold}node {}{bold:#}  {}", escape(&snapshot.node), escape_path(&reading.path));
    let s = &snapshot.settings;
    paragraph(out, 2, Style::new(), &totals(reading));
    paragraph(
        out,
        2,
        paint::DIM,
        &format!(
            "heartbeat every {}, stalled after {}, lock timeout {}; run {}, event {}",
            age(s.heartbeat_interval),
            age(s.stall_after),
            age(s.lock_timeout),
            reading.registry.runs,
            snapshot.head,
        ),
    );
}

/// `5 workers: 4 serving, 1 draining; not counted: 1 stalled; 1 helper`. What is counted is what the server's own
/// counts are made of.
fn totals(reading: &Reading) -> String {
    if reading.registry.of_this_boot == Some(false) {
        return "no workers".to_owned();
    }
    let of = |role| reading.snapshot.processes.iter().filter(move |p| p.role == role);
    let mut states: Vec<(State, usize)> = Vec::new();
    for process in of(Role::Worker) {
        match states.iter_mut().find(|(state, _)| *state == process.state) {
            Some((_, n)) => *n += 1,
            None => states.push((process.state, 1)),
        }
    }
    let is_counted = |(state, _): &(State, usize)| {
        !matches!(state, State::Stalled | State::Died | State::Exited | State::Unknown)
    };
    let (counted, others): (Vec<_>, Vec<_>) = states.into_iter().partition(is_counted);
    let list = |states: &[(State, usize)]| {
        states.iter().map(|(state, n)| format!("{n} {}", state.name())).collect::<Vec<_>>().join(", ")
    };
    let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let mut text = match counted.as_slice() {
        [] => "no workers".to_owned(),
        [(state, 1)] => format!("1 worker, {}", state.name()),
        [(state, n)] => format!("{n} workers, all {}", state.name()),
        several => {
            let all = several.iter().map(|(_, n)| n).sum();
            format!("{}: {}", plural(number(all), "worker"), list(several))
        }
    };
    if !others.is_empty() {
        text.push_str(&format!("; not counted: {}", list(&others)));
    }
    for role in [Role::Helper, Role::Visitor] {
        match of(role).count() {
            0 => {}
            others => text.push_str(&format!("; {}", plural(number(others), role.name()))),
        }
    }
    text
}

fn warnings(reading: &Reading, out: &mut String) {
    if let Some(crashes) = &reading.history.crash_loop {
        let text = format!(
            "CRASH LOOP: {} died within {} of their start, the last one {} ago. They are replaced, and die again: \
             the server's error log says why.",
            plural(crashes.deaths.into(), "worker"),
            age(History::YOUNG),
            age(crashes.last)
        );
        paragraph(out, 2, paint::ERROR, &text);
    }
    if reading.nobody_is_alive() {
        let helpers =
            alive::only_helpers(&reading.snapshot).map_or(String::new(), |only| format!(" ({only})"));
        paragraph(out, 2, paint::ERROR, &format!("NOBODY IS ALIVE{helpers}: {}", how_it_ended(reading)));
    }
    let workers = workers(reading);
    let lost = |g: &&GenerationStatus| generation_state(&workers, g).0 == "orphaned";
    for g in reading.snapshot.generations.iter().filter(lost) {
        let text = format!(
            "MASTER LOST: {} is gone. The workers of generation {} still serve, but nothing replaces them.",
            g.master, g.id
        );
        paragraph(out, 2, paint::ERROR, &text);
    }
    for doubt in alive::doubts(&reading.snapshot) {
        paragraph(out, 2, paint::WARNING, &format!("UNKNOWN: {doubt}"));
    }
}

fn how_it_ended(reading: &Reading) -> String {
    let snapshot = &reading.snapshot;
    if reading.registry.of_this_boot == Some(false) {
        return "the registry is from an earlier boot of this host, and its server has not been started since."
            .to_owned();
    }
    let newest = reading.newest.as_ref().map(|e| {
        let ago = Duration::from_nanos(snapshot.boot_ns.saturating_sub(e.boot_ns));
        (ago, format!("the last event, {} ago: {}", age(ago), escape(&sentence(e))))
    });
    let beats = snapshot.processes.iter().filter(|p| p.role == Role::Worker).map(|p| p.heartbeat_age);
    // What nobody was left to report happened after the last thing that anybody said.
    let died = snapshot.processes.iter().filter(|p| p.state == State::Died).count();
    match (died, newest) {
        (0, Some((_, newest))) => format!("its server was stopped; {newest}."),
        (0, None) => "its server was never started.".to_owned(),
        (died, newest) => {
            let signs = beats.chain(newest.as_ref().map(|n| n.0));
            let since = signs.min().map_or(String::new(), |ago| {
                format!(" The last sign of life was {} ago; they have been dead since.", age(ago))
            });
            let died = if died == 1 { "1 process".to_owned() } else { format!("{died} processes") };
            format!("{died} died, and no process is left to report it.{since}")
        }
    }
}

fn generations(reading: &Reading, out: &mut String) {
    if reading.snapshot.generations.is_empty() {
        return;
    }
    let mut table = Table::new(&[
        ("GENERATION", Side::Right),
        ("CAUSE", Side::Left),
        ("AGE", Side::Left),
        ("STATE", Side::Left),
        ("WORKERS", Side::Right),
        ("DRAINING", Side::Right),
        ("MASTER", Side::Left),
    ]);
    let workers = workers(reading);
    for g in &reading.snapshot.generations {
        let (state, style) = generation_state(&workers, g);
        let short = state == "serving" && g.expected.is_some_and(|n| g.counts.mine < n);
        let workers = match g.expected {
            Some(expected) => format!("{} of {expected}", g.counts.mine),
            None => g.counts.mine.to_string(),
        };
        table.row(vec![
            Cell::new(g.id.to_string()),
            Cell::new(g.cause.name()),
            Cell::new(age(g.age)),
            Cell::new(state).style(style),
            Cell::new(workers).style(if short { paint::WARNING } else { Style::new() }),
            match g.counts.draining {
                0 => Cell::none(),
                n => Cell::new(n.to_string()),
            },
            match (g.master, g.master_alive) {
                (0, _) => Cell::none(),
                (pid, Some(true)) => Cell::new(pid.to_string()),
                (pid, Some(false)) => Cell::new(format!("{pid} gone")).style(paint::ERROR),
                (pid, None) => Cell::new(format!("{pid} unknown")).style(paint::DIM),
            },
        ]);
    }
    out.push('\n');
    table.write(out);
    for drain in &reading.draining {
        paragraph(out, 2, paint::DIM, &why_it_drains(drain));
    }
}

fn why_it_drains(drain: &Drain) -> String {
    let why = match drain.cause {
        Cause::Superseded => "another generation has taken over",
        Cause::Stop => "the node stops",
        Cause::Recycled => "its workers were told to leave",
        other => other.name(),
    };
    format!("generation {} has been draining for {}: {why}", drain.generation, age(drain.since))
}

/// The states of the workers by their generation.
type Workers = HashMap<GenerationId, Vec<State>>;

fn workers(reading: &Reading) -> Workers {
    let mut workers = Workers::new();
    for p in reading.snapshot.processes.iter().filter(|p| p.role == Role::Worker) {
        workers.entry(p.generation).or_default().push(p.state);
    }
    workers
}

/// What a generation is about, by its processes.
fn generation_state(workers: &Workers, g: &GenerationStatus) -> (&'static str, Style) {
    let workers = workers.get(&g.id).map_or(&[][..], Vec::as_slice);
    let gone = |s: &State| matches!(s, State::Died | State::Exited);
    let living: Vec<State> = workers.iter().filter(|s| !gone(s)).copied().collect();
    let all = |fits: fn(&State) -> bool| living.iter().all(fits);
    match g.phase {
        Phase::Announced => ("announced", paint::state(State::Starting)),
        Phase::Abandoned => ("abandoned", paint::DIM),
        Phase::Committed if living.is_empty() && workers.is_empty() => ("no workers", paint::WARNING),
        Phase::Committed if living.is_empty() => ("died", paint::ERROR),
        Phase::Committed if all(|s| *s == State::Unknown) => ("unknown", paint::DIM),
        Phase::Committed if all(|s| matches!(s, State::Draining | State::Leaving)) => {
            ("draining", paint::state(State::Draining))
        }
        Phase::Committed if all(|s| *s == State::Stalled) => ("stalled", paint::state(State::Stalled)),
        Phase::Committed if g.master_alive == Some(false) => ("orphaned", paint::state(State::Orphaned)),
        Phase::Committed if all(|s| *s == State::Starting) => ("starting", paint::state(State::Starting)),
        Phase::Committed => ("serving", paint::GOOD),
    }
}

fn processes(reading: &Reading, out: &mut String) {
    let mut table = Table::new(&[
        ("WORKER", Side::Right),
        ("PID", Side::Right),
        ("GEN", Side::Right),
        ("STATE", Side::Left),
        ("FOR", Side::Left),
        ("AGE", Side::Left),
        ("HEARTBEAT", Side::Left),
        ("CAUSE", Side::Left),
    ]);
    for p in &reading.snapshot.processes {
        let stall = reading.snapshot.settings.stall_after;
        table.row(vec![
            Cell::new(match (p.role, p.worker_id) {
                (Role::Worker, Some(id)) => id.to_string(),
                (role, _) => role.name().to_owned(),
            }),
            Cell::new(p.pid.to_string()),
            match p.generation {
                0 => Cell::none(),
                id => Cell::new(id.to_string()),
            },
            Cell::new(p.state.name()).style(paint::state(p.state)),
            state_for(p, stall).map_or_else(Cell::none, |d| Cell::new(age(d))),
            Cell::new(age(p.age)),
            heartbeat(p, stall),
            match (p.role, p.cause) {
                (Role::Master, _) => Cell::none(),
                (_, Cause::Respawn) => Cell::new("respawn").style(paint::WARNING),
                (_, cause) => Cell::new(cause.name()),
            },
        ]);
    }
    if !table.is_empty() {
        out.push('\n');
        table.write(out);
    }
}

/// For how long it has been in its state, where that is known.
fn state_for(p: &ProcessStatus, stall_after: Duration) -> Option<Duration> {
    match p.state {
        State::Starting | State::Serving | State::Draining | State::Leaving => Some(p.in_state_for),
        State::Stalled => p.heartbeat_age.checked_sub(stall_after),
        // When that happened stands in the journal, if anywhere.
        _ => None,
    }
}

fn heartbeat(p: &ProcessStatus, stall_after: Duration) -> Cell {
    if p.role != Role::Worker {
        return Cell::none();
    }
    let style = match p.state {
        State::Stalled => paint::state(State::Stalled),
        // Some servers cannot beat while they drain.
        State::Draining | State::Leaving => paint::DIM,
        _ if p.liveness == Liveness::Gone || p.heartbeat_age > stall_after => paint::DIM,
        _ => Style::new(),
    };
    Cell::new(age(p.heartbeat_age)).style(style)
}

fn watch(reading: &Reading, out: &mut String) {
    let snapshot = &reading.snapshot;
    out.push('\n');
    match snapshot.sentinel {
        Some(pid) => {
            let state = snapshot.processes.iter().find(|p| p.pid == pid).map(|p| p.state);
            let unfit = match state {
                Some(State::Died) if reading.nobody_is_alive() => ", died".to_owned(),
                Some(state @ (State::Died | State::Stalled | State::Exited)) => {
                    format!(", {}: the next live worker takes over", state.name())
                }
                _ => String::new(),
            };
            paragraph(out, 2, Style::new(), &format!("sentinel: {}{unfit}", who(reading, pid)));
        }
        None => paragraph(out, 2, Style::new(), "sentinel: none"),
    }
    let Some(holder) = &snapshot.holder else {
        return paragraph(out, 2, Style::new(), "node lock: free");
    };
    let callback = holder.callback.map_or(String::new(), |(kind, since)| {
        format!(", in the callback of {} for {}", kind.name(), age(since))
    });
    let text =
        format!("node lock: held by {} for {}{callback}", who(reading, holder.pid), age(holder.held_for));
    if holder.held_for > snapshot.settings.lock_timeout {
        let text = format!("{text}; that is longer than the lock timeout, so others have given up waiting");
        return paragraph(out, 2, paint::ERROR, &text);
    }
    let style = if holder.callback.is_some() { paint::WARNING } else { Style::new() };
    paragraph(out, 2, style, &text);
}

/// `worker 2 (pid 4711)`.
fn who(reading: &Reading, pid: u32) -> String {
    match reading.snapshot.processes.iter().find(|p| p.pid == pid) {
        Some(ProcessStatus { role: Role::Worker, worker_id: Some(id), .. }) => {
            format!("worker {id} (pid {pid})")
        }
        Some(p) => format!("{} (pid {pid})", p.role.name()),
        None => format!("pid {pid}"),
    }
}

fn recent(reading: &Reading, out: &mut String) {
    let history = &reading.history;
    let window = age(History::WINDOW);
    if history.deaths.is_empty() && history.respawns == 0 {
        return paragraph(out, 2, paint::DIM, &format!("last {window}: no deaths, no respawns"));
    }
    let deaths = plural(u64::try_from(history.deaths.len()).unwrap_or(u64::MAX), "death");
    let text = format!("last {window}: {deaths}, {}", plural(history.respawns.into(), "respawn"));
    paragraph(out, 2, paint::WARNING, &text);
    let mut table = Table::new(&[
        ("DIED", Side::Left),
        ("WORKER", Side::Right),
        ("PID", Side::Right),
        ("GEN", Side::Right),
        ("OF", Side::Left),
        ("AGED", Side::Left),
        ("WHILE", Side::Left),
    ]);
    for death in history.deaths.iter().take(MOST_DEATHS) {
        table.row(vec![
            Cell::new(format!("{} ago", age(death.age))),
            death.worker_id.map_or_else(Cell::none, |id| Cell::new(id.to_string())),
            Cell::new(death.pid.to_string()),
            Cell::new(death.generation.to_string()),
            Cell::new(how(death)).style(paint::ERROR),
            death.lived.map_or_else(Cell::none, |lived| {
                let style = if lived < History::YOUNG { paint::WARNING } else { Style::new() };
                Cell::new(age(lived)).style(style)
            }),
            death.was.map_or_else(Cell::none, |(state, time)| {
                Cell::new(format!("{} for {}", state.name(), age(time))).style(paint::state(state))
            }),
        ]);
    }
    if !table.is_empty() {
        table.write(out);
    }
    if let Some(more) = history.deaths.len().checked_sub(MOST_DEATHS).filter(|&n| n > 0) {
        paragraph(out, 2, paint::DIM, &format!("and {more} before them: see `headcount events`"));
    }
}

fn how(death: &Death) -> String {
    match (death.signal, death.exit_code) {
        (Some(signal), _) => signal_name(signal),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => "cause unknown".to_owned(),
    }
}
