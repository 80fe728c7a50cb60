//! What must hold of a history. Pure: changes go in, and what is wrong comes out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::claims::Claims;
use crate::recorder::{History, Record};

/// When something was done that may keep a host from being heard, until all was well again.
#[derive(Clone, Copy, Debug)]
pub struct Disturbance {
    /// Its begin.
    pub from: Instant,
    /// `None`: it has not ended.
    pub to: Option<Instant>,
}

/// What was compared.
#[derive(Debug, Default)]
pub struct Tally {
    /// How often, by what.
    pub counts: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// So many more.
    pub fn add(&mut self, what: &'static str, number: u64) {
        *self.counts.entry(what).or_default() += number;
    }
}

#[derive(Clone, Debug)]
struct Node {
    registry: String,
    head: u64,
    missed: u64,
}

/// A lease that has ended though nothing was done to its host.
#[derive(Clone, Debug)]
pub struct Early {
    /// For people.
    pub text: String,
    /// Which.
    pub lease: i64,
    /// When that was heard of.
    pub at: Instant,
}

/// What is known of a cluster at a revision, from the changes alone.
pub struct Checker {
    ttl: Duration,
    taken: usize,
    nodes: BTreeMap<(String, String), Node>,
    /// The last number of each history of events.
    last: BTreeMap<(String, String, String), u64>,
    /// Under which lease a host is there.
    here: BTreeMap<String, i64>,
    /// Leases that have ended, of which nobody has told yet.
    untold: BTreeMap<(String, i64), i64>,
    teller: Option<String>,
    is_begun: bool,
    /// What etcd has now, by its keys.
    pub now: BTreeMap<String, String>,
    /// What was compared.
    pub tally: Tally,
    /// Of roles, locks and onces.
    pub claims: Claims,
    /// Leases that have ended too early. Who has ended them is to be found out.
    pub early: Vec<Early>,
    /// What is wrong.
    pub violations: Vec<String>,
}

impl Checker {
    /// Before anything is known.
    pub fn new(ttl: Duration) -> Checker {
        Checker {
            ttl,
            taken: 0,
            nodes: BTreeMap::new(),
            last: BTreeMap::new(),
            here: BTreeMap::new(),
            untold: BTreeMap::new(),
            teller: None,
            is_begun: false,
            now: BTreeMap::new(),
            tally: Tally::default(),
            claims: Claims::default(),
            early: Vec::new(),
            violations: Vec::new(),
        }
    }

    /// Leases that have ended and of which nobody has told.
    pub fn untold(&self) -> Vec<String> {
        self.untold
            .iter()
            .map(|((host, lease), at)| format!("{host}'s lease {lease:x}, which ended at {at}"))
            .collect()
    }

    /// The number of the last event of this node that was told, and of which registry.
    pub fn head(&self, host: &str, node: &str) -> Option<(String, u64)> {
        let node = self.nodes.get(&(host.to_owned(), node.to_owned()))?;
        Some((node.registry.clone(), node.head))
    }

    /// Takes in what is new.
    pub fn take(&mut self, history: &History, disturbed: impl Fn(&str) -> Vec<Disturbance>) {
        if !self.is_begun {
            if history.begun == 0 {
                return;
            }
            self.is_begun = true;
            history.before.iter().for_each(|record| self.begin(record));
        }
        let new = &history.records[self.taken..];
        for write in new.chunk_by(|a, b| a.revision == b.revision) {
            self.write(write, &disturbed);
        }
        self.taken = history.records.len();
    }

    fn note(&mut self, record: &Record) {
        match &record.value {
            Some(value) => drop(self.now.insert(record.key.clone(), value.clone())),
            None => drop(self.now.remove(&record.key)),
        }
    }

