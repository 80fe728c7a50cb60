//! The fleet, those who listen on its hosts, and what is expected of them.

use std::fmt;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::expected::{Expected, compare};
use crate::fleet::Fleet;
use crate::listener::{Listener, Said, What};
use crate::screen::{Heard, Screen};

/// An act is over when everything expected has come, and nothing more for this long.
const SETTLED: Duration = Duration::from_millis(400);
/// An act has failed if what was expected has not come by then.
const LIMIT: Duration = Duration::from_secs(30);

/// Why the demo ended early.
pub enum Failure {
    Interrupted,
    Unexpected(Vec<String>),
    Other(String),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::Other(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Interrupted => f.write_str("interrupted"),
            Failure::Unexpected(what) => write!(f, "wrong reports: {}", what.join("; ")),
            Failure::Other(text) => f.write_str(text),
        }
    }
}

pub struct Stage {
    listeners: Vec<Option<Listener>>,
    pub fleet: Fleet,
    pub screen: Screen,
    said: Receiver<Said>,
    to: Sender<Said>,
    interrupted: Arc<AtomicBool>,
    keep: bool,
    lines: usize,
}

impl Stage {
    pub fn build(keep: bool, interrupted: Arc<AtomicBool>) -> Result<Stage, Failure> {
        let fleet = Fleet::build().map_err(Failure::Other)?;
        let (to, said) = mpsc::channel();
        let listeners = fleet.hosts.iter().map(|_| None).collect();
        let mut stage =
            Stage { listeners, fleet, screen: Screen::default(), said, to, interrupted, keep, lines: 0 };
        (0..stage.fleet.hosts.len()).try_for_each(|host| stage.listen(host, &[]))?;
        Ok(stage)
    }

    /// From now on, what is said on this host is shown.
    fn listen(&mut self, host: usize, more: &[&str]) -> Result<(), Failure> {
        let arguments = [&["cluster", "events", "--follow", "--json"], more].concat();
        let command = self.headcount(host, &arguments);
        self.listeners[host] = Some(Listener::start(command, host, &self.to).map_err(Failure::Other)?);
        Ok(())
    }

    /// The same again, after what has been said already.
    pub fn listen_again(&mut self, host: usize) -> Result<(), Failure> {
        self.listen(host, &["--lines", "1"])?;
        // The last one of those: now it hears what comes.
        let first = self.said.recv_timeout(LIMIT);
        self.check_interrupt()?;
        first.map(drop).map_err(|_| Failure::Other(format!("{} hears nothing", self.fleet.name(host))))
    }

    /// `headcount cluster …` on this host.
    fn headcount(&self, host: usize, arguments: &[&str]) -> Command {
        let host = &self.fleet.hosts[host];
        let mut command = host.headcount(&self.fleet.net, arguments);
        if arguments[0] == "cluster" {
            command.arg("--config").arg(host.config());
        }
        command
    }

    /// How many events were shown.
    pub fn lines(&self) -> usize {
        self.lines
    }

    /// Runs a command on this host, and shows what it says. Its exit code must be this.
    pub fn ask(&mut self, host: usize, arguments: &[&str], code: i32) -> Result<(), Failure> {
        let Output { status, stdout, stderr } = self.headcount(host, arguments).output()?;
        self.check_interrupt()?;
        let name = self.fleet.name(host).to_owned();
        // Beside an answer, it says what it waits for.
        let refused = String::from_utf8_lossy(&stderr).into_owned();
        let refused = refused.lines().filter_map(|line| line.strip_prefix("headcount: "));
        String::from_utf8_lossy(&stdout)
            .lines()
            .chain(refused)
            .for_each(|line| self.screen.word(&name, line));
        if status.code() == Some(code) {
            return Ok(());
        }
        let what = format!("`headcount {}` ended with {status}, and not with {code}", arguments.join(" "));
        self.screen.wrong(&what);
        Err(Failure::Unexpected(vec![what]))
    }

    /// Asks on this host until what is answered fits.
    pub fn until(
        &self,
        host: usize,
        arguments: &[&str],
        fits: impl Fn(&Value) -> bool,
    ) -> Result<(), Failure> {
        let began = Instant::now();
        while began.elapsed() < LIMIT {
            self.check_interrupt()?;
            let answer = self.headcount(host, arguments).output()?;
            if serde_json::from_slice(&answer.stdout).is_ok_and(|document| fits(&document)) {
                return Ok(());
            }
        }
        Err(Failure::Other(format!(
            "`headcount {}` does not come to say what it should",
            arguments.join(" ")
        )))
    }

    /// Does something, shows what is said of it, and compares that with what must be said on all hosts that are there.
    pub fn act(
        &mut self,
        title: &str,
        how: &str,
        expected: &Expected<'_>,
        cause: impl FnOnce(&mut Stage) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.check_interrupt()?;
        let names: Vec<String> =
            (0..self.fleet.hosts.len()).map(|host| self.fleet.name(host).to_owned()).collect();
        self.screen.act(title, how, &names.iter().map(String::as_str).collect::<Vec<_>>());
        let began = Instant::now();
        cause(self)?;
        let listening: Vec<usize> =
            (0..names.len()).filter(|&host| self.fleet.net.is_on(self.fleet.hosts[host].machine)).collect();
        let mut told: Vec<Vec<Value>> = vec![Vec::new(); names.len()];
        let mut rows: Vec<(Value, Heard)> = Vec::new();
        let mut words: Vec<Said> = Vec::new();
        let mut latest = Instant::now();
        let wrong = |told: &[Vec<Value>]| -> Vec<String> {
            listening.iter().flat_map(|&host| compare(expected, &names[host], &told[host])).collect()
        };
        while began.elapsed() < LIMIT && !(wrong(&told).is_empty() && latest.elapsed() > SETTLED) {
            self.check_interrupt()?;
            let Ok(said) = self.said.recv_timeout(Duration::from_millis(20)) else { continue };
            latest = Instant::now();
            match said.what {
                What::Word(_) => words.push(said),
                What::Event(event) => {
                    let time = Some(said.at.saturating_duration_since(began));
                    match rows.iter_mut().find(|(known, _)| {
                        known["revision"] == event["revision"] && known["seq"] == event["seq"]
                    }) {
                        Some((_, heard)) => heard[said.on] = time,
                        None => {
                            let mut heard = vec![None; names.len()];
                            heard[said.on] = time;
                            rows.push((event.clone(), heard));
                        }
                    }
                    told[said.on].push(event);
                }
            }
        }
        for (event, heard) in &rows {
            self.screen.event(heard, event);
        }
        for said in words {
            if let What::Word(text) = said.what {
                self.screen.word(&names[said.on], &text);
            }
        }
        self.lines += rows.len();
        let wrong = wrong(&told);
        if wrong.is_empty() {
            return Ok(());
        }
        wrong.iter().for_each(|what| self.screen.wrong(what));
        Err(Failure::Unexpected(wrong))
    }

    pub fn check_interrupt(&self) -> Result<(), Failure> {
        if self.interrupted.load(Ordering::Relaxed) { Err(Failure::Interrupted) } else { Ok(()) }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.keep {
            let kept = std::env::temp_dir().join(format!("headcount-demo-cluster-{}", std::process::id()));
            match std::fs::rename(self.fleet.folder.path(), &kept) {
                Ok(()) => eprintln!("headcount-demo-cluster: kept {}", kept.display()),
                Err(error) => eprintln!("headcount-demo-cluster: cannot keep the folder: {error}"),
            }
        }
    }
}
