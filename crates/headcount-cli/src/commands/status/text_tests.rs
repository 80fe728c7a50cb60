//! What `status` prints, of samples with one of everything.

use std::path::Path;
use std::time::Duration;

use headcount::{
    Cause, Doubt, Event, GenerationStatus, Holder, Kind, Liveness, Observer, Phase, ProcessStatus,
    RegistryInfo, Role, Snapshot, State,
};
use headcount_report::History;

use super::document::Document;
use super::reading::{Drain, Reading};
use super::text;

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// `(seconds ago, pid, signal, exit code, seconds lived)`.
type SampleDeath = (u64, u32, Option<i32>, Option<i32>, u64);

struct Sample {
    reading: Reading,
    died: Event,
    started: Event,
}

fn changed(event: &Event, change: impl FnOnce(&mut Event)) -> Event {
    let mut event = event.clone();
    change(&mut event);
    event
}

fn sample() -> Sample {
    let mut snapshot = Snapshot::new("nginx");
    snapshot.path = Some("/run/headcount/nginx.registry".into());
    snapshot.boot_ns = 10_000 * 1_000_000_000;
    snapshot.time_ns = 1_700_000_000_123_456_789;
    snapshot.head = 42;
    let mut registry = RegistryInfo::default();
    (registry.of_this_boot, registry.runs) = (Some(true), 1);
    let started = changed(&Event::new(Kind::WorkerStarted, Cause::Start), |e| {
        (e.generation, e.worker_id, e.role) = (1, Some(0), Some(Role::Worker));
        (e.boot_ns, e.counts.mine, e.counts.total) = (snapshot.boot_ns, 1, 1);
    });
    let died = changed(&started, |e| (e.kind, e.cause) = (Kind::WorkerDied, Cause::Signal));
    let reading = Reading {
        path: "/run/headcount/nginx.registry".into(),
        history: History::default(),
        newest: None,
        draining: Vec::new(),
        snapshot,
        registry,
    };
    Sample { reading, died, started }
}

impl Sample {
    /// A master, and generation 1 with its workers, numbered from 0, pids from 4712.
    fn serving(workers: u32) -> Sample {
        let mut sample = sample();
        let snapshot = &mut sample.reading.snapshot;
        let mut master = ProcessStatus::new(Role::Master, 4711, State::Serving);
        (master.age, master.in_state_for) = (7_500 * S, 7_500 * S);
        snapshot.processes.push(master);
        let mut g = GenerationStatus::new(1, Phase::Committed);
        (g.cause, g.master, g.master_alive) = (Cause::Start, 4711, Some(true));
        (g.age, g.expected, g.counts.mine) = (7_500 * S, Some(workers), workers);
        snapshot.generations.push(g);
        for id in 0..workers {
            let mut worker = ProcessStatus::new(Role::Worker, 4712 + id, State::Serving);
            (worker.generation, worker.worker_id, worker.cause) = (1, Some(id), Cause::Start);
            (worker.age, worker.in_state_for) = (7_499 * S, 7_498 * S);
            worker.heartbeat_age = (340 + id) * MS;
            snapshot.processes.push(worker);
        }
        snapshot.total = workers;
        snapshot.sentinel = Some(4712);
        sample
    }

    fn worker(&mut self, id: u32) -> &mut ProcessStatus {
        let processes = &mut self.reading.snapshot.processes;
        processes.iter_mut().find(|p| p.worker_id == Some(id) && p.generation == 1).expect("a worker")
    }

    fn generation(&mut self) -> &mut GenerationStatus {
        &mut self.reading.snapshot.generations[0]
    }

    fn kill(&mut self, fits: fn(&ProcessStatus) -> bool) {
        for p in self.reading.snapshot.processes.iter_mut().filter(|p| fits(p)) {
            (p.state, p.liveness) = (State::Died, Liveness::Gone);
        }
    }

    fn history(&mut self, deaths: &[SampleDeath]) {
        let now = self.reading.snapshot.boot_ns;
        let mut events = Vec::new();
        for &(ago, pid, signal, exit_code, lived) in deaths {
            let at = |ago: u64| now - ago * 1_000_000_000;
            events.push(changed(&self.started, |e| {
                (e.pid, e.cause, e.boot_ns) = (pid, Cause::Respawn, at(ago + lived));
            }));
            events.push(changed(&self.died, |e| {
                (e.pid, e.signal, e.exit_code, e.boot_ns) = (pid, signal, exit_code, at(ago));
            }));
        }
        self.reading.history = History::of(&events, &self.reading.snapshot);
    }

