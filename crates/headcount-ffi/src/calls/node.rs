//! The node: opening it, its messages, and the events that its calls hand out.

use std::ffi::c_char;
use std::sync::Mutex;

use headcount_core::ErrorKind;

use crate::border::codes::HEADCOUNT_OK;
use crate::border::entry::{Failure, check_pointer, copy_string, entry, put, read_struct};
use crate::border::event::{EventOut, EventRecord};
use crate::border::options::OpenOptions;
use crate::handle::{self, ADDING, Handle, relock};

/// Opens the node, in the master, before it forks; the workers use the same handle.
///
/// Opening the same path again in the same process (at a reload) gives the same handle, with the new timings; or another
/// one, if the registry was removed meanwhile.
/// Where no file can be made or used, the node runs on memory of its own, and `headcount_notice` says why;
/// where another live server has the node already, this one becomes NAME-2, and a notice says so. It
/// fails only for options that are not allowed, or without memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_open(options: *const OpenOptions, node: *mut *mut Handle) -> i32 {
    entry(|| {
        check_pointer(node, "node")?;
        // SAFETY: the caller's structure and its strings, as the header demands.
        let wanted = unsafe { read_struct(options, "options")?.wanted() }?;
        let adding = relock(ADDING.get(|_| Mutex::new(())));
        let opened = wanted.options.open()?;
        // Another one under the same path: the registry of a running server was removed, and there is a new one.
        let known = handle::by_path(&wanted.path).filter(|handle| handle.node.is_same(opened.node()));
        let handle = match known {
            Some(handle) => handle,
            None => handle::add(wanted.path, opened),
        };
        drop(adding);
        crate::fork::watch_forks();
        // SAFETY: checked above; writable by the caller's word.
        unsafe { put(node, "node", std::ptr::from_ref(handle).cast_mut()) }?;
        Ok(HEADCOUNT_OK)
    })
}

/// Checks options as `headcount_open` does, without opening anything, and puts the timings that the node would have
/// into them: the defaults, where they are 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_check_options(options: *mut OpenOptions) -> i32 {
    entry(|| {
        // SAFETY: the caller's structure and its strings, as the header demands.
        let (given, wanted) = unsafe {
            let given = read_struct(options, "options")?;
            (given, given.wanted()?)
        };
        let timings = wanted.options.check()?;
        // SAFETY: as above; writable by the caller's word.
        unsafe { put(options, "options", given.with_timings(timings)) }?;
        Ok(HEADCOUNT_OK)
    })
}

/// Ends what this process has under way: a callback that is not finished (as `headcount_leave` does), the watch
/// and the waker. It does not leave, and the handle stays valid: the registry stays mapped until the
/// process ends, since other parts of the process may use it. A server need not call this.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_close(node: *mut Handle) {
    entry(|| {
        handle::find(node)?.end();
        Ok(HEADCOUNT_OK)
    });
}

/// Takes the oldest message for the server's log: why there is no file, who holds the lock for so long.
/// HEADCOUNT_ERR_NOT_FOUND if there is none. `level` gets a HEADCOUNT_LEVEL_; 512 bytes hold most
/// messages, longer ones are cut. Best called after each call that can wait, and after opening.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_notice(
    node: *mut Handle,
    level: *mut u32,
    buffer: *mut c_char,
    capacity: u64,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        check_pointer(level, "level")?;
        check_pointer(buffer, "buffer")?;
        let Some((how, text)) = handle.next_notice() else {
            return Err(Failure::new(ErrorKind::NotFound, "there is no message"));
        };
        // SAFETY: checked above; writable, and the buffer of that size, by the caller's word.
        unsafe {
            put(level, "level", how)?;
            copy_string(&text, buffer, capacity);
        }
        Ok(HEADCOUNT_OK)
    })
}

/// The node's name (at most 52 bytes with the NUL), and its registry's file: an empty string if it runs on
/// memory of its own. A buffer may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_node_info(
    node: *mut Handle,
    name: *mut c_char,
    name_capacity: u64,
    path: *mut c_char,
    path_capacity: u64,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        let file = handle.node.path().map(|p| p.to_string_lossy()).unwrap_or_default();
        // SAFETY: the buffers are NULL or have the sizes that the caller says.
        unsafe {
            copy_string(handle.node.name(), name, name_capacity);
            copy_string(&file, path, path_capacity);
        }
        Ok(HEADCOUNT_OK)
    })
}

/// Finishes the event that was handed out, and hands out the next one: HEADCOUNT_EVENT. HEADCOUNT_OK: that
/// was the last, and the node lock is free.
///
/// `callback_failed` other than 0 notes in the journal that acting on the event failed; it counts as done.
/// Without an event to finish, it does nothing. To be called by the thread that got the event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_next(
    node: *mut Handle,
    callback_failed: i32,
    event: *mut EventRecord,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL, or writable for as long as this call, by the caller's word.
        let out = unsafe { EventOut::new(event) }?;
        Ok(handle.deliver_next(callback_failed != 0, out))
    })
}
