//! Watches one node, also before it exists and after its registry was replaced.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use headcount::{Cursor, Event, Follower, Item, Kind, Snapshot};
use rustix::event::{PollFd, PollFlags};

use crate::args::NodeSelector;
use crate::escape::{escape, escape_path};
use crate::find::{self, Folders};
use crate::poll;

/// How the node was named.
enum Target {
    Path(PathBuf),
    /// Its file is looked for until there is one.
    Name(NodeSelector, String),
}

/// One node, watched for whatever may change its state.
pub struct NodeWatch {
    target: Target,
    /// `None`: its file is not known yet.
    follower: Option<Follower>,
    /// Where its file may appear.
    folders: Option<Folders>,
    /// Whether older events are read as well.
    history: bool,
    /// Generations that began or were abandoned.
    events: VecDeque<Event>,
    /// Events up to this one are skipped.
    skip: u64,
    /// Not everything was read that there was.
    has_more: bool,
}

/// A journal may grow faster than anybody can read it, or be written into by somebody who means harm. So long is read at once,
const READ_FOR: Duration = Duration::from_millis(20);
/// and so many events are kept.
const KEPT: usize = 4096;

impl NodeWatch {
    /// The node that was named, whether or not it exists, or the one that is meant. `None`: there is none. `history`: older events
    /// are read as well.
    pub fn find(selector: &NodeSelector, history: bool) -> anyhow::Result<Option<NodeWatch>> {
        let target = if let Some(path) = find::given(selector)? {
            Target::Path(path)
        } else if let Some(name) = &selector.node {
            Target::Name(selector.clone(), name.clone())
        } else {
            let Some(path) = find::the_one_meant(selector)? else { return Ok(None) };
            Target::Path(path)
        };
        Ok(Some(NodeWatch::new(target, history)))
    }

    /// The node of this file, and what happens from now on.
    pub fn at(path: PathBuf) -> NodeWatch {
        NodeWatch::new(Target::Path(path), false)
    }

    /// The same, and what is known to have happened before.
    pub fn with_history(path: PathBuf) -> NodeWatch {
        NodeWatch::new(Target::Path(path), true)
    }

    fn new(target: Target, history: bool) -> NodeWatch {
        NodeWatch {
            target,
            follower: None,
            folders: None,
            history,
            events: VecDeque::new(),
            skip: 0,
            has_more: false,
        }
    }

    /// What to call it.
    pub fn name(&self) -> String {
        match &self.target {
            Target::Path(path) => format!("at {}", escape_path(path)),
            Target::Name(_, name) => escape(name).into_owned(),
        }
    }

    /// Tells only what happens after this snapshot.
    pub fn skip_to(&mut self, snapshot: &Snapshot) {
        self.skip = snapshot.head;
        self.events.retain(|event| event.seq > snapshot.head);
    }

    /// The node at this instant. `None`: it is not there.
    ///
    /// A registry whose file was removed is read until there is another: its processes may be alive.
    pub fn snapshot(&mut self) -> anyhow::Result<Option<Snapshot>> {
        self.read()?;
        let observer = self.follower.as_ref().and_then(Follower::observer);
        observer.map(|observer| observer.snapshot().context("cannot read the node")).transpose()
    }

    /// Generations that have begun or were abandoned since this was asked last.
    pub fn events(&mut self) -> anyhow::Result<Vec<Event>> {
        self.read()?;
        Ok(std::mem::take(&mut self.events).into())
    }

    /// Waits until something has happened, or for `limit`.
    pub fn wait(&self, limit: Duration) -> anyhow::Result<()> {
        if self.has_more {
            return Ok(());
        }
        let follower = self.follower.iter().map(|follower| PollFd::new(follower, PollFlags::IN));
        let folders = self.folders.iter().map(|folders| PollFd::new(folders, PollFlags::IN));
        let mut fds: Vec<_> = follower.chain(folders).collect();
        poll::wait(&mut fds, Some(limit))
    }

    fn read(&mut self) -> anyhow::Result<()> {
        if self.follower.is_none()
            && let Some(path) = self.path()?
        {
            self.follower = Some(Follower::new(path, Cursor::oldest())?);
            self.folders = None;
        }
        let Some(follower) = &mut self.follower else { return Ok(()) };
        let begun = Instant::now();
        self.has_more = false;
        while let Some(item) = follower.try_next() {
            match item {
                Item::Events(events) => {
                    let matters = |event: &Event| {
                        matches!(event.kind, Kind::GenerationStarted | Kind::GenerationAbandoned)
                    };
                    let skip = self.skip;
                    self.events.extend(events.into_iter().filter(|e| e.seq > skip && matters(e)));
                    self.events.drain(..self.events.len().saturating_sub(KEPT));
                }
                Item::Appeared if !self.history => {
                    let observer = follower.observer().map(|observer| observer.newest_seq());
                    let newest = observer.transpose().context("cannot read the node")?.unwrap_or(0);
                    follower.read_from(Cursor::at(newest.saturating_add(1)));
                }
                // All events of another registry are new.
                Item::Replaced => {
                    self.skip = 0;
                    self.events.clear();
                }
                Item::Unreadable(error) => return Err(error).context("cannot read the node"),
                _ => {}
            }
            if begun.elapsed() >= READ_FOR {
                self.has_more = true;
                break;
            }
        }
        Ok(())
    }

    fn path(&mut self) -> anyhow::Result<Option<PathBuf>> {
        let selector = match &self.target {
            Target::Path(path) => return Ok(Some(path.clone())),
            Target::Name(selector, _) => selector,
        };
        // Before the search: what appears after it is told.
        match &mut self.folders {
            Some(folders) => {
                folders.changed()?;
                folders.refresh()?;
            }
            None => self.folders = Some(Folders::watch()?),
        }
        find::the_one_meant(selector)
    }
}
