//! State that belongs to one process: a forked child makes its own afresh, and takes no lock of its parent's.
//!
//! A thread of the parent may have held a mutex, or have been in the middle of a change, when another thread
//! forked. In the child that thread does not exist, so its mutex is never unlocked. What the child needs of its
//! parent must therefore be readable without a lock.

use std::ptr;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{AcqRel, Acquire};

use super::process;

struct Entry<T: 'static> {
    pid: u32,
    value: T,
    /// The parent's, so that it is not taken for a leak.
    _parents: Option<&'static Entry<T>>,
}

/// One `T` for each process that asks for it.
pub struct PerProcess<T: 'static> {
    current: AtomicPtr<Entry<T>>,
}

impl<T: Sync + Send + 'static> Default for PerProcess<T> {
    fn default() -> PerProcess<T> {
        PerProcess::new()
    }
}

impl<T: Sync + Send + 'static> PerProcess<T> {
    /// Without any yet.
    #[must_use]
    pub const fn new() -> PerProcess<T> {
        PerProcess { current: AtomicPtr::new(ptr::null_mut()) }
    }

    /// The value of this process. `make` makes it at the first call, from the parent's if there is one: it must
    /// not take a lock in that.
    ///
    /// The parent's value stays where it is, since a thread may use it up to the end of the process. That costs a
    /// child its copy of it, once.
    pub fn get(&self, make: impl FnOnce(Option<&T>) -> T) -> &T {
        let pid = process::pid();
        let current = self.current.load(Acquire);
        // SAFETY: NULL, or an entry that was leaked below after it was completely made. Only `drop` frees it, when nobody can
        // call this any more.
        let found: Option<&'static Entry<T>> = unsafe { current.as_ref() };
        if let Some(entry) = found.filter(|entry| entry.pid == pid) {
            return &entry.value;
        }
        let value = make(found.map(|entry| &entry.value));
        let new = Box::into_raw(Box::new(Entry { pid, value, _parents: found }));
        match self.current.compare_exchange(current, new, AcqRel, Acquire) {
            // SAFETY: just made, and freed by `drop` alone, which what we give keeps from running.
            Ok(_) => unsafe { &(*new).value },
            Err(other) => {
                // SAFETY: nobody else has seen it.
                drop(unsafe { Box::from_raw(new) });
                // SAFETY: another thread of this process was quicker; what it stored is freed by `drop` alone.
                unsafe { &(*other).value }
            }
        }
    }
}

/// Ends what this very process has made. A child's copy of what its parent has made stays: ending that could speak for the parent.
impl<T: 'static> Drop for PerProcess<T> {
    fn drop(&mut self) {
        let current = *self.current.get_mut();
        // SAFETY: NULL, or an entry that `get` has leaked.
        if unsafe { current.as_ref() }.is_some_and(|entry| entry.pid == process::pid()) {
            // SAFETY: made from a box in this process; whatever `get` gave of it borrowed from us, and is gone.
            drop(unsafe { Box::from_raw(current) });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn threads_share_one_value() {
        static VALUE: PerProcess<Mutex<u32>> = PerProcess::new();
        let threads: Vec<_> = (0..8)
            .map(|_| std::thread::spawn(|| *VALUE.get(|_| Mutex::new(0)).lock().unwrap() += 1))
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(*VALUE.get(|_| Mutex::new(0)).lock().unwrap(), 8);
    }

    #[test]
    fn a_child_does_not_wait_for_a_lock_that_nobody_holds() {
        static VALUE: PerProcess<Mutex<u32>> = PerProcess::new();
        let held = VALUE.get(|_| Mutex::new(7)).lock().unwrap();
        // SAFETY: the child only takes a mutex of its own and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let fresh = VALUE.get(|parents| Mutex::new(u32::from(parents.is_some())));
            let code = fresh.try_lock().map_or(9, |value| *value as libc::c_int);
            // SAFETY: it ends the process and touches nothing.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: the child is ours, and `status` is a place to write to.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(libc::WEXITSTATUS(status), 1);
        drop(held);
    }

    #[test]
    fn what_a_process_has_made_ends_with_it_and_what_its_parent_has_made_stays() {
        struct Counted(Arc<AtomicU32>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.fetch_add(1, AcqRel);
            }
        }
        let ended = Arc::new(AtomicU32::new(0));
        let (untouched, value) = (PerProcess::new(), PerProcess::new());
        for it in [&untouched, &value] {
            it.get(|_| Counted(Arc::clone(&ended)));
        }
        // SAFETY: the child only makes and frees memory, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            drop(untouched);
            value.get(|_| Counted(Arc::clone(&ended)));
            drop(value);
            // SAFETY: it ends the process and touches nothing.
            unsafe { libc::_exit(ended.load(Acquire) as libc::c_int) };
        }
        let mut status = 0;
        // SAFETY: the child is ours, and `status` is a place to write to.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(libc::WEXITSTATUS(status), 1, "the child's own alone");
        drop((untouched, value));
        assert_eq!(ended.load(Acquire), 2);
    }
}
