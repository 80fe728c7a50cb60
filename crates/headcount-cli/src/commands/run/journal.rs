//! The journal as a queue: read ahead while something is being delivered, in a bounded number, and with its gaps.

use std::collections::VecDeque;

use headcount::{Cursor, Event, Observer};

use super::log::Log;

/// What warnings are about.
const JOURNAL: &str = "journal";

/// What comes next.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// An event.
    Event(Event),
    /// So many were overwritten before they could be read.
    Lost {
        /// The first of them.
        from: u64,
        /// How many.
        count: u64,
    },
    /// The journal ends before events that were read already: what is next is this one.
    SetBack(u64),
}

/// A journal, as far as it was read.
pub struct Journal {
    pub observer: Observer,
    cursor: Cursor,
    queue: VecDeque<Item>,
    limit: usize,
}

impl Journal {
    /// From the event with this number on; 0: from the oldest that is kept.
    pub fn new(observer: Observer, next: u64, limit: usize) -> Journal {
        Journal { observer, cursor: Cursor::at(next), queue: VecDeque::new(), limit }
    }

    /// What is to be delivered next.
    pub fn front(&self) -> Option<&Item> {
        self.queue.front()
    }

    /// It is delivered.
    pub fn pop(&mut self) {
        self.queue.pop_front();
    }

    /// The event that will be read next.
    pub fn next_seq(&self) -> u64 {
        self.cursor.next_seq()
    }

    /// Reads on, as far as there is room.
    pub fn read_ahead(&mut self, log: &Log) {
        let room = self.limit.saturating_sub(self.queue.len());
        if room == 0 {
            return;
        }
        let before = self.cursor.next_seq();
        let batch = match self.observer.events(&mut self.cursor, room) {
            Ok(batch) => {
                log.is_well(JOURNAL);
                batch
            }
            // A server that finds it so makes it anew; and that is looked for.
            Err(error) => return log.warn_once(JOURNAL, error),
        };
        let after = self.cursor.next_seq();
        if before != 0 && after < before {
            log.warn(format_args!(
                "event {} was there, and the journal now ends before: somebody wrote into the registry; going on \
                 with what comes",
                before - 1
            ));
            self.skip_all(log);
            self.queue.push_back(Item::SetBack(self.cursor.next_seq()));
            return;
        }
        self.queue.extend(items(before, batch.events, after));
    }

    fn skip_all(&mut self, log: &Log) {
        loop {
            match self.observer.events(&mut self.cursor, 4096) {
                Ok(batch) if batch.events.is_empty() && batch.lost == 0 => return,
                Ok(_) => {}
                Err(error) => return log.warn_once(JOURNAL, error),
            }
        }
    }
}

/// Events with the gaps between them. `next` is the number that was to come first, `end` the one after the last.
fn items(next: u64, events: Vec<Event>, end: u64) -> Vec<Item> {
    let mut items = Vec::with_capacity(events.len());
    let mut next = if next == 0 { events.first().map_or(end, |event| event.seq) } else { next };
    for event in events {
        let seq = event.seq;
        items.extend(gap(next, seq));
        items.push(Item::Event(event));
        next = seq.saturating_add(1);
    }
    items.extend(gap(next, end));
    items
}

fn gap(from: u64, to: u64) -> Option<Item> {
    to.checked_sub(from).filter(|&count| count > 0).map(|count| Item::Lost { from, count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_told_where_it_is() {
        assert_eq!(items(3, vec![], 7), [Item::Lost { from: 3, count: 4 }]);
        assert_eq!(items(3, vec![], 3), []);
        // From the oldest: what was before is nobody's loss.
        assert_eq!(items(0, vec![], 7), []);
    }
}
