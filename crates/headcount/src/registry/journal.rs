//! The journal: a bounded ring of numbered events, written under the node lock, read without any.

use crate::event::{Cause, Counts, Event, Kind, PreviousRun, Role, State};
use crate::registry::layout::{KINDS, NO_GENERATION, Record};
use crate::registry::region::Region;
use crate::registry::seqlock::{publish, published};
use crate::sys::atomic::AtomicU64;
use crate::sys::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sys::reader_futex;

/// Where a reader of the journal stands: the number of the event it wants next.
///
/// Keep [`Cursor::next_seq`] somewhere to go on from there after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    next: u64,
}

impl Cursor {
    /// Before the oldest event that is kept.
    #[must_use]
    pub fn oldest() -> Cursor {
        Cursor { next: 0 }
    }

    /// Before the event with this number.
    #[must_use]
    pub fn at(seq: u64) -> Cursor {
        Cursor { next: seq }
    }

    /// The number of the event that is wanted next; 0 means the oldest that is kept.
    #[must_use]
    pub fn next_seq(self) -> u64 {
        self.next
    }

    /// Puts it on an event that a journal with this head can have, and gives how many it passed by for that.
    pub(crate) fn catch_up(&mut self, head: u64, capacity: u64) -> u64 {
        let oldest = head.saturating_sub(capacity).saturating_add(1);
        let wanted = self.next;
        // Beyond the end: a cursor from another registry, or from before this one was made anew.
        if wanted < oldest || wanted > head.saturating_add(1) {
            self.next = oldest;
        }
        if wanted == 0 { 0 } else { oldest.saturating_sub(wanted) }
    }
}

/// What one look into the journal brought.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Batch {
    /// The events, in order.
    pub events: Vec<Event>,
    /// How many events before them were overwritten before they could be read.
    pub lost: u64,
}

/// A head as a reader takes it: there must be a number after it, on which a cursor can rest. Only a spoiled one has
/// none, and a reader would count the last event as lost for ever.
pub(crate) fn believable(head: u64) -> u64 {
    head.min(u64::MAX - 1)
}

/// More than any node ever has; half of it is, too.
pub(crate) const MOST_EVENTS: u64 = 1 << 53;

/// A view of the ring. `head` is the number of the newest event.
pub(crate) struct Journal<'a> {
    pub(crate) head: &'a AtomicU64,
    pub(crate) kinds: &'a [AtomicU64; KINDS],
    pub(crate) region: &'a Region,
}

