//! Commands and posts on the events of a node: what `headcount run` and the hooks of `headcount agent` have in common.
//!
//! docs/cli/run.md says what they promise. In short: a record says which event is next and what is in progress. It is written
//! before and after each attempt, so a restart knows what was delivered, and that at most one more delivery may have been.

mod attempt;
pub mod backoff;
pub mod cluster;
pub mod command;
pub mod deliver;
pub mod follow;
pub mod locator;
mod lock;
pub mod log;
mod node_event;
mod node_state;
pub mod notification;
mod queue;
pub mod rules;
pub mod settings;
mod start_position;
pub mod state;
pub mod stop;
mod webhook;
