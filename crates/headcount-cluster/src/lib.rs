//! What the agents of many hosts tell each other, through etcd and through nothing else.
//!
//! A [`publisher`] tells of the nodes of its host, and that the host is there. A [`follower`] reads the picture of the whole
//! cluster, and what changes. One agent at a time notes which hosts are lost (`teller.rs`), and delivers for a hook of all hosts
//! ([`turn`]). What they write where is
//! docs/cluster.md's *keys*. [`claims`] are what one process of all has: roles, locks, what runs once. Whoever reloads many nodes plans it ([`rollout`]) and
//! goes on with it ([`conductor`]); the agents do their part ([`doer`]). Only the program `headcount` uses this: the libraries and the module know nothing of it.

#![forbid(unsafe_code)]

pub mod claims;
pub mod conductor;
pub mod config;
pub mod doer;
pub mod ending;
mod etcd;
pub mod fleet;
pub mod follower;
mod keep;
mod keys;
mod node;
mod pace;
mod presence;
pub mod publisher;
pub mod regular_file;
pub mod rollout;
pub mod task;
mod teller;
mod trouble;
pub mod turn;
pub mod value;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use keys::Keys;
pub use trouble::Trouble;

/// The registries of this host's nodes, each with a number that grows whenever something has happened in it.
pub type Nodes = BTreeMap<PathBuf, u64>;

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
