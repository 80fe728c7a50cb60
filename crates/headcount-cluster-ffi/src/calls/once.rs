//! What is done once.

use std::ffi::c_char;
use std::time::{SystemTime, UNIX_EPOCH};

use headcount_border::{Failure, Sized32, check_pointer, check_struct, copy_string, entry, put, required};

use crate::border::{
    HEADCOUNT_CLUSTER_ERR_TIMED_OUT, HEADCOUNT_CLUSTER_OK, Outcome, lost, time, wrong_state,
};
use crate::handle::session::{Once, Settled, Turn};
use crate::handle::table::{CLUSTERS, Cluster};

/// It is for this process to do it now; then it calls `headcount_cluster_once_end`.
pub const HEADCOUNT_CLUSTER_ONCE_RUN: u32 = 1;
/// It was done.
pub const HEADCOUNT_CLUSTER_ONCE_DONE: u32 = 2;
/// Another process is at it, or the agent has not said yet whose turn it is.
pub const HEADCOUNT_CLUSTER_ONCE_RUNNING: u32 = 3;
/// It was tried three times, in vain.
pub const HEADCOUNT_CLUSTER_ONCE_FAILED: u32 = 4;

/// How it is with something that is to be done once. Set `struct_size` before each call that fills it in.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct OnceRecord {
    /// sizeof(headcount_cluster_once), set by the caller.
    pub struct_size: u32,
    /// HEADCOUNT_CLUSTER_ONCE_*
    pub state: u32,
    /// HEADCOUNT_CLUSTER_ONCE_RUN: which attempt this is, from 1. HEADCOUNT_CLUSTER_ONCE_FAILED: how many there were.
    pub attempt: u32,
    /// HEADCOUNT_CLUSTER_ONCE_RUNNING: the process that is at it, on `host`; 0 if it is not known.
    pub pid: i32,
    /// HEADCOUNT_CLUSTER_ONCE_RUN: larger than that of each attempt before, on whatever host.
    pub token: u64,
    /// How the attempt before, or the last one, ended: "failed", "died", "stalled", "lost"; empty if there was none.
    pub last: [c_char; 32],
    /// HEADCOUNT_CLUSTER_ONCE_RUNNING: since when that process is at it, in milliseconds since 1970 by the clock of its host; 0 if it is not known.
    pub since_ms: u64,
    /// HEADCOUNT_CLUSTER_ONCE_RUNNING: the host of that process; empty if it is not known.
    pub host: [c_char; 256],
    /// What that process is called; empty if it is not known.
    pub process: [c_char; 32],
}

// SAFETY: repr(C), integers only, and it begins with its size.
unsafe impl Sized32 for OnceRecord {
    const NAME: &'static str = "headcount_cluster_once";
}

fn milliseconds_since_1970(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Begins something that is to be done once in the whole cluster: `key` is 1 to 48 letters, digits, '.', '_' and '-'. Waits until it is this
/// process's turn, or settled, for `wait_ms` at most, a day at most. `once` says whether it is for this process to do it: then do it, for as long as it takes, and
/// call `headcount_cluster_once_end`; from time to time `headcount_cluster_process`. Should this process end before, or lose it, another one gets it,
/// three times at most.
///
/// Whoever has called it waits for its turn from then on, and gets it whether it asks again or not: so call it until it is settled, when
/// the descriptor is readable or from time to time.
///
/// HEADCOUNT_CLUSTER_ERR_AWAY if `wait_ms` are over and agent or etcd do not answer. HEADCOUNT_CLUSTER_ERR_WRONG_STATE if this process is at it already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_once_begin(
    cluster: *mut Cluster,
    key: *const c_char,
    wait_ms: i64,
    once: *mut OnceRecord,
) -> i32 {
    entry(|| -> Outcome {
        let handle = CLUSTERS.find(cluster)?;
        // SAFETY: NULL or a string, by the caller's word; and NULL, or writable for as long as this call.
        let key = unsafe {
            check_struct(once, "once")?;
            required(key, "key")?
        };
        let limit = time(wait_ms, "wait_ms")?;
        handle.with(|session| {
            if let Some(known) = session.onces.get_mut(&key) {
                if known.running.is_some() {
                    return Err(wrong_state(format!("this process is at {key} already")));
                }
                // Whoever begins anew does not ask for what was lost.
                known.lost = None;
                return Ok(());
            }
            session.client.once(&key).map_err(|error| Failure::invalid(error.to_string()))?;
            session.onces.insert(key.clone(), Once::default());
            Ok(())
        })?;
        enum Found {
            Run(Turn),
            Settled(Settled),
        }
        let found = handle.wait_for(limit, |session| {
            let known = session.onces.get_mut(&key)?;
            if let Some(settled) = known.settled.take() {
                session.onces.remove(&key);
                return Some(Found::Settled(settled));
            }
            // What it was told may have lain unread for long.
            session.client.run_token(&key)?;
            let turn = known.turn.take()?;
            known.running = Some(turn.token);
            Some(Found::Run(turn))
        })?;
        let mut record = OnceRecord {
            struct_size: size_of::<OnceRecord>() as u32,
            state: HEADCOUNT_CLUSTER_ONCE_RUNNING,
            attempt: 0,
            pid: 0,
            token: 0,
            last: [0; 32],
            since_ms: 0,
            host: [0; 256],
            process: [0; 32],
        };
        let (mut last, mut by) = (String::new(), None);
        match found {
            Some(Found::Settled(Settled::Done)) => record.state = HEADCOUNT_CLUSTER_ONCE_DONE,
            Some(Found::Settled(Settled::Failed { attempts, last: how })) => {
                (record.state, record.attempt, last) = (HEADCOUNT_CLUSTER_ONCE_FAILED, attempts, how);
            }
            Some(Found::Run(turn)) => {
                (record.state, record.attempt, record.token) =
                    (HEADCOUNT_CLUSTER_ONCE_RUN, turn.attempt, turn.token);
                last = turn.last.unwrap_or_default();
            }
            None => {
                let (trouble, at_it) = handle.look(|session| {
                    let at_it = session.onces.get(&key).and_then(|once| once.by.clone());
                    (session.trouble(&handle.socket), at_it)
                })?;
                if let Some(trouble) = trouble {
                    return Err(trouble);
                }
                by = at_it;
            }
        }
        let (mut host, mut process) = (String::new(), String::new());
        if let Some(by) = by {
            record.pid = by.pid.and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0);
            record.since_ms = by.since.map_or(0, milliseconds_since_1970);
            (host, process) = (by.host, by.process.unwrap_or_default());
        }
        // SAFETY: arrays of these sizes; and `once`, which was checked above and is writable by the caller's word.
        unsafe {
            copy_string(&last, record.last.as_mut_ptr(), 32);
            copy_string(&host, record.host.as_mut_ptr(), 256);
            copy_string(&process, record.process.as_mut_ptr(), 32);
            put(once, "once", record)?;
        }
        Ok(HEADCOUNT_CLUSTER_OK)
    })
}

