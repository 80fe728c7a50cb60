//! Following registries: their events, their replacement and loss, and the life of their nodes, as they come.
//!
//! For programs beside the server: a follower has a helper thread that sleeps where a descriptor cannot (see `sleeper.rs`).
//! A process that is part of the node asks its [`crate::Node`].

mod folders;
mod life;
mod node;
mod processes;
mod sleeper;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::io::Errno;

pub use folders::FolderWatch;

use crate::error::{Error, Result};
use crate::event::Event;
use crate::observer::Observer;
use crate::registry::journal::Cursor;
use crate::sys::identity::Liveness;
use crate::sys::process;
use crate::sys::timer::Timer;
use node::{Followed, Surroundings};
use sleeper::{Expected, MOST_WORDS, Sleeper};

/// What a follower has to tell.
///
/// The items of one registry come in the order in which things happened, as far as there is one: events in the order of
/// the journal; [`Item::Node`] with [`Liveness::Gone`] after the last event of those who are gone; [`Item::Replaced`] after
/// the last event of the registry that was replaced.
#[derive(Debug)]
#[non_exhaustive]
pub enum Item {
    /// A registry is open, and what follows is told of it. The first time there is one; then again only when the very file
    /// that was told to be removed is back.
    Appeared,
    /// Another registry is at the path, and is open in place of the one before, which has been read to its end. Its events
    /// are numbered anew, and told from number 1 on; what was told of the life of the node before it does not count any more.
    /// If its server has made it in place of the one before, which was removed, it goes on with the journal of that
    /// ([`crate::RegistryInfo::goes_on`]), and what both have is not told again. Each time.
    Replaced,
    /// There is no file at the path any more. The registry stays open and goes on to be read, because its node may be alive.
    /// Once, until there is a file again.
    Removed,
    /// The file at the path cannot be opened, or the open one cannot be read: why. What is open stays open. It is tried
    /// again, at every change in the folder and every second. Once for each reason.
    Unreadable(Error),
    /// After [`Item::Unreadable`]: it can be read again.
    Readable,
    /// Events, in order and without a gap; at least one.
    Events(Vec<Event>),
    /// Here are events missing: they were overwritten before they could be read, or spoiled. Each time.
    Lost {
        /// The number of the first of them.
        first: u64,
        /// How many.
        count: u64,
    },
    /// The journal ends before what was read already, or before where it was to be read from: somebody has written into the
    /// registry, or the cursor belongs to another one. What it holds is not told (again). Each time.
    SetBack {
        /// The number of the event that was to come next.
        wanted: u64,
        /// The number of the event that is told next.
        next: u64,
    },
    /// A process of the node that was alive has ended, by the kernel. How is told by events. Not told of more processes
    /// than there are descriptors for (512 over all nodes of a set, a quarter of `RLIMIT_NOFILE` at most). Once for each.
    Ended {
        /// Its process id.
        pid: u32,
    },
    /// Whether the node is alive, by the kernel: see [`crate::Snapshot::liveness`]. When that is known for the first
    /// time, and each time it has changed. A node of which a worker was seen alive is gone at once when nobody is left;
    /// otherwise it must be so for 250 ms, or 2 s if there never was a worker: a server that goes into the background
    /// briefly has no live process. Unknown is told when it has been so for 10 s.
    Node(Liveness),
}

/// What of a registry is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Follow {
    /// The file and its events. Takes one descriptor, and one more while one that was replaced is read to its end.
    Journal,
    /// Whether its processes and the node are alive as well. Takes a descriptor for each live process.
    Node,
}

/// So many events are told at once.
const BATCH: usize = 1024;
/// So many processes are held at most, over all nodes.
const MOST_PROCESSES: usize = 512;
/// Follows any number of registries, also before they are there.
///
/// Ask [`Followers::try_next`] until it has nothing, then wait until the descriptor ([`AsFd`]) is readable, or let
/// [`Followers::next_within`] do both. As long as nothing happens there is nothing to do: no timer but one of ten seconds
/// runs. Only where the kernel cannot tell of a change (no inotify instance left, a folder that may not be read, processes of
/// which it is unknown whether they are alive, a file that cannot be read) it is looked at every second.
///
/// It takes four descriptors (or six, see [`FolderWatch`]), one for each registry, those of [`Follow::Node`], and a thread
/// for each 127 registries. A forked child must neither use it nor drop it: it shares the descriptors, and has no thread.
pub struct Followers {
    epoll: Arc<OwnedFd>,
    bell: Arc<OwnedFd>,
    timer: Timer,
    /// What the timer is set to: setting it takes longer than all the rest.
    set_to: Option<Instant>,
    folders: FolderWatch,
    sleepers: Vec<Sleeper>,
    nodes: Vec<Option<Followed>>,
    batch: usize,
    /// Whose turn it is.
    turn: usize,
}

