//! The directive `headcount` as nginx hands it over. What it means is in crate headcount-nginx-conf.

use std::ffi::{c_char, c_void};

use headcount_nginx_conf::{Settings, Surroundings};
use ngx::ffi;

use crate::border::entry;
use crate::master::Begun;
use crate::{lua, nginx};

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
            return c"is duplicate: it may be given once".as_ptr().cast_mut();
        }
        if conf.is_asked_by_lua {
            complain(cf, "\"headcount\" must stand before the http block, whose Lua uses resty.headcount");
            return error();
        }
        // SAFETY: as above.
        match read_directive(&arguments, unsafe { &*(*cf).cycle }) {
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

fn read_directive(arguments: &[String], cycle: &ffi::ngx_cycle_t) -> Result<Option<Settings>, String> {
    // SAFETY: the cycle's own prefix.
    let prefix = unsafe { nginx::text(&cycle.prefix) };
    let folder = std::env::current_dir().unwrap_or_default();
    let surroundings = Surroundings {
        prefix: &prefix,
        arguments: &nginx::arguments(),
        folder: folder.as_os_str().as_encoded_bytes(),
        time: &nginx::time,
    };
    headcount_nginx_conf::read(arguments, &surroundings)
}

impl Drop for MainConf {
    fn drop(&mut self) {
        // A pool that is destroyed is that of the configuration in force before, or of one that has just failed.
        lua::loading_ends();
    }
}
