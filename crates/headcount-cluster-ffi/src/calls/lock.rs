//! Locks.

use std::ffi::c_char;
use std::time::Duration;

use headcount_border::{Failure, Sized32, check_pointer, check_struct, entry, put, required};

use crate::border::{
    HEADCOUNT_CLUSTER_ERR_AWAY, HEADCOUNT_CLUSTER_ERR_TIMED_OUT, HEADCOUNT_CLUSTER_OK, Outcome, away, lost,
    not_found, time,
};
use crate::handle::session::{Lock, Session};
use crate::handle::table::{CLUSTERS, Cluster};

/// It is waited for.
pub const HEADCOUNT_CLUSTER_LOCK_WAITING: u32 = 1;
/// This process has it.
pub const HEADCOUNT_CLUSTER_LOCK_HELD: u32 = 2;
/// It could not be had in time.
pub const HEADCOUNT_CLUSTER_LOCK_NOT_HAD: u32 = 3;
/// This process had it, and has it no more.
pub const HEADCOUNT_CLUSTER_LOCK_LOST: u32 = 4;

/// An agent that stands still is not waited for longer than this, beside the time for the lock: the client says so before.
const LATE: Duration = Duration::from_secs(5);

/// A lock. Set `struct_size` before each call that fills it in.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LockRecord {
    /// sizeof(headcount_cluster_lock), set by the caller.
    pub struct_size: u32,
    /// HEADCOUNT_CLUSTER_LOCK_*
    pub state: u32,
    /// What the other calls name it by: the number of this request.
    pub id: u64,
    /// Larger than that of each holder before, on whatever host; 0 if this process does not have it at this instant.
    pub token: u64,
}

// SAFETY: repr(C), integers only, and it begins with its size.
unsafe impl Sized32 for LockRecord {
    const NAME: &'static str = "headcount_cluster_lock";
}

fn no_lock(id: u64) -> Failure {
    not_found(format!("there is no lock with the number {id}: it was released, or could not be had"))
}

fn ask(session: &mut Session, name: &str, limit: Duration) -> Result<u64, Failure> {
    let id = session.client.lock(name, Some(limit)).map_err(|error| Failure::invalid(error.to_string()))?;
    session.locks.insert(id, Lock::Waiting);
    Ok(id)
}

/// `why` is the agent's, or that it does not answer.
fn not_had(name: &str, why: &str) -> Failure {
    let why = format!("the lock {name}: {why}");
    match (why.contains("etcd does not answer"), why.contains("does not answer")) {
        (true, _) => Failure::new(HEADCOUNT_CLUSTER_ERR_AWAY, why),
        (false, true) => away(&why),
        (false, false) => Failure::new(HEADCOUNT_CLUSTER_ERR_TIMED_OUT, why),
    }
}

/// Takes the lock of this name in the whole cluster: 1 to 48 letters, digits, '.', '_' and '-'. Waits for it, `wait_ms` and, for an agent that
/// stands still, 2 s more at most; a day at most. Release it by `lock->id`.
///
/// HEADCOUNT_CLUSTER_ERR_TIMED_OUT: the message says who has it. HEADCOUNT_CLUSTER_ERR_AWAY: agent or etcd do not answer. A process that has it
/// already waits for itself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_lock_acquire(
    cluster: *mut Cluster,
    name: *const c_char,
    wait_ms: i64,
    lock: *mut LockRecord,
) -> i32 {
    entry(|| -> Outcome {
        let handle = CLUSTERS.find(cluster)?;
        // SAFETY: NULL or a string, by the caller's word; and NULL, or writable for as long as this call.
        let name = unsafe {
            check_struct(lock, "lock")?;
            required(name, "name")?
        };
        let limit = time(wait_ms, "wait_ms")?;
        let id = handle.with(|session| ask(session, &name, limit))?;
        let settled = handle.wait_for(limit + LATE, |session| {
            session.locks.get(&id).filter(|state| **state != Lock::Waiting).cloned()
        })?;
        let token = handle.with(|session| Ok(session.client.lock_token(id)))?;
        if let (Some(Lock::Held), Some(token)) = (&settled, token) {
            let struct_size = size_of::<LockRecord>() as u32;
            let record = LockRecord { struct_size, state: HEADCOUNT_CLUSTER_LOCK_HELD, id, token };
            // SAFETY: checked above; writable by the caller's word.
            unsafe { put(lock, "lock", record) }?;
            return Ok(HEADCOUNT_CLUSTER_OK);
        }
        handle.with(|session| {
            session.locks.remove(&id);
            session.client.unlock(id);
            Ok(())
        })?;
        Err(match settled {
            Some(Lock::NotHad(why)) => not_had(&name, &why),
            Some(Lock::Held | Lock::Lost(_)) => {
                lost(format!("the lock {name} was lost before this could begin"))
            }
            Some(Lock::Waiting) | None => not_had(&name, "the agent does not answer"),
        })
    })
}

