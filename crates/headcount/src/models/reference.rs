//! What must be reported, said a second time: from the processes as they are, and from what the journal has told so far. It
//! reads no record of the registry but to see that none is left.

use std::fmt::Write as _;

use super::node::{Entry, Life, Node, Process, SECOND};
use crate::event::{Cause, Counts, GenerationId, Kind, Role};
use crate::lifecycle::MOST_TRIES;

impl Node {
    fn told(&self, pid: u32, kind: Kind) -> usize {
        self.journal.iter().filter(|e| e.pid == pid && e.kind == kind).count()
    }

    fn told_of(&self, id: GenerationId, kind: Kind) -> usize {
        self.journal.iter().filter(|e| e.generation == id && e.kind == kind).count()
    }

    fn last_told(&self, pid: u32, kinds: &[Kind]) -> Option<&Entry> {
        self.journal.iter().rev().find(|e| e.pid == pid && kinds.contains(&e.kind))
    }

    pub(super) fn is_told_stalled(&self, pid: u32) -> bool {
        let last = self.last_told(pid, &[Kind::WorkerStalled, Kind::WorkerRecovered]);
        last.is_some_and(|e| e.kind == Kind::WorkerStalled)
    }

    /// It has started, as everybody was told, lives, has not left, and is not said to be stalled.
    fn counts(&self, p: &Process) -> bool {
        p.role == Role::Worker
            && p.is_alive()
            && self.told(p.pid, Kind::WorkerStarted) > 0
            && self.last_told(p.pid, &[Kind::WorkerExited]).is_none_or(|e| e.delivered == 0)
            && !self.is_told_stalled(p.pid)
    }

    fn drains(&self, p: &Process) -> bool {
        let last = self.last_told(p.pid, &[Kind::WorkerStarted, Kind::WorkerDraining, Kind::WorkerExited]);
        last.is_some_and(|e| e.kind == Kind::WorkerDraining)
    }

    pub(super) fn true_counts(&self, id: GenerationId) -> Counts {
        let of = |id: Option<GenerationId>| self.processes.iter().filter(move |p| Some(p.generation) == id);
        let all = |id| of(id).filter(|p| self.counts(p)).count() as u32;
        let draining = |id| of(id).filter(|p| self.counts(p) && self.drains(p)).count() as u32;
        let prev = self.there.iter().copied().filter(|g| *g < id).max();
        let next = self.there.iter().copied().filter(|g| *g > id).min();
        Counts {
            prev: prev.map(|_| all(prev)),
            mine: all(Some(id)),
            next: next.map(|_| all(next)),
            total: self.processes.iter().filter(|p| self.counts(p)).count() as u32,
            draining: draining(Some(id)),
            prev_draining: draining(prev),
            next_draining: draining(next),
        }
    }

    /// Why somebody who is told to go goes.
    fn true_cause_of_going(&self, id: GenerationId) -> Cause {
        let counts = self.true_counts(id);
        let master = self.begun.get(id as usize - 1).map(|(master, _)| self.process(*master));
        if counts.next.is_some() || counts.prev.is_some_and(|n| n > counts.prev_draining) {
            Cause::Superseded
        } else if master.is_some_and(|m| m.is_alive() && !m.is_told) {
            Cause::Recycled
        } else {
            Cause::Stop
        }
    }

