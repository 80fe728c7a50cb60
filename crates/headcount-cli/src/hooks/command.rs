//! Delivers by a command, in a process group of its own.

use std::io::{ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use headcount_report::age;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionbio;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid,
};
use serde_json::{Map, Value};

use super::attempt::Attempt;
use super::notification::variables;
use super::state::Leader;
use super::stop::{Stop, TICK};
use crate::child::said;

/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// The shell first waits for a line on its standard input, and is then replaced by the command's. If we are killed before the
/// state file has the command, there is no line, and the command never starts.
const GATE: &str = "read -r go && exec /bin/sh -c \"$1\"";

/// A command that runs, or waits to be started.
pub struct Running {
    child: Child,
    group: Pid,
    start: Instant,
    /// What it has not taken yet of what it is told.
    input: Option<(ChildStdin, Vec<u8>)>,
}

/// Makes a command ready to start. The error is for people.
pub fn prepare(command: &str, document: &Map<String, Value>) -> Result<Running, String> {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", GATE, "sh", command]).process_group(0).stdin(Stdio::piped());
    for (variable, value) in variables(document) {
        match value {
            Some(value) => shell.env(variable, value),
            None => shell.env_remove(variable),
        };
    }
    let child = shell.spawn().map_err(|error| format!("cannot start /bin/sh: {error}"))?;
    let group = group_of(child.id()).ok_or("/bin/sh has no process id")?;
    Ok(Running { child, group, start: Instant::now(), input: None })
}

impl Running {
    /// Starts the command, and hands over the document.
    pub fn start(&mut self, document: &Map<String, Value>) {
        self.start = Instant::now();
        let Some(stdin) = self.child.stdin.take() else { return };
        let text = format!("go\n{}\n", Value::Object(document.clone()));
        // Of another host, a document may be longer than what a pipe takes, and a command need not read it. A pipe can always be told
        // not to wait.
        let _ = ioctl_fionbio(&stdin, true);
        self.input = Some((stdin, text.into_bytes()));
        self.hand_over();
    }

    /// As much as it takes now.
    fn hand_over(&mut self) {
        while let Some((stdin, text)) = &mut self.input {
            match stdin.write(text) {
                Ok(n) if n > 0 && n < text.len() => drop(text.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // All of it. Or the command reads nothing, or has ended: it is none that failed.
                Ok(_) | Err(_) => self.input = None,
            }
        }
    }

    /// What names the process in the state file.
    pub fn leader(&self) -> Option<Leader> {
        let pid = self.child.id();
        Some(Leader { pid, start_time: stat(pid)?.start_time })
    }

    /// Waits for its end, and stops it after `timeout`.
    pub fn finish(mut self, timeout: Duration, stop: &Stop, tick: &mut dyn FnMut()) -> Attempt {
        // Without it (an old kernel, a filter of system calls) the end is noticed a tick later.
        let pidfd = pidfd_open(self.group, PidfdFlags::empty()).ok();
        while !self.has_ended() {
            let left = timeout.saturating_sub(self.start.elapsed());
            if left.is_zero() || stop.is_urged() {
                end_group(self.group, GRACE, tick);
                let end = self.reap();
                return match left.is_zero() {
                    true => {
                        Attempt::Failed(format!("timed out after {} and was stopped ({end})", age(timeout)))
                    }
                    false => Attempt::CutShort,
                };
            }
            let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(left.min(TICK).subsec_nanos()) };
            let mut fds: Vec<_> = pidfd.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
            fds.extend(self.input.iter().map(|(stdin, _)| PollFd::new(stdin, PollFlags::OUT)));
            // Interrupted by a signal: it is looked at in the next round, as everything is.
            let _ = poll(&mut fds, Some(&wait));
            self.hand_over();
            tick();
        }
        match self.child.wait() {
            Ok(status) if status.success() => Attempt::Done,
            Ok(status) => Attempt::Failed(said(status)),
            Err(error) => Attempt::Failed(format!("cannot wait for it: {error}")),
        }
    }

    /// Whether it has ended. It stays a zombie, so that its process group's number is nobody else's.
    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.group), options), Ok(None))
    }

    /// After SIGKILL: this takes long only if the kernel is stuck, and then nothing helps.
    fn reap(&mut self) -> String {
        let limit = Instant::now() + GRACE;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return said(status),
                Ok(None) if Instant::now() < limit => std::thread::sleep(Duration::from_millis(5)),
                Ok(None) => return "SIGKILL did not stop it".to_owned(),
                Err(error) => return error.to_string(),
            }
        }
    }
}

/// Waits for a command that an earlier `headcount run` left running when it was killed: two must not run side by side.
pub fn outlast(leader: Leader, timeout: Duration, stop: &Stop) {
    let Some(group) = group_of(leader.pid) else { return };
    let runs = || stat(leader.pid).is_some_and(|stat| stat.start_time == leader.start_time && !stat.is_over);
    let start = Instant::now();
    while runs() {
        if start.elapsed() >= timeout || stop.is_urged() {
            return end_group(group, GRACE, &mut || {});
        }
        std::thread::sleep(TICK);
    }
}

/// Whether this process is a command that was started with this document: by its environment, if it still has it. Of a record that others can
/// write, nothing else is believed.
pub fn is_of(leader: Leader, document: &Map<String, Value>) -> bool {
    let Some(id) = document.get("id").and_then(Value::as_str).filter(|id| !id.is_empty()) else {
        return false;
    };
    let wanted = format!("HEADCOUNT_ID={id}");
    let environment = std::fs::read(format!("/proc/{}/environ", leader.pid)).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
}

/// SIGTERM for all of the group, and SIGKILL for those that are left after a while.
pub fn end_group(group: Pid, grace: Duration, tick: &mut dyn FnMut()) {
    // It may have ended this moment: then there is nobody to be told.
    let _ = kill_process_group(group, Signal::TERM);
    let limit = Instant::now() + grace;
    while Instant::now() < limit && anybody_in(group) {
        std::thread::sleep(TICK);
        tick();
    }
    let _ = kill_process_group(group, Signal::KILL);
}

fn anybody_in(group: Pid) -> bool {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(stat).any(|stat| !stat.is_over && stat.group == group.as_raw_nonzero().get())
}

fn group_of(pid: u32) -> Option<Pid> {
    // Never 1 or 0: a signal to those groups would end more than a command.
    Pid::from_raw(i32::try_from(pid).ok()?).filter(|pid| pid.as_raw_nonzero().get() > 1)
}

struct Stat {
    group: i32,
    start_time: u64,
    /// A zombie.
    is_over: bool,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may hold anything, brackets included.
    let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
    Some(Stat {
        group: fields.get(2)?.parse().ok()?,
        start_time: fields.get(19)?.parse().ok()?,
        is_over: matches!(*fields.first()?, "Z" | "X"),
    })
}
