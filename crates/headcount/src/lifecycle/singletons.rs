//! Who leads, who does what is to be done once, and whose the locks were that the dead have held.

use std::cmp::Reverse;

use super::act::cause_of_end;
use super::{Act, Change, Facts, Intent, MOST_TRIES, Mark, Progress, SlotFacts, SlotRef};
use crate::coded::coded;
use crate::event::{Cause, Event, GenerationId, Kind, Role};
use crate::sys::identity::{Identity, Liveness};

coded! {
    /// What there is one of.
    #[non_exhaustive]
    SingletonKind {
        /// A role that at most one worker has.
        Role = 1, "role";
        /// Something that is to be done once.
        Once = 2, "once";
        /// A lock that has a name.
        Lock = 3, "lock";
    }
}

coded! {
    /// How it is with a role, a once or a lock.
    #[non_exhaustive]
    SingletonState {
        /// Nobody has the role or the lock.
        Free = 1, "free";
        /// Somebody has it.
        Held = 2, "held";
        /// The leader has been asked to give the role up.
        Asked = 3, "asked";
        /// The leader has given the role up, and that is not reported yet.
        GivenUp = 4, "given_up";
        /// A process is at it.
        Running = 5, "running";
        /// It is still, or again, to be done.
        Open = 6, "open";
        /// It was done.
        Done = 7, "done";
        /// It was tried as often as allowed, in vain.
        Failed = 8, "failed";
    }
}

/// What the registry says of a role, a once or a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(crate) struct SingletonFacts {
    pub(crate) index: u32,
    pub(crate) kind: SingletonKind,
    pub(crate) state: SingletonState,
    pub(crate) name: String,
    /// See the record.
    pub(crate) word: u64,
    pub(crate) token: u64,
    pub(crate) broken_from: u64,
    pub(crate) last_dead: u64,
    pub(crate) owner: Option<SlotRef>,
    pub(crate) owner_pid: u32,
    pub(crate) owner_worker_id: Option<u32>,
    pub(crate) attempts: u32,
    pub(crate) cause: Cause,
    pub(crate) wait_status: Option<i32>,
    pub(crate) since_ns: u64,
    /// The scope of a once, or where its leader is.
    pub(crate) generation: GenerationId,
    pub(crate) asked_ns: u64,
    pub(crate) number: u32,
    pub(crate) next_state: Option<SingletonState>,
    /// The event that goes with `next_state`, if it stands in the journal.
    pub(crate) seq: u64,
}

/// The next thing to do about a role, a once or a lock, by its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SingletonStep {
    /// The process that reported a change of it died before it made the change.
    Complete(u32),
    /// Nobody needs the record any more.
    Free(u32),
    Lose(u32, Cause),
    Ask(u32),
    Elect(u32, u32),
    /// Who ran it is gone.
    Interrupt(u32),
    Fail(u32),
    /// Who had held it is gone.
    Abandon(u32, u64),
}

impl Facts {
    pub(crate) fn next_of_singletons(&self) -> Option<SingletonStep> {
        self.singletons.iter().find_map(|x| match x.kind {
            _ if x.seq != 0 => Some(SingletonStep::Complete(x.index)),
            SingletonKind::Role => self.next_of_role(x),
            SingletonKind::Once => self.next_of_once(x),
            SingletonKind::Lock => self.next_of_lock(x),
        })
    }

    pub(crate) fn next_about_singletons(&self) -> Option<Act> {
        self.settle_singleton(self.next_of_singletons()?)
    }

