//! The node: opening it, its generations, and what a master says.

use std::ffi::c_char;
use std::sync::Mutex;

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use headcount_core::{Begin, Cause, ErrorKind, Wait};

use crate::border::{Failure, check_pointer, copy_string, entry, put, read_struct, wait};
use crate::codes::HEADCOUNT_OK;
use crate::event::{EventRecord, Place};
use crate::handle::{self, ADDING, Handle, relock};
use crate::options::OpenOptions;

/// Opens the node, in the master, before it forks; the workers use the same handle.
///
/// Opening the same path again in the same process (at a reload) gives the same handle, with the new timings.
/// Where no file can be made or used, the node runs on memory of its own, and `headcount_notice` says why;
/// where another live server has the node already, this one becomes NAME-2, and a notice says so. It
/// fails only for options that are not allowed, or without memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_open(options: *const OpenOptions, node: *mut *mut Handle) -> i32 {
    entry(|| {
        check_pointer(node, "node")?;
        // SAFETY: the caller's structure and its strings, as the header demands.
        let wanted = unsafe { read_struct(options, "options")?.wanted() }?;
        let adding = relock(ADDING.get(|_| Mutex::new(())));
        let opened = wanted.options.open()?;
        let handle = match handle::by_path(&wanted.path) {
            Some(handle) => handle,
            None => handle::add(wanted.path, opened),
        };
        drop(adding);
        crate::fork::watch_forks();
        // SAFETY: checked above; writable by the caller's word.
        unsafe { put(node, "node", std::ptr::from_ref(handle).cast_mut()) }?;
        Ok(HEADCOUNT_OK)
    })
}

/// Ends what this process has under way: a callback that is not finished (it counts as failed), the watch
/// and the waker. It does not leave, and the handle stays valid: the registry stays mapped until the
/// process ends, since other parts of the process may use it. A server need not call this.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_close(node: *mut Handle) {
    entry(|| {
        handle::find(node)?.end();
        Ok(HEADCOUNT_OK)
    });
}

/// Takes the oldest message for the server's log: why there is no file, who holds the lock for so long.
/// HEADCOUNT_ERR_NOT_FOUND if there is none. `level` gets a HEADCOUNT_LEVEL_; 512 bytes hold most
/// messages, longer ones are cut. Best called after each call that can wait, and after opening.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_notice(
    node: *mut Handle,
    level: *mut u32,
    buffer: *mut c_char,
    capacity: u64,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        check_pointer(level, "level")?;
        check_pointer(buffer, "buffer")?;
        let Some((how, text)) = handle.next_notice() else {
            return Err(Failure::new(ErrorKind::NotFound, "there is no message"));
        };
        // SAFETY: checked above; writable, and the buffer of that size, by the caller's word.
        unsafe {
            put(level, "level", how)?;
            copy_string(&text, buffer, capacity);
        }
        Ok(HEADCOUNT_OK)
    })
}

/// The node's name (at most 52 bytes with the NUL), and its registry's file: an empty string if it runs on
/// memory of its own. A buffer may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_node_info(
    node: *mut Handle,
    name: *mut c_char,
    name_capacity: u64,
    path: *mut c_char,
    path_capacity: u64,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        let file = handle.node.path().map(|p| p.to_string_lossy()).unwrap_or_default();
        // SAFETY: the buffers are NULL or have the sizes that the caller says.
        unsafe {
            copy_string(handle.node.name(), name, name_capacity);
            copy_string(&file, path, path_capacity);
        }
        Ok(HEADCOUNT_OK)
    })
}

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
        let place = unsafe { Place::new(event) }?;
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
                Ok(handle.deliver(transitions, place))
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

/// Finishes the event that was handed out, and hands out the next one: HEADCOUNT_EVENT. HEADCOUNT_OK: that
/// was the last, and the node lock is free.
///
/// `callback_failed` other than 0 notes in the journal that acting on the event failed; it counts as done.
/// Without an event to finish, it does nothing. To be called by the thread that got the event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_next(
    node: *mut Handle,
    callback_failed: i32,
    event: *mut EventRecord,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL, or writable for as long as this call, by the caller's word.
        let place = unsafe { Place::new(event) }?;
        Ok(handle.deliver_next(callback_failed != 0, place))
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
        let place = unsafe { Place::new(event) }?;
        handle.end_unfinished();
        Ok(handle.deliver(handle.master.leave(wait(wait_ms)?)?, place))
    })
}
