//! What a process and the agent say to each other: one JSON document per line. docs/cluster.md's *session* is the reference.

use serde::{Deserialize, Serialize};

/// What the request for a session asks to be upgraded to.
pub const UPGRADE: &str = "headcount-session/1";
/// Where sessions begin.
pub const PATH: &str = "/cluster/session";
/// The longest line, in either direction, without its end.
pub const LONGEST_LINE: usize = 4096;
/// The longest name of a role, a once or a lock.
pub const LONGEST_NAME: usize = 48;

/// Whether a role, a once or a lock may be called so.
#[must_use]
pub fn is_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// What a name may be, for messages.
pub const NAME: &str = "1 to 48 letters, digits, `.`, `_` and `-`";

/// What a process asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// To lead this role, now or later.
    Stand {
        /// Which.
        role: String,
    },
    /// Not to lead it, now or later. What the leader does has ended.
    Leave {
        /// Which.
        role: String,
    },
    /// To have this lock.
    Lock {
        /// How the answer names it.
        id: u64,
        /// Which.
        name: String,
        /// So long it is waited for, in milliseconds; for ever, if this is not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout: Option<u64>,
    },
    /// To let go of a lock, or not to wait for it any more.
    Unlock {
        /// That of the request for it.
        id: u64,
    },
    /// To run what is to be run once, or to hear that it was.
    Once {
        /// Which.
        key: String,
    },
    /// How the attempt has ended.
    End {
        /// Which.
        key: String,
        /// That of the attempt. What is said of another one than the last is not heard.
        token: u64,
        /// Whether it succeeded.
        ok: bool,
        /// It did not, since its deadline has passed meanwhile: the next attempt is told `stalled`.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        late: bool,
    },
    /// The last deadline was read. Whoever does not say so loses what it has at its deadline.
    Ack,
}

/// What the agent says. A deadline is in milliseconds of this machine's `CLOCK_BOOTTIME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum Message {
    /// The first line.
    Welcome {
        /// The version of what follows.
        version: u32,
        /// The cluster.
        cluster: String,
        /// This host's name in it.
        host: String,
        /// So long after the last sign of life others take over, in milliseconds.
        ttl: u64,
        /// So long before that all is lost here, in milliseconds.
        margin: u64,
        /// The agent's clock: that of a process in another time namespace differs.
        now: u64,
    },
    /// This process leads the role.
    Elected {
        /// Which.
        role: String,
        /// The number of the tenure. It only grows.
        token: u64,
        /// Until then it does, unless a later one comes.
        deadline: u64,
    },
    /// The agent ends: what leads is to stop, and then to say that it leaves.
    GiveUp {
        /// Which.
        role: String,
    },
    /// The role is lost. This process still stands for it.
    Lost {
        /// Which.
        role: String,
        /// Why, for people.
        why: String,
    },
    /// This process does not stand for the role any more.
    Left {
        /// Which.
        role: String,
    },
    /// This process has the lock.
    Locked {
        /// That of the request.
        id: u64,
        /// Which.
        name: String,
        /// It only grows from holder to holder.
        token: u64,
        /// As that of a role.
        deadline: u64,
    },
    /// The lock could not be had.
    NotLocked {
        /// That of the request.
        id: u64,
        /// Which.
        name: String,
        /// Why, for people.
        why: String,
    },
    /// The lock is lost.
    LockLost {
        /// That of the request.
        id: u64,
        /// Which.
        name: String,
        /// Why, for people.
        why: String,
    },
    /// This process has the lock no more, as it wished.
    Unlocked {
        /// That of the request.
        id: u64,
    },
    /// This process is to run it, and to say how it ended.
    Run {
        /// Which.
        key: String,
        /// Its number, from 1 on.
        attempt: u32,
        /// How the attempt before ended: `failed`, `died`, `lost`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        last: Option<String>,
        /// As that of a role.
        token: u64,
        /// As that of a role.
        deadline: u64,
    },
    /// Another process runs it: this one waits for its turn. Said again when more is known, or another one runs it.
    Running {
        /// Which.
        key: String,
        /// The host of the process that runs it.
        host: String,
        /// That process; not known before it has written itself down, and never if the agent of its host cannot see it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
        /// What it is called.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        process: Option<String>,
        /// Since when, in milliseconds since 1970, by the clock of its host.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<u64>,
    },
    /// The attempt is not this process's any more: another may begin one.
    RunLost {
        /// Which.
        key: String,
        /// Why, for people.
        why: String,
    },
    /// It has succeeded.
    Done {
        /// Which.
        key: String,
    },
    /// It has failed too often.
    Failed {
        /// Which.
        key: String,
        /// How often.
        attempts: u32,
        /// How the last one ended.
        last: String,
    },
    /// All that this process has is its own until then.
    Renewed {
        /// When it is not, unless a later one comes.
        deadline: u64,
    },
    /// etcd does not answer: nothing can be got until it does. What is had stays until its deadline.
    Away {
        /// Why, for people.
        why: String,
    },
    /// It answers again.
    Back,
    /// A request that cannot be met.
    Error {
        /// What is wrong, and what is allowed.
        error: String,
    },
}

/// Texts are for people, and come from anywhere: a name, an error, what another host has written. So long may each be, in bytes: written as
/// JSON, no byte takes more than six.
const LONGEST_TEXT: usize = 512;

/// The text with its control characters written out: nothing in it is obeyed by a terminal, or begins a line of a log.
#[must_use]
pub fn plain(text: &str) -> String {
    let mut clean = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if c.is_control() { clean.extend(c.escape_unicode()) } else { clean.push(c) }
    }
    clean
}

impl Message {
    /// Makes its texts fit into a line, and fit for whoever logs or shows them: there may be the name of somebody's process in them.
    pub fn clean(&mut self) {
        match self {
            Message::Lost { why, .. }
            | Message::NotLocked { why, .. }
            | Message::LockLost { why, .. }
            | Message::RunLost { why, .. }
            | Message::Away { why } => clean(why),
            Message::Failed { last, .. } => clean(last),
            Message::Run { last: Some(last), .. } => clean(last),
            Message::Running { host, process, .. } => {
                clean(host);
                process.iter_mut().for_each(clean);
            }
            Message::Error { error } => clean(error),
            _ => {}
        }
    }
}

fn clean(text: &mut String) {
    if text.contains(char::is_control) {
        *text = plain(text);
    }
    if text.len() > LONGEST_TEXT {
        let end = (0..=LONGEST_TEXT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_documented() {
        let line =
            serde_json::to_string(&Request::Lock { id: 7, name: "x".into(), timeout: Some(5000) }).unwrap();
        assert_eq!(line, r#"{"do":"lock","id":7,"name":"x","timeout":5000}"#);
        let message: Message =
            serde_json::from_str(r#"{"say":"elected","role":"cron","token":7,"deadline":9,"more":[]}"#)
                .unwrap();
        assert_eq!(message, Message::Elected { role: "cron".into(), token: 7, deadline: 9 });
        assert_eq!(serde_json::to_string(&Request::Ack).unwrap(), r#"{"do":"ack"}"#);
    }

    #[test]
    fn names() {
        assert!(is_name("cron.daily_1-x") && is_name(&"x".repeat(48)));
        for wrong in ["", "a b", "a/b", "ä", "@x", &"x".repeat(49)] {
            assert!(!is_name(wrong), "{wrong:?}");
        }
    }
}
