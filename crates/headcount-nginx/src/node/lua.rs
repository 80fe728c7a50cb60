//! Lua in the same nginx: one engine, and one of the two in charge.
//!
//! `resty.headcount` finds this module's symbols, the same as libheadcount.so's, and asks here first. Where the directive
//! `headcount` is on, its settings hold, Lua is in charge of the processes' lives (its callbacks may do what only Lua's own
//! places allow), and we write our line on each event as it is handed to Lua.

use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::Mutex;

use headcount_core::Transition;
use headcount_ffi::OpenOptions;
use headcount_nginx_conf::Settings;
use ngx::ffi;

use crate::nginx::border::entry;
use crate::nginx::facts;
use crate::nginx::log::{self, Level, log};
use crate::nginx::mutex::relock;
use crate::node::state::state;
use crate::node::{loading, report};

/// The strings that the last answer points to. They stay until the next.
static STRINGS: Mutex<Option<(CString, Option<CString>)>> = Mutex::new(None);

/// Lua asks, with its options checked, before it opens a node. 1: the directive is on, and `options` says with what
/// settings; Lua is in charge. 0: Lua is on its own.
///
/// # Safety
/// `options` is NULL or points to a writable `headcount_options`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_nginx_attach(options: *mut OpenOptions) -> i32 {
    entry("Lua's init", 0, || {
        let asked = loading::with(|loading| {
            loading.is_asked_by_lua = true;
            loading.is_led_by_lua = loading.settings.is_some();
            loading.settings.clone()
        });
        // A VM for a single request, in a process that serves already.
        let settings =
            asked.unwrap_or_else(|| state().tracked.as_ref().map(|tracked| tracked.settings.clone()));
        let Some(settings) = settings else { return 0 };
        // ngx_lua has put the configuration that is being read into ngx_cycle's place meanwhile.
        if facts::is_first_start() || facts::is_first_configuration() && loading::with(|_| ()).is_some() {
            log::keep_for_sure();
        }
        headcount_ffi::listen(tell);
        // SAFETY: by the caller's word.
        match (answer(&settings), unsafe { options.as_mut() }) {
            (Some(answer), Some(options)) => {
                *options = answer;
                1
            }
            _ => 0,
        }
    })
}

fn answer(settings: &Settings) -> Option<OpenOptions> {
    let node = CString::new(settings.node.as_str()).ok()?;
    let path = match &settings.path {
        Some(path) => Some(CString::new(path.as_os_str().as_encoded_bytes()).ok()?),
        None => None,
    };
    let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let timings = settings.timings;
    let options = OpenOptions {
        struct_size: size_of::<OpenOptions>() as u32,
        slots: settings.slots.unwrap_or(0),
        singletons: settings.singletons.unwrap_or(0),
        journal_records: 0,
        takes_over_from: 0,
        reserved: 0,
        node: node.as_ptr(),
        path: path.as_ref().map_or(std::ptr::null::<c_char>(), |path| path.as_ptr()),
        heartbeat_interval_ms: ms(timings.heartbeat_interval),
        stall_after_ms: ms(timings.stall_after),
        lock_timeout_ms: ms(timings.lock_timeout),
    };
    *relock(&STRINGS) = Some((node, path));
    Some(options)
}

/// Lua's init may be yet to come: each of the two ngx_luas runs it once its shared dictionaries are there, after init_conf.
///
/// # Safety
/// The configuration has been read.
pub(crate) unsafe fn may_come_late(cycle: *mut ffi::ngx_cycle_t) -> bool {
    const LUAS: [&CStr; 2] = [c"ngx_http_lua_module", c"ngx_stream_lua_module"];
    // SAFETY: nginx's own lists: the modules end with a NULL, and each part of the zones says how many it has.
    unsafe {
        let is_lua = |module: *mut ffi::ngx_module_t| {
            !(*module).name.is_null() && LUAS.contains(&CStr::from_ptr((*module).name))
        };
        let modules = (0..).map(|i| *(*cycle).modules.add(i)).take_while(|module| !module.is_null());
        let luas: Vec<*mut c_void> =
            modules.filter(|&module| is_lua(module)).map(|module| module.cast()).collect();
        let mut part = &raw const (*cycle).shared_memory.part;
        while let Some(zones) = part.as_ref().filter(|_| !luas.is_empty()) {
            let first = zones.elts.cast::<ffi::ngx_shm_zone_t>();
            if (0..zones.nelts).any(|i| luas.contains(&(*first.add(i)).tag)) {
                return true;
            }
            part = zones.next;
        }
        false
    }
}

/// An event that is being handed to Lua.
fn tell(transition: &Transition) {
    let is_led_by_lua = loading::with(|loading| loading.is_led_by_lua)
        .unwrap_or_else(|| state().tracked.as_ref().is_some_and(|tracked| tracked.is_led_by_lua));
    if is_led_by_lua {
        report::tell(transition);
    }
}

/// An engine of its own that an earlier configuration's Lua has brought into this process. Two of them on one registry
/// would take each other's locks away.
pub(crate) fn has_own_engine() -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let has = maps.lines().any(|line| line.ends_with("/libheadcount.so"));
    if has {
        log(
            Level::Error,
            "this server is not tracked by the module: Lua has brought libheadcount.so into this process, before the \
             module was loaded; restart nginx, or upgrade it in place (USR2), and both use one",
        );
        facts::update_time();
    }
    has
}
