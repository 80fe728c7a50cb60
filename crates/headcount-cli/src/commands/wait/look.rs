//! What `wait` and `reload` take from a snapshot: plain data, so that what is concluded from it is a pure function.

use std::time::Duration;

use headcount::{Cause, GenerationId, Liveness, Phase, Role, Snapshot, State};

/// A node at one instant.
#[derive(Clone, Debug, Default)]
pub struct Look {
    pub generations: Vec<Generation>,
    pub processes: Vec<Process>,
    /// Who holds the node lock, and for how long.
    pub holder: Option<(u32, Duration)>,
}

/// A generation at that instant.
#[derive(Clone, Debug)]
pub struct Generation {
    pub id: GenerationId,
    pub phase: Phase,
    pub cause: Cause,
    pub master: u32,
    pub master_alive: Option<bool>,
    pub begun_ns: u64,
    pub expected: Option<u32>,
}

/// A process at that instant.
#[derive(Clone, Debug)]
pub struct Process {
    pub pid: u32,
    pub role: Role,
    pub generation: GenerationId,
    pub worker_id: Option<u32>,
    pub state: State,
    pub liveness: Liveness,
    pub age: Duration,
    pub in_state_for: Duration,
    pub heartbeat_age: Duration,
}

impl Process {
    /// Alive, or not to be told: nobody may take such a one for gone.
    pub fn may_live(&self) -> bool {
        self.liveness != Liveness::Gone
    }
}

impl Look {
    /// The newest generation that was not abandoned.
    pub fn newest(&self) -> Option<&Generation> {
        self.generations.iter().filter(|g| g.phase != Phase::Abandoned).max_by_key(|g| g.id)
    }

    /// The newest generation that has, or had, or is certain to get workers.
    pub fn newest_committed(&self) -> Option<&Generation> {
        self.generations.iter().filter(|g| g.phase == Phase::Committed).max_by_key(|g| g.id)
    }

    /// Its workers, those that are gone and not settled yet with them.
    pub fn workers(&self, generation: GenerationId) -> impl Iterator<Item = &Process> {
        self.processes.iter().filter(move |p| p.role == Role::Worker && p.generation == generation)
    }

    pub fn nobody_lives(&self) -> bool {
        !self.processes.iter().any(Process::may_live)
    }
}

impl From<&Snapshot> for Look {
    fn from(snapshot: &Snapshot) -> Look {
        let ago = |age: Duration| snapshot.boot_ns.saturating_sub(super::clock::nanoseconds(age));
        Look {
            generations: snapshot
                .generations
                .iter()
                .map(|g| Generation {
                    id: g.id,
                    phase: g.phase,
                    cause: g.cause,
                    master: g.master,
                    master_alive: g.master_alive,
                    begun_ns: ago(g.age),
                    expected: g.expected,
                })
                .collect(),
            processes: snapshot
                .processes
                .iter()
                .map(|p| Process {
                    pid: p.pid,
                    role: p.role,
                    generation: p.generation,
                    worker_id: p.worker_id,
                    state: p.state,
                    liveness: p.liveness,
                    age: p.age,
                    in_state_for: p.in_state_for,
                    heartbeat_age: p.heartbeat_age,
                })
                .collect(),
            holder: snapshot.holder.as_ref().map(|h| (h.pid, h.held_for)),
        }
    }
}