    fn begin(&mut self, record: &Record) {
        self.note(record);
        self.claims.begin(record);
        let parts: Vec<&str> = record.key.split('/').collect();
        match parts[..] {
            ["hosts", host] => drop(self.here.insert(host.to_owned(), record.lease)),
            ["nodes", host, node] => {
                if let Some(value) = node_of(record) {
                    self.nodes.insert((host.to_owned(), node.to_owned()), value);
                }
            }
            ["events", host, node, registry, number] if node != "@host" => {
                let last = self.last.entry(history_of(host, node, registry)).or_default();
                *last = (*last).max(number.parse().unwrap_or(0));
            }
            ["roles", "@teller"] => self.teller.clone_from(&record.value),
            _ => {}
        }
    }

    /// All changes of one revision.
    fn write(&mut self, write: &[Record], disturbed: &impl Fn(&str) -> Vec<Disturbance>) {
        let mut events: BTreeMap<(String, String), Vec<(String, u64)>> = BTreeMap::new();
        let revision = write[0].revision;
        let mut wrong = self.claims.write(write);
        write.iter().for_each(|record| self.note(record));
        for record in write {
            let parts: Vec<&str> = record.key.split('/').collect();
            match (&parts[..], &record.value) {
                (["events", host, node, registry, number], Some(value)) => {
                    self.tally.add("events", 1);
                    if record.version != 1 {
                        wrong.push(format!("{} is told again", record.key));
                    }
                    let number: u64 = number.parse().unwrap_or(0);
                    if *node == "@host" {
                        wrong.extend(self.of_host(write, host, registry, number, value));
                        continue;
                    }
                    let last = self.last.entry(history_of(host, node, registry)).or_default();
                    if number <= *last {
                        wrong.push(format!("{} is told after {last}", record.key));
                    }
                    *last = number;
                    let told: Value = serde_json::from_str(value).unwrap_or_default();
                    if told["seq"].as_u64() != Some(number) {
                        wrong.push(format!("{} is of another number: {value}", record.key));
                    }
                    events
                        .entry(((*host).to_owned(), (*node).to_owned()))
                        .or_default()
                        .push(((*registry).to_owned(), number));
                }
                (["events", ..], None) => wrong.push(format!("{} is gone before its time", record.key)),
                (["nodes", host, node], None) => {
                    drop(self.nodes.remove(&((*host).to_owned(), (*node).to_owned())))
                }
                (["hosts", host], Some(_)) => {
                    let before = self.here.insert((*host).to_owned(), record.lease);
                    if before.is_some_and(|before| before != record.lease) {
                        wrong.push(format!("{host} is there under two leases"));
                    }
                    if before.is_none() {
                        self.tally.add("hosts joined", 1);
                        let untold = self
                            .untold
                            .range(((*host).to_owned(), i64::MIN)..=((*host).to_owned(), i64::MAX));
                        wrong.extend(untold.map(|((host, lease), _)| {
                            format!("{host} is back, and nobody has told that its lease {lease:x} had ended")
                        }));
                    }
                }
                (["hosts", host], None) => {
                    let Some(lease) = self.here.remove(*host) else { continue };
                    if is_presence(write, host, "left") {
                        self.tally.add("hosts left", 1);
                        continue;
                    }
                    self.tally.add("leases ended", 1);
                    self.untold.insert(((*host).to_owned(), lease), revision);
                    if let Some(text) = self.too_early(host, record.at, &disturbed(host)) {
                        let text = format!("at revision {revision}: {text}");
                        self.early.push(Early { text, lease, at: record.at });
                    }
                }
                (["roles", "@teller"], value) => {
                    if let (Some(before), Some(now)) = (&self.teller, value) {
                        wrong.push(format!("{now} notes who is lost, while {before} does"));
                    }
                    if let Some(now) = value {
                        self.tally.add("tellers", 1);
                        if self.here.get(now) != Some(&record.lease) {
                            wrong.push(format!("{now} notes who is lost, under a lease that is not its own"));
                        }
                    }
                    self.teller.clone_from(value);
                }
                _ => {}
            }
        }
        for record in write {
            let parts: Vec<&str> = record.key.split('/').collect();
            if let (["nodes", host, node], Some(_)) = (&parts[..], &record.value) {
                let key = ((*host).to_owned(), (*node).to_owned());
                let told = events.remove(&key).unwrap_or_default();
                match node_of(record) {
                    Some(now) => {
                        self.tally.add("states", 1);
                        wrong.extend(follows(&record.key, self.nodes.get(&key), &now, &told));
                        self.nodes.insert(key, now);
                    }
                    None => wrong.push(format!("{} is no state: {:?}", record.key, record.value)),
                }
            }
        }
        wrong.extend(
            events.into_keys().map(|(host, node)| format!("events of {host}/{node} without its state")),
        );
        self.violations.extend(wrong.into_iter().map(|what| format!("at revision {revision}: {what}")));
    }

