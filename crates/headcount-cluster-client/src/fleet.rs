//! The fleet: its state, and what happens to it.

use std::collections::VecDeque;
use std::io::{Error, ErrorKind};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::boot_ms;
use crate::connection::Connection;

/// The state of ten thousand hosts is 6 MiB.
const LONGEST_STATE: usize = 64 * 1024 * 1024;
const LONGEST_EVENT: usize = 256 * 1024;

/// What is told of the fleet, as long as the agent is there.
pub struct Events {
    socket: PathBuf,
    connection: Connection,
    lines: VecDeque<String>,
    /// Why there will be no more.
    ended: Option<String>,
}

/// The state of the fleet: the document of `headcount cluster status --json`, in one line. Waits for it, for `limit` at most.
///
/// # Errors
/// The agent does not answer, or has no cluster, or cannot read etcd: which agent, and why.
pub fn state(socket: impl AsRef<Path>, limit: Duration) -> std::io::Result<String> {
    let mut page = Events::request(socket.as_ref(), "/cluster", LONGEST_STATE)?;
    let until = boot_ms().saturating_add(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
    loop {
        page.process();
        if let Some(document) = page.lines.pop_front() {
            return Ok(document);
        }
        if let Some(why) = &page.ended {
            return Err(Error::new(ErrorKind::NotConnected, why.clone()));
        }
        let left = until.saturating_sub(boot_ms());
        if left == 0 {
            let why = format!("the agent at {}: timed out after {limit:?}", page.socket.display());
            return Err(Error::new(ErrorKind::TimedOut, why));
        }
        page.wait(Some(Duration::from_millis(left)))?;
    }
}

impl Events {
    /// Asks the agent that listens there to tell what happens from now on: from when [`Events::is_open`] at the latest. Does not wait.
    ///
    /// # Errors
    /// There is no agent.
    pub fn open(socket: impl AsRef<Path>) -> std::io::Result<Events> {
        Events::request(socket.as_ref(), "/cluster/events", LONGEST_EVENT)
    }

    /// 1.0: so that the answer ends with the connection.
    fn request(socket: &Path, page: &str, longest: usize) -> std::io::Result<Events> {
        let request = format!("GET {page} HTTP/1.0\r\nHost: agent\r\n\r\n");
        let connection = Connection::open(socket, request, "200", longest).map_err(|error| {
            Error::new(ErrorKind::NotConnected, format!("the agent at {}: {error}", socket.display()))
        })?;
        Ok(Events { socket: socket.to_owned(), connection, lines: VecDeque::new(), ended: None })
    }

    /// What to wait for: readable, and writable too if the second says so.
    #[must_use]
    pub fn fd(&self) -> (BorrowedFd<'_>, bool) {
        (self.connection.fd(), self.connection.has_to_write())
    }

    /// The agent tells what happens.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.connection.has_answered()
    }

    /// Waits until there is something for [`Events::next`], or for `limit`.
    ///
    /// # Errors
    /// The system cannot wait.
    pub fn wait(&self, limit: Option<Duration>) -> std::io::Result<()> {
        if !self.lines.is_empty() || self.ended.is_some() {
            return Ok(());
        }
        let limit = limit.map(|limit| Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        });
        let (fd, has_to_write) = self.fd();
        let flags = if has_to_write { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What has happened, a line of JSON: an event as of `headcount cluster events --json`, or a `notice`. `None`: nothing now. Never
    /// blocks.
    ///
    /// # Errors
    /// There will be no more: which agent, and why. It may be opened anew; what has happened meanwhile is not told.
    #[allow(
        clippy::should_implement_trait,
        reason = "an iterator would block, or end where there is nothing now"
    )]
    pub fn next(&mut self) -> std::io::Result<Option<String>> {
        if self.lines.is_empty() {
            self.process();
        }
        match (self.lines.pop_front(), &self.ended) {
            (Some(line), _) => Ok(Some(line)),
            (None, Some(why)) => Err(Error::new(ErrorKind::NotConnected, why.clone())),
            (None, None) => Ok(None),
        }
    }

    /// Hears what there is to hear, without waiting.
    ///
    /// # Errors
    /// There will be nothing: which agent, and why.
    pub fn look(&mut self) -> std::io::Result<()> {
        self.process();
        match &self.ended {
            Some(why) if self.lines.is_empty() => Err(Error::new(ErrorKind::NotConnected, why.clone())),
            _ => Ok(()),
        }
    }

    fn process(&mut self) {
        if self.ended.is_some() {
            return;
        }
        let how = self.connection.write().and_then(|()| self.connection.read());
        let lines = std::mem::take(&mut self.connection.lines).into_iter();
        self.lines.extend(lines.filter(|line| !line.is_empty()));
        self.ended = how.err().map(|why| format!("the agent at {}: {why}", self.socket.display()));
    }
}
