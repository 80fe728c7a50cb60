//! The journal as a queue: read ahead during a delivery, up to a limit, gaps included.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use headcount::{Cursor, Event, Follower, GenerationId, Item as News, Liveness, Observer};
use rustix::event::{PollFd, PollFlags};

use super::log::Log;
use super::state::Registry;
use super::stop::Stop;
use crate::poll;

/// Subjects of warnings that are not repeated.
const LIVENESS: &str = "liveness";
const REGISTRY: &str = "registry";

/// A registry that was made in place of one that was removed under its server.
#[derive(Clone, Copy, Debug)]
pub struct GoesOn {
    /// When that one was made.
    pub from: u64,
    /// The last event that both have.
    pub at: u64,
}

/// What comes next.
#[derive(Clone, Debug)]
pub enum Item {
    /// A registry was opened, the first or another one. Nothing of it is read until [`Queue::go_on`] is called.
    Opened(Registry, Option<GoesOn>),
    /// The registry cannot be read: why.
    Unreadable(String),
    /// An event.
    Event(Box<Event>),
    /// So many were overwritten before they could be read.
    Lost {
        /// The first of them.
        from: u64,
        /// How many.
        count: u64,
    },
    /// The journal ends before events that were already read. The next event has this number.
    SetBack(u64),
    /// No process of the node is alive. Its newest generation.
    Gone(Option<GenerationId>),
}

/// What was read of the journal, and is still to be delivered.
pub struct Queue {
    path: PathBuf,
    follower: Follower,
    queue: VecDeque<Item>,
    limit: usize,
    /// Whether it is known from where to read the open registry.
    is_begun: bool,
}

impl Queue {
    /// At most `limit` items are read ahead.
    pub fn new(path: &Path, limit: usize) -> anyhow::Result<Queue> {
        let follower = Follower::new(path, Cursor::oldest())?;
        Ok(Queue { path: path.to_owned(), follower, queue: VecDeque::new(), limit, is_begun: false })
    }

    /// What is to be delivered next.
    pub fn front(&self) -> Option<&Item> {
        self.queue.front()
    }

    /// Removes the first item: it is delivered.
    pub fn pop(&mut self) {
        self.queue.pop_front();
    }

    /// The event that will be read next.
    pub fn next_seq(&self) -> u64 {
        self.follower.cursor().next_seq()
    }

    /// The registry, once reading has begun.
    pub fn observer(&self) -> Option<&Observer> {
        self.follower.observer().filter(|_| self.is_begun)
    }

    /// The registry that was opened last, also before reading has begun.
    pub fn opened(&self) -> Option<&Observer> {
        self.follower.observer()
    }

    /// Reads what was opened from this event on; 0: from the oldest that is kept.
    pub fn go_on(&mut self, next: u64) {
        self.follower.read_from(Cursor::at(next));
        self.is_begun = true;
    }

    /// Waits for more, for a signal, or until `limit` has passed.
    pub fn wait(&self, stop: &Stop, limit: Option<Duration>) -> anyhow::Result<()> {
        poll::wait(&mut [PollFd::new(stop, PollFlags::IN), PollFd::new(&self.follower, PollFlags::IN)], limit)
    }

    /// Reads as much as there is room for.
    pub fn read_ahead(&mut self, log: &Log) {
        loop {
            let room = self.limit.saturating_sub(self.queue.len());
            let is_held_up = matches!(self.queue.back(), Some(Item::Opened(..)));
            if room == 0 || is_held_up {
                return;
            }
            self.follower.tell_at_most(room);
            let Some(news) = self.follower.try_next() else { return };
            self.take(news, log);
        }
    }

    fn take(&mut self, news: News, log: &Log) {
        match news {
            News::Appeared if self.is_begun => {}
            News::Appeared | News::Replaced => {
                self.is_begun = false;
                self.open();
            }
            News::Events(events) => self.queue.extend(events.into_iter().map(|e| Item::Event(Box::new(e)))),
            News::Lost { first, count } => self.queue.push_back(Item::Lost { from: first, count }),
            News::SetBack { wanted, next } => {
                log.warn_rarely("set back", format_args!(
                    "the journal now ends before event {}, which was read already: somebody wrote to the registry; \
                     continuing with new events",
                    wanted.saturating_sub(1)
                ));
                self.queue.push_back(Item::SetBack(next));
            }
            News::Unreadable(error) => self.queue.push_back(Item::Unreadable(error.to_string())),
            News::Readable => {
                log.is_well(REGISTRY);
                if !self.is_begun {
                    self.open();
                }
            }
            News::Node(Liveness::Gone) => {
                let snapshot = self.follower.observer().and_then(|observer| observer.snapshot().ok());
                let newest = snapshot.and_then(|snapshot| Some(snapshot.generations.last()?.id));
                self.queue.push_back(Item::Gone(newest));
            }
            News::Node(Liveness::Alive) => log.is_well(LIVENESS),
            News::Node(_) => log.warn_once(
                LIVENESS,
                "it is not known whether the node is alive, so its death would not be noticed (run this as the node's \
                 owner, or where /proc shows its processes)",
            ),
            // A removed registry is still read until there is another; how processes end is told by events.
            _ => {}
        }
    }

    fn open(&mut self) {
        let Some(observer) = self.follower.observer() else { return };
        let registry = observer.registry().and_then(|info| {
            let registry = Registry {
                node: observer.snapshot()?.node,
                path: self.path.clone(),
                created_ns: info.created_ns,
                boot_id: info.boot_id.map(|word| format!("{word:016x}")).concat(),
            };
            Ok((registry, info.goes_on.map(|(from, at)| GoesOn { from, at })))
        });
        self.queue.push_back(match registry {
            Ok((registry, goes_on)) => Item::Opened(registry, goes_on),
            // It was truncated at this moment. A server that finds it so replaces it.
            Err(error) => Item::Unreadable(error.to_string()),
        });
    }
}

/// Says that the registry cannot be read, once.
pub fn warn_unreadable(log: &Log, why: &str) {
    log.warn_once(REGISTRY, why);
}
