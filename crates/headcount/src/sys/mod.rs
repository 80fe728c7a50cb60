//! Everything that is unsafe, and every question to the kernel that the rest builds on.
//!
//! Nothing above this module contains an `unsafe` block. What is here is small on purpose and has
//! no opinion about workers or generations.

pub(crate) mod atomic;
pub(crate) mod clock;
pub(crate) mod lock;
#[cfg(not(loom))]
pub(crate) mod map;
#[cfg(not(loom))]
pub(crate) mod pipe;
pub(crate) mod process;
#[cfg(all(feature = "tokio", not(loom)))]
pub(crate) mod reactor;
