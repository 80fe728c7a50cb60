//! The calls of headcount_cluster.h. None of them knows another; what they share is below them.

// In the order of headcount_cluster.h; the empty lines keep rustfmt from sorting it.
pub(crate) mod open;

pub(crate) mod leader;

pub(crate) mod once;

pub(crate) mod lock;

pub(crate) mod events;
