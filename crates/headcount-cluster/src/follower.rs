//! Reads the picture of the cluster at a revision, and follows it from there, through whatever happens to etcd.

mod reading;

use std::collections::VecDeque;
use std::sync::Arc;

use etcd_client::{EventType, KeyValue, WatchResponse};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::config::ClusterConfig;
use crate::etcd::Etcd;
use crate::fleet::Fleet;
use crate::keys::{Key, Keys};
use crate::pace::Backoff;
use crate::trouble::Trouble;
use crate::value::{self, EventValue, Unreadable};
use reading::{Begun, Connection, How, Reader, Seen};

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

/// Of what comes all at once, so many answers are one change of the picture at most: it may take long to look at it.
const TOGETHER: usize = 1000;

/// Follows one cluster.
pub struct Follower {
    reader: Arc<Reader>,
    fleet: Fleet,
    seen: Seen,
    connection: Option<Connection>,
    /// What connects and reads.
    connecting: Option<JoinSet<Result<Begun, Trouble>>>,
    queue: VecDeque<News>,
    backoff: Backoff,
    /// Not before this.
    again_at: Option<Instant>,
    is_away: bool,
}

impl Follower {
    /// Of this cluster; with the events that are kept, and those that come, or without.
    #[must_use]
    pub fn new(config: ClusterConfig, events: bool) -> Follower {
        Follower::of(config, events, usize::MAX)
    }

    /// Of this cluster, with the events that come from now on.
    #[must_use]
    pub fn from_now(config: ClusterConfig) -> Follower {
        Follower::from_last(config, 0)
    }

    /// Of this cluster, with so many of the last events that are kept, and those that come.
    #[must_use]
    pub fn from_last(config: ClusterConfig, number: usize) -> Follower {
        Follower::of(config, true, number)
    }

    fn of(config: ClusterConfig, events: bool, kept: usize) -> Follower {
        let keys = Keys::new(&config.prefix, &config.name);
        Follower {
            reader: Arc::new(Reader { config, keys, events, kept }),
            fleet: Fleet::default(),
            seen: Seen::default(),
            connection: None,
            connecting: None,
            queue: VecDeque::new(),
            backoff: Backoff::default(),
            again_at: None,
            is_away: false,
        }
    }

    /// The picture, as of the last news.
    #[must_use]
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// The last revision that was taken in.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.seen.revision
    }

    /// What comes next. It can be given up at any time: the next call goes on where this one was.
    pub async fn next(&mut self) -> News {
        loop {
            if let Some(news) = self.queue.pop_front() {
                return news;
            }
            if let Some(at) = self.again_at {
                sleep_until(at).await;
                self.again_at = None;
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
                self.again_at = Some(Instant::now() + self.backoff.next());
            }
        }
    }

    async fn advance(&mut self) -> Result<(), Trouble> {
        let Some(connection) = &mut self.connection else { return self.connect().await };
        let answer = connection.next().await?;
        if answer.compact_revision() > 0 {
            let etcd = connection.etcd.clone();
            self.connection = None;
            self.begin(Some(etcd));
            return Ok(());
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
            self.seen.take(kv, is_put);
            changed |= self.fleet.take(&self.reader.keys, kv.key(), is_put.then(|| kv.value()));
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
            self.seen.revision = self.seen.revision.max(header.revision());
        }
        changed
    }

    fn begin(&mut self, etcd: Option<Etcd>) -> &mut JoinSet<Result<Begun, Trouble>> {
        let (reader, seen) = (Arc::clone(&self.reader), self.seen.clone());
        let mut connecting = JoinSet::new();
        connecting.spawn(async move { reader.begin(seen, etcd).await });
        self.connecting.insert(connecting)
    }

    async fn connect(&mut self) -> Result<(), Trouble> {
        let begun = match &mut self.connecting {
            Some(connecting) => connecting.join_next().await,
            None => self.begin(None).join_next().await,
        };
        self.connecting = None;
        let begun = match begun {
            Some(Ok(begun)) => begun?,
            Some(Err(error)) => return Err(Trouble::Other { what: "go on", why: error.to_string() }),
            None => return Ok(()),
        };
        self.take_in(begun);
        Ok(())
    }

    fn take_in(&mut self, begun: Begun) {
        let Begun { connection, how, read } = begun;
        self.connection = Some(connection);
        let Some(read) = read else { return };
        match how {
            How::Missed => {
                self.queue.push_back(News::Missed { after: self.seen.revision, upto: read.seen.revision });
            }
            How::SetBack => self.queue.push_back(News::SetBack),
            How::First | How::Same => {}
        }
        self.fleet = Fleet::default();
        for kv in &read.found {
            self.fleet.take(&self.reader.keys, kv.key(), Some(kv.value()));
        }
        self.seen = read.seen;
        read.events.iter().for_each(|kv| self.event(kv));
        self.queue.push_back(News::Read);
    }

    fn event(&mut self, kv: &KeyValue) {
        let Some(Key::Event { host, node, registry, number }) =
            self.reader.keys.parse(kv.key()).filter(|_| self.reader.events)
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
