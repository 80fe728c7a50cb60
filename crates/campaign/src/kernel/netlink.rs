//! The process-events connector: the kernel tells of every fork and exit on the machine, with the status. Needs root in the
//! initial namespaces; in others the kernel does not answer.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Status, Told};

/// `CN_IDX_PROC` and `CN_VAL_PROC`.
const PROC: u32 = 1;
const LISTEN: u32 = 1;
const NLMSG_DONE: u16 = 3;

const NONE: u32 = 0;
const FORK: u32 = 1;
const EXIT: u32 = 0x8000_0000;

/// A second of a thousand forks is half a megabyte.
const BUFFER: usize = 64 << 20;

/// `struct nlmsghdr` and `struct cn_msg`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    length: u32,
    kind: u16,
    flags: u16,
    number: u32,
    port: u32,
    index: u32,
    value: u32,
    /// Counts the messages of one processor.
    count: u32,
    answer: u32,
    data_length: u16,
    data_flags: u16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Request {
    head: Head,
    operation: u32,
}

/// The beginning of `struct proc_event`.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct What {
    what: u32,
    cpu: u32,
    /// CLOCK_MONOTONIC.
    at: u64,
}

#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Fork {
    parent_thread: i32,
    parent: i32,
    child_thread: i32,
    child: i32,
}

#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Exit {
    thread: i32,
    process: i32,
    status: u32,
    signal: u32,
}

/// What a message says.
pub(super) enum Message {
    /// Of a process.
    Told(Told),
    /// The kernel's answer to our request.
    Answer,
    /// Of no interest.
    Other,
}

/// A socket that the kernel sends to.
pub(super) struct Connector {
    socket: OwnedFd,
    /// The last count of each processor.
    counts: Vec<Option<u32>>,
}

impl Connector {
    /// Asks for the events; an error also where the kernel does not answer.
    pub(super) fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(netlink::CONNECTOR),
        )?;
        sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)?;
        rustix::net::bind(&socket, &netlink::SocketAddrNetlink::new(0, PROC))?;
        let request = Request {
            head: Head {
                length: size_of::<Request>() as u32,
                kind: NLMSG_DONE,
                flags: 0,
                number: 0,
                port: 0,
                index: PROC,
                value: PROC,
                count: 0,
                answer: 0,
                data_length: 4,
                data_flags: 0,
            },
            operation: LISTEN,
        };
        rustix::net::send(&socket, request.as_bytes(), SendFlags::empty())?;
        let mut connector = Self { socket, counts: Vec::new() };
        // Where it will not tell us, it does not say so.
        for _ in 0..1000 {
            match connector.next(Duration::from_millis(300))? {
                Some(Message::Answer) => return Ok(connector),
                Some(_) => {}
                None => break,
            }
        }
        Err(io::Error::other("the kernel does not answer: not root in the initial namespaces"))
    }

    /// The next message, or nothing within the time. An error of kind `Interrupted`: some are lost.
    pub(super) fn next(&mut self, patience: Duration) -> io::Result<Option<Message>> {
        let limit = Timespec::try_from(patience).map_err(io::Error::other)?;
        if poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&limit))? == 0 {
            return Ok(None);
        }
        let mut bytes = [0_u8; 1024];
        let length = match rustix::net::recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT) {
            Ok((_, length)) => length.min(bytes.len()),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::NOBUFS) => return Err(lost("ENOBUFS")),
            Err(error) => return Err(error.into()),
        };
        self.read(&bytes[..length]).map(Some)
    }

    fn read(&mut self, bytes: &[u8]) -> io::Result<Message> {
        let Ok((head, rest)) = Head::read_from_prefix(bytes) else { return Ok(Message::Other) };
        let Ok((what, rest)) = What::read_from_prefix(rest) else { return Ok(Message::Other) };
        if (head.index, head.value) != (PROC, PROC) {
            return Ok(Message::Other);
        }
        if what.what == NONE {
            return Ok(Message::Answer);
        }
        let cpu = what.cpu as usize;
        if cpu < 4096 {
            if self.counts.len() <= cpu {
                self.counts.resize(cpu + 1, None);
            }
            let before = self.counts[cpu].replace(head.count);
            if before.is_some_and(|before| before.wrapping_add(1) != head.count) {
                return Err(lost(&format!("processor {cpu} counts {} after {before:?}", head.count)));
            }
        }
        let at = what.at;
        Ok(match what.what {
            FORK => match Fork::read_from_prefix(rest) {
                Ok((fork, _)) if fork.child_thread == fork.child => {
                    Message::Told(Told::Forked { parent: fork.parent, pid: fork.child, at })
                }
                _ => Message::Other,
            },
            EXIT => match Exit::read_from_prefix(rest) {
                Ok((exit, _)) if exit.thread == exit.process => Message::Told(Told::Ended {
                    pid: exit.process,
                    status: Some(Status(exit.status as i32)),
                    at,
                }),
                _ => Message::Other,
            },
            _ => Message::Other,
        })
    }
}

fn lost(how: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, format!("messages of the kernel are lost: {how}"))
}