/// The same without waiting, for event loops: `*id` names the request. What becomes of it within `wait_ms` is told by
/// `headcount_cluster_lock_poll`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_lock_ask(
    cluster: *mut Cluster,
    name: *const c_char,
    wait_ms: i64,
    id: *mut u64,
) -> i32 {
    entry(|| -> Outcome {
        let handle = CLUSTERS.find(cluster)?;
        check_pointer(id, "id")?;
        // SAFETY: NULL or a string, by the caller's word.
        let name = unsafe { required(name, "name") }?;
        let limit = time(wait_ms, "wait_ms")?;
        let number = handle.with(|session| ask(session, &name, limit))?;
        // SAFETY: checked above; writable by the caller's word.
        unsafe { put(id, "id", number) }?;
        Ok(HEADCOUNT_CLUSTER_OK)
    })
}

/// How it is with a lock. Never waits. One that could not be had, or was lost, is told once, and then HEADCOUNT_CLUSTER_ERR_NOT_FOUND: it need not be
/// released; `headcount_cluster_notice` says why.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_lock_poll(
    cluster: *mut Cluster,
    id: u64,
    lock: *mut LockRecord,
) -> i32 {
    entry(|| -> Outcome {
        let handle = CLUSTERS.find(cluster)?;
        // SAFETY: NULL, or writable for as long as this call, by the caller's word.
        unsafe { check_struct(lock, "lock") }?;
        let (state, token) = handle.with(|session| {
            let known = session.locks.get(&id).cloned().ok_or_else(|| no_lock(id))?;
            let token = session.client.lock_token(id).unwrap_or(0);
            let state = match known {
                Lock::Waiting => HEADCOUNT_CLUSTER_LOCK_WAITING,
                Lock::Held => HEADCOUNT_CLUSTER_LOCK_HELD,
                Lock::NotHad(why) => {
                    session.note(crate::handle::session::WARNING, format!("a lock could not be had: {why}"));
                    HEADCOUNT_CLUSTER_LOCK_NOT_HAD
                }
                Lock::Lost(_) => HEADCOUNT_CLUSTER_LOCK_LOST,
            };
            if matches!(state, HEADCOUNT_CLUSTER_LOCK_NOT_HAD | HEADCOUNT_CLUSTER_LOCK_LOST) {
                session.locks.remove(&id);
            }
            Ok((state, token))
        })?;
        let record = LockRecord { struct_size: size_of::<LockRecord>() as u32, state, id, token };
        // SAFETY: checked above; writable by the caller's word.
        unsafe { put(lock, "lock", record) }?;
        Ok(HEADCOUNT_CLUSTER_OK)
    })
}

/// `*token`: that of the lock, if this process has it at this instant, else 0. As `headcount_cluster_is_leader`, only looks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_lock_token(
    cluster: *mut Cluster,
    id: u64,
    token: *mut u64,
) -> i32 {
    entry(|| -> Outcome {
        let handle = CLUSTERS.find(cluster)?;
        let found = handle.look(|session| session.client.lock_token(id))?;
        // SAFETY: NULL, or writable for as long as this call, by the caller's word.
        unsafe { put(token, "token", found.unwrap_or(0)) }?;
        Ok(HEADCOUNT_CLUSTER_OK)
    })
}

/// Lets go of a lock, or does not wait for it any more. Never waits. HEADCOUNT_CLUSTER_ERR_LOST: it was lost before, and another one may have had
/// it meanwhile. HEADCOUNT_CLUSTER_ERR_NOT_FOUND: there is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_lock_release(cluster: *mut Cluster, id: u64) -> i32 {
    entry(|| -> Outcome {
        let handle = CLUSTERS.find(cluster)?;
        let was = handle.with(|session| {
            let known = session.locks.remove(&id).ok_or_else(|| no_lock(id))?;
            let is_had = session.client.lock_token(id).is_some();
            session.client.unlock(id);
            Ok((known, is_had))
        })?;
        match was {
            (Lock::Held, false) => Err(lost("the lock was lost: it was not confirmed in time")),
            (Lock::Lost(why), _) => Err(lost(format!("the lock was lost: {why}"))),
            _ => Ok(HEADCOUNT_CLUSTER_OK),
        }
    })
}
