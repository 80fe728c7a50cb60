//! Roles, onces and locks of a cluster, for a process of a host whose `headcount agent` is a part of it.

#![forbid(unsafe_code)]

pub mod protocol;
