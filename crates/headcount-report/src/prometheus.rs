//! A node as Prometheus metrics, in the text format 0.0.4.

use std::collections::BTreeMap;

use headcount::{Role, Snapshot, State};
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
    workers: IntGaugeVec,
    expected: IntGaugeVec,
    generation: IntGaugeVec,
    generation_workers: IntGaugeVec,
    generation_start: GaugeVec,
    master_up: IntGaugeVec,
    worker_start: GaugeVec,
    heartbeat_age: GaugeVec,
    events: IntCounterVec,
    lock_held: GaugeVec,
    crash_loop: IntGaugeVec,
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

impl Metrics {
    fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        let opts = |name: &str, help: &str| Opts::new(name, help).namespace("headcount");
        let ints =
            |name, help, labels: &[&str]| register(&registry, IntGaugeVec::new(opts(name, help), labels)?);
        let floats =
            |name, help, labels: &[&str]| register(&registry, GaugeVec::new(opts(name, help), labels)?);
        Ok(Metrics {
            workers: ints("workers", "Workers of all generations, by state.", &["node", "state"])?,
            expected: ints("workers_expected", "Workers that the newest generation should have.", &["node"])?,
            generation: ints(
                "generation",
                "Number of the newest generation that has, or had, workers.",
                &["node"],
            )?,
            generation_workers: ints(
                "generation_workers",
                "Live workers of a generation that are not stalled, including draining ones.",
                &["node", "generation"],
            )?,
            generation_start: floats(
                "generation_start_time_seconds",
                "When a generation began, in seconds since 1970.",
                &["node", "generation", "cause"],
            )?,
            master_up: ints(
                "master_up",
                "1 if the master of a generation is alive.",
                &["node", "generation"],
            )?,
            worker_start: floats(
                "worker_start_time_seconds",
                "When a worker joined, in seconds since 1970.",
                &["node", "generation", "worker", "pid"],
            )?,
            heartbeat_age: floats(
                "worker_heartbeat_age_seconds",
                "Age of a worker's last heartbeat.",
                &["node", "generation", "worker", "pid"],
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
                &["node"],
            )?,
            crash_loop: ints("crash_loop", "1 if workers keep dying soon after they start.", &["node"])?,
            registry,
        })
    }

    fn take(&self, snapshot: &Snapshot, history: &History) {
        let node = snapshot.node.as_str();
        let mut by_state: BTreeMap<&str, i64> = STATES.iter().map(|state| (state.name(), 0)).collect();
        let now = snapshot.time_ns as f64 / 1e9;
        for p in snapshot.processes.iter().filter(|p| p.role == Role::Worker) {
            *by_state.entry(p.state.name()).or_default() += 1;
            let worker = p.worker_id.map_or(String::new(), |id| id.to_string());
            let labels = [node, &p.generation.to_string(), &worker, &p.pid.to_string()];
            self.worker_start.with_label_values(&labels).set(now - p.age.as_secs_f64());
            self.heartbeat_age.with_label_values(&labels).set(p.heartbeat_age.as_secs_f64());
        }
        for (state, number) in by_state {
            self.workers.with_label_values(&[node, state]).set(number);
        }
        for g in &snapshot.generations {
            let id = g.id.to_string();
            self.generation_workers.with_label_values(&[node, &id]).set(g.counts.mine.into());
            let start = self.generation_start.with_label_values(&[node, &id, g.cause.name()]);
            start.set(g.begun_ns as f64 / 1e9);
            if let Some(alive) = g.master_alive {
                self.master_up.with_label_values(&[node, &id]).set(alive.into());
            }
        }
        if let Some(newest) = snapshot.newest_committed() {
            let id = i64::try_from(newest.id).unwrap_or(i64::MAX);
            self.generation.with_label_values(&[node]).set(id);
            if let Some(expected) = newest.expected {
                self.expected.with_label_values(&[node]).set(expected.into());
            }
        }
        for (kind, number) in &snapshot.event_counts {
            self.events.with_label_values(&[node, kind.name()]).inc_by(*number);
        }
        let held = snapshot.holder.as_ref().map_or(0.0, |holder| holder.held_for.as_secs_f64());
        self.lock_held.with_label_values(&[node]).set(held);
        self.crash_loop.with_label_values(&[node]).set(history.crash_loop.is_some().into());
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
