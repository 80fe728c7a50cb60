//! Looks after processes that somebody may want to hold up: what state the kernel shows them in, all the time, and what
//! memory and processor time they have used.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::process;

/// Often enough to see a sleep of [`LONGEST_SLEEP`], seldom enough to cost nothing.
const EVERY: Duration = Duration::from_millis(10);

/// A disk makes everybody sleep so for moments, and so does the end of an inotify instance on a busy machine.
pub const LONGEST_SLEEP: Duration = Duration::from_millis(1_500);

/// What was seen of a process.
#[derive(Clone, Debug)]
pub struct Watched {
    /// What it is to the test.
    pub what: String,
    /// Its longest time in state D, in which no signal ends it.
    pub longest_sleep: Duration,
    /// The call that it slept in.
    pub slept_in: String,
    /// User and system time.
    pub cpu: Duration,
    /// Its greatest resident memory.
    pub peak_kib: u64,
    /// Since when it has been watched.
    pub since: Instant,
    asleep_since: Option<Instant>,
}

type All = Arc<Mutex<BTreeMap<i32, Watched>>>;

/// A thread that looks.
#[derive(Debug)]
pub struct Guard {
    all: All,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Guard {
    /// Begins with nobody.
    pub fn new() -> Self {
        let all = All::default();
        let ends = Arc::new(AtomicBool::new(false));
        let (theirs, end) = (Arc::clone(&all), Arc::clone(&ends));
        let thread = std::thread::spawn(move || {
            while !end.load(SeqCst) {
                for (&pid, watched) in lock(&theirs).iter_mut() {
                    look(pid, watched);
                }
                std::thread::sleep(EVERY);
            }
        });
        Self { all, ends, thread: Some(thread) }
    }

    /// From now on, until the guard ends.
    pub fn watch(&self, pid: i32, what: &str) {
        let watched = Watched {
            what: what.to_owned(),
            longest_sleep: Duration::ZERO,
            slept_in: String::new(),
            cpu: Duration::ZERO,
            peak_kib: 0,
            since: Instant::now(),
            asleep_since: None,
        };
        lock(&self.all).entry(pid).or_insert(watched);
    }

    /// What was seen so far.
    pub fn seen(&self) -> Vec<Watched> {
        lock(&self.all).values().cloned().collect()
    }
}

impl Default for Guard {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.ends.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(all: &All) -> std::sync::MutexGuard<'_, BTreeMap<i32, Watched>> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

fn look(pid: i32, watched: &mut Watched) {
    let Some(stat) = process::stat(pid) else { return };
    watched.cpu = watched.cpu.max(stat.cpu);
    watched.peak_kib = watched.peak_kib.max(process::peak_kib(pid));
    if process::threads(pid).contains(&'D') {
        let since = *watched.asleep_since.get_or_insert_with(Instant::now);
        if since.elapsed() > watched.longest_sleep {
            watched.longest_sleep = since.elapsed();
            let told = |what| std::fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap_or_default();
            watched.slept_in = format!("{}, call {}", told("wchan"), told("syscall").trim());
        }
    } else {
        watched.asleep_since = None;
    }
}
