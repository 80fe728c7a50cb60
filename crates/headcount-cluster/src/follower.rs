//! Reads the picture of the cluster at a revision, and follows it from there, through whatever happens to etcd.

use std::collections::VecDeque;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use etcd_client::{Error, EventType, KeyValue, WatchResponse, WatchStream};
use tokio::time::sleep;

use crate::config::ClusterConfig;
use crate::etcd::{Etcd, size_of_kv};
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

/// etcd, and what it tells.
struct Connection {
    etcd: Etcd,
    changes: WatchStream,
    /// An answer that has come already, and is to be heard next.
    ahead: Option<Result<Option<WatchResponse>, Error>>,
}

impl Connection {
    async fn next(&mut self) -> Result<WatchResponse, Trouble> {
        let answer = match self.ahead.take() {
            Some(answer) => answer,
            None => self.changes.message().await,
        };
        let answer = answer.map_err(|error| self.etcd.trouble(&error, "watch"))?;
        answer.ok_or_else(|| Trouble::Away("it has ended the watch".to_owned()))
    }

    /// The next one, if it has come already and tells only of changes.
    fn next_change(&mut self) -> Option<WatchResponse> {
        if self.ahead.is_some() {
            return None;
        }
        // Whoever wants to be woken asks by `next`.
        let mut nobody = Context::from_waker(Waker::noop());
        match pin!(self.changes.message()).poll(&mut nobody) {
            Poll::Ready(Ok(Some(answer))) if !answer.canceled() && answer.compact_revision() == 0 => {
                Some(answer)
            }
            Poll::Ready(answer) => {
                self.ahead = Some(answer);
                None
            }
            Poll::Pending => None,
        }
    }
}

/// Of what comes all at once, so many answers are one change of the picture at most: it may take long to look at it.
const TOGETHER: usize = 1000;
/// What was kept of very many hosts is read in so many parts at most, and of no fewer hosts each.
const PARTS: usize = 200;
const FEWEST: usize = 20;

