//! The C library `libheadcount-cluster.so`: roles, onces and locks of a whole cluster, its state and its events, by way of the agent of
//! this host. What it does is done by the crate `headcount-cluster-client`; this makes it C's.
//!
//! `include/headcount_cluster.h` is generated from the documentation in here, which therefore speaks C.

#![allow(
    clippy::missing_safety_doc,
    reason = "headcount_cluster.h says once, at its top, what pointers must be"
)]

// Each floor uses only those above it in this list.
mod border;

mod handle;

mod calls;

pub use border::*;
pub use calls::events::*;
pub use calls::leader::*;
pub use calls::lock::*;
pub use calls::once::*;
pub use calls::open::*;
pub use handle::table::{Cluster, EventStream};
