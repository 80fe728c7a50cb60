//! Whether a node is up, by its snapshot.

use std::time::Duration;

use headcount::{Liveness, Phase, Role, Snapshot, State};

/// A generation that was announced may have no worker for so long.
const ANNOUNCED: Duration = Duration::from_secs(2);

/// Whether a process is alive, or may be about to start.
pub fn may_be_up(snapshot: &Snapshot) -> bool {
    snapshot.liveness() != Liveness::Gone
        || snapshot.generations.iter().any(|g| g.phase == Phase::Announced && g.age < ANNOUNCED)
}

/// Whether some worker is alive and not told to leave.
pub fn serves(snapshot: &Snapshot) -> bool {
    let mut workers = snapshot.processes.iter().filter(|p| p.role == Role::Worker);
    workers.any(|p| {
        p.liveness == Liveness::Alive
            && matches!(p.state, State::Starting | State::Serving | State::Stalled | State::Orphaned)
    })
}
