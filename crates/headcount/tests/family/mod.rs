//! A family of forked processes: the test is the parent, and tells its children what to do next.
//!
//! A child runs plain code between `fork` and `_exit`. It talks with the test over a socket, and notes each
//! callback that it runs in memory that it shares with the test (`callbacks.rs`), so that it may die at
//! any moment without that being forgotten.
#![allow(dead_code, reason = "each test file uses its own part of this module")]

pub mod callbacks;
#[cfg(target_arch = "x86_64")]
pub mod deadly_store;
pub mod deeds;
pub mod home;
pub mod journal;
pub mod kernel;
pub mod registry;
pub mod worker;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use headcount::{Cursor, Event, Master, Node, Options};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid};

/// The limit of every wait: a machine may be slow, a test must not hang.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Only one test of a binary runs at a time: a fork copies whatever the other threads are in the middle of.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A folder of the test's own, with nothing left of it afterwards.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        let shm = std::path::Path::new("/dev/shm");
        let parent = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
        let folder = tempfile::Builder::new().prefix("headcount-test-").tempdir_in(parent).expect("a folder");
        Place { folder }
    }

    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    pub fn registry(&self) -> PathBuf {
        self.folder().join("node.registry")
    }

    /// A small registry, and times for tests.
    pub fn options(&self) -> Options {
        Options::new("node")
            .path(self.registry())
            .slots(16)
            // Allocated as a whole from the start: the tests that guard every store cannot have it grow.
            .journal_records(256)
            .heartbeat_interval(Duration::from_millis(50))
            .stall_after(Duration::from_secs(30))
            .lock_timeout(Duration::from_secs(10))
    }

    pub fn open(&self) -> Master {
        self.options().open().expect("open a node")
    }
}

/// A test that tells processes apart by their ids, over thousands of them, calls this before each of its trials.
/// If the ids then do not grow, somebody on this machine makes the kernel give out others (as tests of used-again
/// ids do), or they have wrapped around: the trial fails, and [`is_void`] says so.
pub fn ids_must_grow() {
    NEWEST.store(0, SeqCst);
}

/// The newest id; `u32::MAX` if nobody cares.
static NEWEST: AtomicU32 = AtomicU32::new(u32::MAX);
const VOID: &str = "the process ids do not grow";

/// Whether a trial failed for a reason that it is not about.
pub fn is_void(panic: &(dyn std::any::Any + Send)) -> bool {
    panic.downcast_ref::<String>().is_some_and(|text| text.contains(VOID))
}

fn forked(pid: Pid) {
    let pid = pid.as_raw() as u32;
    let newest = NEWEST.load(SeqCst);
    if newest != u32::MAX {
        NEWEST.store(pid, SeqCst);
        assert!(pid > newest, "{VOID}: {pid} after {newest}");
    }
}

/// A forked process, seen from the test. Killed when it is dropped.
pub struct Child {
    pid: Pid,
    line: Line,
    status: Option<i32>,
}

/// One end of the conversation between the test and a child.
pub struct Line {
    read: BufReader<UnixStream>,
    write: UnixStream,
    whose: String,
}

impl Line {
    fn new(stream: UnixStream, whose: String) -> Line {
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit for reading");
        let write = stream.try_clone().expect("a second descriptor");
        Line { read: BufReader::new(stream), write, whose }
    }

    pub fn say(&mut self, what: &str) {
        // The other end may have been killed: then it has nothing to hear.
        let _ = self.write.write_all(format!("{what}\n").as_bytes());
    }

    /// The next line; `None` when the other side has ended.
    pub fn hear(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.read.read_line(&mut line) {
            Ok(0) | Err(_) if line.is_empty() => None,
            Ok(_) => Some(line.trim_end().to_owned()),
            Err(e) => panic!("{}: nothing heard for {PATIENCE:?} but {line:?}: {e}", self.whose),
        }
    }

    /// Waits for this very line.
    pub fn expect(&mut self, what: &str) {
        let heard = self.hear();
        assert_eq!(heard.as_deref(), Some(what), "{}", self.whose);
    }

    /// The descriptor that becomes readable when there is something to hear. Use `hear` right after it.
    pub fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.write.as_fd()
    }
}

