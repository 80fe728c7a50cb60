//! Which generation answers the signal, and what became of it. Pure.
//!
//! A master that is busy with an earlier reload takes our signal when it has finished that one, and takes all signals
//! that are pending by then as one. So the generation that answers is not simply the next one that begins: its
//! configuration may have been read before the signal was sent. It is the first one that began after the signal was
//! *taken*; the kernel shows that the signal is no longer pending. That generation answers everybody whose signal was
//! taken with ours. A later one answers us as well, since its configuration was read later still.

use std::collections::BTreeSet;
use std::time::Duration;

use headcount::{GenerationId, Phase, Snapshot, State};
use headcount_report::Newest;

use crate::commands::wait::condition::Wanted;
use crate::commands::wait::unmet::Unmet;

/// How long nginx's master sleeps between starting a generation's workers and looking for the next signal.
const NGINX_PAUSE_NS: u64 = 100_000_000;

/// A master that has been at rest for this long, and has begun nothing, has refused the configuration. One look would be
/// enough; the rest is a margin for what we do not know.
pub const SETTLE: Duration = Duration::from_secs(2);

/// When the signal was taken: between the last look at which it was pending, and the first at which it was not.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    pub not_before_ns: u64,
    pub not_after_ns: u64,
}

/// A generation that the master began after the signal was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    pub id: GenerationId,
    pub begun_ns: u64,
}

/// What is known at one moment.
pub struct Facts<'a> {
    pub taken: Taken,
    pub begun: &'a [Begun],
    pub abandoned: &'a BTreeSet<GenerationId>,
    pub snapshot: &'a Snapshot,
    pub master: u32,
    pub is_nginx: bool,
    /// How long the master has been at rest; `None` if it is not, or if that cannot be told.
    pub rests_for: Option<Duration>,
    pub drained: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Wait,
    /// Done. The number of the generation that answered.
    Serves(GenerationId),
    Abandoned(GenerationId),
    /// The configuration could not be read: no generation was begun.
    Refused,
    /// It did reload, but the new configuration has no headcount in it.
    Uncounted,
}

impl Facts<'_> {
    /// The generation that answers, if it is known already.
    fn answer(&self) -> Option<GenerationId> {
        let later = || self.begun.iter().filter(|b| b.begun_ns >= self.taken.not_before_ns);
        let first = later().min_by_key(|b| b.id)?;
        // Begun between our two looks: it may be an earlier reload's if there was also time for nginx's pause. We did
        // not run in all that time. Once the master is at rest it is clear which one is ours.
        let in_doubt =
            self.is_nginx && first.begun_ns.saturating_add(NGINX_PAUSE_NS) <= self.taken.not_after_ns;
        match (in_doubt, self.rests_for) {
            (false, _) => Some(first.id),
            (true, Some(_)) => later().map(|b| b.id).max(),
            (true, None) => None,
        }
    }

    pub fn wanted(&self) -> Wanted {
        let newer_than = self.answer().map(|id| id.saturating_sub(1));
        Wanted { reloaded: true, drained: self.drained, newer_than, ..Wanted::default() }
    }

    pub fn verdict(&self) -> Verdict {
        let rests = !self.is_nginx || self.rests_for.is_some();
        let Some(answer) = self.answer() else {
            let settled = self.rests_for.is_some_and(|rest| rest >= SETTLE);
            return match settled {
                false => Verdict::Wait,
                true if self.old_workers_serve() => Verdict::Refused,
                true => Verdict::Uncounted,
            };
        };
        let newest = Newest::of(self.snapshot).map_or(0, |newest| newest.generation.id);
        let last = self.abandoned.range(answer..).next_back();
        match last {
            // Only once the master rests: what was abandoned may be an earlier reload's, and ours is being read.
            Some(&last) if newest < answer && rests => Verdict::Abandoned(last),
            _ if self.unmet().is_empty() => Verdict::Serves(answer),
            _ => Verdict::Wait,
        }
    }

    /// What is still missing.
    pub fn unmet(&self) -> Vec<Unmet> {
        match self.answer() {
            None => vec![Unmet::of(format!(
                "master {} took the signal but has begun no generation yet",
                self.master
            ))],
            Some(_) => self.wanted().unmet(Some(self.snapshot), ""),
        }
    }

    fn old_workers_serve(&self) -> bool {
        let own = |id: GenerationId| {
            let generation =
                self.snapshot.generations.iter().find(|g| g.id == id && g.phase == Phase::Committed);
            generation.is_some_and(|g| g.master == self.master)
        };
        self.snapshot.processes.iter().any(|p| {
            own(p.generation)
                && !matches!(p.state, State::Draining | State::Leaving | State::Exited | State::Died)
        })
    }
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
