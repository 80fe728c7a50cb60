//! What exactly one process of the node does: roles, onces, locks.

use std::ffi::c_char;
use std::sync::Arc;
use std::time::Duration;

use headcount_core::{Begun, ErrorKind, LeaderChange, OnceScope};

use crate::border::codes::HEADCOUNT_OK;
use crate::border::entry::{
    Failure, Outcome, Sized32, check_pointer, check_struct, entry, put, required, wait,
};
use crate::border::event::{count, name as name_of, signed};
use crate::border::words::HEADCOUNT_NONE;
use crate::handle::singletons::Lock;
use crate::handle::{self, Handle};

/// Nothing has changed.
pub const HEADCOUNT_LEADER_SAME: u32 = 0;
/// This process has the role from now on.
pub const HEADCOUNT_LEADER_ELECTED: u32 = 1;
/// It still has the role, and is to call `headcount_leader_give_up` when it has stopped what it does.
pub const HEADCOUNT_LEADER_GIVE_UP: u32 = 2;
/// It has the role no more.
pub const HEADCOUNT_LEADER_LOST: u32 = 3;

/// Once for each load of the configuration.
pub const HEADCOUNT_ONCE_GENERATION: u32 = 1;
/// Once until the node is stopped: over reloads and upgrades.
pub const HEADCOUNT_ONCE_NODE: u32 = 2;

/// It is for this process to do it now; then it calls `headcount_once_end`.
pub const HEADCOUNT_ONCE_RUN: u32 = 1;
/// It was done.
pub const HEADCOUNT_ONCE_DONE: u32 = 2;
/// Another process is at it.
pub const HEADCOUNT_ONCE_RUNNING: u32 = 3;
/// It was tried three times, in vain.
pub const HEADCOUNT_ONCE_FAILED: u32 = 4;

/// What became of a role. Set `struct_size` before each call that fills it in.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LeaderRecord {
    /// sizeof(headcount_leader), set by the caller.
    pub struct_size: u32,
    /// HEADCOUNT_LEADER_*
    pub change: u32,
    /// The number of the tenure, if this process has the role; else 0. Larger than all before, also over restarts.
    pub token: u64,
    /// This process has the role as long as this word is `token`. It stays where it is until the process ends.
    pub word: *const u64,
}

// SAFETY: repr(C), integers and a pointer only, and it begins with its size.
unsafe impl Sized32 for LeaderRecord {
    const NAME: &'static str = "headcount_leader";
}

/// How it is with something that is to be done once. Set `struct_size` before each call that fills it in.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct OnceRecord {
    /// sizeof(headcount_once), set by the caller.
    pub struct_size: u32,
    /// HEADCOUNT_ONCE_RUN, HEADCOUNT_ONCE_DONE, HEADCOUNT_ONCE_RUNNING or HEADCOUNT_ONCE_FAILED.
    pub state: u32,
    /// HEADCOUNT_ONCE_RUN: which attempt this is, from 1. HEADCOUNT_ONCE_FAILED: how many there were.
    pub attempt: u32,
    /// HEADCOUNT_ONCE_RUN: how the attempt before ended, HEADCOUNT_CAUSE_*; HEADCOUNT_NONE if there was none.
    pub last_cause: i32,
    /// The signal that ended the process of that attempt; 0 if none, or not known.
    pub last_signal: i32,
    /// HEADCOUNT_ONCE_RUNNING: the process that is at it.
    pub pid: i32,
    /// The number of that worker; HEADCOUNT_NONE if it has none.
    pub worker_id: i32,
    /// 0.
    pub reserved: u32,
    /// For how many nanoseconds it has been at it.
    pub since_ns: u64,
}

// SAFETY: repr(C), integers only, and it begins with its size.
unsafe impl Sized32 for OnceRecord {
    const NAME: &'static str = "headcount_once";
}

