//! The watch in nginx's event loop: one connection, whose descriptor is the watch's.
//!
//! nginx has no hook for the moment when a worker begins to shut down gracefully, but then it asks each idle connection to
//! close itself: so this one says that it is idle.

use std::os::fd::RawFd;

use ngx::ffi;

use crate::nginx::facts;

type Handler = unsafe extern "C" fn(*mut ffi::ngx_event_t);

/// nginx's NGX_READ_EVENT on Linux, where a macro of macros hides it from bindgen: EPOLLIN | EPOLLRDHUP.
const READ_EVENT: ffi::ngx_int_t = 0x2001;
/// nginx's NGX_CLOSE_EVENT: the descriptor is about to be closed.
const CLOSE_EVENT: ffi::ngx_uint_t = 1;

/// A connection of nginx's that does not own its descriptor.
pub(crate) struct Connection {
    inner: *mut ffi::ngx_connection_t,
    is_listening: bool,
}

// SAFETY: only nginx's one thread uses it.
unsafe impl Send for Connection {}

impl Connection {
    /// `None`: nginx has no free connection left.
    pub(crate) fn new(fd: RawFd, handler: Handler) -> Option<Connection> {
        if !facts::has_free_connection() {
            // Asked for one, it would close others, and say so at each heartbeat.
            return None;
        }
        let log = facts::log_in_force();
        // SAFETY: called in init_process or later, when nginx has made its connections; what it hands out has both
        // its events, and is ours until we give it back.
        unsafe {
            let inner = ffi::ngx_get_connection(fd, log);
            let connection = inner.as_mut()?;
            connection.set_idle(1);
            let read = connection.read.as_mut()?;
            read.handler = Some(handler);
            read.log = log;
            // Else `worker_shutdown_timeout` would take it for a client's, and put it to an end.
            read.set_channel(1);
            let write = connection.write.as_mut()?;
            write.handler = Some(ignore);
            write.log = log;
            Some(Connection { inner, is_listening: false })
        }
    }

    /// Has the handler run whenever the descriptor is readable. `false`: nginx could not, and has said so in its log.
    pub(crate) fn listen(&mut self, yes: bool) -> bool {
        if self.is_listening == yes {
            return true;
        }
        // SAFETY: a connection that is ours, and nginx's table of what its event method does.
        let done = unsafe {
            let read = (*self.inner).read;
            let call = if yes { ffi::ngx_event_actions.add } else { ffi::ngx_event_actions.del };
            call.is_some_and(|call| call(read, READ_EVENT, 0) == ffi::NGX_OK as ffi::ngx_int_t)
        };
        if done {
            self.is_listening = yes;
        }
        done
    }

    /// Gives it back; the descriptor is to be closed right after.
    pub(crate) fn end(self) {
        // SAFETY: a connection that is ours until this call.
        unsafe {
            let read = (*self.inner).read;
            let del = ffi::ngx_event_actions.del;
            if let Some(del) = del.filter(|_| self.is_listening) {
                del(read, READ_EVENT, CLOSE_EVENT);
            }
            if (*read).posted() != 0 {
                ffi::ngx_delete_posted_event(read);
            }
            ffi::ngx_free_connection(self.inner);
            (*self.inner).fd = -1;
        }
    }
}

/// Whether nginx calls because it begins to shut down, and not because there is something to read.
///
/// # Safety
/// The event is one that nginx calls its connection's handler with.
pub(crate) unsafe fn is_asked_to_close(event: *mut ffi::ngx_event_t) -> bool {
    // SAFETY: by the caller's word.
    unsafe {
        let connection = (*event).data.cast::<ffi::ngx_connection_t>();
        let asked = (*connection).close() != 0;
        (*connection).set_close(0);
        asked
    }
}

/// A watch is never written to.
unsafe extern "C" fn ignore(_: *mut ffi::ngx_event_t) {}
