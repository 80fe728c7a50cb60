//! One node that is followed: its file, its journal, its life.

use std::collections::VecDeque;
use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::life::Life;
use super::processes::Processes;
use super::sleeper::Expected;
use super::{Follow, Item};
use crate::error::{Error, ErrorKind};
use crate::event::Event;
use crate::observer::Observer;
use crate::registry::journal::Cursor;
use crate::registry::layout::Header;
use crate::sys::clock;
use crate::sys::identity::Liveness;
use crate::sys::reader_futex::RemoteWord;

/// Everything is looked at this often, should a change not have been told: a writer may be killed in the very moment before
/// it wakes its readers, and more strangers may sleep on a journal than a writer wakes at once.
const BACKSTOP: Duration = Duration::from_secs(10);
/// The same while it is known that some change is not told.
const SLOW: Duration = Duration::from_secs(1);
/// A file that is replaced by way of its removal is away for a moment.
const AWAY: Duration = Duration::from_millis(50);
/// One that is to go on with the journal of another is empty until that is copied, for which its server needs the lock. So it is
/// looked at again and again, for so long.
const MAKING: Duration = Duration::from_millis(5);
const LONG_MAKING: Duration = Duration::from_secs(2);
/// A look at a node takes longer the more processes it has. At most one part in so many of our time goes into looks.
const LOOK_SHARE: u32 = 10;

/// What a node needs of the set that it is followed in.
pub(super) struct Surroundings<'a> {
    pub(super) epoll: &'a Arc<OwnedFd>,
    /// What the epoll instance says of a process that has ended.
    pub(super) token: &'a dyn Fn(u32) -> u64,
    /// So many records are read at once.
    pub(super) batch: usize,
    /// For so many processes there is room.
    pub(super) room: usize,
    pub(super) now: Instant,
}

pub(super) struct Followed {
    path: PathBuf,
    follow: Follow,
    cursor: Cursor,
    open: Option<Open>,
    /// Another registry that is at the path by now, and the event up to which the old one is read before.
    next: Option<(Observer, u64)>,
    items: VecDeque<Item>,
    file: Due,
    read: Due,
    look: Due,
    /// Since when there is nothing at the path; and whether that was told.
    away: Option<(Instant, bool)>,
    /// Since when there is one at the path that has no event yet.
    empty_since: Option<Instant>,
    /// What was told of the file at the path, and of the one that is open.
    file_trouble: Option<String>,
    read_trouble: Option<String>,
}

struct Open {
    observer: Observer,
    /// `None`: it cannot be slept on.
    word: Option<Arc<RemoteWord>>,
    /// The number of the newest event, as far as it was read.
    head: u64,
    life: Life,
    processes: Processes,
    not_before: Option<Instant>,
}

/// When something is to be done, if at all.
type Due = Option<Instant>;

fn sooner(due: &mut Due, at: Instant) {
    *due = Some(due.map_or(at, |due| due.min(at)));
}

impl Open {
    fn new(observer: Observer) -> Open {
        Open {
            // A file system without shared mappings: then it is looked at by time.
            word: RemoteWord::map(observer.file(), offset_of!(Header, head)).ok().map(Arc::new),
            observer,
            head: 0,
            life: Life::default(),
            processes: Processes::default(),
            not_before: None,
        }
    }
}