/// A lock that was taken. Set `struct_size` before each call that fills it in.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LockRecord {
    /// sizeof(headcount_lock), set by the caller.
    pub struct_size: u32,
    /// The process that ended while it held the lock, if that is how it became free; else 0.
    pub abandoned_by: i32,
    /// Grows each time the lock is taken.
    pub token: u64,
}

// SAFETY: repr(C), integers only, and it begins with its size.
unsafe impl Sized32 for LockRecord {
    const NAME: &'static str = "headcount_lock";
}

/// A role, a once or a lock at one instant. Set `struct_size` before each call that fills it in.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SingletonRecord {
    /// sizeof(headcount_singleton), set by the caller in the first of them.
    pub struct_size: u32,
    /// HEADCOUNT_SINGLETON_*
    pub kind: u32,
    /// HEADCOUNT_SINGLETON_STATE_*
    pub state: u32,
    /// The process that leads, holds the lock, or runs the once; 0 if none.
    pub holder: i32,
    /// The number of that worker; HEADCOUNT_NONE if it has none.
    pub worker_id: i32,
    /// How often a once was tried.
    pub attempts: u32,
    /// How many processes wait for the lock.
    pub waiters: u32,
    /// Its name.
    pub name: [c_char; 52],
    /// Of a once: the generation for which it stays done, 0: the node. Else that of the holder.
    pub generation: u64,
    /// The number of the tenure, or of the last one; 0 for a once.
    pub token: u64,
    /// For how many nanoseconds it has been so.
    pub since_ns: u64,
}

// SAFETY: repr(C), integers only, and it begins with its size.
unsafe impl Sized32 for SingletonRecord {
    const NAME: &'static str = "headcount_singleton";
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Stands for a role: 1 to 48 letters, digits, '.', '_' and '-'. At most one worker of the node has it at any instant, and one has it
/// whenever one of those who stand for it serves and is not stalled. Waits for the node lock, at most `lock_timeout_ms`. Does nothing
/// if this process stands for it already.
///
/// What becomes of it is told by `headcount_leader_poll`: call that whenever the descriptor of `headcount_watch_fd` was readable, or
/// after each step of a member.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_leader_stand(node: *mut Handle, role: *const c_char) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL or a string, by the caller's word.
        let role = unsafe { required(role, "role") }?;
        if handle.process().singletons.leader(&role).is_ok() {
            return Ok(HEADCOUNT_OK);
        }
        let leader = handle.worker(0)?.leader(&role)?;
        handle.process().singletons.leaders.push(leader);
        Ok(HEADCOUNT_OK)
    })
}

/// What has changed about a role that this process stands for. Never waits. HEADCOUNT_ERR_NOT_FOUND if it does not stand for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_leader_poll(
    node: *mut Handle,
    role: *const c_char,
    leader: *mut LeaderRecord,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL or a string, by the caller's word; and NULL, or writable for as long as this call.
        let role = unsafe {
            check_struct(leader, "leader")?;
            required(role, "role")?
        };
        let process = handle.process();
        let of_role = process.singletons.leader(&role)?;
        let change = match of_role.poll() {
            None => HEADCOUNT_LEADER_SAME,
            Some(LeaderChange::Elected { .. }) => HEADCOUNT_LEADER_ELECTED,
            Some(LeaderChange::GiveUp) => HEADCOUNT_LEADER_GIVE_UP,
            Some(_) => HEADCOUNT_LEADER_LOST,
        };
        let record = LeaderRecord {
            struct_size: size_of::<LeaderRecord>() as u32,
            change,
            token: of_role.token().unwrap_or(0),
            word: of_role.word().unwrap_or(std::ptr::null()),
        };
        // SAFETY: checked above; writable by the caller's word.
        unsafe { put(leader, "leader", record) }?;
        Ok(HEADCOUNT_OK)
    })
}

