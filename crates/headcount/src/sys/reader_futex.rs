//! Sleeping until a word changes that another process writes: how a reader of a registry waits for the next event.
//!
//! The reader maps the registry's first page read-only and hands the address of a word in it to futex(2), which is all
//! that is ever done with it. It is not dereferenced here: whoever may write to the file may truncate it as well, and
//! then a load is a SIGBUS, where the kernel only says EFAULT.

use std::ffi::c_void;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::time::Duration;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::thread::futex::{self, WaitFlags, WaitPtr, WaitvFlags};
use rustix::time::{ClockId, Timespec, clock_gettime};

use super::atomic::AtomicU64;

/// At most so many readers are woken by one event. More of them than that are strangers who want to make events slow.
const MOST_WOKEN: u32 = 128;

/// Wakes those who sleep until `word` changes. 0.2 µs when nobody does.
pub(crate) fn wake_readers(word: &AtomicU64) {
    #[cfg(not(loom))]
    {
        let low = std::ptr::from_ref(word).cast::<super::atomic::AtomicU32>();
        // SAFETY: the lower half of a live `AtomicU64`: in bounds, aligned for 32 bits, and only passed on as an address.
        let low = unsafe { &*low.wrapping_add(LOW_HALF) };
        super::futex::wake(low, MOST_WOKEN);
    }
    #[cfg(loom)]
    let _ = (word, MOST_WOKEN);
}

/// Which of the two 32-bit words of a 64-bit word is its lower half.
const LOW_HALF: usize = if cfg!(target_endian = "big") { 1 } else { 0 };

const PAGE: usize = 4096;

/// The address of the lower half of a 64-bit word in the first page of somebody else's file. Nothing but an address:
/// there is no way to read through it.
pub(crate) struct RemoteWord {
    page: *mut c_void,
    offset: usize,
}

// SAFETY: it is an address that no memory is accessed through.
unsafe impl Send for RemoteWord {}
// SAFETY: as above.
unsafe impl Sync for RemoteWord {}

impl RemoteWord {
    /// Maps the first page of `file`, for the word at `offset` in it.
    pub(crate) fn map(file: BorrowedFd<'_>, offset: usize) -> io::Result<RemoteWord> {
        assert!(offset % 8 == 0 && offset + 8 <= PAGE, "a word of the first page");
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let page = unsafe { mmap(std::ptr::null_mut(), PAGE, ProtFlags::READ, MapFlags::SHARED, file, 0) }?;
        Ok(RemoteWord { page, offset })
    }

    fn address(&self) -> *mut c_void {
        self.page.cast::<u8>().wrapping_add(self.offset + 4 * LOW_HALF).cast()
    }
}