impl Followed {
    pub(super) fn new(path: PathBuf, cursor: Cursor, follow: Follow) -> Followed {
        Followed {
            path,
            follow,
            cursor,
            open: None,
            next: None,
            items: VecDeque::new(),
            file: Some(Instant::now()),
            read: None,
            look: None,
            away: None,
            empty_since: None,
            file_trouble: None,
            read_trouble: None,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn cursor(&self) -> Cursor {
        self.cursor
    }

    pub(super) fn read_from(&mut self, cursor: Cursor) {
        self.cursor = cursor;
        self.check_journal();
    }

    pub(super) fn observer(&self) -> Option<&Observer> {
        self.open.as_ref().map(|open| &open.observer)
    }

    pub(super) fn take(&mut self) -> Option<Item> {
        self.items.pop_front()
    }

    /// How many processes are held.
    pub(super) fn held(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.processes.len())
    }

    /// What is to be slept on, if everything is read.
    pub(super) fn expected(&self) -> Option<Expected> {
        let open = self.open.as_ref().filter(|_| self.read_trouble.is_none())?;
        // Its lower half is what the kernel compares.
        open.word.as_ref().map(|word| (Arc::clone(word), open.head as u32))
    }

    /// Whether changes of it are not told, so that it must be looked at by time.
    fn is_slow(&self) -> bool {
        let trouble = self.file_trouble.is_some() || self.read_trouble.is_some();
        trouble || self.open.as_ref().is_some_and(|open| open.word.is_none())
    }

    /// When there is something to do that nothing else tells.
    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.file, self.read, self.look].into_iter().flatten().min()
    }

    pub(super) fn check_all(&mut self) {
        self.file = Some(Instant::now());
    }

    pub(super) fn check_journal(&mut self) {
        if self.open.is_some() {
            self.read = Some(Instant::now());
        }
    }

    /// One of its processes has ended.
    pub(super) fn ended(&mut self, pid: u32) {
        let Some(open) = &mut self.open else { return };
        if open.processes.let_go(pid) {
            self.items.push_back(Item::Ended { pid });
            self.look = Some(Instant::now());
        }
    }

    /// Does something of what is due. `false`: nothing is.
    pub(super) fn work(&mut self, around: &Surroundings<'_>) -> bool {
        let due = |due: Due| due.is_some_and(|at| at <= around.now);
        if due(self.file) && self.next.is_none() {
            self.file = None;
            self.look_at_file(around.now);
            self.check_journal();
            let pause = if self.is_slow() { SLOW } else { BACKSTOP };
            sooner(&mut self.file, around.now + pause);
        } else if due(self.read) {
            self.read = None;
            self.read_on(around.batch);
        } else if due(self.look) {
            self.look = None;
            self.look_at_node(around);
        } else {
            return false;
        }
        true
    }

    fn look_at_file(&mut self, now: Instant) {
        if self.open.as_ref().is_some_and(|open| open.observer.is_current()) {
            // It was moved away, and back.
            if self.away.take().is_some_and(|(_, told)| told) {
                self.items.push_back(Item::Appeared);
            }
            return self.file_is_well();
        }
        match Observer::open(&self.path) {
            Ok(observer) => {
                self.file_is_well();
                self.away = None;
                if self.is_still_being_made(&observer, now) {
                    return self.file = Some(now + MAKING);
                }
                let Some(open) = &self.open else { return self.take_up(observer, Item::Appeared) };
                // What the old one has to say comes first; what somebody goes on writing into it does not.
                let last = open.observer.newest_seq().unwrap_or(0);
                self.next = Some((observer, last));
                self.read = Some(Instant::now());
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.file_is_well();
                if self.open.is_none() {
                    return;
                }
                let (since, told) = *self.away.get_or_insert((now, false));
                if !told && now.saturating_duration_since(since) >= AWAY {
                    self.away = Some((since, true));
                    self.items.push_back(Item::Removed);
                } else if !told {
                    self.file = Some(since + AWAY);
                }
            }
            Err(error) => {
                if is_news(&mut self.file_trouble, &error) {
                    self.items.push_back(Item::Unreadable(error));
                }
            }
        }
    }

    fn file_is_well(&mut self) {
        let was_told = self.file_trouble.take().is_some();
        if was_told && self.read_trouble.is_none() && self.open.is_some() {
            self.items.push_back(Item::Readable);
        }
    }

    fn take_up(&mut self, observer: Observer, item: Item) {
        self.open = Some(Open::new(observer));
        self.read_trouble = None;
        self.items.push_back(item);
        self.read = Some(Instant::now());
        self.look = (self.follow == Follow::Node).then(Instant::now);
    }

    /// Whether another registry has no event yet, because its server is about to copy those of the one that is open: then it is
    /// left alone for a moment.
    fn is_still_being_made(&mut self, other: &Observer, now: Instant) -> bool {
        if self.open.is_none() || other.newest_seq().is_ok_and(|head| head != 0) {
            self.empty_since = None;
            return false;
        }
        let is_said = other.registry().is_ok_and(|info| info.goes_on.is_some());
        let since = *self.empty_since.get_or_insert(now);
        let is_made = now.saturating_duration_since(since) >= if is_said { LONG_MAKING } else { AWAY };
        if is_made {
            self.empty_since = None;
        }
        !is_made
    }

    /// The first event of another registry that was not told yet. One that goes on with the journal of the one that is open has
    /// the same events up to a number, and that may lie beyond what was read.
    fn first_news(&self, other: &Observer) -> u64 {
        let known = self.open.as_ref().and_then(|open| Some(open.observer.registry().ok()?.created_ns));
        match other.registry().ok().and_then(|info| info.goes_on) {
            Some((from, at)) if known == Some(from) => at.saturating_add(1).min(self.cursor.next_seq()),
            _ => 1,
        }
    }

    fn read_on(&mut self, batch: usize) {
        let Some(open) = &mut self.open else { return };
        let before = self.cursor;
        let mut began = before;
        let read = open.observer.newest_seq().and_then(|head| {
            open.head = head;
            if before.next_seq() > head.saturating_add(1) {
                // Whatever it holds now is not told again.
                self.cursor = Cursor::at(head.saturating_add(1));
                let (wanted, next) = (before.next_seq(), self.cursor.next_seq());
                self.items.push_back(Item::SetBack { wanted, next });
            }
            began = self.cursor;
            open.observer.events(&mut self.cursor, batch)
        });
        match read {
            Ok(batch) => {
                if self.read_trouble.take().is_some() && self.file_trouble.is_none() {
                    self.items.push_back(Item::Readable);
                }
                let end = self.cursor.next_seq();
                let first = batch.events.first().map_or(end, |event| event.seq);
                let wanted = if began.next_seq() == 0 { first } else { began.next_seq() };
                if !batch.events.is_empty() && self.follow == Follow::Node {
                    open.life.somebody_wrote();
                    self.look = Some(Instant::now());
                }
                self.items.extend(in_order(wanted, batch.events, end));
                open.head = open.head.max(end.saturating_sub(1));
                let is_old_one_read = self.next.as_ref().is_some_and(|(_, last)| end > *last);
                if end <= open.head && !is_old_one_read {
                    self.read = Some(Instant::now());
                    return;
                }
            }
            Err(error) => {
                sooner(&mut self.file, Instant::now() + SLOW);
                if is_news(&mut self.read_trouble, &error) && self.next.is_none() {
                    self.items.push_back(Item::Unreadable(error));
                }
            }
        }
        // All of it, or all that can be read. Only when all of it is told: until then what is open is what is told of.
        if self.next.is_some() && !self.items.is_empty() {
            self.read = Some(Instant::now());
        } else if let Some((observer, _)) = self.next.take() {
            self.cursor = Cursor::at(self.first_news(&observer));
            self.take_up(observer, Item::Replaced);
            self.file = Some(Instant::now());
        }
    }

    fn look_at_node(&mut self, around: &Surroundings<'_>) {
        let Some(open) = &mut self.open else { return };
        if let Some(at) = open.not_before.filter(|at| *at > around.now) {
            return self.look = Some(at);
        }
        let (begun, used) = (Instant::now(), clock::own_cpu());
        let Ok(snapshot) = open.observer.snapshot() else {
            // What cannot be looked at cannot be read either, and that is where it is told.
            (self.read, self.look) = (Some(begun), Some(begun + SLOW));
            return;
        };
        let held = open.processes.hold(&snapshot, around.epoll, around.room, around.token);
        let now = Instant::now();
        // By what it cost, and not by how long it took: on a machine that stands still for seconds, a death would be told after
        // as many more.
        open.not_before = Some(now + clock::own_cpu().saturating_sub(used) * (LOOK_SHARE - 1));
        if !held.ended.is_empty() {
            self.look = Some(now);
        } else if held.others {
            self.look = Some(now + SLOW);
        }
        self.items.extend(held.ended.into_iter().map(|pid| Item::Ended { pid }));
        // What the last ones did before they died may have come after our last look into the journal.
        let is_read = open.observer.newest_seq().map_or(true, |head| self.cursor.next_seq() > head);
        if snapshot.liveness() == Liveness::Gone && !is_read && self.read_trouble.is_none() {
            (self.read, self.look) = (Some(now), Some(now));
            return;
        }
        let verdict = open.life.judge(&snapshot, now);
        self.items.extend(verdict.news.map(Item::Node));
        if let Some(again) = verdict.again {
            sooner(&mut self.look, now + again);
        }
    }
}

