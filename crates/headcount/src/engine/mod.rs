//! Carries out what `lifecycle` decides: the node lock, the transitions under it, and who watches whom.

pub(crate) mod inner;
pub(crate) mod liveness;
pub(crate) mod look;
pub(crate) mod node_lock;
pub(crate) mod opening;
pub(crate) mod pace;
pub(crate) mod process;
pub(crate) mod sentinel;
pub(crate) mod session;
pub(crate) mod singletons;
pub(crate) mod tables;
pub(crate) mod transitions;
pub(crate) mod visiting;
pub(crate) mod words;
