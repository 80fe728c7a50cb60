//! Roles: who leads.

use std::ffi::c_char;

use headcount_core::LeaderChange;

use crate::border::codes::HEADCOUNT_OK;
use crate::border::entry::{Sized32, check_struct, entry, put, required};
use crate::handle::{self, Handle};

/// Nothing has changed.
pub const HEADCOUNT_LEADER_SAME: u32 = 0;
/// This process has the role from now on.
pub const HEADCOUNT_LEADER_ELECTED: u32 = 1;
/// It still has the role, and is to call `headcount_leader_give_up` when it has stopped what it does.
pub const HEADCOUNT_LEADER_GIVE_UP: u32 = 2;
/// It has the role no more.
pub const HEADCOUNT_LEADER_LOST: u32 = 3;

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
