//! Processes as the kernel tells them. What a test believes about who lives must not come from the
//! library that it tests.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal};

/// One line of `/proc/PID/stat`, as far as tests need it.
#[derive(Clone, Debug)]
pub struct Stat {
    /// The process.
    pub pid: i32,
    /// Its parent.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// `R`, `S`, `T`, `Z` and so on.
    pub state: char,
    /// Clock ticks since boot at its start: with the pid, it names one process for ever.
    pub started: u64,
    /// User and system time together.
    pub cpu: Duration,
}

/// Reads one process; `None` when there is none.
pub fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may hold anything, brackets included.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok());
    let ticks = rustix::param::clock_ticks_per_second();
    Some(Stat {
        pid,
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        started: number(19)?,
        cpu: Duration::from_millis((number(11)? + number(12)?) * 1000 / ticks),
    })
}

/// Every process of this machine.
pub fn all() -> Vec<Stat> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(stat).collect()
}

/// Alive: there, and not a zombie.
pub fn is_alive(pid: i32) -> bool {
    stat(pid).is_some_and(|s| s.state != 'Z' && s.state != 'X')
}

/// The command line as nginx sets it: `nginx: worker process`.
pub fn title(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
}

/// The direct children that are alive, oldest first.
pub fn children(parent: i32) -> Vec<i32> {
    let mut found: Vec<Stat> = all().into_iter().filter(|s| s.parent == parent && s.state != 'Z').collect();
    found.sort_by_key(|s| (s.started, s.pid));
    found.into_iter().map(|s| s.pid).collect()
}

/// Processes that have a file open below `folder`: the way to find those whose parent is gone.
pub fn with_files_below(folder: &str) -> Vec<Stat> {
    all()
        .into_iter()
        .filter(|s| s.pid != std::process::id() as i32)
        .filter(|s| {
            fs::read_dir(format!("/proc/{}/fd", s.pid))
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|fd| fs::read_link(fd.path()).ok())
                .any(|target| target.to_string_lossy().starts_with(folder))
        })
        .collect()
}

/// How many descriptors a process has open.
pub fn open_descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// How many mappings a process has.
pub fn mappings(pid: i32) -> usize {
    fs::read_to_string(format!("/proc/{pid}/maps")).map_or(0, |maps| maps.lines().count())
}

/// Resident memory in KiB.
pub fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

static KILLED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Whether this test program has killed a process of this pid, which so could not tidy up.
pub fn was_killed(pid: i32) -> bool {
    KILLED.lock().unwrap_or_else(PoisonError::into_inner).contains(&pid)
}

/// Sends a signal; a process that is gone already is no failure, since most tests race with one.
pub fn send(pid: i32, signal: Signal) {
    let Some(target) = Pid::from_raw(pid).filter(|_| pid > 1) else {
        panic!("refusing to signal pid {pid}");
    };
    if signal == Signal::KILL {
        KILLED.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
    }
    match rustix::process::kill_process(target, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("cannot send {signal:?} to {pid}: {error}"),
    }
}

/// Tests that need root say so and pass elsewhere: a contributor without it still runs the rest.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn status_line(pid: i32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name).map(|rest| rest.trim().to_owned()))
}

/// The greatest resident memory so far, in KiB.
pub fn peak_kib(pid: i32) -> u64 {
    let line = status_line(pid, "VmHWM:").unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The greatest room of addresses so far, in KiB.
pub fn peak_of_addresses_kib(pid: i32) -> u64 {
    let line = status_line(pid, "VmPeak:").unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The states of all its threads.
pub fn threads(pid: i32) -> Vec<char> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    stats.filter_map(|text| text[text.rfind(')')? + 1..].trim_start().chars().next()).collect()
}

/// The signals that wait for it, as a mask: those that were sent to one that blocks all.
pub fn pending_signals(pid: i32) -> u64 {
    let mask =
        |name| status_line(pid, name).and_then(|mask| u64::from_str_radix(&mask, 16).ok()).unwrap_or(0);
    mask("ShdPnd:") | mask("SigPnd:")
}

/// Its number in its own pid namespace.
pub fn inner_pid(pid: i32) -> Option<i32> {
    status_line(pid, "NSpid:")?.split_whitespace().next_back()?.parse().ok()
}

/// Its children, their children and so on, that are alive.
pub fn descendants(pid: i32) -> Vec<i32> {
    let mut found = children(pid);
    let mut next = 0;
    while let Some(&one) = found.get(next) {
        found.extend(children(one));
        next += 1;
    }
    found
}

/// The process that has the number `inner` in the pid namespace of `namesake`.
pub fn outer_pid(namesake: i32, inner: i32) -> Option<i32> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let ours = namespace(namesake)?;
    let mut all = all().into_iter().map(|stat| stat.pid);
    all.find(|&pid| inner_pid(pid) == Some(inner) && namespace(pid).as_ref() == Some(&ours))
}
