//! The border to C: what crosses it, and how it is checked. Nothing in here knows a node.

pub(crate) mod entry;

// What C sees, in the order of headcount.h; the empty lines keep rustfmt from sorting it.
pub(crate) mod codes;

pub(crate) mod words;

pub(crate) mod options;

pub(crate) mod event;
