//! Getting and freeing keys in etcd, one task for each. Who stands in which order, etcd's revisions say: whoever has the smallest of
//! a queue has what it is about, and each other one watches only the one before it, so that nobody is woken in vain.

use std::sync::Arc;

use etcd_client::{
    Compare, CompareOp, EventType, GetOptions, KeyValue, PutOptions, SortOrder, SortTarget, Txn, TxnOp,
    TxnOpResponse, TxnResponse,
};
use tokio::sync::{OnceCell, mpsc, watch};

use super::book::{How, Kind, What};
use super::lease::Lease;
use super::values::{ClaimValue, MOST_ATTEMPTS, OnceState, OnceValue};
use crate::etcd::Etcd;
use crate::keys::Keys;
use crate::now;
use crate::pace::Backoff;
use crate::presence::json;
use crate::trouble::Trouble;
use crate::value::{self, VERSION};

/// What a task has to say.
pub(super) enum Report {
    /// There is a connection, and a lease.
    Connected(Arc<Place>, Lease),
    /// It does not go on with this connection.
    Trouble(Trouble),
    /// The lease was extended.
    Renewed(u64),
    /// The key was got. Of a once: the number of the attempt to do it, and how the one before ended.
    Held { what: What, attempt: u64, token: i64, run: Option<(u32, Option<String>)> },
    /// It was held, or stood in the queue, and is gone.
    Gone { what: What, attempt: u64 },
    /// The once was settled: by success, or by so many failures.
    Settled { what: What, attempt: u64, failed: Option<(u32, String)> },
    /// Who has it.
    Seen { what: What, by: ClaimValue },
    /// What was to be freed is free.
    Freed { what: What, attempt: u64 },
    /// The task that was at it has ended.
    Ended { what: What, attempt: u64 },
    /// etcd takes no writes now. It is tried again.
    Refused(Trouble),
}

/// Where it says it.
pub(super) type Reports = mpsc::UnboundedSender<Report>;

/// What the tasks share.
pub(super) struct Place {
    pub etcd: Etcd,
    pub keys: Keys,
    pub lease: i64,
    /// Which connection of this lease.
    pub connection: u64,
    /// That is written down.
    pub is_begun: OnceCell<()>,
    pub host: String,
    pub reports: Reports,
}

impl Place {
    /// Under this connection: what an earlier one has still on its way must not come after what this one does.
    fn is_current(&self) -> Compare {
        Compare::value(self.keys.guard(self.lease), CompareOp::Equal, self.number())
    }

    /// As many digits as are needed for texts to be in the order of numbers.
    fn number(&self) -> String {
        format!("{:020}", self.connection)
    }

    /// Makes this connection the current one of its lease, unless there is a later one. Once.
    async fn begin(&self) -> Result<(), Trouble> {
        self.is_begun.get_or_try_init(|| self.write_number()).await.map(drop)
    }

    async fn write_number(&self) -> Result<(), Trouble> {
        let guard = self.keys.guard(self.lease);
        let put = || TxnOp::put(guard.clone(), self.number(), Some(PutOptions::new().with_lease(self.lease)));
        let is_first = Compare::create_revision(guard.clone(), CompareOp::Equal, 0);
        let is_later = Compare::value(guard.clone(), CompareOp::Less, self.number());
        let unless_later = TxnOp::txn(Txn::new().when([is_later]).and_then([put()]));
        let txn = Txn::new().when([is_first]).and_then([put()]).or_else([unless_later]);
        self.etcd.txn("begin to have something", txn).await.map(drop)
    }

    pub fn report(&self, report: Report) {
        // Nobody listens when the agent ends.
        let _ = self.reports.send(report);
    }

    /// While etcd takes no writes, its leases can be kept all the same: then this waits, and it is to be tried again.
    async fn is_over(&self, how: Result<(), Trouble>, backoff: &mut Backoff) -> Option<Result<(), Trouble>> {
        match how {
            Err(trouble) if trouble.refuses_writes() => {
                self.report(Report::Refused(trouble));
                tokio::time::sleep(backoff.next()).await;
                None
            }
            other => Some(other),
        }
    }
}

/// One attempt to have something.
pub(super) struct Chase {
    pub at: Arc<Place>,
    pub what: What,
    pub attempt: u64,
    /// Over an earlier connection it was got, and had this token.
    pub token: Option<i64>,
    /// When nobody wants it any more. What was begun is ended all the same, so that nothing is on its way when it is freed.
    pub stop: watch::Receiver<bool>,
}