/// `*leads`: 1 if this process has the role now, else 0: one load of shared memory. False from the instant in which another one is
/// elected.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_is_leader(node: *mut Handle, role: *const c_char, leads: *mut u32) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL or a string, by the caller's word.
        let role = unsafe { required(role, "role") }?;
        let is_leader = handle.process().singletons.leader(&role).is_ok_and(|leader| leader.is_leader());
        // SAFETY: writable by the caller's word.
        unsafe { put(leads, "leads", u32::from(is_leader)) }?;
        Ok(HEADCOUNT_OK)
    })
}

/// It has stopped what it did as the leader: another one is elected, or this one again if it is still the best. Never waits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_leader_give_up(node: *mut Handle, role: *const c_char) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL or a string, by the caller's word.
        let role = unsafe { required(role, "role") }?;
        handle.process().singletons.leader(&role)?.give_up();
        Ok(HEADCOUNT_OK)
    })
}

/// It stands for the role no more, and has it no more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_leader_resign(node: *mut Handle, role: *const c_char) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL or a string, by the caller's word.
        let role = unsafe { required(role, "role") }?;
        let mut process = handle.process();
        process.singletons.leader(&role)?;
        process.singletons.leaders.retain(|leader| leader.role() != role);
        Ok(HEADCOUNT_OK)
    })
}

fn scope(code: u32) -> Result<OnceScope, Failure> {
    OnceScope::from_code(code).ok_or_else(|| {
        let text = format!("argument `scope` is {code}; allowed are 1 (generation) and 2 (node)");
        Failure::new(ErrorKind::InvalidOption, text)
    })
}

/// Begins something that is to be done once in its scope: HEADCOUNT_ONCE_GENERATION or HEADCOUNT_ONCE_NODE. `once` says whether it is for
/// this process to do it: then do it, without any lock and for as long as it takes, and call `headcount_once_end`. Should the process end
/// before, or say that it failed, the next one that calls this gets it, three times at most.
///
/// HEADCOUNT_ERR_WRONG_STATE if this process is at it already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_once_begin(
    node: *mut Handle,
    scope_code: u32,
    key: *const c_char,
    wait_ms: i64,
    once: *mut OnceRecord,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL or a string, by the caller's word; and NULL, or writable for as long as this call.
        let key = unsafe {
            check_struct(once, "once")?;
            required(key, "key")?
        };
        let scope = scope(scope_code)?;
        let worker = handle.worker(0)?;
        let mut record = OnceRecord {
            struct_size: size_of::<OnceRecord>() as u32,
            state: HEADCOUNT_ONCE_DONE,
            attempt: 0,
            last_cause: HEADCOUNT_NONE,
            last_signal: 0,
            pid: 0,
            worker_id: HEADCOUNT_NONE,
            reserved: 0,
            since_ns: 0,
        };
        match worker.begin_once(scope, &key, wait(wait_ms)?)? {
            Begun::Done => {}
            Begun::Failed { attempts } => (record.state, record.attempt) = (HEADCOUNT_ONCE_FAILED, attempts),
            Begun::Running(who) => {
                record.state = HEADCOUNT_ONCE_RUNNING;
                (record.pid, record.worker_id) = (signed(who.pid), count(who.worker_id));
                record.since_ns = nanos(who.since);
            }
            Begun::Run(run) => {
                let attempt = run.attempt();
                record.state = HEADCOUNT_ONCE_RUN;
                record.attempt = attempt.number;
                record.last_cause = attempt.last.map_or(HEADCOUNT_NONE, |cause| signed(cause.code()));
                record.last_signal = attempt.signal.unwrap_or(0);
                handle.process().singletons.runs.push((scope, key, run));
            }
        }
        // SAFETY: checked above; writable by the caller's word.
        unsafe { put(once, "once", record) }?;
        Ok(HEADCOUNT_OK)
    })
}

