//! From a step to what it takes: which records change how, which event is reported, which callback runs.
//!
//! Whole decisions: the engine carries them out in the order in which they stand here, and decides nothing itself.

use super::{
    Facts, GenerationFacts, Intent, MOST_TRIES, Scope, SingletonState, SlotFacts, State, Step, coarse,
};
use crate::event::{Cause, Event, GenerationId, Kind, Role};

/// What is left to do while the node lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(crate) enum Stage {
    /// Settle what is open, until nothing is.
    Settle(Scope),
    /// Put a generation into the table that is not there (any more).
    Revive(GenerationId),
    /// A worker of it is there, with this number.
    Commit(GenerationId, Option<u32>),
    StartGeneration(GenerationId),
    StartProcess(u32),
    Drain(u32),
    /// The process in this slot holds nothing any more.
    LetGo(u32),
    Exit(u32),
    /// The master's own slot, last of all.
    ExitMaster(u32),
    /// Nobody is left: the registry needs less room.
    Shrink,
}

/// A change of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(crate) enum Change {
    FreeSlot(u32),
    FreeGeneration(u32),
    Intent(u32, Intent),
    /// At work from now on: a long start callback is no stall.
    Serving(u32),
    /// A worker died at work, or left alone, at that time, and is to be replaced: see [`coarse`].
    LostAtWork(u32, u32),
    /// One more worker has joined, with this number; and whether it has all of them now.
    Joined {
        generation: u32,
        number: Option<u32>,
        is_complete: bool,
    },
    StartDelivered(u32),
    /// What died in callbacks so far has nothing to do with the next one.
    ForgetTries(u32),
    /// One more process has died in the callback about it.
    SlotTries(u32),
    GenerationTries(u32),
    /// The callback about this event is to be run again, whoever does it: its subject lives on, and no record waits.
    Redeliver(u64),
    RedeliverTries,
    Redelivered,
    FreeSingleton(u32),
    /// What the state is to be with the event that follows.
    Next(u32, SingletonState),
    /// And now it is.
    Turn(u32),
    /// This slot is to lead, under this token.
    Nominate {
        singleton: u32,
        slot: u32,
        token: u64,
    },
    /// Its leader is asked to give it up.
    Ask(u32),
    /// How the tenure or the attempt ended, as a wait status if there is one.
    End(u32, Cause, Option<i32>),
    /// The lock is taken from this holder, who is gone.
    Unlock(u32, u64),
}

/// The record in which an event's number is noted, so that it is reported once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(crate) enum Mark {
    Started(u32),
    Exited(u32),
    Died(u32),
    Stalled(u32),
    Recovered(u32),
    GenerationStarted(u32),
    Ended(u32),
    Abandoned(u32),
    Singleton(u32),
}

/// An event that is to be written into the journal; its counts are those after `before` and with the mark.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) event: Event,
    pub(crate) mark: Option<Mark>,
    /// Should the process die before the callback has run, another one runs it.
    pub(crate) redeliver: bool,
}

/// What an act is about.
#[derive(Clone, Debug)]
pub(crate) enum Subject {
    /// Nothing that anybody needs to hear of.
    Nothing,
    /// A new event.
    New(Box<Report>),
    /// One that stands in the journal, under this number; and what can be said of it if it was overwritten there.
    Known(u64, Option<Box<Event>>),
}

/// One whole decision.
#[derive(Clone, Debug)]
pub(crate) struct Act {
    pub(crate) before: Vec<Change>,
    pub(crate) subject: Subject,
    /// Whether its callback is run.
    pub(crate) deliver: bool,
    /// How many died in it.
    pub(crate) tries: u32,
    /// After the callback.
    pub(crate) after: Vec<Change>,
    /// Whether the others had better look.
    pub(crate) ring: bool,
    /// Whether those who stand for roles, or wait for a once, had better look.
    pub(crate) call: bool,
    /// Whether its stage has nothing more.
    pub(crate) is_last: bool,
}

impl Act {
    pub(super) fn silent(changes: Vec<Change>) -> Act {
        Act {
            before: changes,
            subject: Subject::Nothing,
            deliver: false,
            tries: 0,
            after: Vec::new(),
            ring: false,
            call: false,
            is_last: false,
        }
    }

    pub(super) fn report(event: Event, mark: Option<Mark>) -> Act {
        let subject = Subject::New(Box::new(Report { event, mark, redeliver: false }));
        Act { subject, ..Act::silent(Vec::new()) }
    }

