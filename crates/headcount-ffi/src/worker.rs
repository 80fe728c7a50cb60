//! What a worker says of itself.

use headcount_core::{ErrorKind, Generation, Join, Wait};

use crate::border::{Failure, Sized32, entry, read_struct, wait};
use crate::codes::HEADCOUNT_OK;
use crate::event::{EventRecord, Place};
use crate::handle::{self, Handle};
use crate::words::{HEADCOUNT_ROLE_HELPER, HEADCOUNT_ROLE_WORKER};

/// How a process joins a generation.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct JoinOptions {
    /// sizeof(headcount_join_options).
    pub struct_size: u32,
    /// HEADCOUNT_ROLE_WORKER or HEADCOUNT_ROLE_HELPER. 0: worker.
    pub role: u32,
    /// The generation, as `headcount_begin` gave it to the master.
    pub generation: u64,
    /// The worker's number within its generation, best counted from 0; HEADCOUNT_NONE if it has none. One that
    /// replaces another has its number.
    pub worker_id: i32,
    /// The pid of the worker that it replaces; 0: it replaces none; -1: one that is not known.
    pub replaces_pid: i32,
    /// How many milliseconds to wait for the node lock; HEADCOUNT_WAIT_LOCK_TIMEOUT, HEADCOUNT_WAIT_TRY.
    pub wait_ms: i64,
}

// SAFETY: repr(C), integers only, and it begins with its size.
unsafe impl Sized32 for JoinOptions {
    const NAME: &'static str = "headcount_join_options";
}

impl JoinOptions {
    pub(crate) fn join(&self) -> Result<(Join, Wait), Failure> {
        let invalid = |message: String| Failure::new(ErrorKind::InvalidOption, message);
        let join = match self.role {
            0 | HEADCOUNT_ROLE_WORKER => Join::worker(u32::try_from(self.worker_id).ok()),
            HEADCOUNT_ROLE_HELPER => Join::helper(),
            other => {
                return Err(invalid(format!(
                    "option `role` is {other}; allowed are 2 (worker) and 3 (helper)"
                )));
            }
        };
        if self.generation == 0 {
            return Err(invalid(
                "option `generation` is 0: give the number that headcount_begin gave".to_owned(),
            ));
        }
        Ok((join.respawned(self.replaces_pid != 0), wait(self.wait_ms)?))
    }
}

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
        let place = unsafe { Place::new(event) }?;
        // SAFETY: the caller's structure, as the header demands.
        let options = unsafe { read_struct(options, "options") }?;
        let (join, wait) = options.join()?;
        let generation = Generation::of(&handle.node, options.generation);
        let (worker, transitions) = generation.join(join.wait(wait))?;
        handle.joined(worker);
        Ok(handle.deliver(transitions, place))
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
        let place = unsafe { Place::new(event) }?;
        Ok(handle.deliver(handle.worker(generation)?.drain(wait(wait_ms)?)?, place))
    })
}

/// It leaves the generation: its last word. HEADCOUNT_EVENT: worker_exited; then generation_ended if it was the
/// last of its generation; then, if no other worker is left in the node, all that is still open.
///
/// `generation` 0: the newest that this process has joined. A callback of this very thread that was not
/// finished (it will never be resumed) counts as failed. If the generation is the one that the watch is of,
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
        let place = unsafe { Place::new(event) }?;
        let worker = handle.worker(generation)?;
        let wait = wait(wait_ms)?;
        handle.end_unfinished();
        let transitions = worker.leave(wait)?;
        handle.left(worker.generation());
        Ok(handle.deliver(transitions, place))
    })
}
