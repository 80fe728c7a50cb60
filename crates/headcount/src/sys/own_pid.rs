//! The id of this very process, without asking the kernel each time: every call of the library wants to know whether it is in a
//! forked child, and system calls are most of what such a call costs.

use std::ptr;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicPtr, AtomicU32};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

/// A page that the kernel empties in each forked child, with the id in it. Null: not made yet.
static PAGE: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());
/// Takes its place where there can be none: never filled.
static NONE: AtomicU32 = AtomicU32::new(0);

/// The own process id. A fork changes it, and this sees it. In a child that shares its parent's memory (vfork), which may call
/// nothing of this library, it is the parent's.
pub(crate) fn pid() -> u32 {
    let page = PAGE.load(Acquire);
    // SAFETY: null, or a static or a mapping that is never unmapped.
    let Some(known) = (unsafe { page.as_ref() }) else {
        make_page();
        return ask();
    };
    match known.load(Relaxed) {
        0 => {
            let pid = ask();
            if !ptr::eq(known, &raw const NONE) {
                known.store(pid, Relaxed);
            }
            pid
        }
        pid => pid,
    }
}

fn ask() -> u32 {
    rustix::process::getpid().as_raw_nonzero().get() as u32
}

#[cold]
fn make_page() {
    const LEN: usize = 4096;
    let page = (|| {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let page = unsafe { mmap_anonymous(ptr::null_mut(), LEN, protection, flags) }.ok()?;
        // SAFETY: the page that was just mapped. Where the kernel cannot do it (before Linux 4.14), it stays unused.
        unsafe { madvise(page, LEN, Advice::LinuxWipeOnFork) }.ok()?;
        Some(page.cast::<AtomicU32>())
    })();
    let page = page.unwrap_or((&raw const NONE).cast_mut());
    // Losing the race means that another thread has made one: this one stays unused.
    let _ = PAGE.compare_exchange(ptr::null_mut(), page, AcqRel, Acquire);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_knows_its_own() {
        assert_eq!((pid(), pid()), (ask(), ask()));
        // SAFETY: the child only asks, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let is_right = (pid(), pid()) == (ask(), ask());
            // SAFETY: it ends the process and touches nothing.
            unsafe { libc::_exit(libc::c_int::from(is_right)) };
        }
        let mut status = 0;
        // SAFETY: the child is ours, and `status` is a place to write to.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(libc::WEXITSTATUS(status), 1);
    }
}
