//! What nginx offers: its facts, log, timers and connections. Nothing in here knows what headcount does.

pub(crate) mod border;
pub(crate) mod connection;
pub(crate) mod facts;
pub(crate) mod log;
pub(crate) mod mutex;
pub(crate) mod respond;
pub(crate) mod timer;
