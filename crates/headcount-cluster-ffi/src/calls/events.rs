//! The fleet: its state and its events.

use std::ffi::{CString, c_char};
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use headcount_border::{Failure, check_pointer, entry, put};
use headcount_cluster_client::Events;

use crate::border::{
    HEADCOUNT_CLUSTER_ERR_TIMED_OUT, HEADCOUNT_CLUSTER_EVENT, HEADCOUNT_CLUSTER_OK, Outcome, away, time,
};
use crate::handle::table::{CLUSTERS, Cluster, EventStream, STREAMS};

fn failed(error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::TimedOut => Failure::new(HEADCOUNT_CLUSTER_ERR_TIMED_OUT, error.to_string()),
        _ => away(&error.to_string()),
    }
}

/// # Safety
/// `json` is not NULL, aligned, and points to a writable pointer.
unsafe fn give(json: *mut *mut c_char, text: String) -> Result<(), Failure> {
    // JSON has no NUL: it is written as \u0000.
    let text = CString::new(text).map_err(|_| Failure::invalid("the agent says a NUL"))?;
    // SAFETY: by the caller's word.
    unsafe { put(json, "json", text.into_raw()) }
}

/// The state of the fleet: the document of `headcount cluster status --json`, in one line, which docs/cli/cluster.md describes. Waits for it, for
/// `wait_ms` at most. Give `*json` back by `headcount_cluster_free`.
///
/// HEADCOUNT_CLUSTER_ERR_AWAY: the agent does not answer, has no cluster, or cannot read etcd. HEADCOUNT_CLUSTER_ERR_TIMED_OUT: it takes too long.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_state(
    cluster: *mut Cluster,
    wait_ms: i64,
    json: *mut *mut c_char,
) -> i32 {
    entry(|| -> Outcome {
        let handle = CLUSTERS.find(cluster)?;
        check_pointer(json, "json")?;
        let limit = time(wait_ms, "wait_ms")?;
        let text = headcount_cluster_client::state(&handle.socket, limit).map_err(|error| failed(&error))?;
        // SAFETY: checked above; writable by the caller's word.
        unsafe { give(json, text) }?;
        Ok(HEADCOUNT_CLUSTER_OK)
    })
}

/// Gives back a text. Does nothing with NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: made by `into_raw`, and given back once, by the caller's word.
        drop(unsafe { CString::from_raw(text) });
    }
}

/// Follows what happens to the fleet from now on. Waits for the agent, for `wait_ms` at most. It is a connection of its own, and goes on when
/// `cluster` is closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_events_open(
    cluster: *mut Cluster,
    wait_ms: i64,
    events: *mut *mut EventStream,
) -> i32 {
    entry(|| -> Outcome {
        let handle = CLUSTERS.find(cluster)?;
        check_pointer(events, "events")?;
        let limit = time(wait_ms, "wait_ms")?;
        let mut stream = Events::open(&handle.socket).map_err(|error| failed(&error))?;
        let began = Instant::now();
        while stream.look().map_err(|error| failed(&error)).map(|()| !stream.is_open())? {
            let left = limit.saturating_sub(began.elapsed());
            if left.is_zero() {
                let text = format!("the agent at {}: timed out after {limit:?}", handle.socket.display());
                return Err(Failure::new(HEADCOUNT_CLUSTER_ERR_TIMED_OUT, text));
            }
            stream.wait(Some(left)).map_err(|error| crate::border::io("wait for the agent", error))?;
        }
        // SAFETY: checked above; writable by the caller's word.
        unsafe { put(events, "events", STREAMS.add(Mutex::new(stream))) }?;
        Ok(HEADCOUNT_CLUSTER_OK)
    })
}

/// A descriptor for the event loop: when it is readable, call `headcount_cluster_events_next` until that gives nothing more. Only wait for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_events_fd(events: *mut EventStream, fd: *mut i32) -> i32 {
    entry(|| -> Outcome {
        let stream = STREAMS.find(events)?;
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: NULL, or writable for as long as this call, by the caller's word.
        unsafe { put(fd, "fd", stream.fd().0.as_raw_fd()) }?;
        Ok(HEADCOUNT_CLUSTER_OK)
    })
}

/// HEADCOUNT_CLUSTER_EVENT: `*json` is what has happened, as `headcount cluster events --json` writes it, or a `notice` that tells what is no
/// event, such as "missed"; give it back by `headcount_cluster_free`. HEADCOUNT_CLUSTER_OK: nothing within `wait_ms`, and `*json` is NULL.
///
/// HEADCOUNT_CLUSTER_ERR_AWAY: the agent is away, and nothing more will come. Close this and open another one; what happened meanwhile is not told,
/// but `headcount_cluster_state` has what has become of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_events_next(
    events: *mut EventStream,
    wait_ms: i64,
    json: *mut *mut c_char,
) -> i32 {
    entry(|| -> Outcome {
        let stream = STREAMS.find(events)?;
        // SAFETY: NULL, or writable for as long as this call, by the caller's word.
        unsafe { put(json, "json", std::ptr::null_mut()) }?;
        let limit: Duration = time(wait_ms, "wait_ms")?;
        let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
        let began = Instant::now();
        loop {
            if let Some(line) = stream.next().map_err(|error| failed(&error))? {
                // SAFETY: checked above; writable by the caller's word.
                unsafe { give(json, line) }?;
                return Ok(HEADCOUNT_CLUSTER_EVENT);
            }
            let left = limit.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Ok(HEADCOUNT_CLUSTER_OK);
            }
            stream.wait(Some(left)).map_err(|error| crate::border::io("wait for the agent", error))?;
        }
    })
}

/// Follows no more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_events_close(events: *mut EventStream) -> i32 {
    entry(|| -> Outcome {
        STREAMS.remove(events)?;
        Ok(HEADCOUNT_CLUSTER_OK)
    })
}
