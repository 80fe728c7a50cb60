//! What successive looks at a node add up to: whether it is alive, and since when that is certain. Pure.

use std::time::{Duration, Instant};

use crate::event::{Cause, GenerationId, Role};
use crate::lifecycle::Phase;
use crate::snapshot::{ProcessStatus, Snapshot};
use crate::sys::identity::Liveness;

/// A server that goes into the background briefly has no live process: that is no death before so long a time,
const DOUBT: Duration = Duration::from_millis(250);
/// or so long, if it never had a worker. One that was seen to serve has done with that: its death is certain at once.
const LONG_DOUBT: Duration = Duration::from_secs(2);
/// A process whose record changes during the look is unknown for a moment: that is nothing to tell.
const UNKNOWN: Duration = Duration::from_secs(10);
/// Between two looks at a node of which it is not known whether it is alive.
const LOOKS: Duration = Duration::from_secs(1);

/// What is known of a node's life.
#[derive(Debug, Default)]
pub(super) struct Life {
    told: Option<Liveness>,
    /// The newest generation of which a worker was seen alive since the node was last gone.
    served: Option<GenerationId>,
    nobody_since: Option<Instant>,
    unknown_since: Option<Instant>,
}

/// What follows from a look.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// To be told: it is another one than was told last.
    pub(super) news: Option<Liveness>,
    /// After so long it must be looked again.
    pub(super) again: Option<Duration>,
}

impl Life {
    pub(super) fn judge(&mut self, snapshot: &Snapshot, now: Instant) -> Verdict {
        let liveness = snapshot.liveness();
        let nobody = since(&mut self.nobody_since, liveness == Liveness::Gone, now);
        let is_known = matches!(liveness, Liveness::Alive | Liveness::Gone);
        let unknown = since(&mut self.unknown_since, !is_known, now);
        let wait = match liveness {
            Liveness::Alive => Duration::ZERO,
            Liveness::Gone => self.doubt(snapshot).saturating_sub(nobody),
            _ => UNKNOWN.saturating_sub(unknown),
        };
        let serving = |p: &&ProcessStatus| p.role == Role::Worker && p.liveness == Liveness::Alive;
        self.served = self.served.max(snapshot.processes.iter().filter(serving).map(|p| p.generation).max());
        let is_certain = wait.is_zero();
        let news = (is_certain && self.told != Some(liveness)).then_some(liveness);
        if news.is_some() {
            self.told = news;
        }
        if is_certain && liveness == Liveness::Gone {
            self.served = None;
        }
        let again = match liveness {
            _ if !is_certain => Some(wait.min(LOOKS)),
            // Nothing tells when that changes.
            _ if !is_known => Some(LOOKS),
            _ => None,
        };
        Verdict { news, again }
    }

    /// An event was read: somebody was alive to write it. If nobody is any more, that is told once more.
    pub(super) fn somebody_wrote(&mut self) {
        if self.told == Some(Liveness::Gone) {
            self.told = None;
            self.nobody_since = None;
        }
    }

    fn doubt(&self, snapshot: &Snapshot) -> Duration {
        let had_workers = || snapshot.generations.iter().any(|g| g.phase == Phase::Committed);
        // It may have been stopped and started between two looks.
        let was_started_since =
            |served| snapshot.generations.iter().any(|g| g.id > served && g.cause == Cause::Start);
        match self.told {
            Some(Liveness::Gone) => Duration::ZERO,
            _ if self.served.is_some_and(|served| !was_started_since(served)) => Duration::ZERO,
            _ if had_workers() => DOUBT,
            _ => LONG_DOUBT,
        }
    }
}

