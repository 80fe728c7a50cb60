//! What `status` reads of one node.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use headcount::{Cause, Cursor, Event, Kind, Liveness, Observer, RegistryInfo, Snapshot};
use headcount_report::History;

use crate::find;

/// One node at one instant, with what came before.
pub struct Reading {
    pub path: PathBuf,
    pub snapshot: Snapshot,
    pub registry: RegistryInfo,
    pub history: History,
    /// The newest event, if the journal has one.
    pub newest: Option<Event>,
    pub draining: Vec<Drain>,
}

/// As metrics for Prometheus, which know a node by its name: of several of one name, the one that is meant.
pub fn metrics(readings: &[Reading]) -> anyhow::Result<String> {
    let meant = find::meant_of_each_name(readings, |reading| (&reading.path, &reading.snapshot));
    let nodes = meant.into_iter().map(|reading| (&reading.snapshot, &reading.history));
    Ok(headcount_report::prometheus(nodes)?)
}

/// A registry that cannot be read, and why.
pub type Unreadable = (PathBuf, headcount::Error);

/// A generation whose workers drain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    pub generation: u64,
    /// Since its first worker was told to.
    pub since: Duration,
    pub cause: Cause,
}

impl Reading {
    pub fn at(path: PathBuf, observer: &Observer) -> headcount::Result<Reading> {
        let registry = observer.registry()?;
        let snapshot = observer.snapshot()?;
        let events = observer.events(&mut Cursor::oldest(), usize::MAX)?.events;
        // The clock that ages are computed with began anew with this boot.
        let events = &events[events.partition_point(|event| event.seq <= snapshot.earlier_boots)..];
        Ok(Reading {
            history: History::of(events, &snapshot),
            newest: events.last().cloned(),
            draining: draining(events, &snapshot),
            path,
            snapshot,
            registry,
        })
    }

    /// Certain: no master and no worker of the node is alive.
    pub fn nobody_is_alive(&self) -> bool {
        self.snapshot.liveness() == Liveness::Gone
    }
}

/// Why the generations that drain do, and since when.
fn draining(events: &[Event], snapshot: &Snapshot) -> Vec<Drain> {
    let mut first = HashMap::new();
    for event in events.iter().filter(|e| e.kind == Kind::WorkerDraining) {
        first.entry(event.generation).or_insert(event);
    }
    let drain = |event: &Event| Drain {
        generation: event.generation,
        since: Duration::from_nanos(snapshot.boot_ns.saturating_sub(event.boot_ns)),
        cause: event.cause,
    };
    let drains = snapshot.generations.iter().filter(|g| g.counts.draining > 0);
    drains.filter_map(|g| first.get(&g.id).copied()).map(drain).collect()
}
