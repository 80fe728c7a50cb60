//! One node of this host: what is to be told of it, and what has been told.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use headcount::{Cursor, Event, Observer, RegistryInfo, Snapshot};
use headcount_report::{EventDocument, History};
use serde_json::Value;

use crate::value::{EventValue, NodeValue, VERSION};

/// So many events go into one write: etcd takes 128 operations at once.
pub(crate) const AT_ONCE: usize = 64;
/// So many events that were not told yet are caught up with. Of more, the oldest are counted and not told.
pub(crate) const CATCH_UP: u64 = 1024;
/// So many events are kept to tell a crash loop by.
const REMEMBERED: usize = 2048;

/// What was told of a node, as etcd has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Told {
    /// Of the key; 0 if there is none.
    pub(crate) revision: i64,
    pub(crate) value: Option<NodeValue>,
}

/// What there is to write.
#[derive(Debug)]
pub(crate) struct Writing {
    pub(crate) events: Vec<(u64, EventValue)>,
    pub(crate) value: NodeValue,
    /// There is more to tell than fits into one write.
    pub(crate) more: bool,
    /// How many events are left out, and told by their number.
    pub(crate) skipped: u64,
}

/// A node, read through its registry.
pub(crate) struct Node {
    path: PathBuf,
    observer: Option<Observer>,
    info: RegistryInfo,
    /// The last events, and where the next one is read.
    recent: VecDeque<Event>,
    recent_to: Cursor,
    /// Of which registry of it what was told, and how many events of that were not. Another node of its name may be told meanwhile.
    told_last: Option<(String, u64, u64)>,
}

impl Node {
    pub(crate) fn new(path: &Path) -> Node {
        Node {
            path: path.to_owned(),
            observer: None,
            info: RegistryInfo::default(),
            recent: VecDeque::new(),
            recent_to: Cursor::oldest(),
            told_last: None,
        }
    }

    /// Which registry it is.
    pub(crate) fn registry(&self) -> String {
        format!("{:x}", self.info.created_ns)
    }

    /// The node at this instant.
    pub(crate) fn look(&mut self) -> headcount::Result<(Snapshot, NodeValue)> {
        if self.observer.as_ref().is_none_or(|observer| !observer.is_current()) {
            // One that was removed, and not replaced, may still be alive: it stays open.
            match (Observer::open(&self.path), &self.observer) {
                (Ok(observer), _) => {
                    self.info = observer.registry()?;
                    self.recent.clear();
                    let head = observer.newest_seq()?;
                    self.recent_to = Cursor::at(head.saturating_sub(REMEMBERED as u64) + 1);
                    self.observer = Some(observer);
                }
                (Err(error), None) => return Err(error),
                (Err(_), Some(_)) => {}
            }
        }
        let Some(observer) = &self.observer else {
            unreachable!("it was opened, or there was one before");
        };
        let snapshot = observer.snapshot()?;
        self.recent.extend(observer.events(&mut self.recent_to, REMEMBERED)?.events);
        while self.recent.len() > REMEMBERED
            || self.recent.front().is_some_and(|event| is_old(event, &snapshot))
        {
            self.recent.pop_front();
        }
        let value = NodeValue::of(&snapshot, &History::of(&self.recent, &snapshot));
        Ok((snapshot, value))
    }

