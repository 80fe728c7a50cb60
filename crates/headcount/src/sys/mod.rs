//! Everything that is unsafe, and every question to the kernel that the rest builds on.
//!
//! Nothing above this module contains an `unsafe` block. What is here is small on purpose and has
//! no opinion about workers or generations.

pub(crate) mod atomic;
pub(crate) mod bell;
pub(crate) mod clock;
pub(crate) mod futex;
pub(crate) mod grown;
pub(crate) mod identity;
pub(crate) mod memory;
pub(crate) mod own_pid;
pub(crate) mod per_process;
pub(crate) mod process;
#[cfg(all(feature = "tokio", not(loom)))]
pub(crate) mod reactor;
pub(crate) mod reader_futex;
pub(crate) mod record_lock;
pub(crate) mod shared;
pub(crate) mod stop_signals;
pub(crate) mod thread;
pub(crate) mod timer;
