//! Tells the cluster of this host: that it is there, and what its nodes do. Writes only what has changed, and never more than
//! its bound; goes on by itself after etcd was away.

mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use crate::Nodes;
use crate::config::ClusterConfig;
use crate::doer::{self, Doer};
use crate::ending::{Ending, asked};
use crate::etcd::Etcd;
use crate::keep::keep;
use crate::keys::{Key, Keys};
use crate::node::{Node, Told};
use crate::pace::{Backoff, Pace};
use crate::presence::{self, EventLease, Leases};
use crate::teller;
use crate::trouble::Trouble;
use crate::value::{self, NodeValue};

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
        presence::await_turn(&etcd, &self.keys, &self.config, &mut self.ending).await?;
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
            if let Err(why) = &value {
                let key = String::from_utf8_lossy(kv.key());
                let what = format!(
                    "the key {key} is about this host and cannot be read: {why}. If there is a node {node} here, it is written anew, and \
                     otherwise left alone"
                );
                write::say_once(&mut self.said, what);
            }
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
        let mut ending = self.ending.clone();
        loop {
            tokio::select! {
                biased;
                () = asked(&mut ending) => return self.end(etcd, leases).await,
                ended = tasks.join_next() => return Err(why(ended)),
                () = sleep_until(next_look) => {
                    let now = Instant::now();
                    let round = now >= next_round;
                    let writes = self.read_status(|status| status.writes);
                    // A write may wait for etcd for long.
                    let written = tokio::select! {
                        biased;
                        () = asked(&mut ending) => return self.end(etcd, leases).await,
                        ended = tasks.join_next() => return Err(why(ended)),
                        written = self.write(etcd, leases, round) => written,
                    };
                    next_look = match written {
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
                            Instant::now() + refusals.next_of_busy()
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
                        next_records = now + match etcd.keep_alive(leases.records).await {
                            Ok(_) => self.config.forget_after / 4,
                            Err(trouble) if trouble.refuses_writes() => SELDOM,
                            Err(trouble) => return Err(trouble.into()),
                        };
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

    /// As it is asked to.
    async fn end(&mut self, etcd: &Etcd, leases: Leases) -> Result<(), End> {
        if *self.ending.borrow() == Ending::Leave {
            presence::leave(etcd, &self.keys, &self.config, leases, &mut self.events).await?;
            tracing::info!("cluster {}: host {} has left", self.config.name, self.config.host);
        }
        Ok(())
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

/// Why a task of the session has ended.
fn why(ended: Option<Result<Trouble, JoinError>>) -> End {
    End::Trouble(match ended {
        Some(Ok(trouble)) => trouble,
        Some(Err(error)) => Trouble::Other { what: "go on", why: error.to_string() },
        None => Trouble::LeaseGone,
    })
}

fn note(status: &SharedStatus, change: impl FnOnce(&mut Status)) {
    // Numbers and texts: they are whole, whoever has panicked.
    change(&mut status.lock().unwrap_or_else(PoisonError::into_inner));
}
