//! How the run before this one ended, found out and told at a start.

use crate::engine::node_lock::Hold;
use crate::engine::transitions::{about, about_generation, announce};
use crate::event::{Cause, Kind, PreviousRun, Role};
use crate::lifecycle::{GenerationFacts, Liveness, Phase};
use crate::sys::atomic::Ordering::Relaxed;

impl Hold {
    /// At a start: how the run before this one ended, by what it has left in the table.
    pub(crate) fn look_at_previous_run(&self) -> PreviousRun {
        let facts = self.facts();
        let left = || facts.generations.iter().filter(|g| facts.master_alive(g) == Some(false));
        // A master that died as it started had found out, and has told nobody; and had perhaps begun to
        // clear away what it found.
        let untold = left().filter(|g| !g.start_delivered).max_by_key(|g| g.id);
        if let Some(found) = untold.and_then(|g| self.previous_run(g)) {
            return found;
        }
        let newest = left().filter(|g| g.phase == Phase::Committed && g.ended_seq == 0).map(|g| g.id).max();
        let workers = facts
            .slots
            .iter()
            .filter(|s| s.role == Role::Worker && s.exited_seq == 0 && left().any(|g| g.id == s.generation));
        let runs = self.node.inner.store.region.header().runs.load(Relaxed);
        match newest {
            Some(generation) => PreviousRun::Unclean {
                generation,
                workers: u32::try_from(workers.count()).unwrap_or(u32::MAX),
            },
            None if runs == 0 => PreviousRun::None,
            None => PreviousRun::Clean,
        }
    }

    /// At a start: what is left of a run that nobody ended, is ended now.
    pub(crate) fn clear_previous_run(&self) {
        let facts = self.facts();
        let left: Vec<_> =
            facts.generations.iter().filter(|g| facts.master_alive(g) == Some(false)).collect();
        for s in facts.slots.iter().filter(|s| {
            s.role == Role::Worker
                && s.liveness == Liveness::Gone
                && left.iter().any(|g| g.id == s.generation)
        }) {
            let Ok(slot) = self.node.inner.slot(s.index) else { continue };
            if s.exited_seq == 0 && s.died_seq == 0 && s.started_seq != 0 {
                announce(self, &slot.died_seq, about(s, Kind::WorkerDied, Cause::Unclean));
            }
            self.node.free_slot(s.index);
        }
        let facts = self.facts();
        for g in left {
            if facts.slots.iter().any(|s| s.role == Role::Worker && s.generation == g.id) {
                // Orphans serve on.
                continue;
            }
            let Ok(record) = self.generation_at(g.index) else { continue };
            if g.started_seq != 0 && g.ended_seq == 0 && g.abandoned_seq == 0 {
                let (seq, kind) = match g.phase {
                    Phase::Committed => (&record.ended_seq, Kind::GenerationEnded),
                    _ => (&record.abandoned_seq, Kind::GenerationAbandoned),
                };
                announce(self, seq, about_generation(g, kind, Cause::Unclean));
            }
            self.free_generation(g.index);
        }
    }

    pub(crate) fn previous_run(&self, generation: &GenerationFacts) -> Option<PreviousRun> {
        let record = self.node.generation_record(generation.id)?;
        match record.previous_run.load(Relaxed) {
            1 => Some(PreviousRun::None),
            2 => Some(PreviousRun::Clean),
            3 => Some(PreviousRun::Unclean {
                generation: record.previous_generation.load(Relaxed),
                workers: record.previous_workers.load(Relaxed),
            }),
            _ => None,
        }
    }
}
