//! Nodes as Prometheus metrics, in the text format 0.0.4.
//!
//! A label has few values, which do not change with a reload, a respawn or a restart: each new one would be a new time series,
//! kept for as long as Prometheus keeps anything. So a worker is known by its number, not its pid, and a generation by
//! whether it is the current one or an old one, not by its number.

use std::collections::BTreeMap;

use headcount::{GenerationId, Liveness, Role, SingletonKind, Snapshot, State};
use prometheus::core::Collector;
use prometheus::{Encoder, GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::history::History;

/// The content type of an answer in this format.
pub const PROMETHEUS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics of these nodes.
///
/// # Errors
/// None is known: the names are constants, and writing into memory does not fail.
pub fn prometheus<'a>(
    nodes: impl IntoIterator<Item = (&'a Snapshot, &'a History)>,
) -> Result<String, prometheus::Error> {
    let metrics = Metrics::new()?;
    for (snapshot, history) in nodes {
        metrics.take(snapshot, history);
    }
    let mut text = Vec::new();
    TextEncoder::new().encode(&metrics.registry.gather(), &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

struct Metrics {
    registry: Registry,
    node_up: IntGaugeVec,
    workers: IntGaugeVec,
    expected: IntGaugeVec,
    generation: IntGaugeVec,
    old_generations: IntGaugeVec,
    generation_workers: IntGaugeVec,
    generation_start: GaugeVec,
    master_up: IntGaugeVec,
    draining: GaugeVec,
    worker_start: GaugeVec,
    heartbeat_age: GaugeVec,
    events: IntCounterVec,
    lock_held: GaugeVec,
    crash_loop: IntGaugeVec,
    leader: IntGaugeVec,
    leader_since: GaugeVec,
    named_lock_held: GaugeVec,
    named_lock_waiters: IntGaugeVec,
    once: IntGaugeVec,
}

/// The states that a worker can be in, so that each has a sample even while no worker is in it.
const STATES: [State; 8] = [
    State::Starting,
    State::Serving,
    State::Draining,
    State::Leaving,
    State::Stalled,
    State::Orphaned,
    State::Died,
    State::Unknown,
];

/// The values of the label `generation`.
const GENERATIONS: [&str; 2] = ["current", "old"];

/// Which of them a generation is. Of old ones there may be several, whose samples are one.
fn which(generation: GenerationId, current: Option<GenerationId>) -> &'static str {
    if current.is_some_and(|current| generation >= current) { "current" } else { "old" }
}

impl Metrics {
    fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        let opts = |name: &str, help: &str| Opts::new(name, help).namespace("headcount");
        let ints =
            |name, help, labels: &[&str]| register(&registry, IntGaugeVec::new(opts(name, help), labels)?);
        let floats =
            |name, help, labels: &[&str]| register(&registry, GaugeVec::new(opts(name, help), labels)?);
        const NODE: &[&str] = &["node"];
        const GENERATION: &[&str] = &["node", "generation"];
        const ROLE: &[&str] = &["node", "role"];
        const LOCK: &[&str] = &["node", "lock"];
        const WORKER: &[&str] = &["node", "generation", "worker"];
        Ok(Metrics {
            node_up: ints("node_up", "1 if a master or a worker of the node is alive.", NODE)?,
            workers: ints("workers", "Workers by state.", &["node", "generation", "state"])?,
            expected: ints("workers_expected", "Workers that the current generation should have.", NODE)?,
            generation: ints("generation", "Number of the current generation.", NODE)?,
            old_generations: ints("old_generations", "Older generations that have not ended.", NODE)?,
            generation_workers: ints(
                "generation_workers",
                "Live workers that are not stalled, including draining ones.",
                GENERATION,
            )?,
            generation_start: floats(
                "generation_start_time_seconds",
                "When the current generation, or the oldest of the old ones, began, in seconds since 1970.",
                GENERATION,
            )?,
            master_up: ints("master_up", "1 if the master is alive; of several, if all are.", GENERATION)?,
            draining: floats(
                "draining_seconds",
                "How long the worker that has drained the longest has been draining; 0 if none drains.",
                GENERATION,
            )?,
            worker_start: floats(
                "worker_start_time_seconds",
                "When a live worker joined, in seconds since 1970; of several with one number, the first.",
                WORKER,
            )?,
            heartbeat_age: floats(
                "worker_heartbeat_age_seconds",
                "Age of a live worker's last heartbeat; of several with one number, the highest.",
                WORKER,
            )?,
            events: register(
                &registry,
                IntCounterVec::new(
                    opts("events_total", "Events since the registry was created, by kind."),
                    &["node", "kind"],
                )?,
            )?,
            lock_held: floats(
                "node_lock_held_seconds",
                "How long the node lock has been held; 0 if it is free.",
                NODE,
            )?,
            crash_loop: ints("crash_loop", "1 if workers keep dying soon after they start.", NODE)?,
            leader: ints(
                "leader",
                "1 if a worker leads in this role, 0 if none of those who stand for it is fit.",
                ROLE,
            )?,
            leader_since: floats(
                "leader_start_time_seconds",
                "When the present leader of a role was elected, in seconds since 1970.",
                ROLE,
            )?,
            named_lock_held: floats(
                "named_lock_held_seconds",
                "How long a named lock has been held; 0 if it is free.",
                LOCK,
            )?,
            named_lock_waiters: ints("named_lock_waiters", "Processes that wait for a named lock.", LOCK)?,
            once: ints(
                "once",
                "What is to be done once, by state; of one key in several generations, all.",
                &["node", "scope", "key", "state"],
            )?,
            registry,
        })
    }

    fn take(&self, snapshot: &Snapshot, history: &History) {
        let node = &[snapshot.node.as_str()];
        let newest = snapshot.newest_committed();
        let current = newest.map(|g| g.id);
        match snapshot.liveness() {
            Liveness::Unknown(_) => {}
            known => self.node_up.with_label_values(node).set((known == Liveness::Alive).into()),
        }
        self.workers(snapshot, current);
        self.generations(snapshot, current);
        if let Some(newest) = newest {
            let id = i64::try_from(newest.id).unwrap_or(i64::MAX);
            self.generation.with_label_values(node).set(id);
            if let Some(expected) = newest.expected {
                self.expected.with_label_values(node).set(expected.into());
            }
        }
        for (kind, number) in &snapshot.event_counts {
            self.events.with_label_values(&[node[0], kind.name()]).inc_by(*number);
        }
        let held = snapshot.holder.as_ref().map_or(0.0, |holder| holder.held_for.as_secs_f64());
        self.lock_held.with_label_values(node).set(held);
        self.crash_loop.with_label_values(node).set(history.crash_loop.is_some().into());
        self.singletons(snapshot);
    }

    fn singletons(&self, snapshot: &Snapshot) {
        let (node, now) = (snapshot.node.as_str(), snapshot.time_ns as f64 / 1e9);
        for x in &snapshot.singletons {
            let labels = [node, x.name.as_str()];
            let since = x.since.as_secs_f64();
            match x.kind {
                SingletonKind::Role => {
                    self.leader.with_label_values(&labels).set(x.holder.is_some().into());
                    if x.holder.is_some() {
                        self.leader_since.with_label_values(&labels).set(now - since);
                    }
                }
                SingletonKind::Lock => {
                    let held = if x.holder.is_some() { since } else { 0.0 };
                    self.named_lock_held.with_label_values(&labels).set(held);
                    self.named_lock_waiters.with_label_values(&labels).set(x.waiters.into());
                }
                SingletonKind::Once => {
                    let scope = if x.generation == 0 { "node" } else { "generation" };
                    self.once.with_label_values(&[node, scope, &x.name, x.state.name()]).inc();
                }
                _ => {}
            }
        }
    }

    fn workers(&self, snapshot: &Snapshot, current: Option<GenerationId>) {
        let node = snapshot.node.as_str();
        let now = snapshot.time_ns as f64 / 1e9;
        for generation in GENERATIONS {
            for state in STATES {
                self.workers.with_label_values(&[node, generation, state.name()]).set(0);
            }
            self.draining.with_label_values(&[node, generation]).set(0.0);
        }
        // Age and heartbeat.
        let mut oldest = BTreeMap::<_, (f64, f64)>::new();
        for p in snapshot.processes.iter().filter(|p| p.role == Role::Worker) {
            let generation = which(p.generation, current);
            self.workers.with_label_values(&[node, generation, p.state.name()]).inc();
            if matches!(p.state, State::Draining | State::Leaving) {
                let draining = self.draining.with_label_values(&[node, generation]);
                draining.set(draining.get().max(p.in_state_for.as_secs_f64()));
            }
            if p.liveness != Liveness::Gone {
                let (age, heartbeat) = oldest.entry((generation, p.worker_id)).or_default();
                *age = age.max(p.age.as_secs_f64());
                *heartbeat = heartbeat.max(p.heartbeat_age.as_secs_f64());
            }
        }
        for ((generation, number), (age, heartbeat)) in oldest {
            let number = number.map_or(String::new(), |number| number.to_string());
            let labels = [node, generation, &number];
            self.worker_start.with_label_values(&labels).set(now - age);
            self.heartbeat_age.with_label_values(&labels).set(heartbeat);
        }
    }

    fn generations(&self, snapshot: &Snapshot, current: Option<GenerationId>) {
        let node = snapshot.node.as_str();
        for generation in GENERATIONS {
            let these = || snapshot.generations.iter().filter(|g| which(g.id, current) == generation);
            let labels = [node, generation];
            let workers: i64 = these().map(|g| i64::from(g.counts.mine)).sum();
            self.generation_workers.with_label_values(&labels).set(workers);
            if let Some(begun_ns) = these().map(|g| g.begun_ns).min() {
                self.generation_start.with_label_values(&labels).set(begun_ns as f64 / 1e9);
            }
            if let Some(up) = these().filter_map(|g| g.master_alive).min() {
                self.master_up.with_label_values(&labels).set(up.into());
            }
            if generation == "old" {
                let number = i64::try_from(these().count()).unwrap_or(i64::MAX);
                self.old_generations.with_label_values(&[node]).set(number);
            }
        }
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use headcount::{GenerationStatus, Phase, ProcessStatus, SingletonState, SingletonStatus};

    use super::*;

    /// A worker of this generation and number that joined and began its state so many seconds ago.
    fn worker(generation: u64, number: u32, pid: u32, state: State, seconds: u64) -> ProcessStatus {
        let mut worker = ProcessStatus::new(Role::Worker, pid, state);
        (worker.generation, worker.worker_id) = (generation, Some(number));
        worker.age = Duration::from_secs(seconds);
        worker.in_state_for = worker.age;
        worker.heartbeat_age = Duration::from_millis(100 * seconds);
        worker
    }

    fn node(generation: u64) -> Snapshot {
        let mut snapshot = Snapshot::new("edge");
        snapshot.time_ns = 1_000_000_000_000;
        snapshot.generations = (1..=3)
            .map(|n| {
                let mut g = GenerationStatus::new(generation - 3 + n, Phase::Committed);
                (g.begun_ns, g.counts.mine) = (n * 100_000_000_000, 1);
                (g.expected, g.master_alive) = (Some(2), Some(n > 1));
                g
            })
            .collect();
        // Its configuration is being loaded: nobody knows yet what becomes of it.
        let mut announced = GenerationStatus::new(generation + 1, Phase::Announced);
        announced.begun_ns = 999_000_000_000;
        snapshot.generations.push(announced);
        let pid = u32::try_from(generation).unwrap();
        snapshot.processes = vec![
            worker(generation - 2, 0, pid + 1, State::Draining, 80),
            worker(generation - 1, 0, pid + 2, State::Draining, 60),
            worker(generation, 0, pid + 3, State::Serving, 9),
            // It died and was replaced.
            worker(generation, 1, pid + 4, State::Died, 8),
            worker(generation, 1, pid + 5, State::Stalled, 7),
        ];
        snapshot
    }

    fn text(snapshot: &Snapshot) -> String {
        prometheus([(snapshot, &History::default())]).unwrap()
    }

    fn series(text: &str) -> Vec<&str> {
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|l| Some(l.rsplit_once(' ')?.0))
            .collect()
    }

    #[test]
    fn old_generations_are_one_and_show_the_worst_case() {
        let text = text(&node(3));
        for line in [
            r#"headcount_node_up{node="edge"} 1"#,
            r#"headcount_generation{node="edge"} 3"#,
            r#"headcount_old_generations{node="edge"} 2"#,
            r#"headcount_workers{generation="old",node="edge",state="draining"} 2"#,
            r#"headcount_workers{generation="current",node="edge",state="stalled"} 1"#,
            r#"headcount_workers{generation="current",node="edge",state="died"} 1"#,
            r#"headcount_draining_seconds{generation="old",node="edge"} 80"#,
            r#"headcount_draining_seconds{generation="current",node="edge"} 0"#,
            r#"headcount_generation_workers{generation="old",node="edge"} 2"#,
            r#"headcount_generation_start_time_seconds{generation="old",node="edge"} 100"#,
            r#"headcount_generation_start_time_seconds{generation="current",node="edge"} 300"#,
            r#"headcount_master_up{generation="old",node="edge"} 0"#,
            r#"headcount_master_up{generation="current",node="edge"} 1"#,
            r#"headcount_worker_start_time_seconds{generation="old",node="edge",worker="0"} 920"#,
            r#"headcount_worker_heartbeat_age_seconds{generation="old",node="edge",worker="0"} 8"#,
            r#"headcount_worker_start_time_seconds{generation="current",node="edge",worker="1"} 993"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_reload_makes_no_new_time_series() {
        let (before, after) = (text(&node(3)), text(&node(4_711)));
        assert_ne!(before, after);
        assert_eq!(series(&before), series(&after));
        assert!(!before.contains("pid"), "{before}");
    }

    #[test]
    fn roles_onces_and_locks_are_known_by_their_names() {
        let mut snapshot = node(3);
        let mut role = SingletonStatus::new(SingletonKind::Role, "cron", SingletonState::Held);
        (role.holder, role.since) = (Some(7), Duration::from_secs(10));
        let mut lock = SingletonStatus::new(SingletonKind::Lock, "keys", SingletonState::Free);
        (lock.waiters, lock.since) = (2, Duration::from_secs(5));
        let once = |generation| {
            let mut once = SingletonStatus::new(SingletonKind::Once, "warm", SingletonState::Done);
            once.generation = generation;
            once
        };
        snapshot.singletons = vec![role, lock, once(2), once(3)];
        let text = text(&snapshot);
        for line in [
            r#"headcount_leader{node="edge",role="cron"} 1"#,
            r#"headcount_leader_start_time_seconds{node="edge",role="cron"} 990"#,
            r#"headcount_named_lock_held_seconds{lock="keys",node="edge"} 0"#,
            r#"headcount_named_lock_waiters{lock="keys",node="edge"} 2"#,
            r#"headcount_once{key="warm",node="edge",scope="generation",state="done"} 2"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_node_of_which_nothing_is_left_is_down() {
        let text = text(&Snapshot::new("edge"));
        for line in [
            r#"headcount_node_up{node="edge"} 0"#,
            r#"headcount_generation_workers{generation="current",node="edge"} 0"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("headcount_master_up{"), "{text}");
    }
}
