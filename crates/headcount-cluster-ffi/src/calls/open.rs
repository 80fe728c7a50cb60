//! The way to the agent.

use std::ffi::c_char;
use std::path::PathBuf;

use headcount_border::{Sized32, check_pointer, check_struct, copy_string, entry, put, read_struct, string};

use crate::border::{HEADCOUNT_CLUSTER_OK, Outcome, not_found, time};
use crate::handle::Handle;
use crate::handle::session::{ERROR, NOTICE, WARNING};
use crate::handle::table::{CLUSTERS, Cluster};

/// `level`: good to know.
pub const HEADCOUNT_CLUSTER_LEVEL_NOTICE: u32 = NOTICE;
/// `level`: something is less than was asked for.
pub const HEADCOUNT_CLUSTER_LEVEL_WARNING: u32 = WARNING;
/// `level`: something failed that nobody was there to be told.
pub const HEADCOUNT_CLUSTER_LEVEL_ERROR: u32 = ERROR;

/// The longest path of a socket.
const LONGEST_PATH: usize = 107;

/// Where the agent is. Set all that you do not need to 0.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// sizeof(headcount_cluster_options).
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// The agent's socket, an absolute path; NULL: /run/headcount-agent/agent.sock.
    pub socket: *const c_char,
    /// How many milliseconds `headcount_cluster_open` waits for the agent; 0: it does not, and the agent may come later.
    pub connect_ms: i64,
}

// SAFETY: repr(C), integers and a pointer only, and it begins with its size.
unsafe impl Sized32 for Options {
    const NAME: &'static str = "headcount_cluster_options";
}

/// How it is with agent and cluster. Set `struct_size` before the call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct StatusRecord {
    /// sizeof(headcount_cluster_status), set by the caller.
    pub struct_size: u32,
    /// 1: the agent answers.
    pub connected: u32,
    /// 1: the agent says that etcd does not answer it.
    pub etcd_away: u32,
    /// 0.
    pub reserved: u32,
    /// So many milliseconds after the last sign of life of this host others take over; 0 before the agent has said it.
    pub ttl_ms: u64,
    /// For so many milliseconds more what this process has is its own for certain. It is extended again and again.
    pub left_ms: u64,
    /// The cluster; empty before the agent has said it.
    pub cluster: [c_char; 256],
    /// This host's name in it.
    pub host: [c_char; 256],
}

// SAFETY: repr(C), integers only, and it begins with its size.
unsafe impl Sized32 for StatusRecord {
    const NAME: &'static str = "headcount_cluster_status";
}

/// Opens a way to the agent of this host, in the process that will use it: after a fork. It connects again by itself whenever the
/// agent was away. `options` may be NULL.
///
/// HEADCOUNT_CLUSTER_ERR_AWAY: `connect_ms` was given, and the agent has not answered by then; nothing is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_open(options: *const Options, cluster: *mut *mut Cluster) -> i32 {
    entry(|| -> Outcome {
        check_pointer(cluster, "cluster")?;
        let (mut socket, mut connect_ms) = (None, 0);
        if !options.is_null() {
            // SAFETY: the caller's structure and its string, as the header demands.
            unsafe {
                let given = read_struct(options, "options")?;
                (socket, connect_ms) = (string(given.socket, "socket")?, given.connect_ms);
            }
        }
        let socket = socket.map_or_else(|| PathBuf::from(headcount_cluster_client::SOCKET), PathBuf::from);
        if !socket.is_absolute() || socket.as_os_str().len() > LONGEST_PATH {
            return Err(headcount_border::Failure::invalid(format!(
                "option `socket` is {socket:?}; allowed is an absolute path of at most {LONGEST_PATH} bytes"
            )));
        }
        let limit = time(connect_ms, "connect_ms")?;
        let handle = Handle::new(socket)?;
        let found = handle.wait_for(limit, |session| session.is_connected().then_some(()))?;
        if found.is_none() && !limit.is_zero() {
            let trouble = handle.look(|session| session.trouble(&handle.socket))?;
            return Err(trouble.unwrap_or_else(|| crate::border::away("the agent has not answered")));
        }
        // SAFETY: checked above; writable by the caller's word.
        unsafe { put(cluster, "cluster", CLUSTERS.add(handle)) }?;
        Ok(HEADCOUNT_CLUSTER_OK)
    })
}

