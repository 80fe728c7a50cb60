//! Records that are read while somebody else writes them, without a lock: the reader finds out whether what it
//! has read is whole.
//!
//! There is one writer at a time (the holder of the node lock), and any number of readers. The fields are written and
//! read in any order; what keeps them together is one word beside them and two fences. A writer that dies half-way
//! leaves a record that nobody takes for whole.

use crate::sys::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sys::atomic::{AtomicU64, fence};

/// A record that changes while it is read is read again, but not for ever: its writer may have died.
const ATTEMPTS: usize = if cfg!(loom) { 2 } else { 8 };

/// Rewrites a record with a version, which is odd meanwhile. Gives the new version.
pub(crate) fn rewrite(version: &AtomicU64, write: impl FnOnce()) -> u64 {
    rewrite_beyond(0, version, write)
}

/// The same, with a version that is greater than `floor`: where no version may come again, even if somebody has set the
/// record to zero.
pub(crate) fn rewrite_beyond(floor: u64, version: &AtomicU64, write: impl FnOnce()) -> u64 {
    let meanwhile = version.load(Relaxed).max(floor) | 1;
    version.store(meanwhile, Relaxed);
    // A reader that sees any of the following stores also sees the odd version.
    fence(Release);
    write();
    let after = meanwhile.wrapping_add(1);
    version.store(after, Release);
    after
}

/// Reads a record with a version. `None`: it is being rewritten, or `read` says that there is nothing.
pub(crate) fn consistent<T>(version: &AtomicU64, mut read: impl FnMut(u64) -> Option<T>) -> Option<T> {
    for _ in 0..ATTEMPTS {
        let before = version.load(Acquire);
        if before % 2 == 1 {
            std::hint::spin_loop();
            continue;
        }
        let value = read(before);
        // The loads of `read` must not be taken after the second look at the version.
        fence(Acquire);
        if version.load(Relaxed) == before {
            return value;
        }
    }
    None
}

/// Writes a record that is known by a number, which is 0 meanwhile. No number is used for two contents that anybody
/// could have read.
pub(crate) fn publish(number: &AtomicU64, new: u64, write: impl FnOnce()) {
    number.store(0, Relaxed);
    // A reader that sees any of the following stores also sees the 0 above.
    fence(Release);
    write();
    number.store(new, Release);
}

/// Reads a record that is known by a number. `None`: it is not this one, or not any more.
pub(crate) fn published<T>(number: &AtomicU64, wanted: u64, read: impl FnOnce() -> T) -> Option<T> {
    if number.load(Acquire) != wanted {
        return None;
    }
    let value = read();
    // The loads of `read` must not be taken after the second look at the number.
    fence(Acquire);
    (number.load(Relaxed) == wanted).then_some(value)
}

/// All interleavings, and all values that the memory model lets a load see:
/// `RUSTFLAGS="--cfg loom" cargo test -p headcount --lib --release loom`
#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    #[derive(Default)]
    struct Record {
        word: AtomicU64,
        first: AtomicU64,
        second: AtomicU64,
    }

    impl Record {
        fn write(&self, value: u64) {
            self.first.store(value, Relaxed);
            self.second.store(value, Relaxed);
        }

        fn read(&self) -> (u64, u64) {
            // Not in the order in which they are written: no order is promised.
            let second = self.second.load(Relaxed);
            (self.first.load(Relaxed), second)
        }
    }

    #[test]
    fn loom_a_versioned_record_is_read_whole_or_not_at_all() {
        loom::model(|| {
            let record = Arc::new(Record::default());
            let writer = {
                let record = record.clone();
                thread::spawn(move || {
                    for value in 1..=2 {
                        rewrite(&record.word, || record.write(value));
                    }
                })
            };
            let read = consistent(&record.word, |version| Some((version, record.read())));
            if let Some((version, (first, second))) = read {
                assert_eq!((first, second), (version / 2, version / 2));
            }
            writer.join().unwrap();
            assert_eq!(consistent(&record.word, |version| Some((version, record.read()))), Some((4, (2, 2))));
        });
    }

    #[test]
    fn loom_a_record_whose_writer_died_is_not_read() {
        loom::model(|| {
            let record = Arc::new(Record::default());
            let writer = {
                let record = record.clone();
                thread::spawn(move || {
                    // As far as it came.
                    record.word.store(1, Relaxed);
                    fence(Release);
                    record.first.store(7, Relaxed);
                })
            };
            let read = consistent(&record.word, |_| Some(record.read()));
            assert!(matches!(read, None | Some((0, 0))), "{read:?}");
            writer.join().unwrap();
            assert_eq!(consistent(&record.word, |_| Some(record.read())), None);
            // The next holder of the lock writes it anew.
            assert_eq!(rewrite(&record.word, || record.write(8)), 2);
            assert_eq!(consistent(&record.word, |_| Some(record.read())), Some((8, 8)));
        });
    }

    /// A heartbeat is written by the process itself, beside the lock: to a reader it is as old as the claim, or newer.
    #[test]
    fn loom_a_heartbeat_is_never_older_than_the_claim() {
        loom::model(|| {
            let record = Arc::new(Record::default());
            let process = {
                let record = record.clone();
                thread::spawn(move || {
                    rewrite(&record.word, || record.write(10));
                    record.second.store(11, Relaxed);
                })
            };
            let read = consistent(&record.word, |version| Some((version, record.read())));
            assert!(matches!(read, None | Some((0, (0, 0)) | (2, (10, 10 | 11)))), "{read:?}");
            process.join().unwrap();
        });
    }

    /// A ring of one record, so that each event overwrites the one before.
    #[test]
    fn loom_a_numbered_record_is_read_whole_or_not_at_all() {
        loom::model(|| {
            let record = Arc::new(Record::default());
            let head = Arc::new(AtomicU64::new(0));
            let writer = {
                let (record, head) = (record.clone(), head.clone());
                thread::spawn(move || {
                    for number in 1..=2 {
                        publish(&record.word, number, || record.write(number));
                        head.store(number, Release);
                    }
                })
            };
            let wanted = head.load(Acquire);
            if wanted > 0 {
                let read = published(&record.word, wanted, || record.read());
                // Overwritten since, or whole; and the newest one cannot be missing.
                assert!(
                    matches!(read, None | Some((1, 1)) if wanted == 1) || read == Some((2, 2)),
                    "{wanted}: {read:?}"
                );
            }
            writer.join().unwrap();
            assert_eq!(published(&record.word, 2, || record.read()), Some((2, 2)));
        });
    }

    /// Without the journal's head, whose order would do the same: the number alone orders the fields.
    #[test]
    fn loom_a_number_that_is_seen_comes_with_its_record() {
        loom::model(|| {
            let record = Arc::new(Record::default());
            let readers: Vec<_> = (0..2)
                .map(|_| {
                    let record = record.clone();
                    thread::spawn(move || published(&record.word, 1, || record.read()))
                })
                .collect();
            publish(&record.word, 1, || record.write(1));
            for reader in readers {
                assert!(matches!(reader.join().unwrap(), None | Some((1, 1))));
            }
        });
    }
}