    fn next_of_role(&self, x: &SingletonFacts) -> Option<SingletonStep> {
        if x.state == SingletonState::Free {
            let stands = |s: &SlotFacts| s.stands_for(x.number) && s.liveness != Liveness::Gone;
            return match self.best_leader(x.number) {
                Some(best) => Some(SingletonStep::Elect(x.index, best.index)),
                None if self.slots.iter().any(stands) => None,
                None => Some(SingletonStep::Free(x.index)),
            };
        }
        let lost = |cause| Some(SingletonStep::Lose(x.index, cause));
        let Some(leader) = self.owner_of(x) else { return lost(Cause::Unknown) };
        if leader.liveness == Liveness::Gone {
            // Its end is told first.
            let has_exited = leader.exited_seq != 0;
            let cause = if has_exited { Cause::Exit } else { cause_of_end(leader.wait_status) };
            return lost(cause).filter(|_| leader.is_told());
        }
        if !leader.stands_for(x.number) {
            return lost(Cause::Resigned);
        }
        // No event tells that a visitor hangs.
        let hangs = |s: &SlotFacts| {
            s.role == Role::Visitor
                && self.may_judge()
                && s.progress(self.now, self.stall_after) == Progress::Overdue
        };
        if leader.is_reported_stalled() || hangs(leader) {
            return lost(Cause::Overdue);
        }
        let why = self.why_give_up(leader, x.number);
        match x.state {
            SingletonState::GivenUp => lost(why.unwrap_or(Cause::Resigned)),
            SingletonState::Held => why.map(|_| SingletonStep::Ask(x.index)),
            // Whoever does not answer for so long counts as one that hangs.
            _ if self.now.saturating_sub(x.asked_ns) > self.stall_after => {
                lost(why.unwrap_or(Cause::Overdue))
            }
            _ => None,
        }
    }

    /// Why this leader is to give the role up, if it is: it is on its way out, or a newer generation serves.
    fn why_give_up(&self, leader: &SlotFacts, number: u32) -> Option<Cause> {
        if matches!(leader.intent, Intent::Draining | Intent::Leaving) {
            return Some(self.going(leader.generation));
        }
        let newer = self.best_leader(number).is_some_and(|best| best.generation > leader.generation);
        newer.then_some(Cause::Superseded)
    }

    /// The one to lead: of the newest generation that serves, before visitors, who are of none. Of these the one who decides,
    /// since it needs not be woken; else the first.
    pub(super) fn best_leader(&self, number: u32) -> Option<&SlotFacts> {
        let may_lead = |s: &&SlotFacts| {
            (s.role == Role::Worker && s.started_seq != 0 || s.role == Role::Visitor)
                && s.stands_for(number)
                && s.liveness == Liveness::Alive
                && s.intent == Intent::Serving
                // Its loop has turned.
                && s.heartbeat_ns > s.intent_since_ns
                && s.progress(self.now, self.stall_after) == Progress::Current
                && !s.is_reported_stalled()
        };
        let key = |s: &&SlotFacts| (s.generation, self.own.contains(&s.index), Reverse(s.index));
        let best = self.slots.iter().filter(may_lead).max_by_key(key)?;
        if !self.is_stopping(best.generation) {
            return Some(best);
        }
        // Whose master was told to stop is told next.
        let all = self.generations.iter().map(|g| g.id);
        let stopping: Vec<GenerationId> = all.filter(|&id| self.is_stopping(id)).collect();
        self.slots.iter().filter(may_lead).filter(|s| !stopping.contains(&s.generation)).max_by_key(key)
    }

    fn next_of_once(&self, x: &SingletonFacts) -> Option<SingletonStep> {
        match x.state {
            SingletonState::Running => {
                let is_over = self.owner_of(x).is_none_or(|s| s.liveness == Liveness::Gone && s.is_told());
                is_over.then_some(SingletonStep::Interrupt(x.index))
            }
            SingletonState::Open if x.attempts >= MOST_TRIES => Some(SingletonStep::Fail(x.index)),
            _ => {
                let is_over = x.generation != 0 && self.generation(x.generation).is_none();
                is_over.then_some(SingletonStep::Free(x.index))
            }
        }
    }

    fn next_of_lock(&self, x: &SingletonFacts) -> Option<SingletonStep> {
        let slot = |word: u64| self.slots.iter().find(move |s| word != 0 && s.identity.to_word() == word);
        let is_told = |s: &SlotFacts| s.liveness == Liveness::Gone && s.is_told();
        // Somebody waited for it and asked the kernel himself.
        if x.broken_from != 0 && slot(x.broken_from).is_none_or(is_told) {
            return Some(SingletonStep::Abandon(x.index, x.broken_from));
        }
        slot(x.word).is_some_and(is_told).then_some(SingletonStep::Abandon(x.index, x.word))
    }

