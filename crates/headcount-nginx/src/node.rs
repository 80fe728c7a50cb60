//! The node as this process has it: what it knows, what a master and a worker do. From the bottom up: report, state and
//! loading; lua; master; member.

pub(crate) mod loading;
pub(crate) mod lua;
pub(crate) mod master;
pub(crate) mod member;
pub(crate) mod report;
pub(crate) mod state;
