//! The directive `headcount` as nginx hands it over. What it means is in crate headcount-nginx-conf.

use std::ffi::{c_char, c_void};

use headcount_nginx_conf::{Settings, Surroundings};
use ngx::ffi;

use crate::nginx::border::entry;
use crate::nginx::facts;
use crate::nginx::log::{self, complain, conf_error};
use crate::node::loading;
use crate::node::master::Begun;

/// The module's part of a configuration. Dropped with the pool of its cycle.
#[derive(Default)]
pub(crate) struct MainConf {
    is_set: bool,
    pub(crate) begun: Option<Begun>,
    /// Who is in charge is known only when the configuration is in force.
    pub(crate) begins_late: bool,
}

/// `headcount [on|off|NAME] [path=…] [heartbeat=1s] [stall=5s] [lock_timeout=30s] [slots=1024] [singletons=256] [roles=NAME,…];`
pub(crate) unsafe extern "C" fn set(
    cf: *mut ffi::ngx_conf_t,
    _: *mut ffi::ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    entry("headcount directive", conf_error(), || {
        // SAFETY: nginx calls us with its own context, whose arguments are an array of strings, and with what
        // create_conf has made.
        let (conf, arguments) = unsafe {
            let Some(conf) = conf.cast::<MainConf>().as_mut() else { return conf_error() };
            let arguments: Vec<String> =
                (*(*cf).args).as_slice::<ffi::ngx_str_t>().iter().skip(1).map(|a| facts::text(a)).collect();
            (conf, arguments)
        };
        if std::mem::replace(&mut conf.is_set, true) {
            return c"is duplicate: it may be given once".as_ptr().cast_mut();
        }
        if loading::so_far().is_asked_by_lua {
            complain(cf, "\"headcount\" must stand before the http block, whose Lua uses resty.headcount");
            return conf_error();
        }
        // SAFETY: as above.
        match read_directive(&arguments, unsafe { &*(*cf).cycle }) {
            Ok(settings) => {
                loading::with(|loading| loading.settings = settings);
                std::ptr::null_mut()
            }
            Err(message) => {
                complain(cf, &message);
                conf_error()
            }
        }
    })
}

fn read_directive(arguments: &[String], cycle: &ffi::ngx_cycle_t) -> Result<Option<Settings>, String> {
    // SAFETY: the cycle's own prefix.
    let prefix = unsafe { facts::text(&cycle.prefix) };
    let folder = std::env::current_dir().unwrap_or_default();
    let surroundings = Surroundings {
        prefix: &prefix,
        arguments: &facts::arguments(),
        folder: folder.as_os_str().as_encoded_bytes(),
        time: &facts::time,
    };
    headcount_nginx_conf::read(arguments, &surroundings)
}

impl Drop for MainConf {
    fn drop(&mut self) {
        // A pool that is destroyed is that of the configuration in force before, or of one that has just failed.
        loading::ends();
        // What was said meanwhile is in no log yet, if it has failed. Lua's part of it has ended before this one.
        entry("the end of a configuration", (), || log::release(facts::log_in_force()));
    }
}
