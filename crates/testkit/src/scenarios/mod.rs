//! The contract's rows, one function per case, each for any [`Integration`].
//!
//! A scenario does something to a server, waits for what must be told, stops the server, and then takes
//! from the [`Ledger`] exactly what the contract promises. Counts beyond those that a scenario names are checked by the ledger's model.

pub mod callbacks;
pub mod clock;
pub mod death;
pub mod drain;
pub mod exits;
pub mod failed_reload;
pub mod hang;
pub mod identity;
pub mod late;
pub mod limits;
pub mod master;
pub mod openresty;
pub mod registry;
pub mod reload;
pub mod retry;
pub mod seed;
pub mod start_stop;
pub mod surroundings;
pub mod upgrade;

use crate::{Integration, Kind, Ledger, Report, Setup};

/// Heartbeats that make a hang show in a second.
fn quick(integration: Integration) -> Setup {
    Setup::new(integration).option("heartbeat_interval", "0.2").option("stall_after", "1")
}

impl Ledger {
    /// The first generation of a node, from nothing, and its workers.
    #[track_caller]
    pub fn cold_start(&mut self, workers: i64) -> Report {
        let start = self.one_with(Kind::GenerationStarted, 1, (None, Some(0), None));
        self.same("cause of the first generation", start.cause(), "start");
        self.starts(1, workers, "start");
        start
    }

    /// A generation that a reload made while `prev` workers of the one before were there.
    #[track_caller]
    pub fn reloaded(&mut self, generation: u64, prev: i64, workers: i64) -> Report {
        let start = self.one_with(Kind::GenerationStarted, generation, (Some(prev), Some(0), None));
        self.same("cause of a reload's generation", start.cause(), "reload");
        self.starts(generation, workers, "reload");
        start
    }
}
