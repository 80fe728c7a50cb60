//! Reading one node, again and again, through the end of its processes and of its file.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use headcount::{Cursor, Event, Kind, Observer, Snapshot};
use headcount_report::History;

use super::life::before;
use super::model::Model;
use crate::find;

/// So many events are read at once: each time the whole journal is copied.
const BATCH: usize = 100_000;
/// So often at most in one look: whoever writes faster than we read must not keep us from the screen.
const BATCHES: usize = 20;
/// So many starts and deaths are kept for what the last minutes tell.
const RECENT: usize = 20_000;

pub struct Reader {
    path: PathBuf,
    open: Option<Open>,
    /// Why the node cannot be read now.
    pub trouble: Option<String>,
    pub model: Model,
}

struct Open {
    observer: Observer,
    cursor: Cursor,
    /// Read, and not in the model yet.
    unseen: Vec<Event>,
    lost: u64,
    /// Starts and deaths.
    recent: VecDeque<Event>,
}

impl Reader {
    pub fn new(path: &Path, observer: headcount::Result<Observer>) -> Reader {
        let mut snapshot = Snapshot::new(find::node_name(path));
        snapshot.path = Some(path.to_owned());
        let model = Model::new(snapshot);
        let mut reader = Reader { path: path.to_owned(), open: None, trouble: None, model };
        match observer {
            Ok(observer) => reader.open = Some(Open::new(observer)),
            Err(error) => reader.trouble = Some(error.to_string()),
        }
        reader.look();
        reader
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether something happened that is not in the model yet. Costs eight bytes when nothing did.
    pub fn has_news(&mut self) -> bool {
        // What fails here fails in the look that follows, and is told there.
        self.open.as_mut().is_some_and(|open| open.read().is_err() || !open.unseen.is_empty())
    }

    /// Looks at the node.
    pub fn look(&mut self) {
        self.reopen();
        let Some(open) = &mut self.open else { return };
        match open.look(&mut self.model) {
            // Of a file that is gone the last memory can still be read, but another sentence stands there already.
            Ok(()) if self.trouble.is_none() || open.observer.is_current() => self.trouble = None,
            Ok(()) => {}
            Err(error) => self.trouble = Some(error.to_string()),
        }
    }

    /// Takes the file that is there now, if it is another one. What was seen in the old one stays on the screen until
    /// there is a new one.
    fn reopen(&mut self) {
        if self.open.as_ref().is_some_and(|open| open.observer.is_current()) {
            return;
        }
        match Observer::open(&self.path) {
            Ok(observer) => {
                self.open = Some(Open::new(observer));
                self.model = self.model.anew();
                self.trouble = None;
            }
            Err(error) => {
                let waiting = if self.open.is_some() {
                    "; what is shown is the old one's, until a new one comes"
                } else {
                    ""
                };
                self.trouble = Some(format!("{error}{waiting}"));
            }
        }
    }
}

impl Open {
    fn new(observer: Observer) -> Open {
        Open { observer, cursor: Cursor::oldest(), unseen: Vec::new(), lost: 0, recent: VecDeque::new() }
    }

    fn read(&mut self) -> headcount::Result<()> {
        for _ in 0..BATCHES {
            let batch = self.observer.events(&mut self.cursor, BATCH)?;
            self.lost = self.lost.saturating_add(batch.lost);
            if batch.events.is_empty() {
                break;
            }
            self.unseen.extend(batch.events);
        }
        Ok(())
    }

    fn look(&mut self, model: &mut Model) -> headcount::Result<()> {
        let snapshot = self.observer.snapshot()?;
        self.read()?;
        let events = std::mem::take(&mut self.unseen);
        let telling = |event: &Event| matches!(event.kind, Kind::WorkerStarted | Kind::WorkerDied);
        self.recent.extend(events.iter().filter(|event| telling(event)).cloned());
        // The start of one that died within the window, and young, may lie before the window.
        let oldest = before(snapshot.boot_ns, History::WINDOW + History::YOUNG + Duration::from_secs(1));
        while self.recent.len() > RECENT || self.recent.front().is_some_and(|event| event.boot_ns < oldest) {
            self.recent.pop_front();
        }
        let history = History::of(&self.recent, snapshot.boot_ns);
        model.update(snapshot, events, std::mem::take(&mut self.lost), history);
        Ok(())
    }
}
