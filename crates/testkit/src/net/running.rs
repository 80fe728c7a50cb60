//! A program that runs on a machine of a [`super::Net`].

use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::{process, wait};

/// It is killed with this.
#[derive(Debug)]
pub struct Running {
    /// Whoever went into the machine and waits there for the program.
    way: Child,
    pid: i32,
    /// A number may be used again; this may not. `None`: it has ended before it was looked at.
    fd: Option<OwnedFd>,
}

impl Running {
    /// Starts a command of [`super::Net::command`].
    #[track_caller]
    pub fn start(command: &mut Command) -> Running {
        let mut way = command.stdin(Stdio::null()).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let parent = way.id() as i32;
        let pid = wait::poll(wait::PATIENCE, || {
            let ended = way.try_wait().expect("our own child").is_some();
            process::children(parent).first().copied().or(ended.then_some(0))
        });
        let pid = pid.unwrap_or_else(|| panic!("{command:?} does not begin"));
        let fd = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        Running { way, pid, fd }
    }

    /// Starts a command of [`super::Net::beside`], which is no process of a machine.
    #[track_caller]
    pub fn direct(command: &mut Command) -> Running {
        let way = command.stdin(Stdio::null()).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let pid = way.id() as i32;
        let fd = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        Running { way, pid, fd }
    }

    /// Its number outside.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it has not ended.
    pub fn is_alive(&mut self) -> bool {
        self.ended().is_none() && self.fd.is_some() && process::is_alive(self.pid)
    }

    /// Whether it has ended: how.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        // Whoever waits for it has stopped when it did, and does not know that it went on.
        if !process::is_alive(self.pid) {
            process::send(self.way.id() as i32, Signal::CONT);
        }
        self.way.try_wait().expect("our own child")
    }

    /// Sends it a signal. One that has ended gets none.
    pub fn signal(&self, signal: Signal) {
        let Some(fd) = &self.fd else { return };
        let _ = pidfd_send_signal(fd, signal);
        // Whoever waits for one that is stopped stops as well.
        if signal == Signal::CONT {
            process::send(self.way.id() as i32, Signal::CONT);
        }
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.way.kill();
        let _ = self.way.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}
