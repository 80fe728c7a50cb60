//! Namespaces of the kernel that a test puts servers, programs and users into.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::{process, wait};

/// A process that holds namespaces open; whoever is started by [`Room::enter`] is in them.
#[derive(Debug)]
pub struct Room {
    child: Child,
    pid: i32,
    kinds: Vec<&'static str>,
}

impl Room {
    /// `kinds` are options of `unshare`, such as `--mount`, or `--boottime=3600` for a `--time`; `furnish` is shell that is
    /// run inside first.
    ///
    /// # Errors
    /// Why there is none: no right to make one, or no such program.
    pub fn new(kinds: &[&'static str], furnish: &str) -> Result<Self, String> {
        Self::open(Command::new("unshare"), kinds, furnish, "exec sleep 1000")
    }

    /// One that lasts as long as the thread that made it, whatever ends that, and asks for the ends of processes whose parents are
    /// gone, as the first process of a machine does.
    ///
    /// # Errors
    /// As [`Room::new`].
    pub fn machine(kinds: &[&'static str], furnish: &str) -> Result<Self, String> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare"]);
        let then = match kinds.contains(&"--pid") {
            true => "while :; do sleep 1000 & wait; done",
            // Its child would outlive it.
            false => "exec sleep infinity",
        };
        Self::open(command, kinds, furnish, then)
    }

    fn open(mut command: Command, kinds: &[&'static str], furnish: &str, then: &str) -> Result<Self, String> {
        if !process::is_root() {
            return Err("only root makes namespaces".into());
        }
        command.args(kinds).arg("--kill-child=KILL");
        if kinds.contains(&"--pid") {
            command.arg("--mount-proc");
        }
        // The last word of a namespace's first process: it is there, and furnished.
        command.args(["--propagation", "private", "--fork", "--", "sh", "-ec"]);
        command.arg(format!("{furnish}\necho ready\n{then}"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("unshare: {e}"))?;
        let mut said = String::new();
        let output = child.stdout.take().expect("it was asked for");
        BufReader::new(output).read_line(&mut said).map_err(|e| e.to_string())?;
        if said.trim() != "ready" {
            let mut why = String::new();
            if let Some(mut errors) = child.stderr.take() {
                let _ = std::io::Read::read_to_string(&mut errors, &mut why);
            }
            let _ = child.wait();
            return Err(format!("unshare {kinds:?}: {}", why.trim()));
        }
        let pid = *process::children(child.id() as i32).first().ok_or("unshare has no child")?;
        Ok(Self { child, pid, kinds: kinds.to_vec() })
    }

    /// The words that go before a command to have it run inside.
    pub fn enter(&self) -> Vec<String> {
        let mut words = vec!["nsenter".to_owned(), format!("--target={}", self.pid)];
        words.extend(self.kinds.iter().filter(|kind| !kind.contains('=')).map(|&kind| kind.to_owned()));
        // Its root is ours, which in a chroot is not that of the namespace.
        words.extend(["--root".into(), "--".into()]);
        words
    }

    /// A command inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let words = self.enter();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(program);
        command
    }

    /// Its first process, by its number outside.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The next process that is started inside has this number, if nobody else there starts one meanwhile.
    pub fn next_pid(&self, pid: i32) {
        let script = format!("echo {} > /proc/sys/kernel/ns_last_pid", pid - 1);
        let done = self.command("sh").args(["-c", &script]).status();
        assert!(done.is_ok_and(|status| status.success()), "{script}");
    }

    /// Kills its first process, and so, in a pid namespace, all that are in it, as `docker kill` does.
    pub fn end(&mut self) {
        if process::is_alive(self.pid) {
            process::send(self.pid, rustix::process::Signal::KILL);
        }
        // Whoever went inside for a process that was stopped has stopped as well; and the first process ends when all others have been
        // asked for.
        let way = format!("--target={} ", self.pid);
        for stopped in process::all().into_iter().filter(|stat| stat.state == 'T') {
            if process::title(stopped.pid).contains(&way) {
                process::send(stopped.pid, rustix::process::Signal::CONT);
            }
        }
        // Whoever waits for it is told when all are gone. One of them may be held in state D.
        let ended = wait::poll(wait::PATIENCE, || self.child.try_wait().expect("our own child"));
        if ended.is_some() {
            return;
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.end();
    }
}