/// For how long something has been so.
fn since(kept: &mut Option<Instant>, is: bool, now: Instant) -> Duration {
    *kept = is.then(|| kept.unwrap_or(now));
    kept.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::State;
    use crate::snapshot::GenerationStatus;

    fn look(processes: &[(Role, State)]) -> Snapshot {
        let mut snapshot = Snapshot::new("x");
        snapshot.processes = processes
            .iter()
            .zip(1..)
            .map(|(&(role, state), pid)| ProcessStatus::new(role, pid, state))
            .collect();
        snapshot
    }

    const NONE: Verdict = Verdict { news: None, again: None };

    fn told(news: Liveness) -> Verdict {
        Verdict { news: Some(news), again: None }
    }

    use Liveness::{Alive, Gone};
    use Role::{Helper, Master, Worker};
    use State::{Died, Serving};

    /// Stopped and started again so soon that nobody saw it gone, and on its way into the background.
    #[test]
    fn a_node_that_was_started_since_it_served_gets_its_time() {
        let now = Instant::now();
        let mut life = Life::default();
        let mut serving = look(&[(Master, Serving), (Worker, Serving)]);
        serving.processes.iter_mut().for_each(|p| p.generation = 6);
        assert_eq!(life.judge(&serving, now), told(Alive));
        let mut started = look(&[(Master, Died)]);
        started.generations.push(GenerationStatus::new(7, Phase::Announced));
        started.generations[0].cause = Cause::Start;
        assert_eq!(life.judge(&started, now).news, None);
        assert_eq!(life.judge(&started, now + LONG_DOUBT).news, Some(Gone));

        let mut life = Life::default();
        assert_eq!(life.judge(&serving, now), told(Alive));
        started.generations[0].cause = Cause::Reload;
        assert_eq!(life.judge(&started, now), told(Gone), "a reload is no start");
    }

    #[test]
    fn a_node_that_served_dies_at_once_and_once() {
        let (mut life, now) = (Life::default(), Instant::now());
        let served = look(&[(Master, Serving), (Worker, Serving)]);
        assert_eq!(life.judge(&served, now), told(Alive));
        assert_eq!(life.judge(&served, now), NONE);
        // One after the other.
        assert_eq!(life.judge(&look(&[(Master, Serving), (Worker, Died)]), now), NONE);
        let dead = look(&[(Master, Died), (Worker, Died), (Helper, Serving)]);
        assert_eq!(life.judge(&dead, now), told(Gone));
        assert_eq!(life.judge(&dead, now), NONE);
        // Another run, of which nobody was seen alive.
        life.somebody_wrote();
        assert_eq!(life.judge(&dead, now), Verdict { news: None, again: Some(LOOKS) });
        assert_eq!(life.judge(&dead, now + LONG_DOUBT), told(Gone));
        assert_eq!(life.judge(&served, now), told(Alive));
    }

    #[test]
    fn a_server_that_goes_into_the_background_does_not_die() {
        let (mut life, now) = (Life::default(), Instant::now());
        let (there, nobody) = (look(&[(Master, Serving)]), look(&[(Master, Died)]));
        assert_eq!(life.judge(&there, now), told(Alive));
        let again = |again| Verdict { news: None, again: Some(again) };
        assert_eq!(life.judge(&nobody, now), again(LOOKS));
        assert_eq!(life.judge(&nobody, now + LONG_DOUBT / 2), again(LOOKS));
        assert_eq!(life.judge(&there, now + LONG_DOUBT), NONE);
        // The time begins anew.
        assert_eq!(life.judge(&nobody, now + LONG_DOUBT), again(LOOKS));
        assert_eq!(life.judge(&nobody, now + LONG_DOUBT * 2), told(Gone));
        assert_eq!(life.judge(&there, now + LONG_DOUBT * 2), told(Alive));
        let mut of_earlier_run = nobody;
        of_earlier_run.generations = vec![GenerationStatus::new(1, Phase::Committed)];
        assert_eq!(life.judge(&of_earlier_run, now + LONG_DOUBT * 3), again(DOUBT));
        assert_eq!(life.judge(&of_earlier_run, now + LONG_DOUBT * 3 + DOUBT), told(Gone));
    }

    #[test]
    fn what_is_not_known_for_long_is_told_and_looked_at_again() {
        let (mut life, now) = (Life::default(), Instant::now());
        let unknown = look(&[(Master, State::Unknown)]);
        let again = Some(LOOKS);
        assert_eq!(life.judge(&unknown, now), Verdict { news: None, again });
        assert_eq!(life.judge(&unknown, now + UNKNOWN / 2), Verdict { news: None, again });
        assert_eq!(life.judge(&unknown, now + UNKNOWN), Verdict { news: Some(unknown.liveness()), again });
        assert_eq!(life.judge(&unknown, now + UNKNOWN * 2), Verdict { news: None, again });
        assert_eq!(life.judge(&look(&[(Worker, Serving)]), now + UNKNOWN * 2), told(Alive));
    }
}
