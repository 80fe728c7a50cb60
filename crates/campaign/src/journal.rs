//! What the program `headcount` says of a node: its journal, read as lines of JSON. Nothing of the library is used.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde::Deserialize;
use testkit::artifacts;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Kind {
    GenerationStarted,
    GenerationEnded,
    GenerationAbandoned,
    WorkerStarted,
    WorkerDraining,
    WorkerExited,
    WorkerDied,
    WorkerStalled,
    WorkerRecovered,
    MasterLost,
    MasterExited,
    HelperStarted,
    HelperExited,
    CallbackDied,
    CallbackFailed,
    LeaderElected,
    LeaderLost,
    OnceDone,
    OnceFailed,
    LockAbandoned,
}

impl Kind {
    /// Whether the documents promise a callback.
    pub fn has_callback(self) -> bool {
        self <= Self::MasterLost
    }

    /// Whether it is about a role, a once or a lock. Such an event has a name and no counts.
    pub fn has_name(self) -> bool {
        self >= Self::LeaderElected
    }
}

/// One event.
#[derive(Clone, Debug, Deserialize)]
#[allow(missing_docs)]
pub struct Event {
    pub seq: u64,
    pub kind: Kind,
    pub cause: String,
    pub generation: u64,
    pub pid: Option<i32>,
    pub prev: Option<i64>,
    #[serde(default)]
    pub mine: i64,
    pub next: Option<i64>,
    #[serde(default)]
    pub draining: i64,
    #[serde(default)]
    pub total: i64,
    pub signal: Option<i32>,
    pub exit_code: Option<i32>,
    pub about: Option<u64>,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub token: u64,
    #[serde(default)]
    pub attempts: u32,
    pub reporter: i32,
    /// Seconds since 1970.
    pub time: f64,
    /// CLOCK_BOOTTIME in nanoseconds, which the journal does not say: from `time`.
    #[serde(skip)]
    pub at: u64,
}

impl Event {
    /// In short.
    pub fn show(&self) -> String {
        let n = |n: Option<i64>| n.map_or("-".to_owned(), |n| n.to_string());
        let mut text = format!(
            "#{} {:?} {} g{} pid {} ({},{},{}) draining {} total {} by {}",
            self.seq,
            self.kind,
            self.cause,
            self.generation,
            self.pid.unwrap_or(0),
            n(self.prev),
            self.mine,
            n(self.next),
            self.draining,
            self.total,
            self.reporter
        );
        if self.kind.has_name() {
            text = format!("#{} {:?} {} of {}", self.seq, self.kind, self.cause, self.name);
            text +=
                &format!(", pid {} token {} attempts {}", self.pid.unwrap_or(0), self.token, self.attempts);
            text += &format!(" g{} by {}", self.generation, self.reporter);
        }
        for (name, value) in [("signal", self.signal), ("exit_code", self.exit_code)] {
            if let Some(value) = value {
                text += &format!(" {name}={value}");
            }
        }
        text
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Event(Box<Event>),
    Lost { lost: u64 },
}

/// Lines as events. `wall` is what CLOCK_REALTIME is ahead of CLOCK_BOOTTIME. Gives how many events the reader lost, too.
pub fn parse(text: &str, wall: u64) -> Result<(Vec<Event>, u64), String> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut events = Vec::new();
    let mut all_lost = 0;
    for line in whole.lines() {
        match serde_json::from_str(line).map_err(|e| format!("{e}: {line}"))? {
            Line::Event(mut event) => {
                event.at = ((event.time * 1e9) as u64).saturating_sub(wall);
                events.push(*event);
            }
            Line::Lost { lost } => all_lost += lost,
        }
    }
    Ok((events, all_lost))
}

/// How far CLOCK_REALTIME is ahead of CLOCK_BOOTTIME.
pub fn wall_ahead() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let wall = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
    wall.saturating_sub(testkit::wait::boot_clock())
}

/// `headcount` with these arguments about one registry.
pub fn headcount(registry: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(artifacts::program());
    command.args(arguments).arg("--registry").arg(registry).stdin(Stdio::null());
    command
}

/// A reader that follows a journal into a file.
pub struct Follower {
    child: Child,
    file: PathBuf,
}

impl Follower {
    /// Begins, also before the registry is there.
    pub fn begin(registry: &Path, file: &Path) -> io::Result<Self> {
        let errors = File::create(file.with_extension("stderr"))?;
        let child = headcount(registry, &["events", "--json", "--follow"])
            .stdout(File::create(file)?)
            .stderr(errors)
            .spawn()?;
        Ok(Self { child, file: file.to_owned() })
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Whether it still follows.
    pub fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// All that it has written.
    pub fn text(&self) -> String {
        std::fs::read_to_string(&self.file).unwrap_or_default()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
