//! What a worker is told about the others, through one descriptor.

use std::os::fd::AsRawFd;

use crate::border::{check_pointer, entry, put};
use crate::codes::HEADCOUNT_OK;
use crate::event::{EventRecord, Place};
use crate::handle::{self, Handle};

/// The descriptor that is readable when there may be something to report: wait for it with poll, epoll or any
/// event loop, then call `headcount_process`. Don't read from it, and don't close it.
///
/// It is the same until this process leaves the newest generation that it has joined, or joins another.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_watch_fd(node: *mut Handle, fd: *mut i32) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        check_pointer(fd, "fd")?;
        let number = handle.process().watch_fd()?.1.as_raw_fd();
        // SAFETY: checked above; writable by the caller's word.
        unsafe { put(fd, "fd", number) }?;
        Ok(HEADCOUNT_OK)
    })
}

/// Looks at what happened to the others, and reports what is for this process to report. HEADCOUNT_EVENT:
/// worker_died, generation_ended, generation_abandoned, worker_stalled, worker_recovered or master_lost.
/// HEADCOUNT_OK: nothing. HEADCOUNT_ERR_BUSY: another process holds the node lock, or this one has not finished
/// an event; the descriptor becomes readable again by itself, and nothing is lost.
///
/// Never waits for longer than a few milliseconds. Calling it without need does no harm.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_process(node: *mut Handle, event: *mut EventRecord) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL, or writable for as long as this call, by the caller's word.
        let place = unsafe { Place::new(event) }?;
        let transitions = handle.process().watch()?.1.process()?;
        Ok(handle.deliver(transitions, place))
    })
}
