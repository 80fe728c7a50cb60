//! What is known at one moment, and what can be read off it.

use std::collections::BTreeMap;

use super::{Intent, Phase, Progress, REPLACEMENT_GRACE_NS, SingletonFacts, State, coarse};
use crate::event::{Cause, Counts, GenerationId, PreviousRun, Role};
use crate::sys::identity::{Identity, Liveness, OF_ANOTHER_BOOT};

/// A slot that a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(crate) struct SlotRef {
    pub(crate) index: u32,
    /// The slot's version while it is held by this claim.
    pub(crate) version: u64,
}

/// What a slot says, and what the kernel says of it. A `*_seq` is the number of the event that reported
/// the fact, 0 while it is not reported.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(crate) struct SlotFacts {
    pub(crate) index: u32,
    pub(crate) version: u64,
    pub(crate) role: Role,
    pub(crate) generation: GenerationId,
    pub(crate) identity: Identity,
    /// The lock file in which it has proved that it is a member.
    pub(crate) lock_tag: u32,
    pub(crate) worker_id: Option<u32>,
    pub(crate) cause: Cause,
    pub(crate) joined_ns: u64,
    pub(crate) joined_wall_ns: u64,
    pub(crate) intent: Intent,
    pub(crate) intent_since_ns: u64,
    pub(crate) heartbeat_ns: u64,
    /// For how long the machine has been suspended since: nobody could beat then.
    pub(crate) slept_ns: u64,
    /// How many processes have died in the callback about it.
    pub(crate) tries: u32,
    pub(crate) started_seq: u64,
    pub(crate) exited_seq: u64,
    pub(crate) died_seq: u64,
    pub(crate) stalled_seq: u64,
    pub(crate) recovered_seq: u64,
    pub(crate) wait_status: Option<i32>,
    /// The roles that it stands for, by their numbers.
    pub(crate) stands_for: u64,
    /// The lock that it waits for, by its index.
    pub(crate) waits_for: Option<u32>,
    pub(crate) liveness: Liveness,
}

impl SlotFacts {
    pub(crate) fn at(&self) -> SlotRef {
        SlotRef { index: self.index, version: self.version }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.identity.pid
    }

    pub(crate) fn progress(&self, now: u64, stall_after: u64) -> Progress {
        let watched = match self.intent {
            Intent::Serving => true,
            // Some servers cannot beat while they drain. One that has beaten since can.
            Intent::Draining => self.heartbeat_ns > self.intent_since_ns,
            Intent::Starting | Intent::Leaving | Intent::Listening => false,
        };
        // A visitor that only holds a lock has nothing to beat for.
        let beats = self.role == Role::Worker || self.role == Role::Visitor && self.stands_for != 0;
        if !watched || !beats {
            Progress::Unwatched
        } else if now > self.overdue_at(stall_after) {
            Progress::Overdue
        } else {
            Progress::Current
        }
    }

    /// When its heartbeat is as old as it may be.
    pub(super) fn overdue_at(&self, stall_after: u64) -> u64 {
        self.heartbeat_ns.saturating_add(self.slept_ns).saturating_add(stall_after)
    }

    /// Its times are those of another clock: it was found after a reboot, which nobody survives.
    pub(crate) fn is_of_another_boot(&self) -> bool {
        self.identity.birth == OF_ANOTHER_BOOT
    }

    /// When it gave its last sign of life, on the wall clock.
    pub(super) fn last_sign_wall_ns(&self) -> u64 {
        self.joined_wall_ns.saturating_add(self.heartbeat_ns.saturating_sub(self.joined_ns))
    }

    /// If it is gone: whether it is to be reported, and nobody has told yet how it ended.
    pub(crate) fn needs_cause(&self) -> bool {
        self.exited_seq == 0 && self.died_seq == 0 && self.wait_status.is_none()
    }

    pub(super) fn is_reported_stalled(&self) -> bool {
        self.stalled_seq > self.recovered_seq
    }

    /// Fit to watch the others: at work and making progress.
    pub(crate) fn is_fit(&self, now: u64, stall_after: u64) -> bool {
        self.role == Role::Worker
            && self.liveness == Liveness::Alive
            && matches!(self.intent, Intent::Serving | Intent::Starting)
            && self.progress(now, stall_after) != Progress::Overdue
    }

    /// The next moment at which it could be found to be stalled.
    pub(crate) fn stall_deadline(&self, now: u64, stall_after: u64) -> Option<u64> {
        match self.progress(now, stall_after) {
            Progress::Current => Some(self.overdue_at(stall_after).saturating_add(1)),
            Progress::Overdue | Progress::Unwatched => None,
        }
    }
}

