//! Everything that is unsafe, and every question to the kernel that the rest builds on.
//!
//! Nothing above this module contains an `unsafe` block. What is here is small on purpose and has
//! no opinion about workers or generations.

pub(crate) mod atomic;
#[cfg(not(loom))]
pub(crate) mod bell;
pub(crate) mod clock;
pub(crate) mod futex;
#[cfg(not(loom))]
pub(crate) mod grown;
#[cfg(not(loom))]
pub(crate) mod identity;
#[cfg(not(loom))]
pub(crate) mod memory;
#[cfg(not(loom))]
pub(crate) mod per_process;
pub(crate) mod process;
#[cfg(all(feature = "tokio", not(loom)))]
pub(crate) mod reactor;
#[cfg(not(loom))]
pub(crate) mod reader_futex;
#[cfg(not(loom))]
pub(crate) mod record_lock;
pub(crate) mod shared;
#[cfg(not(loom))]
pub(crate) mod thread;
