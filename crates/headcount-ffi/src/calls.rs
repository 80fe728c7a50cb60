//! The calls of headcount.h. None of them knows another; what they share is below them.

// In the order of headcount.h; the empty lines keep rustfmt from sorting it.
pub(crate) mod node;

pub(crate) mod master;

pub(crate) mod worker;

pub(crate) mod watch;

pub(crate) mod member;

pub(crate) mod counts;

pub(crate) mod journal;

pub(crate) mod snapshot;

pub(crate) mod leader;

pub(crate) mod once;

pub(crate) mod lock;

pub(crate) mod singletons;

pub(crate) mod nginx;
