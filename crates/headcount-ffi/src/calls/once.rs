//! What is done once in its scope.

use std::ffi::c_char;

use headcount_core::{Begun, ErrorKind, OnceScope};

use crate::border::codes::HEADCOUNT_OK;
use crate::border::entry::{Failure, Sized32, check_struct, entry, put, required, wait};
use crate::border::event::{count, nanos, signed};
use crate::border::words::HEADCOUNT_NONE;
use crate::handle::{self, Handle};

/// Once for each load of the configuration.
pub const HEADCOUNT_ONCE_GENERATION: u32 = 1;
/// Once until the node is stopped: over reloads and upgrades.
pub const HEADCOUNT_ONCE_NODE: u32 = 2;

/// It is for this process to do it now; then it calls `headcount_once_end`.
pub const HEADCOUNT_ONCE_RUN: u32 = 1;
/// It was done.
pub const HEADCOUNT_ONCE_DONE: u32 = 2;
/// Another process is at it.
pub const HEADCOUNT_ONCE_RUNNING: u32 = 3;
/// It was tried three times, in vain.
pub const HEADCOUNT_ONCE_FAILED: u32 = 4;

/// How it is with something that is to be done once. Set `struct_size` before each call that fills it in.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct OnceRecord {
    /// sizeof(headcount_once), set by the caller.
    pub struct_size: u32,
    /// HEADCOUNT_ONCE_RUN, HEADCOUNT_ONCE_DONE, HEADCOUNT_ONCE_RUNNING or HEADCOUNT_ONCE_FAILED.
    pub state: u32,
    /// HEADCOUNT_ONCE_RUN: which attempt this is, from 1. HEADCOUNT_ONCE_FAILED: how many there were.
    pub attempt: u32,
    /// HEADCOUNT_ONCE_RUN: how the attempt before ended, HEADCOUNT_CAUSE_*; HEADCOUNT_NONE if there was none.
    pub last_cause: i32,
    /// The signal that ended the process of that attempt; 0 if none, or not known.
    pub last_signal: i32,
    /// HEADCOUNT_ONCE_RUNNING: the process that is at it.
    pub pid: i32,
    /// The number of that worker; HEADCOUNT_NONE if it has none.
    pub worker_id: i32,
    /// 0.
    pub reserved: u32,
    /// For how many nanoseconds it has been at it.
    pub since_ns: u64,
}

// SAFETY: repr(C), integers only, and it begins with its size.
unsafe impl Sized32 for OnceRecord {
    const NAME: &'static str = "headcount_once";
}

fn scope(code: u32) -> Result<OnceScope, Failure> {
    OnceScope::from_code(code).ok_or_else(|| {
        let text = format!("argument `scope` is {code}; allowed are 1 (generation) and 2 (node)");
        Failure::new(ErrorKind::InvalidOption, text)
    })
}

/// Begins something that is to be done once in its scope: HEADCOUNT_ONCE_GENERATION or HEADCOUNT_ONCE_NODE. `once` says whether it is for
/// this process to do it: then do it, without any lock and for as long as it takes, and call `headcount_once_end`. Should the process end
/// before, or say that it failed, the next one that calls this gets it, three times at most.
///
/// HEADCOUNT_ERR_WRONG_STATE if this process is at it already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_once_begin(
    node: *mut Handle,
    scope_code: u32,
    key: *const c_char,
    wait_ms: i64,
    once: *mut OnceRecord,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL or a string, by the caller's word; and NULL, or writable for as long as this call.
        let key = unsafe {
            check_struct(once, "once")?;
            required(key, "key")?
        };
        let scope = scope(scope_code)?;
        let worker = handle.worker(0)?;
        let mut record = OnceRecord {
            struct_size: size_of::<OnceRecord>() as u32,
            state: HEADCOUNT_ONCE_DONE,
            attempt: 0,
            last_cause: HEADCOUNT_NONE,
            last_signal: 0,
            pid: 0,
            worker_id: HEADCOUNT_NONE,
            reserved: 0,
            since_ns: 0,
        };
        match worker.begin_once(scope, &key, wait(wait_ms)?)? {
            Begun::Done => {}
            Begun::Failed { attempts } => (record.state, record.attempt) = (HEADCOUNT_ONCE_FAILED, attempts),
            Begun::Running(who) => {
                record.state = HEADCOUNT_ONCE_RUNNING;
                (record.pid, record.worker_id) = (signed(who.pid), count(who.worker_id));
                record.since_ns = nanos(who.since);
            }
            Begun::Run(run) => {
                let attempt = run.attempt();
                record.state = HEADCOUNT_ONCE_RUN;
                record.attempt = attempt.number;
                record.last_cause = attempt.last.map_or(HEADCOUNT_NONE, |cause| signed(cause.code()));
                record.last_signal = attempt.signal.unwrap_or(0);
                handle.process().singletons.runs.push((scope, key, run));
            }
        }
        // SAFETY: checked above; writable by the caller's word.
        unsafe { put(once, "once", record) }?;
        Ok(HEADCOUNT_OK)
    })
}

/// Says how it went with what this process has begun by `headcount_once_begin`: it was `done` (1), or it failed (0).
/// HEADCOUNT_ERR_LOCK_TIMEOUT or HEADCOUNT_ERR_BUSY: another process holds the node lock, and it is to be said again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_once_end(
    node: *mut Handle,
    scope_code: u32,
    key: *const c_char,
    done: i32,
    wait_ms: i64,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL or a string, by the caller's word.
        let key = unsafe { required(key, "key") }?;
        let scope = scope(scope_code)?;
        let mut process = handle.process();
        let runs = &mut process.singletons.runs;
        let Some(at) = runs.iter().position(|(of, k, _)| (*of, k) == (scope, &key)) else {
            return Err(Failure::new(ErrorKind::WrongState, format!("this process has not begun {key}")));
        };
        let mut begun = runs.swap_remove(at);
        // Other threads have calls to make meanwhile.
        drop(process);
        match begun.2.finish(done != 0, wait(wait_ms)?) {
            Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::LockTimeout) => {
                handle.process().singletons.runs.push(begun);
                Err(error.into())
            }
            finished => Ok(finished.map(|()| HEADCOUNT_OK)?),
        }
    })
}
