//! The roles, onces and locks of the node, at one instant.

use std::ffi::c_char;

use crate::border::codes::HEADCOUNT_OK;
use crate::border::entry::{Sized32, check_pointer, check_struct, entry, put};
use crate::border::event::{count, name as name_of, nanos, signed};
use crate::handle::{self, Handle};

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