const BELL: u64 = 0;
const TIMER: u64 = 1;
const FOLDERS: u64 = 2;
/// A process: with the index of its node, and its id.
const PROCESS: u64 = 1 << 63;

impl Followers {
    /// None yet.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Io`] if there is no descriptor or thread left.
    pub fn new() -> Result<Followers> {
        Followers::make().map_err(|e| Error::io("follow registries", e))
    }

    fn make() -> std::io::Result<Followers> {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let timer = Timer::new()?;
        let folders = FolderWatch::new([]).map_err(std::io::Error::other)?;
        let sources = [(bell.as_fd(), BELL), (timer.as_fd(), TIMER), (folders.as_fd(), FOLDERS)];
        for (source, token) in sources {
            epoll::add(&epoll, source, epoll::EventData::new_u64(token), epoll::EventFlags::IN)?;
        }
        let (sleepers, nodes) = (Vec::new(), Vec::new());
        Ok(Followers { epoll, bell, timer, set_to: None, folders, sleepers, nodes, batch: BATCH, turn: 0 })
    }

    /// Follows one more, from this event on. Its number in this set is what [`Followers::try_next`] calls it by; that of one
    /// that was removed is given again.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Io`] if there is no thread left.
    pub fn add(&mut self, path: impl Into<PathBuf>, from: Cursor, follow: Follow) -> Result<usize> {
        let node = Some(Followed::new(path.into(), from, follow));
        let number = self.nodes.iter().position(Option::is_none).unwrap_or(self.nodes.len());
        match self.nodes.get_mut(number) {
            Some(free) => *free = node,
            None => self.nodes.push(node),
        }
        let added = self.watch_folders().and_then(|()| self.start_sleepers());
        if added.is_err() {
            self.nodes[number] = None;
        }
        added.map(|()| number)
    }

    /// Follows this one no longer, and closes what is open of it.
    pub fn remove(&mut self, number: usize) {
        if let Some(node) = self.nodes.get_mut(number) {
            *node = None;
            // What is not watched any more does no harm.
            let _ = self.watch_folders();
        }
    }

    fn watch_folders(&mut self) -> Result<()> {
        let folders = self.nodes.iter().flatten().filter_map(|node| node.path().parent());
        self.folders.set(folders.map(Path::to_owned))
    }

    fn start_sleepers(&mut self) -> Result<()> {
        while self.sleepers.len() * MOST_WORDS < self.nodes.len() {
            let sleeper = Sleeper::start(Arc::clone(&self.bell));
            self.sleepers.push(sleeper.map_err(|e| Error::io("follow a registry", e))?);
        }
        Ok(())
    }

    /// Reads on from another event. Right after [`Item::Appeared`] and [`Item::Replaced`] nothing of the registry has been read
    /// yet, so this is where a reader begins that must look at it first.
    pub fn read_from(&mut self, number: usize, from: Cursor) {
        if let Some(Some(node)) = self.nodes.get_mut(number) {
            node.read_from(from);
        }
    }

    /// Tells so many events at once, at most, from now on (1024 if this was never called; at least 1): for a reader whose
    /// memory is bounded.
    pub fn tell_at_most(&mut self, events: usize) {
        self.batch = events.max(1);
    }

    /// The registry that is open, of which the last item told.
    #[must_use]
    pub fn observer(&self, number: usize) -> Option<&Observer> {
        self.nodes.get(number)?.as_ref()?.observer()
    }

    /// What comes next, if there is something: whose it is, and what. If there is nothing, the descriptor becomes readable
    /// when there may be.
    pub fn try_next(&mut self) -> Option<(usize, Item)> {
        loop {
            // One after the other: a registry in which something happens all the time does not keep us from the others.
            for offset in 0..self.nodes.len() {
                let number = (self.turn + offset) % self.nodes.len();
                let Some(Some(node)) = self.nodes.get_mut(number) else { continue };
                if let Some(item) = node.take() {
                    self.turn = number + 1;
                    return Some((number, item));
                }
            }
            let worked = self.work();
            if !worked && !self.collect() {
                self.rest();
                return None;
            }
        }
    }

