//! What etcd's history says of roles, locks and onces.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::recorder::Record;

/// So often is tried what is to be done once.
const MOST: u64 = 3;

/// A key that somebody has or waits for something by. Its create revision is its token.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Below the cluster's root, without its place in the queue.
    pub what: String,
    /// Whose it is.
    pub host: String,
    /// The lease that it is under.
    pub lease: i64,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Once {
    state: String,
    attempts: u64,
    last: Option<String>,
}

/// What is known of them at a revision.
#[derive(Debug, Default)]
pub struct Claims {
    /// Of each role and lock: the keys in its queue, by their tokens. What was there at the begin has 0.
    queues: BTreeMap<String, BTreeMap<String, i64>>,
    onces: BTreeMap<String, Once>,
    /// Which of them somebody runs.
    running: BTreeMap<String, i64>,
    /// All that were made in this history.
    pub made: BTreeMap<i64, Claim>,
    /// How often, by what.
    pub counts: BTreeMap<&'static str, u64>,
}

impl Claims {
    /// What was there at the begin.
    pub fn begin(&mut self, record: &Record) {
        let parts: Vec<&str> = record.key.split('/').collect();
        match parts[..] {
            ["roles" | "locks", name, _] if !name.starts_with('@') => {
                self.queues.entry(queue(&parts)).or_default().insert(record.key.clone(), 0);
            }
            ["once", key] => drop(self.onces.insert(key.to_owned(), once_of(record))),
            ["running", key] => drop(self.running.insert(key.to_owned(), 0)),
            _ => {}
        }
    }

    /// How a once is.
    pub fn state(&self, key: &str) -> Option<&str> {
        self.onces.get(key).map(|once| once.state.as_str())
    }

    /// All changes of one revision. What is wrong.
    pub fn write(&mut self, write: &[Record]) -> Vec<String> {
        let mut wrong = Vec::new();
        for record in write {
            let parts: Vec<&str> = record.key.split('/').collect();
            match parts[..] {
                ["roles" | "locks", name, _] if !name.starts_with('@') => {
                    wrong.extend(self.place(record, &queue(&parts)))
                }
                ["once", key] => wrong.extend(self.once(write, record, key)),
                ["running", key] => {
                    let is_written = write.iter().any(|other| other.key == format!("once/{key}"));
                    wrong.extend(self.runs(record, key, is_written));
                }
                _ => {}
            }
        }
        // Only now: what is of one write is judged by what was before.
        for record in write {
            let Some(key) = record.key.strip_prefix("running/") else { continue };
            match (&record.value, record.version) {
                (None, _) => drop(self.running.remove(key)),
                (Some(_), 1) => drop(self.running.insert(key.to_owned(), record.revision)),
                _ => {}
            }
        }
        wrong
    }

    fn note(&mut self, record: &Record, what: String) {
        let value: Value =
            record.value.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let host = value["host"].as_str().unwrap_or_default().to_owned();
        self.made.insert(record.revision, Claim { what, host, lease: record.lease });
    }

    fn place(&mut self, record: &Record, name: &str) -> Option<String> {
        let queue = self.queues.entry(name.to_owned()).or_default();
        match (&record.value, record.version) {
            (None, _) => drop(queue.remove(&record.key)),
            (Some(_), 1) => {
                queue.insert(record.key.clone(), record.revision);
                self.note(record, name.to_owned());
            }
            // Who has it signs.
            (Some(_), _) => {
                *self.counts.entry("tenures that were signed").or_default() += 1;
                let mine = queue.get(&record.key).copied();
                let first = queue.values().min().copied();
                if mine != first {
                    return Some(format!(
                        "{} has it with {mine:?}, while {first:?} is before it",
                        record.key
                    ));
                }
            }
        }
        None
    }

    fn runs(&mut self, record: &Record, key: &str, is_written: bool) -> Option<String> {
        let runs = self.running.contains_key(key);
        match (&record.value, record.version) {
            // Alone: its lease has ended.
            (None, _) => None,
            (Some(_), 1) => {
                self.note(record, "running".to_owned());
                (runs || !is_written).then(|| {
                    format!("{} begins, runs before: {runs}, written down: {is_written}", record.key)
                })
            }
            (Some(_), _) => (!runs).then(|| format!("{} is signed, and nobody runs it", record.key)),
        }
    }

