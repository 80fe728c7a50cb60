//! Reads the picture of the cluster at a revision, and follows it from there, through whatever happens to etcd.

use std::collections::VecDeque;

use etcd_client::{EventType, KeyValue, WatchStream};
use tokio::time::sleep;

use crate::config::ClusterConfig;
use crate::etcd::Etcd;
use crate::fleet::Fleet;
use crate::keys::{Key, Keys};
use crate::pace::Backoff;
use crate::trouble::Trouble;
use crate::value::{self, EventValue, Unreadable};

/// What a follower has to tell.
#[derive(Clone, Debug)]
pub enum News {
    /// All was read, for the first time or anew: see [`Follower::fleet`].
    Read,
    /// The picture has changed: see [`Follower::fleet`].
    Changed,
    /// Something has happened.
    Event(FleetEvent),
    /// An event that cannot be read, by its key.
    Unreadable(String, Unreadable),
    /// What has changed after this revision could not be followed, up to that one, since etcd had compacted it. Events that are
    /// kept still follow; those that were not kept so long are missing.
    Missed {
        /// The last revision that was seen.
        after: i64,
        /// The one that was read instead.
        upto: i64,
    },
    /// etcd holds less than was seen: it was restored from an older state. All is read anew.
    SetBack,
    /// Why it cannot be followed just now. It is tried again, and what happens meanwhile follows. Once.
    Away(Trouble),
    /// It goes on.
    Back,
}

/// An event of a host or of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct FleetEvent {
    /// The host.
    pub host: String,
    /// The node, if it is about one.
    pub node: Option<String>,
    /// Which registry, or which lease, numbers it.
    pub registry: String,
    /// Its number there.
    pub number: u64,
    /// etcd's revision: the order over all hosts.
    pub revision: i64,
    /// What has happened.
    pub value: EventValue,
}

/// A change that was seen.
#[derive(Clone, Debug, PartialEq)]
struct Mark {
    key: Vec<u8>,
    revision: i64,
    /// `None`: it was removed.
    value: Option<Vec<u8>>,
}

impl Mark {
    fn of(kv: &KeyValue, is_put: bool) -> Mark {
        let value = is_put.then(|| kv.value().to_vec());
        Mark { key: kv.key().to_vec(), revision: kv.mod_revision(), value }
    }

    /// Whether etcd has it. A revision that was lower than one that was seen may have passed it since, so the number alone tells
    /// nothing.
    async fn is_in(&self, etcd: &Etcd) -> Result<bool, Trouble> {
        let there = etcd.get_at(&self.key, self.revision).await?;
        Ok(match (&self.value, there) {
            (Some(value), Some(kv)) => kv.mod_revision() == self.revision && kv.value() == value,
            (None, None) => true,
            _ => false,
        })
    }
}

/// Follows one cluster.
pub struct Follower {
    config: ClusterConfig,
    keys: Keys,
    events: bool,
    /// Also those events that are kept.
    kept: bool,
    fleet: Fleet,
    /// The last revision that was taken in; 0 before the first.
    revision: i64,
    /// What was written last, and what was removed after that: by these it is known whether etcd still has the same history.
    last_put: Option<Mark>,
    last_delete: Option<Mark>,
    connection: Option<(Etcd, WatchStream)>,
    queue: VecDeque<News>,
    backoff: Backoff,
    is_away: bool,
}

impl Follower {
    /// Of this cluster; with the events that are kept, and those that come, or without.
    #[must_use]
    pub fn new(config: ClusterConfig, events: bool) -> Follower {
        Follower {
            keys: Keys::new(&config.prefix, &config.name),
            config,
            events,
            kept: true,
            fleet: Fleet::default(),
            revision: 0,
            last_put: None,
            last_delete: None,
            connection: None,
            queue: VecDeque::new(),
            backoff: Backoff::default(),
            is_away: false,
        }
    }

    /// Of this cluster, with the events that come from now on.
    #[must_use]
    pub fn from_now(config: ClusterConfig) -> Follower {
        Follower { kept: false, ..Follower::new(config, true) }
    }

    /// The picture, as of the last news.
    #[must_use]
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// The last revision that was taken in.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// What comes next. It can be given up at any time: what it has taken in is told by the next call.
    pub async fn next(&mut self) -> News {
        loop {
            if let Some(news) = self.queue.pop_front() {
                return news;
            }
            if let Err(trouble) = self.advance().await {
                self.connection = None;
                if trouble == Trouble::Compacted {
                    // The next attempt reads all anew.
                    continue;
                }
                if !std::mem::replace(&mut self.is_away, true) {
                    return News::Away(trouble);
                }
                sleep(self.backoff.next()).await;
            }
        }
    }

