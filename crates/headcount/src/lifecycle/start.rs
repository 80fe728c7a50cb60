//! Decisions at a start: why a generation or a worker begins, how the run before ended, and what is cleared away of it.

use super::act::{Act, Change, Mark, about_generation};
use super::{Facts, GenerationFacts, Phase, SingletonFacts, SingletonKind, SingletonState, SlotFacts};
use crate::event::{Cause, GenerationId, Kind, PreviousRun, Role};
use crate::sys::identity::Liveness;

impl Facts {
    /// Why a master that has said nothing itself begins a generation. `upgrades`: it takes over from one that is not in this
    /// registry. `own`: its slot.
    pub(crate) fn begin_cause(&self, has_begun_before: bool, upgrades: bool, own: Option<u32>) -> Cause {
        let is_another = |s: &&SlotFacts| s.role == Role::Master && Some(s.index) != own;
        if has_begun_before {
            Cause::Reload
        } else if upgrades || self.slots.iter().filter(is_another).any(|s| s.liveness == Liveness::Alive) {
            Cause::Upgrade
        } else {
            Cause::Start
        }
    }

    /// The generation that a process can join. One that was reported to have ended, or that the master could not
    /// announce, is begun (again) by its first worker.
    pub(crate) fn joinable(&self, id: GenerationId) -> Option<&GenerationFacts> {
        self.generation(id).filter(|g| g.ended_seq == 0 && g.abandoned_seq == 0)
    }

    /// Why a process joins.
    pub(crate) fn join_cause(
        &self,
        id: GenerationId,
        role: Role,
        worker_id: Option<u32>,
        respawned: bool,
    ) -> Cause {
        let known = self.joinable(id);
        let replaces = respawned || known.is_some_and(|g| g.is_replacement(worker_id));
        match known {
            _ if role == Role::Worker && replaces => Cause::Respawn,
            Some(g) => g.cause,
            None => Cause::Resume,
        }
    }

    /// What a run has left that nobody ended.
    fn left(&self) -> impl Iterator<Item = &GenerationFacts> {
        self.generations.iter().filter(|g| self.master_alive(g) == Some(false))
    }

    /// How the run before ended, by what it has left in the table. `runs`: how many there were.
    pub(crate) fn find_previous_run(&self, runs: u64) -> PreviousRun {
        // A master that died as it started had found out, and has told nobody; and had perhaps begun to
        // clear away what it found.
        let untold = self.left().filter(|g| !g.start_delivered && g.previous_run.is_some());
        if let Some(found) = untold.max_by_key(|g| g.id).and_then(|g| g.previous_run) {
            return found;
        }
        let is_open = |g: &&GenerationFacts| g.phase == Phase::Committed && g.ended_seq == 0;
        let newest = self.left().filter(is_open).map(|g| g.id).max();
        let is_of_it = |s: &&SlotFacts| {
            s.role == Role::Worker
                && s.exited_seq == 0
                && s.died_seq == 0
                && self.left().any(|g| g.id == s.generation)
        };
        match newest {
            Some(generation) => {
                let workers = u32::try_from(self.slots.iter().filter(is_of_it).count()).unwrap_or(u32::MAX);
                PreviousRun::Unclean { generation, workers }
            }
            None if runs == 0 => PreviousRun::None,
            None => PreviousRun::Clean,
        }
    }

    /// The next thing to clear away of a run that nobody ended: it is reported, and no callback runs.
    pub(crate) fn next_leftover(&self) -> Option<Act> {
        let is_left = |id: GenerationId| self.left().any(|g| g.id == id);
        let dead = self
            .slots
            .iter()
            .find(|s| s.role == Role::Worker && s.liveness == Liveness::Gone && is_left(s.generation));
        if let Some(s) = dead {
            let untold = s.exited_seq == 0 && s.died_seq == 0 && s.started_seq != 0;
            let event = self.about_gone(s, Kind::WorkerDied, Cause::Unclean);
            return Some(Act::cleared(
                untold.then_some((event, Mark::Died(s.index))),
                Change::FreeSlot(s.index),
            ));
        }
        let has_workers =
            |g: &&GenerationFacts| self.slots.iter().any(|s| s.role == Role::Worker && s.generation == g.id);
        // Orphans serve on.
        let Some(g) = self.left().find(|g| !has_workers(g)) else { return self.next_lost_master() };
        let untold = g.started_seq != 0 && g.ended_seq == 0 && g.abandoned_seq == 0;
        let (kind, mark) = match g.phase {
            Phase::Committed => (Kind::GenerationEnded, Mark::Ended(g.index)),
            _ => (Kind::GenerationAbandoned, Mark::Abandoned(g.index)),
        };
        let event = about_generation(g, kind, Cause::Unclean);
        Some(Act::cleared(untold.then_some((event, mark)), Change::FreeGeneration(g.index)))
    }

    /// The next role, once or lock that a new run does not take over: what is once for the node is so for one run of it. Orphans of the
    /// run before and visitors go on with what they have, so nobody else gets that meanwhile.
    pub(crate) fn next_left_singleton(&self) -> Option<Act> {
        let x = self.singletons.iter().find(|x| !self.is_in_use(x))?;
        Some(Act::silent(vec![Change::FreeSingleton(x.index)]))
    }

    pub(super) fn is_in_use(&self, x: &SingletonFacts) -> bool {
        let mut living = self.slots.iter().filter(|s| s.liveness != Liveness::Gone);
        match x.kind {
            SingletonKind::Role => living.any(|s| s.stands_for(x.number)),
            SingletonKind::Once if x.generation != 0 => self.generation(x.generation).is_some(),
            SingletonKind::Once => {
                x.state == SingletonState::Running && living.any(|s| Some(s.at()) == x.owner)
            }
            SingletonKind::Lock => living.any(|s| s.identity.to_word() == x.word),
        }
    }

    /// The next master whose loss was reported, and which has left nobody who could be told: its slot is freed.
    fn next_lost_master(&self) -> Option<Act> {
        let is_over = |s: &&SlotFacts| {
            s.role == Role::Master
                && s.liveness == Liveness::Gone
                && s.died_seq != 0
                && self.generations_of(s).next().is_none()
        };
        let master = self.slots.iter().find(is_over)?;
        Some(Act::silent(vec![Change::FreeSlot(master.index)]))
    }

    /// The next generation that nobody is in: it is freed, and nobody hears of it.
    pub(crate) fn next_empty(&self) -> Option<Act> {
        let g = self.generations.iter().find(|g| self.is_empty(g.id))?;
        Some(Act::silent(vec![Change::FreeGeneration(g.index)]))
    }

    /// The next worker to clear away whose death nobody lived long enough to report: the table is full of them.
    pub(crate) fn next_unreported(&self) -> Option<Act> {
        let dead = self.slots.iter().find(|s| s.role == Role::Worker && s.liveness == Liveness::Gone)?;
        let event = self.death(dead, Kind::WorkerDied);
        let untold = (dead.died_seq == 0).then_some((event, Mark::Died(dead.index)));
        Some(Act::cleared(untold, Change::FreeSlot(dead.index)))
    }
}

impl Act {
    fn cleared(report: Option<(crate::event::Event, Mark)>, change: Change) -> Act {
        match report {
            Some((event, mark)) => Act::report(event, Some(mark)).after(change),
            None => Act::silent(vec![change]),
        }
    }
}