/// What the registry says of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(crate) struct GenerationFacts {
    pub(crate) index: u32,
    pub(crate) id: GenerationId,
    pub(crate) phase: Phase,
    pub(crate) cause: Cause,
    pub(crate) master_slot: u32,
    pub(crate) master_version: u64,
    pub(crate) master_pid: u32,
    pub(crate) begun_ns: u64,
    pub(crate) begun_wall_ns: u64,
    pub(crate) expected: u32,
    pub(crate) joined: u32,
    /// Bit i: worker number i has joined.
    pub(crate) came: u64,
    /// When the last worker died, or left alone, that is to be replaced, as [`coarse`] gives it; 0 when all are there.
    pub(crate) lost_at_work: u32,
    pub(crate) started_seq: u64,
    pub(crate) ended_seq: u64,
    pub(crate) abandoned_seq: u64,
    pub(crate) start_delivered: bool,
    /// How many processes have died in the callback about it.
    pub(crate) tries: u32,
    /// How the run before it ended: told with its start.
    pub(crate) previous_run: Option<PreviousRun>,
    /// A process waits for the node lock to join it. Only asked for where no worker lives.
    pub(crate) joining: bool,
    /// Its master has no child that could still join it. Only asked for where it makes a difference.
    pub(crate) nobody_comes: bool,
}

impl GenerationFacts {
    /// All workers that it was to have have joined at some time. By their numbers where these are known: a
    /// replacement that joins early must not stand for one that has not come yet.
    pub(super) fn all_came(&self) -> bool {
        match self.expected {
            // Counted, and not compared with the numbers 0 to n-1: a server may number from 1.
            1..=64 if self.came != 0 => self.came.count_ones() >= self.expected,
            expected => self.joined > 0 && self.joined >= expected,
        }
    }

    /// It lost a worker a moment ago: its master may have forked a replacement that has not joined yet.
    pub(super) fn awaits_replacement(&self, now: u64) -> bool {
        self.lost_at_work != 0 && coarse(now).wrapping_sub(self.lost_at_work) <= coarse(REPLACEMENT_GRACE_NS)
    }

    /// A worker with this number can only be a replacement.
    pub(crate) fn is_replacement(&self, worker_id: Option<u32>) -> bool {
        match worker_id {
            Some(id) if id < 64 => self.came >> id & 1 == 1,
            _ => self.expected > 0 && self.joined >= self.expected,
        }
    }

    /// Counts as a neighbour of others: it is certain, and has not ended.
    pub(super) fn is_there(&self) -> bool {
        self.phase == Phase::Committed && self.ended_seq == 0
    }
}

/// Everything at one moment.
#[derive(Clone, Debug, Default)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(crate) struct Facts {
    pub(crate) slots: Vec<SlotFacts>,
    pub(crate) generations: Vec<GenerationFacts>,
    pub(crate) singletons: Vec<SingletonFacts>,
    /// The token that the next leader gets.
    pub(crate) next_token: u64,
    pub(crate) now: u64,
    pub(crate) stall_after: u64,
    /// The number of an event whose callback must be run again, 0 if none.
    pub(crate) redeliver_seq: u64,
    pub(crate) redeliver_tries: u32,
    /// Counts as the events tell them: who is stalled leaves them with that event and comes back with the other one.
    /// Otherwise as the heartbeats are at this instant.
    pub(crate) as_reported: bool,
    /// The slots of the process that looks.
    pub(crate) own: Vec<u32>,
    /// Nobody is called stalled: the others may all have been stopped, and have had no time to beat since.
    pub(crate) is_patient: bool,
}

impl Facts {
    /// A generation that begins in the future was written there by somebody, and would never be late.
    pub(crate) fn forget_the_future(&mut self) {
        let now = self.now;
        self.generations.iter_mut().filter(|g| g.begun_ns > now).for_each(|g| g.begun_ns = 0);
    }

    pub(crate) fn is_counted(&self, slot: &SlotFacts) -> bool {
        slot.role == Role::Worker
            && slot.liveness == Liveness::Alive
            && slot.started_seq != 0
            && match self.as_reported {
                true => !slot.is_reported_stalled(),
                false => slot.progress(self.now, self.stall_after) != Progress::Overdue,
            }
    }

