//! The program under test, run as people and scripts run it.
#![allow(dead_code, reason = "each test file uses its own part of this module")]

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// How a run ended, and what it said.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// The program with these arguments, in an environment that says nothing.
pub fn headcount<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    program(Path::new(env!("CARGO_BIN_EXE_headcount")), arguments)
}

/// The same by a copy of the program that everybody may run: where it was built, others may not be allowed to look.
pub fn of_everybody<S: AsRef<OsStr>>(copy: &Path, arguments: impl IntoIterator<Item = S>) -> Command {
    if !copy.exists() {
        std::fs::copy(env!("CARGO_BIN_EXE_headcount"), copy).expect("our own folder");
        testkit::chmod(copy, 0o755);
    }
    program(copy, arguments)
}

fn program<S: AsRef<OsStr>>(path: &Path, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(path);
    command.args(arguments).stdin(Stdio::null());
    for (variable, _) in std::env::vars_os() {
        let name = variable.to_string_lossy().to_lowercase();
        let colours = ["no_color", "clicolor", "clicolor_force"].contains(&&*name);
        // For the colours, for where to look, and for where `run` posts to and keeps its state.
        if colours || name.starts_with("headcount_") || name.ends_with("_proxy") || name == "state_directory"
        {
            command.env_remove(variable);
        }
    }
    command
}

/// Runs it to its end.
pub fn run(command: &mut Command) -> Run {
    let Output { status, stdout, stderr } = command.output().expect("it can be started");
    let text = |bytes| String::from_utf8(bytes).expect("it writes UTF-8");
    Run { code: status.code(), out: text(stdout), err: text(stderr) }
}

/// Runs it with a terminal for its output, and gives what came there.
pub fn run_on_terminal(command: &mut Command) -> (Option<i32>, String) {
    let terminal = nix::pty::openpty(None, None).expect("a terminal");
    command.env("TERM", "xterm").stdout(terminal.slave.try_clone().expect("a second descriptor"));
    let mut child = command.spawn().expect("it can be started");
    // The command holds copies of the other side, and the end is seen when all are closed.
    command.stdout(Stdio::null());
    drop(terminal.slave);
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    let mut master = std::fs::File::from(terminal.master);
    // A terminal whose other side is closed says EIO.
    while let Ok(n @ 1..) = master.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..n]);
    }
    (child.wait().expect("our own child").code(), String::from_utf8(bytes).expect("it writes UTF-8"))
}

impl Run {
    /// It ended with this exit code.
    #[track_caller]
    pub fn ended(self, code: i32) -> Run {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// In its answer, wherever the lines of that are broken.
    #[track_caller]
    pub fn says(self, part: &str) -> Run {
        let words: Vec<_> = self.out.split_whitespace().collect();
        assert!(words.join(" ").contains(part), "{part:?} is not in:\n{}\n{}", self.out, self.err);
        self
    }

    /// Beside its answer.
    #[track_caller]
    pub fn complains(self, part: &str) -> Run {
        assert!(self.err.contains(part), "{part:?} is not in:\n{}", self.err);
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}\n{}", self.out, self.err))
    }
}

/// Waits till these processes are dead with all their threads, asked for by their parents or not: what they had locked
/// is free from then on. One whose first thread has ended is in state Z already while another still ends.
#[track_caller]
pub fn dead(pids: &[i32]) {
    for &pid in pids {
        let dead = testkit::wait::poll(testkit::wait::PATIENCE, || {
            let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
            (threads <= 1 && !testkit::process::is_alive(pid)).then_some(())
        });
        assert!(dead.is_some(), "process {pid} does not end");
    }
}

/// Kills all of a server, and waits till the last of it is dead.
#[track_caller]
pub fn kill_all(nginx: &testkit::Nginx) {
    let family = nginx.family();
    nginx.kill_all();
    dead(&family);
}