    /// What is wrong with the newest event, which has just been written.
    pub(super) fn misreport(&self) -> Option<String> {
        let newest = self.journal.last().filter(|_| self.is_fresh)?;
        let mut wrong = String::new();
        let counts = self.true_counts(newest.generation);
        if newest.counts != counts {
            _ = write!(wrong, "it should count {counts:?}; ");
        }
        let lives =
            |p: &&Process| p.role == Role::Worker && p.generation == newest.generation && p.is_alive();
        match newest.kind {
            Kind::WorkerDied | Kind::MasterLost | Kind::HelperExited if !self.left(newest.pid) => {
                let dead = self.process(newest.pid);
                if dead.life != Life::Dead {
                    _ = write!(wrong, "it is {:?}; ", dead.life);
                }
                let (cause, end) = match dead.wait_status {
                    _ if newest.cause == Cause::Unclean => (Cause::Unclean, newest.end),
                    None => (Cause::Unknown, (None, None)),
                    Some(status) if status & 0x7f == 0 => (Cause::Exit, (None, Some(status >> 8))),
                    Some(status) => (Cause::Signal, (Some(status), None)),
                };
                if (newest.cause, newest.end) != (cause, end) {
                    _ = write!(wrong, "it ended by {cause} {end:?}; ");
                }
            }
            Kind::WorkerExited | Kind::WorkerDraining => {
                let cause = self.true_cause_of_going(newest.generation);
                if newest.cause != cause {
                    _ = write!(wrong, "the cause is {cause}; ");
                }
            }
            // One that was forked and waits in vain for its turn ends it all the same, and resumes it.
            Kind::GenerationEnded | Kind::GenerationAbandoned => {
                let is_in = |p: &&Process| {
                    lives(p)
                        && self.told(p.pid, Kind::WorkerStarted) > 0
                        && self.last_told(p.pid, &[Kind::WorkerExited]).is_none_or(|e| e.delivered == 0)
                };
                if let Some(p) = self.processes.iter().find(is_in) {
                    _ = write!(wrong, "process {} is in it; ", p.pid);
                }
            }
            _ => {}
        }
        (!wrong.is_empty()).then(|| format!("{wrong}{newest:?}"))
    }

    /// The process itself reports its leaving.
    fn left(&self, pid: u32) -> bool {
        self.process(pid).is_alive() && self.session.as_ref().is_some_and(|s| s.pid == pid)
    }

    /// What was told too often, or not in its order; whose record is gone though nobody was told.
    pub(super) fn fault(&self) -> Option<String> {
        for p in &self.processes {
            let ends = [
                Kind::WorkerExited,
                Kind::WorkerDied,
                Kind::HelperExited,
                Kind::MasterExited,
                Kind::MasterLost,
            ];
            let ends: usize = ends.iter().map(|&kind| self.told(p.pid, kind)).sum();
            let starts = self.told(p.pid, Kind::WorkerStarted) + self.told(p.pid, Kind::HelperStarted);
            if starts > 1 || ends > 1 || (p.role != Role::Master && ends > starts) {
                return Some(format!("{starts} starts and {ends} ends of {p:?}"));
            }
        }
        for id in 1..=self.last_generation {
            let of = |e: &&Entry| {
                e.generation == id
                    && matches!(
                        e.kind,
                        Kind::GenerationStarted | Kind::GenerationEnded | Kind::GenerationAbandoned
                    )
            };
            for (i, e) in self.journal.iter().filter(of).enumerate() {
                if (i % 2 == 0) != (e.kind == Kind::GenerationStarted) {
                    return Some(format!("generation {id}: the {i}th word of it is {}", e.kind));
                }
            }
        }
        self.journal.iter().find_map(|e| self.fault_of(e))
    }

    fn fault_of(&self, e: &Entry) -> Option<String> {
        if e.runners > MOST_TRIES {
            return Some(format!("{} died in the callback for {e:?}", e.runners));
        }
        let died = self.journal.iter().filter(|d| d.kind == Kind::CallbackDied && d.detail == e.seq).count();
        if died as u32 > e.runners {
            return Some(format!("callback_died {died} times for {e:?}"));
        }
        let is_silent = !e.is_about_others() || e.cause == Cause::Unclean || self.cleared.contains(&e.seq);
        if is_silent || e.delivered > 0 || e.killed >= MOST_TRIES {
            return None;
        }
        let has_record = match e.kind {
            Kind::WorkerStalled | Kind::WorkerRecovered => {
                self.redeliver.0 == e.seq || self.callback_seq == e.seq
            }
            Kind::GenerationStarted => {
                self.generations.iter().any(|g| g.started_seq == e.seq && !g.start_delivered)
            }
            Kind::GenerationEnded => self.generations.iter().any(|g| g.ended_seq == e.seq),
            Kind::GenerationAbandoned => self.generations.iter().any(|g| g.abandoned_seq == e.seq),
            _ => self.slots.iter().any(|s| s.died_seq == e.seq),
        };
        (!has_record).then(|| format!("nobody is told any more of {e:?}"))
    }

