//! What a hostile worker and a hostile local user do to headcount.
//!
//! A worker attacks with what it inherited: the descriptors and the mapping of the registry. So its attacks run in a
//! child that the worker forks, without exec: [`attacker_begin`], which LuaJIT calls in a worker of a real nginx.
//! A local user has nothing but what he may make himself: [`user`], in a program of its own (`testkit`'s `attacker`).
//! Every attack goes on until its process is killed.

pub mod format;
pub mod user;

mod bells;
mod descriptors;
mod futexes;
mod hostage;
mod inside;
mod locks;
mod random;
mod registry;
mod scribble;

pub use inside::{ATTACKS, attacker_begin, run};
pub use registry::Registry;

/// From here on every signal waits for ever, and `/proc/PID/status` shows which came.
pub fn block_signals() {
    // SAFETY: a set that is filled before it is used; for this process, which has one thread.
    unsafe {
        let mut all: libc::sigset_t = descriptors::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
    }
}