    /// Whether a process still has a role or a lock, or a lock is still to be reported to have been taken from it.
    pub(super) fn has_something(&self, slot: &SlotFacts) -> bool {
        let (at, word) = (slot.at(), slot.identity.to_word());
        self.singletons.iter().any(|x| match x.kind {
            SingletonKind::Lock => x.word == word || x.broken_from == word,
            SingletonKind::Role | SingletonKind::Once => {
                matches!(
                    x.state,
                    SingletonState::Held
                        | SingletonState::Asked
                        | SingletonState::GivenUp
                        | SingletonState::Running
                ) && x.owner == Some(at)
            }
        })
    }

    /// When leaders who were asked to give their role up lose it.
    pub(crate) fn answer_deadlines(&self) -> impl Iterator<Item = u64> {
        let asked = self.singletons.iter().filter(|x| x.state == SingletonState::Asked);
        asked.map(|x| x.asked_ns.saturating_add(self.stall_after).saturating_add(1))
    }

    /// The dead one whose lock it was. Its end may stand in the journal or not.
    fn dead_holder(&self, x: &SingletonFacts) -> Option<u64> {
        let word = if x.broken_from != 0 { x.broken_from } else { x.word };
        let lives = |s: &SlotFacts| s.identity.to_word() == word && s.liveness != Liveness::Gone;
        (x.kind == SingletonKind::Lock && word != 0 && !self.slots.iter().any(lives)).then_some(word)
    }

    fn owner_of(&self, x: &SingletonFacts) -> Option<&SlotFacts> {
        let owner = x.owner?;
        self.slots.iter().find(|s| s.at() == owner)
    }

    pub(crate) fn singleton(&self, index: u32) -> Option<&SingletonFacts> {
        self.singletons.iter().find(|x| x.index == index)
    }

    /// What the process in this slot still has when it leaves, one after the other.
    pub(super) fn let_go(&self, slot: &SlotFacts) -> Option<Act> {
        let (at, word) = (slot.at(), slot.identity.to_word());
        // A lock is the process's, which may be in another generation as well, and goes on there.
        let goes_on = |s: &SlotFacts| {
            s.at() != at && s.identity.to_word() == word && s.role != Role::Master && s.exited_seq == 0
        };
        let stays = self.slots.iter().any(goes_on);
        let step = self.singletons.iter().find_map(|x| match x.kind {
            _ if x.seq != 0 => Some(SingletonStep::Complete(x.index)),
            SingletonKind::Lock if x.word == word && !stays => Some(SingletonStep::Abandon(x.index, word)),
            SingletonKind::Role if x.state != SingletonState::Free && x.owner == Some(at) => {
                let cause = match slot.role {
                    Role::Visitor => Cause::Resigned,
                    _ => self.going(slot.generation),
                };
                Some(SingletonStep::Lose(x.index, cause))
            }
            SingletonKind::Once if x.state == SingletonState::Running && x.owner == Some(at) => {
                Some(SingletonStep::Interrupt(x.index))
            }
            _ => None,
        });
        self.settle_singleton(step?)
    }

