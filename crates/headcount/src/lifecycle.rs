//! The only place that decides. Pure: facts, the kernel's word on who is alive, and the time go in;
//! states, counts and the next thing to do come out. It reads no clock and touches no registry.

use crate::event::{Cause, Counts, GenerationId, Role};

/// The kernel's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Liveness {
    /// The process holds the lock on its slot.
    Alive,
    /// Nobody does.
    Gone,
    /// The reader may not ask, and the process table does not tell.
    Unknown,
}

/// What the heartbeat says. Never a proof of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Progress {
    /// Recent enough.
    Current,
    /// Older than `stall_after`.
    Overdue,
    /// Not asked for: the process starts, leaves, or drains without beating.
    Unwatched,
}

/// What a process says that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Intent {
    /// Joined, and its start callback has not ended.
    Starting,
    /// Takes work.
    Serving,
    /// Finishes its work, takes no new.
    Draining,
    /// Its exit callback runs.
    Leaving,
}

impl Intent {
    pub(crate) fn code(self) -> u32 {
        match self {
            Intent::Starting => 1,
            Intent::Serving => 2,
            Intent::Draining => 3,
            Intent::Leaving => 4,
        }
    }

    /// Garbage reads as serving, the intent that hides nothing.
    pub(crate) fn from_code(code: u32) -> Intent {
        match code {
            1 => Intent::Starting,
            3 => Intent::Draining,
            4 => Intent::Leaving,
            _ => Intent::Serving,
        }
    }
}

/// What is shown. Derived from the three axes at every look, and stored nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Its start callback runs.
    Starting,
    /// At work.
    Serving,
    /// Finishes its work, takes no new.
    Draining,
    /// Its exit callback runs.
    Leaving,
    /// Alive, with an overdue heartbeat.
    Stalled,
    /// Alive, and its master is gone.
    Orphaned,
    /// Gone after leaving properly, its slot not released yet.
    Exited,
    /// Gone without leaving, not reported or not released yet.
    Died,
    /// The reader cannot tell whether it is alive.
    Unknown,
}

impl State {
    /// The name used in C, Lua and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Serving => "serving",
            State::Draining => "draining",
            State::Leaving => "leaving",
            State::Stalled => "stalled",
            State::Orphaned => "orphaned",
            State::Exited => "exited",
            State::Died => "died",
            State::Unknown => "unknown",
        }
    }
}

/// How far a generation is. Only moves forward, but for a resumed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Its configuration was read; whether it gets workers is open.
    Announced,
    /// It has, or had, a worker, or its master went on to start them.
    Committed,
    /// It never got a worker, and never will.
    Abandoned,
}

impl Phase {
    pub(crate) fn code(self) -> u32 {
        match self {
            Phase::Announced => 1,
            Phase::Committed => 2,
            Phase::Abandoned => 3,
        }
    }

    pub(crate) fn from_code(code: u32) -> Option<Phase> {
        match code {
            1 => Some(Phase::Announced),
            2 => Some(Phase::Committed),
            3 => Some(Phase::Abandoned),
            _ => None,
        }
    }
}

/// What a slot says, and what the kernel says of it. A `*_seq` is the number of the event that reported
/// the fact, 0 while it is not reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotFacts {
    pub(crate) index: u32,
    pub(crate) version: u64,
    pub(crate) role: Role,
    pub(crate) generation: GenerationId,
    pub(crate) pid: u32,
    pub(crate) worker_id: Option<u32>,
    pub(crate) cause: Cause,
    pub(crate) start_time: u64,
    pub(crate) joined_ns: u64,
    pub(crate) joined_wall_ns: u64,
    pub(crate) intent: Intent,
    pub(crate) intent_since_ns: u64,
    pub(crate) heartbeat_ns: u64,
    pub(crate) retry: bool,
    pub(crate) started_seq: u64,
    pub(crate) exited_seq: u64,
    pub(crate) died_seq: u64,
    pub(crate) stalled_seq: u64,
    pub(crate) recovered_seq: u64,
    pub(crate) wait_status: Option<i32>,
    pub(crate) liveness: Liveness,
}

impl SlotFacts {
    pub(crate) fn progress(&self, now: u64, stall_after: u64) -> Progress {
        let watched = match self.intent {
            Intent::Serving => true,
            // Some servers cannot beat while they drain. One that has beaten since can.
            Intent::Draining => self.heartbeat_ns > self.intent_since_ns,
            Intent::Starting | Intent::Leaving => false,
        };
        if !watched || self.role != Role::Worker {
            Progress::Unwatched
        } else if now.saturating_sub(self.heartbeat_ns) > stall_after {
            Progress::Overdue
        } else {
            Progress::Current
        }
    }

