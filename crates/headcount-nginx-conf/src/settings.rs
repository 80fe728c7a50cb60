//! The arguments of the directive: what is allowed, and the defaults.

use std::path::{Path, PathBuf};
use std::time::Duration;

use headcount::Options;

use crate::name::default_node;

/// How a node is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The node's name.
    pub node: String,
    /// The registry's file, if one is given.
    pub path: Option<PathBuf>,
    /// The time between two heartbeats.
    pub heartbeat: Duration,
    /// A worker that has not beaten for this long is stalled.
    pub stall: Duration,
    /// How long to wait for the node lock.
    pub lock_timeout: Duration,
    /// The slots of a new registry, if given.
    pub slots: Option<u32>,
}

impl Settings {
    /// The same for the core.
    pub fn options(&self) -> Options {
        let options = Options::new(&self.node)
            .heartbeat_interval(self.heartbeat)
            .stall_after(self.stall)
            .lock_timeout(self.lock_timeout);
        let options = match self.slots {
            Some(slots) => options.slots(slots),
            None => options,
        };
        match &self.path {
            Some(path) => options.path(path),
            None => options,
        }
    }
}

/// The nginx that reads the directive.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// Its prefix: what relative paths begin at.
    pub prefix: &'a str,
    /// Its command line, without the program.
    pub arguments: &'a [Vec<u8>],
    /// The folder that it was started in.
    pub folder: &'a [u8],
    /// Its own reading of a time such as `1m 30s`.
    pub time: &'a dyn Fn(&str) -> Option<Duration>,
}

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);
const ALLOWED: &str = "on, off or the node's name, then path=, heartbeat=, stall=, lock_timeout= and slots=";

/// Reads `headcount [on|off|NAME] [path=…] [heartbeat=1s] [stall=5s] [lock_timeout=30s] [slots=1024];`, given without its
/// first word. `None` means off.
///
/// # Errors
/// A message for the operator: which parameter is wrong, and what is allowed.
pub fn read(arguments: &[String], nginx: &Surroundings) -> Result<Option<Settings>, String> {
    let (first, rest) = match arguments.split_first() {
        Some((first, rest)) if !first.contains('=') => (first.as_str(), rest),
        _ => ("on", arguments),
    };
    let (mut path, mut heartbeat, mut stall, mut lock_timeout, mut slots) = (None, None, None, None, None);
    for argument in rest {
        let Some((name, value)) = argument.split_once('=') else {
            return Err(format!("headcount: parameter \"{argument}\" is not known; allowed are {ALLOWED}"));
        };
        let is_new = match name {
            "path" => path.replace(read_path(value, nginx)?).is_none(),
            "heartbeat" => heartbeat.replace(read_time(name, value, nginx)?).is_none(),
            "stall" => stall.replace(read_time(name, value, nginx)?).is_none(),
            "lock_timeout" => lock_timeout.replace(read_time(name, value, nginx)?).is_none(),
            "slots" => slots.replace(read_slots(value)?).is_none(),
            _ => return Err(format!("headcount: parameter \"{name}\" is not known; allowed are {ALLOWED}")),
        };
        if !is_new {
            return Err(format!("headcount: parameter \"{name}\" is given twice"));
        }
    }
    let heartbeat = heartbeat.unwrap_or(SECOND);
    let stall = stall.unwrap_or_else(|| (5 * heartbeat).clamp(5 * SECOND, DAY));
    if stall <= heartbeat {
        return Err(format!(
            "headcount: parameter \"stall\" is {stall:?}; allowed is more than \"heartbeat\", which is {heartbeat:?}"
        ));
    }
    // nginx's own flags may be written in any case.
    let node = if first.eq_ignore_ascii_case("off") {
        return Ok(None);
    } else if first.eq_ignore_ascii_case("on") {
        default_node(nginx.arguments, nginx.prefix.as_bytes(), nginx.folder)
    } else {
        read_name(first)?
    };
    let lock_timeout = lock_timeout.unwrap_or(30 * SECOND);
    Ok(Some(Settings { node, path, heartbeat, stall, lock_timeout, slots }))
}

fn read_name(name: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > 48 || name.starts_with('.') || !name.bytes().all(allowed) {
        return Err(format!(
            "headcount: the node's name is \"{name}\"; allowed are 1 to 48 letters, digits, \".\", \"_\" and \"-\", \
             not beginning with \".\""
        ));
    }
    Ok(name.to_owned())
}

fn read_time(name: &str, value: &str, nginx: &Surroundings) -> Result<Duration, String> {
    match (nginx.time)(value) {
        Some(time) if !time.is_zero() && time <= DAY => Ok(time),
        _ => Err(format!("headcount: parameter \"{name}\" is \"{value}\"; allowed is a time from 1ms to 1d")),
    }
}

fn read_slots(value: &str) -> Result<u32, String> {
    match value.parse() {
        Ok(slots) if (2..=65_536).contains(&slots) => Ok(slots),
        _ => Err(format!(
            "headcount: parameter \"slots\" is \"{value}\"; allowed is a whole number from 2 to 65536"
        )),
    }
}

/// Relative to nginx's prefix, as everywhere in nginx.
fn read_path(value: &str, nginx: &Surroundings) -> Result<PathBuf, String> {
    let names_a_folder = matches!(value.rsplit('/').next(), None | Some("" | "." | ".."));
    let path = std::path::absolute(Path::new(nginx.prefix).join(value))
        .map_err(|error| format!("headcount: parameter \"path\" is \"{value}\": {error}"))?;
    if names_a_folder || path.is_dir() {
        return Err(format!(
            "headcount: parameter \"path\" is \"{value}\"; allowed is the path of a file, not of a folder"
        ));
    }
    Ok(path)
}
