//! Lines for error.log, and complaints about a configuration.

use std::ffi::c_char;
use std::sync::Mutex;

use ngx::ffi;

use crate::nginx::facts;
use crate::nginx::mutex::relock;

/// nginx's levels, as far as they are used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Error,
    Warn,
    Notice,
}

/// What is said while nginx reads its first configuration: no error_log is open yet.
static EARLY: Mutex<Option<Vec<(Level, String)>>> = Mutex::new(None);

/// Keeps what is said from now on, until [`release`], if no error_log is open yet. Errors go to the terminal at once, too,
/// as nginx's own do.
pub(crate) fn keep() {
    if facts::is_first_start() {
        keep_for_sure();
    }
}

pub(crate) fn keep_for_sure() {
    relock(&EARLY).get_or_insert_default();
}

/// Writes what was kept to this log.
pub(crate) fn release(log: *mut ffi::ngx_log_t) {
    let kept = relock(&EARLY).take();
    for (level, text) in kept.unwrap_or_default() {
        write(log, level, &text);
    }
}

/// Writes a line to the log of the configuration in force.
pub(crate) fn log(level: Level, text: &str) {
    if let Some(kept) = relock(&EARLY).as_mut() {
        kept.push((level, text.to_owned()));
        if level == Level::Error {
            tell_terminal(text);
        }
        return;
    }
    write(facts::log_in_force(), level, text);
}

fn tell_terminal(text: &str) {
    // SAFETY: nginx's own function, and a text with its length.
    unsafe { ffi::ngx_log_stderr(0, c"[headcount] %*s".as_ptr(), text.len(), text.as_ptr()) };
}

fn write(log: *mut ffi::ngx_log_t, level: Level, text: &str) {
    let number = match level {
        Level::Error => ffi::NGX_LOG_ERR,
        Level::Warn => ffi::NGX_LOG_WARN,
        Level::Notice => ffi::NGX_LOG_NOTICE,
    } as ffi::ngx_uint_t;
    let line = format!("[headcount] {text}");
    // SAFETY: a log of nginx's is valid as long as its cycle, and callers give that of a living one.
    unsafe {
        if !log.is_null() && number <= (*log).log_level {
            ffi::ngx_log_error_core(number, log, 0, c"%*s".as_ptr(), line.len(), line.as_ptr());
        }
    }
}

/// nginx's NGX_CONF_ERROR: what a directive answers after [`complain`].
pub(crate) fn conf_error() -> *mut c_char {
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

/// The same for what is found when the whole of it has been read.
pub(crate) fn refuse(cycle: *mut ffi::ngx_cycle_t, message: &str) {
    // SAFETY: nginx's own cycle, whose log is there while it is read, and a text with its length.
    unsafe {
        ffi::ngx_log_error_core(
            ffi::NGX_LOG_EMERG as ffi::ngx_uint_t,
            (*cycle).log,
            0,
            c"%*s".as_ptr(),
            message.len(),
            message.as_ptr(),
        );
    }
}
