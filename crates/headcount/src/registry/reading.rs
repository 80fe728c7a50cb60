//! Reading a journal from its file, by those who are not part of the node: only the records that are wanted, into a
//! buffer of a bounded size.
//!
//! The file is read with pread(2) and never mapped: whoever may write to it may truncate it, and a load from memory
//! behind its end would be a SIGBUS.

use std::io;
use std::mem::offset_of;
use std::os::fd::BorrowedFd;

use crate::registry::journal::{Batch, Cursor, believable, decode};
use crate::registry::layout::{Geometry, Header, Record};
use crate::registry::region::read_exact;
use crate::sys::atomic::Ordering::{Acquire, Relaxed};
use crate::sys::atomic::fence;
use crate::sys::memory::Buffer;

/// So many records are read at once: 64 KiB.
const CHUNK: usize = 512;

/// A journal in a file.
#[derive(Clone, Copy)]
pub(crate) struct JournalFile<'a> {
    pub(crate) file: BorrowedFd<'a>,
    pub(crate) geometry: Geometry,
}

impl JournalFile<'_> {
    /// The number of the newest event.
    pub(crate) fn head(self) -> io::Result<u64> {
        self.word(offset_of!(Header, head) as u64).map(believable)
    }

    pub(crate) fn word(self, at: u64) -> io::Result<u64> {
        let mut word = [0; 8];
        read_exact(self.file, &mut word, at)?;
        Ok(u64::from_ne_bytes(word))
    }

    /// Reads on from the cursor, at most `limit` records. What is not an event any more, or never was one, counts as lost.
    pub(crate) fn batch(self, cursor: &mut Cursor, limit: usize) -> io::Result<Batch> {
        let head = self.head()?;
        let capacity = self.geometry.journal_records() as u64;
        let mut batch = Batch { lost: cursor.catch_up(head, capacity), ..Batch::default() };
        let mut left = limit as u64;
        let mut buffer = None;
        while left > 0 && cursor.next_seq() <= head {
            let first = cursor.next_seq();
            let index = (first - 1) % capacity;
            // Up to the end of the ring: the rest is read in the next round.
            let wanted = (head - first).saturating_add(1).min(left).min(CHUNK as u64);
            let count = wanted.min(capacity - index);
            let buffer = buffer.get_or_insert_with(|| Buffer::<Record>::new(wanted as usize));
            read_exact(self.file, buffer.bytes_mut(count as usize), self.offset(index))?;
            // What follows must not be read before the records were.
            fence(Acquire);
            let now = self.head()?;
            for (nth, record) in buffer.records().iter().enumerate().take(count as usize) {
                // Not above `head`.
                let seq = first + nth as u64;
                let whole = record.seq.load(Relaxed) == seq && self.is_untouched(seq, now)?;
                match whole.then(|| decode(record, seq)).flatten() {
                    Some(event) => batch.events.push(event),
                    None => batch.lost = batch.lost.saturating_add(1),
                }
            }
            left -= count;
            // Only a spoiled head is that far.
            let Some(next) = first.checked_add(count) else { break };
            *cursor = Cursor::at(next);
        }
        Ok(batch)
    }

    /// Whether the record of this number was whole when it was read. `head`: the newest number, read after it.
    fn is_untouched(self, seq: u64, head: u64) -> io::Result<bool> {
        let capacity = self.geometry.journal_records() as u64;
        let next = head.saturating_add(1);
        match seq.saturating_add(capacity) {
            overwriting if overwriting > next => Ok(true),
            // The next one takes its place, and may be on its way: its writer takes the number away before anything else.
            overwriting if overwriting == next => Ok(self.word(self.offset((seq - 1) % capacity))? == seq),
            _ => Ok(false),
        }
    }

    fn offset(self, index: u64) -> u64 {
        self.geometry.journal_offset() as u64 + index * size_of::<Record>() as u64
    }
}
