//! Does what the cluster asks of this host: reloads a node. Each task is begun once at most, whatever happens to etcd and to this
//! agent meanwhile.
//!
//! A task is *taken* by a write that says so, before anything is done. Who finds one that is taken and has not begun it itself
//! does not begin it: it looks at what has become of it. Nobody takes one while nobody goes on with its rollout.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Compare, CompareOp, EventType, KeyValue, PutOptions, Txn, TxnOp};
use headcount::{Observer, Snapshot};
use headcount_report::Claim;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use crate::Nodes;
use crate::config::{ClusterConfig, Reload};
use crate::etcd::Etcd;
use crate::keys::{Key, Keys};
use crate::pace::Backoff;
use crate::presence::{Leases, is_ours, json, this_agent};
use crate::task::{self, MOST_BYTES, Outcome, RELOAD, Report, Target, TaskState, TaskValue};
use crate::trouble::Trouble;
use crate::value;

/// One reload, as it is to be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// The registry of the node.
    pub registry: PathBuf,
    /// Also wait until no older generation is left.
    pub drained: bool,
    /// So long at most.
    pub timeout: Duration,
    /// An agent that has ended may have sent the signal already, when this was the newest generation: only look, and send none.
    pub only_look_since: Option<u64>,
}

/// Carries it out, in a thread in which it may wait. It tells what it waits for.
pub type Perform = dyn Fn(&Work, &mut dyn FnMut(&str)) -> Report + Send + Sync;

/// So many at a time. The others wait.
const AT_ONCE: usize = 16;
/// So often what is waited for is written, at most.
const TELL: Duration = Duration::from_secs(1);

/// What this agent does for the cluster. It outlives the connections to etcd.
pub struct Doer {
    perform: Box<Perform>,
    allowed: Mutex<Reload>,
    /// By the keys of the tasks.
    jobs: Mutex<BTreeMap<String, Job>>,
    /// A job has something to tell.
    news: Notify,
}

/// A task that this process has begun.
struct Job {
    target: Target,
    progress: Option<String>,
    /// What was written of that.
    told: Option<String>,
    told_at: Option<Instant>,
    report: Option<Report>,
    /// All is written.
    is_over: bool,
}

impl Doer {
    /// One that has nothing to do yet.
    #[must_use]
    pub fn new(allowed: Reload, perform: Box<Perform>) -> Doer {
        Doer { perform, allowed: Mutex::new(allowed), jobs: Mutex::default(), news: Notify::new() }
    }

    /// From now on this is allowed. What has begun goes on.
    pub fn allow(&self, allowed: Reload) {
        *self.allowed.lock().unwrap_or_else(PoisonError::into_inner) = allowed;
    }

