//! The counts in each event, against a replay of all events before it and of the kernel's ends.
//!
//! One thing a replay cannot know: whether a process that had ended, or hung, when an event was written, was seen so by its
//! writer before that was an event of its own. There, and only there, both answers pass.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;

use super::lives::Owners;
use super::{Class, Evidence, SLACK, Tally, Violation};
use crate::journal::{Event, Kind};

struct Worker {
    stalled: bool,
    draining: bool,
    /// When the kernel says that it ended; 0 if nobody knows.
    ended: Option<u64>,
    /// What will be said of it, in this order.
    later: VecDeque<Kind>,
}

#[derive(Default)]
struct Generation {
    /// By the process's place in the evidence, or, of one that is not there, its negated number.
    workers: BTreeMap<i64, Worker>,
    /// It exists for others from its first worker on; before, it is announced.
    had_worker: bool,
}

type World = BTreeMap<u64, Generation>;

fn key(event: &Event, owner: Option<usize>) -> i64 {
    owner.map_or(-i64::from(event.pid.unwrap_or(0)), |at| at as i64)
}

fn is_about_a_worker(kind: Kind) -> bool {
    Kind::WorkerStarted <= kind && kind <= Kind::WorkerRecovered
}

/// Checks them all.
pub fn check(evidence: &Evidence, owners: &Owners, tally: &mut Tally) -> Vec<Violation> {
    let mut said: BTreeMap<i64, VecDeque<Kind>> = BTreeMap::new();
    for (event, owner) in evidence.events.iter().zip(owners) {
        if is_about_a_worker(event.kind) {
            said.entry(key(event, *owner)).or_default().push_back(event.kind);
        }
    }
    let mut replay = Replay { world: World::new(), complete: evidence.complete, found: Vec::new() };
    for (event, owner) in evidence.events.iter().zip(owners) {
        let who = key(event, *owner);
        let later = is_about_a_worker(event.kind).then(|| {
            let later = said.entry(who).or_default();
            later.pop_front();
            later.clone()
        });
        let ended = match owner {
            Some(at) => evidence.processes[*at].ended,
            None => Some(0),
        };
        replay.next(event, who, later, ended);
        tally.add("counts compared with a replay", 1);
    }
    replay.found
}

struct Replay {
    world: World,
    /// The kernel's ends are exact. Otherwise one whose end is told next may have ended before.
    complete: bool,
    found: Vec<Violation>,
}

impl Replay {
    fn next(&mut self, event: &Event, who: i64, later: Option<VecDeque<Kind>>, ended: Option<u64>) {
        if let (Some(worker), Some(later)) = (self.worker(event.generation, who), &later) {
            worker.later.clone_from(later);
        }
        // One that leaves is still counted in its own exit.
        let leaves_after =
            matches!(event.kind, Kind::WorkerExited | Kind::GenerationEnded | Kind::GenerationAbandoned);
        if !leaves_after {
            self.apply(event, who, later.clone(), ended);
        }
        // What was found at a start is about a world that had ended.
        if event.cause != "unclean" && !event.kind.has_name() {
            self.judge(event, who);
        }
        if leaves_after {
            self.apply(event, who, later, ended);
        }
    }

    fn worker(&mut self, generation: u64, who: i64) -> Option<&mut Worker> {
        self.world.get_mut(&generation)?.workers.get_mut(&who)
    }

    fn apply(&mut self, event: &Event, who: i64, later: Option<VecDeque<Kind>>, ended: Option<u64>) {
        match event.kind {
            Kind::GenerationStarted => {
                self.world.entry(event.generation).or_default();
            }
            Kind::GenerationEnded => {
                let mine = self.world.remove(&event.generation);
                if mine.is_some_and(|mine| !mine.workers.is_empty()) {
                    self.say(Class::OutOfOrder, "before the end of its last worker was told", event);
                }
            }
            Kind::GenerationAbandoned => {
                self.world.remove(&event.generation);
            }
            Kind::WorkerStarted => {
                let generation = self.world.entry(event.generation).or_default();
                generation.had_worker = true;
                let later = later.unwrap_or_default();
                generation.workers.insert(who, Worker { stalled: false, draining: false, ended, later });
            }
            Kind::WorkerExited | Kind::WorkerDied => {
                if let Some(generation) = self.world.get_mut(&event.generation) {
                    generation.workers.remove(&who);
                }
            }
            Kind::WorkerDraining => {
                if let Some(worker) = self.worker(event.generation, who) {
                    worker.draining = true;
                }
            }
            Kind::WorkerStalled | Kind::WorkerRecovered => {
                if let Some(worker) = self.worker(event.generation, who) {
                    worker.stalled = event.kind == Kind::WorkerStalled;
                }
            }
            _ => {}
        }
    }

