//! What crosses the border to C: codes, and times to wait.

use std::ffi::{CStr, c_char};
use std::time::Duration;

use headcount_border::{Failure, name_of};

/// The version of everything in this header. Compare it with `headcount_cluster_abi_version()` before anything else: they differ
/// when a program runs with another library than it was compiled for.
pub const HEADCOUNT_CLUSTER_ABI_VERSION: u32 = 1;

/// Done.
pub const HEADCOUNT_CLUSTER_OK: i32 = 0;
/// An event was given.
pub const HEADCOUNT_CLUSTER_EVENT: i32 = 1;

/// An option or argument has a value that is not allowed; the message names it and what is.
pub const HEADCOUNT_CLUSTER_ERR_INVALID_OPTION: i32 = -1;
/// The call does not fit what was called before; or another thread has closed this meanwhile.
pub const HEADCOUNT_CLUSTER_ERR_WRONG_STATE: i32 = -2;
/// It did not happen within the time that was given.
pub const HEADCOUNT_CLUSTER_ERR_TIMED_OUT: i32 = -3;
/// There is no such role, lock or message.
pub const HEADCOUNT_CLUSTER_ERR_NOT_FOUND: i32 = -4;
/// The agent does not answer or refuses, or etcd does not answer the agent; the message says which socket, why, and what to do.
pub const HEADCOUNT_CLUSTER_ERR_AWAY: i32 = -5;
/// What this process had is lost: another one may have it.
pub const HEADCOUNT_CLUSTER_ERR_LOST: i32 = -6;
/// This was opened by the process that has forked this one: open one here.
pub const HEADCOUNT_CLUSTER_ERR_FORKED: i32 = -7;
/// Any failure of the operating system.
pub const HEADCOUNT_CLUSTER_ERR_IO: i32 = -8;
/// A bug in headcount: please report it, with the message.
pub const HEADCOUNT_CLUSTER_ERR_PANIC: i32 = -100;
/// The caller's structure has another size than the library's: they are of different versions.
pub const HEADCOUNT_CLUSTER_ERR_ABI_MISMATCH: i32 = -101;

const NAMES: [(i32, &CStr); 12] = [
    (HEADCOUNT_CLUSTER_OK, c"ok"),
    (HEADCOUNT_CLUSTER_EVENT, c"event"),
    (HEADCOUNT_CLUSTER_ERR_INVALID_OPTION, c"invalid_option"),
    (HEADCOUNT_CLUSTER_ERR_WRONG_STATE, c"wrong_state"),
    (HEADCOUNT_CLUSTER_ERR_TIMED_OUT, c"timed_out"),
    (HEADCOUNT_CLUSTER_ERR_NOT_FOUND, c"not_found"),
    (HEADCOUNT_CLUSTER_ERR_AWAY, c"away"),
    (HEADCOUNT_CLUSTER_ERR_LOST, c"lost"),
    (HEADCOUNT_CLUSTER_ERR_FORKED, c"forked"),
    (HEADCOUNT_CLUSTER_ERR_IO, c"io"),
    (HEADCOUNT_CLUSTER_ERR_PANIC, c"panic"),
    (HEADCOUNT_CLUSTER_ERR_ABI_MISMATCH, c"abi_mismatch"),
];

/// The longest time to wait, in milliseconds: a day.
const LONGEST_WAIT: i64 = 86_400_000;

/// The ABI version of the library. Cannot fail.
#[unsafe(no_mangle)]
pub extern "C" fn headcount_cluster_abi_version() -> u32 {
    HEADCOUNT_CLUSTER_ABI_VERSION
}

/// The message of the last call of this thread that returned a negative code; an empty string if there was none. It lies in the
/// library and stays until the next such call of the same thread. Never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn headcount_cluster_last_error() -> *const c_char {
    headcount_border::last_error()
}

/// The name of a code: "away" for HEADCOUNT_CLUSTER_ERR_AWAY, "unknown" for none of ours. The string is the library's and stays for
/// ever. Never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn headcount_cluster_error_name(code: i32) -> *const c_char {
    name_of(&NAMES, code)
}

/// What a call does: a code that is not negative, or a failure.
pub(crate) type Outcome = Result<i32, Failure>;

/// A time to wait, in C's terms.
pub(crate) fn time(milliseconds: i64, what: &str) -> Result<Duration, Failure> {
    u64::try_from(milliseconds)
        .ok()
        .filter(|_| milliseconds <= LONGEST_WAIT)
        .map(Duration::from_millis)
        .ok_or_else(|| {
            Failure::invalid(format!("`{what}` is {milliseconds}; allowed are 0 to {LONGEST_WAIT}, a day"))
        })
}

pub(crate) fn wrong_state(message: impl Into<String>) -> Failure {
    Failure::new(HEADCOUNT_CLUSTER_ERR_WRONG_STATE, message)
}

pub(crate) fn not_found(message: impl Into<String>) -> Failure {
    Failure::new(HEADCOUNT_CLUSTER_ERR_NOT_FOUND, message)
}

pub(crate) fn lost(message: impl Into<String>) -> Failure {
    Failure::new(HEADCOUNT_CLUSTER_ERR_LOST, message)
}

/// `why` names the agent.
pub(crate) fn away(why: &str) -> Failure {
    let help = if why.contains("it refuses") {
        ""
    } else {
        ". Does `headcount agent` run on this host, and listen there? (systemctl status headcount-agent; the option `socket` names another one)"
    };
    Failure::new(HEADCOUNT_CLUSTER_ERR_AWAY, format!("{why}{help}"))
}

pub(crate) fn io(action: &str, error: impl std::fmt::Display) -> Failure {
    Failure::new(HEADCOUNT_CLUSTER_ERR_IO, format!("cannot {action}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_border_has_the_codes_of_the_header() {
        assert_eq!(headcount_border::INVALID_OPTION, HEADCOUNT_CLUSTER_ERR_INVALID_OPTION);
        assert_eq!(headcount_border::PANIC, HEADCOUNT_CLUSTER_ERR_PANIC);
        assert_eq!(headcount_border::ABI_MISMATCH, HEADCOUNT_CLUSTER_ERR_ABI_MISMATCH);
    }

    #[test]
    fn each_code_has_one_name() {
        let mut numbers: Vec<i32> = NAMES.iter().map(|(number, _)| *number).collect();
        let mut names: Vec<_> = NAMES.iter().map(|(_, name)| *name).collect();
        numbers.sort_unstable();
        numbers.dedup();
        names.sort_unstable();
        names.dedup();
        assert_eq!((numbers.len(), names.len()), (NAMES.len(), NAMES.len()));
    }

    #[test]
    fn times_are_bounded() {
        assert_eq!(time(1500, "wait_ms"), Ok(Duration::from_millis(1500)));
        assert!(time(0, "wait_ms").is_ok() && time(LONGEST_WAIT, "wait_ms").is_ok());
        for wrong in [-1, i64::MIN, LONGEST_WAIT + 1, i64::MAX] {
            assert!(time(wrong, "wait_ms").unwrap_err().message.starts_with("`wait_ms` is "), "{wrong}");
        }
    }
}
