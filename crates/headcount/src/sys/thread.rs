//! Threads: which one this is, and starting one that the process does not notice.

use std::io;
use std::thread::{self, Thread, ThreadId};

thread_local! {
    static ID: ThreadId = thread::current().id();
}

/// The calling thread's, for less than `thread::current` costs.
pub(crate) fn id() -> ThreadId {
    ID.with(|id| *id)
}

/// Starts a thread to which no signal is delivered: the process's handlers go on running where they ran before.
///
/// # Errors
/// Those of [`thread::Builder::spawn`].
pub fn spawn_without_signals(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<Thread> {
    let mut before = all_signals();
    let all = before;
    // SAFETY: both are valid signal sets. It blocks signals in this thread only, and for the time of the call.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) };
    // The new thread takes the mask over. It needs little of a stack.
    let spawned = thread::Builder::new().name(name.to_owned()).stack_size(128 << 10).spawn(body);
    // SAFETY: `before` is the set that the kernel has written above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    Ok(spawned?.thread().clone())
}

fn all_signals() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: `sigfillset` initialises the whole set.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        set.assume_init()
    }
}
