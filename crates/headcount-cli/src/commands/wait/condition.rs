//! What is waited for, and what stands in its way. Pure: a [`Look`] goes in, words come out.

use headcount::{GenerationId, Phase, State};
use headcount_report::plural;

use super::look::{Generation, Look, Process};
use super::words::{pids, states};

/// What is waited for: all of it, at the same look.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub reloaded: bool,
    pub drained: bool,
    pub stopped: bool,
    pub workers: Option<u32>,
    /// Only a generation with a greater number is good enough for `reloaded`.
    pub newer_than: Option<GenerationId>,
}

/// One condition that does not hold.
#[derive(Clone, Debug)]
pub struct Lack {
    /// Why, without ages: it changes only when something has.
    pub why: String,
    /// The processes that stand in the way.
    pub who: Vec<Process>,
}

impl Lack {
    /// One that is nobody's fault.
    pub fn of(why: impl Into<String>) -> Lack {
        Lack { why: why.into(), who: Vec::new() }
    }
}

impl Wanted {
    /// Whether an abandoned generation means that what is wanted will not come.
    pub fn needs_a_generation(&self) -> bool {
        self.reloaded || self.workers.is_some()
    }

    /// What does not hold. `None`: there is no node.
    pub fn lacking(&self, look: Option<&Look>, place: &str) -> Vec<Lack> {
        let Some(look) = look else {
            let waits = self.reloaded || self.drained || self.workers.is_some();
            return if waits { vec![Lack::of(format!("there is no node {place}"))] } else { Vec::new() };
        };
        let mut lacks = Vec::new();
        if self.reloaded {
            lacks.extend(self.not_reloaded(look));
        }
        if self.drained {
            lacks.extend(not_drained(look));
        }
        if self.stopped {
            lacks.extend(not_stopped(look));
        }
        if let Some(wanted) = self.workers {
            lacks.extend(other_number(look, wanted));
        }
        // Somebody may start it again, so it is waited on; but whoever waits must know.
        if !self.stopped && !lacks.is_empty() && look.nobody_lives() {
            lacks.insert(0, Lack::of("nobody of the node is alive"));
        }
        lacks
    }

    fn not_reloaded(&self, look: &Look) -> Option<Lack> {
        let newest = look.newest();
        if let Some(old) = self.newer_than
            && newest.is_none_or(|g| g.id <= old)
        {
            return Some(Lack::of(format!("no generation newer than {old} has begun")));
        }
        let Some(g) = newest else { return Some(Lack::of("no generation has begun")) };
        if g.phase == Phase::Announced {
            let master = match g.master_alive {
                Some(false) => format!("its master {} is gone", g.master),
                _ => format!("its master {} has started no worker", g.master),
            };
            return Some(Lack::of(format!("generation {} has begun, {master} yet", g.id)));
        }
        let serving = look.workers(g.id).filter(|p| p.state == State::Serving).count();
        let expected = g.expected.unwrap_or(1) as usize;
        // Where the server does not say how many there will be, all that have come must be through their start.
        let starting = g.expected.is_none() && look.workers(g.id).any(|p| p.state == State::Starting);
        if g.master_alive == Some(false) {
            return Some(Lack {
                why: format!("master {} of generation {} is gone", g.master, g.id),
                who: look.workers(g.id).filter(|p| p.may_live()).cloned().collect(),
            });
        }
        if serving < expected || starting {
            let who: Vec<_> = look.workers(g.id).filter(|p| p.state != State::Serving).cloned().collect();
            let others = states(&who);
            let counted = g.expected.map_or(serving, |n| n as usize);
            let of = g.expected.map_or(String::new(), |n| format!(" of {n}"));
            return Some(Lack {
                why: format!("generation {}: {serving}{of} {} serving{others}", g.id, word(counted)),
                who,
            });
        }
        g.master_alive.is_none().then(|| {
            Lack::of(format!(
                "it cannot be told whether master {} of generation {} is alive: ask as its user, or as root",
                g.master, g.id
            ))
        })
    }

    /// What holds, in one sentence.
    pub fn reached(&self, look: Option<&Look>, place: &str) -> String {
        let Some(look) = look else { return format!("there is no node {place}, so nobody of it is alive") };
        let mut parts = Vec::new();
        let newest = look.newest_committed();
        if let Some(g) = newest.filter(|_| self.reloaded) {
            parts.push(format!("generation {} serves with {}", g.id, serving(look, g)));
        }
        if let Some(wanted) = self.workers {
            let of = newest.map_or(String::new(), |g| format!(" of generation {}", g.id));
            parts.push(format!("{}{of} serving", plural(wanted.into(), "worker")));
        }
        if self.drained {
            parts.push("no older generation is left".to_owned());
        }
        if self.stopped {
            parts.push("nobody of the node is alive".to_owned());
        }
        parts.join("; ")
    }
}

fn word(workers: usize) -> &'static str {
    if workers == 1 { "worker" } else { "workers" }
}

fn serving(look: &Look, g: &Generation) -> String {
    let serving = look.workers(g.id).filter(|p| p.state == State::Serving).count();
    plural(serving as u64, "worker")
}

fn not_drained(look: &Look) -> Option<Lack> {
    let newest = look.newest_committed()?.id;
    // A master belongs to no generation, and has the number 0.
    let who: Vec<_> = look
        .processes
        .iter()
        .filter(|p| p.may_live() && p.generation != 0 && p.generation < newest)
        .cloned()
        .collect();
    if !who.is_empty() {
        let mut generations: Vec<_> = who.iter().map(|p| p.generation).collect();
        generations.dedup();
        let each: Vec<_> = generations
            .into_iter()
            .map(|id| {
                let own: Vec<_> = who.iter().filter(|p| p.generation == id).cloned().collect();
                format!("generation {id} is left: {}", pids(&own))
            })
            .collect();
        return Some(Lack { why: each.join("; "), who });
    }
    // It has ended when that was reported. Where nobody is alive, nobody will.
    let unreported = look.generations.iter().find(|g| g.phase == Phase::Committed && g.id < newest)?;
    let why = format!("generation {} has no process any more, its end is not reported yet", unreported.id);
    (!look.nobody_lives()).then(|| Lack::of(why))
}

fn not_stopped(look: &Look) -> Option<Lack> {
    let who: Vec<_> = look.processes.iter().filter(|p| p.may_live()).cloned().collect();
    (!who.is_empty()).then(|| Lack { why: format!("alive: {}", pids(&who)), who })
}

fn other_number(look: &Look, wanted: u32) -> Option<Lack> {
    let newest = look.newest_committed();
    let at_work = |p: &&Process| matches!(p.state, State::Serving | State::Orphaned);
    let workers: Vec<_> = newest.map(|g| look.workers(g.id).collect()).unwrap_or_default();
    let serving = workers.iter().filter(|p| at_work(p)).count();
    if serving == wanted as usize {
        return None;
    }
    let too_few = serving < wanted as usize;
    // Too few: those that don't serve stand in the way; too many: those that do.
    let who: Vec<_> = workers.into_iter().filter(|p| at_work(p) != too_few).cloned().collect();
    let of = newest.map_or(String::new(), |g| format!("generation {}: ", g.id));
    let others = if too_few { states(&who) } else { String::new() };
    Some(Lack { why: format!("{of}{serving} {} serving, not {wanted}{others}", word(serving)), who })
}

#[cfg(test)]
#[path = "condition_tests.rs"]
mod tests;
