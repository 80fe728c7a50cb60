//! The arguments of the directive. What is allowed, and the defaults, the core says; here are their names in nginx.conf.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use headcount::{Allowed, Error, NodeSettings, Options};

use crate::name::default_node;

/// How a node is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The node's name.
    pub node: String,
    /// The registry's file, if one is given.
    pub path: Option<PathBuf>,
    /// The timings, given or not.
    pub timings: NodeSettings,
    /// The slots of a new registry, if given.
    pub slots: Option<u32>,
    /// How many roles, onces and locks a new registry has room for, if given.
    pub singletons: Option<u32>,
    /// The roles that each worker stands for.
    pub roles: Vec<String>,
}

impl Settings {
    /// The same for the core.
    pub fn options(&self) -> Options {
        let NodeSettings { heartbeat_interval, stall_after, lock_timeout, .. } = self.timings;
        let options = Options::new(&self.node)
            .heartbeat_interval(heartbeat_interval)
            .stall_after(stall_after)
            .lock_timeout(lock_timeout);
        let options = match self.slots {
            Some(slots) => options.slots(slots),
            None => options,
        };
        let options = match self.singletons {
            Some(singletons) => options.singletons(singletons),
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

/// The parameters by their names in nginx.conf and in the core.
const PARAMETERS: [(&str, &str); 7] = [
    ("path", "path"),
    ("heartbeat", "heartbeat_interval"),
    ("stall", "stall_after"),
    ("lock_timeout", "lock_timeout"),
    ("slots", "slots"),
    ("singletons", "singletons"),
    ("roles", "roles"),
];
const ALLOWED: &str = "on, off or the node's name, then path=, heartbeat=, stall=, lock_timeout=, slots=, singletons= and roles=";

/// How many roles a node can have.
const MOST_ROLES: usize = 64;
/// How long the name of one can be.
const LONGEST_ROLE: usize = 48;

/// Reads `headcount [on|off|NAME] [path=…] [heartbeat=1s] [stall=5s] [lock_timeout=30s] [slots=1024] [singletons=256] [roles=…];`, given
/// without its first word. `None` means off.
///
/// # Errors
/// A message for the operator: which parameter is wrong, and what is allowed.
pub fn read(arguments: &[String], nginx: &Surroundings) -> Result<Option<Settings>, String> {
    let (first, rest) = match arguments.split_first() {
        Some((first, rest)) if !first.contains('=') => (first.as_str(), rest),
        _ => ("on", arguments),
    };
    let mut given: HashMap<&str, &str> = HashMap::new();
    for argument in rest {
        let Some((name, value)) = argument.split_once('=') else {
            return Err(format!("headcount: parameter \"{argument}\" is not known; allowed are {ALLOWED}"));
        };
        if !PARAMETERS.iter().any(|(known, _)| *known == name) {
            return Err(format!("headcount: parameter \"{name}\" is not known; allowed are {ALLOWED}"));
        }
        if given.insert(name, value).is_some() {
            return Err(format!("headcount: parameter \"{name}\" is given twice"));
        }
    }
    // nginx's own flags may be written in any case. What is off is checked all the same: a switch hides no mistake.
    let is_off = first.eq_ignore_ascii_case("off");
    let node = if is_off || first.eq_ignore_ascii_case("on") {
        default_node(nginx.arguments, nginx.prefix.as_bytes(), nginx.folder)
    } else {
        first.to_owned()
    };

    let mut options = Options::new(&node);
    // Relative to nginx's prefix, as everywhere in nginx, and that to the folder it was started in.
    let base = Path::new(OsStr::from_bytes(nginx.folder)).join(nginx.prefix);
    let path = given.get("path").map(|path| base.join(path));
    if let Some(path) = &path {
        // As written: the core looks whether it means a folder.
        options = options.path(path);
    }
    // What nginx cannot read becomes a 0, which the core allows for none of them.
    let time = |name: &str| given.get(name).map(|text| (nginx.time)(text).unwrap_or_default());
    if let Some(time) = time("heartbeat") {
        options = options.heartbeat_interval(time);
    }
    if let Some(time) = time("stall") {
        options = options.stall_after(time);
    }
    if let Some(time) = time("lock_timeout") {
        options = options.lock_timeout(time);
    }
    let slots = given.get("slots").map(|text| text.parse().unwrap_or(0));
    if let Some(slots) = slots {
        options = options.slots(slots);
    }
    let singletons = given.get("singletons").map(|text| text.parse().unwrap_or(0));
    if let Some(singletons) = singletons {
        options = options.singletons(singletons);
    }
    let roles = given.get("roles").map_or_else(|| Ok(Vec::new()), |text| read_roles(text))?;
    let timings = options.check().map_err(|error| in_words_of_nginx(&error, &given))?;
    let path = path.map(std::path::absolute).transpose();
    let path = path.map_err(|error| format!("headcount: parameter \"path\": {error}"))?;
    Ok((!is_off).then_some(Settings { node, path, timings, slots, singletons, roles }))
}

/// `cron,reports`. Only names that a variable of nginx can have: it takes no `.` and no `-`, and makes capitals small.
fn read_roles(text: &str) -> Result<Vec<String>, String> {
    let mut roles: Vec<String> = Vec::new();
    for name in text.split(',') {
        let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !(1..=LONGEST_ROLE).contains(&name.len()) || !name.chars().all(is_allowed) {
            return Err(format!(
                "headcount: parameter \"roles\" is \"{text}\", with the role \"{name}\"; allowed are names of 1 to {LONGEST_ROLE} \
                 small letters, digits and \"_\", separated by commas"
            ));
        }
        if roles.iter().any(|role| role == name) {
            return Err(format!("headcount: parameter \"roles\" names the role \"{name}\" twice"));
        }
        roles.push(name.to_owned());
    }
    if roles.len() > MOST_ROLES {
        return Err(format!(
            "headcount: parameter \"roles\" names {} roles; allowed are {MOST_ROLES}",
            roles.len()
        ));
    }
    Ok(roles)
}

/// The core's complaint with the parameter's name, and its value as it stands in nginx.conf.
fn in_words_of_nginx(error: &Error, given: &HashMap<&str, &str>) -> String {
    let name_of = |option: &str| PARAMETERS.iter().find(|(_, core)| *core == option).map(|(name, _)| *name);
    let Some(wrong) = error.wrong_option() else { return format!("headcount: {error}") };
    let Some(name) = name_of(wrong.option) else {
        // The only option that is no parameter.
        return format!("headcount: the node's name is {}; allowed are {}", wrong.value, wrong.allowed)
            .replace('`', "\"");
    };
    // As it stands in nginx.conf; but two times that are compared in one unit.
    let value = match (&wrong.allowed, given.get(name)) {
        (Allowed::LongerThan { .. }, _) | (_, None) => wrong.value.clone(),
        (_, Some(text)) => format!("\"{text}\""),
    };
    let allowed = match &wrong.allowed {
        Allowed::Time { from, to } => {
            format!("a time from {} to {}", time_of_nginx(*from), time_of_nginx(*to))
        }
        Allowed::LongerThan { option, time } => {
            let other = name_of(option).unwrap_or(option);
            format!("more than \"{other}\", which is {}", time_of_nginx(*time))
        }
        Allowed::File => "the path of a file, not of a folder".to_owned(),
        allowed => allowed.to_string(),
    };
    format!("headcount: parameter \"{name}\" is {value}; allowed is {allowed}")
}

/// A time as nginx reads it: `1d`, `90s`, `500ms`.
fn time_of_nginx(time: Duration) -> String {
    const DAY: u64 = 86_400;
    match (time.as_secs(), time.subsec_millis()) {
        (s, 0) if s > 0 && s % DAY == 0 => format!("{}d", s / DAY),
        (s, 0) if s > 0 => format!("{s}s"),
        _ => format!("{}ms", time.as_millis()),
    }
}
