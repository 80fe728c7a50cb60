//! Goes on with a rollout: writes what is asked of the agents, and follows what became of it, through whatever happens to etcd.
//!
//! All of a rollout is under one lease, so that it ends as a whole: its record, and a task for each node. Who goes on with it holds a
//! key under a lease of its own, and each write holds only if that is still so: two that both believe to go on with it do no harm.

mod ask;
mod begin;
mod record;

use std::collections::BTreeMap;

use etcd_client::{
    Compare, CompareOp, EventType, KeyValue, PutOptions, Txn, TxnOp, TxnResponse, WatchStream,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::config::ClusterConfig;
use crate::etcd::Etcd;
use crate::keep::keep;
use crate::keys::{Key, Keys};
use crate::pace::Backoff;
use crate::presence::json;
use crate::rollout::{Ended, How, RolloutValue};
use crate::task::{MOST_BYTES, Outcome, Report, Target, TaskState, TaskValue};
use crate::trouble::Trouble;
use crate::value::{self, VERSION};
use record::look;
pub use record::{HolderValue, Refused, abort, is_free};

/// What has changed.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// The tasks: see [`Conductor::tasks`].
    Changed,
    /// Why nothing can be done just now. It is tried again. Once.
    Away(Trouble),
    /// It goes on.
    Back,
    /// The lease had run out, and somebody else goes on with it.
    Lost(String),
    /// Somebody has ended it.
    Ended(Ended),
    /// The record is gone: its lease has run out.
    Gone,
}

struct Connection {
    etcd: Etcd,
    changes: WatchStream,
    keeping: JoinSet<Trouble>,
}

/// One that goes on with a rollout.
pub struct Conductor {
    config: ClusterConfig,
    keys: Keys,
    who: String,
    since: f64,
    record: RolloutValue,
    /// The lease of all of it, and that of the right to go on with it.
    lasting: i64,
    lease: i64,
    tasks: BTreeMap<Target, TaskValue>,
    /// At which revisions they were written.
    revisions: BTreeMap<Target, i64>,
    /// It had stopped, before this one went on with it.
    had_stopped: Option<Ended>,
    connection: Option<Connection>,
    backoff: Backoff,
    is_away: bool,
    /// It has only just got hold of it.
    is_new: bool,
    next_extension: Instant,
}

impl Conductor {
    fn new(
        config: ClusterConfig,
        keys: Keys,
        who: &str,
        record: RolloutValue,
        lasting: i64,
        lease: i64,
    ) -> Conductor {
        Conductor {
            config,
            keys,
            who: who.to_owned(),
            since: crate::now(),
            record,
            lasting,
            lease,
            tasks: BTreeMap::new(),
            revisions: BTreeMap::new(),
            had_stopped: None,
            connection: None,
            backoff: Backoff::default(),
            is_away: false,
            is_new: false,
            next_extension: Instant::now(),
        }
    }

    /// The plan.
    #[must_use]
    pub fn record(&self) -> &RolloutValue {
        &self.record
    }

    /// What was asked, and what became of it, as of the last news.
    #[must_use]
    pub fn tasks(&self) -> &BTreeMap<Target, TaskValue> {
        &self.tasks
    }

    /// How it had ended, if it had, before this one went on with it.
    #[must_use]
    pub fn had_stopped(&self) -> Option<&Ended> {
        self.had_stopped.as_ref()
    }

