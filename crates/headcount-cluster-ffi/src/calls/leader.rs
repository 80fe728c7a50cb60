//! Roles.

use std::ffi::c_char;

use headcount_border::{Sized32, check_pointer, check_struct, entry, put, required};

use crate::border::{HEADCOUNT_CLUSTER_OK, Outcome};
use crate::handle::session::{Change, Role};
use crate::handle::table::{CLUSTERS, Cluster};

/// Nothing has changed.
pub const HEADCOUNT_CLUSTER_LEADER_SAME: u32 = 0;
/// This process has the role from now on.
pub const HEADCOUNT_CLUSTER_LEADER_ELECTED: u32 = 1;
/// The agent ends. This process still has the role, and is to call `headcount_cluster_leader_give_up` when it has stopped what it does.
pub const HEADCOUNT_CLUSTER_LEADER_GIVE_UP: u32 = 2;
/// It has the role no more, and stands for it on.
pub const HEADCOUNT_CLUSTER_LEADER_LOST: u32 = 3;

/// What became of a role. Set `struct_size` before each call that fills it in.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LeaderRecord {
    /// sizeof(headcount_cluster_leader), set by the caller.
    pub struct_size: u32,
    /// HEADCOUNT_CLUSTER_LEADER_*
    pub change: u32,
    /// The number of the tenure, if this process has the role at this instant; else 0. Larger than all before, on whatever host.
    pub token: u64,
}

// SAFETY: repr(C), integers only, and it begins with its size.
unsafe impl Sized32 for LeaderRecord {
    const NAME: &'static str = "headcount_cluster_leader";
}

/// Stands for a role: 1 to 48 letters, digits, '.', '_' and '-'. At most one process of the whole cluster has it at any instant. Does not
/// wait, also if the agent is away: it stands as soon as there is one. Does nothing if this process stands for it already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_leader_stand(cluster: *mut Cluster, role: *const c_char) -> i32 {
    entry(|| -> Outcome {
        let handle = CLUSTERS.find(cluster)?;
        // SAFETY: NULL or a string, by the caller's word.
        let role = unsafe { required(role, "role") }?;
        handle.with(|session| {
            if session.roles.contains_key(&role) {
                return Ok(());
            }
            session.stand(&role)?;
            session.roles.insert(role, Role::default());
            Ok(())
        })?;
        Ok(HEADCOUNT_CLUSTER_OK)
    })
}

/// What has changed about a role that this process stands for, one change after the other: call it until it says
/// HEADCOUNT_CLUSTER_LEADER_SAME. Never waits. HEADCOUNT_CLUSTER_ERR_NOT_FOUND if it does not stand for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_leader_poll(
    cluster: *mut Cluster,
    role: *const c_char,
    leader: *mut LeaderRecord,
) -> i32 {
    entry(|| -> Outcome {
        let handle = CLUSTERS.find(cluster)?;
        // SAFETY: NULL or a string, by the caller's word; and NULL, or writable for as long as this call.
        let role = unsafe {
            check_struct(leader, "leader")?;
            required(role, "role")?
        };
        let (change, token) = handle.with(|session| {
            let change = session.role(&role)?.changes.pop_front();
            Ok((change, session.client.token(&role)))
        })?;
        let record = LeaderRecord {
            struct_size: size_of::<LeaderRecord>() as u32,
            change: match change {
                None => HEADCOUNT_CLUSTER_LEADER_SAME,
                Some(Change::Elected) => HEADCOUNT_CLUSTER_LEADER_ELECTED,
                Some(Change::GiveUp) => HEADCOUNT_CLUSTER_LEADER_GIVE_UP,
                Some(Change::Lost) => HEADCOUNT_CLUSTER_LEADER_LOST,
            },
            token: token.unwrap_or(0),
        };
        // SAFETY: checked above; writable by the caller's word.
        unsafe { put(leader, "leader", record) }?;
        Ok(HEADCOUNT_CLUSTER_OK)
    })
}

/// `*token`: the number of the tenure, if this process has the role at this instant, else 0. Compares the clock with the deadline, also after
/// a suspend: 0 before another one can have it, though nobody has said so. Only looks: from any thread, without a word to the agent.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_is_leader(
    cluster: *mut Cluster,
    role: *const c_char,
    token: *mut u64,
) -> i32 {
    entry(|| -> Outcome {
        let handle = CLUSTERS.find(cluster)?;
        check_pointer(token, "token")?;
        // SAFETY: NULL or a string, by the caller's word.
        let role = unsafe { required(role, "role") }?;
        let found = handle.look(|session| session.client.token(&role))?;
        // SAFETY: checked above; writable by the caller's word.
        unsafe { put(token, "token", found.unwrap_or(0)) }?;
        Ok(HEADCOUNT_CLUSTER_OK)
    })
}

/// It has stopped what it did as the leader: another one is elected, or this one again when its turn comes. Never waits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_leader_give_up(cluster: *mut Cluster, role: *const c_char) -> i32 {
    entry(|| -> Outcome {
        let handle = CLUSTERS.find(cluster)?;
        // SAFETY: NULL or a string, by the caller's word.
        let role = unsafe { required(role, "role") }?;
        handle.with(|session| session.give_up(&role))?;
        Ok(HEADCOUNT_CLUSTER_OK)
    })
}

/// It stands for the role no more, and has it no more. Never waits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_cluster_leader_resign(cluster: *mut Cluster, role: *const c_char) -> i32 {
    entry(|| -> Outcome {
        let handle = CLUSTERS.find(cluster)?;
        // SAFETY: NULL or a string, by the caller's word.
        let role = unsafe { required(role, "role") }?;
        handle.with(|session| {
            session.role(&role)?;
            session.roles.remove(&role);
            session.client.leave(&role);
            Ok(())
        })?;
        Ok(HEADCOUNT_CLUSTER_OK)
    })
}