    fn text(&self) -> String {
        let text = anstream::adapter::strip_str(&text::node(&self.reading)).to_string();
        assert!(!text.contains('\u{1b}'));
        text
    }
}

fn fits(text: &str) {
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "wider than a terminal: {line}");
        assert_eq!(line, line.trim_end());
    }
}

#[test]
fn healthy() {
    let text = Sample::serving(4).text();
    fits(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn reloaded_with_one_that_drains() {
    let mut sample = Sample::serving(4);
    let snapshot = &mut sample.reading.snapshot;
    snapshot.processes.retain(|p| p.role == Role::Master || p.worker_id == Some(1));
    let mut old = snapshot.processes.pop().expect("worker 1");
    (old.state, old.in_state_for, old.heartbeat_age) = (State::Draining, 193 * S, 193 * S);
    let mut new = old.clone();
    snapshot.processes.push(old);
    let mut g = snapshot.generations[0].clone();
    (g.id, g.cause, g.age, g.counts.mine, g.expected) = (2, Cause::Reload, 195 * S, 2, Some(2));
    (snapshot.generations[0].counts.mine, snapshot.generations[0].counts.draining) = (1, 1);
    snapshot.generations.push(g);
    for id in 0..2 {
        (new.pid, new.worker_id, new.generation) = (4800 + id, Some(id), 2);
        (new.state, new.cause) = (State::Serving, Cause::Reload);
        (new.age, new.in_state_for, new.heartbeat_age) = (194 * S, 194 * S, 20 * MS);
        snapshot.processes.push(new.clone());
    }
    (new.role, new.pid, new.worker_id) = (Role::Helper, 4802, None);
    snapshot.processes.push(new);
    sample.reading.draining = vec![Drain { generation: 1, since: 194 * S, cause: Cause::Superseded }];
    let text = sample.text();
    fits(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn stalled_died_and_short_of_one() {
    let mut sample = Sample::serving(4);
    let stalled = sample.worker(1);
    (stalled.state, stalled.heartbeat_age) = (State::Stalled, 72 * S);
    let died = sample.worker(3);
    (died.state, died.liveness, died.heartbeat_age) = (State::Died, Liveness::Gone, 2 * S);
    sample.worker(2).cause = Cause::Respawn;
    sample.generation().counts.mine = 2;
    sample.history(&[(200, 4600, Some(9), None, 3_000), (12, 4601, None, Some(3), 3_800)]);
    let text = sample.text();
    fits(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn crash_loop() {
    let mut sample = Sample::serving(2);
    let deaths: Vec<_> = (0..11).map(|n| (120 - n * 11, 4600 + n as u32, Some(11), None, 9)).collect();
    sample.history(&deaths);
    let text = sample.text();
    fits(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn somebody_holds_the_lock() {
    let mut sample = Sample::serving(2);
    let mut holder = Holder::new(4713);
    holder.held_for = 12 * S;
    holder.callback = Some((Kind::WorkerDied, 12 * S));
    sample.reading.snapshot.holder = Some(holder.clone());
    let text = sample.text();
    fits(&text);
    insta::assert_snapshot!(text);
    // Others wait no longer than that.
    (holder.pid, holder.held_for, holder.callback) = (99, 31 * S, None);
    sample.reading.snapshot.holder = Some(holder);
    let text = sample.text();
    fits(&text);
    let lock: Vec<_> = text.lines().skip_while(|line| !line.contains("node lock")).take(2).collect();
    let expected = [
        "  node lock: held by pid 99 for 31 s; that is longer than the lock timeout, so",
        "    others have given up waiting",
    ];
    assert_eq!(lock, expected);
}

#[test]
fn killed_as_a_whole() {
    let mut sample = Sample::serving(2);
    sample.kill(|_| true);
    sample.generation().master_alive = Some(false);
    sample.generation().counts.mine = 0;
    sample.reading.newest = Some(changed(&sample.started, |e| e.boot_ns = 4_000_000_000_000));
    sample.worker(0).heartbeat_age = 75 * S;
    sample.worker(1).heartbeat_age = 75 * S;
    let text = sample.text();
    fits(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn only_a_helper_is_left() {
    let mut sample = Sample::serving(2);
    sample.kill(|_| true);
    sample.generation().master_alive = Some(false);
    sample.generation().counts.mine = 0;
    let mut helper = ProcessStatus::new(Role::Helper, 4720, State::Serving);
    (helper.generation, helper.cause) = (1, Cause::Start);
    sample.reading.snapshot.processes.push(helper);
    assert!(sample.reading.nobody_is_alive());
    let text = sample.text();
    fits(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn orphaned() {
    let mut sample = Sample::serving(2);
    sample.kill(|p| p.role == Role::Master);
    sample.generation().master_alive = Some(false);
    sample.worker(0).state = State::Orphaned;
    sample.worker(1).state = State::Orphaned;
    insta::assert_snapshot!(sample.text());
}

#[test]
fn stopped() {
    let mut sample = Sample::serving(2);
    let snapshot = &mut sample.reading.snapshot;
    (snapshot.processes, snapshot.generations, snapshot.sentinel) = (Vec::new(), Vec::new(), None);
    let boot_ns = snapshot.boot_ns - 3_600_000_000_000;
    sample.reading.newest =
        Some(changed(&sample.started, |e| (e.kind, e.pid, e.boot_ns) = (Kind::MasterExited, 4711, boot_ns)));
    let text = sample.text();
    fits(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn of_another_boot() {
    let mut sample = Sample::serving(2);
    sample.reading.registry.of_this_boot = Some(false);
    sample.kill(|_| true);
    insta::assert_snapshot!(sample.text());
}

#[test]
fn what_cannot_be_seen_is_unknown() {
    let mut sample = Sample::serving(2);
    let zombie = sample.worker(1);
    (zombie.state, zombie.liveness) = (State::Unknown, Liveness::Unknown(Doubt::OtherNamespace));
    sample.generation().counts.mine = 1;
    let text = sample.text();
    fits(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn what_a_registry_says_is_not_obeyed() {
    let mut sample = Sample::serving(1);
    sample.reading.snapshot.node = "evil\u{1b}[2J".into();
    sample.reading.path = "/tmp/\u{1b}]0;pwned\u{7}.registry".into();
    for p in &mut sample.reading.snapshot.processes {
        (p.pid, p.worker_id, p.generation) = (u32::MAX, Some(u32::MAX), u64::MAX);
        (p.age, p.in_state_for, p.heartbeat_age) = (Duration::MAX, Duration::MAX, Duration::MAX);
    }
    let g = sample.generation();
    (g.id, g.age, g.expected, g.counts.mine) = (u64::MAX, Duration::MAX, Some(u32::MAX), u32::MAX);
    sample.reading.snapshot.settings.stall_after = Duration::MAX;
    let text = sample.text();
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    assert!(text.contains("evil\\u{1b}[2J"), "{text}");
    serde_json::to_string(&Document::new(&[sample.reading], &[])).expect("a document of it");
}

#[test]
fn colours_are_those_of_the_states() {
    let mut sample = Sample::serving(2);
    let stalled = sample.worker(1);
    (stalled.state, stalled.heartbeat_age) = (State::Stalled, 72 * S);
    let text = text::node(&sample.reading);
    assert!(text.contains("\u{1b}[32mserving\u{1b}[0m"), "{text:?}");
    assert!(text.contains("\u{1b}[1m\u{1b}[35mstalled\u{1b}[0m"), "{text:?}");
}

#[test]
fn as_a_document() {
    let mut sample = Sample::serving(1);
    sample.reading.registry.runs = 3;
    sample.generation().begun_ns = 1_700_000_000_000_000_000;
    sample.history(&[(12, 4601, Some(9), None, 3_800)]);
    let error = Observer::open(Path::new("/nowhere/x.registry")).err().expect("there is none");
    let unreadable = [("/nowhere/x.registry".into(), error)];
    let document = Document::new(&[sample.reading], &unreadable);
    insta::assert_snapshot!(serde_json::to_string_pretty(&document).expect("a document"));
}
