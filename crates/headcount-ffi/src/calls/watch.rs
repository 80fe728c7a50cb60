//! What a worker is told about the others, through one descriptor; and the waker, for hosts that can wait for none.

use std::ffi::c_char;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use headcount_core::ErrorKind;

use crate::border::codes::HEADCOUNT_OK;
use crate::border::entry::{Failure, check_pointer, copy_string, entry, put};
use crate::border::event::{EventOut, EventRecord};
use crate::handle::waker::Waker;
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
        let out = unsafe { EventOut::new(event) }?;
        let transitions = handle.process().watch()?.1.process()?;
        Ok(handle.deliver(transitions, out))
    })
}

/// Starts a thread that writes to a unix socket when the watch's descriptor becomes readable, for hosts that
/// cannot wait for that descriptor themselves. `path` gets what to connect to (64 bytes are enough), once, and
/// only from this process.
///
/// Each byte 'E' means: call `headcount_process` until it returns no event, then `headcount_waker_rearm`; the next
/// one comes only after that. The byte 'L' comes if `headcount_lock_watch` asked for it. The byte 'Q', or the end of the stream, means that no more come. A waker
/// that runs already is stopped first. The thread touches nothing of the node, and handles no signal. It
/// ends with `headcount_waker_stop`, when this process leaves the newest generation that it joined, joins
/// another, or closes its end of the connection.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_waker_start(node: *mut Handle, path: *mut c_char, capacity: u64) -> i32 {
    const LONGEST_PATH: u64 = 32;
    entry(|| {
        let handle = handle::find(node)?;
        check_pointer(path, "path")?;
        if capacity < LONGEST_PATH {
            return Err(Failure::new(
                ErrorKind::InvalidOption,
                format!("argument `capacity` is {capacity}; allowed is {LONGEST_PATH} and more"),
            ));
        }
        let mut process = handle.process();
        let (generation, watch) = process.watch_fd()?;
        let watch = watch.try_clone_to_owned().map_err(|e| Failure::io("start the waker", e))?;
        let mut folders = vec![PathBuf::from("/dev/shm"), PathBuf::from("/tmp")];
        folders.extend(handle.node.path().and_then(Path::parent).map(Path::to_owned));
        let (waker, place) = Waker::start(generation, watch, &folders)?;
        if let Some(old) = process.waker.replace(waker) {
            old.stop();
        }
        // SAFETY: a buffer of that size, by the caller's word.
        unsafe { copy_string(&place, path, capacity) };
        Ok(HEADCOUNT_OK)
    })
}

/// The last byte was acted on: the next one may come. HEADCOUNT_ERR_WRONG_STATE if no waker runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_waker_rearm(node: *mut Handle) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        let process = handle.process();
        let Some(waker) = &process.waker else {
            return Err(Failure::new(ErrorKind::WrongState, "this process has no running waker"));
        };
        waker.rearm();
        Ok(HEADCOUNT_OK)
    })
}

/// Stops the waker: 'Q' is written and the connection closed. `generation` 0: whatever it runs for; else only
/// if it runs for that generation, so that an old one does not stop the new one's. Does not wait for the
/// thread. Does nothing if no such waker runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_waker_stop(node: *mut Handle, generation: u64) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        let mut process = handle.process();
        if let Some(waker) = process.waker.take_if(|w| generation == 0 || w.generation == generation) {
            waker.stop();
        }
        Ok(HEADCOUNT_OK)
    })
}
