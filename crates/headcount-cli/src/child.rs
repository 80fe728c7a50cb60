//! A command that a lock or a role is for: it must not outlive the process that holds these.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{self, Command, ExitStatus};
use std::time::Duration;

use anyhow::Context;
use headcount_report::signal_name;
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, waitid};

use crate::poll;

/// A variable of its environment, or that it is to have none of this name.
pub type Variable = (&'static str, Option<String>);

/// A command that runs. The kernel kills it if this process ends before it, however that happens.
pub struct Child {
    child: process::Child,
    pid: Pid,
    /// Without it (an old kernel, a filter of system calls) the end is noticed a little later.
    pidfd: Option<OwnedFd>,
}

impl Child {
    /// Starts it from this thread, which must not end before it.
    pub fn start(command: &[OsString], variables: &[Variable], own_group: bool) -> anyhow::Result<Child> {
        let failed =
            || format!("cannot start {}", command.first().cloned().unwrap_or_default().to_string_lossy());
        // What only the new process can ask of the kernel for itself, this program does in it: see `commands/exec.rs`.
        let mut gate = Command::new("/proc/self/exe");
        gate.args(["exec-beside", &process::id().to_string(), "--"]).args(command);
        for (name, value) in variables {
            match value {
                Some(value) => gate.env(name, value),
                None => gate.env_remove(name),
            };
        }
        if own_group {
            gate.process_group(0);
        }
        let child = gate.spawn().with_context(failed)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).with_context(failed)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok();
        Ok(Child { child, pid, pidfd })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its process group, if it was given one of its own.
    pub fn group(&self) -> Pid {
        self.pid
    }

    /// Waits for its end or until one of these is readable, at most this long.
    pub fn wait(&self, others: &[PollFd<'_>], limit: Duration) -> anyhow::Result<()> {
        const WITHOUT_PIDFD: Duration = Duration::from_millis(20);
        let limit = if self.pidfd.is_some() { limit } else { limit.min(WITHOUT_PIDFD) };
        let own = self.pidfd.iter().map(|fd| PollFd::new(fd, PollFlags::IN));
        let mut fds: Vec<_> = own.chain(others.iter().cloned()).collect();
        poll::wait(&mut fds, Some(limit))
    }

    /// Whether it has ended. It stays a zombie, so that its number is nobody else's.
    pub fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.pid), options), Ok(None))
    }

    /// Sends it a signal, while it was not reaped.
    pub fn signal(&self, signal: Signal) {
        // It may have ended this moment: then there is nobody to be told.
        let _ = kill_process(self.pid, signal);
    }

    /// How it ended.
    pub fn reap(mut self) -> anyhow::Result<ExitStatus> {
        self.child.wait().context("cannot wait for the command")
    }
}

/// What a shell makes of it: the exit code, or 128 and the signal.
pub fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255);
    u8::try_from(code).unwrap_or(255)
}

/// `exit code 3`, `killed by SIGTERM`.
pub fn said(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by {}", signal_name(signal)),
        (None, None) => status.to_string(),
    }
}