/// Forks a child that runs `body`, and ends with its exit code. A panic in it is told to the test.
pub fn fork(body: impl FnOnce(&mut Line) -> i32) -> Child {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    // SAFETY: tests fork one at a time (see `alone`), and the child only runs `body` and then `_exit`s.
    match unsafe { nix::unistd::fork() }.expect("fork") {
        ForkResult::Parent { child } => {
            let child = Child { pid: child, line: Line::new(ours, format!("child {child}")), status: None };
            forked(child.pid);
            child
        }
        ForkResult::Child => {
            drop(ours);
            // What a panicking child would print goes into the captured output of a test that it is not.
            static LAST_WORDS: Mutex<String> = Mutex::new(String::new());
            std::panic::set_hook(Box::new(|panic| {
                *LAST_WORDS.lock().expect("no second panic") = panic.to_string()
            }));
            let mut line = Line::new(theirs, "the test".into());
            let code = match catch_unwind(AssertUnwindSafe(|| body(&mut line))) {
                Ok(code) => code,
                Err(_) => {
                    line.say(&LAST_WORDS.lock().expect("no second panic").replace('\n', " / "));
                    101
                }
            };
            // SAFETY: ends the process without running the test harness's destructors a second time.
            unsafe { libc::_exit(code) }
        }
    }
}

impl Child {
    pub fn pid(&self) -> u32 {
        self.pid.as_raw() as u32
    }

    pub fn say(&mut self, what: &str) {
        self.line.say(what);
    }

    pub fn hear(&mut self) -> Option<String> {
        self.line.hear()
    }

    pub fn expect(&mut self, what: &str) {
        self.line.expect(what);
    }

    /// Says something and waits for the answer `done`.
    pub fn tell(&mut self, what: &str) {
        self.say(what);
        let heard = self.hear();
        assert_eq!(heard.as_deref(), Some("done"), "child {}, told to {what}", self.pid);
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).expect("signal a child");
    }

    /// Kills it, waits for it, and gives its wait status.
    pub fn kill(&mut self) -> i32 {
        if self.status.is_none() {
            self.signal(Signal::SIGKILL);
        }
        self.wait()
    }

    /// Its wait status, once it has ended.
    pub fn wait(&mut self) -> i32 {
        if let Some(status) = self.status {
            return status;
        }
        let mut status = 0;
        loop {
            // SAFETY: `status` is a valid place for the kernel to write to.
            let answer = unsafe { libc::waitpid(self.pid.as_raw(), &raw mut status, 0) };
            if answer == self.pid.as_raw() {
                break;
            }
            assert_eq!(Errno::last(), Errno::EINTR, "wait for child {}", self.pid);
        }
        self.status = Some(status);
        status
    }

    /// Waits for it to end by itself, with exit code 0.
    pub fn ended_well(&mut self) {
        let last_words = self.hear();
        assert_eq!((last_words.as_deref(), self.wait()), (None, 0), "child {}", self.pid);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: only a child of ours that was not waited for yet has this pid.
        if self.status.is_none() {
            let _ = kill(self.pid, Signal::SIGKILL);
            self.wait();
        }
    }
}

/// Waits until `ready` gives something, looking every millisecond, and says what it waited for.
pub fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = ready() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// All events from `cursor` on. Moves the cursor.
pub fn news(node: &Node, cursor: &mut Cursor) -> Vec<Event> {
    let batch = node.events(cursor, usize::MAX);
    assert_eq!(batch.lost, 0, "events were lost");
    batch.events
}

/// The kinds and pids of events, for comparing.
pub fn in_short(events: &[Event]) -> Vec<String> {
    events.iter().map(|e| format!("{} {}", e.kind, e.pid)).collect()
}

/// Prints a line that shows up in the test's output: this test could not run, and why.
pub fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
}

/// Goes on as nobody, for good. Only in a forked child.
pub fn become_nobody() {
    // SAFETY: plain system calls of a process with one thread.
    let answers = unsafe {
        [
            libc::setgroups(0, std::ptr::null()),
            libc::setresgid(65534, 65534, 65534),
            libc::setresuid(65534, 65534, 65534),
        ]
    };
    assert_eq!(answers, [0; 3], "become nobody");
}

/// Numbers that look like chance and are the same each time (xorshift).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
