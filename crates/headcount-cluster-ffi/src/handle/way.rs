//! One descriptor for all that is to be waited for, whatever becomes of the connection.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use headcount_border::Failure;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::io::{Errno, read, write};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use crate::border::io;

pub(crate) struct Way {
    /// What the caller's event loop waits for: the connection, the time, and the bell.
    all: OwnedFd,
    /// The connection and the time.
    agent: OwnedFd,
    /// The clock goes on while the machine is suspended.
    timer: OwnedFd,
    /// Something has happened while another call was inside.
    bell: OwnedFd,
    /// For the thread that waits in a call.
    waker: OwnedFd,
    /// The connection that `agent` has, and whether it is to be written to.
    followed: Mutex<Option<(i32, bool)>>,
}

impl Way {
    pub(crate) fn new() -> Result<Way, Failure> {
        let make = || -> Result<Way, Errno> {
            let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
            let way = Way {
                all: epoll::create(epoll::CreateFlags::CLOEXEC)?,
                agent: epoll::create(epoll::CreateFlags::CLOEXEC)?,
                timer: timerfd_create(
                    TimerfdClockId::Boottime,
                    TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
                )?,
                bell: event()?,
                waker: event()?,
                followed: Mutex::new(None),
            };
            let data = epoll::EventData::new_u64(0);
            epoll::add(&way.agent, &way.timer, data, epoll::EventFlags::IN)?;
            epoll::add(&way.all, &way.agent, data, epoll::EventFlags::IN)?;
            epoll::add(&way.all, &way.bell, data, epoll::EventFlags::IN)?;
            Ok(way)
        };
        make().map_err(|error| io("wait for the agent", error))
    }

    pub(crate) fn fd(&self) -> i32 {
        self.all.as_raw_fd()
    }

    /// Has it be readable when this connection is ready, or after this time. Whether it is another connection.
    pub(crate) fn follow(
        &self,
        fd: Option<(BorrowedFd<'_>, bool)>,
        timeout: Option<Duration>,
    ) -> Result<bool, Failure> {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = fd.map(|(fd, writes)| (fd.as_raw_fd(), writes));
        let is_other = followed.map(|(fd, _)| fd) != wanted.map(|(fd, _)| fd);
        if *followed != wanted {
            // One that was closed has left by itself.
            if let Some((fd, writes)) = fd {
                let flags = if writes {
                    epoll::EventFlags::IN | epoll::EventFlags::OUT
                } else {
                    epoll::EventFlags::IN
                };
                let data = epoll::EventData::new_u64(0);
                let added = if is_other {
                    epoll::add(&self.agent, fd, data, flags)
                } else {
                    epoll::modify(&self.agent, fd, data, flags)
                };
                added.map_err(|error| io("wait for the agent", error))?;
            }
            *followed = wanted;
        }
        // 0 would be never.
        let after = timeout.map_or(Duration::ZERO, |timeout| timeout.max(Duration::from_nanos(1)));
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let spec = Itimerspec { it_interval: zero, it_value: timespec(after) };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec)
            .map_err(|error| io("set a timer", error))?;
        Ok(is_other)
    }

    /// Waits for the agent, or until it is woken.
    pub(crate) fn wait(&self, limit: Duration) -> Result<(), Failure> {
        let mut fds = [
            PollFd::from_borrowed_fd(self.agent.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.waker.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, Some(&timespec(limit))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(io("wait for the agent", error)),
        }
        empty(&self.waker);
        Ok(())
    }

    pub(crate) fn wake(&self) {
        fill(&self.waker);
    }

    pub(crate) fn ring(&self) {
        fill(&self.bell);
    }

    pub(crate) fn quiet(&self) {
        empty(&self.bell);
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}

fn fill(event: &OwnedFd) {
    // It cannot be written if it has been 2^64 times: then it is readable.
    let _ = write(event, &1u64.to_ne_bytes());
}

fn empty(event: &OwnedFd) {
    // There may be nothing in it.
    let _ = read(event, &mut [0u8; 8]);
}