/// Whether this is another error than was told last.
fn is_news(told: &mut Option<String>, error: &Error) -> bool {
    let before = told.replace(error.to_string());
    before != *told
}

/// What was read, with the gaps where they are. `next` is the number that was to come first, `end` the one after the last.
fn in_order(next: u64, events: Vec<Event>, end: u64) -> Vec<Item> {
    let gap = |from: u64, to: u64| {
        to.checked_sub(from).filter(|&count| count > 0).map(|count| Item::Lost { first: from, count })
    };
    let mut items = Vec::new();
    let mut next = next;
    let mut run: Vec<Event> = Vec::new();
    for event in events {
        if event.seq != next {
            if !run.is_empty() {
                items.push(Item::Events(std::mem::take(&mut run)));
            }
            items.extend(gap(next, event.seq));
        }
        next = event.seq.saturating_add(1);
        run.push(event);
    }
    if !run.is_empty() {
        items.push(Item::Events(run));
    }
    items.extend(gap(next, end));
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Cause, Kind};

    #[test]
    fn a_gap_is_told_where_it_is() {
        let shown = |next, seqs: &[u64], end| -> Vec<String> {
            let event = |&seq: &u64| Event { seq, ..Event::new(Kind::WorkerDied, Cause::Unknown) };
            let items = in_order(next, seqs.iter().map(event).collect(), end);
            let show = |item| match item {
                Item::Events(events) => format!("{:?}", events.iter().map(|e| e.seq).collect::<Vec<_>>()),
                Item::Lost { first, count } => format!("{count} from {first}"),
                other => format!("{other:?}"),
            };
            items.into_iter().map(show).collect()
        };
        assert_eq!(shown(3, &[], 7), ["4 from 3"]);
        assert!(shown(3, &[], 3).is_empty());
        assert_eq!(shown(3, &[3, 4], 5), ["[3, 4]"]);
        assert_eq!(shown(1, &[3, 4, 6], 9), ["2 from 1", "[3, 4]", "1 from 5", "[6]", "2 from 7"]);
    }
}
