//! Tells the cluster of this host: that it is there, and what its nodes do. Writes only what has changed, and never more than
//! its bound; goes on by itself after etcd was away.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use headcount_report::Life;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::Nodes;
use crate::config::ClusterConfig;
use crate::doer::{self, Doer};
use crate::etcd::Etcd;
use crate::keys::{Key, Keys};
use crate::node::{self, Node, Told, Writing};
use crate::pace::{Backoff, Pace};
use crate::presence::{self, EventLease, Leases, is_ours, json, revision_of};
use crate::teller;
use crate::trouble::Trouble;
use crate::value::{self, NodeValue};

/// How the publisher is to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// Not yet.
    #[default]
    GoOn,
    /// The host leaves the cluster, at once.
    Leave,
    /// Another agent of this host takes over: nobody is told anything.
    HandOver,
}

/// How it is with the cluster, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether this host is there for the others.
    pub connected: bool,
    /// What is wrong, if something is.
    pub trouble: Option<Trouble>,
    /// How many writes there were.
    pub writes: u64,
    /// How many events were told.
    pub events: u64,
    /// How many events were not told: there were too many, or they were overwritten.
    pub missed: u64,
}

/// Shared with whoever shows it.
pub type SharedStatus = Arc<Mutex<Status>>;

/// Events come in groups: a death, its replacement. So long they are gathered.
const GATHER: Duration = Duration::from_millis(2);
/// How often a node is looked at while something is in progress whose end no event tells,
const SOON: Duration = Duration::from_millis(50);
/// and otherwise.
const SELDOM: Duration = Duration::from_secs(5);

/// One host's voice.
pub struct Publisher {
    config: ClusterConfig,
    keys: Keys,
    nodes: watch::Receiver<Nodes>,
    ending: watch::Receiver<Ending>,
    status: SharedStatus,
    /// By their registries, with the number that each had when it was looked at last.
    open: BTreeMap<PathBuf, (Node, u64)>,
    /// What etcd has, by the nodes' names.
    told: BTreeMap<String, Told>,
    pace: Pace,
    /// The node that was to be told of when the bound was reached: it is the first next time.
    turn: Option<String>,
    events: EventLease,
    /// A lease for what is known of the host that an attempt to join has got.
    spare: Option<i64>,
    /// What was said of registries, so that it is said once.
    said: BTreeSet<String>,
    /// What it does for the others, if anything.
    doer: Option<Arc<Doer>>,
}

/// How a session ended.
enum End {
    Asked,
    Trouble(Trouble),
}

impl From<Trouble> for End {
    fn from(trouble: Trouble) -> End {
        End::Trouble(trouble)
    }
}

impl Publisher {
    /// For this host, whose nodes are these.
    #[must_use]
    pub fn new(
        config: ClusterConfig,
        nodes: watch::Receiver<Nodes>,
        ending: watch::Receiver<Ending>,
        status: SharedStatus,
    ) -> Publisher {
        Publisher {
            keys: Keys::new(&config.prefix, &config.name),
            pace: Pace::new(config.writes_per_second, Instant::now()),
            events: EventLease::new(&config),
            config,
            nodes,
            ending,
            status,
            open: BTreeMap::new(),
            told: BTreeMap::new(),
            spare: None,
            turn: None,
            said: BTreeSet::new(),
            doer: None,
        }
    }

    /// With what this agent does when the cluster asks for it.
    #[must_use]
    pub fn with(mut self, doer: Arc<Doer>) -> Publisher {
        self.doer = Some(doer);
        self
    }

