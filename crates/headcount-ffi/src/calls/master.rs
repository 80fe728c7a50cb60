//! What a master says.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use headcount_core::{Begin, Cause, ErrorKind, Wait};

use crate::border::codes::HEADCOUNT_OK;
use crate::border::entry::{Failure, entry, put, wait};
use crate::border::event::{EventOut, EventRecord};
use crate::handle::{self, Handle};

/// Begins a generation, in the master: the configuration was read, its workers are about to be forked.
///
/// `cause` is HEADCOUNT_CAUSE_START, _RELOAD or _UPGRADE, or 0: then it is found out. `workers` says how many
/// are going to be forked; 0: not known. HEADCOUNT_EVENT: generation_started. Then call
/// `headcount_commit`, or `headcount_abandon` if the configuration turns out not to work.
///
/// After HEADCOUNT_ERR_LOCK_TIMEOUT `*generation` is a number that workers may join all the same; after any
/// other error it is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_begin(
    node: *mut Handle,
    cause: u32,
    workers: u32,
    generation: *mut u64,
    event: *mut EventRecord,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL, or writable for as long as this call, by the caller's word.
        let out = unsafe { EventOut::new(event) }?;
        // SAFETY: as above.
        unsafe { put(generation, "generation", 0) }?;
        let begin = Begin::new().workers(workers);
        let begin = match Cause::from_code(cause) {
            Some(Cause::Unknown) => begin,
            Some(cause @ (Cause::Start | Cause::Reload | Cause::Upgrade)) => begin.because(cause),
            _ => {
                return Err(Failure::new(
                    ErrorKind::InvalidOption,
                    format!(
                        "argument `cause` is {cause}; allowed are 0, 1 (start), 2 (reload) and 3 (upgrade)"
                    ),
                ));
            }
        };
        match handle.master.begin(begin, Wait::Timeout) {
            Ok((begun, transitions)) => {
                // SAFETY: as above.
                unsafe { put(generation, "generation", begun.id()) }?;
                Ok(handle.deliver(transitions, out))
            }
            Err(error) => {
                if error.kind() == ErrorKind::LockTimeout {
                    // SAFETY: as above.
                    unsafe { put(generation, "generation", handle.master.reserve()) }?;
                }
                Err(error.into())
            }
        }
    })
}

/// The newest generation that this process, as a master, has begun, also before it went into the background;
/// 0 if it has begun none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_begun(node: *mut Handle, generation: *mut u64) -> i32 {
    entry(|| {
        let begun = handle::find(node)?.node.newest_begun().unwrap_or(0);
        // SAFETY: NULL, or writable for as long as this call, by the caller's word.
        unsafe { put(generation, "generation", begun) }?;
        Ok(HEADCOUNT_OK)
    })
}

/// It is certain that this generation gets workers. The first worker that joins commits it as well. Takes
/// no lock. Does nothing to a generation that is not there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_commit(node: *mut Handle, generation: u64) -> i32 {
    entry(|| {
        handle::find(node)?.master.commit(generation);
        Ok(HEADCOUNT_OK)
    })
}

/// This generation never gets a worker: the next process that looks reports it as abandoned. Takes no lock.
/// Does nothing to one that is committed, or not there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_abandon(node: *mut Handle, generation: u64) -> i32 {
    entry(|| {
        handle::find(node)?.master.abandon(generation);
        Ok(HEADCOUNT_OK)
    })
}

/// Makes this process the master if the one that opened the node was only its parent, which went into the
/// background. Every fork does it by itself (pthread_atfork), so only a server that makes its workers without
/// fork(3) must call it, before the first one. Costs nothing when there is nothing to do.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_adopt_master(node: *mut Handle) -> i32 {
    entry(|| {
        handle::find(node)?.master.adopt(Wait::Timeout)?;
        Ok(HEADCOUNT_OK)
    })
}

/// Tells what waitpid told: how a child ended. Call it as soon as a child is reaped, for every child; its
/// death is then reported with its signal or exit code on every kernel. Takes no lock.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_child_exited(node: *mut Handle, pid: i32, wait_status: i32) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        let pid = u32::try_from(pid).ok().filter(|&p| p > 0).ok_or_else(|| {
            Failure::new(
                ErrorKind::InvalidOption,
                format!("argument `pid` is {pid}: it must be one that waitpid gave"),
            )
        })?;
        handle.node.child_exited(pid, ExitStatus::from_raw(wait_status));
        Ok(HEADCOUNT_OK)
    })
}

/// The master leaves: its last word. If nobody else of the node is left, it reports what nobody was left to
/// report. Call it after the last worker was reaped. Does nothing in a process that is no master.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_leave_master(
    node: *mut Handle,
    wait_ms: i64,
    event: *mut EventRecord,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL, or writable for as long as this call, by the caller's word.
        let out = unsafe { EventOut::new(event) }?;
        handle.end_unfinished();
        Ok(handle.deliver(handle.master.leave(wait(wait_ms)?)?, out))
    })
}
