//! What a forked child must not keep: a connection that is open in it hides its parent's death from the agent.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr};

/// The connection of one handle, as a child finds it without a lock. -1: there is none, or it may be closed just now.
struct Place {
    fd: AtomicI32,
    is_taken: AtomicBool,
    next: Option<&'static Place>,
}

/// All places, newest first. None is ever freed; they are used again.
static FIRST: AtomicPtr<Place> = AtomicPtr::new(ptr::null_mut());

fn all() -> impl Iterator<Item = &'static Place> {
    // SAFETY: NULL, or a place that was leaked after it was completely made (`new`).
    let first: Option<&'static Place> = unsafe { FIRST.load(Acquire).as_ref() };
    std::iter::successors(first, |place| place.next)
}

/// The place of a handle, as long as there is one.
pub(crate) struct Inherited(&'static Place);

impl Inherited {
    pub(crate) fn new() -> Inherited {
        watch_forks();
        let free = |place: &&Place| place.is_taken.compare_exchange(false, true, AcqRel, Relaxed).is_ok();
        if let Some(place) = all().find(free) {
            return Inherited(place);
        }
        let mut first = FIRST.load(Acquire);
        loop {
            // SAFETY: as in `all`.
            let next = unsafe { first.as_ref() };
            let place = Place { fd: AtomicI32::new(-1), is_taken: AtomicBool::new(true), next };
            let place = Box::into_raw(Box::new(place));
            match FIRST.compare_exchange(first, place, AcqRel, Acquire) {
                // SAFETY: just made, and never freed from now on.
                Ok(_) => return Inherited(unsafe { &*place }),
                Err(other) => {
                    // SAFETY: made from a box above, and nobody else has seen it.
                    drop(unsafe { Box::from_raw(place) });
                    first = other;
                }
            }
        }
    }

    /// Before the connection may be closed.
    pub(crate) fn forget(&self) {
        self.0.fd.store(-1, Release);
    }

    pub(crate) fn note(&self, fd: Option<(BorrowedFd<'_>, bool)>) {
        self.0.fd.store(fd.map_or(-1, |(fd, _)| fd.as_raw_fd()), Release);
    }
}

impl Drop for Inherited {
    fn drop(&mut self) {
        self.forget();
        self.0.is_taken.store(false, Release);
    }
}

/// Has the handler run at every fork from now on. It is never taken out, which is why the library is linked so that it is never unloaded.
fn watch_forks() {
    // No `Once`: a child that was forked in the middle of it would wait for it for ever.
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.swap(true, AcqRel) {
        // SAFETY: the handler lives as long as the library, which is linked with -z nodelete, and lets no panic out. Failing (no memory)
        // means that a process that dies is missed at its deadline, as long as a child of it lives.
        let _ = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    }
}

/// In the child. Nothing here allocates, locks or can panic.
extern "C" fn in_child() {
    for place in all() {
        let fd = place.fd.swap(-1, AcqRel);
        if fd >= 0 {
            // SAFETY: the child's copy of a connection: what owns it here is never used and never dropped, see `table`.
            unsafe { libc::close(fd) };
        }
    }
}
