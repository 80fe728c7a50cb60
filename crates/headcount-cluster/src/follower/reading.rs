//! How a cluster is read, and the way to what changes after that. In a task of its own: whoever waits for news may give up waiting at any
//! time, as often as it likes, and this goes on.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use etcd_client::{Error, KeyValue, WatchResponse, WatchStream};

use crate::config::ClusterConfig;
use crate::etcd::{Etcd, size_of_kv};
use crate::keys::{Key, Keys};
use crate::trouble::Trouble;

/// What was kept of very many hosts is read in so many parts at most, and of no fewer hosts each.
const PARTS: usize = 200;
const FEWEST: usize = 20;

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
pub(super) struct Connection {
    pub(super) etcd: Etcd,
    changes: WatchStream,
    /// An answer that has come already, and is to be heard next.
    ahead: Option<Result<Option<WatchResponse>, Error>>,
}

impl Connection {
    fn new(etcd: Etcd, changes: WatchStream) -> Connection {
        Connection { etcd, changes, ahead: None }
    }

    pub(super) async fn next(&mut self) -> Result<WatchResponse, Trouble> {
        let answer = match self.ahead.take() {
            Some(answer) => answer,
            None => self.changes.message().await,
        };
        let answer = answer.map_err(|error| self.etcd.trouble(&error, "watch"))?;
        answer.ok_or_else(|| Trouble::Away("it has ended the watch".to_owned()))
    }

    /// The next one, if it has come already and tells only of changes.
    pub(super) fn next_change(&mut self) -> Option<WatchResponse> {
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

/// Reads one cluster.
pub(super) struct Reader {
    pub(super) config: ClusterConfig,
    pub(super) keys: Keys,
    /// With events, or without.
    pub(super) events: bool,
    /// Of those events that are kept, so many of the last.
    pub(super) kept: usize,
}

/// What was taken in last.
#[derive(Clone, Default)]
pub(super) struct Seen {
    /// 0 before the first.
    pub(super) revision: i64,
    /// What was written last, and what was removed after that: by these it is known whether etcd still has the same history.
    put: Option<Mark>,
    delete: Option<Mark>,
}

impl Seen {
    pub(super) fn take(&mut self, kv: &KeyValue, is_put: bool) {
        self.revision = self.revision.max(kv.mod_revision());
        let mark = Some(Mark::of(kv, is_put));
        match is_put {
            true => (self.put, self.delete) = (mark, None),
            false => self.delete = mark,
        }
    }

    /// Whether etcd's history is the one that was followed, and not that of an older state that has gone on.
    async fn is_in(&self, etcd: &Etcd, root: &str) -> Result<bool, Trouble> {
        if etcd.revision(root).await? < self.revision {
            return Ok(false);
        }
        for mark in [&self.put, &self.delete].into_iter().flatten() {
            if !mark.is_in(etcd).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// How what is followed now goes on from what was seen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Nothing was seen before.
    First,
    /// Without a gap.
    Same,
    /// etcd was restored from an older state.
    SetBack,
    /// Some of what happened between is compacted.
    Missed,
}

/// All of it at a revision.
pub(super) struct Read {
    pub(super) seen: Seen,
    /// Hosts and nodes.
    pub(super) found: Vec<KeyValue>,
    /// The kept events that are new, in their order.
    pub(super) events: Vec<KeyValue>,
}

/// It is followed.
pub(super) struct Begun {
    pub(super) connection: Connection,
    pub(super) how: How,
    pub(super) read: Option<Read>,
}

impl Reader {
    /// Follows what comes after what was seen. `etcd`: it has answered that what comes next is compacted.
    pub(super) async fn begin(&self, seen: Seen, etcd: Option<Etcd>) -> Result<Begun, Trouble> {
        let is_compacted = etcd.is_some();
        let etcd = match etcd {
            Some(etcd) => etcd,
            None => Etcd::connect(&self.config, self.keys.root()).await?,
        };
        let how = if seen.revision == 0 {
            How::First
        } else if is_compacted {
            How::Missed
        } else {
            match seen.is_in(&etcd, self.keys.root()).await {
                Ok(true) => How::Same,
                Ok(false) => How::SetBack,
                // What was seen last is compacted as well.
                Err(Trouble::Compacted) => How::Missed,
                Err(trouble) => return Err(trouble),
            }
        };
        let newer_than = match how {
            How::Same => None,
            How::First => Some(0),
            How::Missed => Some(seen.revision),
            // What it holds was told.
            How::SetBack => Some(i64::MAX),
        };
        let read = match newer_than {
            Some(revision) => Some(self.read(&etcd, revision).await?),
            None => None,
        };
        let from = read.as_ref().map_or(seen.revision, |read| read.seen.revision) + 1;
        let changes = match self.events {
            true => etcd.watch(self.keys.root(), true, from).await?,
            // The keys of the picture are neighbours, and events, of which there are the most, are not between them.
            false => etcd.watch_between((&self.keys.hosts(), &self.keys.nodes()), from).await?,
        };
        Ok(Begun { connection: Connection::new(etcd, changes), how, read })
    }

    /// Reads all, and the kept events that are newer than this revision.
    async fn read(&self, etcd: &Etcd, newer_than: i64) -> Result<Read, Trouble> {
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
        // Of one write, in their order in it.
        events.sort_by(|a, b| in_time(a).cmp(&in_time(b)));
        let put = newest.as_ref().map(|kv| Mark::of(kv, true));
        Ok(Read { seen: Seen { revision, put, delete: None }, found, events })
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
