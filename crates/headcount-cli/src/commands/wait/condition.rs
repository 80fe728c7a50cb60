//! What is waited for, and what stands in its way. Pure: a [`Snapshot`] goes in, words come out.

use headcount::{
    Doubt, GenerationId, GenerationStatus, Liveness, Phase, ProcessStatus, Role, Snapshot, State,
};
use headcount_report::{Newest, plural};

use super::processes::{pids, states};
use super::unmet::Unmet;
use crate::alive::{self, may_be_alive};

/// What is waited for: all of it, in one snapshot.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub reloaded: bool,
    pub drained: bool,
    pub stopped: bool,
    pub workers: Option<u32>,
    /// Only a generation with a greater number is good enough for `reloaded`.
    pub newer_than: Option<GenerationId>,
}

/// The workers of a generation, including those that are gone and not settled yet.
fn workers(snapshot: &Snapshot, generation: GenerationId) -> impl Iterator<Item = &ProcessStatus> {
    snapshot.processes.iter().filter(move |p| p.role == Role::Worker && p.generation == generation)
}

/// Why it is not known whether this master is alive.
fn doubt(snapshot: &Snapshot, master: u32) -> Option<Doubt> {
    snapshot.processes.iter().find_map(|p| match p.liveness {
        Liveness::Unknown(doubt) if p.role == Role::Master && p.pid == master => Some(doubt),
        _ => None,
    })
}

impl Wanted {
    /// Whether an abandoned generation means that the conditions cannot be met.
    pub fn needs_a_generation(&self) -> bool {
        self.reloaded || self.workers.is_some()
    }

    /// What does not hold. `None`: there is no node.
    pub fn unmet(&self, snapshot: Option<&Snapshot>, place: &str) -> Vec<Unmet> {
        let Some(snapshot) = snapshot else {
            let waits = self.reloaded || self.drained || self.workers.is_some();
            return if waits { vec![Unmet::of(format!("there is no node {place}"))] } else { Vec::new() };
        };
        let mut unmet = Vec::new();
        if self.reloaded {
            unmet.extend(self.not_reloaded(snapshot));
        }
        if self.drained {
            unmet.extend(not_drained(snapshot));
        }
        if self.stopped {
            unmet.extend(not_stopped(snapshot));
        }
        if let Some(wanted) = self.workers {
            unmet.extend(other_number(snapshot, wanted));
        }
        // Somebody may start it again, so the wait goes on; but the user must know.
        if !self.stopped && !unmet.is_empty() && snapshot.liveness() == Liveness::Gone {
            unmet.insert(0, Unmet::of(alive::not_alive(snapshot)));
        }
        unmet
    }

    fn not_reloaded(&self, snapshot: &Snapshot) -> Option<Unmet> {
        let newest = Newest::of(snapshot);
        let id = newest.as_ref().map_or(0, |newest| newest.generation.id);
        if let Some(old) = self.newer_than.filter(|old| id <= *old) {
            return Some(Unmet::of(format!("no generation newer than {old} has begun")));
        }
        let Some(newest) = newest else { return Some(Unmet::of("no generation has begun")) };
        (!newest.serves()).then(|| why_it_does_not_serve(snapshot, &newest))
    }

    /// What holds, in one sentence.
    pub fn reached(&self, snapshot: Option<&Snapshot>, place: &str) -> String {
        let Some(snapshot) = snapshot else {
            return format!("there is no node {place}");
        };
        let mut parts = Vec::new();
        let newest = snapshot.newest_committed();
        if let Some(g) = newest.filter(|_| self.reloaded) {
            parts.push(format!("generation {} serves with {}", g.id, serving(snapshot, g)));
        }
        if let Some(wanted) = self.workers {
            let of = newest.map_or(String::new(), |g| format!(" of generation {}", g.id));
            parts.push(format!("{}{of} serving", plural(wanted.into(), "worker")));
        }
        if self.drained {
            parts.push("no older generation is left".to_owned());
        }
        if self.stopped {
            parts.push(alive::not_alive(snapshot));
        }
        parts.join("; ")
    }
}

