//! What workers wrote of what only one of them does: who led, what was done once, who was inside a lock. Each wrote it itself, as
//! it did it, with one write for each line, and says when on CLOCK_BOOTTIME.

use serde::Deserialize;

/// The role that all stand for.
pub const ROLE: &str = "scheduler";
/// What is done once for the node, and once for each generation.
pub const ONCES: [&str; 2] = ["migration-7", "warm-up"];

/// One line.
#[derive(Clone, Debug)]
pub struct Deed {
    /// Who.
    pub pid: i32,
    /// When it was written, in nanoseconds.
    pub at: u64,
    /// What.
    pub what: What,
}

/// What somebody did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It stands for the role.
    Stands,
    /// It was told that it leads.
    Elected {
        /// The number of its tenure.
        token: u64,
    },
    /// It did what only the leader does: it looked whether it is the leader after `from` and before the line was written.
    Led {
        /// The number of its tenure.
        token: u64,
        /// When it began to look.
        from: u64,
    },
    /// It has stopped what it did as the leader.
    Stopped {
        /// The number of its tenure.
        token: u64,
    },
    /// It is at something that is to be done once.
    Begun {
        /// What.
        once: String,
        /// Which attempt this is.
        attempt: u32,
    },
    /// It has done it, and is about to say so.
    Finished {
        /// What.
        once: String,
        /// Which attempt this was.
        attempt: u32,
    },
    /// It has the lock.
    Entered {
        /// How often it was taken.
        token: u64,
        /// Who it was told has died inside.
        abandoned_by: Option<i32>,
    },
    /// It is about to release it.
    Left {
        /// As at the entry.
        token: u64,
    },
}

/// What a line says, by its fields.
fn what(name: &str, number: impl Fn(&str) -> Option<u64>, once: Option<String>) -> Option<What> {
    let token = number("token");
    let attempt = number("attempt").map(|n| n as u32);
    Some(match name {
        "stands" => What::Stands,
        "elected" => What::Elected { token: token? },
        "jobs" => What::Led { token: token?, from: number("from")? },
        "stopped" => What::Stopped { token: token? },
        "begun" => What::Begun { once: once?, attempt: attempt? },
        "finished" => What::Finished { once: once?, attempt: attempt? },
        "entered" => {
            let abandoned_by = number("abandoned_by").filter(|&pid| pid != 0).map(|pid| pid as i32);
            What::Entered { token: token?, abandoned_by }
        }
        "left" => What::Left { token: token? },
        _ => return None,
    })
}

/// Lines of the recorder.
pub fn recorded(text: &str) -> Vec<Deed> {
    #[derive(Deserialize)]
    struct Line {
        callback: String,
        runner: i32,
        at: f64,
        event: serde_json::Value,
    }
    let deed = |line: &str| {
        // Who is killed as it writes leaves half a line, and the next one writes behind it.
        let mut starts = line.match_indices("{\"").map(|(at, _)| &line[at..]);
        let line: Line = starts.find_map(|text| serde_json::from_str(text).ok())?;
        let number = |field: &str| line.event[field].as_f64().map(|n| n as u64);
        let once = line.event["once"].as_str().map(str::to_owned);
        let what = what(line.callback.strip_prefix("note:")?, number, once)?;
        Some(Deed { pid: line.runner, at: line.at as u64, what })
    };
    whole(text).lines().filter(|line| line.contains("note:")).filter_map(deed).collect()
}

/// Lines of the example server.
pub fn printed(text: &str) -> Vec<Deed> {
    let deed = |line: &str| {
        let (name, facts) = line.split_once(' ')?;
        let fact = |name: &str| facts.split(' ').find_map(|fact| fact.strip_prefix(name)?.strip_prefix('='));
        let number = |name: &str| fact(name)?.parse().ok();
        let what = what(name, number, fact("once").map(str::to_owned))?;
        Some(Deed { pid: fact("by")?.parse().ok()?, at: number("at")?, what })
    };
    whole(text).lines().filter_map(deed).collect()
}

/// Without a line that is being written.
fn whole(text: &str) -> &str {
    text.rfind('\n').map_or("", |end| &text[..end])
}