    /// Whoever judges must have beaten himself: if he has not, it was he who slept, and nobody had a chance to beat.
    pub(super) fn may_judge(&self) -> bool {
        if self.is_patient {
            return false;
        }
        let own = self.slots.iter().filter(|s| self.own.contains(&s.index));
        own.map(|s| s.progress(self.now, self.stall_after)).all(|p| p != Progress::Overdue)
    }

    /// Whether a generation has all the workers that it is to have, those that have just joined with them: nobody
    /// waits for a replacement any more.
    pub(crate) fn is_complete(&self, id: GenerationId) -> bool {
        let there = self.slots.iter().filter(|s| {
            s.role == Role::Worker && s.generation == id && s.liveness == Liveness::Alive && s.exited_seq == 0
        });
        self.generation(id).is_some_and(|g| there.count() >= g.expected.max(1) as usize)
    }

    /// Whether it makes a difference that somebody is about to join this generation: nobody of it lives.
    pub(crate) fn needs_joiner(&self, id: GenerationId) -> bool {
        !self
            .slots
            .iter()
            .any(|s| s.role == Role::Worker && s.generation == id && s.liveness != Liveness::Gone)
    }

    /// Whether a generation has no worker any more, reported or not.
    pub(crate) fn is_empty(&self, id: GenerationId) -> bool {
        !self.slots.iter().any(|s| s.role == Role::Worker && s.generation == id)
    }

    /// (workers, of which draining) of one generation.
    fn tally(&self, id: GenerationId) -> (u32, u32) {
        let counted = self.slots.iter().filter(|s| s.generation == id && self.is_counted(s));
        counted
            .fold((0, 0), |(all, draining), s| (all + 1, draining + u32::from(s.intent == Intent::Draining)))
    }

    pub(crate) fn counts(&self, id: GenerationId) -> Counts {
        let there = self.generations.iter().filter(|g| g.is_there()).map(|g| g.id);
        let prev = there.clone().filter(|&g| g < id).max().map(|g| self.tally(g));
        let next = there.filter(|&g| g > id).min().map(|g| self.tally(g));
        counts(prev, self.tally(id), next, self.total())
    }

    pub(crate) fn total(&self) -> u32 {
        let counted = self.slots.iter().filter(|s| self.is_counted(s)).count();
        u32::try_from(counted).unwrap_or(u32::MAX)
    }

    pub(crate) fn slot(&self, index: u32) -> Option<&SlotFacts> {
        self.slots.iter().find(|s| s.index == index)
    }

    pub(crate) fn generation_at(&self, index: u32) -> Option<&GenerationFacts> {
        self.generations.iter().find(|g| g.index == index)
    }

    pub(crate) fn generation(&self, id: GenerationId) -> Option<&GenerationFacts> {
        self.generations.iter().find(|g| g.id == id)
    }

    /// Whether a generation's master serves on as far as it knows itself: whoever leaves then was told by somebody else, and
    /// is replaced.
    pub(super) fn is_kept(&self, id: GenerationId) -> bool {
        self.intent_of_master(id) == Some(Intent::Listening)
    }

    /// Whether a generation's master was told to stop: it tells its workers next.
    pub(super) fn is_stopping(&self, id: GenerationId) -> bool {
        self.intent_of_master(id) == Some(Intent::Leaving)
    }

    /// What the living master of a generation is about.
    fn intent_of_master(&self, id: GenerationId) -> Option<Intent> {
        let g = self.generation(id)?;
        let of = (g.master_slot, g.master_version);
        let is_it = |s: &&SlotFacts| (s.index, s.version) == of && s.liveness == Liveness::Alive;
        self.slots.iter().find(is_it).map(|s| s.intent)
    }

    /// Whether the master of a generation is alive; `None` if the reader cannot tell.
    pub(crate) fn master_alive(&self, generation: &GenerationFacts) -> Option<bool> {
        let of = (generation.master_slot, generation.master_version);
        let slot = self.slots.iter().find(|s| s.role == Role::Master && (s.index, s.version) == of);
        is_alive(slot.map(|s| s.liveness))
    }

    #[cfg(test)]
    pub(crate) fn state(&self, slot: &SlotFacts) -> State {
        self.state_with(slot, || {
            self.generation(slot.generation).is_some_and(|g| self.master_alive(g) == Some(false))
        })
    }