    fn known(seq: u64, fallback: Option<Event>) -> Act {
        Act { subject: Subject::Known(seq, fallback.map(Box::new)), ..Act::silent(Vec::new()) }
    }

    pub(super) fn before(mut self, change: Change) -> Act {
        self.before.push(change);
        self
    }

    /// A worker of this generation is gone that its master replaces.
    fn before_lost(self, facts: &Facts, generation: GenerationId) -> Act {
        match facts.generation(generation) {
            Some(g) => self.before(Change::LostAtWork(g.index, coarse(facts.now).max(1))),
            None => self,
        }
    }

    pub(super) fn after(mut self, change: Change) -> Act {
        self.after.push(change);
        self
    }

    fn delivered(mut self, tries: u32) -> Act {
        let kind = match &self.subject {
            Subject::New(report) => Some(report.event.kind),
            Subject::Known(..) | Subject::Nothing => None,
        };
        self.tries = tries;
        self.deliver = tries < MOST_TRIES && kind.is_none_or(Kind::has_callback);
        self
    }

    pub(super) fn call(mut self) -> Act {
        self.call = true;
        self
    }

    fn ring(mut self) -> Act {
        self.ring = true;
        self
    }

    fn last(mut self) -> Act {
        self.is_last = true;
        self
    }
}

impl Facts {
    /// What a stage takes next; `None`: nothing any more.
    pub(crate) fn act(&self, stage: Stage) -> Option<Act> {
        match stage {
            Stage::Settle(scope) => self.settle(self.next_step(scope)?),
            // The engine's: it needs a free record.
            Stage::Revive(_) | Stage::Shrink => None,
            Stage::Commit(id, number) => {
                let generation = self.generation(id)?.index;
                let is_complete = self.is_complete(id);
                Some(Act::silent(vec![Change::Joined { generation, number, is_complete }]).last())
            }
            Stage::StartGeneration(id) => self.start_generation(self.generation(id)?),
            Stage::StartProcess(index) => {
                let slot = self.slot(index)?;
                let kind = if slot.role == Role::Worker { Kind::WorkerStarted } else { Kind::HelperStarted };
                let act = Act::report(about(slot, kind, slot.cause), Some(Mark::Started(index)));
                Some(act.delivered(0).after(Change::Serving(index)).ring().last())
            }
            Stage::Drain(index) => {
                let slot = self.slot(index)?;
                let event = about(slot, Kind::WorkerDraining, self.going(slot.generation));
                // If it is the sentinel, somebody else had better be: so it rings.
                let act = Act::report(event, None).before(Change::Intent(index, Intent::Draining));
                Some(act.delivered(0).ring().last())
            }
            Stage::LetGo(index) => self.let_go(self.slot(index)?),
            Stage::Exit(index) => {
                let slot = self.slot(index)?;
                if slot.role == Role::Visitor {
                    return Some(Act::silent(vec![Change::FreeSlot(index)]).last());
                }
                let kind = if slot.role == Role::Worker { Kind::WorkerExited } else { Kind::HelperExited };
                let cause = self.going(slot.generation);
                let mut act = Act::report(about(slot, kind, cause), Some(Mark::Exited(index)))
                    .before(Change::Intent(index, Intent::Leaving));
                if slot.role == Role::Worker && cause == Cause::Recycled {
                    act = act.before_lost(self, slot.generation);
                }
                Some(act.delivered(0).after(Change::FreeSlot(index)).last())
            }
            Stage::ExitMaster(index) => {
                let slot = self.slot(index)?;
                let event = about(slot, Kind::MasterExited, self.going(u64::MAX));
                let act = Act::report(event, Some(Mark::Exited(index)));
                Some(act.delivered(0).after(Change::FreeSlot(index)).last())
            }
        }
    }

    fn start_generation(&self, g: &GenerationFacts) -> Option<Act> {
        if g.start_delivered {
            return None;
        }
        let mut event = about_generation(g, Kind::GenerationStarted, g.cause);
        event.previous_run = g.previous_run;
        let act = match g.started_seq {
            0 => Act::report(event, Some(Mark::GenerationStarted(g.index))),
            // Its first runner died in the callback.
            seq => Act::known(seq, Some(self.as_of_now(event, seq))),
        };
        Some(act.delivered(g.tries).after(Change::StartDelivered(g.index)).last())
    }