    fn is_reported_stalled(&self) -> bool {
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
            Progress::Current => Some(self.heartbeat_ns.saturating_add(stall_after).saturating_add(1)),
            Progress::Overdue | Progress::Unwatched => None,
        }
    }
}

/// What the registry says of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// When the last worker died that was not told to go, as [`coarse`] gives it.
    pub(crate) died_at_work: u32,
    pub(crate) started_seq: u64,
    pub(crate) ended_seq: u64,
    pub(crate) abandoned_seq: u64,
    pub(crate) start_delivered: bool,
    pub(crate) retry: bool,
    /// A process waits for the node lock to join it. Only asked for where no worker is left.
    pub(crate) joining: bool,
}

impl GenerationFacts {
    /// All workers that it was to have have joined at some time. By their numbers where these are known: a
    /// replacement that joins early must not stand for one that has not come yet.
    fn all_came(&self) -> bool {
        match self.expected {
            // Counted, and not compared with the numbers 0 to n-1: a server may number from 1.
            1..=64 if self.came != 0 => self.came.count_ones() >= self.expected,
            expected => self.joined > 0 && self.joined >= expected,
        }
    }

    /// A worker died at work a moment ago: its master may have forked a replacement that has not joined yet.
    fn awaits_replacement(&self, now: u64) -> bool {
        self.died_at_work != 0 && coarse(now).wrapping_sub(self.died_at_work) <= coarse(REPLACEMENT_GRACE_NS)
    }

    /// A worker with this number can only be a replacement.
    pub(crate) fn is_replacement(&self, worker_id: Option<u32>) -> bool {
        match worker_id {
            Some(id) if id < 64 => self.came >> id & 1 == 1,
            _ => self.expected > 0 && self.joined >= self.expected,
        }
    }

    /// Counts as a neighbour of others: it is certain, and has not ended.
    fn is_there(&self) -> bool {
        self.phase == Phase::Committed && self.ended_seq == 0
    }
}

/// Everything at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) slots: Vec<SlotFacts>,
    pub(crate) generations: Vec<GenerationFacts>,
    pub(crate) now: u64,
    pub(crate) stall_after: u64,
    /// The number of an event whose callback must be run again, 0 if none.
    pub(crate) redeliver_seq: u64,
}

/// A generation that its master announced, and a master that then vanished: a server that goes into the
/// background does just that, so it gets this long to come back under its new pid.
const ADOPTION_GRACE_NS: u64 = 2_000_000_000;
/// Workers that were forked but have not joined yet get this long before their superseded generation
/// is declared to have ended without them.
const JOIN_GRACE_NS: u64 = 10_000_000_000;

/// How long a generation that others have taken over waits for the replacement of a worker that died at work.
const REPLACEMENT_GRACE_NS: u64 = 1_000_000_000;

/// A moment of the boot clock in 32 bits: about milliseconds, good for comparing what is near.
pub(crate) fn coarse(boot_ns: u64) -> u32 {
    (boot_ns >> 20) as u32
}

/// Which matters a process may settle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Free what has nothing to tell, and report nothing.
    Tidy,
    /// What concerns this generation, if I was its last worker.
    Generation(GenerationId),
    /// Everything.
    Everything,
    /// Everything, by a process that lived longest: whatever is still there has ended.
    LastWord,
}

/// The next thing to do, by whoever holds the node lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Run the callback of this event again.
    Redeliver(u64),
    /// A slot that has nothing to tell: free it.
    Release { slot: u32 },
    ReportDied { slot: u32 },
    DeliverDied { slot: u32 },
    ReportHelperExited { slot: u32 },
    ReportMasterLost { slot: u32 },
    DeliverMasterLost { slot: u32 },
    /// A generation whose start was never reported: free its record.
    ReleaseGeneration { generation: u32 },
    ReportAbandoned { generation: u32 },
    DeliverAbandoned { generation: u32 },
    ReportEnded { generation: u32 },
    DeliverEnded { generation: u32 },
    ReportStalled { slot: u32 },
    ReportRecovered { slot: u32 },
}

impl Facts {
    pub(crate) fn is_counted(&self, slot: &SlotFacts) -> bool {
        slot.role == Role::Worker
            && slot.liveness == Liveness::Alive
            && slot.started_seq != 0
            && slot.progress(self.now, self.stall_after) != Progress::Overdue
    }

    /// Whether a generation has no worker any more, reported or not.
    pub(crate) fn is_empty(&self, id: GenerationId) -> bool {
        !self.slots.iter().any(|s| s.role == Role::Worker && s.generation == id)
    }

    /// (workers, of which draining) of one generation.
    fn tally(&self, id: GenerationId) -> (u32, u32) {
        let counted = self.slots.iter().filter(|s| s.generation == id && self.is_counted(s));
        counted.fold((0, 0), |(all, draining), s| {
            (all + 1, draining + u32::from(s.intent == Intent::Draining))
        })
    }

