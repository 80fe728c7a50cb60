//! The border to C: no panic crosses it, no pointer is used unchecked, every failure leaves a message.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use headcount_core::{Error, ErrorKind, Wait};

use crate::border::codes::Code;

/// Why a call fails: the code for programs, the message for people.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
}

/// What a call does: a code that is not negative, or a failure.
pub(crate) type Outcome = Result<i32, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { code: Code::Core(error.kind()), message: error.to_string() }
    }
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Failure {
        Failure { code: Code::Core(kind), message: message.into() }
    }

    pub(crate) fn io(action: &str, error: impl std::fmt::Display) -> Failure {
        Failure::new(ErrorKind::Io, format!("cannot {action}: {error}"))
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Runs the inside of an exported function.
pub(crate) fn entry(call: impl FnOnce() -> Outcome) -> i32 {
    let failure = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(code)) => return code,
        Ok(Err(failure)) => failure,
        Err(panic) => {
            Failure { code: Code::Panic, message: format!("a bug in headcount: {}", text_of(&*panic)) }
        }
    };
    let number = failure.code.number();
    remember(failure.message);
    number
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}

fn remember(message: String) {
    let mut bytes = message.into_bytes();
    bytes.retain(|&b| b != 0);
    // While a thread ends it has no place for a message any more; the code has to do.
    let _ = LAST_ERROR.try_with(|last| {
        if let (Ok(mut last), Ok(message)) = (last.try_borrow_mut(), CString::new(bytes)) {
            *last = message;
        }
    });
}

/// The message of the last call of this thread that returned a negative code; an empty string if there was
/// none. It lies in the library and stays until the next such call of the same thread. Never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn headcount_last_error() -> *const c_char {
    LAST_ERROR.try_with(|last| last.try_borrow().map_or(c"".as_ptr(), |m| m.as_ptr())).unwrap_or(c"".as_ptr())
}

/// A structure that begins with its own size, so that a caller of another version is found out.
///
/// # Safety
/// `repr(C)`, of plain integers and pointers only, and the first field is `struct_size: u32`.
pub(crate) unsafe trait Sized32: Copy {
    /// What C calls it.
    const NAME: &'static str;
}

/// Refuses a pointer that is NULL or not aligned for a `T`.
pub(crate) fn check_pointer<T>(pointer: *const T, what: &str) -> Result<(), Failure> {
    if pointer.is_null() || !pointer.is_aligned() {
        let fault = if pointer.is_null() { "NULL" } else { "not aligned" };
        return Err(Failure::new(ErrorKind::InvalidOption, format!("argument `{what}` is {fault}")));
    }
    Ok(())
}

/// Refuses a structure that is not there or of another version.
///
/// # Safety
/// `pointer` is NULL or points to at least the first four bytes of a `T`.
pub(crate) unsafe fn check_struct<T: Sized32>(pointer: *const T, what: &str) -> Result<(), Failure> {
    check_pointer(pointer, what)?;
    // SAFETY: not NULL and aligned, as just checked; readable by the caller's word.
    let size = unsafe { pointer.cast::<u32>().read() };
    if size as usize == size_of::<T>() {
        return Ok(());
    }
    Err(Failure {
        code: Code::AbiMismatch,
        message: format!(
            "argument `{what}` says that a {} has {size} bytes, this library's has {}: set struct_size, and compile \
             against the headcount.h of the installed library",
            T::NAME,
            size_of::<T>()
        ),
    })
}

/// Reads a structure that the caller filled in.
///
/// # Safety
/// `pointer` is NULL or points to a structure that says its true size.
pub(crate) unsafe fn read_struct<T: Sized32>(pointer: *const T, what: &str) -> Result<T, Failure> {
    // SAFETY: by the caller's word.
    unsafe { check_struct(pointer, what) }?;
    // SAFETY: not NULL, aligned, and of the size of a `T`; any bits are a valid `T`.
    Ok(unsafe { pointer.read() })
}

/// Gives a value to the caller.
///
/// # Safety
/// `pointer` is NULL or points to a writable `T`.
pub(crate) unsafe fn put<T: Copy>(pointer: *mut T, what: &str, value: T) -> Result<(), Failure> {
    check_pointer(pointer, what)?;
    // SAFETY: not NULL and aligned, as just checked; writable by the caller's word.
    unsafe { pointer.write(value) };
    Ok(())
}

/// Reads a string; `None` for NULL.
///
/// # Safety
/// `pointer` is NULL or points to a NUL-terminated string.
pub(crate) unsafe fn string(pointer: *const c_char, what: &str) -> Result<Option<String>, Failure> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: by the caller's word.
    let text = unsafe { CStr::from_ptr(pointer) };
    match text.to_str() {
        Ok(text) => Ok(Some(text.to_owned())),
        Err(_) => Err(Failure::new(ErrorKind::InvalidOption, format!("option `{what}` is not UTF-8"))),
    }
}

/// Copies a string into the caller's buffer, cut at a character's border where it does not fit, and always
/// NUL-terminated. A buffer of no size, or NULL, gets nothing.
///
/// # Safety
/// `buffer` is NULL or points to `capacity` writable bytes.
pub(crate) unsafe fn copy_string(text: &str, buffer: *mut c_char, capacity: u64) {
    let Some(room) =
        usize::try_from(capacity).ok().and_then(|c| c.checked_sub(1)).filter(|_| !buffer.is_null())
    else {
        return;
    };
    let mut end = text.len().min(room);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    // SAFETY: `end + 1 <= capacity` bytes of the buffer are written, and `end` bytes of the text are
    // read; the text is ours, so the two cannot overlap.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), buffer, end);
        buffer.add(end).write(0);
    }
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

    #[test]
    fn a_panic_becomes_a_code_and_a_message() {
        let code = entry(|| panic!("oh \0 dear"));
        assert_eq!(code, crate::border::codes::HEADCOUNT_ERR_PANIC);
        // SAFETY: the pointer is the library's own.
        let message = unsafe { CStr::from_ptr(headcount_last_error()) }.to_str().unwrap();
        assert_eq!(message, "a bug in headcount: oh  dear");
    }

    #[test]
    fn a_string_is_cut_between_characters() {
        let mut buffer = [1 as c_char; 6];
        // SAFETY: the buffer has the size that is said.
        unsafe { copy_string("aäöü", buffer.as_mut_ptr(), 5) };
        assert_eq!(buffer[..4].iter().map(|&c| c as u8).collect::<Vec<_>>(), b"a\xc3\xa4\0");
        assert_eq!(buffer[5], 1, "nothing is written behind the buffer's end");
        // SAFETY: nothing is written for a capacity of 0, or into NULL.
        unsafe {
            copy_string("x", buffer.as_mut_ptr(), 0);
            copy_string("x", std::ptr::null_mut(), 9);
        }
        assert_eq!(buffer[0] as u8, b'a');
    }
}
