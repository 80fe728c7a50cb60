//! A snapshot as C sees it: structures in arrays that the caller brings.

use headcount_core::{GenerationStatus, ProcessStatus, Role, Snapshot};

use crate::border::codes::HEADCOUNT_OK;
use crate::border::entry::{Failure, Sized32, check_struct, entry, put};
use crate::border::event::{count, nanos, signed};
use crate::border::words::{HEADCOUNT_NONE, liveness_codes};
use crate::handle::{self, Handle};

/// A node at one instant. Set `struct_size` before the call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SnapshotRecord {
    /// sizeof(headcount_snapshot), set by the caller.
    pub struct_size: u32,
    /// Workers of all generations that are alive and not stalled.
    pub total: i32,
    /// The number of the newest event.
    pub head: u64,
    /// When this was: nanoseconds since boot (CLOCK_BOOTTIME).
    pub boot_ns: u64,
    /// When this was: wall clock, nanoseconds since 1970.
    pub time_ns: u64,
    /// How many generations there are; more than were written if there was no room for all.
    pub generations: u64,
    /// How many processes there are; more than were written if there was no room for all.
    pub processes: u64,
    /// For how long `holder` has held the node lock.
    pub held_ns: u64,
    /// For how long it has been in `callback`.
    pub callback_ns: u64,
    /// The process that holds the node lock; 0: it is free.
    pub holder: i32,
    /// The kind of the event whose callback `holder` runs: HEADCOUNT_KIND_*; 0 if none.
    pub callback: u32,
    /// The worker that watches the others; 0 if none.
    pub sentinel: i32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: repr(C), integers only, and it begins with its size.
unsafe impl Sized32 for SnapshotRecord {
    const NAME: &'static str = "headcount_snapshot";
}

/// A generation at one instant.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GenerationRecord {
    /// sizeof(headcount_generation_status).
    pub struct_size: u32,
    /// How far it is: HEADCOUNT_PHASE_*
    pub phase: u32,
    /// Its number.
    pub id: u64,
    /// For how long it has been there.
    pub age_ns: u64,
    /// When it began: wall clock, nanoseconds since 1970.
    pub begun_ns: u64,
    /// Why it began: HEADCOUNT_CAUSE_*
    pub cause: u32,
    /// Its master's process id.
    pub master: i32,
    /// Whether that master is alive: 1 or 0; HEADCOUNT_NONE if that cannot be told.
    pub master_alive: i32,
    /// How many workers it is to have; HEADCOUNT_NONE if the server did not say so.
    pub expected: i32,
    /// Workers of the nearest older generation that is there; HEADCOUNT_NONE if there is none.
    pub prev: i32,
    /// Its workers.
    pub mine: i32,
    /// Workers of the nearest newer generation that is there; HEADCOUNT_NONE if there is none.
    pub next: i32,
    /// How many of `mine` drain.
    pub draining: i32,
    /// How many of `prev` drain.
    pub prev_draining: i32,
    /// How many of `next` drain.
    pub next_draining: i32,
}

// SAFETY: repr(C), integers only, and it begins with its size.
unsafe impl Sized32 for GenerationRecord {
    const NAME: &'static str = "headcount_generation_status";
}

/// A process at one instant.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ProcessRecord {
    /// sizeof(headcount_process_status).
    pub struct_size: u32,
    /// What it is: HEADCOUNT_ROLE_*
    pub role: u32,
    /// Its generation; 0 for a master, which belongs to all that it began.
    pub generation: u64,
    /// How long ago it joined.
    pub age_ns: u64,
    /// For how long it has been starting, serving, draining or leaving.
    pub in_state_ns: u64,
    /// How old its last heartbeat is; HEADCOUNT_NONE for a master, which never beats.
    pub heartbeat_age_ns: i64,
    /// Its process id.
    pub pid: i32,
    /// Its number within its generation; HEADCOUNT_NONE if it has none.
    pub worker_id: i32,
    /// Its state: HEADCOUNT_STATE_*
    pub state: u32,
    /// What the kernel says of it: HEADCOUNT_LIVENESS_*
    pub liveness: u32,
    /// Why that is HEADCOUNT_LIVENESS_UNKNOWN: HEADCOUNT_DOUBT_*; 0 if it is not.
    pub doubt: u32,
    /// Why it was started: HEADCOUNT_CAUSE_*
    pub cause: u32,
}

// SAFETY: repr(C), integers only, and it begins with its size.
unsafe impl Sized32 for ProcessRecord {
    const NAME: &'static str = "headcount_process_status";
}