impl Journal<'_> {
    fn capacity(&self) -> u64 {
        self.region.geometry().journal_records() as u64
    }

    /// The place of the event with this number. `None`: it is none, or the file system is full.
    fn record(&self, seq: u64) -> Option<&Record> {
        let index = usize::try_from(seq.checked_sub(1)?.checked_rem(self.capacity())?).ok()?;
        self.region.journal_up_to(index + 1).get(index)
    }

    /// Writes `event` under the number `head + 1`, and gives the number; and whether it is kept: where the file system is full,
    /// an event has its number all the same, and readers count it as lost. Only the holder of the node lock may call it.
    ///
    /// A writer that dies half-way leaves a record whose number is 0 and a head that does not reach
    /// it: the next writer simply writes it again.
    pub(crate) fn append(&self, event: &Event) -> (u64, bool) {
        let seq = self.head.load(Relaxed).wrapping_add(1);
        let kind = self.kinds.get(event.kind.code() as usize);
        let nth = kind.map_or(0, |kind| kind.load(Relaxed).wrapping_add(1));
        let record = self.record(seq);
        if let Some(r) = record {
            publish(&r.seq, seq, || {
                write(r, event);
                r.nth.store(nth, Relaxed);
            });
        }
        self.head.store(seq, Release);
        reader_futex::wake_readers(self.head);
        if let Some(kind) = kind {
            kind.store(nth, Relaxed);
        }
        (seq, record.is_some())
    }

    /// Goes on after the newest record, if somebody has spoiled the head: no node has ever so many events. Leaves room for
    /// as many again. One load where all is well. Only the holder of the node lock may call it.
    pub(crate) fn heal_head(&self, most: u64) -> bool {
        let is_spoiled = self.head.load(Relaxed) > most;
        if is_spoiled {
            let records = self.region.journal_up_to(self.region.geometry().journal_records());
            let numbers = records.iter().map(|r| r.seq.load(Relaxed));
            self.head.store(numbers.filter(|&seq| seq <= MOST_EVENTS / 2).max().unwrap_or(0), Release);
        }
        is_spoiled
    }

    /// Counts the newest event, in case its writer died before it could. Does nothing if it did not. Only the holder
    /// of the node lock may call it.
    pub(crate) fn count_newest(&self) {
        let newest = self.head.load(Relaxed);
        let Some(r) = self.record(newest).filter(|r| r.seq.load(Relaxed) == newest) else { return };
        if let Some(kind) = self.kinds.get(r.kind.load(Relaxed) as usize) {
            kind.store(r.nth.load(Relaxed), Relaxed);
        }
    }

    /// The event with this number, if it is still there and makes sense.
    pub(crate) fn read(&self, seq: u64) -> Option<Event> {
        let r = self.record(seq)?;
        published(&r.seq, seq, || decode(r, seq))?
    }

    /// Reads on from the cursor, at most `limit` events.
    pub(crate) fn batch(&self, cursor: &mut Cursor, limit: usize) -> Batch {
        let head = believable(self.head.load(Acquire));
        let mut batch = Batch { lost: cursor.catch_up(head, self.capacity()), ..Batch::default() };
        while cursor.next <= head && batch.events.len() < limit {
            match self.read(cursor.next) {
                Some(event) => batch.events.push(event),
                // Overwritten while we looked, or spoiled.
                None => batch.lost += 1,
            }
            // Only a spoiled head is that far.
            let Some(next) = cursor.next.checked_add(1) else { break };
            cursor.next = next;
        }
        batch
    }
}

/// The time at which a state began is kept in units of so many bits of nanoseconds: a millisecond.
const COARSE: u32 = 20;

/// All fields but the number, in any order: see `seqlock.rs`.
fn write(r: &Record, event: &Event) {
    let count = |n: Option<u32>| n.map_or(NO_GENERATION, saturate);
    let c = &event.counts;
    r.kind.store(event.kind.code(), Relaxed);
    r.cause.store(event.cause.code(), Relaxed);
    r.pid.store(event.pid, Relaxed);
    r.worker_id.store(event.worker_id.map_or(-1, saturate), Relaxed);
    r.generation.store(event.generation, Relaxed);
    r.time_ns.store(event.time_ns, Relaxed);
    r.boot_ns.store(event.boot_ns, Relaxed);
    if let Some(name) = event.name.as_ref().filter(|_| event.kind.has_name()) {
        write_named(r, event, name);
        return;
    }
    r.heartbeat_ns.store(event.heartbeat_ns, Relaxed);
    let (run, generation, workers) = PreviousRun::to_words(event.previous_run);
    r.detail.store(if generation == 0 { event.detail } else { generation }, Relaxed);
    r.previous_run.store(run, Relaxed);
    r.previous_workers.store(saturate(workers), Relaxed);
    r.state.store(0, Relaxed);
    if let Some(state) = event.state {
        let since = event.state_since_ns >> COARSE;
        r.detail.store(event.joined_ns, Relaxed);
        r.previous_workers.store(since as u32 as i32, Relaxed);
        r.state.store((since >> 32 << 8) as u32 | state.code(), Relaxed);
    }
    r.prev.store(count(c.prev), Relaxed);
    r.mine.store(saturate(c.mine), Relaxed);
    r.next.store(count(c.next), Relaxed);
    r.draining.store(saturate(c.draining), Relaxed);
    r.prev_draining.store(saturate(c.prev_draining), Relaxed);
    r.next_draining.store(saturate(c.next_draining), Relaxed);
    r.total.store(saturate(c.total), Relaxed);
    r.signal.store(event.signal.unwrap_or(0), Relaxed);
    r.exit_code.store(event.exit_code.unwrap_or(-1), Relaxed);
    r.role.store(event.role.map_or(0, Role::code), Relaxed);
    r.reporter_pid.store(event.reporter_pid, Relaxed);
}

