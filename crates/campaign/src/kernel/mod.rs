//! The truth: which processes began and ended, when and how, as the kernel tells it. A thread of its own listens.

mod looks;
mod netlink;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use testkit::wait::boot_clock;

/// A wait status, as `waitpid` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub i32);

impl Status {
    /// The signal that ended it.
    pub fn signal(self) -> Option<i32> {
        Some(self.0 & 0x7f).filter(|&signal| signal != 0)
    }

    /// Its exit code, if it ended itself.
    pub fn code(self) -> Option<i32> {
        self.signal().is_none().then_some((self.0 >> 8) & 0xff)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.signal() {
            Some(signal) => write!(f, "signal {signal}"),
            None => write!(f, "exit code {}", self.code().unwrap_or_default()),
        }
    }
}

/// What a source says. Times are CLOCK_MONOTONIC from the connector and CLOCK_BOOTTIME from looks.
enum Told {
    Forked { parent: i32, pid: i32, at: u64 },
    Ended { pid: i32, status: Option<Status>, at: u64 },
}

/// One process, from its fork to its end.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Who forked it.
    pub parent: i32,
    /// When, on CLOCK_BOOTTIME in nanoseconds.
    pub began: u64,
    /// When it ended.
    pub ended: Option<u64>,
    /// How it ended, where the source knows.
    pub status: Option<Status>,
}

/// Where the truth comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The process-events connector.
    Connector,
    /// Looks at /proc.
    Looks,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connector => "the kernel's process-events connector: every fork and exit, with its status",
            Self::Looks => "looks at /proc: no statuses, and who lives for a moment only is missed",
        })
    }
}

#[derive(Default)]
struct Known {
    /// Descendants of this program that live, by pid.
    alive: BTreeMap<i32, Process>,
    /// Those that ended, in that order, since the last call of [`Kernel::forget`].
    ended: Vec<Process>,
    /// How often messages were lost.
    lost: u32,
}

/// Listens to the kernel, about this program's descendants.
pub struct Kernel {
    known: Arc<Mutex<Known>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    source: Source,
}

impl Kernel {
    /// Begins to listen; before anything is started.
    pub fn listen(looks_only: bool) -> Self {
        let known = Arc::<Mutex<Known>>::default();
        let ends = Arc::<AtomicBool>::default();
        let (theirs, end) = (Arc::clone(&known), Arc::clone(&ends));
        let root = std::process::id() as i32;
        let connector =
            if looks_only { Err(std::io::Error::other("told not to")) } else { netlink::Connector::open() };
        let (source, thread) = match connector {
            Ok(connector) => {
                (Source::Connector, std::thread::spawn(move || hear(connector, &theirs, &end, root)))
            }
            Err(error) => {
                eprintln!("no process-events connector: {error}");
                (Source::Looks, std::thread::spawn(move || look(&theirs, &end, root)))
            }
        };
        Self { known, ends, thread: Some(thread), source }
    }

    /// Where it comes from.
    pub fn source(&self) -> Source {
        self.source
    }

    /// After so long it is certain that we have heard of a fork.
    pub fn lag(&self) -> Duration {
        Duration::from_millis(if self.source == Source::Connector { 50 } else { 200 })
    }

    /// All that live now.
    pub fn alive(&self) -> Vec<Process> {
        self.known().alive.values().cloned().collect()
    }

    /// All that lived since the last [`Kernel::forget`].
    pub fn all(&self) -> Vec<Process> {
        let known = self.known();
        known.ended.iter().chain(known.alive.values()).cloned().collect()
    }

    /// How often messages of the kernel were lost: what was checked meanwhile proves nothing.
    pub fn lost(&self) -> u32 {
        self.known().lost
    }

    /// Those that ended are of no interest any more.
    pub fn forget(&self) {
        self.known().ended.clear();
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.ends.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// CLOCK_BOOTTIME runs ahead of CLOCK_MONOTONIC by the time that the machine was suspended.
fn suspended() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let monotonic = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
    // Between two readings lie microseconds, between two suspensions seconds.
    boot_clock().saturating_sub(monotonic) / 1_000_000_000 * 1_000_000_000
}

fn hear(mut connector: netlink::Connector, known: &Mutex<Known>, ends: &AtomicBool, root: i32) {
    let suspended = suspended();
    while !ends.load(SeqCst) {
        match connector.next(Duration::from_millis(100)) {
            Ok(Some(netlink::Message::Told(told))) => note(&mut lock(known), told, root, suspended),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {
                eprintln!("{error}");
                lock(known).lost += 1;
            }
            Err(error) => {
                eprintln!("the connector broke: {error}");
                lock(known).lost += 1;
                return;
            }
        }
    }
}

fn look(known: &Mutex<Known>, ends: &AtomicBool, root: i32) {
    let mut looks = looks::Looks::new(root);
    while !ends.load(SeqCst) {
        for told in looks.look() {
            note_any(&mut lock(known), told, 0);
        }
        std::thread::sleep(looks::EVERY);
    }
}

fn note(known: &mut Known, told: Told, root: i32, suspended: u64) {
    match told {
        Told::Forked { parent, .. } if parent != root && !known.alive.contains_key(&parent) => {}
        told => note_any(known, told, suspended),
    }
}

fn note_any(known: &mut Known, told: Told, suspended: u64) {
    match told {
        Told::Forked { parent, pid, at } => {
            let process = Process { pid, parent, began: at + suspended, ended: None, status: None };
            known.alive.insert(pid, process);
        }
        Told::Ended { pid, status, at } => {
            if let Some(process) = known.alive.remove(&pid) {
                known.ended.push(Process { ended: Some(at + suspended), status, ..process });
            }
        }
    }
}
