//! A program that stands still at each of its system calls until it is told to go on.
#![allow(dead_code, reason = "each test file uses its own part of this module")]

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Only the thread that started it may tell it anything. Killed when it is dropped.
pub struct Traced {
    pid: Pid,
    ended: bool,
}

/// How it ended.
pub struct Ended(pub i32);

impl Traced {
    pub fn start(command: &mut Command) -> Traced {
        // SAFETY: one system call, between the fork and the new program.
        unsafe { command.pre_exec(|| ptrace::traceme().map_err(std::io::Error::from)) };
        #[expect(clippy::zombie_processes, reason = "waited for by pid: `Child::wait` knows no stops")]
        let child = command.spawn().expect("it can be started");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        let traced = Traced { pid, ended: false };
        assert_eq!(traced.wait(), WaitStatus::Stopped(pid, Signal::SIGTRAP), "it begins with a stop");
        let options = ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL;
        ptrace::setoptions(pid, options).expect("it is ours");
        traced
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    fn wait(&self) -> WaitStatus {
        waitpid(self.pid, Some(WaitPidFlag::__WALL)).expect("it is ours")
    }

    /// Lets it run to where it next enters or leaves a system call, and stands there again.
    pub fn step(&mut self) -> Result<(), Ended> {
        let mut deliver = None;
        loop {
            ptrace::syscall(self.pid, deliver).expect("it stands");
            match self.wait() {
                WaitStatus::PtraceSyscall(_) => return Ok(()),
                WaitStatus::Stopped(_, signal) => deliver = Some(signal),
                WaitStatus::Exited(_, code) => {
                    self.ended = true;
                    return Err(Ended(code));
                }
                other => panic!("it ended by {other:?}"),
            }
        }
    }

    /// Leaves it alone where it stands, stopped by SIGSTOP like anybody else's process.
    pub fn leave_stopped(mut self) -> Stopped {
        ptrace::detach(self.pid, Signal::SIGSTOP).expect("it stands");
        self.ended = true;
        let stopped = Stopped { pid: self.pid };
        let stands = testkit::wait::poll(testkit::wait::PATIENCE, || {
            testkit::process::stat(self.pid.as_raw()).filter(|s| s.state == 'T')
        });
        assert!(stands.is_some(), "it does not stop");
        stopped
    }

    /// Whether it stands right before, or right after, a write to a socket.
    pub fn sends(&self) -> bool {
        let call = std::fs::read_to_string(format!("/proc/{}/syscall", self.pid)).expect("it stands");
        let mut words = call.split_whitespace();
        let number = words.next().and_then(|number| number.parse().ok());
        let fd = words.next().and_then(|fd| u64::from_str_radix(fd.trim_start_matches("0x"), 16).ok());
        let (Some(number), Some(fd)) = (number, fd) else { return false };
        let target = std::fs::read_link(format!("/proc/{}/fd/{fd}", self.pid));
        let is_socket = target.is_ok_and(|target| target.to_string_lossy().starts_with("socket:"));
        use nix::libc::{SYS_sendmsg, SYS_sendto, SYS_write, SYS_writev};
        is_socket && [SYS_write, SYS_writev, SYS_sendto, SYS_sendmsg].contains(&number)
    }

    /// What it has open.
    pub fn opens(&self, path: &Path) -> bool {
        let links = std::fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("it stands").flatten();
        links.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|target| target == path)
    }

    /// Whether it has the file mapped for writing.
    pub fn may_write(&self, path: &Path) -> bool {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid)).expect("it stands");
        let mut of_file = maps.lines().filter(|line| line.ends_with(&*path.to_string_lossy()));
        of_file.any(|line| line.split_whitespace().nth(1).is_none_or(|rights| rights.contains('w')))
    }

    /// Whether it holds, or waits for, a lock on any file.
    pub fn locks(&self) -> Option<String> {
        let pid = self.pid.to_string();
        let locks = std::fs::read_to_string("/proc/locks").expect("the kernel's list of locks");
        locks.lines().find(|line| line.split_whitespace().any(|word| word == pid)).map(str::to_owned)
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if !self.ended {
            end(self.pid);
        }
    }
}

fn end(pid: Pid) {
    // Gone already is as good.
    let _ = kill(pid, Signal::SIGKILL);
    let _ = waitpid(pid, Some(WaitPidFlag::__WALL));
}

/// Stopped by SIGSTOP. Killed when it is dropped.
pub struct Stopped {
    pid: Pid,
}

impl Stopped {
    /// Lets it run.
    pub fn resume(&self) {
        kill(self.pid, Signal::SIGCONT).expect("it is ours");
    }

    /// Lets it run to its end, and gives its exit code.
    pub fn go_on(self) -> i32 {
        self.resume();
        let status = waitpid(self.pid, None).expect("it is ours");
        std::mem::forget(self);
        match status {
            WaitStatus::Exited(_, code) => code,
            other => panic!("it ended by {other:?}"),
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        end(self.pid);
    }
}
