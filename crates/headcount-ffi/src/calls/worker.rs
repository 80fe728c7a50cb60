//! What a worker says of itself.

use headcount_core::Generation;

use crate::border::codes::HEADCOUNT_OK;
use crate::border::entry::{entry, read_struct, wait};
use crate::border::event::{EventOut, EventRecord};
use crate::border::options::JoinOptions;
use crate::handle::{self, Handle};

/// Joins a generation with this process. HEADCOUNT_EVENT: worker_started; before it generation_started if
/// the master could not announce that. A helper gets no event.
///
/// HEADCOUNT_ERR_WRONG_STATE if it has joined this generation already. A process may join several
/// generations (a server without a master process does); each is left by itself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_join(
    node: *mut Handle,
    options: *const JoinOptions,
    event: *mut EventRecord,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL, or writable for as long as this call, by the caller's word.
        let out = unsafe { EventOut::new(event) }?;
        // SAFETY: the caller's structure, as the header demands.
        let options = unsafe { read_struct(options, "options") }?;
        let (join, wait) = options.join()?;
        let generation = Generation::of(&handle.node, options.generation);
        let (worker, transitions) = generation.join(join.wait(wait))?;
        handle.joined(worker);
        Ok(handle.deliver(transitions, out))
    })
}

/// Says "I make progress", for every generation that this process has joined. Call it from the loop that does
/// the work, at least every `heartbeat_interval_ms`; from a thread of its own it proves nothing.
///
/// One look at the clock and one store: no lock, no system call. Any thread may call it.
/// HEADCOUNT_ERR_WRONG_STATE if this process has joined nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_beat(node: *mut Handle) -> i32 {
    entry(|| {
        handle::find(node)?.beat()?;
        Ok(HEADCOUNT_OK)
    })
}

/// It takes no new work from now on, and finishes what it has. HEADCOUNT_EVENT: worker_draining.
///
/// `generation` 0: the newest that this process has joined. Does nothing if it drains already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_drain(
    node: *mut Handle,
    generation: u64,
    wait_ms: i64,
    event: *mut EventRecord,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL, or writable for as long as this call, by the caller's word.
        let out = unsafe { EventOut::new(event) }?;
        Ok(handle.deliver(handle.worker(generation)?.drain(wait(wait_ms)?)?, out))
    })
}

/// It leaves the generation: its last word. HEADCOUNT_EVENT: worker_exited; then generation_ended if it was the
/// last of its generation; then, if no other worker is left in the node, all that is still open.
///
/// `generation` 0: the newest that this process has joined. A callback of this very thread that was not
/// finished (it will never be resumed) is run again by another process if it is about others, and counts as failed if it
/// is about this one; a notice says which. If the generation is the one that the watch is of,
/// watch and waker end. A process that ends without having left has died, and is reported so.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_leave(
    node: *mut Handle,
    generation: u64,
    wait_ms: i64,
    event: *mut EventRecord,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL, or writable for as long as this call, by the caller's word.
        let out = unsafe { EventOut::new(event) }?;
        let worker = handle.worker(generation)?;
        let wait = wait(wait_ms)?;
        handle.end_unfinished();
        let transitions = worker.leave(wait)?;
        handle.left(worker.generation());
        Ok(handle.deliver(transitions, out))
    })
}