impl Chase {
    /// Until the key is gone, or what was to be done once is settled, or it is stopped.
    pub async fn run(self) -> Result<(), Trouble> {
        let mut backoff = Backoff::default();
        loop {
            let is_stopped = *self.stop.borrow();
            let how = match (self.what.kind, self.token) {
                _ if is_stopped => Ok(()),
                (_, Some(token)) => self.go_on(token).await,
                (kind, None) => self.begin(kind).await,
            };
            if let Some(how) = self.at.is_over(how, &mut backoff).await {
                how?;
                break;
            }
        }
        self.report(Report::Ended { what: self.what.clone(), attempt: self.attempt });
        Ok(())
    }

    async fn stopped(&self) {
        let mut stop = self.stop.clone();
        // Whoever could stop it is gone only with all of it.
        let _ = stop.wait_for(|stop| *stop).await;
    }

    fn report(&self, report: Report) {
        self.at.report(report);
    }

    fn gone(&self) {
        self.report(Report::Gone { what: self.what.clone(), attempt: self.attempt });
    }

    fn held(&self, token: i64, run: Option<(u32, Option<String>)>) {
        self.report(Report::Held { what: self.what.clone(), attempt: self.attempt, token, run });
    }

    /// It was got before the connection broke: it is ours if it is still the same.
    async fn go_on(&self, token: i64) -> Result<(), Trouble> {
        let key = match self.what.kind {
            Kind::Role | Kind::Lock => self.at.keys.place(&self.what, self.at.lease, self.attempt),
            Kind::Once => self.at.keys.running(&self.what.name),
        };
        match self.at.etcd.get(&key).await? {
            Some(kv) if kv.create_revision() == token => self.until_gone(&key, kv.mod_revision() + 1).await,
            _ => {
                self.gone();
                Ok(())
            }
        }
    }

    /// Whether it was deleted, and this was not stopped before.
    async fn deleted(&self, key: &str, from: i64, written: impl Fn(&KeyValue)) -> Result<bool, Trouble> {
        tokio::select! {
            deleted = self.at.etcd.until_deleted(key, from, written) => deleted.map(|()| true),
            () = self.stopped() => Ok(false),
        }
    }

    /// It is ours.
    async fn until_gone(&self, key: &str, from: i64) -> Result<(), Trouble> {
        if self.deleted(key, from, |_| ()).await? {
            self.gone();
        }
        Ok(())
    }

    /// It is another's, who has it or is before us, and writes more into it when it is known for which process it is. Whether it is free,
    /// and this was not stopped before.
    async fn other_gone(&self, kv: &KeyValue, from: i64) -> Result<bool, Trouble> {
        let seen = |kv: &KeyValue| {
            if let Ok(by) = value::parse(kv.value()) {
                self.report(Report::Seen { what: self.what.clone(), by });
            }
        };
        seen(kv);
        self.deleted(&String::from_utf8_lossy(kv.key()), from, seen).await
    }

    /// So far nobody in particular.
    fn waiting(&self) -> ClaimValue {
        ClaimValue { v: VERSION, host: self.at.host.clone(), attempt: self.attempt, ..ClaimValue::default() }
    }

    async fn begin(&self, kind: Kind) -> Result<(), Trouble> {
        self.at.begin().await?;
        match kind {
            Kind::Role | Kind::Lock => self.queue().await,
            Kind::Once => self.once().await,
        }
    }

    async fn queue(&self) -> Result<(), Trouble> {
        let (etcd, keys) = (&self.at.etcd, &self.at.keys);
        let (queue, mine) = (keys.queue(&self.what), keys.place(&self.what, self.at.lease, self.attempt));
        let put = TxnOp::put(
            mine.clone(),
            json(&self.waiting()),
            Some(PutOptions::new().with_lease(self.at.lease)),
        );
        // After a connection that broke it may be there already.
        let is_new = Compare::create_revision(mine.clone(), CompareOp::Equal, 0);
        let txn = Txn::new().when([self.at.is_current(), is_new]).and_then([put]);
        etcd.txn("stand in a queue", txn).await?;
        loop {
            let Some(kv) = etcd.get(&mine).await? else {
                self.gone();
                return Ok(());
            };
            let token = kv.create_revision();
            let Some((before, revision)) = etcd.last_before(&queue, token).await? else {
                self.held(token, None);
                return self.until_gone(&mine, kv.mod_revision() + 1).await;
            };
            if !self.other_gone(&before, revision + 1).await? {
                return Ok(());
            }
        }
    }