    fn settle(&self, step: Step) -> Option<Act> {
        Some(match step {
            Step::Singleton(step) => return self.settle_singleton(step),
            Step::Redeliver(seq) => {
                Act::known(seq, None).delivered(self.redeliver_tries).after(Change::Redelivered)
            }
            Step::Release(slot) => Act::silent(vec![Change::FreeSlot(slot)]),
            Step::ReportDied(slot) => {
                let facts = self.slot(slot)?;
                let act = Act::report(self.death(facts, Kind::WorkerDied), Some(Mark::Died(slot)));
                match facts.intent {
                    Intent::Starting | Intent::Serving => act.before_lost(self, facts.generation),
                    _ => act,
                }
            }
            Step::ReportMasterLost(slot) => {
                Act::report(self.master_lost(self.slot(slot)?), Some(Mark::Died(slot)))
            }
            Step::DeliverDied(slot) | Step::DeliverMasterLost(slot) => {
                let facts = self.slot(slot)?;
                let event = match facts.role {
                    Role::Master => self.master_lost(facts),
                    _ => self.death(facts, Kind::WorkerDied),
                };
                let act = Act::known(facts.died_seq, Some(self.as_of_now(event, facts.died_seq)));
                act.delivered(facts.tries).after(Change::FreeSlot(slot))
            }
            Step::ReportHelperExited(slot) => {
                Act::report(self.death(self.slot(slot)?, Kind::HelperExited), Some(Mark::Exited(slot)))
            }
            Step::ReleaseGeneration(generation) => Act::silent(vec![Change::FreeGeneration(generation)]),
            Step::ReportAbandoned(generation) => {
                let g = self.generation_at(generation)?;
                let event = about_generation(g, Kind::GenerationAbandoned, Cause::NoWorkers);
                Act::report(event, Some(Mark::Abandoned(generation))).before(Change::ForgetTries(generation))
            }
            Step::ReportEnded(generation) => {
                let g = self.generation_at(generation)?;
                let event = about_generation(g, Kind::GenerationEnded, self.going(g.id));
                Act::report(event, Some(Mark::Ended(generation))).before(Change::ForgetTries(generation))
            }
            Step::DeliverAbandoned(generation) => {
                let g = self.generation_at(generation)?;
                self.deliver_generation(g, g.abandoned_seq, Kind::GenerationAbandoned)
            }
            Step::DeliverEnded(generation) => {
                let g = self.generation_at(generation)?;
                self.deliver_generation(g, g.ended_seq, Kind::GenerationEnded)
            }
            Step::DeliverStarted(generation) => {
                Act { is_last: false, ..self.start_generation(self.generation_at(generation)?)? }
            }
            Step::ReportStalled(slot) => {
                self.report_live(slot, Kind::WorkerStalled, Cause::Overdue, Mark::Stalled(slot))?
            }
            Step::ReportRecovered(slot) => {
                self.report_live(slot, Kind::WorkerRecovered, Cause::Unknown, Mark::Recovered(slot))?
            }
        })
    }

    fn deliver_generation(&self, g: &GenerationFacts, seq: u64, kind: Kind) -> Act {
        let event = self.as_of_now(about_generation(g, kind, Cause::Unknown), seq);
        Act::known(seq, Some(event)).delivered(g.tries).after(Change::FreeGeneration(g.index))
    }

    /// About one that lives on.
    fn report_live(&self, slot: u32, kind: Kind, cause: Cause, mark: Mark) -> Option<Act> {
        let event = about(self.slot(slot)?, kind, cause);
        let report = Report { event, mark: Some(mark), redeliver: true };
        Some(Act { subject: Subject::New(Box::new(report)), ..Act::silent(Vec::new()) })
    }

    /// An event that was overwritten in the journal: what can still be said of it.
    fn as_of_now(&self, mut event: Event, seq: u64) -> Event {
        event.seq = seq;
        event.counts = self.counts(event.generation);
        event
    }

    /// The counts are those of the newest generation that it leaves behind.
    fn master_lost(&self, master: &SlotFacts) -> Event {
        let mut event = self.death(master, Kind::MasterLost);
        event.generation = self.generations_of(master).map(|g| g.id).max().unwrap_or(0);
        event
    }

    /// How a process ended, from its wait status, and what it had been about.
    pub(super) fn death(&self, slot: &SlotFacts, kind: Kind) -> Event {
        let mut event = self.about_gone(slot, kind, Cause::Unknown);
        event.cause = cause_of_end(slot.wait_status);
        event.set_end(slot.wait_status);
        event
    }

