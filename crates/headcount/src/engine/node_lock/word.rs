//! The words of the node lock: who is named, and when it was last released. Nothing here knows who is alive.

use crate::registry::layout::Header;
use crate::sys::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sys::atomic::{AtomicU32, AtomicU64};

#[derive(Clone, Copy)]
pub(super) struct LockWord<'a> {
    named: &'a AtomicU64,
    released: &'a AtomicU32,
    holder_pid: &'a AtomicU32,
    holder_operation: &'a AtomicU32,
}

impl<'a> LockWord<'a> {
    pub(super) fn of(header: &'a Header) -> LockWord<'a> {
        LockWord {
            named: &header.lock,
            released: &header.released,
            holder_pid: &header.holder_pid,
            holder_operation: &header.holder_operation,
        }
    }

    /// How often it was released, and who is named: in this order, so that who then sleeps until it is released again has
    /// missed nothing.
    pub(super) fn look(self) -> (u32, u64) {
        let released = self.released.load(Acquire);
        (released, self.named.load(Acquire))
    }

    /// Takes it from the one who was seen to be named.
    pub(super) fn take(self, named: u64, word: u64) -> bool {
        self.named.compare_exchange(named, word, AcqRel, Acquire).is_ok()
    }

    /// The one who held it last and did not come to its end.
    pub(super) fn interrupted(self) -> Option<u32> {
        let is_signed = self.holder_operation.load(Acquire) != 0;
        is_signed.then(|| self.holder_pid.load(Relaxed))
    }

    pub(super) fn sign(self, pid: u32, operation: u32) {
        self.holder_pid.store(pid, Relaxed);
        self.holder_operation.store(operation, Release);
    }

    pub(super) fn release(self, word: u64) {
        self.holder_operation.store(0, Release);
        self.holder_pid.store(0, Relaxed);
        // Failing means that somebody has spoiled it: then it is no longer ours.
        let _ = self.named.compare_exchange(word, 0, AcqRel, Relaxed);
        self.released.fetch_add(1, Release);
    }
}

/// See `registry/seqlock.rs`.
#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    #[derive(Default)]
    struct Words {
        named: AtomicU64,
        released: AtomicU32,
        holder_pid: AtomicU32,
        holder_operation: AtomicU32,
        /// What it guards, in two parts.
        first: AtomicU64,
        second: AtomicU64,
    }

    impl Words {
        fn lock(&self) -> LockWord<'_> {
            LockWord {
                named: &self.named,
                released: &self.released,
                holder_pid: &self.holder_pid,
                holder_operation: &self.holder_operation,
            }
        }

        fn add(&self) {
            let (first, second) = (self.first.load(Relaxed), self.second.load(Relaxed));
            assert_eq!(first, second, "somebody else is in the middle of it");
            self.first.store(first + 1, Relaxed);
            self.second.store(second + 1, Relaxed);
        }
    }

    #[test]
    fn loom_the_lock_has_one_holder_who_sees_what_the_others_did() {
        loom::model(|| {
            let words = Arc::new(Words::default());
            let run = |words: Arc<Words>, me: u32| {
                // Once: who finds it taken goes away. Waiting is tried in `models/lock.rs`.
                let (_, named) = words.lock().look();
                let takes = named == 0 && words.lock().take(named, u64::from(me));
                if takes {
                    assert_eq!(words.lock().interrupted(), None);
                    words.lock().sign(me, 1);
                    words.add();
                    words.lock().release(u64::from(me));
                }
                u64::from(takes)
            };
            let other = {
                let words = words.clone();
                thread::spawn(move || run(words, 1))
            };
            let taken = run(words.clone(), 2);
            let taken = taken + other.join().unwrap();
            assert!(taken > 0);
            assert_eq!((words.first.load(Relaxed), words.second.load(Relaxed)), (taken, taken));
        });
    }

    /// Two want it from one who has died in the middle of something; the kernel has told both.
    #[test]
    fn loom_one_of_two_takes_it_from_the_dead_and_knows_it() {
        loom::model(|| {
            let words = Arc::new(Words::default());
            words.named.store(9, Relaxed);
            words.lock().sign(9, 1);
            let run = |words: Arc<Words>, me: u32| {
                let takes = words.lock().take(9, u64::from(me));
                if takes {
                    assert_eq!(words.lock().interrupted(), Some(9));
                    words.lock().sign(me, 1);
                    words.add();
                    words.lock().release(u64::from(me));
                }
                u32::from(takes)
            };
            let other = {
                let words = words.clone();
                thread::spawn(move || run(words, 1))
            };
            let taken = run(words.clone(), 2) + other.join().unwrap();
            assert_eq!(taken, 1);
            assert_eq!(words.lock().look(), (1, 0));
        });
    }

    /// A waiter that has seen the lock taken sleeps only while it was not released since.
    #[test]
    fn loom_who_sees_the_release_sees_the_lock_free() {
        loom::model(|| {
            let words = Arc::new(Words::default());
            words.named.store(1, Relaxed);
            let holder = {
                let words = words.clone();
                thread::spawn(move || words.lock().release(1))
            };
            let (released, named) = words.lock().look();
            assert!(released == 0 || named == 0, "it would sleep, and nobody would wake it");
            holder.join().unwrap();
            assert_eq!(words.lock().look(), (1, 0));
        });
    }
}
