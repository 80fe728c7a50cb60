//! A deadline as a descriptor, for whoever waits for it along with others.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

pub(crate) struct Timer(OwnedFd);

impl Timer {
    pub(crate) fn new() -> io::Result<Timer> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Timer(timerfd_create(TimerfdClockId::Boottime, flags)?))
    }

    /// Readable after so long; `None`: never.
    pub(crate) fn set(&self, after: Option<Duration>) -> io::Result<()> {
        // All zeroes stand for never. So does more than the kernel can count.
        let after = after.and_then(|after| Timespec::try_from(after.max(Duration::from_nanos(1))).ok());
        let timer = Itimerspec { it_interval: Timespec::default(), it_value: after.unwrap_or_default() };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &timer)?;
        Ok(())
    }

    /// Whether the time has come. Says so once.
    pub(crate) fn has_fired(&self) -> bool {
        // It is not readable before; there is no other failure.
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