    pub(crate) fn allows(&self, node: &str) -> bool {
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner).allows(node)
    }

    /// Whether there is anything to look after.
    fn is_idle(&self) -> bool {
        let is_off = self.allowed.lock().unwrap_or_else(PoisonError::into_inner).is_off();
        is_off && self.jobs().values().all(|job| job.is_over)
    }

    fn jobs(&self) -> MutexGuard<'_, BTreeMap<String, Job>> {
        // Each change is one that leaves it whole.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node of this name, as it is told to the cluster.
    fn find(nodes: &Nodes, name: &str) -> Option<(PathBuf, u64)> {
        let read = |path: &PathBuf| {
            let snapshot = Observer::open(path).and_then(|observer| observer.snapshot()).ok()?;
            (snapshot.node == name).then(|| (path.clone(), snapshot))
        };
        // The first of those that are equal, as for the cluster.
        let of_name = nodes.keys().rev().filter_map(read);
        let claim = |(path, snapshot): &(PathBuf, Snapshot)| Claim::of(headcount::is_ours(path), snapshot);
        let (path, snapshot) = of_name.max_by_key(claim)?;
        let newest = snapshot.generations.iter().map(|generation| generation.id).max().unwrap_or(0);
        Some((path, newest))
    }

    /// Begins in a thread of its own. There is no way back from here.
    fn begin(self: &Arc<Self>, key: &str, target: &Target, work: Work) {
        let job = Job {
            target: target.clone(),
            progress: None,
            told: None,
            told_at: None,
            report: None,
            is_over: false,
        };
        self.jobs().insert(key.to_owned(), job);
        let (doer, key) = (Arc::clone(self), key.to_owned());
        let spawned = std::thread::Builder::new().name("reload".to_owned()).spawn({
            let (doer, key) = (Arc::clone(&doer), key.clone());
            move || {
                let begun = Instant::now();
                let mut progress = |what: &str| {
                    if let Some(job) = doer.jobs().get_mut(&key) {
                        job.progress = Some(task::cut(what));
                    }
                    doer.news.notify_one();
                };
                let mut report = (doer.perform)(&work, &mut progress);
                report.took = begun.elapsed().as_secs_f64();
                doer.ended(&key, report);
            }
        });
        if let Err(error) = spawned {
            doer.ended(&key, Report::new(Outcome::Failed, &format!("cannot start a thread: {error}")));
        }
    }

    fn ended(&self, key: &str, report: Report) {
        if let Some(job) = self.jobs().get_mut(key) {
            tracing::info!("{}: {}", job.target.node, report.text);
            job.report = Some(report);
        }
        self.news.notify_one();
    }
}

