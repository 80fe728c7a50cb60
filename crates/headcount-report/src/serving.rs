//! Whether a node serves: the one rule for `headcount wait`, the agent, and the cluster.

use headcount::{GenerationStatus, Phase, ProcessStatus, Role, Snapshot, State};

/// The newest generation of a node that was not abandoned, with its workers.
#[derive(Clone, Debug)]
pub struct Newest<'a> {
    /// The generation.
    pub generation: &'a GenerationStatus,
    /// Its workers, with those that are gone and not settled yet.
    pub workers: Vec<&'a ProcessStatus>,
}

impl<'a> Newest<'a> {
    /// That of this node, if it has one.
    #[must_use]
    pub fn of(snapshot: &'a Snapshot) -> Option<Newest<'a>> {
        let there = snapshot.generations.iter().filter(|g| g.phase != Phase::Abandoned);
        let generation = there.max_by_key(|g| g.id)?;
        let all = snapshot.processes.iter();
        let workers = all.filter(|p| p.role == Role::Worker && p.generation == generation.id).collect();
        Some(Newest { generation, workers })
    }

    /// How many of its workers are in this state.
    #[must_use]
    pub fn count(&self, state: State) -> u32 {
        let count = self.workers.iter().filter(|p| p.state == state).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Whether as many workers serve as it should have. If the server does not say how many that is: one at least, and none of
    /// those that are there is still starting.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let serving = self.count(State::Serving);
        match self.generation.expected {
            Some(expected) => serving >= expected,
            None => serving >= 1 && self.count(State::Starting) == 0,
        }
    }

    /// Whether the node serves with it: all its workers do, and its master is alive for certain.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.generation.phase == Phase::Committed
            && self.generation.master_alive == Some(true)
            && self.is_complete()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(expected: Option<u32>, workers: &[State]) -> Snapshot {
        let mut snapshot = Snapshot::new("x");
        let mut generation = GenerationStatus::new(3, Phase::Committed);
        (generation.expected, generation.master_alive) = (expected, Some(true));
        snapshot.generations.push(generation);
        for (&state, pid) in workers.iter().zip(2..) {
            let mut worker = ProcessStatus::new(Role::Worker, pid, state);
            worker.generation = 3;
            snapshot.processes.push(worker);
        }
        snapshot
    }

    fn serves(snapshot: &Snapshot) -> bool {
        Newest::of(snapshot).is_some_and(|newest| newest.serves())
    }

    #[test]
    fn a_node_serves_with_all_its_workers_and_not_with_fewer() {
        use State::{Died, Draining, Leaving, Serving, Stalled, Starting, Unknown};
        assert!(serves(&node(Some(2), &[Serving, Serving])));
        assert!(serves(&node(Some(1), &[Serving, Starting])), "there may be more than it should have");
        assert!(serves(&node(Some(0), &[])), "a server without workers");
        for other in [Starting, Stalled, Draining, Leaving, Died, Unknown] {
            assert!(!serves(&node(Some(2), &[Serving, other])), "{other:?}");
        }
    }

    #[test]
    fn without_a_number_all_that_have_come_must_be_through_their_start() {
        use State::{Died, Serving, Starting};
        assert!(serves(&node(None, &[Serving, Serving, Died])));
        assert!(!serves(&node(None, &[Serving, Starting])));
        assert!(!serves(&node(None, &[])));
    }

    #[test]
    fn its_master_must_be_alive_for_certain() {
        for (alive, is) in [(Some(true), true), (Some(false), false), (None, false)] {
            let mut snapshot = node(Some(1), &[State::Serving]);
            snapshot.generations[0].master_alive = alive;
            assert_eq!(serves(&snapshot), is, "{alive:?}");
        }
    }

    #[test]
    fn the_newest_generation_counts_unless_it_was_abandoned() {
        let mut snapshot = node(Some(1), &[State::Serving]);
        for (phase, is) in [(Phase::Announced, false), (Phase::Abandoned, true), (Phase::Committed, false)] {
            snapshot.generations.truncate(1);
            snapshot.generations.push(GenerationStatus::new(4, phase));
            assert_eq!(serves(&snapshot), is, "{phase:?}");
        }
        assert!(Newest::of(&Snapshot::new("x")).is_none());
    }
}
