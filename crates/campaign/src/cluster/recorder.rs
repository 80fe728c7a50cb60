//! The history of a cluster, read from etcd itself: every change below its prefix, in the order of revisions.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use etcd_client::{Client, ConnectOptions, EventType, GetOptions, KeyValue, WatchOptions};
use testkit::net::move_to;

/// All keys of the campaign's cluster.
pub const ROOT: &str = "/headcount/v1/campaign/";

/// A change.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it was heard of: not before it happened.
    pub at: Instant,
    /// Its revision.
    pub revision: i64,
    /// Below [`ROOT`].
    pub key: String,
    /// `None`: it was removed.
    pub value: Option<String>,
    /// The lease that it is under.
    pub lease: i64,
    /// How often the key was written since it was there.
    pub version: i64,
}

/// What there was at the begin, and what happened since.
#[derive(Debug, Default)]
pub struct History {
    /// As it was read.
    pub before: Vec<Record>,
    /// In order.
    pub records: Vec<Record>,
    /// It could not be followed here.
    pub gap: Option<String>,
    /// The revision of `before`; 0 as long as that was not read.
    pub begun: i64,
}

/// A thread that follows etcd, through whatever happens to its members.
pub struct Recorder {
    history: Arc<Mutex<History>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Begins with what there is.
    pub fn start(network: File, endpoints: Vec<String>) -> Recorder {
        let (history, ends) = (Arc::<Mutex<History>>::default(), Arc::<AtomicBool>::default());
        let (theirs, end) = (Arc::clone(&history), Arc::clone(&ends));
        let thread = std::thread::spawn(move || {
            move_to(&network);
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let mut revision = 0;
                for endpoint in endpoints.iter().cycle() {
                    if end.load(Ordering::SeqCst) {
                        return;
                    }
                    // A member that is away, or alone: the next one is asked.
                    let _ = follow(endpoint, &mut revision, &theirs, &end).await;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            });
        });
        Recorder { history, ends, thread: Some(thread) }
    }

    /// The last revision that was read.
    pub fn seen(&self) -> i64 {
        let history = self.history();
        history.records.last().map_or(history.begun, |last| last.revision)
    }

    /// So far.
    pub fn history(&self) -> MutexGuard<'_, History> {
        lock(&self.history)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(history: &Mutex<History>) -> MutexGuard<'_, History> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How to ask a member so that one that is cut off does not answer with what was.
pub fn options() -> ConnectOptions {
    let second = Duration::from_secs(1);
    ConnectOptions::new()
        .with_connect_timeout(second)
        .with_keep_alive(second, second)
        .with_require_leader(true)
}

/// Without an answer for so long, a member is given up.
const PATIENCE: Duration = Duration::from_secs(2);

async fn follow(
    endpoint: &str,
    revision: &mut i64,
    history: &Mutex<History>,
    end: &AtomicBool,
) -> Result<(), Box<dyn std::error::Error>> {
    let connecting = Client::connect([endpoint], Some(options()));
    let mut client = tokio::time::timeout(PATIENCE, connecting).await??;
    if *revision == 0 {
        let all = client.get(ROOT, Some(GetOptions::new().with_prefix()));
        let answer = tokio::time::timeout(PATIENCE, all).await??;
        *revision = answer.header().ok_or("no header")?.revision();
        let mut history = lock(history);
        history.before = answer.kvs().iter().map(|kv| record(kv, true)).collect();
        history.begun = *revision;
    } else {
        // One that is behind would tell nothing, and not say so.
        let answer = tokio::time::timeout(PATIENCE, client.get(ROOT, None)).await??;
        if answer.header().ok_or("no header")?.revision() < *revision {
            return Ok(());
        }
    }
    let watch = WatchOptions::new().with_prefix().with_start_revision(*revision + 1);
    let mut changes = tokio::time::timeout(PATIENCE, client.watch(ROOT, Some(watch))).await??;
    while !end.load(Ordering::SeqCst) {
        let Ok(answer) = tokio::time::timeout(Duration::from_millis(200), changes.message()).await else {
            continue;
        };
        let Some(answer) = answer? else { return Ok(()) };
        if answer.compact_revision() > 0 {
            lock(history).gap = Some(format!("compacted up to {}", answer.compact_revision()));
        }
        if answer.canceled() {
            return Ok(());
        }
        let mut history = lock(history);
        for event in answer.events() {
            if let Some(kv) = event.kv() {
                history.records.push(record(kv, event.event_type() == EventType::Put));
                *revision = kv.mod_revision();
            }
        }
    }
    Ok(())
}

fn record(kv: &KeyValue, is_put: bool) -> Record {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Record {
        at: Instant::now(),
        revision: kv.mod_revision(),
        key: text(kv.key()).trim_start_matches(ROOT).to_owned(),
        value: is_put.then(|| text(kv.value())),
        lease: kv.lease(),
        version: kv.version(),
    }
}
