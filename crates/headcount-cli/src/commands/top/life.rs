//! The life of one process, as far as it is known.

use std::time::Duration;

use headcount::{Cause, Event, ProcessStatus, Role, State};

/// What names a process for as long as it lives.
pub type Key = (Role, u64, u32);

/// So many of its events are kept; a worker that stalls and recovers for weeks has no end of them.
const EVENTS: usize = 200;

#[derive(Clone, Debug)]
pub struct Life {
    /// Names it within its model.
    pub id: u64,
    pub role: Role,
    pub generation: u64,
    pub pid: u32,
    pub number: Option<u32>,
    pub cause: Cause,
    /// Nanoseconds since boot, as all times here.
    pub began: u64,
    /// Whether it began then; otherwise it was there before what the journal keeps.
    pub began_known: bool,
    pub end: Option<End>,
    pub turns: Vec<(u64, Turn)>,
    /// Its events.
    pub events: Vec<Event>,
    /// As the last look saw it, if it did.
    pub now: Option<ProcessStatus>,
    /// When the last look took place that saw it alive, or its last heartbeat.
    pub last_alive: u64,
    /// The event that told of its start; 0 if none did.
    pub told_by: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub at: u64,
    pub how: Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Exited,
    Died,
    /// It is not there any more, and the event that told of its end was overwritten.
    Untold,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Drains,
    Stalls,
    Recovers,
}

/// How a stretch of a bar is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stretch {
    Starting,
    Serving,
    Draining,
    Stalled,
}

impl Life {
    pub fn new(id: u64, (role, generation, pid): Key, began: u64) -> Life {
        Life {
            id,
            role,
            generation,
            pid,
            number: None,
            cause: Cause::Unknown,
            began,
            began_known: true,
            end: None,
            turns: Vec::new(),
            events: Vec::new(),
            now: None,
            last_alive: began,
            told_by: 0,
        }
    }

    pub fn key(&self) -> Key {
        (self.role, self.generation, self.pid)
    }

    pub fn note(&mut self, event: Event) {
        if self.events.len() == EVENTS {
            self.events.remove(0);
        }
        self.events.push(event);
    }

    pub fn turn(&mut self, at: u64, turn: Turn) {
        if self.turns.len() == EVENTS {
            self.turns.remove(0);
        }
        self.turns.push((at, turn));
    }

    /// Takes in what a look at `boot_ns` saw.
    pub fn see(&mut self, process: ProcessStatus, boot_ns: u64) {
        if matches!(process.state, State::Died | State::Exited) {
            // Nobody tells when it died; it lived when it beat last.
            let beat = heartbeat_age(&process).map_or(0, |age| before(boot_ns, age));
            self.last_alive = self.last_alive.max(beat);
        } else {
            self.last_alive = boot_ns;
        }
        self.number = self.number.or(process.worker_id);
        if self.cause == Cause::Unknown {
            self.cause = process.cause;
        }
        self.now = Some(process);
    }

    /// Whether it is gone, told or not.
    pub fn is_gone(&self) -> bool {
        self.end.is_some() || matches!(self.state(), Some(State::Died | State::Exited))
    }

    /// Its state; `None` where it ended without anybody having seen how.
    pub fn state(&self) -> Option<State> {
        match self.end.map(|end| end.how) {
            Some(Ending::Exited) => Some(State::Exited),
            Some(Ending::Died) => Some(State::Died),
            Some(Ending::Untold) => None,
            None => self.now.as_ref().map(|now| now.state),
        }
    }

    pub fn state_name(&self) -> &'static str {
        match (self.state(), self.end) {
            (Some(state), _) => state.name(),
            (None, Some(_)) => "gone",
            (None, None) => State::Unknown.name(),
        }
    }

    /// Where its bar ends.
    pub fn until(&self, now: u64) -> u64 {
        match self.end {
            Some(end) => end.at.max(self.began),
            None if self.is_gone() => self.last_alive.max(self.began),
            None => now.max(self.began),
        }
    }

    /// The stretches of its bar, each from its time to the next one's. `looked` is when `now` was seen.
    pub fn stretches(&self, looked: u64, stall_after: Duration) -> Vec<(u64, Stretch)> {
        let mut all = vec![(self.began, Stretch::Serving)];
        let mut awake = Stretch::Serving;
        for &(at, turn) in &self.turns {
            let stretch = match turn {
                Turn::Drains => {
                    awake = Stretch::Draining;
                    awake
                }
                Turn::Stalls => Stretch::Stalled,
                Turn::Recovers => awake,
            };
            all.push((at, stretch));
        }
        // What no event has told: it was overwritten, or there is nobody left to tell it.
        if let (Some(now), None) = (&self.now, self.end) {
            let last = all.last().map(|&(_, stretch)| stretch);
            match now.state {
                State::Starting => all = vec![(self.began, Stretch::Starting)],
                State::Draining if last != Some(Stretch::Draining) => {
                    all.push((before(looked, now.in_state_for), Stretch::Draining));
                }
                State::Stalled if last != Some(Stretch::Stalled) => {
                    let overdue = now.heartbeat_age.saturating_sub(stall_after);
                    all.push((before(looked, overdue), Stretch::Stalled));
                }
                _ => {}
            }
        }
        all
    }
}

/// How old its last heartbeat is; a master never beats, and a visitor only while it stands for a role.
pub fn heartbeat_age(process: &ProcessStatus) -> Option<Duration> {
    matches!(process.role, Role::Worker | Role::Helper).then_some(process.heartbeat_age)
}

/// The instant so long before another.
pub fn before(instant: u64, by: Duration) -> u64 {
    instant.saturating_sub(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX))
}