impl SnapshotRecord {
    fn new(snapshot: &Snapshot) -> SnapshotRecord {
        let holder = snapshot.holder.as_ref();
        let callback = holder.and_then(|h| h.callback);
        SnapshotRecord {
            struct_size: size_of::<SnapshotRecord>() as u32,
            total: signed(snapshot.total),
            head: snapshot.head,
            boot_ns: snapshot.boot_ns,
            time_ns: snapshot.time_ns,
            generations: snapshot.generations.len() as u64,
            processes: snapshot.processes.len() as u64,
            held_ns: holder.map_or(0, |h| nanos(h.held_for)),
            callback_ns: callback.map_or(0, |(_, since)| nanos(since)),
            holder: holder.map_or(0, |h| signed(h.pid)),
            callback: callback.map_or(0, |(kind, _)| kind.code()),
            sentinel: snapshot.sentinel.map_or(0, signed),
            reserved: 0,
        }
    }
}

impl GenerationRecord {
    fn new(generation: &GenerationStatus) -> GenerationRecord {
        let counts = &generation.counts;
        GenerationRecord {
            struct_size: size_of::<GenerationRecord>() as u32,
            phase: generation.phase.code(),
            id: generation.id,
            age_ns: nanos(generation.age),
            begun_ns: generation.begun_ns,
            cause: generation.cause.code(),
            master: signed(generation.master),
            master_alive: generation.master_alive.map_or(HEADCOUNT_NONE, i32::from),
            expected: count(generation.expected),
            prev: count(counts.prev),
            mine: signed(counts.mine),
            next: count(counts.next),
            draining: signed(counts.draining),
            prev_draining: signed(counts.prev_draining),
            next_draining: signed(counts.next_draining),
        }
    }
}

impl ProcessRecord {
    fn new(process: &ProcessStatus) -> ProcessRecord {
        let (liveness, doubt) = liveness_codes(process.liveness);
        let age = i64::try_from(process.heartbeat_age.as_nanos()).unwrap_or(i64::MAX);
        ProcessRecord {
            struct_size: size_of::<ProcessRecord>() as u32,
            role: process.role.code(),
            generation: process.generation,
            age_ns: nanos(process.age),
            in_state_ns: nanos(process.in_state_for),
            heartbeat_age_ns: if process.role == Role::Master { HEADCOUNT_NONE.into() } else { age },
            pid: signed(process.pid),
            worker_id: count(process.worker_id),
            state: process.state.code(),
            liveness,
            doubt,
            cause: process.cause.code(),
        }
    }
}

/// An array that the caller brings, checked before the snapshot is taken.
struct Room<T> {
    first: *mut T,
    capacity: usize,
}

impl<T: Sized32> Room<T> {
    /// # Safety
    /// `first` is NULL, or has room for `capacity` structures, the first of which says its true size, for as long as the
    /// exported function runs.
    unsafe fn new(first: *mut T, capacity: u64, what: &str) -> Result<Room<T>, Failure> {
        if capacity != 0 {
            // SAFETY: by the caller's word.
            unsafe { check_struct(first, what) }?;
        }
        Ok(Room { first, capacity: usize::try_from(capacity).unwrap_or(usize::MAX) })
    }

    fn fill(&self, records: impl Iterator<Item = T>) {
        for (i, record) in records.take(self.capacity).enumerate() {
            // SAFETY: `i` is below the capacity, for which `new`'s caller vouched; its first element is not NULL and aligned.
            unsafe { self.first.add(i).write(record) };
        }
    }
}

/// The whole node as it is at one instant, by the kernel: also when every other process of it is dead or hangs.
///
/// At most `generation_capacity` generations, oldest first, go to `generations`, and at most `process_capacity`
/// processes, by generation, role and number, to `processes`; `struct_size` of the first of each must be set. A
/// capacity may be 0, and its array NULL then. `snapshot` says how many there are of each: if that is more than there was
/// room for, try again with more. Name and registry are `headcount_node_info`'s.
///
/// Takes no lock and waits for nobody. The library keeps nothing of it: there is nothing to free.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_get_snapshot(
    node: *mut Handle,
    snapshot: *mut SnapshotRecord,
    generations: *mut GenerationRecord,
    generation_capacity: u64,
    processes: *mut ProcessRecord,
    process_capacity: u64,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL, or a structure that says its true size, by the caller's word.
        unsafe { check_struct(snapshot, "snapshot") }?;
        // SAFETY: the caller's arrays, as the header demands.
        let (generation_room, process_room) = unsafe {
            (
                Room::new(generations, generation_capacity, "generations")?,
                Room::new(processes, process_capacity, "processes")?,
            )
        };
        let taken = handle.node.snapshot();
        generation_room.fill(taken.generations.iter().map(GenerationRecord::new));
        process_room.fill(taken.processes.iter().map(ProcessRecord::new));
        // SAFETY: as above.
        unsafe { put(snapshot, "snapshot", SnapshotRecord::new(&taken)) }?;
        Ok(HEADCOUNT_OK)
    })
}
