//! Roles, onces and locks of a cluster, for a process of a host whose `headcount agent` is a part of it.
//!
//! A [`Client`] never blocks: it has a descriptor to wait for, a time until which to wait at most, and [`Client::process`] to be
//! called then. [`Client::token`] compares the clock itself: a process that stood still learns that it leads no more before it does
//! anything. docs/cluster.md says what holds.
//!
//! ```no_run
//! use headcount_cluster_client::{Client, Event};
//!
//! let mut client = Client::new("/run/headcount-agent/agent.sock");
//! client.stand("cron")?;
//! loop {
//!     client.wait(None)?;
//!     client.process();
//!     while let Some(event) = client.next_event() {
//!         match event {
//!             Event::Elected { token, .. } => println!("leads, as tenure {token}"),
//!             Event::Lost { why, .. } => println!("leads no more: {why}"),
//!             Event::GiveUp { role } => client.leave(&role),
//!             _ => {}
//!         }
//!     }
//!     if let Some(token) = client.token("cron") {
//!         println!("does one step of its work, with the token {token}");
//!     }
//! }
//! # #[allow(unreachable_code)]
//! # Ok::<(), std::io::Error>(())
//! ```

#![forbid(unsafe_code)]

mod agent;
mod connection;
mod event;
mod fleet;
pub mod protocol;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use connection::Connection;
pub use event::{Event, WhoRuns};
pub use fleet::{Events, state};
use protocol::{NAME, Request, is_name};

/// Where the agent listens, unless its configuration says something else.
pub const SOCKET: &str = "/run/headcount-agent/agent.sock";

/// Milliseconds since the boot, suspend included.
fn boot_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    // Neither is negative on this clock.
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// What is had, with its token.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Held {
    Role(String),
    Lock(u64),
    Run(String),
}

struct Lock {
    name: String,
    /// Until then it is waited for.
    limit: Option<u64>,
}

/// So long may the agent take to answer when it is connected to,
const PATIENCE_MS: u64 = 5_000;
/// so long does one take to say that a lock's time is over,
const LATE_MS: u64 = 2_000;
/// and so long is waited between two attempts, at first and at last.
const FIRST_PAUSE_MS: u64 = 100;
const LONGEST_PAUSE_MS: u64 = 5_000;

/// The way to the agent. It connects by itself, again and again.
pub struct Client {
    socket: PathBuf,
    connection: Option<Connection>,
    /// The agent has said welcome.
    is_welcome: bool,
    connect_at: u64,
    give_up_at: u64,
    pause: u64,
    /// What is to be added to the agent's times: it is 0 unless this process is in another time namespace.
    offset: i64,
    asked_at: u64,
    has_complained: bool,
    /// In this machine's time, for this process.
    deadline: u64,
    ttl: Duration,
    held: BTreeMap<Held, u64>,
    roles: Vec<String>,
    /// How often the agent was told that this process leaves a role, and has not answered: an election that comes before the answer is
    /// one that was left.
    leaving: BTreeMap<String, u32>,
    locks: BTreeMap<u64, Lock>,
    onces: Vec<String>,
    next_id: u64,
    events: VecDeque<Event>,
}

impl Client {
    /// To the agent that listens there. Nothing happens before [`Client::process`] is called.
    #[must_use]
    pub fn new(socket: impl AsRef<Path>) -> Client {
        Client {
            socket: socket.as_ref().to_owned(),
            connection: None,
            is_welcome: false,
            connect_at: 0,
            give_up_at: 0,
            pause: FIRST_PAUSE_MS,
            offset: 0,
            asked_at: 0,
            has_complained: false,
            deadline: 0,
            ttl: Duration::ZERO,
            held: BTreeMap::new(),
            roles: Vec::new(),
            leaving: BTreeMap::new(),
            locks: BTreeMap::new(),
            onces: Vec::new(),
            next_id: 1,
            events: VecDeque::new(),
        }
    }

    // What is asked for ---------------------------------------------------------------------------------------------------

    /// Stands for a role, until [`Client::leave`].
    ///
    /// # Errors
    /// It is no name, or this was called for it before.
    pub fn stand(&mut self, role: &str) -> io::Result<()> {
        check(role)?;
        if self.roles.iter().any(|other| other == role) {
            return Err(wrong(format!("this process stands for the role {role} already; allowed is once")));
        }
        self.roles.push(role.to_owned());
        self.ask(&Request::Stand { role: role.to_owned() });
        Ok(())
    }

    /// Does not stand for the role any more. What it did as the leader has ended.
    pub fn leave(&mut self, role: &str) {
        self.roles.retain(|other| other != role);
        self.held.remove(&Held::Role(role.to_owned()));
        self.ask_to_leave(role);
    }

    fn ask_to_leave(&mut self, role: &str) {
        if self.is_welcome {
            *self.leaving.entry(role.to_owned()).or_default() += 1;
            self.ask(&Request::Leave { role: role.to_owned() });
        }
    }

    /// Asks for a lock: the number that the answer has. `timeout`: so long it is waited for.
    ///
    /// # Errors
    /// It is no name.
    pub fn lock(&mut self, name: &str, timeout: Option<Duration>) -> io::Result<u64> {
        check(name)?;
        let id = self.next_id;
        self.next_id += 1;
        let timeout = timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        let limit = timeout.map(|timeout| boot_ms().saturating_add(timeout));
        self.locks.insert(id, Lock { name: name.to_owned(), limit });
        self.ask(&Request::Lock { id, name: name.to_owned(), timeout });
        Ok(id)
    }

