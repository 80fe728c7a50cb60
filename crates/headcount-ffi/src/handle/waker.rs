//! A thread that turns the watch into bytes on a unix socket, for hosts that can wait for nothing else.
//!
//! Lua in nginx is one: it can read from a socket, but not wait for a descriptor. The thread polls the watch
//! and writes bytes. It touches no registry, takes no lock, and knows nothing of workers. Beside it, others wait for locks: see `locks`.
//!
//! The socket must have a path to connect to, and a path is something that others can get at: so it is
//! unlinked before the first byte, reached through a descriptor of this process only
//! (`/proc/self/fd/N`), and asks who has connected.

mod locks;
mod socket;
mod thread;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use headcount_core::{ErrorKind, GenerationId};

use self::locks::Watched;
use self::socket::Listener;
use self::thread::Control;
use crate::border::entry::Failure;
use crate::handle::singletons::Lock;

/// A running waker, as the rest of the process holds it. Dropping it does not end the thread.
pub(crate) struct Waker {
    pub(crate) generation: GenerationId,
    control: Arc<Control>,
    watched: Arc<Watched>,
}

impl Waker {
    /// Starts one for a watch of this generation, whose descriptor it gets, with its socket in the first of these folders
    /// that lets us. Gives what to connect to as well.
    pub(crate) fn start(
        generation: GenerationId,
        watch: OwnedFd,
        folders: &[PathBuf],
    ) -> Result<(Waker, String), Failure> {
        let listener = Listener::new(folders)?;
        let path = listener.path();
        let control = thread::start(watch, listener).map_err(|e| Failure::io("start the waker", e))?;
        Ok((Waker { generation, control, watched: Arc::default() }, path))
    }

    pub(crate) fn stop(&self) {
        self.control.stop();
        self.watched.end();
    }

    /// The last byte was acted on: the next one may come.
    pub(crate) fn rearm(&self) {
        self.control.rearm();
    }

    /// Has a byte written when this lock can be tried; or no more.
    pub(crate) fn watch_lock(&self, lock: &Arc<Lock>, wanted: bool) -> Result<(), Failure> {
        if !wanted {
            self.watched.remove(lock);
            return Ok(());
        }
        if !self.control.is_connected() {
            return Err(Failure::new(ErrorKind::WrongState, "nobody has connected to the waker yet"));
        }
        self.watched.add(&self.control, lock)
    }
}
