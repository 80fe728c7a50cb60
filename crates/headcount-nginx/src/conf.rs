//! The directive `headcount`: what is allowed, and what is meant where nothing is said.

use std::ffi::{c_char, c_void};
use std::path::PathBuf;
use std::time::Duration;

use headcount_core::Options;
use ngx::ffi;

use crate::border::entry;
use crate::master::Begun;
use crate::{lua, name, nginx};

/// How a node is opened.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) node: String,
    pub(crate) path: Option<PathBuf>,
    pub(crate) heartbeat: Duration,
    pub(crate) stall: Duration,
    pub(crate) lock_timeout: Duration,
    pub(crate) slots: Option<u32>,
}

impl Settings {
    pub(crate) fn options(&self) -> Options {
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

/// The module's part of a configuration. Dropped with the pool of its cycle.
#[derive(Default)]
pub(crate) struct MainConf {
    is_set: bool,
    pub(crate) settings: Option<Settings>,
    pub(crate) begun: Option<Begun>,
    /// Lua's init has asked whether the directive is on.
    pub(crate) is_asked_by_lua: bool,
    pub(crate) is_led_by_lua: bool,
    /// Who is in charge is known only when the configuration is in force.
    pub(crate) begins_late: bool,
}

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);
const ALLOWED: &str = "on, off or the node's name, then path=, heartbeat=, stall=, lock_timeout= and slots=";

/// `headcount [on|off|NAME] [path=…] [heartbeat=1s] [stall=5s] [lock_timeout=30s] [slots=1024];`
pub(crate) unsafe extern "C" fn set(
    cf: *mut ffi::ngx_conf_t,
    _: *mut ffi::ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    entry("headcount directive", error(), || {
        // SAFETY: nginx calls us with its own context, whose arguments are an array of strings, and with what
        // create_conf has made.
        let (conf, arguments) = unsafe {
            let Some(conf) = conf.cast::<MainConf>().as_mut() else { return error() };
            let arguments: Vec<String> =
                (*(*cf).args).as_slice::<ffi::ngx_str_t>().iter().skip(1).map(|a| nginx::text(a)).collect();
            (conf, arguments)
        };
        if std::mem::replace(&mut conf.is_set, true) {
            return c"is duplicate: allowed is once".as_ptr().cast_mut();
        }
        if conf.is_asked_by_lua {
            complain(cf, "\"headcount\" must stand before the http block, whose Lua uses resty.headcount");
            return error();
        }
        // SAFETY: as above.
        match read(&arguments, unsafe { &mut *(*cf).cycle }) {
            Ok(settings) => {
                conf.settings = settings;
                std::ptr::null_mut()
            }
            Err(message) => {
                complain(cf, &message);
                error()
            }
        }
    })
}

/// nginx's NGX_CONF_ERROR.
pub(crate) fn error() -> *mut c_char {
    std::ptr::without_provenance_mut(usize::MAX)
}

/// An ordinary configuration error, with nginx's own words on file and line.
pub(crate) fn complain(cf: *mut ffi::ngx_conf_t, message: &str) {
    // SAFETY: nginx's own context, and a text with its length.
    unsafe {
        ffi::ngx_conf_log_error(
            ffi::NGX_LOG_EMERG as ffi::ngx_uint_t,
            cf,
            0,
            c"%*s".as_ptr(),
            message.len(),
            message.as_ptr(),
        );
    }
}

fn read(arguments: &[String], cycle: &mut ffi::ngx_cycle_t) -> Result<Option<Settings>, String> {
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
            "path" => path.replace(read_path(value, cycle)?).is_none(),
            "heartbeat" => heartbeat.replace(read_time(name, value)?).is_none(),
            "stall" => stall.replace(read_time(name, value)?).is_none(),
            "lock_timeout" => lock_timeout.replace(read_time(name, value)?).is_none(),
            "slots" => slots.replace(read_slots(value)?).is_none(),
            _ => return Err(format!("headcount: parameter \"{name}\" is not known; allowed are {ALLOWED}")),
        };
        if !is_new {
            return Err(format!("headcount: parameter \"{name}\" is given twice; allowed is once"));
        }
    }
    let heartbeat = heartbeat.unwrap_or(SECOND);
    let stall = stall.unwrap_or_else(|| (5 * heartbeat).clamp(5 * SECOND, DAY));
    if stall <= heartbeat {
        return Err(format!(
            "headcount: parameter \"stall\" is {stall:?}; allowed is more than \"heartbeat\", which is {heartbeat:?}"
        ));
    }
    let node = match first {
        "off" => return Ok(None),
        "on" => default_name(cycle),
        name => read_name(name)?,
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

fn read_time(name: &str, value: &str) -> Result<Duration, String> {
    let mut line = ffi::ngx_str_t { len: value.len(), data: value.as_ptr().cast_mut() };
    // SAFETY: nginx's own function, which only reads the string.
    let ms = unsafe { ffi::ngx_parse_time(&raw mut line, 0) };
    match u64::try_from(ms).map(Duration::from_millis) {
        Ok(time) if !time.is_zero() && time <= DAY => Ok(time),
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
fn read_path(value: &str, cycle: &mut ffi::ngx_cycle_t) -> Result<PathBuf, String> {
    if value.is_empty() || value.ends_with('/') {
        return Err(format!("headcount: parameter \"path\" is \"{value}\"; allowed is the path of a file"));
    }
    // SAFETY: the cycle's own prefix.
    let prefix = unsafe { nginx::text(&cycle.prefix) };
    let path = std::path::absolute(PathBuf::from(prefix).join(value));
    path.map_err(|error| format!("headcount: parameter \"path\" is \"{value}\": {error}"))
}

fn default_name(cycle: &ffi::ngx_cycle_t) -> String {
    // SAFETY: the cycle's own prefix.
    let prefix = unsafe { nginx::text(&cycle.prefix) };
    let folder = std::env::current_dir().unwrap_or_default();
    name::default_node(&nginx::arguments(), prefix.as_bytes(), folder.as_os_str().as_encoded_bytes())
}

impl Drop for MainConf {
    fn drop(&mut self) {
        // A pool that is destroyed is that of the configuration in force before, or of one that has just failed.
        lua::loading_ends();
    }
}
