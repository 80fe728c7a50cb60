//! Sleeping on a word of shared memory, and waking who sleeps there.
//!
//! The word may lie in memory that others can write, so waking up proves nothing: whoever wakes looks again.

use std::time::Duration;

use super::atomic::AtomicU32;

/// Sleeps in the kernel until `word` is no longer `expected`, somebody wakes us, or `limit` has passed.
pub(crate) fn wait_for_change(word: &AtomicU32, expected: u32, limit: Duration) {
    #[cfg(not(loom))]
    {
        use rustix::thread::futex;
        // More than a `Timespec` holds is for ever.
        let limit = rustix::time::Timespec::try_from(limit).ok();
        // Woken, timed out, interrupted, or the word had changed already: in each case, look again.
        let _ = futex::wait(word, futex::Flags::empty(), expected, limit.as_ref());
    }
    #[cfg(loom)]
    let _ = (word, expected, limit);
}

/// Wakes at most `most` of those who sleep on `word`.
pub(crate) fn wake(word: &AtomicU32, most: u32) {
    #[cfg(not(loom))]
    // The only failure is a bad address, which a reference cannot have.
    let _ = rustix::thread::futex::wake(word, rustix::thread::futex::Flags::empty(), most);
    #[cfg(loom)]
    let _ = (word, most);
}
