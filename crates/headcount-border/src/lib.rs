//! The border to C, for each of headcount's C libraries: no panic crosses it, no pointer is used unchecked, every failure leaves a
//! message. It knows neither a node nor a cluster, and depends on nothing.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// An option or argument has a value that is not allowed.
pub const INVALID_OPTION: i32 = -1;
/// A bug in headcount.
pub const PANIC: i32 = -100;
/// The caller's structure has another size than the library's.
pub const ABI_MISMATCH: i32 = -101;

/// Why a call fails: the code for programs, which is negative, and the message for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the call returns.
    pub code: i32,
    /// What [`last_error`] gives.
    pub message: String,
}

impl Failure {
    /// With a code of the library's own.
    pub fn new(code: i32, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }

    /// The caller's fault.
    pub fn invalid(message: impl Into<String>) -> Failure {
        Failure::new(INVALID_OPTION, message)
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Runs the inside of an exported function: a code that is not negative, or a failure.
pub fn entry<E: Into<Failure>>(call: impl FnOnce() -> Result<i32, E>) -> i32 {
    let failure = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(code)) => return code,
        Ok(Err(failure)) => failure.into(),
        Err(panic) => Failure::new(PANIC, format!("a bug in headcount: {}", text_of(&*panic))),
    };
    remember(failure.message);
    failure.code
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

/// The message of the last call of this thread that failed, or an empty string. It stays until the next such call.
#[must_use]
pub fn last_error() -> *const c_char {
    LAST_ERROR.try_with(|last| last.try_borrow().map_or(c"".as_ptr(), |m| m.as_ptr())).unwrap_or(c"".as_ptr())
}

/// A structure that begins with its own size, so that a caller of another version is found out.
///
/// # Safety
/// `repr(C)`, of plain integers and pointers only, and the first field is `struct_size: u32`.
pub unsafe trait Sized32: Copy {
    /// What C calls it.
    const NAME: &'static str;
}

/// Refuses a pointer that is NULL or not aligned for a `T`.
///
/// # Errors
/// It is one of these.
pub fn check_pointer<T>(pointer: *const T, what: &str) -> Result<(), Failure> {
    if pointer.is_null() || !pointer.is_aligned() {
        let fault = if pointer.is_null() { "NULL" } else { "not aligned" };
        return Err(Failure::invalid(format!("argument `{what}` is {fault}")));
    }
    Ok(())
}

/// Refuses a structure that is not there or of another version.
///
/// # Safety
/// `pointer` is NULL or points to at least the first four bytes of a `T`.
///
/// # Errors
/// It is refused.
pub unsafe fn check_struct<T: Sized32>(pointer: *const T, what: &str) -> Result<(), Failure> {
    check_pointer(pointer, what)?;
    // SAFETY: not NULL and aligned, as just checked; readable by the caller's word.
    let size = unsafe { pointer.cast::<u32>().read() };
    if size as usize == size_of::<T>() {
        return Ok(());
    }
    Err(Failure::new(
        ABI_MISMATCH,
        format!(
            "argument `{what}` says that a {} has {size} bytes, this library's has {}: set struct_size, and compile \
             against the header of the installed library",
            T::NAME,
            size_of::<T>()
        ),
    ))
}

/// Reads a structure that the caller filled in.
///
/// # Safety
/// `pointer` is NULL or points to a structure that says its true size.
///
/// # Errors
/// It is refused.
pub unsafe fn read_struct<T: Sized32>(pointer: *const T, what: &str) -> Result<T, Failure> {
    // SAFETY: by the caller's word.
    unsafe { check_struct(pointer, what) }?;
    // SAFETY: not NULL, aligned, and of the size of a `T`; any bits are a valid `T`.
    Ok(unsafe { pointer.read() })
}

/// Gives a value to the caller.
///
/// # Safety
/// `pointer` is NULL or points to a writable `T`.
///
/// # Errors
/// It is NULL, or not aligned.
pub unsafe fn put<T: Copy>(pointer: *mut T, what: &str, value: T) -> Result<(), Failure> {
    check_pointer(pointer, what)?;
    // SAFETY: not NULL and aligned, as just checked; writable by the caller's word.
    unsafe { pointer.write(value) };
    Ok(())
}

/// Reads a string; `None` for NULL.
///
/// # Safety
/// `pointer` is NULL or points to a NUL-terminated string.
///
/// # Errors
/// It is not UTF-8.
pub unsafe fn string(pointer: *const c_char, what: &str) -> Result<Option<String>, Failure> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: by the caller's word.
    let text = unsafe { CStr::from_ptr(pointer) };
    match text.to_str() {
        Ok(text) => Ok(Some(text.to_owned())),
        Err(_) => Err(Failure::invalid(format!("option `{what}` is not UTF-8"))),
    }
}

/// Reads a string that must be there.
///
/// # Safety
/// As of [`string`].
///
/// # Errors
/// It is NULL, or not UTF-8.
pub unsafe fn required(pointer: *const c_char, what: &str) -> Result<String, Failure> {
    // SAFETY: by the caller's word.
    let text = unsafe { string(pointer, what) }?;
    text.ok_or_else(|| Failure::invalid(format!("argument `{what}` is NULL")))
}

/// Copies a string into the caller's buffer, cut at a character's border where it does not fit, and always
/// NUL-terminated. A buffer of no size, or NULL, gets nothing.
///
/// # Safety
/// `buffer` is NULL or points to `capacity` writable bytes.
pub unsafe fn copy_string(text: &str, buffer: *mut c_char, capacity: u64) {
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

/// The name of a number, or "unknown". It lives for ever.
#[must_use]
pub fn name_of(names: &[(i32, &'static CStr)], number: i32) -> *const c_char {
    names.iter().find(|(n, _)| *n == number).map_or(c"unknown".as_ptr(), |(_, name)| name.as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_code_and_a_message() {
        let code = entry::<Failure>(|| panic!("oh \0 dear"));
        assert_eq!(code, PANIC);
        // SAFETY: the pointer is the library's own.
        let message = unsafe { CStr::from_ptr(last_error()) }.to_str().unwrap();
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
