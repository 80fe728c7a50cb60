//! The registry: what its bytes mean, its tables, its journal, and the files that it lies in.

pub(crate) mod files;
pub(crate) mod header;
pub(crate) mod journal;
pub(crate) mod layout;
pub(crate) mod membership;
pub(crate) mod reading;
pub(crate) mod region;
mod removed;
pub(crate) mod seqlock;
pub(crate) mod store;
