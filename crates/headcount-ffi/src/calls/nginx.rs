//! What only nginx needs.

use std::ffi::{CStr, c_char};

use headcount_core::ErrorKind;
use headcount_nginx_conf::default_node;

use crate::border::codes::HEADCOUNT_OK;
use crate::border::entry::{Failure, check_pointer, copy_string, entry};

/// The name of the node of an nginx that gives it none: "nginx", or, if it was started with -c or -p, a name made of that
/// path. `arguments` are the `number` arguments that nginx was started with, without the program; `prefix` is its
/// prefix, `folder` the working directory of its start. `name` gets at most 49 bytes with the NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_nginx_default_node(
    arguments: *const *const c_char,
    number: u64,
    prefix: *const c_char,
    folder: *const c_char,
    name: *mut c_char,
    capacity: u64,
) -> i32 {
    entry(|| {
        let bytes = |text: *const c_char, what: &str| {
            check_pointer(text, what)?;
            // SAFETY: not NULL, as just checked; a NUL-terminated string by the caller's word.
            Ok::<_, Failure>(unsafe { CStr::from_ptr(text) }.to_bytes().to_vec())
        };
        let number = usize::try_from(number).map_err(|_| {
            Failure::new(
                ErrorKind::InvalidOption,
                format!("argument `number` is {number}: that is more than fits into memory"),
            )
        })?;
        let mut list = Vec::new();
        if number > 0 {
            check_pointer(arguments, "arguments")?;
        }
        for i in 0..number {
            // SAFETY: an array of `number` strings, by the caller's word.
            list.push(bytes(unsafe { arguments.add(i).read() }, "arguments")?);
        }
        check_pointer(name, "name")?;
        let made = default_node(&list, &bytes(prefix, "prefix")?, &bytes(folder, "folder")?);
        // SAFETY: a buffer of that size, by the caller's word.
        unsafe { copy_string(&made, name, capacity) };
        Ok(HEADCOUNT_OK)
    })
}