/// Says how it went with what this process has begun by `headcount_once_begin`: it was `done` (1), or it failed (0).
/// HEADCOUNT_ERR_LOCK_TIMEOUT or HEADCOUNT_ERR_BUSY: another process holds the node lock, and it is to be said again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_once_end(
    node: *mut Handle,
    scope_code: u32,
    key: *const c_char,
    done: i32,
    wait_ms: i64,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL or a string, by the caller's word.
        let key = unsafe { required(key, "key") }?;
        let scope = scope(scope_code)?;
        let mut process = handle.process();
        let runs = &mut process.singletons.runs;
        let Some(at) = runs.iter().position(|(of, k, _)| (*of, k) == (scope, &key)) else {
            return Err(Failure::new(ErrorKind::WrongState, format!("this process has not begun {key}")));
        };
        let mut begun = runs.swap_remove(at);
        // Other threads have calls to make meanwhile.
        drop(process);
        match begun.2.finish(done != 0, wait(wait_ms)?) {
            Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::LockTimeout) => {
                handle.process().singletons.runs.push(begun);
                Err(error.into())
            }
            finished => Ok(finished.map(|()| HEADCOUNT_OK)?),
        }
    })
}

fn lock_of(handle: &Handle, name: &str) -> Result<Arc<Lock>, Failure> {
    let worker = handle.worker(0)?;
    let generation = worker.generation();
    if let Some(known) = handle.process().singletons.known_lock(name, generation) {
        return Ok(known.clone());
    }
    let named = worker.lock(name)?;
    Ok(handle.process().singletons.add_lock(named, generation))
}

/// `lock` may be NULL.
///
/// # Safety
/// `lock` is NULL, or says its size and is writable.
unsafe fn acquire(of: &Lock, wait_ms: i64, lock: *mut LockRecord) -> Outcome {
    if !lock.is_null() {
        // SAFETY: by the caller's word.
        unsafe { check_struct(lock, "lock") }?;
    }
    let (token, abandoned_by) = of.acquire(wait(wait_ms)?)?;
    if !lock.is_null() {
        let abandoned_by = abandoned_by.map_or(0, signed);
        let record = LockRecord { struct_size: size_of::<LockRecord>() as u32, abandoned_by, token };
        // SAFETY: checked above; writable by the caller's word.
        unsafe { put(lock, "lock", record) }?;
    }
    Ok(HEADCOUNT_OK)
}

/// Takes the lock of this name, over all processes of the node and all their threads; waits for it, `wait_ms` as everywhere. Without a
/// system call if nobody has it. If its holder dies, the next one gets it, and is told so by `lock`.
///
/// HEADCOUNT_ERR_LOCK_TIMEOUT or HEADCOUNT_ERR_BUSY: the message says who has it and for how long. HEADCOUNT_ERR_WRONG_STATE if
/// this thread has it already. `lock` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_lock_acquire(
    node: *mut Handle,
    name: *const c_char,
    wait_ms: i64,
    lock: *mut LockRecord,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL or a string, by the caller's word.
        let name = unsafe { required(name, "name") }?;
        let of = lock_of(handle, &name)?;
        // SAFETY: NULL, or writable for as long as this call, by the caller's word.
        unsafe { acquire(&of, wait_ms, lock) }
    })
}

/// The lock of this name as something to keep, for whoever takes it often: without looking the name up each time. Give it back by
/// `headcount_named_lock_free`. It is of no more use when this process has left.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_lock_find(
    node: *mut Handle,
    name: *const c_char,
    lock: *mut *const Lock,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        check_pointer(lock, "lock")?;
        // SAFETY: NULL or a string, by the caller's word.
        let name = unsafe { required(name, "name") }?;
        let named = lock_of(handle, &name)?;
        // SAFETY: checked above; writable by the caller's word.
        unsafe { put(lock, "lock", Arc::into_raw(named)) }?;
        Ok(HEADCOUNT_OK)
    })
}

/// # Safety
/// `lock` is NULL, or what `headcount_lock_find` gave and nobody has given back.
unsafe fn given<'a>(lock: *const Lock) -> Result<&'a Lock, Failure> {
    check_pointer(lock.cast_mut(), "lock")?;
    // SAFETY: by the caller's word.
    Ok(unsafe { &*lock })
}