    /// What is to be written of what was just looked at, if etcd has `told`. `since`: since when this host is there, by the wall clock,
    /// and by the boot's. `there`: the registries of all nodes of this host.
    pub(crate) fn writing(
        &self,
        (snapshot, mut value): (Snapshot, NodeValue),
        told: &Told,
        since: (f64, u64),
        there: &BTreeSet<String>,
    ) -> headcount::Result<Option<Writing>> {
        let Some(observer) = &self.observer else { return Ok(None) };
        value.registry = self.registry();
        let head = snapshot.head;
        // Where to go on. Of a node that was not known there, what it did before its host was there is history.
        let (from, mut missed) = match &told.value {
            None => (newest_before(observer, head, since)?, 0),
            Some(old) if old.registry == value.registry => (old.head.min(head), old.missed),
            // The numbers go on.
            Some(old) if self.goes_on_from(&old.registry) => (old.head.min(head), old.missed),
            // Another node of this name was told since.
            Some(old) if there.contains(&old.registry) => match &self.told_last {
                Some((registry, told, missed)) if *registry == value.registry => (*told.min(&head), *missed),
                _ => (0, 0),
            },
            // A registry that is gone, also where etcd was set back: then it has nothing of this one.
            Some(_) => (0, 0),
        };
        let start = from.max(head.saturating_sub(CATCH_UP));
        let mut cursor = Cursor::at(start + 1);
        let batch = observer.events(&mut cursor, AT_ONCE)?;
        let last = batch.events.last().map_or(start, |event| event.seq);
        let told_now = batch.events.len() as u64;
        // What lies between was skipped here, or overwritten before it could be read.
        let skipped = last.saturating_sub(from).saturating_sub(told_now);
        // What was read there may be any number.
        missed = missed.saturating_add(skipped);
        (value.head, value.missed) = (last, missed);
        let more = last < head;
        let changed = told.value.as_ref().is_none_or(|old| !old.agrees(&value));
        if !changed {
            return Ok(None);
        }
        value.time = snapshot.time_ns as f64 / 1e9;
        let events = batch.events.iter().map(|event| (event.seq, document(&snapshot.node, event))).collect();
        Ok(Some(Writing { events, value, more, skipped }))
    }

    /// This was written.
    pub(crate) fn was_told(&mut self, value: &NodeValue) {
        self.told_last = Some((value.registry.clone(), value.head, value.missed));
    }

    fn goes_on_from(&self, registry: &str) -> bool {
        self.info.goes_on.is_some_and(|(created_ns, _)| format!("{created_ns:x}") == registry)
    }
}

/// The number of the last event before this time, of those that would be caught up with.
fn newest_before(observer: &Observer, head: u64, since: (f64, u64)) -> headcount::Result<u64> {
    let first = head.saturating_sub(CATCH_UP) + 1;
    let recent = observer.events(&mut Cursor::at(first), CATCH_UP as usize)?.events;
    let after = recent.iter().find(|event| is_since(event.time_ns, event.boot_ns, since));
    Ok(after.map_or(head, |event| event.seq - 1))
}

/// The wall clock may have been set. The boot's has not, but says nothing of what was before this boot.
fn is_since(time_ns: u64, boot_ns: u64, (since, since_boot_ms): (f64, u64)) -> bool {
    time_ns as f64 / 1e9 >= since && boot_ns / 1_000_000 >= since_boot_ms
}

fn is_old(event: &Event, snapshot: &Snapshot) -> bool {
    let age = Duration::from_nanos(snapshot.boot_ns.saturating_sub(event.boot_ns));
    // A worker's start is needed to tell how long it lived, if its end does not tell.
    age > History::WINDOW + History::YOUNG
}

fn document(node: &str, event: &Event) -> EventValue {
    let document = match serde_json::to_value(EventDocument::new(node, event)) {
        Ok(Value::Object(document)) => document,
        // It is a structure of plain members.
        _ => serde_json::Map::new(),
    };
    EventValue { v: VERSION, document }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_before_a_host_was_there_is_history_though_its_clock_was_set_back() {
        let at = |seconds: u64| seconds * 1_000_000_000;
        let joined = (1000.0, 500_000);
        assert!(is_since(at(1001), at(501), joined) && !is_since(at(999), at(499), joined));
        assert!(!is_since(at(999), at(700), joined), "of an earlier boot");
        assert!(!is_since(at(999), at(499), (0.0, 500_000)), "its wall clock was set back before it joined");
    }
}