/// `*token`: that of the attempt that this process has begun, if it is its own at this instant, else 0: another one may have begun the next. As
/// `headcount_cluster_is_leader`, only looks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_once_token(
    cluster: *mut Cluster,
    key: *const c_char,
    token: *mut u64,
) -> i32 {
    entry(|| -> Outcome {
        let handle = CLUSTERS.find(cluster)?;
        check_pointer(token, "token")?;
        // SAFETY: NULL or a string, by the caller's word.
        let key = unsafe { required(key, "key") }?;
        let found = handle.look(|session| {
            let running = session.onces.get(&key).and_then(|once| once.running);
            running.filter(|token| session.client.run_token(&key) == Some(*token))
        })?;
        // SAFETY: checked above; writable by the caller's word.
        unsafe { put(token, "token", found.unwrap_or(0)) }?;
        Ok(HEADCOUNT_CLUSTER_OK)
    })
}

/// Says how it went with what this process has begun: it was `done` (1), or it failed (0). If it was done, this waits until that is written
/// down for the whole cluster, for `wait_ms` at most.
///
/// HEADCOUNT_CLUSTER_ERR_LOST: it was not this process's any more, and is run again. HEADCOUNT_CLUSTER_ERR_TIMED_OUT: whether it is written down is not
/// known yet: `headcount_cluster_once_begin` tells. HEADCOUNT_CLUSTER_ERR_WRONG_STATE if this process has not begun it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_once_end(
    cluster: *mut Cluster,
    key: *const c_char,
    done: i32,
    wait_ms: i64,
) -> i32 {
    entry(|| -> Outcome {
        let handle = CLUSTERS.find(cluster)?;
        // SAFETY: NULL or a string, by the caller's word.
        let key = unsafe { required(key, "key") }?;
        let limit = time(wait_ms, "wait_ms")?;
        if !(0..=1).contains(&done) {
            return Err(Failure::invalid(format!("argument `done` is {done}; allowed are 0 and 1")));
        }
        handle.with(|session| {
            let known = session.onces.get_mut(&key);
            let begun = known.and_then(|once| match (once.running.take(), once.lost.take()) {
                (None, None) => None,
                found => Some(found),
            });
            match begun {
                None => Err(wrong_state(format!("this process has not begun {key}"))),
                Some((_, Some(why))) => Err(lost(format!("the attempt to do {key} was lost: {why}"))),
                Some((Some(token), None)) if session.client.run_token(&key) == Some(token) => {
                    session.client.end(&key, token, done == 1);
                    Ok(())
                }
                Some(_) => {
                    Err(lost(format!("the attempt to do {key} was lost: it was not confirmed in time")))
                }
            }
        })?;
        if done == 0 {
            return Ok(HEADCOUNT_CLUSTER_OK);
        }
        let is_done = handle.wait_for(limit, |session| {
            let known = session.onces.get_mut(&key)?;
            match (&known.settled, &known.turn) {
                (Some(settled), _) => {
                    let is_done = *settled == Settled::Done;
                    if is_done {
                        session.onces.remove(&key);
                    }
                    Some(is_done)
                }
                (None, Some(_)) => Some(false),
                (None, None) => None,
            }
        })?;
        match is_done {
            Some(true) => Ok(HEADCOUNT_CLUSTER_OK),
            Some(false) => Err(lost(format!("that {key} was done could not be written down in time"))),
            None => Err(Failure::new(
                HEADCOUNT_CLUSTER_ERR_TIMED_OUT,
                format!(
                    "timed out after {limit:?}: the agent has not said that {key} is written down as done"
                ),
            )),
        }
    })
}
