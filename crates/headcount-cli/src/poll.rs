//! Waiting for descriptors; signals are one of them.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Context;
use rustix::event::{self, PollFd, Timespec};
use rustix::io::Errno;

/// Waits until one of these is ready, or for `limit`. A signal may end it sooner.
pub fn wait(fds: &mut [PollFd<'_>], limit: Option<Duration>) -> anyhow::Result<()> {
    let limit = limit.map(|limit| Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    match event::poll(fds, limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("cannot wait"),
    }
}

/// Catches signals from now on, as a descriptor that becomes readable: a signal that comes right before a wait is not missed.
pub struct Signals {
    read: UnixStream,
}

impl Signals {
    pub fn catch(signals: &[i32]) -> anyhow::Result<Signals> {
        let (read, write) = UnixStream::pair().context("cannot wait for signals")?;
        read.set_nonblocking(true).context("cannot wait for signals")?;
        for &signal in signals {
            let write = write.try_clone().context("cannot wait for signals")?;
            signal_hook::low_level::pipe::register(signal, write).context("cannot wait for signals")?;
        }
        Ok(Signals { read })
    }

    /// What another thread writes takes the place of signals.
    pub fn by_another() -> anyhow::Result<(UnixStream, Signals)> {
        let (read, write) = UnixStream::pair().context("cannot wait")?;
        read.set_nonblocking(true).and_then(|()| write.set_nonblocking(true)).context("cannot wait")?;
        Ok((write, Signals { read }))
    }

    /// Whether one has come since this was asked last.
    pub fn came(&self) -> bool {
        let mut came = false;
        // Until it would block. The other end of this pair is never closed.
        while (&self.read).read(&mut [0; 64]).is_ok_and(|n| n > 0) {
            came = true;
        }
        came
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }
}
