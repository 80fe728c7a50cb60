//! A deadline as a descriptor, for whoever waits for it along with others.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

pub(super) struct Timer {
    fd: OwnedFd,
    set: Option<Instant>,
}

impl Timer {
    pub(super) fn new() -> io::Result<Timer> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        Ok(Timer { fd, set: None })
    }

    /// Readable from this instant on; `None`: never.
    pub(super) fn set(&mut self, at: Option<Instant>) -> io::Result<()> {
        if at == self.set {
            return Ok(());
        }
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = at.map_or(zero, |at| {
            // All zeroes would stand for never.
            let left = at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let timer = Itimerspec { it_interval: zero, it_value: value };
        timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &timer)?;
        self.set = at;
        Ok(())
    }

    /// Whether the instant has come. Says so once.
    pub(super) fn has_fired(&mut self) -> bool {
        // It is not readable before; there is no other failure.
        let fired = rustix::io::read(&self.fd, &mut [0; 8]).is_ok();
        if fired {
            self.set = None;
        }
        fired
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
