//! Whether anybody of the node is alive. When nobody is, nobody is left to write it into the journal.

use std::time::{Duration, Instant};

use headcount::{Liveness, Observer, Phase, Role, Snapshot, State};

/// Between two looks at a node that lives. One look is a copy of some pages and one question for each process.
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);
/// Nobody may be alive for a moment: a server that goes into the background ends one process before the next one has its
/// lock. For so long that is no death,
const DOUBT: Duration = Duration::from_millis(250);
/// and for so long if no worker was ever there.
const LONG_DOUBT: Duration = Duration::from_secs(2);
/// Without the lock file, one that is dead and was not waited for yet is unknown: for so long that is nothing to warn of.
const UNKNOWN: Duration = Duration::from_secs(10);

/// Looks again and again.
#[derive(Default)]
pub struct Pulse {
    last: Option<Instant>,
    nobody_since: Option<Instant>,
    unknown_since: Option<Instant>,
}

/// What a look says.
pub enum Verdict {
    /// Somebody is alive.
    Alive,
    /// Nobody is, or nobody knows, but that may be for a moment.
    Doubtful,
    /// It has not been possible to know for a while.
    Unknown,
    /// Nobody is, and has not been for a while.
    Gone,
}

impl Pulse {
    /// Whether it is time for a look.
    pub fn is_due(&self) -> bool {
        self.nobody_since.is_some() || self.last.is_none_or(|last| last.elapsed() >= BETWEEN_LOOKS)
    }

    /// Takes a look.
    pub fn look(&mut self, observer: &Observer) -> headcount::Result<(Verdict, Snapshot)> {
        let snapshot = observer.snapshot()?;
        let now = Instant::now();
        self.last = Some(now);
        let liveness = snapshot.liveness();
        let since = |kept: &mut Option<Instant>, is: bool| {
            *kept = is.then(|| kept.unwrap_or(now));
            kept.map_or(Duration::ZERO, |since| now.duration_since(since))
        };
        let nobody = since(&mut self.nobody_since, liveness == Liveness::Gone);
        let is_known = matches!(liveness, Liveness::Alive | Liveness::Gone);
        let unknown = since(&mut self.unknown_since, !is_known);
        let verdict = match liveness {
            Liveness::Alive => Verdict::Alive,
            Liveness::Gone if nobody >= doubt(&snapshot) => Verdict::Gone,
            _ if unknown >= UNKNOWN => Verdict::Unknown,
            _ => Verdict::Doubtful,
        };
        Ok((verdict, snapshot))
    }
}

/// Whether somebody is alive, or may be just about to be.
pub fn may_live(snapshot: &Snapshot) -> bool {
    snapshot.liveness() != Liveness::Gone
        || snapshot.generations.iter().any(|g| g.phase == Phase::Announced && g.age < LONG_DOUBT)
}

/// Whether some worker is there that does not leave.
pub fn serves(snapshot: &Snapshot) -> bool {
    let mut workers = snapshot.processes.iter().filter(|p| p.role == Role::Worker);
    workers.any(|p| {
        p.liveness == Liveness::Alive
            && matches!(p.state, State::Starting | State::Serving | State::Stalled | State::Orphaned)
    })
}

fn doubt(snapshot: &Snapshot) -> Duration {
    let had_worker = snapshot.generations.iter().any(|g| g.phase == Phase::Committed);
    if had_worker { DOUBT } else { LONG_DOUBT }
}