    fn say(&mut self, class: Class, what: &str, event: &Event) {
        self.found.push(Violation::new(class, format!("{what}: {}", event.show())));
    }

    fn judge(&mut self, event: &Event, who: i64) {
        let Some(mine) = self.world.get(&event.generation) else {
            if event.generation != 0 && Kind::MasterLost > event.kind {
                self.say(Class::OutOfOrder, "of a generation that is not there", event);
            }
            return;
        };
        let mut wrong = Vec::new();
        let count = count(mine, event, who, self.complete);
        // Whether an abandoned generation still counts itself is nobody's business.
        if !count.live.contains(&event.mine) && event.kind != Kind::GenerationAbandoned {
            wrong.push(format!("mine should be {:?}", count.live));
        }
        if !count.draining.contains(&event.draining) {
            wrong.push(format!("draining should be {:?}", count.draining));
        }
        // An announced generation may be skipped, or be there with nobody in it.
        let older: Vec<&Generation> = self.world.range(..event.generation).rev().map(|(_, g)| g).collect();
        let newer: Vec<&Generation> = self.world.range(event.generation + 1..).map(|(_, g)| g).collect();
        for (name, said, candidates) in [("prev", event.prev, older), ("next", event.next, newer)] {
            wrong.extend(neighbour(name, said, &candidates, event, self.complete));
        }
        let all =
            self.world.values().map(|generation| self::count(generation, event, who, self.complete).live);
        let (least, most) = all.fold((0, 0), |(l, m), live| (l + live.start(), m + live.end()));
        if !(least..=most).contains(&event.total) {
            wrong.push(format!("total should be {least}..={most}"));
        }
        if !wrong.is_empty() {
            self.say(Class::WrongCount, &wrong.join(", "), event);
        }
    }
}

fn neighbour(
    name: &str,
    said: Option<i64>,
    candidates: &[&Generation],
    event: &Event,
    complete: bool,
) -> Option<String> {
    for candidate in candidates {
        let live = count(candidate, event, i64::MIN, complete).live;
        if said.is_some_and(|said| live.contains(&said)) {
            return None;
        }
        // Once its workers are all dead, whether it has ended is for who looks to say.
        if candidate.had_worker && *live.end() > 0 {
            return Some(format!("{name} should be {live:?}"));
        }
    }
    said.map(|_| format!("{name} should be nil"))
}

struct Count {
    live: RangeInclusive<i64>,
    draining: RangeInclusive<i64>,
}

/// Live workers, and those among them that drain: least and most, at the time of an event about `who`.
fn count(generation: &Generation, event: &Event, who: i64, complete: bool) -> Count {
    let (mut least, mut most, mut draining_least, mut draining_most) = (0, 0, 0, 0);
    for (&key, worker) in &generation.workers {
        let next = worker.later.front();
        let is_gone = worker.ended.is_some_and(|ended| ended <= event.at + SLACK)
            || !complete && matches!(next, Some(Kind::WorkerDied | Kind::WorkerExited));
        // Its own exit counts it, whoever tells it.
        let is_gone = is_gone && !(key == who && event.kind == Kind::WorkerExited);
        let surely = !worker.stalled && !is_gone && next != Some(&Kind::WorkerStalled);
        let maybe = !worker.stalled || next == Some(&Kind::WorkerRecovered);
        least += i64::from(surely);
        most += i64::from(maybe);
        // Its intent is there a moment before the event that tells it; and one that leaves drains or does not.
        let drains_surely = worker.draining && !(key == who && event.kind == Kind::WorkerExited);
        let drains_maybe =
            worker.draining || matches!(next, Some(Kind::WorkerDraining | Kind::WorkerExited)) || key == who;
        draining_least += i64::from(surely && drains_surely);
        draining_most += i64::from((maybe || worker.stalled) && drains_maybe);
    }
    Count { live: least..=most, draining: draining_least..=draining_most }
}
