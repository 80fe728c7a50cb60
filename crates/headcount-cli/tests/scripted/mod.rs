//! The program as a script uses it: beside a real server, with its exit code and what it wrote.

#![allow(dead_code, reason = "each test program uses its own part of it")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use testkit::{Integration, Nginx, Setup, Signal, process, wait};

use crate::program::{self, Run};

/// Longer than anything may take on a loaded machine.
pub const LONG: Duration = Duration::from_secs(60);

/// A server with the Lua integration.
pub fn setup() -> Setup {
    Setup::new(Integration::Lua)
}

/// Heartbeats that make a hang show in a second.
pub fn quick() -> Setup {
    setup().option("heartbeat_interval", "0.2").option("stall_after", "1")
}

/// The program with the node of this registry.
pub fn headcount(registry: &Path, args: &[&str]) -> Command {
    let mut command = program::headcount(args);
    command.arg("--registry").arg(registry);
    command
}

/// Runs it to its end, without a terminal.
pub fn run(nginx: &Nginx, args: &[&str]) -> Run {
    program::run(&mut headcount(&nginx.registry(), args))
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The program, running.
pub struct Running {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    /// Starts it; what it writes goes to files in `folder`.
    pub fn start(folder: &Path, mut command: Command) -> Running {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let [out, err] = ["out", "err"].map(|what| folder.join(format!("headcount-{number}.{what}")));
        command.stdout(File::create(&out).expect("the test's folder"));
        command.stderr(File::create(&err).expect("the test's folder"));
        Running { child: command.spawn().expect("the program can be started"), out, err }
    }

    pub fn out(&self) -> String {
        std::fs::read_to_string(&self.out).expect("our own file")
    }

    pub fn err(&self) -> String {
        std::fs::read_to_string(&self.err).expect("our own file")
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Waits until what it wrote fits.
    #[track_caller]
    pub fn wait_for<T>(&self, what: &str, mut fits: impl FnMut(&Running) -> Option<T>) -> T {
        match wait::poll(LONG, || fits(self)) {
            Some(found) => found,
            None => panic!("{what} did not come\n---- out\n{}\n---- err\n{}", self.out(), self.err()),
        }
    }

    /// Waits until it has written this.
    #[track_caller]
    pub fn says(&self, text: &str) {
        self.wait_for(text, |r| (r.out().contains(text) || r.err().contains(text)).then_some(()));
    }

    pub fn signal(&self, signal: Signal) {
        process::send(self.pid(), signal);
    }

    /// Waits for its end.
    #[track_caller]
    pub fn end(mut self) -> Run {
        let status = wait::poll(LONG, || self.child.try_wait().expect("our own child"));
        let Some(status) = status else {
            panic!("it does not end\n---- out\n{}\n---- err\n{}", self.out(), self.err());
        };
        let code = status.code().unwrap_or_else(|| panic!("it ended by {status}"));
        Run { code: Some(code), out: self.out(), err: self.err() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, unless the test fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts it beside a server.
pub fn start(nginx: &Nginx, args: &[&str]) -> Running {
    Running::start(nginx.folder(), headcount(&nginx.registry(), args))
}

/// Master and workers. Not `family()`: the program has the registry open, and would be taken for one of them.
#[track_caller]
fn processes(nginx: &Nginx) -> Vec<i32> {
    let master = nginx.master();
    std::iter::once(master).chain(nginx.workers()).collect()
}

/// Tells the server to stop, and waits until it has, while the program runs.
#[track_caller]
pub fn quit(nginx: &Nginx) {
    let all = processes(nginx);
    process::send(nginx.master(), Signal::QUIT);
    all.into_iter().for_each(|pid| nginx.wait_gone(pid));
}

/// Kills the whole server, the master first, while the program runs.
#[track_caller]
pub fn kill_everything(nginx: &Nginx) {
    let all = processes(nginx);
    all.iter().for_each(|&pid| process::send(pid, Signal::KILL));
    all.into_iter().for_each(|pid| nginx.wait_gone(pid));
}
