//! Locks that have a name.

use std::ffi::c_char;
use std::sync::Arc;

use headcount_core::ErrorKind;

use crate::border::codes::HEADCOUNT_OK;
use crate::border::entry::{
    Failure, Outcome, Sized32, check_pointer, check_struct, entry, put, required, wait,
};
use crate::border::event::signed;
use crate::handle::singletons::Lock;
use crate::handle::{self, Handle};

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
