//! POSIX record locks on single bytes of the lock file, and the futex that tells waiters of a release.
//!
//! A record lock belongs to the *process* (to its table of descriptors), so the kernel drops it at the
//! process's death, whatever the cause, and a forked child does not keep it. The trap is in the same
//! rule: **any** `close` of **any** descriptor of that file in the process drops **all** its locks.
//! Therefore a process opens the lock file once and never closes it (see `opening.rs`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::thread::futex;

use super::atomic::AtomicU32;

/// What the kernel says of one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ByteLock {
    /// Nobody else holds it. (The own process's lock is invisible to this question.)
    Free,
    /// Held by the process with this id; 0 if that process is in a pid namespace we cannot see into.
    Held(u32),
}

fn record(kind: libc::c_int, byte: u64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte as libc::off_t,
        l_len: 1,
        l_pid: 0,
    }
}

fn fcntl(fd: BorrowedFd<'_>, command: libc::c_int, record: &mut libc::flock) -> io::Result<()> {
    loop {
        // SAFETY: the descriptor is open for as long as it is borrowed, and `record` is a valid
        // `struct flock` that the kernel reads and, for F_GETLK, writes.
        let answer = unsafe { libc::fcntl(fd.as_raw_fd(), command, std::ptr::from_mut(record)) };
        if answer != -1 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Takes the byte if nobody else has it. `Ok(false)`: somebody has.
pub(crate) fn try_lock(fd: BorrowedFd<'_>, byte: u64) -> io::Result<bool> {
    set(fd, libc::F_WRLCK, byte)
}

fn set(fd: BorrowedFd<'_>, kind: libc::c_int, byte: u64) -> io::Result<bool> {
    match fcntl(fd, libc::F_SETLK, &mut record(kind, byte)) {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Takes the byte together with others who take it so. `Ok(false)`: somebody has it alone.
pub(crate) fn try_share(fd: BorrowedFd<'_>, byte: u64) -> io::Result<bool> {
    set(fd, libc::F_RDLCK, byte)
}

/// Gives the byte back. Harmless if it was not held.
pub(crate) fn unlock(fd: BorrowedFd<'_>, byte: u64) -> io::Result<()> {
    fcntl(fd, libc::F_SETLK, &mut record(libc::F_UNLCK, byte))
}

/// Asks whether another process holds the byte.
pub(crate) fn test(fd: BorrowedFd<'_>, byte: u64) -> io::Result<ByteLock> {
    test_range(fd, byte, 1)
}

/// Asks whether another process holds any of `count` bytes.
pub(crate) fn test_range(fd: BorrowedFd<'_>, first: u64, count: u64) -> io::Result<ByteLock> {
    let mut answer = record(libc::F_WRLCK, first);
    answer.l_len = count as libc::off_t;
    fcntl(fd, libc::F_GETLK, &mut answer)?;
    if answer.l_type == libc::F_UNLCK as libc::c_short {
        return Ok(ByteLock::Free);
    }
    Ok(ByteLock::Held(u32::try_from(answer.l_pid).unwrap_or(0)))
}

/// Sleeps in the kernel until `word` changes from `expected`, is woken, or `limit` has passed.
///
/// The word lies in memory that others can write, so waking up proves nothing: the caller asks the
/// kernel for the record lock again. Garbage in it costs at most an early or a late look.
pub(crate) fn wait_for_change(word: &AtomicU32, expected: u32, limit: Duration) {
    #[cfg(not(loom))]
    {
        let limit = rustix::fs::Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        };
        // Woken, timed out, interrupted, or the word had changed already: in each case, look again.
        let _ = futex::wait(word, futex::Flags::empty(), expected, Some(&limit));
    }
    #[cfg(loom)]
    let _ = (word, expected, limit);
}

/// Wakes one waiter of `word`.
pub(crate) fn wake_one(word: &AtomicU32) {
    #[cfg(not(loom))]
    // The only failure is a bad address, which a reference cannot have.
    let _ = futex::wake(word, futex::Flags::empty(), 1);
    #[cfg(loom)]
    let _ = word;
}
