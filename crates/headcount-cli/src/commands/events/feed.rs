//! One node's journal, read on and on, also when its registry is made anew.

use std::path::PathBuf;

use anyhow::Context;
use headcount::{Cursor, ErrorKind, Event, Observer};

use crate::find;

/// At most so many events at a time.
const AT_ONCE: usize = 4096;
/// So often at most: all that the largest journal holds. Whoever writes faster than we read must not fill our memory.
const MOST_TIMES: usize = 256;

/// What a journal has to tell.
#[derive(Clone, Debug)]
pub enum Item {
    Event(Box<Event>),
    /// So many events, before the next one, were overwritten before they could be read.
    Lost(u64),
}

/// One node's journal.
pub struct Feed {
    pub path: PathBuf,
    /// The node's name, as its registry says; its file's before there is one.
    pub node: String,
    pub of_this_boot: bool,
    /// The path does not lead to what is open any more,
    is_stale: bool,
    /// and that was said.
    is_gone: bool,
    observer: Option<Observer>,
    cursor: Cursor,
}

/// Something that whoever follows is to be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    None,
    /// The file is gone.
    Gone,
    /// There is one, for the first time or again.
    Come,
}

impl Feed {
    /// From the event of this number on.
    pub fn new(path: PathBuf, first: Option<u64>) -> Feed {
        let node = find::node_name(&path);
        // From number 1 on, and not from the oldest that is kept: then it says how many are no longer.
        let cursor = Cursor::at(first.unwrap_or(1).max(1));
        Feed { path, node, of_this_boot: true, is_stale: false, is_gone: false, observer: None, cursor }
    }

    pub fn is_open(&self) -> bool {
        self.observer.is_some()
    }

    /// Everything that it tells since it was asked last.
    pub fn read(&mut self) -> anyhow::Result<Vec<Item>> {
        let mut items = Vec::new();
        let Some(observer) = &self.observer else { return Ok(items) };
        for _ in 0..MOST_TIMES {
            let batch =
                observer.events(&mut self.cursor, AT_ONCE).with_context(|| format!("node {}", self.node))?;
            if batch.lost > 0 {
                items.push(Item::Lost(batch.lost));
            }
            let more = batch.events.len() == AT_ONCE;
            items.extend(batch.events.into_iter().map(|event| Item::Event(Box::new(event))));
            if !more {
                break;
            }
        }
        Ok(items)
    }

    /// Lets go of what is open: the next refresh opens what is there then.
    pub fn close(&mut self) {
        self.observer = None;
    }

    /// Opens what is there now, if that is another registry. The old one is read once more before it is let go of; one
    /// whose file is gone is read for as long as there is no other, since its node may live.
    pub fn refresh(&mut self) -> anyhow::Result<News> {
        if let Some(observer) = &self.observer {
            if observer.is_current() {
                self.is_stale = false;
                return Ok(News::None);
            }
            if !std::mem::replace(&mut self.is_stale, true) {
                return Ok(News::None);
            }
        }
        match Observer::open(&self.path) {
            Ok(observer) => {
                self.node = observer.snapshot().context("cannot read the node")?.node;
                self.of_this_boot =
                    observer.registry().context("cannot read the node")?.of_this_boot != Some(false);
                if self.observer.replace(observer).is_some() {
                    self.cursor = Cursor::at(1);
                }
                (self.is_stale, self.is_gone) = (false, false);
                Ok(News::Come)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let is_open = self.is_open();
                let was_said = std::mem::replace(&mut self.is_gone, is_open);
                Ok(if is_open && !was_said { News::Gone } else { News::None })
            }
            Err(error) => Err(error).context("cannot read the node"),
        }
    }
}
