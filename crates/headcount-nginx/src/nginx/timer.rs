//! Timers of nginx's that do not hold up its graceful exit.

use std::ffi::c_void;
use std::ptr;
use std::time::Duration;

use ngx::ffi;

use crate::nginx::facts;

type Handler = unsafe extern "C" fn(*mut ffi::ngx_event_t);

/// One timer of this process. Never freed: its event may be in nginx's tree till the process ends.
#[derive(Clone, Copy)]
pub(crate) struct Timer(*mut ffi::ngx_event_t);

// SAFETY: only nginx's one thread uses it.
unsafe impl Send for Timer {}

/// nginx's debug log takes the data of each event for a connection, and prints its descriptor: this one has none.
struct NoConnection([*mut c_void; 4]);

impl Timer {
    pub(crate) fn new(handler: Handler) -> Timer {
        let data = Box::leak(Box::new(NoConnection([ptr::null_mut(); 4])));
        data.0[3] = ptr::without_provenance_mut(usize::MAX);
        // SAFETY: an event of nginx's is numbers, bits and pointers, all of which may be zero.
        let event = Box::leak(Box::new(unsafe { std::mem::zeroed::<ffi::ngx_event_t>() }));
        event.data = (&raw mut *data).cast();
        event.handler = Some(handler);
        event.log = facts::log_in_force();
        event.set_cancelable(1);
        Timer(event)
    }

    /// Whether nginx, when it shuts down gracefully, waits for this timer.
    pub(crate) fn hold_up_exit(self, yes: bool) {
        // SAFETY: a leaked event.
        unsafe { (*self.0).set_cancelable(u32::from(!yes)) };
    }

    pub(crate) fn set(self, after: Duration) {
        // Not a moment too early, or it would have to be set again.
        let ms = u64::try_from(after.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).clamp(1, 86_400_000);
        // SAFETY: a leaked event, which nginx's tree may keep; called from nginx's thread, after nginx has made the tree
        // (its event module's init_process comes before that of any dynamic module).
        unsafe { ffi::ngx_add_timer(self.0, ms as ffi::ngx_msec_t) };
    }

    pub(crate) fn stop(self) {
        // SAFETY: as above; only an event that is in the tree is taken out.
        unsafe {
            if (*self.0).timer_set() != 0 {
                ffi::ngx_del_timer(self.0);
            }
        }
    }
}