    /// The same; if there is nothing, it waits for it, at most for `limit`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Io`] if it cannot be waited.
    pub fn next_within(&mut self, limit: Option<Duration>) -> Result<Option<(usize, Item)>> {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        loop {
            if let Some(item) = self.try_next() {
                return Ok(Some(item));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], left.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Error::io("wait for a registry", error.into())),
            }
        }
    }

    /// Whether something was done for some node.
    fn work(&mut self) -> bool {
        let now = Instant::now();
        let most = MOST_PROCESSES.min(process::descriptor_limit() / 4);
        let mut held: usize = self.nodes.iter().flatten().map(Followed::held).sum();
        let mut worked = false;
        for (number, node) in self.nodes.iter_mut().enumerate() {
            let Some(node) = node else { continue };
            let before = node.held();
            let around = Surroundings {
                epoll: &self.epoll,
                token: &|pid| PROCESS | (number as u64) << 32 | u64::from(pid),
                room: most.saturating_sub(held - before),
                batch: self.batch,
                now,
            };
            worked |= node.work(&around);
            held = held - before + node.held();
        }
        worked
    }

    /// Takes in what the kernel tells. Whether it told something.
    fn collect(&mut self) -> bool {
        let mut buffer = [const { std::mem::MaybeUninit::uninit() }; 64];
        let events = loop {
            match epoll::wait(&self.epoll, &mut buffer, Some(&Timespec::default())) {
                Ok((events, _)) => break events,
                Err(Errno::INTR) => {}
                // It has no other failure with a descriptor that is open; then as if it had told everything.
                Err(_) => {
                    self.nodes.iter_mut().flatten().for_each(Followed::check_all);
                    return true;
                }
            }
        };
        let nodes = &mut self.nodes;
        for event in &*events {
            match event.data.u64() {
                BELL => {
                    // Whoever rings again writes again.
                    let _ = rustix::io::read(&self.bell, &mut [0; 8]);
                    nodes.iter_mut().flatten().for_each(Followed::check_journal);
                }
                // Something is due.
                TIMER => {
                    self.timer.has_fired();
                    self.set_to = None;
                }
                FOLDERS => {
                    // If the kernel does not answer: as if it had. Nothing tells that a file was cut off: so that is looked
                    // at as well.
                    if self.folders.changed().unwrap_or(true) {
                        nodes.iter_mut().flatten().for_each(Followed::check_all);
                    }
                }
                process => {
                    let number = (process & !PROCESS) >> 32;
                    if let Some(Some(node)) = nodes.get_mut(number as usize) {
                        node.ended(process as u32);
                    }
                }
            }
        }
        !events.is_empty()
    }

    /// Prepares to be woken.
    fn rest(&mut self) {
        let words: Vec<Expected> = self.nodes.iter().flatten().filter_map(Followed::expected).collect();
        let mut parts = words.chunks(MOST_WORDS);
        for sleeper in &self.sleepers {
            sleeper.arm(parts.next().unwrap_or_default().to_vec());
        }
        let next = self.nodes.iter().flatten().filter_map(Followed::deadline).min();
        if next != self.set_to {
            let set = self.timer.set(next.map(|at| at.saturating_duration_since(Instant::now())));
            debug_assert!(set.is_ok(), "{set:?}");
            self.set_to = next;
        }
    }
}

impl AsFd for Followers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// Follows one registry: [`Followers`] with one that is followed.
///
/// ```no_run
/// use headcount::{Cursor, Follower, Item};
///
/// # fn main() -> headcount::Result<()> {
/// let mut follower = Follower::new("/run/headcount/nginx.registry", Cursor::at(1))?;
/// while let Some(item) = follower.next_within(None)? {
///     match item {
///         Item::Events(events) => events.iter().for_each(|e| println!("{} {} {}", e.seq, e.kind, e.pid)),
///         other => println!("{other:?}"),
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct Follower {
    all: Followers,
}

impl Follower {
    /// Follows the registry at `path`, which need not be there yet, from this event on, and its node.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Io`] if there is no descriptor or thread left.
    pub fn new(path: impl Into<PathBuf>, from: Cursor) -> Result<Follower> {
        let mut all = Followers::new()?;
        all.add(path, from, Follow::Node)?;
        Ok(Follower { all })
    }

    /// As [`Followers::read_from`].
    pub fn read_from(&mut self, from: Cursor) {
        self.all.read_from(0, from);
    }

    /// As [`Followers::tell_at_most`].
    pub fn tell_at_most(&mut self, events: usize) {
        self.all.tell_at_most(events);
    }

    /// As [`Followers::try_next`].
    pub fn try_next(&mut self) -> Option<Item> {
        self.all.try_next().map(|(_, item)| item)
    }

    /// As [`Followers::next_within`].
    ///
    /// # Errors
    /// [`crate::ErrorKind::Io`] if it cannot be waited.
    pub fn next_within(&mut self, limit: Option<Duration>) -> Result<Option<Item>> {
        Ok(self.all.next_within(limit)?.map(|(_, item)| item))
    }

    /// The registry that is open, of which the last item told.
    #[must_use]
    pub fn observer(&self) -> Option<&Observer> {
        self.all.observer(0)
    }

    /// Where the next event is read from.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.all.nodes.first().and_then(Option::as_ref).map_or_else(Cursor::oldest, Followed::cursor)
    }
}

impl AsFd for Follower {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.all.as_fd()
    }
}