    /// About a process that is gone: with how long it had been there, and in its state.
    pub(super) fn about_gone(&self, slot: &SlotFacts, kind: Kind, cause: Cause) -> Event {
        let mut event = about(slot, kind, cause);
        event.joined_ns = slot.joined_ns;
        let (state, since) = match slot.intent {
            // Since nobody knows what it does.
            _ if slot.is_reported_stalled() => (State::Stalled, slot.overdue_at(self.stall_after)),
            Intent::Starting => (State::Starting, slot.joined_ns),
            // As it was shown while it lived: see `Facts::state_with`.
            Intent::Serving if slot.role == Role::Worker && slot.heartbeat_ns <= slot.intent_since_ns => {
                (State::Starting, slot.joined_ns)
            }
            Intent::Serving | Intent::Listening => (State::Serving, slot.intent_since_ns),
            Intent::Draining => (State::Draining, slot.intent_since_ns),
            Intent::Leaving => (State::Leaving, slot.intent_since_ns),
        };
        (event.state, event.state_since_ns) = (Some(state), since);
        if slot.is_of_another_boot() {
            // Of what is on the clock of that boot, only the date can be told.
            (event.joined_ns, event.state_since_ns, event.heartbeat_ns) = (0, 0, 0);
            event.time_ns = slot.last_sign_wall_ns();
        }
        event
    }

    /// Why a process goes: another generation has taken over, a newer one or, after an upgrade that was rolled back,
    /// an older one that serves; or it alone was told to; or else the node stops.
    pub(super) fn going(&self, generation: GenerationId) -> Cause {
        let counts = self.counts(generation);
        let rolled_back = counts.prev.is_some_and(|workers| workers > counts.prev_draining);
        match counts.next.is_some() || rolled_back {
            true => Cause::Superseded,
            false if self.is_kept(generation) => Cause::Recycled,
            false => Cause::Stop,
        }
    }

    /// What follows for the records if a process died inside of the callback about this event.
    pub(crate) fn died_in_callback(&self, about: &Event) -> Vec<Change> {
        let seq = about.seq;
        match about.kind {
            Kind::WorkerDied | Kind::MasterLost => {
                let slots = self.slots.iter().filter(|s| s.died_seq == seq);
                slots.map(|s| Change::SlotTries(s.index)).collect()
            }
            Kind::GenerationStarted | Kind::GenerationEnded | Kind::GenerationAbandoned => {
                let of = |g: &&GenerationFacts| [g.started_seq, g.ended_seq, g.abandoned_seq].contains(&seq);
                self.generations.iter().filter(of).map(|g| Change::GenerationTries(g.index)).collect()
            }
            Kind::WorkerStalled | Kind::WorkerRecovered => {
                vec![Change::RedeliverTries, Change::Redeliver(seq)]
            }
            // About the dead process itself: there is nobody left for whom it could be run again.
            _ => Vec::new(),
        }
    }

    /// How often the callback about this event has killed, as far as the records know.
    pub(crate) fn tries_of(&self, about: &Event) -> u32 {
        let seq = about.seq;
        let slot = self.slots.iter().find(|s| s.died_seq == seq).map(|s| s.tries);
        let of = |g: &&GenerationFacts| [g.started_seq, g.ended_seq, g.abandoned_seq].contains(&seq);
        let generation = self.generations.iter().find(of).map(|g| g.tries);
        match about.kind {
            Kind::WorkerStalled | Kind::WorkerRecovered => self.redeliver_tries,
            _ => slot.or(generation).unwrap_or(0),
        }
    }
}

/// Why a process ended, by its wait status.
pub(super) fn cause_of_end(wait_status: Option<i32>) -> Cause {
    match wait_status {
        None => Cause::Unknown,
        Some(status) if status & 0x7f == 0 => Cause::Exit,
        Some(_) => Cause::Signal,
    }
}

impl Event {
    /// How a process ended.
    pub(super) fn set_end(&mut self, wait_status: Option<i32>) {
        let Some(status) = wait_status else { return };
        match status & 0x7f {
            0 => self.exit_code = Some(status >> 8 & 0xff),
            signal => self.signal = Some(signal),
        }
    }
}

pub(super) fn about(slot: &SlotFacts, kind: Kind, cause: Cause) -> Event {
    let mut event = Event::new(kind, cause);
    event.generation = slot.generation;
    event.pid = slot.pid();
    event.role = Some(slot.role);
    event.worker_id = slot.worker_id;
    event.heartbeat_ns = slot.heartbeat_ns;
    event
}

pub(super) fn about_generation(generation: &GenerationFacts, kind: Kind, cause: Cause) -> Event {
    let mut event = Event::new(kind, cause);
    event.generation = generation.id;
    event.pid = generation.master_pid;
    event.role = Some(Role::Master);
    event
}
