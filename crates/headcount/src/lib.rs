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
//!     return Ok(());
//! }
//! // The master again, when it has reaped its last worker: without this, the node's end is not told.
//! master.leave(Wait::Timeout)?.run(|t| println!("{} {:?}", t.event.kind, t.event.cause));
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

// Everything unsafe is in `sys`; tests fork.
#![cfg_attr(not(test), deny(unsafe_code))]

mod engine;
mod fileless;
mod follower;
mod generation;
mod kernel;
mod lifecycle;
mod master;
mod member;
#[cfg(all(test, not(loom)))]
mod models;
mod node;
mod observer;
mod options;
mod singleton;
mod snapshot;
mod stale;
#[cfg(all(feature = "tokio", not(loom)))]
mod tokio;
mod visitor;
mod worker;

/// For the crates of this project alone. No promise is made about it.
#[doc(hidden)]
pub mod internal {
    pub use crate::sys::per_process::PerProcess;
    pub use crate::sys::thread::spawn_without_signals;
}

mod coded;
mod error;
mod event;
mod registry;
#[allow(unsafe_code)]
mod sys;

#[cfg(all(feature = "tokio", not(loom)))]
pub use self::tokio::AsyncMember;
pub use engine::node_lock::Wait;
pub use engine::process::{Notice, NoticeLevel};
pub use engine::sentinel::Watch;
pub use engine::transitions::{Transition, Transitions};
pub use error::{Allowed, Error, ErrorKind, Result, WrongOption};
pub use event::{Cause, Counts, Event, GenerationId, Kind, PreviousRun, Role};
pub use fileless::{FilelessNode, fileless_nodes};
pub use follower::{FolderWatch, Follow, Follower, Followers, Item};
pub use generation::{Generation, Join};
pub use kernel::{KernelFeatures, kernel_features};
pub use lifecycle::{Phase, SingletonKind, SingletonState, State};
pub use master::{Begin, Master};
pub use member::{Member, MemberState, Moment, Step};
pub use node::Node;
pub use observer::{Observer, RegistryInfo};
pub use options::{Options, default_folder, default_node, default_path, is_ours, named_folder};
pub use registry::journal::{Batch, Cursor};
pub use singleton::{
    Attempt, Begun, Leader, LeaderChange, LockGuard, NamedLock, Once, OnceRun, OnceScope, WhoRuns,
};
pub use snapshot::{GenerationStatus, Holder, NodeSettings, ProcessStatus, SingletonStatus, Snapshot};
pub use stale::remove_stale;
pub use sys::identity::{Doubt, Liveness};
pub use visitor::Visitor;
pub use worker::Worker;