impl Drop for RemoteWord {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` in this length, and nothing refers into it: a futex call that is under way holds
        // the `RemoteWord` itself.
        let unmapped = unsafe { munmap(self.page, PAGE) };
        debug_assert!(unmapped.is_ok());
    }
}

/// A counter in this process, by which a thread in [`wait_any`] is called from another.
#[derive(Default)]
pub(crate) struct SharedWord(AtomicU32);

impl SharedWord {
    pub(crate) fn value(&self) -> u32 {
        self.0.load(Acquire)
    }

    /// Sleeps until it is not `expected`; at most for `limit`.
    pub(crate) fn wait(&self, expected: u32, limit: Option<Duration>) {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        // Woken, timed out, interrupted, or it had changed already: in each case, the caller looks again.
        let _ = futex::wait(&self.0, futex::Flags::PRIVATE, expected, limit.as_ref());
    }

    pub(crate) fn call(&self) {
        self.0.fetch_add(1, AcqRel);
        // The only failure is a bad address, which a reference cannot have.
        let _ = futex::wake(&self.0, futex::Flags::PRIVATE, 1);
    }
}

/// Why [`wait_any`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A word is another one than was expected, or somebody has woken us: look.
    Changed,
    TimedOut,
    /// An address has nothing behind it: a file was cut off.
    Fault,
    /// This kernel cannot wait for several words (before Linux 5.16, or a filter of system calls).
    Unsupported,
}

/// Sleeps until `own` or the lower half of one of `words` (at most 127) is not what is expected of it.
pub(crate) fn wait_any(
    own: (&SharedWord, u32),
    words: &[(&RemoteWord, u32)],
    limit: Option<Duration>,
) -> Outcome {
    let wait = |value: u32, address: *mut c_void, flags| {
        let mut wait = futex::Wait::new();
        (wait.val, wait.uaddr, wait.flags) = (value.into(), WaitPtr::new(address), flags);
        wait
    };
    let mut all = Vec::with_capacity(1 + words.len());
    all.push(wait(own.1, own.0.0.as_ptr().cast(), WaitFlags::SIZE_U32 | WaitFlags::PRIVATE));
    all.extend(words.iter().map(|(word, value)| wait(*value, word.address(), WaitFlags::SIZE_U32)));
    let deadline = limit
        .and_then(|limit| clock_gettime(ClockId::Monotonic).checked_add(Timespec::try_from(limit).ok()?));
    match futex::waitv(&all, WaitvFlags::empty(), deadline.as_ref(), ClockId::Monotonic) {
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Outcome::Changed,
        Err(Errno::TIMEDOUT) => Outcome::TimedOut,
        Err(Errno::NOSYS | Errno::PERM) => Outcome::Unsupported,
        Err(_) => Outcome::Fault,
    }
}

impl RemoteWord {
    /// Where [`wait_any`] is not supported: sleeps until this word is not `expected`, or `limit` has passed.
    pub(crate) fn wait(&self, expected: u32, limit: Duration) -> Outcome {
        let limit =
            libc::timespec { tv_sec: limit.as_secs() as libc::time_t, tv_nsec: limit.subsec_nanos().into() };
        // SAFETY: the kernel checks the address, and only reads from it; `limit` is a valid `timespec`.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_futex,
                self.address(),
                libc::FUTEX_WAIT,
                expected,
                &raw const limit,
                std::ptr::null::<u32>(),
                0,
            )
        };
        match io::Error::last_os_error().raw_os_error() {
            _ if answer == 0 => Outcome::Changed,
            Some(libc::EAGAIN | libc::EINTR) => Outcome::Changed,
            Some(libc::ETIMEDOUT) => Outcome::TimedOut,
            _ => Outcome::Fault,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;
    use crate::sys::atomic::Ordering::SeqCst;

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(5);

    /// A file of one page whose word at 8 is `value`, and a mapping of it that may be written to.
    fn page(value: u64) -> (std::fs::File, &'static AtomicU64) {
        let mut file = tempfile::tempfile().unwrap();
        let mut bytes = [0u8; 4096];
        bytes[8..16].copy_from_slice(&value.to_ne_bytes());
        file.write_all(&bytes).unwrap();
        let (protection, shared) =
            (rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE, rustix::mm::MapFlags::SHARED);
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let start =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), 4096, protection, shared, file.as_fd(), 0) };
        // SAFETY: page-aligned, never unmapped, and used as an atomic only.
        (file, unsafe { &*start.unwrap().cast::<AtomicU64>().add(1) })
    }

    #[test]
    fn a_word_that_is_another_one_already_is_not_waited_for() {
        let (file, _) = page(7);
        let (own, word) = (SharedWord::default(), RemoteWord::map(file.as_fd(), 8).unwrap());
        assert_eq!(wait_any((&own, 0), &[(&word, 6)], Some(LONG)), Outcome::Changed);
        assert_eq!(wait_any((&own, 1), &[(&word, 7)], Some(LONG)), Outcome::Changed);
        assert_eq!(wait_any((&own, 0), &[(&word, 7)], Some(SHORT)), Outcome::TimedOut);
        assert_eq!(word.wait(6, LONG), Outcome::Changed);
        assert_eq!(word.wait(7, SHORT), Outcome::TimedOut);
    }

    #[test]
    fn who_sleeps_is_woken() {
        let (file, written) = page(0xFFFF_FFFF);
        let (own, word) = (SharedWord::default(), RemoteWord::map(file.as_fd(), 8).unwrap());
        let write = |value| {
            written.store(value, SeqCst);
            wake_readers(written);
        };
        std::thread::scope(|scope| {
            let both = scope.spawn(|| wait_any((&own, 0), &[(&word, 0xFFFF_FFFF)], Some(LONG)));
            let one = scope.spawn(|| word.wait(0xFFFF_FFFF, LONG));
            // Sooner or later than they fall asleep: either way they see it. The lower half is 0 now.
            write(0x1_0000_0000);
            assert_eq!((both.join().unwrap(), one.join().unwrap()), (Outcome::Changed, Outcome::Changed));
            let called = scope.spawn(|| wait_any((&own, 0), &[(&word, 0)], Some(LONG)));
            own.call();
            assert_eq!(called.join().unwrap(), Outcome::Changed);
        });
    }

    #[test]
    fn a_file_that_was_cut_off_is_a_fault_and_no_signal() {
        let (file, _) = page(7);
        let (own, word) = (SharedWord::default(), RemoteWord::map(file.as_fd(), 8).unwrap());
        file.set_len(0).unwrap();
        assert_eq!(wait_any((&own, 0), &[(&word, 7)], Some(LONG)), Outcome::Fault);
        assert_eq!(word.wait(7, LONG), Outcome::Fault);
    }
}