/// Until it is aborted, which it is when this host's lease is no more.
pub(crate) async fn run(
    doer: Arc<Doer>,
    etcd: Etcd,
    keys: Keys,
    config: ClusterConfig,
    leases: Leases,
    nodes: watch::Receiver<Nodes>,
) -> Trouble {
    if doer.is_idle() {
        // What is not allowed is not asked for. When that changes, this is begun again.
        return std::future::pending().await;
    }
    let me = this_agent();
    let mut session = Session {
        me: format!("{}:{}:{}", me.place, me.pid, me.birth),
        doer,
        etcd,
        keys,
        config,
        leases,
        nodes,
        said: BTreeSet::new(),
    };
    let mut backoff = Backoff::default();
    loop {
        match session.turn().await {
            Ok(()) => backoff.succeeded(),
            // Most of what goes wrong here goes wrong for the publisher as well, which says it.
            Err(trouble @ (Trouble::Denied { .. } | Trouble::Other { .. })) => {
                session.say_once(format!("cannot follow what the cluster asks of this host: {trouble}"));
            }
            Err(_) => {}
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

struct Session {
    me: String,
    doer: Arc<Doer>,
    etcd: Etcd,
    keys: Keys,
    config: ClusterConfig,
    leases: Leases,
    nodes: watch::Receiver<Nodes>,
    said: BTreeSet<String>,
}

impl Session {
    /// Reads all tasks of this host, and follows them.
    async fn turn(&mut self) -> Result<(), Trouble> {
        let prefix = self.keys.tasks_of(&self.config.host);
        let (found, revision) = self.etcd.all(&prefix, None).await?;
        let there: BTreeSet<&[u8]> = found.iter().map(KeyValue::key).collect();
        self.doer.jobs().retain(|key, job| !job.is_over || there.contains(key.as_bytes()));
        let mut changes = self.etcd.watch(&prefix, true, revision + 1).await?;
        let mut waiting = Vec::new();
        for kv in found {
            waiting.extend(self.consider(kv).await?);
        }
        loop {
            let next_told = self.tell().await?;
            if self.has_room() {
                for kv in std::mem::take(&mut waiting) {
                    waiting.extend(self.consider(kv).await?);
                }
            }
            tokio::select! {
                answer = changes.message() => {
                    let answer = answer.map_err(|e| self.etcd.trouble(&e, "watch"))?;
                    let Some(answer) = answer.filter(|answer| !answer.canceled()) else { return Ok(()) };
                    for event in answer.events() {
                        let Some(kv) = event.kv() else { continue };
                        waiting.retain(|other: &KeyValue| other.key() != kv.key());
                        match event.event_type() {
                            EventType::Put => waiting.extend(self.consider(kv.clone()).await?),
                            EventType::Delete => self.gone(kv),
                        }
                    }
                }
                () = self.doer.news.notified() => {}
                () = until(next_told) => {}
            }
        }
    }

    fn has_room(&self) -> bool {
        self.doer.jobs().values().filter(|job| job.report.is_none()).count() < AT_ONCE
    }

    /// Its task is no more: there is nobody to tell.
    fn gone(&self, kv: &KeyValue) {
        let key = String::from_utf8_lossy(kv.key());
        let mut jobs = self.doer.jobs();
        if jobs.get(&*key).is_some_and(|job| job.report.is_some()) {
            jobs.remove(&*key);
        }
    }

    /// Looks at a task, and begins it if that is to be. Given back: one that has to wait for another.
    async fn consider(&mut self, kv: KeyValue) -> Result<Option<KeyValue>, Trouble> {
        let key = String::from_utf8_lossy(kv.key()).into_owned();
        let Some(Key::Task { host, node, rollout }) = self.keys.parse(kv.key()) else { return Ok(None) };
        if host != self.config.host || self.doer.jobs().contains_key(&key) {
            return Ok(None);
        }
        if kv.value().len() > MOST_BYTES {
            self.say_once(format!("the task {key} is skipped: it is longer than any that headcount writes"));
            return Ok(None);
        }
        let task: TaskValue = match value::parse(kv.value()) {
            Ok(task) => task,
            Err(why) => {
                self.say_once(format!("the task {key} is skipped: {why}"));
                return Ok(None);
            }
        };
        if task.state == TaskState::Done {
            return Ok(None);
        }
        let target = Target::new(host, node);
        let is_busy = self.doer.jobs().values().any(|job| job.target == target && job.report.is_none());
        if is_busy || !self.has_room() {
            return Ok(Some(kv));
        }
        let found = Doer::find(&self.nodes.borrow().clone(), &target.node);
        // One that this process has taken and not begun: it was away before it knew.
        let is_mine = task.agent.as_deref() == Some(&*self.me);
        if task.state == TaskState::Taken && !is_mine {
            self.look_after(&key, &target, &task, found);
            return Ok(None);
        }
        let refused = match &found {
            _ if task.what != RELOAD => Some((Outcome::Failed, format!("this agent cannot {:?}", task.what))),
            _ if !self.doer.allows(&target.node) => Some((
                Outcome::NotAllowed,
                "the agent's configuration does not allow it (reload under [agent])".to_owned(),
            )),
            None => Some((Outcome::Failed, format!("there is no node {} on this host", target.node))),
            Some(_) => None,
        };
        if let Some((outcome, why)) = refused {
            tracing::warn!("{}: not reloaded, as {} asks: {why}", target.node, task.by);
            let report = Some(Report::new(outcome, &why));
            let answer = TaskValue { state: TaskState::Done, report, ..task };
            self.write(&kv, &answer, None).await?;
            return Ok(None);
        }
        let Some((registry, before)) = found else { return Ok(None) };
        let by = task.by.clone();
        let work = Work { registry, drained: task.drained, timeout: task.timeout(), only_look_since: None };
        let taken = TaskValue {
            state: TaskState::Taken,
            agent: Some(self.me.clone()),
            taken: Some(crate::now()),
            before: Some(before),
            progress: None,
            report: None,
            ..task
        };
        // Only while somebody goes on with it: nobody expects a reload that was asked for hours ago.
        if self.write(&kv, &taken, Some(&self.keys.holder(&rollout))).await? {
            tracing::info!("{}: reloading it, as {by} asks", target.node);
            self.doer.begin(&key, &target, work);
        }
        Ok(None)
    }

    /// An agent before this one has taken it, and has ended. Whether it has sent the signal is not known.
    fn look_after(&self, key: &str, target: &Target, task: &TaskValue, found: Option<(PathBuf, u64)>) {
        tracing::info!(
            "{}: an agent before this one was to reload it, as {} asks: looking at what became of that",
            target.node,
            task.by
        );
        let passed = (crate::now() - task.taken.unwrap_or(0.0)).clamp(0.0, task.timeout().as_secs_f64());
        let left = task.timeout().saturating_sub(Duration::from_secs_f64(passed));
        match found {
            Some((registry, _)) => self.doer.begin(
                key,
                target,
                Work {
                    registry,
                    drained: task.drained,
                    timeout: left.max(Duration::from_secs(1)),
                    only_look_since: Some(task.before.unwrap_or(0)),
                },
            ),
            None => {
                let why = "its agent ended while it reloaded, and the node is not there any more";
                self.doer.jobs().insert(
                    key.to_owned(),
                    Job {
                        target: target.clone(),
                        progress: None,
                        told: None,
                        told_at: None,
                        report: Some(Report::new(Outcome::Unknown, why)),
                        is_over: false,
                    },
                );
                self.doer.news.notify_one();
            }
        }
    }

    /// Writes what there is to say of what goes on. When to do so again, if that is known.
    async fn tell(&mut self) -> Result<Option<Instant>, Trouble> {
        let now = Instant::now();
        let mut next = None;
        let mut due = Vec::new();
        for (key, job) in self.doer.jobs().iter().filter(|(_, job)| !job.is_over) {
            let at = job.told_at.map_or(now, |told| told + TELL);
            if job.report.is_some() || (job.progress != job.told && at <= now) {
                due.push((key.clone(), job.progress.clone(), job.report.clone()));
            } else if job.progress != job.told {
                next = Some(next.map_or(at, |next: Instant| next.min(at)));
            }
        }
        for (key, progress, report) in due {
            let is_report = report.is_some();
            // Another write may come between: then it is read again.
            let mut is_written = false;
            while !is_written {
                let Some(kv) = self.etcd.get(&key).await? else { break };
                let Ok(task) = value::parse::<TaskValue>(kv.value()) else { break };
                if task.state != TaskState::Taken {
                    break;
                }
                let state = if is_report { TaskState::Done } else { TaskState::Taken };
                let answer = TaskValue { state, progress: progress.clone(), report: report.clone(), ..task };
                is_written = self.write(&kv, &answer, None).await?;
            }
            if let Some(job) = self.doer.jobs().get_mut(&key) {
                (job.told, job.told_at) = (progress, Some(now));
                job.is_over = is_report;
            }
        }
        Ok(next)
    }

    /// Only if nobody has written it since, and this host is still there. `holder`: and while this key is there.
    async fn write(&self, kv: &KeyValue, task: &TaskValue, holder: Option<&str>) -> Result<bool, Trouble> {
        let mut when = vec![
            is_ours(&self.keys, &self.config, self.leases),
            Compare::mod_revision(kv.key(), CompareOp::Equal, kv.mod_revision()),
        ];
        when.extend(holder.map(|holder| Compare::create_revision(holder, CompareOp::Greater, 0)));
        // It ends with its rollout, whoever writes it.
        let options = PutOptions::new().with_ignore_lease();
        let put = TxnOp::put(kv.key(), json(task), Some(options));
        let txn = Txn::new()
            .when(when)
            .and_then([put])
            .or_else([TxnOp::get(self.keys.host(&self.config.host), None)]);
        let answer = self.etcd.txn("answer a task", txn).await?;
        if answer.succeeded() {
            return Ok(true);
        }
        // If this host is not there any more, or another agent tells of it, nothing will ever be written: the lease's own task says so.
        let host = answer.op_responses().into_iter().find_map(|answer| match answer {
            etcd_client::TxnOpResponse::Get(found) => found.kvs().first().map(KeyValue::mod_revision),
            _ => None,
        });
        if host == Some(self.leases.revision) { Ok(false) } else { Err(Trouble::LeaseGone) }
    }

    fn say_once(&mut self, what: String) {
        if self.said.len() < 256 && !self.said.contains(&what) {
            tracing::warn!("{what}");
            self.said.insert(what);
        }
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}
