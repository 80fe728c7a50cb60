//! What the core's errors are at the border to C. The border itself is `headcount_border`.

use std::ffi::c_char;

use headcount_border as border;
pub(crate) use headcount_border::{
    Sized32, check_pointer, check_struct, copy_string, put, read_struct, required, string,
};
use headcount_core::{Error, ErrorKind, Wait};

use crate::border::codes::Code;

/// Why a call fails: the core's error, or the border's own.
#[derive(Debug)]
pub(crate) struct Failure(border::Failure);

/// What a call does: a code that is not negative, or a failure.
pub(crate) type Outcome = Result<i32, Failure>;

/// Runs the inside of an exported function.
pub(crate) fn entry(call: impl FnOnce() -> Outcome) -> i32 {
    border::entry(call)
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::new(error.kind(), error.to_string())
    }
}

impl From<border::Failure> for Failure {
    fn from(failure: border::Failure) -> Failure {
        Failure(failure)
    }
}

impl From<Failure> for border::Failure {
    fn from(failure: Failure) -> border::Failure {
        failure.0
    }
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Failure {
        Failure(border::Failure::new(Code::Core(kind).number(), message))
    }

    pub(crate) fn io(action: &str, error: impl std::fmt::Display) -> Failure {
        Failure::new(ErrorKind::Io, format!("cannot {action}: {error}"))
    }
}

/// The message of the last call of this thread that returned a negative code; an empty string if there was
/// none. It lies in the library and stays until the next such call of the same thread. Never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn headcount_last_error() -> *const c_char {
    border::last_error()
}

/// How long to wait for the node lock, in C's terms.
pub(crate) fn wait(milliseconds: i64) -> Result<Wait, Failure> {
    match u64::try_from(milliseconds) {
        Ok(0) => Ok(Wait::Try),
        Ok(n) => Ok(Wait::For(std::time::Duration::from_millis(n))),
        Err(_) if milliseconds == -1 => Ok(Wait::Timeout),
        Err(_) => Err(Failure::new(
            ErrorKind::InvalidOption,
            format!("`wait_ms` is {milliseconds}; allowed are 0 and more, and HEADCOUNT_WAIT_LOCK_TIMEOUT"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::border::codes::{
        HEADCOUNT_ERR_ABI_MISMATCH, HEADCOUNT_ERR_INVALID_OPTION, HEADCOUNT_ERR_PANIC,
    };

    #[test]
    fn the_border_has_the_codes_of_the_header() {
        assert_eq!(border::INVALID_OPTION, HEADCOUNT_ERR_INVALID_OPTION);
        assert_eq!((border::PANIC, border::ABI_MISMATCH), (HEADCOUNT_ERR_PANIC, HEADCOUNT_ERR_ABI_MISMATCH));
    }
}
