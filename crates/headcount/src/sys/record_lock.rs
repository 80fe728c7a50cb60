//! Record locks, as proof that a process is a member of the node.
//!
//! A record lock belongs to the *process* (to its table of descriptors): the kernel drops it at the process's
//! death, whatever the cause, a forked child does not have it, and nobody can take one in another's name. So each
//! process of a node shares a byte of its own in the lock file, by its id and birth. Nothing depends on it in the usual course,
//! because asking costs as much as there are locks in that file, and a hostile worker can take very many. It is
//! asked where nothing else proves anything: about a process of another pid namespace, about one that is named as
//! the holder of the node lock for suspiciously long, and about what is left over at a start.
//!
//! The trap: **any** `close` of **any** descriptor of that file in the process drops **all** its locks. Therefore a
//! process of a node opens the lock file once and never closes it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Who shares or holds a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ByteLock {
    /// Nobody but, perhaps, the process that asks: its own locks are invisible to this question.
    Free,
    /// The process with this id.
    Process(u32),
    /// A process that has no id in our pid namespace.
    Unseen,
    /// An open file description: it may be shared by many processes, and outlive the one that took the lock. It
    /// proves nothing, and may hide a lock that does.
    Description,
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

/// Shares the byte with others who do.
///
/// # Errors
/// `WouldBlock` if somebody holds it alone, which only the file's owner can.
pub(crate) fn share(fd: BorrowedFd<'_>, byte: u64) -> io::Result<()> {
    fcntl(fd, libc::F_SETLK, &mut record(libc::F_RDLCK, byte))
}

/// No longer shares the byte.
pub(crate) fn release(fd: BorrowedFd<'_>, byte: u64) -> io::Result<()> {
    fcntl(fd, libc::F_SETLK, &mut record(libc::F_UNLCK, byte))
}

/// Asks who shares or holds the byte. With several, one of them is named.
pub(crate) fn ask(fd: BorrowedFd<'_>, byte: u64) -> io::Result<ByteLock> {
    ask_range(fd, record(libc::F_WRLCK, byte))
}

/// Asks whether anybody shares or holds any byte.
pub(crate) fn ask_any(fd: BorrowedFd<'_>) -> io::Result<ByteLock> {
    let mut all = record(libc::F_WRLCK, 0);
    // To the end, wherever that is.
    all.l_len = 0;
    ask_range(fd, all)
}

fn ask_range(fd: BorrowedFd<'_>, mut answer: libc::flock) -> io::Result<ByteLock> {
    fcntl(fd, libc::F_GETLK, &mut answer)?;
    if answer.l_type == libc::F_UNLCK as libc::c_short {
        return Ok(ByteLock::Free);
    }
    Ok(match u32::try_from(answer.l_pid) {
        Ok(0) => ByteLock::Unseen,
        Ok(pid) => ByteLock::Process(pid),
        Err(_) => ByteLock::Description,
    })
}
