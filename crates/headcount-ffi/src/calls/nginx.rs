//! What only nginx needs.

use std::ffi::{CStr, c_char, c_int, c_void};

use headcount_core::ErrorKind;
use headcount_nginx_conf::default_node;

use crate::border::codes::HEADCOUNT_OK;
use crate::border::entry::{Failure, check_pointer, copy_string, entry, put};
use crate::handle::{self, Handle};

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

/// What `headcount_nginx_at_end` calls.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NginxCall {
    /// `lua_pcall`; NULL: nothing is called (any more).
    pub call: Option<unsafe extern "C" fn(*mut c_void, c_int, c_int, c_int) -> c_int>,
    /// The `lua_State *` of a coroutine that has not begun.
    pub thread: *mut c_void,
}

/// A cleanup handler for the pool of an nginx configuration: runs a coroutine, once. A language that has no functions
/// of C's cannot be called by nginx, and a callback of LuaJIT's would run in whichever coroutine used the FFI last, which
/// may be gone by then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_nginx_at_end(call: *mut NginxCall) {
    // SAFETY: NULL, or where the caller has put it, as long as its pool is there.
    let Some(given) = (unsafe { call.as_mut() }) else { return };
    if let Some(function) = given.call.take() {
        // SAFETY: `lua_pcall` on a living thread of a living VM, by the caller's word; it lets no error out.
        unsafe { function(given.thread, 0, 0, 0) };
    }
}

/// The node that this server has, for code that comes late, such as a VM for a single request: the one that this process has
/// joined, or else the one that was opened last. HEADCOUNT_ERR_NOT_FOUND if there is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_opened(node: *mut *mut Handle) -> i32 {
    entry(|| {
        check_pointer(node, "node")?;
        let Some(handle) = handle::of_this_process() else {
            return Err(Failure::new(
                ErrorKind::NotFound,
                "no node was opened in this process or its master",
            ));
        };
        // SAFETY: checked above; writable by the caller's word.
        unsafe { put(node, "node", std::ptr::from_ref(handle).cast_mut()) }?;
        Ok(HEADCOUNT_OK)
    })
}
