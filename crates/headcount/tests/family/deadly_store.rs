//! Death at one exact instruction.
//!
//! What a dead process leaves behind is what it had stored into shared memory, and nothing else: the kernel has
//! dropped its locks. So all its deaths that anybody can tell apart are the deaths before each of its stores
//! into that memory. Here a process makes the memory read-only for itself, and each store into it becomes a
//! fault: the handler counts it, lets that one instruction pass under the trap flag, and closes the memory
//! again behind it, or kills the process instead.
//!
//! Against counting instructions under ptrace (20 to 60 µs each here, a hundred thousand of them in one transition)
//! this meets every state there is, in a few milliseconds each.

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use super::registry::mapping;

/// Of which process a store is deadly, and where the tally of its stores is kept.
static KILL_AT: AtomicU64 = AtomicU64::new(0);
static TALLY: AtomicUsize = AtomicUsize::new(0);
static OFFSET: AtomicUsize = AtomicUsize::new(0);
/// Start and length of the closed memory.
static CLOSED: [(AtomicUsize, AtomicUsize); 2] =
    [(AtomicUsize::new(0), AtomicUsize::new(0)), (AtomicUsize::new(0), AtomicUsize::new(0))];

/// The tally of a process's stores: how many, and the offset in the registry (or in the other memory) of the last.
#[derive(Clone, Copy)]
pub struct Tally {
    pub stores: &'static AtomicU64,
    pub offset: &'static AtomicU64,
}

/// From now on the `kill_at`-th store of this process into the registry at `path`, or into the memory `also`, kills
/// it. The tally goes on from where it is.
pub fn arm(path: &Path, also: (usize, usize), kill_at: u64, tally: Tally) {
    KILL_AT.store(kill_at, SeqCst);
    TALLY.store(std::ptr::from_ref(tally.stores) as usize, SeqCst);
    OFFSET.store(std::ptr::from_ref(tally.offset) as usize, SeqCst);
    for ((start, len), (to_start, to_len)) in
        [mapping(path).expect("a node with a file"), also].into_iter().zip(&CLOSED)
    {
        to_len.store(len, SeqCst);
        to_start.store(start, SeqCst);
    }
    handle(libc::SIGSEGV, on_store as *const () as usize);
    handle(libc::SIGTRAP, on_stored as *const () as usize);
    protect(libc::PROT_READ);
}

/// Stores are free again.
pub fn disarm() {
    protect(libc::PROT_READ | libc::PROT_WRITE);
}

fn handle(signal: libc::c_int, handler: usize) {
    // SAFETY: zeroes are a valid `sigaction`; the handler has the signature that SA_SIGINFO asks for, and calls
    // nothing that may not be called in a signal handler.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
    }
}

fn protect(protection: libc::c_int) {
    for (start, len) in &CLOSED {
        // SAFETY: a mapping of this process that lives as long as it does; faults of our own making are handled.
        unsafe { libc::mprotect(start.load(SeqCst) as *mut libc::c_void, len.load(SeqCst), protection) };
    }
}

const TRAP_FLAG: i64 = 1 << 8;

extern "C" fn on_store(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes both, valid for as long as the handler runs.
    let (address, context) =
        unsafe { ((*info).si_addr() as usize, &mut *context.cast::<libc::ucontext_t>()) };
    let within = |(start, len): &(AtomicUsize, AtomicUsize)| {
        address.checked_sub(start.load(SeqCst)).is_some_and(|offset| offset < len.load(SeqCst))
    };
    let Some((start, _)) = CLOSED.iter().find(|range| within(range)) else {
        // A fault of somebody else's making.
        // SAFETY: ends the process.
        unsafe { libc::_exit(102) };
    };
    protect(libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: `arm` took the addresses of two atomics that live for ever.
    let (tally, offset) =
        unsafe { (&*(TALLY.load(SeqCst) as *const AtomicU64), &*(OFFSET.load(SeqCst) as *const AtomicU64)) };
    offset.store((address - start.load(SeqCst)) as u64, SeqCst);
    let count = tally.fetch_add(1, SeqCst) + 1;
    if count == KILL_AT.load(SeqCst) {
        // SAFETY: both may be called in a signal handler.
        unsafe {
            libc::kill(libc::getpid(), libc::SIGKILL);
            libc::pause();
        }
    }
    context.uc_mcontext.gregs[libc::REG_EFL as usize] |= TRAP_FLAG;
}

extern "C" fn on_stored(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes it, valid for as long as the handler runs.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    context.uc_mcontext.gregs[libc::REG_EFL as usize] &= !TRAP_FLAG;
    protect(libc::PROT_READ);
}
