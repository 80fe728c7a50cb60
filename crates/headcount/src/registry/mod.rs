//! The registry: what its bytes mean, its tables, its journal, and the files that it lies in.

#[cfg(not(loom))]
pub(crate) mod files;
#[cfg(not(loom))]
pub(crate) mod header;
pub(crate) mod journal;
pub(crate) mod layout;
#[cfg(not(loom))]
pub(crate) mod reading;
#[cfg(not(loom))]
pub(crate) mod region;
pub(crate) mod seqlock;
#[cfg(not(loom))]
pub(crate) mod store;
