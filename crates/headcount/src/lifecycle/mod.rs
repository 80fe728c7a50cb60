//! The only place that decides. Pure: facts, the kernel's word on who is alive, and the time go in;
//! states, counts and the next thing to do come out. It reads no clock and touches no registry.

mod act;
mod axes;
mod facts;
mod singletons;
mod start;
mod watch;

pub(crate) use act::{Act, Change, Mark, Stage, Subject};
pub use axes::{Intent, Phase, Progress, State};
pub(crate) use facts::{Facts, GenerationFacts, Overview, SlotFacts, SlotRef};
pub(crate) use singletons::{SingletonFacts, SingletonStep};
pub use singletons::{SingletonKind, SingletonState};
pub(crate) use watch::Families;

use std::collections::{BTreeMap, BTreeSet};

use crate::event::{GenerationId, Role};
use crate::sys::identity::Liveness;

/// How often a callback is run whose runners die in it. A callback that kills every process must not take the server
/// down with it.
pub(crate) const MOST_TRIES: u32 = 3;

/// A generation that its master announced, and a master that then vanished: a server that goes into the
/// background does just that, so it gets this long to come back under its new pid.
const ADOPTION_GRACE_NS: u64 = 2_000_000_000;
/// Workers that were forked but have not joined yet get this long before their superseded generation
/// is declared to have ended without them.
const JOIN_GRACE_NS: u64 = 10_000_000_000;

/// How long a generation that others have taken over waits for the replacement of a worker that it has lost.
const REPLACEMENT_GRACE_NS: u64 = 1_000_000_000;

/// A moment of the boot clock in 32 bits: about milliseconds, good for comparing what is near.
pub(crate) fn coarse(boot_ns: u64) -> u32 {
    (boot_ns >> 20) as u32
}

/// Which matters a process may settle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
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

/// The next thing to do, by whoever holds the node lock, and the index of the slot or generation that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Run the callback of this event again.
    Redeliver(u64),
    /// A slot that has nothing to tell: free it.
    Release(u32),
    ReportDied(u32),
    DeliverDied(u32),
    ReportHelperExited(u32),
    ReportMasterLost(u32),
    DeliverMasterLost(u32),
    ReportStalled(u32),
    ReportRecovered(u32),
    /// A generation whose start was never reported: free its record.
    ReleaseGeneration(u32),
    ReportAbandoned(u32),
    DeliverAbandoned(u32),
    ReportEnded(u32),
    DeliverEnded(u32),
    /// The start of a generation whose master, or all of whose workers, died before its callback had run.
    DeliverStarted(u32),
    /// About a role, a once or a lock.
    Singleton(SingletonStep),
}

/// What is asked of the whole table for each of its generations: gathered once, since somebody may have filled it up.
struct Standing {
    /// The generations that have a worker, reported or not.
    populated: BTreeSet<GenerationId>,
    /// The masters that are alive, or may be.
    masters: BTreeSet<(u32, u64)>,
    /// The newest generation of each master, of those that are there.
    newest_of: BTreeMap<(u32, u64), GenerationId>,
}

impl Standing {
    fn of(facts: &Facts) -> Standing {
        let slots = |role: Role| facts.slots.iter().filter(move |s| s.role == role);
        let mut newest_of = BTreeMap::new();
        for g in facts.generations.iter().filter(|g| g.is_there()) {
            let newest = newest_of.entry((g.master_slot, g.master_version)).or_insert(g.id);
            *newest = g.id.max(*newest);
        }
        Standing {
            populated: slots(Role::Worker).map(|s| s.generation).collect(),
            masters: slots(Role::Master)
                .filter(|s| s.liveness != Liveness::Gone)
                .map(|s| (s.index, s.version))
                .collect(),
            newest_of,
        }
    }
}

impl Facts {
    /// The generations of which it is to be found out whether anybody may still join them.
    pub(crate) fn awaiting(&self) -> Vec<u32> {
        let newest = self.generations.iter().filter(|g| g.is_there()).map(|g| g.id).max();
        let waits = |g: &&GenerationFacts| {
            g.is_there() && Some(g.id) != newest && !g.joining && !g.all_came() && self.is_empty(g.id)
        };
        self.generations.iter().filter(waits).map(|g| g.index).collect()
    }