    /// Somebody of it lives who had come before its master died, or soon enough afterwards.
    fn has_orphans(&self, id: GenerationId, master: u32) -> bool {
        const SOON: u64 = 2 * SECOND;
        let begun = self.journal.iter().find(|e| e.generation == id && e.kind == Kind::GenerationStarted);
        let in_time = |e: &Entry| {
            e.at < self.process(master).ended_at || begun.is_some_and(|begun| e.at <= begun.at + SOON)
        };
        let alive = self.processes.iter().filter(|p| p.generation == id && p.is_alive());
        alive.filter_map(|p| self.last_told(p.pid, &[Kind::WorkerStarted])).any(in_time)
    }

    /// What is missing when all that could be done was done, by somebody who is alive.
    pub(super) fn omission(&self) -> Option<String> {
        for p in &self.processes {
            let kinds = match p.role {
                Role::Worker => [Kind::WorkerStarted, Kind::WorkerExited, Kind::WorkerDied],
                Role::Helper => [Kind::HelperStarted, Kind::HelperExited, Kind::HelperExited],
                Role::Master | Role::Visitor => continue,
            };
            let is_over = self.told(p.pid, kinds[1]) + self.told(p.pid, kinds[2]) > 0;
            let has_started = self.told(p.pid, kinds[0]) > 0;
            if has_started && !p.is_alive() && !is_over {
                return Some(format!("the end of {p:?}"));
            }
            if p.is_alive() && (!has_started || is_over) {
                return Some(format!("the start of {p:?}"));
            }
        }
        for id in 1..=self.last_generation {
            let (master, _) = self.begun[id as usize - 1];
            let lives =
                self.processes.iter().any(|p| p.role == Role::Worker && p.generation == id && p.is_alive());
            let is_superseded = self.there.iter().any(|o| *o > id && self.begun[*o as usize - 1].0 == master);
            let is_over = !lives && (is_superseded || !self.process(master).is_alive());
            let ends = self.told_of(id, Kind::GenerationEnded) + self.told_of(id, Kind::GenerationAbandoned);
            if is_over && ends < self.told_of(id, Kind::GenerationStarted) {
                return Some(format!("the end of generation {id}"));
            }
            // A generation that was said to have ended without its master needs no other word of him, even if somebody of it
            // comes late.
            let is_known =
                |e: &Entry| e.generation == id && matches!(e.cause, Cause::Unclean | Cause::Resume);
            let is_found = self.journal.iter().any(is_known);
            let is_lost = self.process(master).life == Life::Dead;
            if lives
                && is_lost
                && !is_found
                && self.has_orphans(id, master)
                && self.told(master, Kind::MasterLost) == 0
            {
                return Some(format!("the loss of the master of generation {id}"));
            }
        }
        if let Some(s) = self.slots.iter().find(|s| !self.process(s.identity.pid).is_alive()) {
            return Some(format!("the end of {:?}", self.process(s.identity.pid)));
        }
        let died: usize = self.journal.iter().filter(|e| e.kind == Kind::CallbackDied).count();
        let runners: u32 = self.journal.iter().map(|e| e.runners).sum();
        // The next holder tells.
        (died as u32 != runners && self.callback_seq == 0)
            .then(|| format!("{runners} died in callbacks, {died} were told"))
    }
}