    /// Lets go of a lock, or does not wait for it any more.
    pub fn unlock(&mut self, id: u64) {
        self.held.remove(&Held::Lock(id));
        if self.locks.remove(&id).is_some() {
            self.ask(&Request::Unlock { id });
        }
    }

    /// Asks to run something that runs once, or to hear that it was.
    ///
    /// # Errors
    /// It is no name, or was asked for before and is not settled.
    pub fn once(&mut self, key: &str) -> io::Result<()> {
        check(key)?;
        if self.onces.iter().any(|other| other == key) {
            return Err(wrong(format!("this process has asked for the once {key} already; allowed is once")));
        }
        self.onces.push(key.to_owned());
        self.ask(&Request::Once { key: key.to_owned() });
        Ok(())
    }

    /// Says how the attempt with this token ended. How it is settled is told to all who asked. One that was lost meanwhile is nobody's:
    /// there will be another.
    pub fn end(&mut self, key: &str, token: u64, ok: bool) {
        let held = Held::Run(key.to_owned());
        if self.held.get(&held) == Some(&token) {
            self.held.remove(&held);
            self.ask(&Request::End { key: key.to_owned(), token, ok, late: false });
        }
    }

    /// The number of the tenure, if this process leads the role at this instant.
    #[must_use]
    pub fn token(&self, role: &str) -> Option<u64> {
        self.has(&Held::Role(role.to_owned()))
    }

    /// The token of the lock, if this process has it at this instant.
    #[must_use]
    pub fn lock_token(&self, id: u64) -> Option<u64> {
        self.has(&Held::Lock(id))
    }

    /// The token of the attempt to do this once, if it is this process's at this instant.
    #[must_use]
    pub fn run_token(&self, key: &str) -> Option<u64> {
        self.has(&Held::Run(key.to_owned()))
    }

    /// How much longer what this process has is its own for certain. It is extended again and again.
    #[must_use]
    pub fn time_left(&self) -> Duration {
        Duration::from_millis(self.deadline.saturating_sub(boot_ms()))
    }

    /// So long after the last sign of life of this host, others take over; zero before the agent has said it.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    fn has(&self, what: &Held) -> Option<u64> {
        self.held.get(what).copied().filter(|_| boot_ms() < self.deadline)
    }

    // The loop ------------------------------------------------------------------------------------------------------------

    /// What to wait for: readable, and writable too if the second says so. `None` while there is no connection.
    #[must_use]
    pub fn fd(&self) -> Option<(BorrowedFd<'_>, bool)> {
        self.connection.as_ref().map(|connection| (connection.fd(), connection.has_to_write()))
    }

    /// So long to wait at most.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        let now = boot_ms();
        let connect = match (&self.connection, self.is_welcome) {
            (None, _) => Some(self.connect_at),
            (Some(_), false) => Some(self.give_up_at),
            (Some(_), true) => None,
        };
        let deadline = (!self.held.is_empty()).then_some(self.deadline);
        let locks = self.waited_for().filter_map(|(_, lock)| self.over_at(lock));
        let soonest = locks.chain(connect).chain(deadline).min();
        match self.events.is_empty() {
            true => soonest.map(|at| Duration::from_millis(at.saturating_sub(now))),
            false => Some(Duration::ZERO),
        }
    }

    /// Waits until there is something for [`Client::process`], or for `limit`.
    ///
    /// # Errors
    /// The system cannot wait.
    pub fn wait(&self, limit: Option<Duration>) -> io::Result<()> {
        let limit = self.timeout().into_iter().chain(limit).min();
        let limit = limit.map(|limit| Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        });
        let flags = |has_to_write| if has_to_write { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut fds: Vec<PollFd<'_>> = self
            .fd()
            .iter()
            .map(|(fd, has_to_write)| PollFd::from_borrowed_fd(*fd, flags(*has_to_write)))
            .collect();
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads what the agent has said, and sends what is to be sent. Never blocks.
    pub fn process(&mut self) {
        let now = boot_ms();
        self.lose_what_is_over(now);
        if self.connection.is_none() && now >= self.connect_at {
            self.connect(now);
        }
        let Some(connection) = &mut self.connection else { return self.time_out(now) };
        let how = connection.read();
        for line in std::mem::take(&mut connection.lines) {
            // What it does not know is of a later version.
            if let Ok(message) = serde_json::from_str(&line) {
                self.take(message);
            }
        }
        if let Err(why) = how {
            self.disconnect(&why);
        } else if !self.is_welcome && now >= self.give_up_at {
            self.disconnect("it does not answer");
        }
        self.time_out(now);
        if let Some(connection) = &mut self.connection {
            // If it does not go now, it goes when it can be written.
            if let Err(why) = connection.write() {
                self.disconnect(&why);
            }
        }
    }

    /// What has happened, in its order.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
}

fn check(name: &str) -> io::Result<()> {
    if is_name(name) { Ok(()) } else { Err(wrong(format!("{name:?} is no name; allowed is {NAME}"))) }
}

fn wrong(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

#[cfg(test)]
mod tests;
