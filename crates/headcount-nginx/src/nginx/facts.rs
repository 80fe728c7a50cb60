//! What nginx tells of itself in its global variables. Each is read from nginx's only thread.

use std::ffi::CStr;
use std::time::Duration;

use ngx::ffi;

/// What this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Process {
    /// Also while the first configuration is read, whatever comes of it.
    Single,
    Master,
    /// `nginx -s`.
    Signaller,
    Worker,
    Helper,
}

pub(crate) fn process() -> Process {
    // SAFETY: a plain number.
    match unsafe { ffi::ngx_process } as u32 {
        ffi::NGX_PROCESS_MASTER => Process::Master,
        ffi::NGX_PROCESS_SIGNALLER => Process::Signaller,
        ffi::NGX_PROCESS_WORKER => Process::Worker,
        ffi::NGX_PROCESS_HELPER => Process::Helper,
        _ => Process::Single,
    }
}

/// `nginx -t`, and all that only looks at the configuration.
pub(crate) fn is_test() -> bool {
    // SAFETY: a plain number.
    unsafe { ffi::ngx_test_config != 0 }
}

/// No configuration is in force yet.
pub(crate) fn is_first_start() -> bool {
    // SAFETY: `ngx_cycle` points to a cycle from the beginning of main() to its end; the first one has no contents.
    unsafe { ffi::ngx_cycle.as_ref() }.is_none_or(|cycle| cycle.conf_ctx.is_null())
}

/// The one in force is the first, or takes the first one's place while it is being read.
pub(crate) fn is_first_configuration() -> bool {
    // SAFETY: as above; a cycle's predecessor lives in main(), or as long as itself.
    unsafe {
        let before = ffi::ngx_cycle.as_ref().and_then(|cycle| cycle.old_cycle.as_ref());
        before.is_some_and(|before| before.conf_ctx.is_null())
    }
}

/// A graceful shutdown has begun.
pub(crate) fn is_exiting() -> bool {
    // SAFETY: a plain number.
    unsafe { ffi::ngx_exiting != 0 }
}

/// Whether this process has a connection left.
pub(crate) fn has_free_connection() -> bool {
    // SAFETY: `ngx_cycle` points to a cycle from the beginning of main() to its end.
    unsafe { ffi::ngx_cycle.as_ref() }.is_some_and(|cycle| cycle.free_connection_n > 0)
}

/// The worker's number within its generation.
pub(crate) fn worker_number() -> Option<u32> {
    // SAFETY: a plain number.
    u32::try_from(unsafe { ffi::ngx_worker }).ok()
}

/// Has nginx look at the clock: for its log, after a call that may have waited.
pub(crate) fn update_time() {
    // SAFETY: nginx's own function, called from its only thread.
    unsafe { ffi::ngx_time_update() };
}

pub(crate) fn log_in_force() -> *mut ffi::ngx_log_t {
    // SAFETY: `ngx_cycle` points to a cycle from the beginning of main() to its end.
    unsafe { ffi::ngx_cycle.as_ref() }.map_or(std::ptr::null_mut(), |cycle| cycle.log)
}

/// The text of one of nginx's strings; bytes that are no text become marks.
///
/// # Safety
/// The string's bytes are there, as they are in any that nginx hands out.
pub(crate) unsafe fn text(string: &ffi::ngx_str_t) -> String {
    if string.data.is_null() {
        return String::new();
    }
    // SAFETY: by the caller's word.
    let bytes = unsafe { std::slice::from_raw_parts(string.data, string.len) };
    String::from_utf8_lossy(bytes).into_owned()
}

/// A time as nginx reads it: `500ms`, `1m 30s`.
pub(crate) fn time(text: &str) -> Option<Duration> {
    let mut line = ffi::ngx_str_t { len: text.len(), data: text.as_ptr().cast_mut() };
    // SAFETY: nginx's own function, which only reads the string.
    let ms = unsafe { ffi::ngx_parse_time(&raw mut line, 0) };
    u64::try_from(ms).ok().map(Duration::from_millis)
}

/// The arguments that nginx was started with, as it has kept them.
pub(crate) fn arguments() -> Vec<Vec<u8>> {
    // SAFETY: nginx's own copy of main()'s arguments, which ends with a NULL and is never changed.
    unsafe {
        let number = usize::try_from(ffi::ngx_argc).unwrap_or(0);
        let list = ffi::ngx_argv;
        if list.is_null() {
            return Vec::new();
        }
        (1..number)
            .map(|i| *list.add(i))
            .take_while(|argument| !argument.is_null())
            .map(|argument| CStr::from_ptr(argument).to_bytes().to_vec())
            .collect()
    }
}

/// How many workers this configuration asks for.
///
/// # Safety
/// The cycle's core module has been initialised.
pub(crate) unsafe fn worker_processes(cycle: *mut ffi::ngx_cycle_t) -> u32 {
    // SAFETY: the core module's own structure, at its place in the cycle.
    unsafe {
        let conf = *(*cycle).conf_ctx.add(ffi::ngx_core_module.index) as *const ffi::ngx_core_conf_t;
        let Some(conf) = conf.as_ref() else { return 0 };
        if conf.master == 0 { 1 } else { u32::try_from(conf.worker_processes).unwrap_or(0) }
    }
}

/// A child that has ended, as its master knew when it forked this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) pid: u32,
    pub(crate) status: i32,
    /// This process takes its place.
    pub(crate) is_predecessor: bool,
}

/// A worker's memory still holds what its master knew when it forked it: how the worker ended whose place it takes, and
/// others that had ended and were not replaced yet.
pub(crate) fn ended_children() -> Vec<Ended> {
    // SAFETY: plain numbers, and a table of which `ngx_last_process` entries are in use.
    let (slot, children) = unsafe {
        let most = ffi::NGX_MAX_PROCESSES as usize;
        let last = usize::try_from(ffi::ngx_last_process).unwrap_or(0).min(most);
        let all = (&raw const ffi::ngx_processes).cast::<ffi::ngx_process_t>();
        (usize::try_from(ffi::ngx_process_slot).unwrap_or(usize::MAX), std::slice::from_raw_parts(all, last))
    };
    let has_ended = |child: &ffi::ngx_process_t| child.pid > 0 && child.exited() != 0;
    // Who takes nobody's place is spared the rest: at a start with many workers it adds up.
    if !children.get(slot).is_some_and(has_ended) {
        return Vec::new();
    }
    let told = |(i, child): (usize, &ffi::ngx_process_t)| Ended {
        pid: child.pid.unsigned_abs(),
        status: child.status,
        is_predecessor: i == slot,
    };
    children.iter().enumerate().filter(|(_, child)| has_ended(child)).map(told).collect()
}