    async fn once(&self) -> Result<(), Trouble> {
        let (etcd, keys) = (&self.at.etcd, &self.at.keys);
        let (record, running) = (keys.once(&self.what.name), keys.running(&self.what.name));
        loop {
            let both =
                Txn::new().and_then([TxnOp::get(record.clone(), None), TxnOp::get(running.clone(), None)]);
            let answer = etcd.txn("look at what runs once", both).await?;
            let [there, runs] = two(&answer);
            let known: Option<OnceValue> = match there.as_ref().map(|kv| value::parse(kv.value())).transpose()
            {
                Ok(known) => known,
                // It is not overwritten: nobody knows whether it was done.
                Err(why) => {
                    let failed =
                        Some((0, format!("the key {record} cannot be read, and is left alone: {why}")));
                    self.report(Report::Settled { what: self.what.clone(), attempt: self.attempt, failed });
                    return Ok(());
                }
            };
            let failed = known.as_ref().and_then(OnceValue::settled);
            if let Some(failed) = failed {
                self.report(Report::Settled { what: self.what.clone(), attempt: self.attempt, failed });
                return Ok(());
            }
            if let Some(kv) = runs {
                let by = value::parse::<ClaimValue>(kv.value());
                if kv.lease() == self.at.lease && by.is_ok_and(|by| by.attempt == self.attempt) {
                    let known = known.unwrap_or_default();
                    self.held(kv.create_revision(), Some((known.attempts, known.last)));
                    return self.until_gone(&running, kv.mod_revision() + 1).await;
                }
                if !self.other_gone(&kv, revision_of(&answer) + 1).await? {
                    return Ok(());
                }
                continue;
            }
            let mut next = known.unwrap_or_default();
            if next.state == OnceState::Running {
                // Whoever ran it is gone without a word: so its lease has run out.
                (next.state, next.last) = (OnceState::Open, Some("lost".to_owned()));
            }
            let is_over = next.attempts >= MOST_ATTEMPTS;
            let mut ops = Vec::new();
            if is_over {
                next.state = OnceState::Failed;
            } else {
                next.attempts += 1;
                next.state = OnceState::Running;
                ops.push(TxnOp::put(
                    running.clone(),
                    json(&self.waiting()),
                    Some(PutOptions::new().with_lease(self.at.lease)),
                ));
            }
            (next.v, next.host, next.time) = (VERSION, self.at.host.clone(), now());
            ops.push(TxnOp::put(record.clone(), json(&next), None));
            let txn = Txn::new().when([
                self.at.is_current(),
                Compare::create_revision(running.clone(), CompareOp::Equal, 0),
                Compare::mod_revision(
                    record.clone(),
                    CompareOp::Equal,
                    there.map_or(0, |kv| kv.mod_revision()),
                ),
            ]);
            // If not, somebody was quicker. Either way the next look says what is true.
            etcd.txn("begin what runs once", txn.and_then(ops)).await?;
        }
    }
}

fn two(answer: &TxnResponse) -> [Option<KeyValue>; 2] {
    let mut found = answer.op_responses().into_iter().map(|response| match response {
        TxnOpResponse::Get(mut get) => get.take_kvs().pop(),
        _ => None,
    });
    [found.next().flatten(), found.next().flatten()]
}

fn revision_of(answer: &TxnResponse) -> i64 {
    answer.header().map_or(0, etcd_client::ResponseHeader::revision)
}

/// Writes whom it is for. Nothing happens if it was lost meanwhile.
pub(super) async fn sign(
    at: Arc<Place>,
    what: What,
    attempt: u64,
    token: i64,
    value: ClaimValue,
) -> Result<(), Trouble> {
    let key = match what.kind {
        Kind::Once => at.keys.running(&what.name),
        Kind::Role | Kind::Lock => at.keys.place(&what, at.lease, attempt),
    };
    let put = TxnOp::put(key.clone(), json(&value), Some(PutOptions::new().with_lease(at.lease)));
    let txn = Txn::new().when([Compare::create_revision(key, CompareOp::Equal, token)]).and_then([put]);
    let mut backoff = Backoff::default();
    loop {
        let how = at.etcd.txn("sign what was got", txn.clone()).await.map(drop);
        if let Some(how) = at.is_over(how, &mut backoff).await {
            return how;
        }
    }
}

/// Frees what an attempt has, or may have.
pub(super) async fn free(
    at: Arc<Place>,
    what: What,
    attempt: u64,
    how: How,
    signed: ClaimValue,
) -> Result<(), Trouble> {
    let mut backoff = Backoff::default();
    loop {
        let freed = free_now(&at, &what, attempt, how, &signed).await;
        if let Some(freed) = at.is_over(freed, &mut backoff).await {
            freed?;
            break;
        }
    }
    at.report(Report::Freed { what, attempt });
    Ok(())
}

