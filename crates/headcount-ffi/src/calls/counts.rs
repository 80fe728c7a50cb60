//! Counts and marks of a generation. None of it takes the node lock.

use std::time::Duration;

use headcount_core::{Generation, Phase, Snapshot};

use crate::border::codes::HEADCOUNT_OK;
use crate::border::entry::{Sized32, check_pointer, check_struct, entry, put};
use crate::border::event::count;
use crate::handle::{self, Handle};

/// The workers of three neighbouring generations, and of all. Set `struct_size` before the call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CountsRecord {
    /// sizeof(headcount_counts), set by the caller.
    pub struct_size: u32,
    /// Workers of the nearest older generation that is there; HEADCOUNT_NONE if there is none.
    pub prev: i32,
    /// Workers of the generation itself; HEADCOUNT_NONE if it is not there.
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
    /// How many of `total` drain.
    pub total_draining: i32,
    /// 0.
    pub reserved: u32,
    /// The generation that `mine` is of.
    pub generation: u64,
}

// SAFETY: repr(C), integers only, and it begins with its size.
unsafe impl Sized32 for CountsRecord {
    const NAME: &'static str = "headcount_counts";
}

fn counts_of(snapshot: &Snapshot, generation: u64) -> CountsRecord {
    let neighbours = || snapshot.generations.iter().filter(|g| g.phase == Phase::Committed);
    let prev = neighbours().filter(|g| g.id < generation).max_by_key(|g| g.id);
    let mine = snapshot.generations.iter().find(|g| g.id == generation);
    let next = neighbours().filter(|g| g.id > generation).min_by_key(|g| g.id);
    let total_draining = snapshot.generations.iter().map(|g| g.counts.draining).sum();
    let draining = |n: u32| count(Some(n));
    CountsRecord {
        struct_size: size_of::<CountsRecord>() as u32,
        prev: count(prev.map(|g| g.counts.mine)),
        mine: count(mine.map(|g| g.counts.mine)),
        next: count(next.map(|g| g.counts.mine)),
        draining: draining(mine.map_or(0, |g| g.counts.draining)),
        prev_draining: draining(prev.map_or(0, |g| g.counts.draining)),
        next_draining: draining(next.map_or(0, |g| g.counts.draining)),
        total: draining(snapshot.total),
        total_draining: draining(total_draining),
        reserved: 0,
        generation,
    }
}

/// The counts at this instant. `generation` 0: the newest that this process has joined; in a process that
/// has joined none, the newest that is there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_get_counts(
    node: *mut Handle,
    generation: u64,
    counts: *mut CountsRecord,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL, or a structure that says its true size, by the caller's word.
        unsafe { check_struct(counts, "counts") }?;
        let snapshot = handle.node.snapshot();
        let newest = || snapshot.newest_committed().map(|g| g.id);
        let generation = match generation {
            0 => handle.worker(0).ok().map(|w| w.generation()).or_else(newest).unwrap_or(0),
            id => id,
        };
        // SAFETY: as above.
        unsafe { put(counts, "counts", counts_of(&snapshot, generation)) }?;
        Ok(HEADCOUNT_OK)
    })
}

/// How many workers of a generation have died whose last heartbeat is younger than `within_ms`, as far
/// back as the journal goes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_recent_deaths(
    node: *mut Handle,
    generation: u64,
    within_ms: u64,
    number: *mut u32,
) -> i32 {
    entry(|| {
        let node = &handle::find(node)?.node;
        check_pointer(number, "number")?;
        let found = node.recent_deaths(generation, Duration::from_millis(within_ms));
        // SAFETY: checked above; writable by the caller's word.
        unsafe { put(number, "number", u32::try_from(found).unwrap_or(u32::MAX)) }?;
        Ok(HEADCOUNT_OK)
    })
}

/// Sets one of the 32 marks of a generation, which all its processes share and headcount gives no meaning. `*was_new`
/// is 1 for the one process that set it, 0 for all others: what must happen once per generation does.
///
/// HEADCOUNT_ERR_NOT_FOUND if the generation is not there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_mark_once(
    node: *mut Handle,
    generation: u64,
    bit: u32,
    was_new: *mut u32,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        check_pointer(was_new, "was_new")?;
        let new = Generation::of(&handle.node, generation).mark(bit)?;
        // SAFETY: checked above; writable by the caller's word.
        unsafe { put(was_new, "was_new", u32::from(new)) }?;
        Ok(HEADCOUNT_OK)
    })
}
