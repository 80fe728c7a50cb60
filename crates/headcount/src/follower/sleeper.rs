//! The thread that sleeps on the heads of journals, and rings when one has moved.
//!
//! A futex and descriptors cannot be waited for in one call, so this thread, which does nothing else, makes a readable
//! descriptor of the one. It sleeps without a time limit. When it has rung it waits for new orders: a reader that is
//! busy is not rung for again.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::sys::reader_futex::{Outcome, RemoteWord, SharedWord, wait_any};
use crate::sys::thread::spawn_without_signals;

/// How many words one call of the kernel waits for, besides our own.
pub(super) const MOST_WORDS: usize = 127;

/// Between two looks where sleeping is not possible: a file that was cut off; several words on a kernel that waits for one.
const LOOKS: Duration = Duration::from_secs(1);

/// A word, and the value that is known of it.
pub(super) type Expected = (Arc<RemoteWord>, u32);

pub(super) struct Sleeper {
    shared: Arc<Shared>,
}

struct Shared {
    bell: Arc<OwnedFd>,
    called: SharedWord,
    /// What is waited for, which may be nothing; `None`: the thread is to end.
    orders: Mutex<Option<Arc<[Expected]>>>,
}

impl Shared {
    fn orders(&self) -> MutexGuard<'_, Option<Arc<[Expected]>>> {
        // Nothing is done under it that could panic half-way.
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sleeper {
    /// `bell`: an eventfd that is written to when a word has changed.
    pub(super) fn start(bell: Arc<OwnedFd>) -> std::io::Result<Sleeper> {
        Sleeper::start_with(bell, true)
    }

    fn start_with(bell: Arc<OwnedFd>, waits_for_several: bool) -> std::io::Result<Sleeper> {
        let orders = Mutex::new(Some(Arc::default()));
        let shared = Arc::new(Shared { bell, called: SharedWord::default(), orders });
        let of_thread = Arc::clone(&shared);
        spawn_without_signals("headcount-wait", move || sleep(&of_thread, waits_for_several))?;
        Ok(Sleeper { shared })
    }

    /// Rings once, when one of these words is another than expected.
    pub(super) fn arm(&self, words: Vec<Expected>) {
        let mut orders = self.shared.orders();
        let same = |(a, b): (&Expected, &Expected)| Arc::ptr_eq(&a.0, &b.0) && a.1 == b.1;
        if orders.iter().any(|now| now.len() == words.len() && now.iter().zip(&words).all(same)) {
            return;
        }
        *orders = Some(words.into());
        drop(orders);
        self.shared.called.call();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        *self.shared.orders() = None;
        self.shared.called.call();
    }
}

/// `waits_for_several`: unless the kernel says that it does not.
fn sleep(shared: &Shared, mut waits_for_several: bool) {
    loop {
        let called = shared.called.value();
        let Some(words) = shared.orders().clone() else { return };
        let refs: Vec<(&RemoteWord, u32)> = words.iter().map(|(word, value)| (&**word, *value)).collect();
        let outcome = match &refs[..] {
            [] => {
                shared.called.wait(called, None);
                continue;
            }
            all if waits_for_several => wait_any((&shared.called, called), all, None),
            // New orders are seen a second later: who gives them has just read everything.
            [(word, value)] => word.wait(*value, LOOKS),
            _ => {
                shared.called.wait(called, Some(LOOKS));
                Outcome::Changed
            }
        };
        match outcome {
            Outcome::Unsupported => {
                waits_for_several = false;
                continue;
            }
            Outcome::TimedOut => continue,
            // Whoever reads the file is told why. Not at once again.
            Outcome::Fault => shared.called.wait(called, Some(LOOKS)),
            Outcome::Changed => {}
        }
        let mut orders = shared.orders();
        if shared.called.value() != called {
            continue;
        }
        *orders = Some(Arc::default());
        drop(orders);
        // It is full after 2^64 - 2 rings.
        let rung = rustix::io::write(&shared.bell, &1u64.to_ne_bytes());
        debug_assert_eq!(rung, Ok(8));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

    use super::*;

    fn word(value: u64) -> (std::fs::File, Arc<RemoteWord>) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0; 4096]).unwrap();
        set(&file, value);
        let word = RemoteWord::map(file.as_fd(), 0).unwrap();
        (file, Arc::new(word))
    }

    /// As a writer that was killed before it woke anybody.
    fn set(file: &std::fs::File, value: u64) {
        std::os::unix::fs::FileExt::write_all_at(file, &value.to_ne_bytes(), 0).unwrap();
    }

    fn rings(bell: &OwnedFd, limit: Duration) -> bool {
        let limit = Timespec::try_from(limit).unwrap();
        poll(&mut [PollFd::new(bell, PollFlags::IN)], Some(&limit)).unwrap();
        rustix::io::read(bell, &mut [0; 8]).is_ok()
    }

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(20);

    #[test]
    fn it_rings_once_for_each_order_on_kernels_old_and_new() {
        for (several, number) in [(true, 1), (true, MOST_WORDS), (false, 1), (false, 3)] {
            let bell = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
            let sleeper = Sleeper::start_with(Arc::clone(&bell), several).unwrap();
            let words: Vec<_> = (0..number).map(|_| word(7)).collect();
            let orders = |value| words.iter().map(|(_, word)| (Arc::clone(word), value)).collect::<Vec<_>>();
            sleeper.arm(orders(7));
            if several || number == 1 {
                assert!(!rings(&bell, SHORT), "{several} {number}: nothing has changed");
            }
            // Known to have changed when the order is given.
            set(&words[number - 1].0, 8);
            sleeper.arm(orders(6));
            assert!(rings(&bell, LONG), "{several} {number}");
            assert!(!rings(&bell, SHORT), "{several} {number}: not again without an order");
            sleeper.arm(Vec::new());
            assert!(!rings(&bell, SHORT), "{several} {number}: nothing is waited for");
        }
    }

    #[test]
    fn a_file_that_was_cut_off_keeps_nobody_busy() {
        let bell = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        let sleeper = Sleeper::start(Arc::clone(&bell)).unwrap();
        let (file, word) = word(7);
        file.set_len(0).unwrap();
        sleeper.arm(vec![(word, 7)]);
        assert!(!rings(&bell, SHORT), "it rests first");
        assert!(rings(&bell, LONG), "and is told then");
    }
}
