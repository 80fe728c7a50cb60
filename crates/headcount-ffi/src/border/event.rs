//! An event as C sees it.

use std::ffi::c_char;
use std::time::Duration;

use headcount_core::{Event, PreviousRun, Transition};

use crate::border::entry::{Failure, Sized32, check_struct};
use crate::border::words::HEADCOUNT_NONE;

/// One event. Set `struct_size` before each call that may fill it in.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EventRecord {
    /// sizeof(headcount_event), set by the caller.
    pub struct_size: u32,
    /// What happened: HEADCOUNT_KIND_*
    pub kind: u32,
    /// Its number in the node's journal: 1, 2, 3, ...
    pub seq: u64,
    /// The generation concerned; 0 if none.
    pub generation: u64,
    /// Wall clock, nanoseconds since 1970. For people: it may jump.
    pub time_ns: u64,
    /// Nanoseconds since boot (CLOCK_BOOTTIME). To compute with.
    pub boot_ns: u64,
    /// The last heartbeat of the process concerned, on the clock of `boot_ns`; 0 if none.
    pub heartbeat_ns: u64,
    /// generation_started after an unclean run: the newest generation of that run. callback_died and
    /// callback_failed: the number of the event that was being acted on. Else 0.
    pub previous_generation: u64,
    /// Why it happened: HEADCOUNT_CAUSE_*
    pub cause: u32,
    /// The process concerned; 0 if none.
    pub pid: i32,
    /// The worker's number within its generation; HEADCOUNT_NONE if it has none.
    pub worker_id: i32,
    /// Workers of the nearest older generation that is there; HEADCOUNT_NONE if there is none.
    pub prev: i32,
    /// Workers of the generation concerned.
    pub mine: i32,
    /// Workers of the nearest newer generation that is there; HEADCOUNT_NONE if there is none.
    pub next: i32,
    /// How many of `mine` drain.
    pub draining: i32,
    /// How many of `prev` drain.
    pub prev_draining: i32,
    /// How many of `next` drain.
    pub next_draining: i32,
    /// Workers of all generations.
    pub total: i32,
    /// The signal that ended the process; 0 if none, or not known.
    pub signal: i32,
    /// The exit code of the process; HEADCOUNT_NONE if none, or not known.
    pub exit_code: i32,
    /// 1: a process died while it acted on this very event; it may have been acted on in part.
    pub retry: u32,
    /// generation_started, for the first one of a run: HEADCOUNT_PREVIOUS_RUN_* Else 0.
    pub previous_run: u32,
    /// How many workers were running when the previous run ended uncleanly.
    pub previous_workers: i32,
    /// What the process concerned is: HEADCOUNT_ROLE_*; 0 if none is concerned.
    pub role: u32,
    /// The process that reported it.
    pub reporter_pid: u32,
    /// worker_died, master_lost, helper_exited: the state that the process had been in, HEADCOUNT_STATE_*; 0 if it is not
    /// told. Else 0.
    pub state: u32,
    /// With `state`: when the process had joined, on the clock of `boot_ns`.
    pub joined_ns: u64,
    /// With `state`: since when it had been in that state, on the same clock, to the millisecond.
    pub state_since_ns: u64,
    /// With `state`: when the process had ended, on the same clock: when that was reported, or its last sign of life if
    /// nobody was there to report it.
    pub end_ns: u64,
    /// leader_elected, leader_lost, lock_abandoned: the number of the tenure. Else 0.
    pub token: u64,
    /// once_done, once_failed: how often it was tried. Else 0.
    pub attempts: u32,
    /// Of what is about a role, a once or a lock: its name. Such an event has no counts. Else an empty string.
    pub name: [c_char; 52],
}

// SAFETY: repr(C), integers only, and it begins with its size.
unsafe impl Sized32 for EventRecord {
    const NAME: &'static str = "headcount_event";
}

pub(crate) fn signed(n: u32) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// A count, or "there is none".
pub(crate) fn count(n: Option<u32>) -> i32 {
    n.map_or(HEADCOUNT_NONE, signed)
}

/// A time in nanoseconds, or the most that there can be.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A name of a role, a once or a lock, zero-padded; all zeros for none.
pub(crate) fn name(name: Option<&str>) -> [c_char; 52] {
    let mut text = [0; 52];
    // At most 48 bytes: there is always a zero after them.
    for (to, from) in text.iter_mut().zip(name.unwrap_or_default().bytes().take(51)) {
        *to = from as c_char;
    }
    text
}

impl EventRecord {
    pub(crate) fn new(event: &Event, retry: bool) -> EventRecord {
        let (previous_run, previous_generation, previous_workers) = match event.previous_run {
            Some(PreviousRun::None) => (crate::border::words::HEADCOUNT_PREVIOUS_RUN_NONE, 0, 0),
            Some(PreviousRun::Clean) => (crate::border::words::HEADCOUNT_PREVIOUS_RUN_CLEAN, 0, 0),
            Some(PreviousRun::Unclean { generation, workers }) => {
                (crate::border::words::HEADCOUNT_PREVIOUS_RUN_UNCLEAN, generation, signed(workers))
            }
            _ => (0, event.detail, 0),
        };
        let counts = &event.counts;
        EventRecord {
            struct_size: size_of::<EventRecord>() as u32,
            kind: event.kind.code(),
            seq: event.seq,
            generation: event.generation,
            time_ns: event.time_ns,
            boot_ns: event.boot_ns,
            heartbeat_ns: event.heartbeat_ns,
            previous_generation,
            cause: event.cause.code(),
            pid: signed(event.pid),
            worker_id: count(event.worker_id),
            prev: count(counts.prev),
            mine: signed(counts.mine),
            next: count(counts.next),
            draining: signed(counts.draining),
            prev_draining: signed(counts.prev_draining),
            next_draining: signed(counts.next_draining),
            total: signed(counts.total),
            signal: event.signal.unwrap_or(0),
            exit_code: event.exit_code.unwrap_or(HEADCOUNT_NONE),
            retry: u32::from(retry),
            previous_run,
            previous_workers,
            role: event.role.map_or(0, |r| r.code()),
            reporter_pid: event.reporter_pid,
            state: event.state.map_or(0, |state| state.code()),
            joined_ns: event.joined_ns,
            state_since_ns: event.state_since_ns,
            end_ns: if event.state.is_some() { event.end_ns() } else { 0 },
            token: event.token,
            attempts: event.attempts,
            name: name(event.name.as_deref()),
        }
    }
}

/// Where the caller wants the event, checked before anything is done that could bring one.
#[derive(Clone, Copy)]
pub(crate) struct EventOut(*mut EventRecord);

impl EventOut {
    /// # Safety
    /// `pointer` is NULL or points to a writable structure that says its true size, for as long as the
    /// exported function runs.
    pub(crate) unsafe fn new(pointer: *mut EventRecord) -> Result<EventOut, Failure> {
        // SAFETY: by the caller's word.
        unsafe { check_struct(pointer, "event") }?;
        Ok(EventOut(pointer))
    }

    pub(crate) fn fill(self, transition: &Transition) {
        let record = EventRecord::new(&transition.event, transition.retry);
        // SAFETY: checked by `new`, whose caller promised that it stays writable.
        unsafe { self.0.write(record) };
    }
}
