//! What the directive `headcount` of the nginx module means. Calls nothing of nginx, so its tests need none.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

mod name;
mod settings;
#[cfg(test)]
mod tests;

pub use name::default_node;
pub use settings::{Settings, Surroundings, read};