    async fn advance(&mut self) -> Result<(), Trouble> {
        let Some((etcd, changes)) = &mut self.connection else { return self.connect().await };
        let Some(answer) = changes.message().await.map_err(|e| etcd.trouble(&e, "watch"))? else {
            return Err(Trouble::Away("it has ended the watch".to_owned()));
        };
        if answer.compact_revision() > 0 {
            let etcd = etcd.clone();
            return self.read_anew(etcd).await;
        }
        if answer.canceled() {
            return Err(Trouble::Other { what: "watch", why: answer.cancel_reason().to_owned() });
        }
        if std::mem::take(&mut self.is_away) {
            self.queue.push_back(News::Back);
        }
        self.backoff.succeeded();
        let mut changed = false;
        for event in answer.events() {
            let Some(kv) = event.kv() else { continue };
            let is_put = event.event_type() == EventType::Put;
            self.revision = self.revision.max(kv.mod_revision());
            self.mark(kv, is_put);
            changed |= self.fleet.take(&self.keys, kv.key(), is_put.then(|| kv.value()));
            // One that is written again is the same.
            if is_put && kv.version() == 1 {
                self.event(kv);
            }
        }
        // One without events says up to where there are none; but the first only says that it watches, and what etcd has.
        if answer.events().is_empty()
            && !answer.created()
            && let Some(header) = answer.header()
        {
            self.revision = self.revision.max(header.revision());
        }
        if changed {
            self.queue.push_back(News::Changed);
        }
        Ok(())
    }

    async fn connect(&mut self) -> Result<(), Trouble> {
        let etcd = Etcd::connect(&self.config, self.keys.root()).await?;
        if self.revision == 0 {
            self.read(&etcd, 0).await?;
            self.queue.push_back(News::Read);
        } else {
            match self.is_same(&etcd).await {
                Ok(true) => {}
                Ok(false) => {
                    self.queue.push_back(News::SetBack);
                    // What it holds was told.
                    self.read(&etcd, i64::MAX).await?;
                    self.queue.push_back(News::Read);
                }
                // What was seen last is compacted as well.
                Err(Trouble::Compacted) => return self.read_anew(etcd).await,
                Err(trouble) => return Err(trouble),
            }
        }
        let changes = etcd.watch(self.keys.root(), true, self.revision + 1).await?;
        self.connection = Some((etcd, changes));
        Ok(())
    }

    /// Whether etcd's history is the one that was followed, and not that of an older state that has gone on.
    async fn is_same(&self, etcd: &Etcd) -> Result<bool, Trouble> {
        if etcd.revision(self.keys.root()).await? < self.revision {
            return Ok(false);
        }
        for mark in [&self.last_put, &self.last_delete].into_iter().flatten() {
            if !mark.is_in(etcd).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn mark(&mut self, kv: &KeyValue, is_put: bool) {
        let mark = Some(Mark::of(kv, is_put));
        match is_put {
            true => (self.last_put, self.last_delete) = (mark, None),
            false => self.last_delete = mark,
        }
    }

    async fn read_anew(&mut self, etcd: Etcd) -> Result<(), Trouble> {
        self.connection = None;
        let after = self.revision;
        let before = self.queue.len();
        self.read(&etcd, after).await?;
        self.queue.insert(before, News::Missed { after, upto: self.revision });
        self.queue.push_back(News::Read);
        let changes = etcd.watch(self.keys.root(), true, self.revision + 1).await?;
        self.connection = Some((etcd, changes));
        Ok(())
    }

    /// Reads all, and tells the kept events that are newer than this revision. Nothing is taken in before all is read.
    async fn read(&mut self, etcd: &Etcd, newer_than: i64) -> Result<(), Trouble> {
        let (mut found, revision) = etcd.all(&self.keys.hosts(), None).await?;
        for prefix in [self.keys.all_known(), self.keys.nodes()] {
            found.extend(etcd.all(&prefix, Some(revision)).await?.0);
        }
        // Of those that are kept, whoever wants only what comes wants those that came while it could not follow.
        let mut events = match self.events && (self.kept || newer_than > 0) {
            true => etcd.all(&self.keys.events(), Some(revision)).await?.0,
            false => Vec::new(),
        };
        self.fleet = Fleet::default();
        for kv in &found {
            self.fleet.take(&self.keys, kv.key(), Some(kv.value()));
        }
        self.revision = revision;
        (self.last_put, self.last_delete) = (None, None);
        if let Some(kv) = found.iter().chain(&events).max_by_key(|kv| kv.mod_revision()) {
            self.mark(kv, true);
        }
        events.retain(|kv| kv.create_revision() > newer_than);
        // Of one write, in their order in it.
        events.sort_by(|a, b| (a.create_revision(), a.key()).cmp(&(b.create_revision(), b.key())));
        events.iter().for_each(|kv| self.event(kv));
        Ok(())
    }

    fn event(&mut self, kv: &KeyValue) {
        let Some(Key::Event { host, node, registry, number }) =
            self.keys.parse(kv.key()).filter(|_| self.events)
        else {
            return;
        };
        self.queue.push_back(match value::parse::<EventValue>(kv.value()) {
            Ok(value) => News::Event(FleetEvent {
                host,
                node,
                registry,
                number,
                revision: kv.create_revision(),
                value,
            }),
            Err(why) => News::Unreadable(String::from_utf8_lossy(kv.key()).into_owned(), why),
        });
    }
}
