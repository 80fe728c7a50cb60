//! Writing to and emptying a pipe without ever blocking, whatever its flags say.
//!
//! `O_NONBLOCK` belongs to the open description, which a master shares with all its workers: any of them could
//! clear it, and a plain `read` or `write` of root's would then wait for ever. The splice calls take their own flag.

use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{IoSliceRaw, SpliceFlags, splice, vmsplice};

/// Writes one byte, which whoever waits for the pipe is told of. A pipe that is full is emptied first: a byte in it was
/// news once, and is none for a reader who looks for changes.
pub(crate) fn put(write: &OwnedFd, read: &OwnedFd, sink: &OwnedFd) {
    static BYTE: [u8; 1] = [1];
    let put = || {
        // SAFETY: the pipe refers to the byte's page until it is read; the byte is static and never changes.
        unsafe { vmsplice(write.as_fd(), &[IoSliceRaw::from_slice(&BYTE)], SpliceFlags::NONBLOCK) }
    };
    if put().is_err() {
        drain(read, sink);
        // Full again: then somebody else has just written.
        let _ = put();
    }
}

/// Empties it into `sink` (`/dev/null`), or as much of it as a full pipe holds: who fills it all the time must not keep
/// us here.
pub(crate) fn drain(pipe: &OwnedFd, sink: &OwnedFd) {
    const FULL: usize = 65_536;
    // Empty is what it shall be.
    let _ = splice(pipe, None, sink, None, FULL, SpliceFlags::NONBLOCK);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::time::{Duration, Instant};

    #[test]
    fn neither_blocks_when_somebody_has_cleared_the_flag() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let sink = OwnedFd::from(std::fs::File::options().write(true).open("/dev/null").unwrap());
        let begun = Instant::now();
        drain(&read, &sink);
        for _ in 0..100_000 {
            put(&write, &read, &sink);
        }
        let waiting = |fd: &OwnedFd| {
            let mut fds = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
            let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            rustix::event::poll(&mut fds, Some(&zero)).unwrap() == 1
        };
        assert!(waiting(&read), "nothing was written to {}", read.as_raw_fd());
        drain(&read, &sink);
        assert!(!waiting(&read), "it was not emptied");
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
