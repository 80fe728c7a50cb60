//! Whether anybody of a node is alive.

use headcount::{Liveness, RegistryInfo, Snapshot};

/// Certain: no process of the node is alive, none of its helpers either.
pub fn nobody_is(registry: &RegistryInfo, snapshot: &Snapshot) -> bool {
    !registry.of_this_boot || snapshot.processes.iter().all(|p| p.liveness == Liveness::Gone)
}