    fn state_with(&self, slot: &SlotFacts, is_master_lost: impl FnOnce() -> bool) -> State {
        match slot.liveness {
            Liveness::Unknown(_) => State::Unknown,
            Liveness::Gone if slot.exited_seq != 0 => State::Exited,
            Liveness::Gone => State::Died,
            Liveness::Alive => match (slot.progress(self.now, self.stall_after), slot.intent) {
                (Progress::Overdue, _) => State::Stalled,
                (_, Intent::Starting) => State::Starting,
                // Many a worker dies before its loop turns for the first time, and must not be called serving till then.
                (Progress::Current, Intent::Serving) if slot.heartbeat_ns <= slot.intent_since_ns => {
                    State::Starting
                }
                (_, Intent::Draining) => State::Draining,
                (_, Intent::Leaving) => State::Leaving,
                (_, Intent::Serving | Intent::Listening) => {
                    let orphaned = slot.role == Role::Worker && is_master_lost();
                    if orphaned { State::Orphaned } else { State::Serving }
                }
            },
        }
    }

    /// No other live worker than `me` is there to run callbacks.
    pub(crate) fn nobody_else(&self, me: Option<u32>) -> bool {
        !self
            .slots
            .iter()
            .any(|s| s.role == Role::Worker && s.liveness != Liveness::Gone && Some(s.index) != me)
    }
}

/// The answers about every slot and generation at once. Asked one by one, each of them looks through all the others: in
/// a registry that somebody has filled up to its largest size, that takes minutes.
pub(crate) struct Overview<'a> {
    facts: &'a Facts,
    tallies: BTreeMap<GenerationId, (u32, u32)>,
    /// The neighbours, oldest first.
    there: Vec<GenerationId>,
    total: u32,
    /// By slot and claim.
    masters: BTreeMap<(u32, u64), Liveness>,
    /// Whether the master of a generation is gone.
    orphaned: BTreeMap<GenerationId, bool>,
}

impl<'a> Overview<'a> {
    pub(crate) fn of(facts: &'a Facts) -> Overview<'a> {
        let (mut tallies, mut total) = (BTreeMap::new(), 0u32);
        for slot in facts.slots.iter().filter(|s| facts.is_counted(s)) {
            let (all, draining) = tallies.entry(slot.generation).or_insert((0, 0));
            *all += 1;
            *draining += u32::from(slot.intent == Intent::Draining);
            total += 1;
        }
        let mut there: Vec<_> = facts.generations.iter().filter(|g| g.is_there()).map(|g| g.id).collect();
        there.sort_unstable();
        let masters = facts.slots.iter().filter(|s| s.role == Role::Master);
        let masters = masters.map(|s| ((s.index, s.version), s.liveness)).collect();
        let mut overview = Overview { facts, tallies, there, total, masters, orphaned: BTreeMap::new() };
        // Of two with one number, which only a spoiled registry has, the first counts.
        let all = facts.generations.iter().rev();
        overview.orphaned = all.map(|g| (g.id, overview.master_alive(g) == Some(false))).collect();
        overview
    }

    /// As [`Facts::counts`].
    pub(crate) fn counts(&self, id: GenerationId) -> Counts {
        let tally = |id: &GenerationId| self.tallies.get(id).copied().unwrap_or((0, 0));
        let prev = self.there[..self.there.partition_point(|&g| g < id)].last().map(tally);
        let next = self.there[self.there.partition_point(|&g| g <= id)..].first().map(tally);
        counts(prev, tally(&id), next, self.total)
    }

    /// As [`Facts::total`].
    pub(crate) fn total(&self) -> u32 {
        self.total
    }

    /// As [`Facts::master_alive`].
    pub(crate) fn master_alive(&self, generation: &GenerationFacts) -> Option<bool> {
        is_alive(self.masters.get(&(generation.master_slot, generation.master_version)).copied())
    }

    /// As [`Facts::state`].
    pub(crate) fn state(&self, slot: &SlotFacts) -> State {
        self.facts.state_with(slot, || self.orphaned.get(&slot.generation) == Some(&true))
    }
}

/// Whether the master in a slot is alive; it is not in one that is no longer there.
fn is_alive(liveness: Option<Liveness>) -> Option<bool> {
    match liveness {
        Some(Liveness::Alive) => Some(true),
        Some(Liveness::Unknown(_)) => None,
        Some(Liveness::Gone) | None => Some(false),
    }
}

fn counts(prev: Option<(u32, u32)>, mine: (u32, u32), next: Option<(u32, u32)>, total: u32) -> Counts {
    Counts {
        prev: prev.map(|p| p.0),
        mine: mine.0,
        next: next.map(|n| n.0),
        total,
        draining: mine.1,
        prev_draining: prev.map_or(0, |p| p.1),
        next_draining: next.map_or(0, |n| n.1),
    }
}