/// Closes it: all roles and locks that this process has by it are free at once, and what it runs once is run by another, which is told
/// `died`. Threads that wait in calls return HEADCOUNT_CLUSTER_ERR_WRONG_STATE. In a forked child, it closes nothing of the parent's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_close(cluster: *mut Cluster) -> i32 {
    entry(|| -> Outcome {
        CLUSTERS.remove(cluster)?.close();
        Ok(HEADCOUNT_CLUSTER_OK)
    })
}

/// A descriptor for the event loop: when it is readable, call `headcount_cluster_process`. It stays the same, and tells deadlines as well,
/// so that the loop needs no timer for this. Only wait for it; it is the library's, and gone after `headcount_cluster_close`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_fd(cluster: *mut Cluster, fd: *mut i32) -> i32 {
    entry(|| -> Outcome {
        let handle = CLUSTERS.find(cluster)?;
        // SAFETY: NULL, or writable for as long as this call, by the caller's word.
        unsafe { put(fd, "fd", handle.fd()) }?;
        Ok(HEADCOUNT_CLUSTER_OK)
    })
}

/// Does what is due: connects, hears what the agent says, confirms that this process is alive. Never waits. Then ask what has become of what
/// you have or want: `headcount_cluster_leader_poll`, `headcount_cluster_lock_poll`, `headcount_cluster_once_begin`.
///
/// Whoever has a role, a lock or a once must come here, or into another call that takes a cluster and is not said only to look, several
/// times within `ttl_ms`: what is not confirmed is lost.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_process(cluster: *mut Cluster) -> i32 {
    entry(|| -> Outcome {
        CLUSTERS.find(cluster)?.process()?;
        Ok(HEADCOUNT_CLUSTER_OK)
    })
}

/// How it is with agent and cluster at this instant. Only looks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_get_status(
    cluster: *mut Cluster,
    status: *mut StatusRecord,
) -> i32 {
    entry(|| -> Outcome {
        let handle = CLUSTERS.find(cluster)?;
        // SAFETY: NULL, or a structure that says its true size, by the caller's word.
        unsafe { check_struct(status, "status") }?;
        let (record, names) = handle.look(|session| {
            let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            let record = StatusRecord {
                struct_size: size_of::<StatusRecord>() as u32,
                connected: u32::from(session.is_connected()),
                etcd_away: u32::from(session.is_etcd_away()),
                reserved: 0,
                ttl_ms: ms(session.client.ttl()),
                left_ms: ms(session.client.time_left()),
                cluster: [0; 256],
                host: [0; 256],
            };
            (record, session.names.clone().unwrap_or_default())
        })?;
        let mut record = record;
        // SAFETY: arrays of that size; and `status`, which was checked above and is writable by the caller's word.
        unsafe {
            copy_string(&names.0, record.cluster.as_mut_ptr(), 256);
            copy_string(&names.1, record.host.as_mut_ptr(), 256);
            put(status, "status", record)?;
        }
        Ok(HEADCOUNT_CLUSTER_OK)
    })
}

/// Takes the oldest message for the log: that the agent is away or answers again, why something was lost. HEADCOUNT_CLUSTER_ERR_NOT_FOUND if
/// there is none. `level` gets a HEADCOUNT_CLUSTER_LEVEL_; 512 bytes hold most messages, longer ones are cut. 64 are kept. Only looks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_notice(
    cluster: *mut Cluster,
    level: *mut u32,
    buffer: *mut c_char,
    capacity: u64,
) -> i32 {
    entry(|| -> Outcome {
        let handle = CLUSTERS.find(cluster)?;
        check_pointer(level, "level")?;
        check_pointer(buffer, "buffer")?;
        let (how, text) = handle.take_notice()?.ok_or_else(|| not_found("there is no message"))?;
        // SAFETY: checked above; writable, and the buffer of that size, by the caller's word.
        unsafe {
            put(level, "level", how)?;
            copy_string(&text, buffer, capacity);
        }
        Ok(HEADCOUNT_CLUSTER_OK)
    })
}