    /// Whether it is known how it is.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    fn put_record(&self, record: &RolloutValue) -> TxnOp {
        TxnOp::put(self.keys.rollout(), json(record), Some(PutOptions::new().with_lease(self.lasting)))
    }

    fn put_holder(&self) -> TxnOp {
        let holder = HolderValue { v: VERSION, by: self.who.clone(), since: self.since };
        let key = self.keys.holder(&self.record.id);
        TxnOp::put(key, json(&holder), Some(PutOptions::new().with_lease(self.lease)))
    }

    /// What must hold for each write.
    fn is_held(&self) -> Compare {
        Compare::lease(self.keys.holder(&self.record.id), CompareOp::Equal, self.lease)
    }

    /// What comes next. It can be given up at any time.
    pub async fn next(&mut self) -> News {
        loop {
            match self.advance().await {
                Ok(Some(news)) => return news,
                Ok(None) => {}
                Err(trouble) => {
                    self.connection = None;
                    if matches!(trouble, Trouble::LeaseGone | Trouble::Compacted) {
                        // The next attempt finds out what has become of it.
                        continue;
                    }
                    if !std::mem::replace(&mut self.is_away, true) {
                        return News::Away(trouble);
                    }
                    sleep(self.backoff.next()).await;
                }
            }
        }
    }

    async fn advance(&mut self) -> Result<Option<News>, Trouble> {
        if self.connection.is_none() {
            return self.connect().await;
        }
        if std::mem::take(&mut self.is_away) {
            self.backoff.succeeded();
            return Ok(Some(News::Back));
        }
        if self.next_extension <= Instant::now() {
            self.extend().await?;
        }
        let Some(Connection { etcd, changes, keeping }) = &mut self.connection else { return Ok(None) };
        let answer = tokio::select! {
            answer = changes.message() => answer.map_err(|e| etcd.trouble(&e, "watch"))?,
            ended = keeping.join_next() => return Err(match ended {
                Some(Ok(trouble)) => trouble,
                _ => Trouble::LeaseGone,
            }),
        };
        let Some(answer) = answer else { return Err(Trouble::Away("it has ended the watch".to_owned())) };
        if answer.compact_revision() > 0 {
            return Err(Trouble::Compacted);
        }
        if answer.canceled() {
            return Err(Trouble::Other { what: "watch", why: answer.cancel_reason().to_owned() });
        }
        let mut has_changed = false;
        for event in answer.events() {
            let Some(kv) = event.kv() else { continue };
            let is_put = event.event_type() == EventType::Put;
            if kv.key() == self.keys.rollout().as_bytes()
                || kv.key() == self.keys.holder(&self.record.id).as_bytes()
            {
                // Reading it anew says what it means.
                self.connection = None;
                return Ok(None);
            }
            has_changed |= self.take(kv, is_put);
        }
        Ok(has_changed.then_some(News::Changed))
    }

    /// The record and its tasks last as long as somebody goes on with them, and for their time after that.
    async fn extend(&mut self) -> Result<(), Trouble> {
        // A record that somebody has put back by hand may be under none.
        if let Some(connection) = self.connection.as_ref().filter(|_| self.lasting != 0) {
            connection.etcd.keep_alive(self.lasting).await?;
        }
        self.next_extension = Instant::now() + self.config.forget_after / 4;
        Ok(())
    }

    async fn connect(&mut self) -> Result<Option<News>, Trouble> {
        let etcd = Etcd::connect(&self.config, self.keys.root()).await?;
        if let Some(news) = self.take_hold(&etcd).await? {
            return Ok(Some(news));
        }
        // Of thousands of nodes, what follows takes its time.
        let mut keeping = JoinSet::new();
        keeping.spawn(keep(etcd.clone(), self.lease, self.config.ttl));
        let revision = self.read_tasks(&etcd).await?;
        let changes = etcd.watch(&self.keys.tasks(), true, revision + 1).await?;
        self.connection = Some(Connection { etcd, changes, keeping });
        if std::mem::take(&mut self.is_new) {
            self.remind().await?;
        }
        Ok(Some(News::Changed))
    }

    /// At which revision.
    async fn read_tasks(&mut self, etcd: &Etcd) -> Result<i64, Trouble> {
        let (found, revision) = etcd.all(&self.keys.tasks(), None).await?;
        self.tasks.clear();
        self.revisions.clear();
        for kv in &found {
            self.take(kv, true);
        }
        Ok(revision)
    }

    /// Makes sure that it is this one that goes on with it. If it is not, why.
    async fn take_hold(&mut self, etcd: &Etcd) -> Result<Option<News>, Trouble> {
        loop {
            let found = match look(etcd, &self.keys).await {
                Ok(Some(found)) if found.record.id == self.record.id => found,
                Ok(_) | Err(Refused::Unreadable(..)) => return Ok(Some(News::Gone)),
                Err(Refused::Trouble(trouble)) => return Err(trouble),
                Err(_) => return Ok(Some(News::Gone)),
            };
            // One that has stopped can be gone on with, by whoever was asked for that.
            if found.record.ended != self.record.ended
                && let Some(ended) = found.record.ended
            {
                return Ok(Some(News::Ended(ended)));
            }
            match found.holder {
                Some((_, lease)) if lease == self.lease => return Ok(None),
                Some((holder, _)) => return Ok(Some(News::Lost(holder.by))),
                None => {}
            }
            // The lease has run out, or was never used.
            if let Err(Trouble::LeaseGone) = etcd.keep_alive(self.lease).await {
                self.lease = etcd.grant(self.config.ttl).await?;
            }
            let txn = Txn::new()
                .when([
                    Compare::create_revision(self.keys.holder(&self.record.id), CompareOp::Equal, 0),
                    Compare::mod_revision(self.keys.rollout(), CompareOp::Equal, found.revision),
                ])
                .and_then([self.put_holder()]);
            if etcd.txn("go on with a rollout", txn).await?.succeeded() {
                self.is_new = true;
                return Ok(None);
            }
        }
    }

    /// Takes in a task. Whether that changed anything.
    fn take(&mut self, kv: &KeyValue, is_put: bool) -> bool {
        let Some(Key::Task { host, node, rollout }) = self.keys.parse(kv.key()) else { return false };
        let target = Target::new(host, node);
        // What was read since may be newer than what the watch has on its way.
        let is_older = self.revisions.get(&target).is_some_and(|known| *known > kv.mod_revision());
        if rollout != self.record.id || is_older {
            return false;
        }
        self.revisions.insert(target.clone(), kv.mod_revision());
        if !is_put {
            return self.tasks.remove(&target).is_some();
        }
        let task = match kv.value().len() > MOST_BYTES {
            true => Err("it is too long".to_owned()),
            false => value::parse(kv.value()).map_err(|why| why.to_string()),
        };
        let task = task.unwrap_or_else(|why| {
            // Whatever became of it, nothing more is done to it.
            let key = String::from_utf8_lossy(kv.key());
            let why = format!("the key {key} is not ours any more: {why}");
            let report = Some(Report::new(Outcome::Failed, &why));
            TaskValue {
                state: TaskState::Done,
                report,
                ..TaskValue::reload("", false, self.record.timeout())
            }
        });
        self.tasks.insert(target, task);
        true
    }

    fn etcd(&self) -> Result<Etcd, Trouble> {
        let connection = self.connection.as_ref();
        connection
            .map(|connection| connection.etcd.clone())
            .ok_or_else(|| Trouble::Away("not connected".to_owned()))
    }

    /// Writes. `None`: it does not hold any more, and nothing was written.
    async fn write(&mut self, what: &'static str, txn: Txn) -> Result<Option<TxnResponse>, Trouble> {
        let written = self.etcd()?.txn(what, txn).await;
        if !matches!(written, Ok(ref answer) if answer.succeeded()) {
            // What is true is read anew.
            self.connection = None;
        }
        Ok(written?).map(|answer| answer.succeeded().then_some(answer))
    }

    /// Notes that it has ended. Another one may begin.
    ///
    /// # Errors
    /// etcd, or that it is not held any more.
    pub async fn end(&mut self, how: How, why: &str) -> Result<(), Trouble> {
        let ended = Some(Ended { how, why: crate::task::cut(why), time: crate::now() });
        let record = RolloutValue { ended, ..self.record.clone() };
        let txn = Txn::new()
            .when([self.is_held()])
            .and_then([self.put_record(&record), TxnOp::delete(self.keys.holder(&record.id), None)]);
        if self.write("end a rollout", txn).await?.is_none() {
            return Err(Trouble::LeaseGone);
        }
        self.record = record;
        self.release().await
    }

    /// Goes on no more: somebody else may, at once.
    ///
    /// # Errors
    /// etcd: then others have to wait until the lease has run out.
    pub async fn release(&mut self) -> Result<(), Trouble> {
        let etcd = match self.connection.take() {
            Some(connection) => connection.etcd,
            None => Etcd::connect(&self.config, self.keys.root()).await?,
        };
        etcd.revoke(self.lease).await
    }
}
