//! The commands, one module each.

pub mod agent;
pub mod cluster;
pub mod completions;
pub mod doctor;
pub mod events;
pub mod exec;
pub mod lock;
pub mod man;
pub mod reload;
pub mod run;
pub mod status;
pub mod top;
pub mod wait;