/// The rest of an event that has a name, which takes the place of much.
fn write_named(r: &Record, event: &Event, name: &str) {
    r.set_name(name);
    let number = if event.token == 0 { event.attempts.into() } else { event.token };
    r.detail.store(number, Relaxed);
    let end = match (event.signal, event.exit_code) {
        (Some(signal), _) => saturating_low(signal) | SIGNAL,
        (_, Some(code)) => saturating_low(code) | EXIT,
        _ => 0,
    };
    r.heartbeat_ns.store(u64::from(event.reporter_pid) | end << 32, Relaxed);
    r.previous_workers.store(0, Relaxed);
    r.state.store(0, Relaxed);
}

/// How a process ended, where an event has a name: what kind of end the lower 16 bits tell.
const SIGNAL: u64 = 1 << 16;
const EXIT: u64 = 2 << 16;

fn saturating_low(n: i32) -> u64 {
    u16::try_from(n).unwrap_or(u16::MAX).into()
}

fn decode_named(r: &Record, mut event: Event) -> Option<Event> {
    event.name = Some(r.name()?);
    let number = r.detail.load(Relaxed);
    match event.kind {
        Kind::OnceDone | Kind::OnceFailed => event.attempts = u32::try_from(number).unwrap_or(u32::MAX),
        _ => event.token = number,
    }
    let word = r.heartbeat_ns.load(Relaxed);
    event.reporter_pid = word as u32;
    let (kind_of_end, value) = (word >> 32 & !0xffff, (word >> 32 & 0xffff) as i32);
    event.signal = Some(value).filter(|_| kind_of_end == SIGNAL);
    event.exit_code = Some(value).filter(|_| kind_of_end == EXIT);
    Some(event)
}

/// The event in a record of this number. `None`: it makes no sense.
pub(crate) fn decode(r: &Record, seq: u64) -> Option<Event> {
    let count = |n: i32| u32::try_from(n).ok();
    let detail = r.detail.load(Relaxed);
    let kind = Kind::from_code(r.kind.load(Relaxed))?;
    let cause = Cause::from_code(r.cause.load(Relaxed)).unwrap_or(Cause::Unknown);
    let event = Event {
        seq,
        generation: r.generation.load(Relaxed),
        pid: r.pid.load(Relaxed),
        worker_id: count(r.worker_id.load(Relaxed)),
        time_ns: r.time_ns.load(Relaxed),
        boot_ns: r.boot_ns.load(Relaxed),
        ..Event::new(kind, cause)
    };
    if kind.has_name() {
        return decode_named(r, event);
    }
    let word = r.state.load(Relaxed);
    let state = State::from_code(word & 0xff);
    let since = u64::from(word >> 8) << 32 | u64::from(r.previous_workers.load(Relaxed) as u32);
    Some(Event {
        role: Role::from_code(r.role.load(Relaxed)),
        counts: Counts {
            prev: count(r.prev.load(Relaxed)),
            mine: count(r.mine.load(Relaxed)).unwrap_or(0),
            next: count(r.next.load(Relaxed)),
            total: count(r.total.load(Relaxed)).unwrap_or(0),
            draining: count(r.draining.load(Relaxed)).unwrap_or(0),
            prev_draining: count(r.prev_draining.load(Relaxed)).unwrap_or(0),
            next_draining: count(r.next_draining.load(Relaxed)).unwrap_or(0),
        },
        signal: Some(r.signal.load(Relaxed)).filter(|&s| s > 0),
        exit_code: Some(r.exit_code.load(Relaxed)).filter(|&c| c >= 0),
        previous_run: PreviousRun::from_words(
            r.previous_run.load(Relaxed),
            detail,
            count(r.previous_workers.load(Relaxed)).unwrap_or(0),
        ),
        detail: if state.is_some() { 0 } else { detail },
        joined_ns: if state.is_some() { detail } else { 0 },
        state,
        // Not before it had joined, for being in coarse units.
        state_since_ns: if state.is_some() { (since << COARSE).max(detail) } else { 0 },
        heartbeat_ns: r.heartbeat_ns.load(Relaxed),
        reporter_pid: r.reporter_pid.load(Relaxed),
        ..event
    })
}

fn saturate(n: u32) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}