fn why_it_does_not_serve(snapshot: &Snapshot, newest: &Newest<'_>) -> Unmet {
    let g = newest.generation;
    if g.phase == Phase::Announced {
        let master = match g.master_alive {
            Some(false) => format!("its master {} is gone", g.master),
            _ => format!("its master {} has started no worker yet", g.master),
        };
        return Unmet::of(format!("generation {} has begun, {master}", g.id));
    }
    let those = |fits: fn(&ProcessStatus) -> bool| {
        newest.workers.iter().copied().filter(|p| fits(p)).cloned().collect::<Vec<_>>()
    };
    if g.master_alive == Some(false) {
        return Unmet {
            reason: format!("master {} of generation {} is gone", g.master, g.id),
            processes: those(may_be_alive),
        };
    }
    if !newest.is_complete() {
        let serving = newest.count(State::Serving);
        let processes = those(|p| p.state != State::Serving);
        let others = states(&processes);
        let counted = g.expected.unwrap_or(serving) as usize;
        let of = g.expected.map_or(String::new(), |n| format!(" of {n}"));
        return Unmet {
            reason: format!("generation {}: {serving}{of} {} serving{others}", g.id, word(counted)),
            processes,
        };
    }
    let why = doubt(snapshot, g.master).map_or(String::new(), |doubt| format!(": {}", doubt.reason()));
    Unmet::of(format!("it is not known whether master {} of generation {} is alive{why}", g.master, g.id))
}

fn word(workers: usize) -> &'static str {
    if workers == 1 { "worker" } else { "workers" }
}

fn serving(snapshot: &Snapshot, g: &GenerationStatus) -> String {
    let serving = workers(snapshot, g.id).filter(|p| p.state == State::Serving).count();
    plural(serving as u64, "worker")
}

fn not_drained(snapshot: &Snapshot) -> Option<Unmet> {
    let newest = snapshot.newest_committed()?.id;
    // A master belongs to no generation, and has the number 0.
    let processes: Vec<_> = snapshot
        .processes
        .iter()
        .filter(|p| may_be_alive(p) && p.generation != 0 && p.generation < newest)
        .cloned()
        .collect();
    if !processes.is_empty() {
        let mut generations: Vec<_> = processes.iter().map(|p| p.generation).collect();
        generations.dedup();
        let each: Vec<_> = generations
            .into_iter()
            .map(|id| {
                let own: Vec<_> = processes.iter().filter(|p| p.generation == id).cloned().collect();
                format!("generation {id} is left: {}", pids(&own))
            })
            .collect();
        return Some(Unmet { reason: each.join("; "), processes });
    }
    // It has ended when that is reported, unless nobody is left to report it.
    let unreported = snapshot.generations.iter().find(|g| g.phase == Phase::Committed && g.id < newest)?;
    let why = format!("generation {} has no process left, but its end is not reported yet", unreported.id);
    (snapshot.liveness() != Liveness::Gone).then(|| Unmet::of(why))
}

fn not_stopped(snapshot: &Snapshot) -> Option<Unmet> {
    if snapshot.liveness() == Liveness::Gone {
        return None;
    }
    let in_the_way = |p: &&ProcessStatus| matches!(p.role, Role::Master | Role::Worker) && may_be_alive(p);
    let processes: Vec<_> = snapshot.processes.iter().filter(in_the_way).cloned().collect();
    Some(Unmet { reason: format!("alive: {}", pids(&processes)), processes })
}

fn other_number(snapshot: &Snapshot, wanted: u32) -> Option<Unmet> {
    let newest = snapshot.newest_committed();
    let at_work = |p: &&ProcessStatus| matches!(p.state, State::Serving | State::Orphaned);
    let workers: Vec<_> = newest.map(|g| workers(snapshot, g.id).collect()).unwrap_or_default();
    let serving = workers.iter().filter(|p| at_work(p)).count();
    if serving == wanted as usize {
        return None;
    }
    let too_few = serving < wanted as usize;
    // Too few: those that don't serve stand in the way; too many: those that do.
    let processes: Vec<_> = workers.into_iter().filter(|p| at_work(p) != too_few).cloned().collect();
    let of = newest.map_or(String::new(), |g| format!("generation {}: ", g.id));
    let others = if too_few { states(&processes) } else { String::new() };
    Some(Unmet {
        reason: format!("{of}{serving} {} serving, not {wanted}{others}", word(serving)),
        processes,
    })
}

#[cfg(test)]
#[path = "condition_tests.rs"]
mod tests;