    pub(crate) fn counts(&self, id: GenerationId) -> Counts {
        let there = self.generations.iter().filter(|g| g.is_there()).map(|g| g.id);
        let prev = there.clone().filter(|&g| g < id).max().map(|g| self.tally(g));
        let next = there.filter(|&g| g > id).min().map(|g| self.tally(g));
        let (mine, draining) = self.tally(id);
        Counts {
            prev: prev.map(|p| p.0),
            mine,
            next: next.map(|n| n.0),
            total: self.total(),
            draining,
            prev_draining: prev.map_or(0, |p| p.1),
            next_draining: next.map_or(0, |n| n.1),
        }
    }

    pub(crate) fn total(&self) -> u32 {
        let counted = self.slots.iter().filter(|s| self.is_counted(s)).count();
        u32::try_from(counted).unwrap_or(u32::MAX)
    }

    pub(crate) fn generation(&self, id: GenerationId) -> Option<&GenerationFacts> {
        self.generations.iter().find(|g| g.id == id)
    }

    /// Whether the master of a generation is alive; `None` if the reader cannot tell.
    pub(crate) fn master_alive(&self, generation: &GenerationFacts) -> Option<bool> {
        let slot = self
            .slots
            .iter()
            .find(|s| s.index == generation.master_slot && s.version == generation.master_version);
        match slot.map(|s| s.liveness) {
            Some(Liveness::Alive) => Some(true),
            Some(Liveness::Unknown) => None,
            Some(Liveness::Gone) | None => Some(false),
        }
    }

    pub(crate) fn state(&self, slot: &SlotFacts) -> State {
        match slot.liveness {
            Liveness::Unknown => State::Unknown,
            Liveness::Gone if slot.exited_seq != 0 => State::Exited,
            Liveness::Gone => State::Died,
            Liveness::Alive => match (slot.progress(self.now, self.stall_after), slot.intent) {
                (Progress::Overdue, _) => State::Stalled,
                (_, Intent::Starting) => State::Starting,
                (_, Intent::Draining) => State::Draining,
                (_, Intent::Leaving) => State::Leaving,
                (_, Intent::Serving) => {
                    let orphaned = slot.role == Role::Worker
                        && self.generation(slot.generation).is_some_and(|g| self.master_alive(g) == Some(false));
                    if orphaned { State::Orphaned } else { State::Serving }
                }
            },
        }
    }

    /// No other live worker than `me` is there to run callbacks.
    pub(crate) fn nobody_else(&self, me: Option<u32>) -> bool {
        !self.slots.iter().any(|s| {
            s.role == Role::Worker && s.liveness != Liveness::Gone && Some(s.index) != me
        })
    }

    /// The generation has no worker, and no more will come: somebody else has taken over, or its master
    /// is gone.
    fn has_ended(&self, g: &GenerationFacts, scope: Scope) -> bool {
        if !g.is_there() || !self.is_empty(g.id) {
            return false;
        }
        if scope == Scope::LastWord {
            return true;
        }
        if g.joining {
            // It will leave, or die, in its turn.
            return false;
        }
        let master_gone = self.master_alive(g) == Some(false);
        let superseded = self
            .generations
            .iter()
            .any(|n| n.id > g.id && n.is_there() && n.master_slot == g.master_slot && n.master_version == g.master_version);
        let taken_over = self.generations.iter().any(|n| n.id > g.id && n.is_there());
        if taken_over && !master_gone && g.awaits_replacement(self.now) {
            return false;
        }
        let all_came = g.all_came();
        if scope == Scope::Generation(g.id) {
            // Its last worker has just left, and it was told to: whoever is told to leave is told so
            // together with the others.
            return all_came;
        }
        let late = self.now.saturating_sub(g.begun_ns) > JOIN_GRACE_NS;
        (superseded || master_gone) && (all_came || late || (master_gone && g.joined > 0))
    }

    /// What must be done next, or nothing: what is over is freed, what is reported is delivered, what is new is
    /// reported. One report at a time, so that callbacks run in the order of the journal.
    pub(crate) fn next_step(&self, scope: Scope) -> Option<Step> {
        self.release().or_else(|| self.delivery(scope)).or_else(|| self.report(scope))
    }

    /// Whether this scope reports and delivers what concerns this generation.
    fn covers(&self, scope: Scope, generation: GenerationId) -> bool {
        match scope {
            Scope::Tidy => false,
            // As long as another worker of it lives, there is somebody with more time to do it.
            Scope::Generation(mine) => mine == generation && self.tally_alive(mine) == 0,
            Scope::Everything | Scope::LastWord => true,
        }
    }