    /// Until it is asked to end.
    pub async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut said: Option<Trouble> = None;
        loop {
            let begun = Instant::now();
            let ended = self.session(&mut said).await;
            let End::Trouble(trouble) = ended else { return };
            // If it is lost again as soon as it has joined, it tries more seldom: the others do the same.
            if begun.elapsed() > self.config.ttl * 2 {
                backoff.succeeded();
            }
            if trouble == Trouble::LeaseGone {
                self.events.forget();
            }
            self.note(|status| (status.connected, status.trouble) = (false, Some(trouble.clone())));
            // Once for each kind: while etcd is away, what exactly fails changes with every attempt.
            if said
                .as_ref()
                .is_none_or(|said| std::mem::discriminant(said) != std::mem::discriminant(&trouble))
            {
                tracing::warn!(
                    "cluster {}: {trouble}. The nodes of this host are not touched; trying again",
                    self.config.name
                );
                said = Some(trouble);
            }
            let pause = backoff.next();
            tokio::select! {
                () = sleep(pause) => {}
                () = asked(&mut self.ending) => {
                    if *self.ending.borrow() == Ending::Leave {
                        tracing::warn!(
                            "cluster {}: could not tell that this host leaves: the others will call it lost",
                            self.config.name
                        );
                    }
                    return;
                }
            }
        }
    }

    async fn session(&mut self, said: &mut Option<Trouble>) -> End {
        match self.session_until(said).await {
            Ok(()) => End::Asked,
            Err(end) => end,
        }
    }

    async fn session_until(&mut self, said: &mut Option<Trouble>) -> Result<(), End> {
        if *self.ending.borrow() != Ending::GoOn {
            return Ok(());
        }
        let etcd = Etcd::connect(&self.config, self.keys.root()).await?;
        presence::await_turn(&etcd, &self.keys, &mut self.ending).await?;
        if *self.ending.borrow() != Ending::GoOn {
            return Ok(());
        }
        let leases =
            presence::register(&etcd, &self.keys, &self.config, &mut self.events, &mut self.spare).await?;
        self.read_told(&etcd).await?;
        let how = match (said.take(), leases.adopted) {
            (Some(_), _) => "is there again: telling what is true now",
            (None, true) => "goes on where the agent before has ended",
            (None, false) => "has joined",
        };
        tracing::info!("cluster {}: host {} {how}", self.config.name, self.config.host);
        self.note(|status| (status.connected, status.trouble) = (true, None));
        // In tasks of their own: a write that waits for etcd must not keep the lease from being extended.
        let mut tasks = JoinSet::new();
        let (keys, config) = (self.keys.clone(), self.config.clone());
        tasks.spawn(keep(etcd.clone(), leases.presence, self.config.ttl));
        tasks.spawn(teller::run(etcd.clone(), keys.clone(), config.clone(), leases.presence));
        if let Some(doer) = self.doer.clone() {
            tasks.spawn(doer::run(doer, etcd.clone(), keys, config, leases, self.nodes.clone()));
        }
        self.tell(&etcd, leases, &mut tasks).await
    }

    /// What etcd has of this host.
    async fn read_told(&mut self, etcd: &Etcd) -> Result<(), Trouble> {
        self.told.clear();
        let (found, _) = etcd.all(&self.keys.nodes_of(&self.config.host), None).await?;
        for kv in found {
            let Some(Key::Node(_, node)) = self.keys.parse(kv.key()) else { continue };
            let value = value::parse::<NodeValue>(kv.value());
            // It is ours: what cannot be read is written anew.
            self.told.insert(node, Told { revision: kv.mod_revision(), value: value.ok() });
        }
        for (_, looked_at) in self.open.values_mut() {
            *looked_at = 0;
        }
        Ok(())
    }

    /// Until it is asked to end, or something is wrong: then one of the tasks ends as well.
    async fn tell(&mut self, etcd: &Etcd, leases: Leases, tasks: &mut JoinSet<Trouble>) -> Result<(), End> {
        let mut next_records = Instant::now() + self.config.forget_after / 4;
        // When to look next, and whether at all nodes or at those of which something was heard.
        let mut next_look = Instant::now();
        let mut next_round = Instant::now();
        let mut refusals = Backoff::default();
        loop {
            tokio::select! {
                biased;
                () = asked(&mut self.ending) => {
                    if *self.ending.borrow() == Ending::Leave {
                        presence::leave(etcd, &self.keys, &self.config, leases, &mut self.events).await?;
                        tracing::info!("cluster {}: host {} has left", self.config.name, self.config.host);
                    }
                    return Ok(());
                }
                ended = tasks.join_next() => return Err(End::Trouble(match ended {
                    Some(Ok(trouble)) => trouble,
                    Some(Err(error)) => Trouble::Other { what: "go on", why: error.to_string() },
                    None => Trouble::LeaseGone,
                })),
                () = sleep_until(next_look) => {
                    let now = Instant::now();
                    let round = now >= next_round;
                    let writes = self.read_status(|status| status.writes);
                    next_look = match self.write(etcd, leases, round).await {
                        Ok(soon) => {
                            if self.read_status(|status| status.writes) > writes {
                                self.refused(None);
                                refusals.succeeded();
                            }
                            soon.unwrap_or(now + SELDOM)
                        }
                        // The host is there all the same, and its lease can be kept.
                        Err(trouble) if trouble.refuses_writes() => {
                            self.refused(Some(trouble));
                            now + refusals.next()
                        }
                        Err(trouble) => return Err(trouble.into()),
                    };
                    if round {
                        next_round = now + SELDOM;
                    }
                    if !self.is_refused() {
                        next_look = next_look.min(next_round);
                    }
                    if now > next_records {
                        etcd.keep_alive(leases.records).await.map_err(End::from)?;
                        next_records = now + self.config.forget_after / 4;
                    }
                }
                changed = self.nodes.changed() => {
                    // Whoever watches the nodes is gone only when the agent ends.
                    if changed.is_err() {
                        return Ok(());
                    }
                    if !self.is_refused() {
                        next_look = next_look.min(Instant::now() + GATHER);
                    }
                }
            }
        }
    }

    /// Writes what is to be written, within the bound. When to look again, if that is soon. `round`: look at all nodes, since
    /// some changes no event tells.
    async fn write(&mut self, etcd: &Etcd, leases: Leases, round: bool) -> Result<Option<Instant>, Trouble> {
        let nodes = self.nodes.borrow_and_update().clone();
        self.open.retain(|path, _| nodes.contains_key(path));
        let mut soon: Option<Instant> = None;
        let mut at = |when: Instant| soon = Some(soon.map_or(when, |soon| soon.min(when)));
        let mut there = BTreeMap::new();
        let mut complete = true;
        for path in nodes.keys() {
            let (node, _) = self.open.entry(path.clone()).or_insert_with(|| (Node::new(path), 0));
            // All of them, so that those that are gone can be taken back.
            let (snapshot, mut state) = match node.look() {
                Ok(found) => found,
                Err(error) => {
                    complete = false;
                    say_once(&mut self.said, error.to_string());
                    continue;
                }
            };
            let name = snapshot.node.clone();
            state.reload = self.doer.as_ref().is_some_and(|doer| doer.allows(&name));
            let claim = node::claim(path, &snapshot);
            let found = (claim, path.clone(), snapshot, state);
            match there.entry(name.clone()) {
                Entry::Vacant(free) => drop(free.insert(found)),
                Entry::Occupied(mut other) => {
                    let is_meant = claim > other.get().0;
                    let not_told = if is_meant { other.insert(found) } else { found };
                    // One that was stopped is nothing that anybody misses.
                    if not_told.0.1 > Life::Gone {
                        let path = not_told.1.display();
                        let what = format!(
                            "{path}: there is another node {name} on this host, which is told in its place"
                        );
                        say_once(&mut self.said, what);
                    }
                }
            }
        }
        let names: BTreeSet<String> = there.keys().cloned().collect();
        for (name, (_, path, snapshot, state)) in in_turn(there, self.turn.take()) {
            let Some((node, looked_at)) = self.open.get_mut(&path) else { continue };
            let number = nodes.get(&path).copied().unwrap_or_default();
            if state.is_in_progress() {
                at(Instant::now() + SOON);
            }
            let told = self.told.entry(name.clone()).or_default();
            // Nothing may have happened to it, and it is meant now, since something happened to another one.
            let is_told = told.value.as_ref().is_some_and(|value| value.registry == node.registry());
            if !round && *looked_at == number && is_told && !state.is_in_progress() {
                continue;
            }
            let since = (leases.since, leases.since_boot_ms);
            let writing = match node.writing((snapshot, state), told, since) {
                Ok(Some(writing)) => writing,
                Ok(None) => {
                    *looked_at = number;
                    continue;
                }
                Err(error) => {
                    say_once(&mut self.said, error.to_string());
                    continue;
                }
            };
            if let Err(later) = self.pace.take(Instant::now()) {
                at(later);
                self.turn.get_or_insert(name);
                continue;
            }
            let lease = match writing.events.is_empty() {
                true => 0,
                false => self.events.get(etcd).await?,
            };
            let is_as_told = is_at(&self.keys.node(&self.config.host, &name), told.revision);
            let txn = txn(&self.keys, &self.config, leases, is_as_told, &name, &writing, lease);
            let begun = Instant::now();
            let answer = etcd.txn("write", txn).await?;
            self.pace.took(begun.elapsed(), Instant::now());
            if !answer.succeeded() {
                return self.look_again(etcd, leases).await.map(Some);
            }
            if writing.more {
                at(Instant::now());
            } else {
                *looked_at = number;
            }
            let (events, skipped) = (writing.events.len() as u64, writing.skipped);
            if skipped > 0 {
                tracing::warn!(
                    "{name}: {skipped} events were not told to the cluster: there were too many, or they were overwritten"
                );
            }
            node.was_told(&writing.value);
            self.told.insert(name, Told { revision: revision_of(&answer), value: Some(writing.value) });
            note(&self.status, |status| {
                status.writes += 1;
                status.events += events;
                status.missed += skipped;
            });
        }
        // Not while one cannot be read: it may be any of them.
        let gone: Vec<String> =
            self.told.keys().filter(|name| complete && !names.contains(*name)).cloned().collect();
        for name in gone {
            if let Err(later) = self.pace.take(Instant::now()) {
                at(later);
                break;
            }
            let key = self.keys.node(&self.config.host, &name);
            let is_as_told = is_at(&key, self.told.get(&name).map_or(0, |told| told.revision));
            let txn = Txn::new()
                .when([is_ours(&self.keys, &self.config, leases), is_as_told])
                .and_then([TxnOp::delete(key, None)]);
            if !etcd.txn("write", txn).await?.succeeded() {
                return self.look_again(etcd, leases).await.map(Some);
            }
            self.told.remove(&name);
            note(&self.status, |status| status.writes += 1);
        }
        Ok(soon)
    }

    /// What etcd has is not what was written last: this host is not there any more, or a write that was given up has reached etcd
    /// after all. When to go on from what it has.
    async fn look_again(&mut self, etcd: &Etcd, leases: Leases) -> Result<Instant, Trouble> {
        let host = etcd.get(&self.keys.host(&self.config.host)).await?;
        if host.is_none_or(|kv| kv.mod_revision() != leases.revision) {
            return Err(Trouble::LeaseGone);
        }
        self.read_told(etcd).await?;
        Ok(Instant::now())
    }

    fn is_refused(&self) -> bool {
        self.read_status(|status| status.trouble.as_ref().is_some_and(Trouble::refuses_writes))
    }

    fn read_status<T>(&self, read: impl FnOnce(&Status) -> T) -> T {
        read(&self.status.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// etcd takes no writes, or takes them again: said once each.
    fn refused(&self, trouble: Option<Trouble>) {
        match (&trouble, self.is_refused()) {
            (Some(trouble), false) => {
                tracing::warn!(
                    "cluster {}: {trouble}. The nodes of this host are not touched; trying again",
                    self.config.name
                );
            }
            (None, true) => tracing::info!("cluster {}: etcd takes writes again", self.config.name),
            _ => return,
        }
        self.note(|status| status.trouble = trouble);
    }

    fn note(&self, change: impl FnOnce(&mut Status)) {
        note(&self.status, change);
    }
}

fn note(status: &SharedStatus, change: impl FnOnce(&mut Status)) {
    // Numbers and texts: they are whole, whoever has panicked.
    change(&mut status.lock().unwrap_or_else(PoisonError::into_inner));
}

/// All of them, beginning with this one: one in which something happens all the time must not keep the others from being told.
fn in_turn<T>(mut all: BTreeMap<String, T>, first: Option<String>) -> impl Iterator<Item = (String, T)> {
    let rest = first.map(|first| all.split_off(&first)).unwrap_or_default();
    rest.into_iter().chain(all)
}

/// So many different lines are remembered.
const REMEMBERED: usize = 256;

fn say_once(said: &mut BTreeSet<String>, what: String) {
    if said.len() >= REMEMBERED {
        said.clear();
    }
    if !said.contains(&what) {
        tracing::warn!("{what}");
        said.insert(what);
    }
}

/// That a key is as it was written then; at 0, that it is not there.
fn is_at(key: &str, revision: i64) -> Compare {
    Compare::mod_revision(key, CompareOp::Equal, revision)
}

/// All of it or nothing, and only as long as this host is there, and nothing else was written: the events, each under a key of its
/// own; and the state, which says up to where events were told. So a write that arrives late, when it was done again, changes nothing.
fn txn(
    keys: &Keys,
    config: &ClusterConfig,
    leases: Leases,
    is_as_told: Compare,
    name: &str,
    writing: &Writing,
    event_lease: i64,
) -> Txn {
    let host = &config.host;
    let mut puts: Vec<TxnOp> = writing
        .events
        .iter()
        .map(|(number, event)| {
            let key = keys.event(host, name, &writing.value.registry, *number);
            TxnOp::put(key, json(event), Some(PutOptions::new().with_lease(event_lease)))
        })
        .collect();
    let options = PutOptions::new().with_lease(leases.records);
    puts.push(TxnOp::put(keys.node(host, name), json(&writing.value), Some(options)));
    Txn::new().when([is_ours(keys, config, leases), is_as_told]).and_then(puts)
}

/// Keeps the lease of a host that is there, until it is no more, or that cannot be known.
pub(crate) async fn keep(etcd: Etcd, lease: i64, ttl: Duration) -> Trouble {
    let (mut keeper, mut answers) = match etcd.keep_alive(lease).await {
        Ok(both) => both,
        Err(trouble) => return trouble,
    };
    let mut heard = Instant::now();
    let mut next_beat = Instant::now() + ttl / 3;
    loop {
        tokio::select! {
            answer = answers.message() => match answer {
                Ok(Some(answer)) if answer.ttl() > 0 => heard = Instant::now(),
                Ok(Some(_)) => return Trouble::LeaseGone,
                Ok(None) => return Trouble::Away("it has closed the connection".to_owned()),
                Err(error) => return etcd.trouble(&error, "keep the lease"),
            },
            () = sleep_until(next_beat) => {
                if next_beat.elapsed() > ttl / 3 {
                    // It was this process that stood still. What became of the lease, etcd knows.
                    heard = Instant::now();
                }
                if heard.elapsed() > ttl {
                    return Trouble::Away(format!("no answer for {ttl:?}"));
                }
                if let Err(error) = keeper.keep_alive().await {
                    return etcd.trouble(&error, "keep the lease");
                }
                next_beat = Instant::now() + ttl / 3;
            }
        }
    }
}

pub(crate) async fn asked(ending: &mut watch::Receiver<Ending>) {
    // Whoever could ask is gone: as if this were to be handed over.
    let _ = ending.wait_for(|ending| *ending != Ending::GoOn).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_take_turns() {
        let order = |first: Option<&str>| {
            let all: BTreeMap<String, ()> = ["a", "b", "c"].map(|name| (name.to_owned(), ())).into();
            in_turn(all, first.map(str::to_owned)).map(|(name, ())| name).collect::<String>()
        };
        assert_eq!((order(None), order(Some("b"))), ("abc".to_owned(), "bca".to_owned()));
        // One that is gone since.
        assert_eq!((order(Some("bb")), order(Some("z"))), ("cab".to_owned(), "abc".to_owned()));
    }
}
