//! A list that only grows, and is read without a lock: so a forked child never finds it locked by a thread that it does
//! not have.

use std::ptr;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

struct Link<T: 'static> {
    value: T,
    next: Option<&'static Link<T>>,
}

/// Newest first. What was added stays for ever.
pub(crate) struct Grown<T: 'static> {
    first: AtomicPtr<Link<T>>,
}

impl<T: Sync + Send + 'static> Grown<T> {
    pub(crate) const fn new() -> Grown<T> {
        Grown { first: AtomicPtr::new(ptr::null_mut()) }
    }

    fn first(&self) -> Option<&'static Link<T>> {
        // SAFETY: NULL, or a link that was leaked by `push` after it was completely made.
        unsafe { self.first.load(Acquire).as_ref() }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &'static T> + use<T> {
        std::iter::successors(self.first(), |link| link.next).map(|link| &link.value)
    }

    pub(crate) fn push(&self, value: T) {
        let link = Box::leak(Box::new(Link { value, next: None }));
        let new = ptr::from_mut(link);
        loop {
            let first = self.first.load(Acquire);
            // SAFETY: nobody else has seen the new link; `first` is NULL or a leaked link.
            unsafe { (*new).next = first.as_ref() };
            if self.first.compare_exchange(first, new, Release, Relaxed).is_ok() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_was_added_is_found() {
        static LIST: Grown<u32> = Grown::new();
        let threads: Vec<_> = (0..4u32).map(|n| std::thread::spawn(move || LIST.push(n))).collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        let mut found: Vec<_> = LIST.iter().copied().collect();
        found.sort_unstable();
        assert_eq!(found, [0, 1, 2, 3]);
    }
}
