//! Carries out what `lifecycle` decides: the node lock, the transitions under it, and who watches whom.

mod deaths;
mod generation_table;
pub(crate) mod node_lock;
pub(crate) mod opening;
mod previous_run;
pub(crate) mod sentinel;
pub(crate) mod transitions;
