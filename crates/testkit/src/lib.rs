//! Starts real servers, reloads, kills and waits, and asserts on what they said.
//!
//! A test owns everything that it starts: folder, sockets, processes. It waits for conditions and never
//! for time to pass, and takes from a [`Ledger`] exactly what the contract promises.
//! [`scenarios`] are the contract's rows, written once for every [`Integration`].

pub mod artifacts;
pub mod guard;
pub mod http;
pub mod native;
pub mod net;
pub mod process;
pub mod program;
pub mod promtool;
pub mod report;
pub mod scenarios;
pub mod wait;

mod actions;
mod etcd;
mod folder;
mod ledger;
mod leftovers;
mod model;
mod permit;
mod room;
mod server;
mod setup;
mod stranger;

pub use artifacts::Server;
pub use etcd::Etcd;
pub use folder::{Folder, PREFIX as FOLDER_PREFIX, chmod};
pub use http::SlowClient;
pub use ledger::Ledger;
pub use permit::{Permit, permit, permit_alone};
pub use report::{Counts, Kind, Report, Reports};
pub use room::Room;
pub use rustix::process::Signal;
pub use server::{Nginx, RECORDER};
pub use setup::{Integration, Setup, Who};
pub use stranger::{Stranger, User};