    pub(super) fn settle_singleton(&self, step: SingletonStep) -> Option<Act> {
        Some(match step {
            SingletonStep::Complete(index) => {
                let x = self.singleton(index)?;
                let unlock = self.dead_holder(x).map(|word| Change::Unlock(index, word));
                Act::silent([Change::Turn(index)].into_iter().chain(unlock).collect()).call()
            }
            SingletonStep::Free(index) => Act::silent(vec![Change::FreeSingleton(index)]),
            SingletonStep::Ask(index) => Act::silent(vec![Change::Ask(index)]).call(),
            SingletonStep::Lose(index, cause) => {
                let x = self.singleton(index)?;
                let status = self.owner_of(x).and_then(|s| s.wait_status);
                let mut event = x.event(Kind::LeaderLost, cause);
                if matches!(cause, Cause::Signal | Cause::Exit) {
                    event.set_end(status);
                }
                x.becomes(SingletonState::Free, event).before(Change::End(index, cause, status))
            }
            SingletonStep::Elect(index, slot) => {
                let x = self.singleton(index)?;
                let (leader, token) = (self.slot(slot)?, self.next_token);
                let mut event = x.event(Kind::LeaderElected, x.cause);
                (event.pid, event.worker_id) = (leader.pid(), leader.worker_id);
                (event.generation, event.token) = (leader.generation, token);
                x.becomes(SingletonState::Held, event).before(Change::Nominate {
                    singleton: index,
                    slot,
                    token,
                })
            }
            SingletonStep::Interrupt(index) => {
                let x = self.singleton(index)?;
                let owner = self.owner_of(x);
                let cause = owner.map_or(Cause::Unknown, SlotFacts::cause_of_leaving);
                self.open_again(x, cause, owner.and_then(|s| s.wait_status))
            }
            SingletonStep::Fail(index) => {
                let x = self.singleton(index)?;
                let mut event = x.event(Kind::OnceFailed, x.cause);
                event.set_end(x.wait_status);
                x.becomes(SingletonState::Failed, event)
            }
            SingletonStep::Abandon(index, word) if self.singleton(index)?.last_dead == word => {
                // Somebody took it from him meanwhile, and noted that late. It is reported.
                Act::silent(vec![Change::Unlock(index, word)])
            }
            SingletonStep::Abandon(index, word) => {
                let x = self.singleton(index)?;
                let holder = self.slots.iter().find(|s| s.identity.to_word() == word);
                let mut event = x.event(Kind::LockAbandoned, Cause::Unknown);
                event.pid = Identity::from_word(word).pid;
                if let Some(s) = holder {
                    (event.worker_id, event.generation) = (s.worker_id, s.generation);
                    event.set_end(s.wait_status);
                    event.cause = s.cause_of_leaving();
                }
                x.becomes(SingletonState::Free, event).after(Change::Unlock(index, word))
            }
        })
    }

    /// The process that runs it said that it has failed.
    pub(crate) fn failed(&self, index: u32) -> Option<Act> {
        Some(self.open_again(self.singleton(index)?, Cause::Failed, None))
    }

    /// An attempt ended without success: the next one may try.
    fn open_again(&self, x: &SingletonFacts, cause: Cause, status: Option<i32>) -> Act {
        let changes = [Change::End(x.index, cause, status), Change::Next(x.index, SingletonState::Open)];
        Act::silent([&changes[..], &[Change::Turn(x.index)]].concat()).call()
    }
}

impl SlotFacts {
    pub(super) fn stands_for(&self, number: u32) -> bool {
        self.stands_for.checked_shr(number).is_some_and(|bits| bits & 1 == 1)
    }

    /// Of one that is gone, or is about to leave: why.
    fn cause_of_leaving(&self) -> Cause {
        match cause_of_end(self.wait_status) {
            Cause::Unknown if self.liveness != Liveness::Gone || self.exited_seq != 0 => Cause::Exit,
            cause => cause,
        }
    }

    /// Its end stands in the journal, or is not to.
    fn is_told(&self) -> bool {
        self.died_seq != 0 || self.exited_seq != 0 || self.role == Role::Visitor
    }
}

impl SingletonFacts {
    fn event(&self, kind: Kind, cause: Cause) -> Event {
        let mut event = Event::new(kind, cause);
        event.name = Some(self.name.clone());
        event.generation = self.generation;
        (event.pid, event.worker_id) = (self.owner_pid, self.owner_worker_id);
        match self.kind {
            SingletonKind::Once => event.attempts = self.attempts,
            SingletonKind::Role | SingletonKind::Lock => event.token = self.token,
        }
        event
    }

    /// A change of state that is reported.
    fn becomes(&self, state: SingletonState, event: Event) -> Act {
        Act::report(event, Some(Mark::Singleton(self.index)))
            .before(Change::Next(self.index, state))
            .after(Change::Turn(self.index))
            .call()
    }

    /// It was done.
    pub(crate) fn done(&self) -> Act {
        self.becomes(SingletonState::Done, self.event(Kind::OnceDone, Cause::Unknown))
    }
}
