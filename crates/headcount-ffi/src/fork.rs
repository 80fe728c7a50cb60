//! What must happen around a fork.
//!
//! A server that goes into the background opens the node in a process that then forks and ends. Its child
//! has no hook of its own before it forks the first worker, so the fork itself is the hook.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::AcqRel;

use headcount_core::Wait;

use crate::border::words::HEADCOUNT_LEVEL_ERROR;
use crate::handle;

/// Has the handlers run at every fork from now on. They are never taken out, which is why the library is
/// linked so that it is never unloaded.
pub(crate) fn watch_forks() {
    // No `Once`: a child that was forked in the middle of it would wait for it for ever.
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.swap(true, AcqRel) {
        // SAFETY: both handlers live as long as the library, which is linked with -z nodelete, and neither
        // lets a panic out. Failing (no memory) means that a server that goes into the background must
        // call headcount_adopt_master itself.
        let _ = unsafe { libc::pthread_atfork(Some(before), None, Some(in_child)) };
    }
}

/// In a process that is about to fork: if its parent was the master and is gone, it is the master now. And a master says
/// from now on when it is told to stop.
extern "C" fn before() {
    // Costs a look at a few private fields in every process but that one.
    let adopt = || {
        for handle in handle::all().filter(|handle| handle.may_adopt()) {
            if let Err(error) = handle.master.adopt(Wait::Timeout) {
                handle.note(HEADCOUNT_LEVEL_ERROR, format!("cannot become the master of the node: {error}"));
            }
        }
        // By now a server has set its handlers.
        handle::all().for_each(|handle| handle.master.watch_stop_signals());
    };
    // What went wrong is told by the first call of the server that needs a master.
    let _ = catch_unwind(AssertUnwindSafe(adopt));
}

/// In the child. Nothing here allocates, locks or can panic.
extern "C" fn in_child() {
    handle::all().for_each(handle::Handle::forget_hearts);
}