async fn free_now(
    at: &Place,
    what: &What,
    attempt: u64,
    how: How,
    signed: &ClaimValue,
) -> Result<(), Trouble> {
    // What an earlier connection has still on its way would come after this, for nobody.
    at.begin().await?;
    if what.kind == Kind::Once {
        return free_once(at, what, attempt, how, signed).await;
    }
    let key = at.keys.place(what, at.lease, attempt);
    at.etcd.txn("free", Txn::new().and_then([TxnOp::delete(key, None)])).await.map(drop)
}

async fn free_once(
    at: &Place,
    what: &What,
    attempt: u64,
    how: How,
    signed: &ClaimValue,
) -> Result<(), Trouble> {
    let (record, running) = (at.keys.once(&what.name), at.keys.running(&what.name));
    let both = Txn::new().and_then([TxnOp::get(record.clone(), None), TxnOp::get(running.clone(), None)]);
    let [there, runs] = two(&at.etcd.txn("look at what runs once", both).await?);
    let is_ours = |kv: &KeyValue| {
        kv.lease() == at.lease && value::parse::<ClaimValue>(kv.value()).is_ok_and(|by| by.attempt == attempt)
    };
    let Some(runs) = runs.filter(is_ours) else { return Ok(()) };
    let token = Compare::create_revision(running.clone(), CompareOp::Equal, runs.create_revision());
    let delete = TxnOp::delete(running, None);
    let known = there.as_ref().map(|kv| value::parse::<OnceValue>(kv.value())).transpose();
    // What somebody has made of it since is left alone.
    let Ok(known) = known else {
        return at
            .etcd
            .txn("end what runs once", Txn::new().when([token]).and_then([delete]))
            .await
            .map(drop);
    };
    let mut next = known.unwrap_or_default();
    match how {
        // It was got for a process that has gone before it was told.
        How::NotBegun => {
            (next.state, next.attempts) = (OnceState::Open, next.attempts.saturating_sub(1));
        }
        How::LetGo => next.state = OnceState::Done,
        How::Failed => next.end_badly("failed"),
        How::Died => next.end_badly("died"),
        How::Stalled => next.end_badly("stalled"),
    }
    (next.v, next.host, next.time) = (VERSION, at.host.clone(), now());
    (next.pid, next.process) = (signed.pid, signed.process.clone());
    let txn = Txn::new().when([token]).and_then([TxnOp::put(record, json(&next), None), delete]);
    at.etcd.txn("end what runs once", txn).await.map(drop)
}

impl Etcd {
    /// Of those with this prefix, the last one that was made before this revision; and as of which revision that is.
    async fn last_before(&self, prefix: &str, revision: i64) -> Result<Option<(KeyValue, i64)>, Trouble> {
        let options = GetOptions::new()
            .with_prefix()
            .with_max_create_revision(revision - 1)
            .with_sort(SortTarget::Create, SortOrder::Descend)
            .with_limit(1);
        let answer =
            self.txn("look who is first", Txn::new().and_then([TxnOp::get(prefix, Some(options))])).await?;
        let at = revision_of(&answer);
        let [found, _] = two(&answer);
        Ok(found.map(|kv| (kv, at)))
    }

    /// Until this key is deleted, at this revision or later. `written`: what is written into it meanwhile.
    async fn until_deleted(&self, key: &str, from: i64, written: impl Fn(&KeyValue)) -> Result<(), Trouble> {
        let mut changes = self.watch(key, false, from).await?;
        loop {
            let Some(answer) = changes.message().await.map_err(|e| self.trouble(&e, "watch"))? else {
                return Err(Trouble::Away("it has ended the watch".to_owned()));
            };
            if answer.compact_revision() > 0 || answer.canceled() {
                // Held for longer than etcd keeps its history: from now on, if it is still the same key.
                let look = Txn::new().and_then([TxnOp::get(key, None)]);
                let answer = self.txn("look whether it is still there", look).await?;
                let [found, _] = two(&answer);
                let Some(kv) = found.filter(|kv| kv.create_revision() < from) else { return Ok(()) };
                written(&kv);
                changes = self.watch(key, false, revision_of(&answer) + 1).await?;
                continue;
            }
            for event in answer.events() {
                match event.event_type() {
                    EventType::Delete => return Ok(()),
                    EventType::Put => event.kv().into_iter().for_each(&written),
                }
            }
        }
    }
}