/// Follows one cluster.
pub struct Follower {
    config: ClusterConfig,
    keys: Keys,
    events: bool,
    /// Of those events that are kept, so many of the last.
    kept: usize,
    fleet: Fleet,
    /// The last revision that was taken in; 0 before the first.
    revision: i64,
    /// What was written last, and what was removed after that: by these it is known whether etcd still has the same history.
    last_put: Option<Mark>,
    last_delete: Option<Mark>,
    connection: Option<Connection>,
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
            kept: usize::MAX,
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
        Follower::from_last(config, 0)
    }

    /// Of this cluster, with so many of the last events that are kept, and those that come.
    #[must_use]
    pub fn from_last(config: ClusterConfig, number: usize) -> Follower {
        Follower { kept: number, ..Follower::new(config, true) }
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
        let Some(connection) = &mut self.connection else { return self.connect().await };
        let answer = connection.next().await?;
        if answer.compact_revision() > 0 {
            let etcd = connection.etcd.clone();
            return self.read_anew(etcd).await;
        }
        if answer.canceled() {
            return Err(Trouble::Other { what: "watch", why: answer.cancel_reason().to_owned() });
        }
        if std::mem::take(&mut self.is_away) {
            self.queue.push_back(News::Back);
        }
        self.backoff.succeeded();
        let mut changed = self.take(&answer);
        for _ in 1..TOGETHER {
            let Some(answer) = self.connection.as_mut().and_then(Connection::next_change) else { break };
            changed |= self.take(&answer);
        }
        if changed {
            self.queue.push_back(News::Changed);
        }
        Ok(())
    }

    /// Takes in what has changed. Whether the picture has.
    fn take(&mut self, answer: &WatchResponse) -> bool {
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
        changed
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
        self.watch(etcd).await
    }

    /// Follows what comes after what was read.
    async fn watch(&mut self, etcd: Etcd) -> Result<(), Trouble> {
        let from = self.revision + 1;
        let changes = match self.events {
            true => etcd.watch(self.keys.root(), true, from).await?,
            // The keys of the picture are neighbours, and events, of which there are the most, are not between them.
            false => etcd.watch_between((&self.keys.hosts(), &self.keys.nodes()), from).await?,
        };
        self.connection = Some(Connection { etcd, changes, ahead: None });
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
        self.watch(etcd).await
    }

    /// Reads all, and tells the kept events that are newer than this revision. Nothing is taken in before all is read.
    async fn read(&mut self, etcd: &Etcd, newer_than: i64) -> Result<(), Trouble> {
        let (mut found, revision) = etcd.all(&self.keys.hosts(), None).await?;
        for prefix in [self.keys.all_known(), self.keys.nodes()] {
            found.extend(etcd.all(&prefix, Some(revision)).await?.0);
        }
        // Whoever wants only what comes, or only the last, wants all those that came while it could not follow.
        let most = if newer_than > 0 { usize::MAX } else { self.kept };
        let (mut events, mut held) = (Vec::<KeyValue>::new(), 0);
        let mut newest = found.iter().max_by_key(|kv| kv.mod_revision()).cloned();
        if self.events && most > 0 {
            let parts = parts(&self.keys, &found);
            let take = |page: Vec<KeyValue>| {
                let last = page.iter().max_by_key(|kv| kv.mod_revision());
                if let Some(last) = last
                    && newest.as_ref().is_none_or(|newest| newest.mod_revision() < last.mod_revision())
                {
                    newest = Some(last.clone());
                }
                let before = events.len();
                events.extend(page.into_iter().filter(|kv| kv.create_revision() > newer_than));
                held += events[before..].iter().map(size_of_kv).sum::<usize>();
                held -= keep_last(&mut events, most);
                held
            };
            etcd.pages(&self.keys.events(), parts.into_iter(), Some(revision), take).await?;
        }
        self.fleet = Fleet::default();
        for kv in &found {
            self.fleet.take(&self.keys, kv.key(), Some(kv.value()));
        }
        self.revision = revision;
        (self.last_put, self.last_delete) = (None, None);
        if let Some(kv) = &newest {
            self.mark(kv, true);
        }
        // Of one write, in their order in it.
        events.sort_by(|a, b| in_time(a).cmp(&in_time(b)));
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

/// By what events are in the order in which they were written.
fn in_time(kv: &KeyValue) -> (i64, &[u8]) {
    (kv.create_revision(), kv.key())
}

/// Leaves so many of the last, in any order. How many bytes the others had.
fn keep_last(events: &mut Vec<KeyValue>, most: usize) -> usize {
    let Some(before) = events.len().checked_sub(most).filter(|before| *before > 0) else { return 0 };
    events.select_nth_unstable_by(before, |a, b| in_time(a).cmp(&in_time(b)));
    events.drain(..before).map(|kv| size_of_kv(&kv)).sum()
}

/// Where the events of these hosts can be divided.
fn parts(keys: &Keys, found: &[KeyValue]) -> Vec<String> {
    divided(found.iter().filter_map(|kv| match keys.parse(kv.key()) {
        Some(Key::Known(host)) => Some(keys.events_of(&host)),
        _ => None,
    }))
}

fn divided(hosts: impl Iterator<Item = String>) -> Vec<String> {
    let mut all: Vec<String> = hosts.collect();
    // A name that is the beginning of another is not always before it there.
    all.sort();
    let each = (all.len() / PARTS).max(FEWEST);
    all.into_iter().skip(each).step_by(each).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_read_in_parts_that_are_neither_many_nor_small() {
        let keys = Keys::new("/h", "shop");
        let of = |number: usize| divided((0..number).map(|n| keys.events_of(&format!("web-{n}"))));
        assert_eq!((of(0).len(), of(FEWEST).len(), of(FEWEST + 1).len()), (0, 0, 1));
        for number in [1000, 10_000, 100_000] {
            let parts = of(number);
            assert!(
                parts.len() < PARTS
                    && parts.len() * FEWEST.max(number / PARTS) + FEWEST.max(number / PARTS) >= number
            );
            // What etcd is asked for has its beginning before its end.
            assert!(parts.is_sorted() && parts.iter().all(|part| part.starts_with(&keys.events())));
        }
    }
}
