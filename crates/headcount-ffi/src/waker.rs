//! A thread that turns the watch into bytes on a unix socket, for hosts that can wait for nothing else.
//!
//! Lua in nginx is one: it can read from a socket, but not wait for a descriptor. The thread polls the watch
//! and writes bytes. It touches no registry, takes no lock, and knows nothing of workers.
//!
//! The socket must have a path to connect to, and a path is something that others can get at: so it is
//! unlinked before the first byte, reached through a descriptor of this process only
//! (`/proc/self/fd/N`), and asks who has connected.

mod socket;
mod thread;

use std::ffi::c_char;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use headcount_core::{ErrorKind, GenerationId};

use self::socket::Listener;
use self::thread::Control;
use crate::border::{Failure, check_pointer, copy_string, entry};
use crate::codes::HEADCOUNT_OK;
use crate::handle::{self, Handle};

/// A running waker, as the rest of the process holds it. Dropping it does not end the thread.
pub(crate) struct Waker {
    pub(crate) generation: GenerationId,
    control: Arc<Control>,
}

impl Waker {
    pub(crate) fn stop(&self) {
        self.control.stop();
    }

    /// The last byte was acted on: the next one may come.
    pub(crate) fn rearm(&self) {
        self.control.rearm();
    }
}

/// Starts a thread that writes to a unix socket when the watch's descriptor becomes readable, for hosts that
/// cannot wait for that descriptor themselves. `path` gets what to connect to (64 bytes are enough), once, and
/// only from this process.
///
/// Each byte 'E' means: call `headcount_process` until it returns no event, then `headcount_waker_rearm`; the next
/// one comes only after that. The byte 'Q', or the end of the stream, means that no more come. A waker
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
        let failed = |e| Failure::io("start the waker", e);
        let (generation, watch) = process.watch_fd()?;
        let watch = watch.try_clone_to_owned().map_err(failed)?;
        let mut folders = vec![PathBuf::from("/dev/shm"), PathBuf::from("/tmp")];
        folders.extend(handle.node.path().and_then(Path::parent).map(Path::to_owned));
        let listener = Listener::new(&folders)?;
        let place = listener.path();
        let control = thread::start(watch, listener).map_err(failed)?;
        if let Some(old) = process.waker.replace(Waker { generation, control }) {
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
            return Err(Failure::new(ErrorKind::WrongState, "no waker runs in this process"));
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
