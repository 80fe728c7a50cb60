//! What one process of the whole cluster has at a time: roles, locks, and what runs once. docs/cluster.md says what holds.
//!
//! `book.rs` decides, and does nothing else; `engine.rs`, to which `handle.rs` is the way, carries out what it orders, with one task for each key (`chase.rs`), under a
//! lease that is over here before it is over in etcd (`lease.rs`). The agent has one [`Claims`] for the processes of its host.

mod book;
mod chase;
mod engine;
mod handle;
mod lease;
mod list;
mod values;

pub use book::{Kind, What};
pub use handle::{Claims, Peer, Session};
pub use lease::{boot_ms, margin};
pub use list::{Claim, list};
pub use values::{ClaimValue, MOST_ATTEMPTS, OnceState, OnceValue};
