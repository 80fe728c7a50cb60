//! The journals of one or of all nodes: what they hold, and what comes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context;
use headcount::{Cursor, Error, Event, Follow, Followers, Item, Liveness, Snapshot};

use super::since::From;
use crate::find;

/// An entry to print.
#[derive(Clone, Debug)]
pub enum Entry {
    Event(Box<Event>),
    /// So many events before the next one were overwritten before they could be read.
    Lost(u64),
}

/// How many events of each node are read at once: all that the largest journal holds. A server that writes faster than we read
/// must not fill our memory.
const AT_ONCE: usize = 1 << 20;
/// How many registries of other users are followed, when all nodes are: anybody can create any number of them.
const STRANGERS: usize = 256;
/// How many removed registries are followed whose nodes are still alive.
const REMOVED: usize = 32;

/// One node's journal.
struct Journal {
    path: PathBuf,
    /// The node's name, by its registry; by its file before that is open.
    node: String,
    from: Option<From>,
    /// When it was opened, without its tables.
    snapshot: Snapshot,
    is_open: bool,
    is_removed: bool,
    /// The newest event when it was opened.
    head: u64,
    /// The newest event that was read, or skipped.
    read_to: u64,
}

/// What happened to a registry.
#[derive(Debug)]
pub enum News {
    /// Its file was removed.
    Gone(PathBuf),
    /// It was created or replaced.
    Come { node: String, path: PathBuf },
    /// It belongs to a node that appeared while all nodes are followed.
    New { node: String, path: PathBuf },
    /// It cannot be read.
    Unreadable(Error),
}

/// What was read at once: entries with the number of their journal, and news.
#[derive(Default)]
pub struct Batch {
    pub entries: Vec<(usize, Entry)>,
    pub news: Vec<News>,
    /// There is more.
    pub more: bool,
}

pub struct Journals {
    followers: Followers,
    /// By their number among the followers.
    journals: Vec<Option<Journal>>,
    /// To be closed when their entries are printed, which need their names.
    leaving: BTreeSet<usize>,
    /// All nodes of this host were asked for.
    all: bool,
}

impl Journals {
    pub fn new(all: bool) -> anyhow::Result<Journals> {
        Ok(Journals { followers: Followers::new()?, journals: Vec::new(), leaving: BTreeSet::new(), all })
    }

    /// Follows those that are not followed yet, beginning with the event that `from` names, or with the first.
    pub fn add(&mut self, paths: Vec<PathBuf>, from: Option<From>) -> anyhow::Result<()> {
        self.close_old();
        let known: BTreeSet<_> = self.journals.iter().flatten().map(|journal| journal.path.clone()).collect();
        let mut strangers = known.iter().filter(|path| !find::is_ours(path)).count();
        for path in paths.into_iter().filter(|path| !known.contains(path)) {
            let is_strange = !find::is_ours(&path);
            if self.all && is_strange && strangers >= STRANGERS {
                continue;
            }
            strangers += usize::from(is_strange);
            self.add_one(path, from)?;
        }
        Ok(())
    }

    fn add_one(&mut self, path: PathBuf, from: Option<From>) -> anyhow::Result<()> {
        // Not from the oldest that is kept: from 1, it tells how many were overwritten.
        let first = from.and_then(From::first_seq).unwrap_or(1).max(1);
        let number = self.followers.add(&path, Cursor::at(first), Follow::Journal)?;
        let journal = Journal {
            node: find::node_name(&path),
            path,
            from,
            snapshot: Snapshot::new(""),
            is_open: false,
            is_removed: false,
            head: 0,
            read_to: first - 1,
        };
        if self.journals.len() <= number {
            self.journals.resize_with(number + 1, || None);
        }
        self.journals[number] = Some(journal);
        Ok(())
    }

    /// Closes the journals that are no longer followed. Not before their entries are printed, which need their names.
    pub fn close_old(&mut self) {
        for number in std::mem::take(&mut self.leaving) {
            self.followers.remove(number);
            if let Some(journal) = self.journals.get_mut(number) {
                *journal = None;
            }
        }
    }

    pub fn followers(&self) -> &Followers {
        &self.followers
    }

    /// Those that are not about to be closed.
    fn staying(&self) -> impl Iterator<Item = &Journal> {
        let journals = self.journals.iter().enumerate().filter(|(number, _)| !self.leaving.contains(number));
        journals.filter_map(|(_, journal)| journal.as_ref())
    }

    pub fn len(&self) -> usize {
        self.staying().count()
    }

    pub fn node(&self, number: usize) -> &str {
        self.journals.get(number).and_then(Option::as_ref).map_or("", |journal| &journal.node)
    }

    pub fn names(&self) -> Vec<&str> {
        self.staying().map(|journal| journal.node.as_str()).collect()
    }