    /// Without one that is just joining, which is the one who asks.
    fn tally_alive(&self, id: GenerationId) -> usize {
        let started = |s: &&SlotFacts| s.role == Role::Worker && s.generation == id && s.started_seq != 0;
        let alive = |s: &&SlotFacts| started(s) && s.liveness != Liveness::Gone;
        self.slots.iter().filter(alive).count()
    }

    fn gone(&self) -> impl Iterator<Item = &SlotFacts> {
        self.slots.iter().filter(|s| s.liveness == Liveness::Gone)
    }

    fn release(&self) -> Option<Step> {
        let over = |s: &&SlotFacts| match s.role {
            Role::Master => s.exited_seq != 0 || s.died_seq == 0 && self.master_gone(s) == Some(Step::Release { slot: s.index }),
            Role::Worker | Role::Helper => s.exited_seq != 0 || s.started_seq == 0,
        };
        self.gone().find(over).map(|s| Step::Release { slot: s.index })
    }

    fn delivery(&self, scope: Scope) -> Option<Step> {
        let again = Some((self.redeliver_seq, Step::Redeliver(self.redeliver_seq)))
            .filter(|_| self.redeliver_seq != 0 && matches!(scope, Scope::Everything | Scope::LastWord));
        let dead = self.gone().filter(|s| s.died_seq != 0 && self.covers(scope, s.generation)).map(|s| {
            let slot = s.index;
            let step = match s.role {
                Role::Master => Step::DeliverMasterLost { slot },
                Role::Worker | Role::Helper => Step::DeliverDied { slot },
            };
            (s.died_seq, step)
        });
        let over = self.generations.iter().filter(|g| self.covers(scope, g.id)).filter_map(|g| {
            let generation = g.index;
            match (g.abandoned_seq, g.ended_seq) {
                (0, 0) => None,
                (0, seq) => Some((seq, Step::DeliverEnded { generation })),
                (seq, _) => Some((seq, Step::DeliverAbandoned { generation })),
            }
        });
        again.into_iter().chain(dead).chain(over).min_by_key(|(seq, _)| *seq).map(|(_, step)| step)
    }

    /// Deaths first, then what follows from them.
    fn report(&self, scope: Scope) -> Option<Step> {
        for s in self.gone().filter(|s| s.died_seq == 0 && self.covers(scope, s.generation)) {
            let slot = s.index;
            match s.role {
                Role::Worker => return Some(Step::ReportDied { slot }),
                Role::Helper => return Some(Step::ReportHelperExited { slot }),
                Role::Master => {
                    if let Some(step) = self.master_gone(s) {
                        return Some(step);
                    }
                }
            }
        }
        for g in self.generations.iter().filter(|g| g.ended_seq == 0 && g.abandoned_seq == 0) {
            let generation = g.index;
            let late = self.master_alive(g) == Some(false) && self.now.saturating_sub(g.begun_ns) > ADOPTION_GRACE_NS;
            let vanished = g.phase == Phase::Announced && (late || scope == Scope::LastWord);
            let never_came = g.phase == Phase::Abandoned || vanished;
            let over = self.covers(scope, g.id) && (never_came || self.has_ended(g, scope));
            match over {
                false => {}
                true if g.started_seq == 0 => return Some(Step::ReleaseGeneration { generation }),
                true if never_came => return Some(Step::ReportAbandoned { generation }),
                true => return Some(Step::ReportEnded { generation }),
            }
        }
        if !matches!(scope, Scope::Everything | Scope::LastWord) {
            return None;
        }
        self.slots.iter().filter(|s| s.liveness == Liveness::Alive && s.started_seq != 0).find_map(|s| {
            let slot = s.index;
            let overdue = s.progress(self.now, self.stall_after) == Progress::Overdue;
            match (overdue, s.is_reported_stalled()) {
                (true, false) => Some(Step::ReportStalled { slot }),
                (false, true) => Some(Step::ReportRecovered { slot }),
                _ => None,
            }
        })
    }

    /// A master that vanished: news for its workers, or nothing (it went into the background, or its
    /// workers left before it).
    fn master_gone(&self, master: &SlotFacts) -> Option<Step> {
        let slot = master.index;
        let mut own = self
            .generations
            .iter()
            .filter(|g| g.master_slot == slot && g.master_version == master.version)
            .peekable();
        let young = |g: &GenerationFacts| self.now.saturating_sub(g.begun_ns) <= ADOPTION_GRACE_NS;
        if own.peek().is_none() {
            return Some(Step::Release { slot });
        }
        let orphans = self.slots.iter().any(|s| {
            s.role == Role::Worker
                && s.liveness == Liveness::Alive
                && own.clone().any(|g| g.id == s.generation)
        });
        if orphans {
            return Some(Step::ReportMasterLost { slot });
        }
        let waiting = own.any(|g| g.phase == Phase::Announced && young(g));
        (!waiting).then_some(Step::Release { slot })
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