    /// An event of a host itself.
    fn of_host(
        &mut self,
        write: &[Record],
        host: &str,
        lease: &str,
        number: u64,
        value: &str,
    ) -> Option<String> {
        let kind = serde_json::from_str::<Value>(value).ok()?["kind"].as_str()?.to_owned();
        let lease = i64::from_str_radix(lease, 16).ok()?;
        let is_written = |key: String| write.iter().any(|record| record.key == key && record.value.is_some());
        match (number, kind.as_str()) {
            (1, "host_joined") if is_written(format!("hosts/{host}")) => None,
            (2, "host_left") if is_presence(write, host, "left") => None,
            (2, "host_lost") if is_presence(write, host, "lost") => {
                self.tally.add("losses told", 1);
                // Of a lease that had ended before this history begins, nothing is known.
                self.untold.remove(&(host.to_owned(), lease));
                self.here.get(host).map(|_| format!("{host} is told to be lost, and is there"))
            }
            _ => Some(format!("{host} has {kind} as number {number}, without what belongs to it")),
        }
    }

    /// A host whose agent was heard all the time is never lost. The lease of one that was not was extended within a third of its
    /// time before; on a machine that does much else, within two thirds.
    fn too_early(&self, host: &str, at: Instant, disturbed: &[Disturbance]) -> Option<String> {
        let least = self.ttl / 3;
        // It ends up to a second after its time, and somebody who was disturbed needs some time until it is heard again.
        let late = self.ttl + Duration::from_secs(1);
        let is_due = disturbed.iter().any(|d| d.from + least <= at && d.to.is_none_or(|to| to + late >= at));
        let since = disturbed.last().map(|d| at.saturating_duration_since(d.from));
        (!is_due).then(|| format!("{host}'s lease has ended, {since:?} after something was done to it last"))
    }
}

fn is_presence(write: &[Record], host: &str, presence: &str) -> bool {
    let key = format!("known/{host}");
    let known = write.iter().find(|record| record.key == key).and_then(|record| record.value.as_deref());
    known.is_some_and(|value| value.contains(&format!("\"presence\":\"{presence}\"")))
}

fn history_of(host: &str, node: &str, registry: &str) -> (String, String, String) {
    (host.to_owned(), node.to_owned(), registry.to_owned())
}

fn node_of(record: &Record) -> Option<Node> {
    let value: Value = serde_json::from_str(record.value.as_ref()?).ok()?;
    Some(Node {
        registry: value["registry"].as_str()?.to_owned(),
        head: value["head"].as_u64()?,
        missed: value["missed"].as_u64()?,
    })
}