    pub fn missing(&self) -> Option<&Path> {
        self.staying().find(|journal| !journal.is_open).map(|journal| journal.path.as_path())
    }

    /// All that can be read now. `first`: at the first call, open registries are not news, and it ends when all is read that was
    /// there when they were opened: a busy node must not keep us here.
    pub fn read(&mut self, first: bool) -> anyhow::Result<Batch> {
        self.close_old();
        let mut batch = Batch::default();
        // What was lost before an event that is too old, is too old itself.
        let mut skip_lost = BTreeSet::new();
        let mut count = 0;
        let most = AT_ONCE.saturating_mul(self.len().max(1));
        while let Some((number, item)) = self.followers.try_next() {
            match item {
                Item::Events(events) => {
                    count += events.len();
                    self.advance(number, events.last().map_or(0, |event| event.seq));
                    let Some(journal) = self.journals.get(number).and_then(Option::as_ref) else { continue };
                    for event in events {
                        if journal.from.is_none_or(|from| {
                            from.covers(&event, !journal.snapshot.is_of_earlier_boot(&event))
                        }) {
                            batch.entries.push((number, Entry::Event(Box::new(event))));
                        } else {
                            skip_lost.insert(number);
                        }
                    }
                }
                Item::Lost { first, count } => {
                    self.advance(number, first.saturating_add(count).saturating_sub(1));
                    batch.entries.push((number, Entry::Lost(count)));
                }
                // It continues with new events.
                Item::SetBack { next, .. } => self.advance(number, next.saturating_sub(1)),
                Item::Appeared | Item::Replaced => self.opened(number, first, &mut batch)?,
                Item::Removed => self.removed(number, &mut batch),
                Item::Unreadable(error) => self.unreadable(number, first, error, &mut batch),
                // A registry that is readable again is read.
                _ => {}
            }
            batch.more = count >= most || first && self.is_read();
            if batch.more {
                break;
            }
        }
        batch
            .entries
            .retain(|(number, entry)| !matches!(entry, Entry::Lost(_)) || !skip_lost.contains(number));
        Ok(batch)
    }

    /// Whether all is read that was there when the journals were opened.
    fn is_read(&self) -> bool {
        self.staying().all(|journal| journal.is_open && journal.read_to >= journal.head)
    }

    fn advance(&mut self, number: usize, seq: u64) {
        if let Some(Some(journal)) = self.journals.get_mut(number) {
            journal.read_to = seq;
        }
    }

    fn opened(&mut self, number: usize, first: bool, batch: &mut Batch) -> anyhow::Result<()> {
        let Some(observer) = self.followers.observer(number) else { return Ok(()) };
        let Some(journal) = self.journals.get_mut(number).and_then(Option::as_mut) else { return Ok(()) };
        match observer.snapshot() {
            Ok(mut snapshot) => {
                (snapshot.generations, snapshot.processes) = (Vec::new(), Vec::new());
                (journal.node, journal.head) = (snapshot.node.clone(), snapshot.head);
                journal.snapshot = snapshot;
            }
            // It was truncated at this moment, which the next item tells.
            Err(_) if self.all => {}
            Err(error) => return Err(error).context("cannot read the node"),
        }
        journal.is_removed = false;
        let was_open = std::mem::replace(&mut journal.is_open, true);
        if first {
            return Ok(());
        }
        // All its events are new, and numbered from 1.
        journal.from = None;
        let (node, path) = (journal.node.clone(), journal.path.clone());
        batch.news.push(match self.all && !was_open {
            true => News::New { node, path },
            false => News::Come { node, path },
        });
        Ok(())
    }

    fn removed(&mut self, number: usize, batch: &mut Batch) {
        let Some(journal) = self.journals.get_mut(number).and_then(Option::as_mut) else { return };
        journal.is_removed = true;
        batch.news.push(News::Gone(journal.path.clone()));
        // Its node may be alive and write more events. When all nodes are followed, this is checked.
        let lives = || {
            let snapshot = self.followers.observer(number)?.snapshot().ok()?;
            Some(snapshot.liveness() != Liveness::Gone)
        };
        let removed = self.staying().filter(|journal| journal.is_removed).count();
        if self.all && (removed > REMOVED || lives() != Some(true)) {
            self.leaving.insert(number);
        }
    }

    fn unreadable(&mut self, number: usize, first: bool, error: Error, batch: &mut Batch) {
        let is_open =
            self.journals.get(number).and_then(Option::as_ref).is_some_and(|journal| journal.is_open);
        // When all nodes are followed, the next search finds it again.
        if self.all && !is_open {
            self.leaving.insert(number);
        }
        if first || is_open || !self.all {
            batch.news.push(News::Unreadable(error));
        }
    }
}
