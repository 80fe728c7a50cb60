//! Processes that are none of a server's: one that must not be signalled, and a local user who means harm.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::{artifacts, process};

/// A process that has nothing to do with any server, and remembers each signal that was sent to it.
#[derive(Debug)]
pub struct Stranger(Own);

/// A child that says one line when it is ready, and ends with its standard input at the latest.
#[derive(Debug)]
struct Own {
    child: Child,
    _input: ChildStdin,
    said: String,
}

impl Own {
    #[track_caller]
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let input = child.stdin.take().expect("it was asked for");
        let mut said = String::new();
        let output = child.stdout.take().expect("it was asked for");
        BufReader::new(output).read_line(&mut said).expect("it says that it is ready");
        Self { child, _input: input, said: said.trim().to_owned() }
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Stranger {
    /// Starts it, as the user of this test.
    #[track_caller]
    pub fn new() -> Self {
        Self::by(Command::new(artifacts::attacker()))
    }

    /// Starts it by a command that ends with the attacker's program.
    #[track_caller]
    pub fn by(mut command: Command) -> Self {
        command.arg("stranger");
        let own = Own::start(command);
        assert_eq!(own.said, "ready");
        Self(own)
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.0.pid()
    }

    /// What was done to it, if anything.
    pub fn complaint(&self) -> Option<String> {
        let pid = self.pid();
        if !process::is_alive(pid) {
            return Some(format!("the stranger {pid} is dead"));
        }
        let signals = process::pending_signals(pid);
        let stopped = process::stat(pid).is_some_and(|s| s.state == 'T');
        (signals != 0 || stopped)
            .then(|| format!("the stranger {pid} got signals: {signals:#x}, stopped: {stopped}"))
    }
}

impl Default for Stranger {
    fn default() -> Self {
        Self::new()
    }
}

/// A local user, uid 65534, who means harm.
#[derive(Debug)]
pub struct User(Own);

impl User {
    /// Has him do `attack` with what is called `name` in `folder`. `program` is the attacker's, where he can reach it.
    #[track_caller]
    pub fn attack(
        before: &[String],
        program: &Path,
        attack: &str,
        folder: &Path,
        name: &str,
        model: Option<&Path>,
        strangers: &[i32],
    ) -> Self {
        let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"].map(str::to_owned);
        let words: Vec<String> = before.iter().cloned().chain(nobody).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(program).args(["user", attack]).arg(folder).arg(name);
        command.arg(model.unwrap_or(Path::new("")));
        command.arg(strangers.iter().map(i32::to_string).collect::<Vec<_>>().join(","));
        Self(Own::start(command))
    }

    /// What he said when he was ready.
    pub fn said(&self) -> &str {
        &self.0.said
    }
}
