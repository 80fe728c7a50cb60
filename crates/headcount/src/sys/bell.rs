//! The bell: how one process of a node tells another that there is something to look at.
//!
//! It is a timer that the master makes before it forks. To ring is to set it to "now"; a listener has it in its
//! epoll instance, edge-triggered, and never reads it. So nobody can be held by it: setting a timer never
//! waits, whatever other owners of the descriptor do. A pipe or an eventfd would not do: a worker can fill
//! either, clear their O_NONBLOCK, and have a root master wait in `write`.
//!
//! To set a timer takes tens of microseconds, so only the first ring after a listener's look does it: a word beside
//! the timer, in memory that the same processes share, says whether there has been a look since the last ring.
//!
//! A hostile worker can ring all the time, or silence the bell at the right moment. That costs early or late
//! looks; every listener also looks by itself once a second.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::atomic::Ordering::SeqCst;
use super::atomic::fence;
use super::memory::SharedWord;
use super::timer::Timer;

/// Shared by a master and all that it forks.
pub(crate) struct Bell {
    timer: Timer,
    /// 1: a listener has begun a look since the last ring.
    is_awaited: SharedWord,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Bell> {
        Ok(Bell { timer: Timer::new()?, is_awaited: SharedWord::new()? })
    }

    /// To be called by a listener before each look: what changes after that is rung for.
    pub(crate) fn await_ring(&self) {
        // In one order with all stores and loads of the look, and with those of who rings.
        self.is_awaited.get().store(1, SeqCst);
        fence(SeqCst);
    }

    /// To be called after what there is to look at has been written. Never waits.
    pub(crate) fn ring(&self) {
        fence(SeqCst);
        if self.is_awaited.get().swap(0, SeqCst) == 0 {
            return;
        }
        // It cannot fail for a timer of our own making; if it did, the listeners look by themselves.
        let _ = self.timer.set(Some(Duration::ZERO));
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::event::{Timespec, epoll};

    use super::*;

    #[test]
    fn each_listener_hears_each_ring_and_nobody_reads() {
        let bell = Bell::new().unwrap();
        let listeners: Vec<_> = (0..2)
            .map(|_| {
                let listener = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
                let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
                epoll::add(&listener, &bell, epoll::EventData::new_u64(7), flags).unwrap();
                listener
            })
            .collect();
        let heard = |listener: &OwnedFd, milliseconds: i64| {
            let mut events = Vec::with_capacity(4);
            let limit = Timespec { tv_sec: 0, tv_nsec: milliseconds * 1_000_000 };
            epoll::wait(listener, rustix::buffer::spare_capacity(&mut events), Some(&limit)).unwrap()
        };
        for _ in 0..100 {
            bell.await_ring();
            bell.ring();
            // Nobody has looked since: it needs no second one.
            bell.ring();
            assert_eq!(listeners.iter().map(|l| heard(l, 900)).collect::<Vec<_>>(), [1, 1]);
            assert_eq!(heard(&listeners[0], 0), 0, "once for each ring");
        }
    }
}
