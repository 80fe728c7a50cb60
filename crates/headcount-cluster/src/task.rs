//! What is asked of the agent of a host, and what it answers: one document per node and rollout. `docs/cluster.md` lists its members.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::value::VERSION;

/// A node of a host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Target {
    /// The host.
    pub host: String,
    /// Its node.
    pub node: String,
}

impl Target {
    /// This node of this host.
    #[must_use]
    pub fn new(host: impl Into<String>, node: impl Into<String>) -> Target {
        Target { host: host.into(), node: node.into() }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.node)
    }
}

/// The only thing that can be asked.
pub const RELOAD: &str = "reload";
/// What is asked lasts at least so long, and at most so long, whatever the document says.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Texts of an answer are cut to so many characters.
const TEXT: usize = 1000;
/// Documents that are longer are nobody's who means well.
pub(crate) const MOST_BYTES: usize = 16 << 10;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Nobody has begun it.
    Asked,
    /// The agent of the host has begun it. From here on it is never begun again.
    Taken,
    /// `report` says what became of it.
    Done,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The new generation serves, and if that was asked, no older one is left.
    Serving,
    /// The server refused its configuration, or could not apply it, or has ended meanwhile.
    Refused,
    /// It does not serve within the time, or has not drained.
    TimedOut,
    /// The agent's configuration does not allow it.
    NotAllowed,
    /// It could not be tried.
    Failed,
    /// The agent ended while it reloaded, and the next one cannot tell what became of it.
    Unknown,
}

/// What became of it, in words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The short answer.
    pub outcome: Outcome,
    /// Which generation serves now, if that is the answer.
    #[serde(default)]
    pub generation: Option<u64>,
    /// In words, with the server's own reason if there is one.
    pub text: String,
    /// How long it took, in seconds.
    #[serde(default)]
    pub took: f64,
}

impl Report {
    /// The time is filled in by who waits for it.
    #[must_use]
    pub fn new(outcome: Outcome, text: &str) -> Report {
        Report { outcome, generation: None, text: cut(text), took: 0.0 }
    }
}

pub(crate) fn cut(text: &str) -> String {
    text.chars().take(TEXT).collect()
}

/// The document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskValue {
    /// The version of this document.
    pub v: u32,
    /// What is to be done.
    #[serde(rename = "do")]
    pub what: String,
    /// Whether it is done only when no older generation is left.
    #[serde(default)]
    pub drained: bool,
    /// Within how many seconds, from when the agent has begun.
    pub timeout: f64,
    /// Who asks.
    pub by: String,
    /// When, by that one's clock.
    pub asked: f64,
    /// How far it is.
    pub state: TaskState,
    /// Which agent has begun it: its place, process and birth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// When that was, by the host's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<f64>,
    /// The newest generation at that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u64>,
    /// What is waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// What became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
}

impl TaskValue {
    /// A reload that nobody has begun.
    #[must_use]
    pub fn reload(by: &str, drained: bool, timeout: Duration) -> TaskValue {
        TaskValue {
            v: VERSION,
            what: RELOAD.to_owned(),
            drained,
            timeout: timeout.as_secs_f64(),
            by: by.to_owned(),
            asked: crate::now(),
            state: TaskState::Asked,
            agent: None,
            taken: None,
            before: None,
            progress: None,
            report: None,
        }
    }

    /// Within which time. What is written there may be anything.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        bounded(self.timeout)
    }
}

/// A number of seconds that somebody else has written, as a time that can be waited for.
pub(crate) fn bounded(seconds: f64) -> Duration {
    let seconds = if seconds.is_nan() { 0.0 } else { seconds };
    Duration::from_secs_f64(seconds.clamp(SHORTEST.as_secs_f64(), LONGEST.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::parse;

    #[test]
    fn a_time_is_one_that_can_be_waited_for() {
        for (seconds, bounded_to) in [
            (60.0, Duration::from_secs(60)),
            (-1.0, SHORTEST),
            (f64::NAN, SHORTEST),
            (f64::NEG_INFINITY, SHORTEST),
            (f64::INFINITY, LONGEST),
            (1e300, LONGEST),
        ] {
            assert_eq!(bounded(seconds), bounded_to, "{seconds}");
        }
    }

    #[test]
    fn what_is_no_task_is_none() {
        // A time that decimals say exactly.
        let task = TaskValue { asked: 1.5, ..TaskValue::reload("root", true, Duration::from_secs(5)) };
        let text = serde_json::to_vec(&task).unwrap();
        assert_eq!(parse::<TaskValue>(&text).unwrap(), task);
        let strange = String::from_utf8(text).unwrap().replace("asked\"", "doing\"");
        assert!(parse::<TaskValue>(strange.as_bytes()).is_err());
        assert!(parse::<TaskValue>(br#"{"v":2}"#).is_err());
    }
}
