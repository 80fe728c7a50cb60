//! A `headcount run` that belongs to one test.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use testkit::{Folder, Integration, Setup, Signal, process, wait};

use crate::program;

/// Long enough for a machine on which everything else is tested meanwhile.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where the registry is: not in the server's own folder, where whoever has it open counts as one of the server's processes.
pub fn registry(own: &Folder) -> PathBuf {
    own.at("run/registry")
}

/// Shell that waits for the file `gate`, but not for one that a failed test has not made.
pub fn await_gate(own: &Folder) -> String {
    format!(
        "until [ -e '{}' ] || [ ! -d '{}' ]; do sleep 0.01; done",
        own.at("gate").display(),
        own.path().display()
    )
}

/// Shell that does not end by itself while the test runs.
pub fn hang(own: &Folder) -> String {
    format!("while [ -d '{}' ]; do sleep 0.05; done", own.path().display())
}

/// A server with its registry there.
pub fn server(own: &Folder) -> Setup {
    Setup::new(Integration::Lua).option("path", &format!("\"{}\"", registry(own).display())).allow_kills()
}

/// The command.
pub fn headcount() -> Command {
    program::headcount(["run"])
}

/// One that runs, or ran.
pub struct Follower {
    child: Child,
    log: PathBuf,
    /// Where in the log it begins.
    before: usize,
}

impl Follower {
    /// Starts it for the registry in this folder. What it says is appended to `run.log` in that folder.
    pub fn start(own: &Folder, arguments: &[&str]) -> Follower {
        Follower::spawn(own, Follower::command(own, arguments))
    }

    /// What starts it.
    pub fn command(own: &Folder, arguments: &[&str]) -> Command {
        let mut command = headcount();
        command.arg("--registry").arg(registry(own)).arg("--state").arg(own.at("state.json")).args(arguments);
        command
    }

    /// Starts a command that is one.
    pub fn spawn(own: &Folder, mut command: Command) -> Follower {
        let path = own.at("run.log");
        let before = fs::read_to_string(&path).map_or(0, |log| log.len());
        let log = File::options().append(true).create(true).open(&path).expect("our own folder");
        let child = command.stderr(log).spawn().expect("the program can be started");
        Follower { child, log: path, before }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    /// What this one has said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default().split_off(self.before)
    }

    /// Waits for a condition, and says what was said when it does not come.
    #[track_caller]
    pub fn wait_until<T>(&self, what: &str, condition: impl FnMut() -> Option<T>) -> T {
        match wait::poll(PATIENCE, condition) {
            Some(found) => found,
            None => panic!("did not come within {PATIENCE:?}: {what}\n{}", self.log()),
        }
    }

    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        self.wait_until(&format!("{text:?} in its log"), || self.log().contains(text).then_some(()));
    }

    /// Waits for its end.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        let ended = wait::poll(PATIENCE, || self.child.try_wait().expect("our own child"));
        ended.unwrap_or_else(|| panic!("did not end\n{}", self.log()))
    }

    /// SIGTERM, and code 0.
    #[track_caller]
    pub fn end(&mut self) {
        self.signal(Signal::TERM);
        let status = self.ended();
        assert_eq!(status.code(), Some(0), "{status}\n{}", self.log());
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.ended();
    }

    pub fn signal(&self, signal: Signal) {
        process::send(self.pid(), signal);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // A test that failed. It has ended by itself in this moment, or is ended now.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("---- {}\n{}", self.log.display(), self.log());
        }
    }
}
