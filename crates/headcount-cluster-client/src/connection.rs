//! A connection to the agent: one request, and then lines.

use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with,
};

use crate::protocol::{LONGEST_LINE, Request};

/// So much is kept of what the agent does not read.
const UNSENT: usize = 256 * 1024;

pub(crate) struct Connection {
    stream: UnixStream,
    /// The status that it is to answer with.
    expected: &'static str,
    /// That was read: what follows are lines, none of which may be longer than this.
    has_answered: bool,
    longest: usize,
    received: Vec<u8>,
    unsent: Vec<u8>,
    /// What was said.
    pub lines: Vec<String>,
}

impl Connection {
    /// Does not wait: an agent that does not accept is one that is away.
    pub fn open(
        socket: &Path,
        request: String,
        expected: &'static str,
        longest: usize,
    ) -> std::io::Result<Connection> {
        let fd = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            None,
        )?;
        connect(&fd, &SocketAddrUnix::new(socket)?).map_err(|error| match error {
            Errno::AGAIN => std::io::Error::other("it does not accept connections"),
            error => error.into(),
        })?;
        Ok(Connection {
            stream: fd.into(),
            expected,
            has_answered: false,
            longest,
            received: Vec::new(),
            unsent: request.into_bytes(),
            lines: Vec::new(),
        })
    }

    pub fn has_answered(&self) -> bool {
        self.has_answered
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub fn has_to_write(&self) -> bool {
        !self.unsent.is_empty()
    }

    pub fn send(&mut self, request: &Request) {
        // Structures of plain members.
        let line = serde_json::to_string(request).unwrap_or_default();
        self.unsent.extend_from_slice(line.as_bytes());
        self.unsent.push(b'\n');
    }

    /// Reads as much as there is now. The error is for people.
    pub fn read(&mut self) -> Result<(), String> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.cut()?;
                    return Err("it has closed the connection".to_owned());
                }
                Ok(n) => self.received.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return self.cut(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
            // So that one who says much does not keep this here.
            if self.received.len() > 16 * LONGEST_LINE.max(self.longest) {
                return self.cut();
            }
        }
    }

    pub fn write(&mut self) -> Result<(), String> {
        while !self.unsent.is_empty() {
            // Nobody who uses this is to be ended by a signal because the agent has ended.
            match send(&self.stream, &self.unsent, SendFlags::NOSIGNAL) {
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.to_string()),
            }
        }
        if self.unsent.len() > UNSENT { Err("it does not read".to_owned()) } else { Ok(()) }
    }

    /// Takes what is whole.
    fn cut(&mut self) -> Result<(), String> {
        if !self.has_answered {
            let Some(end) = self.received.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
                return if self.received.len() > LONGEST_LINE {
                    Err("it is no agent".to_owned())
                } else {
                    Ok(())
                };
            };
            let head = String::from_utf8_lossy(&self.received[..end]).into_owned();
            let status = head.split(' ').nth(1).unwrap_or_default();
            if status != self.expected {
                let body = &self.received[end + 4..];
                if body.len() < length_of_body(&head) {
                    return Ok(());
                }
                let why = String::from_utf8_lossy(body);
                let why = why.trim();
                let why = if why.is_empty() { head.lines().next().unwrap_or_default() } else { why };
                return Err(format!("it refuses: {why}"));
            }
            (self.received, self.has_answered) = (self.received.split_off(end + 4), true);
        }
        let Some(end) = self.received.iter().rposition(|byte| *byte == b'\n') else {
            return self.fits(self.received.len());
        };
        let rest = self.received.split_off(end + 1);
        let whole = std::mem::replace(&mut self.received, rest);
        for line in whole[..end].split(|byte| *byte == b'\n') {
            self.fits(line.len())?;
            self.lines.push(String::from_utf8_lossy(line.trim_ascii_end()).into_owned());
        }
        self.fits(self.received.len())
    }

    fn fits(&self, length: usize) -> Result<(), String> {
        if length > self.longest { Err("it says too much in one line".to_owned()) } else { Ok(()) }
    }
}

/// What the head of an answer says; 0 if it says nothing. A reason that is longer is none of ours.
fn length_of_body(head: &str) -> usize {
    let headers = head.lines().filter_map(|line| line.split_once(':'));
    let found = headers.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    found
        .and_then(|(_, length)| length.trim().parse().ok())
        .map_or(0, |length: usize| length.min(LONGEST_LINE))
}
