//! What the callbacks of a test's server said.

use std::fmt;

use serde_json::Value;

/// `(prev, mine, next)`; `None`: there is no such generation.
pub type Counts = (Option<i64>, Option<i64>, Option<i64>);

/// The events that have a callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::GenerationStarted,
        Self::GenerationEnded,
        Self::GenerationAbandoned,
        Self::WorkerStarted,
        Self::WorkerDraining,
        Self::WorkerExited,
        Self::WorkerDied,
        Self::WorkerStalled,
        Self::WorkerRecovered,
        Self::MasterLost,
    ];

    /// The callback's name in Lua.
    pub fn callback(self) -> &'static str {
        match self {
            Self::GenerationStarted => "on_generation_start",
            Self::GenerationEnded => "on_generation_exit",
            Self::GenerationAbandoned => "on_generation_abandoned",
            Self::WorkerStarted => "on_worker_start",
            Self::WorkerDraining => "on_worker_draining",
            Self::WorkerExited => "on_worker_exit",
            Self::WorkerDied => "on_worker_died",
            Self::WorkerStalled => "on_worker_stalled",
            Self::WorkerRecovered => "on_worker_recovered",
            Self::MasterLost => "on_master_lost",
        }
    }

    /// The event's own name.
    pub fn name(self) -> &'static str {
        match self {
            Self::GenerationStarted => "generation_started",
            Self::GenerationEnded => "generation_ended",
            Self::GenerationAbandoned => "generation_abandoned",
            Self::WorkerStarted => "worker_started",
            Self::WorkerDraining => "worker_draining",
            Self::WorkerExited => "worker_exited",
            Self::WorkerDied => "worker_died",
            Self::WorkerStalled => "worker_stalled",
            Self::WorkerRecovered => "worker_recovered",
            Self::MasterLost => "master_lost",
        }
    }
}

/// One line of the report file.
#[derive(Clone, Debug)]
pub struct Report {
    /// `on_worker_start`, `master_exit` (seed) or `note:…`, a call's result.
    pub callback: String,
    /// The process that ran the callback.
    pub runner: i32,
    /// CLOCK_BOOTTIME in nanoseconds.
    pub at: u64,
    /// The phase that ngx_lua was in.
    pub phase: String,
    /// The callback's table as it came.
    pub event: Value,
}

impl Report {
    /// Reads one line.
    pub fn parse(line: &str) -> Self {
        let value: Value = serde_json::from_str(line)
            .unwrap_or_else(|error| panic!("a report that is no JSON ({error}): {line}"));
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        Self {
            callback: text("callback"),
            runner: value["runner"].as_i64().unwrap_or_default() as i32,
            at: value["at"].as_f64().unwrap_or_default() as u64,
            phase: text("phase"),
            event: value["event"].clone(),
        }
    }

    /// The event, unless this is a note or the seed's.
    pub fn kind(&self) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.callback() == self.callback)
    }

    /// A whole number of the event.
    pub fn int(&self, field: &str) -> Option<i64> {
        self.event[field].as_i64()
    }

    /// A text of the event; empty when it is not there.
    pub fn text(&self, field: &str) -> &str {
        self.event[field].as_str().unwrap_or_default()
    }

    /// A truth value, also when it came as 0 or 1.
    pub fn flag(&self, field: &str) -> bool {
        let value = &self.event[field];
        value.as_bool().unwrap_or_else(|| value.as_i64() == Some(1))
    }

    /// The subject's generation.
    pub fn generation(&self) -> u64 {
        self.int("generation").unwrap_or(-1) as u64
    }

    /// The subject's process.
    pub fn pid(&self) -> i32 {
        self.int("pid").unwrap_or(-1) as i32
    }

    /// Why.
    pub fn cause(&self) -> &str {
        self.text("cause")
    }

    /// The three counts.
    pub fn counts(&self) -> Counts {
        (self.int("prev"), self.int("mine"), self.int("next"))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = |field| self.int(field).map_or("-".to_owned(), |n| n.to_string());
        write!(f, "[{:>6} {:<13}] {:<24} ", self.runner, self.phase, self.callback)?;
        if self.kind().is_none() {
            return write!(f, "{}", self.event);
        }
        write!(
            f,
            "#{} g{} pid {} worker {} ({},{},{}) draining {} total {} {}",
            n("seq"),
            n("generation"),
            n("pid"),
            n("worker_id"),
            n("prev"),
            n("mine"),
            n("next"),
            n("draining"),
            n("total"),
            self.cause(),
        )?;
        for field in ["signal", "exit_code", "previous_run", "previous_workers"] {
            match &self.event[field] {
                Value::Null => {}
                value => write!(f, " {field}={value}")?,
            }
        }
        if self.flag("retry") { f.write_str(" RETRY") } else { Ok(()) }
    }
}

/// All reports so far, in the order in which they were written.
#[derive(Clone, Debug, Default)]
pub struct Reports(pub Vec<Report>);

impl Reports {
    /// Reads a report file; a line that is still being written is left for the next time.
    pub fn parse(text: &str) -> Self {
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        Self(whole.lines().map(Report::parse).collect())
    }

    /// Those of one kind.
    pub fn of(&self, kind: Kind) -> Vec<&Report> {
        self.0.iter().filter(|r| r.callback == kind.callback()).collect()
    }

    /// Those of one kind and generation.
    pub fn of_generation(&self, kind: Kind, generation: u64) -> Vec<&Report> {
        self.of(kind).into_iter().filter(|r| r.generation() == generation).collect()
    }

    /// Those of one callback by its name; for the seed's.
    pub fn called(&self, callback: &str) -> Vec<&Report> {
        self.0.iter().filter(|r| r.callback == callback).collect()
    }

    /// Results of a call of the library, as the recorder noted them.
    pub fn notes(&self, what: &str) -> Vec<&Report> {
        self.0.iter().filter(|r| r.callback.strip_prefix("note:") == Some(what)).collect()
    }

    /// `Some(())` when there are at least so many.
    pub fn at_least(&self, n: usize, kind: Kind, generation: u64) -> Option<()> {
        (self.of_generation(kind, generation).len() >= n).then_some(())
    }
}

impl fmt::Display for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.0.first().map_or(0, |r| r.at);
        for report in &self.0 {
            let ms = (report.at as i64 - first as i64) as f64 / 1e6;
            writeln!(f, "{ms:>10.3} ms {report}")?;
        }
        Ok(())
    }
}