/// All events up to the head are told or counted, each once and in order.
fn follows(key: &str, before: Option<&Node>, now: &Node, told: &[(String, u64)]) -> Option<String> {
    if told.iter().any(|(registry, _)| *registry != now.registry) {
        return Some(format!("{key}: events of another registry than {}", now.registry));
    }
    if told.last().is_some_and(|(_, number)| *number != now.head) {
        return Some(format!("{key}: its head is {}, but {told:?} was told", now.head));
    }
    let number = told.len() as u64;
    let goes_on = |head: u64, missed: u64| {
        now.head >= head && now.missed >= missed && now.head - head == number + (now.missed - missed)
    };
    let right = match before {
        // What was before is history.
        None => told.first().is_none_or(|(_, first)| now.head - first + 1 >= number),
        Some(before) if before.registry == now.registry => goes_on(before.head, before.missed),
        // A new history begins, or goes on with the numbers of the old one.
        Some(before) => goes_on(0, 0) || goes_on(before.head, before.missed),
    };
    (!right).then(|| format!("{key}: after {before:?} comes {now:?}, with {number} events told"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(2);

    fn record(revision: i64, key: &str, value: Option<&str>) -> Record {
        Record {
            at: Instant::now(),
            revision,
            key: key.to_owned(),
            value: value.map(str::to_owned),
            lease: 7,
            version: 1,
        }
    }

    fn event(revision: i64, number: u64) -> Record {
        record(revision, &format!("events/a/web/r/{number:020}"), Some(&format!("{{\"seq\":{number}}}")))
    }

    fn state(revision: i64, registry: &str, head: u64, missed: u64) -> Record {
        let value = format!("{{\"registry\":\"{registry}\",\"head\":{head},\"missed\":{missed}}}");
        record(revision, "nodes/a/web", Some(&value))
    }

    fn check(records: Vec<Record>) -> Vec<String> {
        let mut checker = Checker::new(TTL);
        let history = History { records, begun: 1, ..History::default() };
        checker.take(&history, |_| Vec::new());
        checker.violations
    }

    #[test]
    fn each_event_is_told_once_in_order_or_counted() {
        let good = vec![
            event(2, 1),
            event(2, 2),
            state(2, "r", 2, 0),
            event(3, 5),
            state(3, "r", 5, 2),
            state(4, "s", 0, 0),
        ];
        assert_eq!(check(good.clone()), [""; 0]);
        for (what, bad) in [
            ("one is missing", vec![event(5, 7), state(5, "r", 7, 2)]),
            ("one comes again", vec![event(5, 5), state(5, "r", 5, 2)]),
            ("the state is of more", vec![event(5, 6), state(5, "r", 7, 2)]),
            ("there is no state", vec![event(5, 6)]),
            ("it is gone", vec![record(5, "events/a/web/r/00000000000000000001", None)]),
            ("it counts less", vec![state(5, "r", 5, 1)]),
        ] {
            let all = good[..5].iter().cloned().chain(bad).collect();
            assert!(!check(all).is_empty(), "{what}");
        }
        let again = Record { version: 2, ..event(5, 6) };
        assert!(!check(good[..5].iter().cloned().chain([again, state(5, "r", 6, 2)]).collect()).is_empty());
    }

    #[test]
    fn a_host_is_lost_only_when_it_could_not_be_heard_and_that_is_told() {
        let joined = [
            record(2, "hosts/a", Some("{}")),
            record(2, "events/a/@host/7/00000000000000000001", Some("{\"kind\":\"host_joined\"}")),
        ];
        let gone = record(3, "hosts/a", None);
        let told = |presence: &str| {
            vec![
                record(4, "known/a", Some(&format!("{{\"presence\":\"{presence}\"}}"))),
                record(4, "events/a/@host/7/00000000000000000002", Some("{\"kind\":\"host_lost\"}")),
            ]
        };
        let at = |ago: u64| Instant::now() - Duration::from_millis(ago);
        let run = |records: Vec<Record>, ago: Option<u64>| {
            let mut checker = Checker::new(TTL);
            let history = History {
                records: joined.iter().cloned().chain(records).collect(),
                begun: 1,
                ..History::default()
            };
            checker.take(&history, |_| {
                ago.map(|ago| Disturbance { from: at(ago), to: None }).into_iter().collect()
            });
            (checker.violations.len() + checker.early.len(), checker.untold().len())
        };
        assert_eq!(run(vec![gone.clone()], Some(3000)), (0, 1));
        assert_eq!(run([vec![gone.clone()], told("lost")].concat(), Some(3000)), (0, 0));
        assert_eq!(run(vec![gone.clone()], Some(500)).0, 1, "too early");
        assert_eq!(run(vec![gone.clone()], None).0, 1, "nothing was done to it");
        assert_eq!(run([vec![gone], told("here")].concat(), Some(3000)).0, 1);
        assert_eq!(run(told("lost"), Some(3000)).0, 1, "it is there");
    }
}
