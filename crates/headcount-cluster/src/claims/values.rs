//! What is in etcd of roles, locks and onces.

use serde::{Deserialize, Serialize};

/// So often is tried what is to be done once.
pub const MOST_ATTEMPTS: u32 = 3;

/// Who has or waits for something.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClaimValue {
    /// The version of this document.
    pub v: u32,
    /// The host.
    pub host: String,
    /// Which of its attempts.
    pub attempt: u64,
    /// The process; of one that waits it is open which it will be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What it is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// Since when it has it, by the clock of its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<f64>,
}

impl ClaimValue {
    /// `process 71 (nginx) of host web-2`.
    #[must_use]
    pub fn who(&self) -> String {
        let process = self.process.as_ref().map_or(String::new(), |name| format!(" ({name})"));
        match self.pid {
            Some(pid) => format!("process {pid}{process} of host {}", self.host),
            None => format!("host {}", self.host),
        }
    }
}

/// How it is with what is to be done once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnceState {
    /// Somebody is to try it.
    #[default]
    Open,
    /// Somebody is at it.
    Running,
    /// It has succeeded.
    Done,
    /// It has failed too often.
    Failed,
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OnceValue {
    /// The version of this document.
    pub v: u32,
    /// How it is.
    pub state: OnceState,
    /// How often it was begun.
    pub attempts: u32,
    /// How the last attempt that did not succeed ended: `failed`, `died`, `stalled`, `lost`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
    /// The host that has written this.
    pub host: String,
    /// The process that has ended the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What that is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// When this was written, by that host's clock.
    pub time: f64,
}

impl OnceValue {
    /// `Some(None)`: it has succeeded. `Some` of how often, and how the last attempt ended: it has failed.
    pub(super) fn settled(&self) -> Option<Option<(u32, String)>> {
        match self.state {
            OnceState::Done => Some(None),
            OnceState::Failed => Some(Some((self.attempts, self.last.clone().unwrap_or_default()))),
            OnceState::Open | OnceState::Running => None,
        }
    }

    pub(super) fn end_badly(&mut self, how: &str) {
        self.last = Some(how.to_owned());
        self.state = if self.attempts >= MOST_ATTEMPTS { OnceState::Failed } else { OnceState::Open };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_open_until_the_last_attempt() {
        let mut once = OnceValue::default();
        for attempt in 1..=MOST_ATTEMPTS {
            (once.attempts, once.state) = (attempt, OnceState::Running);
            once.end_badly("died");
            assert_eq!(once.settled().is_some(), attempt == MOST_ATTEMPTS);
        }
        assert_eq!(once.settled(), Some(Some((3, "died".to_owned()))));
    }
}