    fn once(&mut self, write: &[Record], record: &Record, key: &str) -> Option<String> {
        *self.counts.entry("changes of onces").or_default() += 1;
        let now = once_of(record);
        let before = self
            .onces
            .insert(key.to_owned(), now.clone())
            .unwrap_or(Once { state: "open".to_owned(), ..Once::default() });
        let running = write.iter().find(|other| other.key == format!("running/{key}"));
        let begins = running.is_some_and(|other| other.value.is_some() && other.version == 1);
        let ends = running.is_some_and(|other| other.value.is_none());
        let ran = self.running.contains_key(key);
        let was_running = before.state == "running";
        let is_lost = was_running && !ran && now.last.as_deref() == Some("lost");
        let ended_badly = matches!(now.last.as_deref(), Some("failed" | "died" | "stalled"));
        let same = now.attempts == before.attempts;
        let right = record.value.is_some()
            && match now.state.as_str() {
                _ if matches!(before.state.as_str(), "done" | "failed") => false,
                "running" => {
                    let told = if was_running { is_lost } else { now.last == before.last };
                    begins && !ran && told && now.attempts == before.attempts + 1 && now.attempts <= MOST
                }
                "done" => was_running && ran && ends && same,
                "open" => {
                    let taken_back = now.attempts + 1 == before.attempts && now.last == before.last;
                    was_running && ran && ends && (taken_back || same && ended_badly && now.attempts < MOST)
                }
                "failed" => {
                    same && now.attempts == MOST
                        && (ran && ends && ended_badly || running.is_none() && is_lost)
                }
                _ => false,
            };
        (!right).then(|| {
            format!(
                "{}: after {before:?} comes {now:?}; ran: {ran}, begins: {begins}, ends: {ends}",
                record.key
            )
        })
    }
}

fn queue(parts: &[&str]) -> String {
    parts[..2].join("/")
}

fn once_of(record: &Record) -> Once {
    let value: Value =
        record.value.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    Once {
        state: value["state"].as_str().unwrap_or_default().to_owned(),
        attempts: value["attempts"].as_u64().unwrap_or(0),
        last: value["last"].as_str().map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn record(revision: i64, key: &str, value: Option<&str>, version: i64) -> Record {
        Record {
            at: Instant::now(),
            revision,
            key: key.to_owned(),
            value: value.map(str::to_owned),
            lease: 7,
            version,
        }
    }

    fn once(revision: i64, state: &str, attempts: u64, last: Option<&str>) -> Record {
        let last = last.map_or(String::new(), |last| format!(",\"last\":\"{last}\""));
        record(
            revision,
            "once/k",
            Some(&format!("{{\"state\":\"{state}\",\"attempts\":{attempts}{last}}}")),
            revision,
        )
    }

    fn runs(revision: i64) -> Record {
        record(revision, "running/k", Some("{}"), 1)
    }

    fn ends(revision: i64) -> Record {
        record(revision, "running/k", None, 0)
    }

    fn wrong(writes: &[Vec<Record>]) -> usize {
        let mut claims = Claims::default();
        writes.iter().map(|write| claims.write(write).len()).sum()
    }

    #[test]
    fn a_once_goes_from_state_to_state() {
        let begun = vec![once(1, "running", 1, None), runs(1)];
        let died = vec![once(2, "open", 1, Some("died")), ends(2)];
        let again = vec![once(3, "running", 2, Some("died")), runs(3)];
        let lost = vec![ends(4)];
        let third = vec![once(5, "running", 3, Some("lost")), runs(5)];
        let done = vec![once(6, "done", 3, Some("lost")), ends(6)];
        let good = [begun.clone(), died, again, lost.clone(), third, done.clone()];
        assert_eq!(wrong(&good), 0);
        let back = vec![once(2, "open", 0, None), ends(2)];
        assert_eq!(wrong(&[begun.clone(), back]), 0, "nobody was told of it");
        for (what, bad) in [
            ("it was done", vec![once(7, "running", 3, Some("lost")), runs(7)]),
            ("nobody runs it", vec![once(7, "done", 3, None), ends(7)]),
        ] {
            let all: Vec<_> = good.iter().cloned().chain([bad]).collect();
            assert!(wrong(&all) > 0, "{what}");
        }
        for (what, bad) in [
            ("a second one", vec![once(2, "running", 2, Some("lost")), runs(2)]),
            ("it goes on after its end", vec![once(2, "open", 1, Some("died"))]),
            ("how it ended is unknown", vec![once(2, "open", 1, Some("lost")), ends(2)]),
            ("it is forgotten", vec![record(2, "once/k", None, 0)]),
        ] {
            assert!(wrong(&[begun.clone(), bad]) > 0, "{what}");
        }
        let not_told = vec![once(3, "running", 2, None), runs(3)];
        assert!(wrong(&[begun, lost, not_told]) > 0);
    }

    #[test]
    fn only_the_first_of_a_queue_signs() {
        let stand = |revision, place| vec![record(revision, &format!("locks/l/{place}"), Some("{}"), 1)];
        let sign = |revision, place| vec![record(revision, &format!("locks/l/{place}"), Some("{}"), 2)];
        let gone = |revision, place| vec![record(revision, &format!("locks/l/{place}"), None, 0)];
        assert_eq!(wrong(&[stand(1, "a"), stand(2, "b"), sign(3, "a"), gone(4, "a"), sign(5, "b")]), 0);
        assert_eq!(wrong(&[stand(1, "a"), stand(2, "b"), sign(3, "b")]), 1);
    }
}
