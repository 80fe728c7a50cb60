//! A connection to the agent: one request that is upgraded, and then lines.

use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with,
};

use crate::protocol::{LONGEST_LINE, PATH, Request, UPGRADE};

/// So much is kept of what the agent does not read.
const UNSENT: usize = 256 * 1024;

pub(crate) struct Connection {
    stream: UnixStream,
    /// The answer to the request was read: what follows are lines.
    is_upgraded: bool,
    received: Vec<u8>,
    unsent: Vec<u8>,
    /// What was said.
    pub lines: Vec<String>,
}

impl Connection {
    /// Does not wait: an agent that does not accept is one that is away.
    pub fn open(socket: &Path) -> std::io::Result<Connection> {
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
        let request = format!(
            "GET {PATH} HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n\r\n"
        );
        let unsent = request.into_bytes();
        Ok(Connection {
            stream: fd.into(),
            is_upgraded: false,
            received: Vec::new(),
            unsent,
            lines: Vec::new(),
        })
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
        let mut buffer = [0; 4096];
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
            if self.received.len() > 16 * LONGEST_LINE {
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
        if !self.is_upgraded {
            let Some(end) = self.received.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
                return if self.received.len() > LONGEST_LINE {
                    Err("it is no agent".to_owned())
                } else {
                    Ok(())
                };
            };
            let head = String::from_utf8_lossy(&self.received[..end]).into_owned();
            let body = self.received.split_off(end + 4);
            let status = head.split(' ').nth(1).unwrap_or_default();
            if status != "101" {
                let why = String::from_utf8_lossy(&body);
                let why = why.trim();
                let why = if why.is_empty() { head.lines().next().unwrap_or_default() } else { why };
                return Err(format!("it refuses: {why}"));
            }
            (self.received, self.is_upgraded) = (body, true);
        }
        while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
            let rest = self.received.split_off(end + 1);
            let line = std::mem::replace(&mut self.received, rest);
            self.lines.push(String::from_utf8_lossy(line.trim_ascii_end()).into_owned());
        }
        if self.received.len() > LONGEST_LINE {
            Err("it says too much in one line".to_owned())
        } else {
            Ok(())
        }
    }
}
