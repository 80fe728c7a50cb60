//! How much there is of a node: what decides which of several is meant.

use headcount::{Liveness, Snapshot};

/// How much there is of a node, from nothing up. Of several nodes of one name the one with the most of it is meant: a server that was
/// stopped does not stand in the way of one that runs, nor does one that is being started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Life {
    /// Nothing is known of it.
    Unreadable,
    /// All of its processes are gone.
    Gone,
    /// A master without a generation in force: it is being started, or cannot start.
    Announced,
    /// It serves, as far as is known.
    Serving,
}

impl Life {
    /// Of this node.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Life {
        match (snapshot.liveness(), snapshot.newest_committed()) {
            (Liveness::Gone, _) => Life::Gone,
            (_, None) => Life::Announced,
            (_, Some(_)) => Life::Serving,
        }
    }
}