/// `headcount_lock_acquire` for what `headcount_lock_find` gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_named_lock_acquire(
    named: *const Lock,
    wait_ms: i64,
    lock: *mut LockRecord,
) -> i32 {
    entry(|| {
        // SAFETY: what the caller was given; and NULL, or writable for as long as this call.
        unsafe { acquire(given(named)?, wait_ms, lock) }
    })
}

/// `headcount_lock_release` for what `headcount_lock_find` gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_named_lock_release(named: *const Lock) -> i32 {
    entry(|| {
        // SAFETY: what the caller was given.
        unsafe { given(named) }?.release()?;
        Ok(HEADCOUNT_OK)
    })
}

/// Gives back what `headcount_lock_find` gave. A lock that is held stays held. Does nothing with NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_named_lock_free(named: *const Lock) {
    if !named.is_null() {
        entry(|| {
            // SAFETY: what the caller was given, and gives back once.
            drop(unsafe { Arc::from_raw(named) });
            Ok(HEADCOUNT_OK)
        });
    }
}

/// For hosts that cannot sleep in `headcount_lock_acquire`: `wanted` 1: the waker writes a byte 'L' when it is worth trying to take the
/// lock, once, and others see this process wait for it meanwhile. 0: it does not any more. Call it after
/// `headcount_lock_acquire` with `wait_ms` 0 returned HEADCOUNT_ERR_BUSY, and try again at each 'L'; somebody else may have been
/// quicker. A thread waits for each lock, for 8 at a time: HEADCOUNT_ERR_FULL beyond that.
///
/// HEADCOUNT_ERR_WRONG_STATE if no waker runs, or nobody has connected to it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_lock_watch(node: *mut Handle, name: *const c_char, wanted: i32) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL or a string, by the caller's word.
        let name = unsafe { required(name, "name") }?;
        let named = lock_of(handle, &name)?;
        let process = handle.process();
        let Some(waker) = &process.waker else {
            return Err(Failure::new(ErrorKind::WrongState, "this process has no running waker"));
        };
        waker.watch_lock(&named, wanted != 0)?;
        Ok(HEADCOUNT_OK)
    })
}

/// Releases the lock of this name. HEADCOUNT_ERR_WRONG_STATE if this process does not hold it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_lock_release(node: *mut Handle, name: *const c_char) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL or a string, by the caller's word.
        let name = unsafe { required(name, "name") }?;
        let held = handle.process().singletons.held_lock(&name)?;
        held.release()?;
        Ok(HEADCOUNT_OK)
    })
}

/// The roles, onces and locks of the node. `*number` gets how many there are, of which the first `capacity` are filled in. No lock is
/// taken.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_get_singletons(
    node: *mut Handle,
    singletons: *mut SingletonRecord,
    capacity: u64,
    number: *mut u64,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        check_pointer(number, "number")?;
        if capacity > 0 {
            // SAFETY: NULL, or room for `capacity` structures, the first of which says its size, by the caller's word.
            unsafe { check_struct(singletons, "singletons") }?;
        }
        let all = handle.node.snapshot().singletons;
        for (i, x) in all.iter().take(usize::try_from(capacity).unwrap_or(usize::MAX)).enumerate() {
            let record = SingletonRecord {
                struct_size: size_of::<SingletonRecord>() as u32,
                kind: x.kind.code(),
                state: x.state.code(),
                holder: x.holder.map_or(0, signed),
                worker_id: count(x.worker_id),
                attempts: x.attempts,
                waiters: x.waiters,
                name: name_of(Some(&x.name)),
                generation: x.generation,
                token: x.token,
                since_ns: nanos(x.since),
            };
            // SAFETY: `i` is below the capacity, for which the caller vouched.
            unsafe { singletons.add(i).write(record) };
        }
        // SAFETY: checked above; writable by the caller's word.
        unsafe { put(number, "number", all.len() as u64) }?;
        Ok(HEADCOUNT_OK)
    })
}
