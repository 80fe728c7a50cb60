//! **headcount** knows, exactly and at once, which worker processes of a server are alive, and runs your
//! code, once and under a lock, when workers and nodes start, reload, restart, stop, crash or hang.
//!
//! Every process of a node writes what it *intends* into one small shared registry; the kernel says who is
//! *alive*; one pure function turns both into the state, the counts and the events.
//!
//! # A pre-forking server in short
//!
//! ```no_run
//! use headcount::{Begin, Join, Options, Wait};
//!
//! # fn fork() -> i32 { 0 }
//! # fn main() -> headcount::Result<()> {
//! // The master, before it forks:
//! let master = Options::new("my-server").open()?;
//! let (generation, transitions) = master.begin(Begin::new().workers(4), Wait::Timeout)?;
//! transitions.run(|t| println!("{} {:?}", t.event.kind, t.event.counts));
//! master.commit(generation.id());
//!
//! if fork() == 0 {
//!     // Each worker:
//!     let (worker, transitions) = generation.join(Join::worker(Some(0)))?;
//!     transitions.run(|t| println!("{} {:?}", t.event.kind, t.event.counts));
//!     let mut watch = worker.watch()?;
//!     // … its loop: poll `watch` along with everything else, and when it is readable:
//!     watch.process()?.run(|t| println!("{} of {}", t.event.kind, t.event.pid));
//!     worker.beat();
//!     // … and in the end:
//!     worker.leave(Wait::Timeout)?.run(|t| println!("{}", t.event.kind));
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The examples `prefork` and `prefork_tokio` are whole servers. The feature `tokio` adds `AsyncMember`: a worker's life
//! as a future, which beats by itself.
//!
//! # What it promises
//!
//! - Each transition is reported once, in order, with exact counts, also when processes die at any moment.
//! - A handler runs under the node lock: nobody else's runs meanwhile. It may be slow, fail, or die.
//! - Liveness is the kernel's word about an identity (process id, pid namespace, birth), never a guess from a timeout;
//!   what the kernel does not tell is unknown, and says why.
//! - No thread is started, no signal handler installed, no descriptor waited on behind your back. (A [`Follower`], which is
//!   for programs beside the server, has a thread that sleeps.)

// Under loom only what it tests is used: see `seqlock.rs`.
#![cfg_attr(loom, allow(dead_code, unused_imports))]

#[cfg(not(loom))]
mod engine;
#[cfg(not(loom))]
mod follower;
#[cfg(not(loom))]
mod generation;
#[cfg(not(loom))]
mod kernel;
#[cfg(not(loom))]
mod lifecycle;
#[cfg(not(loom))]
mod master;
#[cfg(not(loom))]
mod member;
#[cfg(not(loom))]
mod node;
#[cfg(not(loom))]
mod observer;
#[cfg(not(loom))]
mod options;
#[cfg(not(loom))]
mod snapshot;
#[cfg(not(loom))]
mod stale;
#[cfg(all(feature = "tokio", not(loom)))]
mod tokio;
#[cfg(not(loom))]
mod worker;

/// For the crates of this project alone. No promise is made about it.
#[cfg(not(loom))]
#[doc(hidden)]
pub mod internal {
    pub use crate::sys::per_process::PerProcess;
}

mod coded;
mod error;
mod event;
mod registry;
mod sys;

#[cfg(all(feature = "tokio", not(loom)))]
pub use self::tokio::AsyncMember;
#[cfg(not(loom))]
pub use engine::node_lock::Wait;
#[cfg(not(loom))]
pub use engine::process::{Notice, NoticeLevel};
#[cfg(not(loom))]
pub use engine::sentinel::Watch;
#[cfg(not(loom))]
pub use engine::transitions::{Transition, Transitions};
pub use error::{Allowed, Error, ErrorKind, Result, WrongOption};
pub use event::{Cause, Counts, Event, GenerationId, Kind, PreviousRun, Role};
#[cfg(not(loom))]
pub use follower::{FolderWatch, Follow, Follower, Followers, Item};
#[cfg(not(loom))]
pub use generation::{Generation, Join};
#[cfg(not(loom))]
pub use kernel::{KernelFeatures, kernel_features};
#[cfg(not(loom))]
pub use lifecycle::{Phase, State};
#[cfg(not(loom))]
pub use master::{Begin, Master};
#[cfg(not(loom))]
pub use member::{Member, MemberState, Moment, Step};
#[cfg(not(loom))]
pub use node::Node;
#[cfg(not(loom))]
pub use observer::{Observer, RegistryInfo};
#[cfg(not(loom))]
pub use options::{Options, default_folder, default_node, default_path};
pub use registry::journal::{Batch, Cursor};
#[cfg(not(loom))]
pub use snapshot::{GenerationStatus, Holder, NodeSettings, ProcessStatus, Snapshot};
#[cfg(not(loom))]
pub use stale::remove_stale;
#[cfg(not(loom))]
pub use sys::identity::{Doubt, Liveness};
#[cfg(not(loom))]
pub use worker::Worker;
