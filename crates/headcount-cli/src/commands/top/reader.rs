//! Reads one node, through the end of its processes and of its file.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use headcount::{Cursor, Event, Follower, Item, Kind, Observer, Snapshot};
use headcount_report::History;

use super::life::before;
use super::model::Model;
use crate::find;

/// How many events are read at once: a server that writes faster than we read must neither keep us from the screen nor fill
/// our memory.
const AT_ONCE: usize = 1 << 20;
/// So many starts and deaths are kept for what the last minutes tell.
const RECENT: usize = 20_000;

pub struct Reader {
    path: PathBuf,
    follower: Follower,
    /// Why the node cannot be read now.
    pub trouble: Option<String>,
    pub model: Model,
    /// Read, and not in the model yet.
    pending: Vec<Event>,
    lost: u64,
    /// Starts and deaths.
    recent: VecDeque<Event>,
    /// How many registries there were at this path.
    registries: u64,
}

impl Reader {
    pub fn new(path: &Path) -> headcount::Result<Reader> {
        let mut snapshot = Snapshot::new(find::node_name(path));
        snapshot.path = Some(path.to_owned());
        let mut reader = Reader {
            path: path.to_owned(),
            follower: Follower::new(path, Cursor::oldest())?,
            trouble: None,
            model: Model::new(snapshot),
            pending: Vec::new(),
            lost: 0,
            recent: VecDeque::new(),
            registries: 0,
        };
        reader.read();
        if reader.follower.observer().is_none() {
            reader.is_missing();
        }
        reader.refresh();
        Ok(reader)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads on. Whether something happened that is not in the model yet.
    pub fn read(&mut self) -> bool {
        let mut news = false;
        while self.pending.len() < AT_ONCE {
            let Some(item) = self.follower.try_next() else { break };
            news = true;
            match item {
                Item::Events(events) => self.pending.extend(events),
                Item::Lost { count, .. } => self.lost = self.lost.saturating_add(count),
                Item::Appeared | Item::Readable => self.trouble = None,
                // What was seen in the old one stays on the screen until there is a new one.
                Item::Replaced => {
                    self.registries += 1;
                    self.trouble = None;
                    self.model = self.model.anew();
                    (self.pending, self.lost, self.recent) = (Vec::new(), 0, VecDeque::new());
                }
                Item::Removed => self.is_missing(),
                Item::Unreadable(error) => self.is_in_trouble(&error),
                // The next snapshot shows it.
                _ => {}
            }
        }
        news
    }

    /// Takes a new snapshot.
    pub fn refresh(&mut self) {
        let Some(observer) = self.follower.observer() else { return };
        let snapshot = observer.snapshot();
        let registries = self.registries;
        // After the snapshot: what led to it is read.
        self.read();
        match snapshot {
            // It is of the old registry.
            _ if self.registries != registries => {}
            Ok(snapshot) => self.update(snapshot),
            Err(error) => self.is_in_trouble(&error),
        }
    }

    fn update(&mut self, snapshot: Snapshot) {
        let events = std::mem::take(&mut self.pending);
        let telling = |event: &Event| matches!(event.kind, Kind::WorkerStarted | Kind::WorkerDied);
        self.recent.extend(events.iter().filter(|event| telling(event)).cloned());
        // The start of one that died within the window, and young, may lie before the window.
        let oldest = before(snapshot.boot_ns, History::WINDOW + History::YOUNG + Duration::from_secs(1));
        let is_old = |event: &Event| event.boot_ns < oldest || snapshot.is_of_earlier_boot(event);
        while self.recent.len() > RECENT || self.recent.front().is_some_and(is_old) {
            self.recent.pop_front();
        }
        let history = History::of(&self.recent, &snapshot);
        self.model.update(snapshot, events, std::mem::take(&mut self.lost), history);
    }

    fn is_missing(&mut self) {
        if let Err(error) = Observer::open(&self.path) {
            self.is_in_trouble(&error);
        }
    }

    fn is_in_trouble(&mut self, error: &headcount::Error) {
        let waiting = match self.follower.observer() {
            Some(_) => "; showing its last state until there is a new one",
            None => "",
        };
        self.trouble = Some(format!("{error}{waiting}"));
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.follower.as_fd()
    }
}