    /// The generation has no worker, and no more will come: somebody else has taken over, or its master
    /// is gone.
    fn has_ended(&self, g: &GenerationFacts, scope: Scope, all: &Standing) -> bool {
        if !g.is_there() || all.populated.contains(&g.id) {
            return false;
        }
        if scope == Scope::LastWord {
            return true;
        }
        if g.joining {
            // It will leave, or die, in its turn.
            return false;
        }
        let master = (g.master_slot, g.master_version);
        let master_gone = !all.masters.contains(&master);
        let superseded = all.newest_of.get(&master).is_some_and(|&newest| newest > g.id);
        let taken_over = all.newest_of.values().any(|&newest| newest > g.id);
        if taken_over && !master_gone && g.awaits_replacement(self.now) {
            return false;
        }
        let all_came = g.all_came();
        if scope == Scope::Generation(g.id) {
            // Its last worker has just left, and it was told to: whoever is told to leave is told so
            // together with the others.
            return all_came && (taken_over || !self.is_kept(g.id));
        }
        let late = g.nobody_comes || self.now.saturating_sub(g.begun_ns) > JOIN_GRACE_NS;
        (superseded || master_gone) && (all_came || late || (master_gone && g.joined > 0))
    }

    /// What must be done next, or nothing: what is over is freed, what is reported is delivered, what is new is
    /// reported. One report at a time, so that callbacks run in the order of the journal. What the dead have held is given
    /// on before any callback, which may take its time.
    pub(crate) fn next_step(&self, scope: Scope) -> Option<Step> {
        let singletons = || match scope {
            Scope::Everything | Scope::LastWord => self.next_of_singletons().map(Step::Singleton),
            Scope::Tidy | Scope::Generation(_) => None,
        };
        self.release().or_else(singletons).or_else(|| self.delivery(scope)).or_else(|| self.report(scope))
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
            Role::Master => {
                s.exited_seq != 0 || s.died_seq == 0 && self.master_gone(s) == Some(Step::Release(s.index))
            }
            Role::Worker | Role::Helper => s.exited_seq != 0 || s.started_seq == 0,
            // Nothing is told of it but what becomes of what it had.
            Role::Visitor => !self.has_something(s),
        };
        self.gone().find(over).map(|s| Step::Release(s.index))
    }

    fn delivery(&self, scope: Scope) -> Option<Step> {
        let again = Some((self.redeliver_seq, Step::Redeliver(self.redeliver_seq)))
            .filter(|_| self.redeliver_seq != 0 && matches!(scope, Scope::Everything | Scope::LastWord));
        let dead = self.gone().filter(|s| s.died_seq != 0 && self.covers(scope, s.generation)).map(|s| {
            let step = match s.role {
                Role::Master => Step::DeliverMasterLost(s.index),
                Role::Worker | Role::Helper | Role::Visitor => Step::DeliverDied(s.index),
            };
            (s.died_seq, step)
        });
        let over = self.generations.iter().filter(|g| self.covers(scope, g.id)).filter_map(|g| {
            match (g.abandoned_seq, g.ended_seq) {
                (0, 0) => None,
                (0, seq) => Some((seq, Step::DeliverEnded(g.index))),
                (seq, _) => Some((seq, Step::DeliverAbandoned(g.index))),
            }
        });
        let untold =
            |g: &&GenerationFacts| g.started_seq != 0 && !g.start_delivered && self.covers(scope, g.id);
        let started = self.generations.iter().filter(untold).filter(|g| self.master_alive(g) == Some(false));
        let started = started.map(|g| (g.started_seq, Step::DeliverStarted(g.index)));
        again
            .into_iter()
            .chain(dead)
            .chain(over)
            .chain(started)
            .min_by_key(|(seq, _)| *seq)
            .map(|(_, step)| step)
    }

    /// Deaths first, then what follows from them.
    fn report(&self, scope: Scope) -> Option<Step> {
        for s in self.gone().filter(|s| s.died_seq == 0 && self.covers(scope, s.generation)) {
            match s.role {
                Role::Worker => return Some(Step::ReportDied(s.index)),
                Role::Helper => return Some(Step::ReportHelperExited(s.index)),
                Role::Visitor => {}
                Role::Master => {
                    if let Some(step) = self.master_gone(s) {
                        return Some(step);
                    }
                }
            }
        }
        let all = Standing::of(self);
        for g in self.generations.iter().filter(|g| g.ended_seq == 0 && g.abandoned_seq == 0) {
            let late = !all.masters.contains(&(g.master_slot, g.master_version))
                && self.now.saturating_sub(g.begun_ns) > ADOPTION_GRACE_NS;
            let vanished = g.phase == Phase::Announced && (late || scope == Scope::LastWord);
            let never_came = g.phase == Phase::Abandoned || vanished;
            let over = self.covers(scope, g.id) && (never_came || self.has_ended(g, scope, &all));
            match over {
                false => {}
                true if g.started_seq == 0 => return Some(Step::ReleaseGeneration(g.index)),
                // Who was to be told of its start died first, and none of it is left to be told.
                true if !g.start_delivered => return Some(Step::DeliverStarted(g.index)),
                true if never_came => return Some(Step::ReportAbandoned(g.index)),
                true => return Some(Step::ReportEnded(g.index)),
            }
        }
        if !matches!(scope, Scope::Everything | Scope::LastWord) {
            return None;
        }
        let judges = self.may_judge();
        self.slots.iter().filter(|s| s.liveness == Liveness::Alive && s.started_seq != 0).find_map(|s| {
            let overdue = s.progress(self.now, self.stall_after) == Progress::Overdue;
            match (overdue, s.is_reported_stalled()) {
                (true, false) if judges => Some(Step::ReportStalled(s.index)),
                (false, true) => Some(Step::ReportRecovered(s.index)),
                _ => None,
            }
        })
    }

    /// The generations that are this master's.
    fn generations_of(&self, master: &SlotFacts) -> impl Iterator<Item = &GenerationFacts> + Clone {
        let (slot, version) = (master.index, master.version);
        self.generations.iter().filter(move |g| g.master_slot == slot && g.master_version == version)
    }

    /// A master that vanished: news for its workers, or nothing (it went into the background, or its
    /// workers left before it).
    fn master_gone(&self, master: &SlotFacts) -> Option<Step> {
        let mut own = self.generations_of(master).peekable();
        let young = |g: &GenerationFacts| self.now.saturating_sub(g.begun_ns) <= ADOPTION_GRACE_NS;
        if own.peek().is_none() {
            return Some(Step::Release(master.index));
        }
        let orphans = self.slots.iter().any(|s| {
            s.role == Role::Worker
                && s.liveness == Liveness::Alive
                && own.clone().any(|g| g.id == s.generation)
        });
        // Whoever is just joining will be one.
        if orphans || own.clone().any(|g| g.joining) {
            return Some(Step::ReportMasterLost(master.index));
        }
        // Its workers, or the replacement of one, may have been forked, and not have said yet that they join.
        let has_lost = |g: &GenerationFacts| {
            let is_news = |s: &&SlotFacts| s.started_seq != 0 && s.died_seq == 0 && s.exited_seq == 0;
            g.lost_at_work != 0 || self.gone().filter(is_news).any(|s| s.generation == g.id)
        };
        let are_coming = |g: &GenerationFacts| g.is_there() && (!g.all_came() || has_lost(g));
        let waiting = own.any(|g| young(g) && (g.phase == Phase::Announced || are_coming(g)));
        (!waiting).then_some(Step::Release(master.index))
    }
}

#[cfg(test)]
mod act_tests;
#[cfg(test)]
mod edge_tests;
#[cfg(test)]
mod over_tests;
#[cfg(test)]
mod singletons_tests;
#[cfg(test)]
mod start_tests;
#[cfg(test)]
mod surroundings_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod visitor_tests;
