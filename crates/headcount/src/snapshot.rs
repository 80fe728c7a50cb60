//! A node at one instant, for people and programs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::engine::look::{View, is_sentinel};
use crate::event::{Cause, Counts, Event, GenerationId, Kind, Role};
use crate::lifecycle::{Facts, Overview, Phase, SingletonKind, SingletonState, SlotFacts, State};
use crate::sys::atomic::Ordering::{Acquire, Relaxed};
use crate::sys::clock;
use crate::sys::identity::{Doubt, Identity, Liveness};

/// A node at one instant. True by the kernel, also when every process of the node is dead or hung.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The node's name.
    pub node: String,
    /// The registry's file, if it has one.
    pub path: Option<PathBuf>,
    /// The generations that are there, oldest first.
    pub generations: Vec<GenerationStatus>,
    /// The processes that are there, and those that died and have not been cleared away yet.
    pub processes: Vec<ProcessStatus>,
    /// The worker that watches the others.
    pub sentinel: Option<u32>,
    /// Who holds the node lock.
    pub holder: Option<Holder>,
    /// Roles, onces and locks, by name.
    pub singletons: Vec<SingletonStatus>,
    /// The number of the newest event.
    pub head: u64,
    /// The number of the newest event of an earlier boot; 0 if there is none. Up to there, [`crate::Event::boot_ns`] is of
    /// another clock.
    pub earlier_boots: u64,
    /// Live workers that are not stalled, over all generations.
    pub total: u32,
    /// How many events of each kind there have been since the registry was made. They only grow.
    pub event_counts: Vec<(Kind, u64)>,
    /// The settings by which everybody judges: those of the newest generation.
    pub settings: NodeSettings,
    /// When this was taken: nanoseconds since boot, suspend included, as in [`crate::Event::boot_ns`].
    pub boot_ns: u64,
    /// When this was taken: nanoseconds since 1970.
    pub time_ns: u64,
}

/// The settings of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeSettings {
    /// How often a worker is to beat.
    pub heartbeat_interval: Duration,
    /// How old a heartbeat may be before its worker is stalled.
    pub stall_after: Duration,
    /// How long a process waits for the node lock.
    pub lock_timeout: Duration,
}

/// A generation at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GenerationStatus {
    /// Its number.
    pub id: GenerationId,
    /// How far it is.
    pub phase: Phase,
    /// Why it began.
    pub cause: Cause,
    /// The process id of its master.
    pub master: u32,
    /// Whether that master is alive; `None` if this reader cannot tell.
    pub master_alive: Option<bool>,
    /// How long it has been there.
    pub age: Duration,
    /// When it began, nanoseconds since 1970.
    pub begun_ns: u64,
    /// The number of workers that it is to have, if the server said so.
    pub expected: Option<u32>,
    /// The counts, as its callbacks would get them.
    pub counts: Counts,
}

/// A process at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessStatus {
    /// Its process id.
    pub pid: u32,
    /// What it is.
    pub role: Role,
    /// Its generation; 0 for a master.
    pub generation: GenerationId,
    /// Its number within its generation.
    pub worker_id: Option<u32>,
    /// Its state, derived from what follows.
    pub state: State,
    /// What the kernel says.
    pub liveness: Liveness,
    /// Why it was started.
    pub cause: Cause,
    /// How long ago it joined.
    pub age: Duration,
    /// How long it has been starting, serving, draining or leaving.
    pub in_state_for: Duration,
    /// How old its last heartbeat is.
    pub heartbeat_age: Duration,
    /// Who exactly it is; `None` for one that was made for a test.
    pub(crate) identity: Option<Identity>,
}

/// A role, a once or a lock at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SingletonStatus {
    /// What it is.
    pub kind: SingletonKind,
    /// Its name.
    pub name: String,
    /// How it is with it.
    pub state: SingletonState,
    /// Of a once: the generation for which it stays done, 0 if it does so for the node. Else that of the holder.
    pub generation: GenerationId,
    /// The process that leads, holds the lock, or runs the once.
    pub holder: Option<u32>,
    /// The number of that worker.
    pub worker_id: Option<u32>,
    /// For how long it has been in this state, or the lock held by this process.
    pub since: Duration,
    /// The number of the tenure, or of the last one; 0 for a once.
    pub token: u64,
    /// How often a once was tried.
    pub attempts: u32,
    /// How many processes wait for the lock.
    pub waiters: u32,
}

/// Who holds the node lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// For how long it has held it.
    pub held_for: Duration,
    /// The callback that it runs, and for how long it has.
    pub callback: Option<(Kind, Duration)>,
}

impl Snapshot {
    /// A snapshot of a node of which nothing is known but its name: for tests of what reads snapshots. Those that count
    /// come from [`crate::Observer::snapshot`] and [`crate::Node::snapshot`].
    #[must_use]
    pub fn new(node: impl Into<String>) -> Snapshot {
        Snapshot {
            node: node.into(),
            path: None,
            generations: Vec::new(),
            processes: Vec::new(),
            sentinel: None,
            holder: None,
            singletons: Vec::new(),
            head: 0,
            earlier_boots: 0,
            total: 0,
            event_counts: Vec::new(),
            settings: NodeSettings::default(),
            boot_ns: 0,
            time_ns: 0,
        }
    }

    /// Whether what an event tells happened in an earlier boot of the machine. Then its times but `time_ns` say nothing.
    #[must_use]
    pub fn is_of_earlier_boot(&self, event: &Event) -> bool {
        // One of this boot may tell of a process that was found after the reboot.
        let has_no_beat =
            event.kind == Kind::WorkerDied && event.cause == Cause::Unclean && event.heartbeat_ns == 0;
        has_no_beat || (1..=self.earlier_boots).contains(&event.seq)
    }

    /// Whether the node is alive: a master or a worker of it is. A helper serves nobody, reports nothing and replaces
    /// nobody, so one that is left alone does not make the node alive; and a visitor is none of the server's. As long as nobody is known to be alive and one of
    /// them is unknown, so is the node.
    #[must_use]
    pub fn liveness(&self) -> Liveness {
        let mut node = Liveness::Gone;
        for process in self.processes.iter().filter(|p| matches!(p.role, Role::Master | Role::Worker)) {
            match process.liveness {
                Liveness::Alive => return Liveness::Alive,
                Liveness::Gone => {}
                unknown => node = unknown,
            }
        }
        node
    }

    /// The newest generation that has, or had, workers, or is certain to get them.
    #[must_use]
    pub fn newest_committed(&self) -> Option<&GenerationStatus> {
        self.generations.iter().filter(|g| g.phase == Phase::Committed).max_by_key(|g| g.id)
    }

    /// `may_hold`: whether the process that a word names can have the node lock.
    pub(crate) fn take(
        view: &View<'_>,
        facts: &Facts,
        node: &str,
        path: Option<&Path>,
        may_hold: &dyn Fn(u64) -> bool,
    ) -> Snapshot {
        let header = view.region.header();
        let age = |since: u64| Duration::from_nanos(facts.now.saturating_sub(since));
        let overview = Overview::of(facts);
        let mut generations: Vec<_> = facts
            .generations
            .iter()
            .filter(|g| g.ended_seq == 0)
            .map(|g| GenerationStatus {
                id: g.id,
                phase: g.phase,
                cause: g.cause,
                master: g.master_pid,
                master_alive: overview.master_alive(g),
                age: age(g.begun_ns),
                begun_ns: g.begun_wall_ns,
                expected: Some(g.expected).filter(|&n| n > 0),
                counts: overview.counts(g.id),
            })
            .collect();
        generations.sort_by_key(|g| g.id);
        let mut processes: Vec<_> = facts
            .slots
            .iter()
            .map(|s| ProcessStatus {
                pid: s.pid(),
                role: s.role,
                generation: s.generation,
                worker_id: s.worker_id,
                state: overview.state(s),
                liveness: s.liveness,
                cause: s.cause,
                age: age(s.joined_ns),
                in_state_for: age(s.intent_since_ns),
                heartbeat_age: age(s.heartbeat_ns),
                identity: Some(s.identity),
            })
            .collect();
        processes.sort_by_key(|p| (p.generation, p.role.code(), p.worker_id, p.pid));
        let sentinel = header.sentinel.load(Acquire);
        // One that died with it has left its name there.
        let lock = header.lock.load(Acquire);
        let holder = (lock != 0 && may_hold(lock)).then(|| Holder {
            pid: Identity::from_word(lock).pid,
            held_for: age(header.holder_since.load(Relaxed)),
            callback: Kind::from_code(header.callback_kind.load(Relaxed))
                .filter(|_| header.callback_seq.load(Relaxed) != 0)
                .map(|kind| (kind, age(header.callback_since.load(Relaxed)))),
        });
        Snapshot {
            node: node.to_owned(),
            path: path.map(Path::to_owned),
            generations,
            processes,
            sentinel: facts.slots.iter().find(|s| is_sentinel(sentinel, s)).map(|s| s.pid()),
            holder,
            singletons: singletons(facts),
            head: header.head.load(Acquire),
            earlier_boots: header.earlier_boots.load(Relaxed),
            total: overview.total(),
            event_counts: Kind::ALL
                .iter()
                .filter_map(|&kind| Some((kind, header.kinds.get(kind.code() as usize)?.load(Relaxed))))
                .collect(),
            settings: NodeSettings {
                heartbeat_interval: Duration::from_nanos(header.heartbeat_interval_ns.load(Relaxed)),
                stall_after: Duration::from_nanos(facts.stall_after),
                lock_timeout: Duration::from_nanos(header.lock_timeout_ns.load(Relaxed)),
            },
            boot_ns: facts.now,
            time_ns: clock::wall_ns(),
        }
    }
}

fn singletons(facts: &Facts) -> Vec<SingletonStatus> {
    let age = |since: u64| Duration::from_nanos(facts.now.saturating_sub(since));
    let mut all: Vec<_> = facts
        .singletons
        .iter()
        .map(|x| {
            let is_lock = x.kind == SingletonKind::Lock;
            let waits =
                |s: &&SlotFacts| is_lock && s.waits_for == Some(x.index) && s.liveness != Liveness::Gone;
            let mut status = SingletonStatus {
                since: age(x.since_ns),
                token: if x.kind == SingletonKind::Once { 0 } else { x.token },
                attempts: x.attempts,
                waiters: u32::try_from(facts.slots.iter().filter(waits).count()).unwrap_or(u32::MAX),
                generation: x.generation,
                ..SingletonStatus::new(x.kind, x.name.clone(), x.state)
            };
            let slot = match is_lock {
                true => facts.slots.iter().find(|s| x.word != 0 && s.identity.to_word() == x.word),
                false => facts.slots.iter().find(|s| x.owner == Some(s.at())),
            };
            if let Some(s) = slot {
                (status.holder, status.worker_id, status.generation) =
                    (Some(s.pid()), s.worker_id, s.generation);
            }
            if x.kind == SingletonKind::Once {
                status.generation = x.generation;
            } else if status.holder.is_none() {
                (status.state, status.generation) = (SingletonState::Free, 0);
            } else if is_lock {
                status.state = SingletonState::Held;
            }
            status
        })
        .collect();
    all.sort_by(|a, b| (a.kind.code(), &a.name, a.generation).cmp(&(b.kind.code(), &b.name, b.generation)));
    all
}

impl SingletonStatus {
    /// One that nobody has: for tests of what reads snapshots.
    #[must_use]
    pub fn new(kind: SingletonKind, name: impl Into<String>, state: SingletonState) -> SingletonStatus {
        SingletonStatus {
            kind,
            name: name.into(),
            state,
            generation: 0,
            holder: None,
            worker_id: None,
            since: Duration::ZERO,
            token: 0,
            attempts: 0,
            waiters: 0,
        }
    }
}

impl GenerationStatus {
    /// A generation without workers, whose master is not known: for tests of what reads snapshots.
    #[must_use]
    pub fn new(id: GenerationId, phase: Phase) -> GenerationStatus {
        GenerationStatus {
            id,
            phase,
            cause: Cause::Unknown,
            master: 0,
            master_alive: None,
            age: Duration::ZERO,
            begun_ns: 0,
            expected: None,
            counts: Counts::default(),
        }
    }
}

impl ProcessStatus {
    /// A process in this state, and as alive as that says: for tests of what reads snapshots.
    #[must_use]
    pub fn new(role: Role, pid: u32, state: State) -> ProcessStatus {
        ProcessStatus {
            pid,
            role,
            generation: 0,
            worker_id: None,
            state,
            liveness: match state {
                State::Died | State::Exited => Liveness::Gone,
                State::Unknown => Liveness::Unknown(Doubt::Refused),
                _ => Liveness::Alive,
            },
            cause: Cause::Unknown,
            age: Duration::ZERO,
            in_state_for: Duration::ZERO,
            heartbeat_age: Duration::ZERO,
            identity: None,
        }
    }
}

impl Holder {
    /// A process that has just taken the node lock: for tests of what reads snapshots.
    #[must_use]
    pub fn new(pid: u32) -> Holder {
        Holder { pid, held_for: Duration::ZERO, callback: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(processes: &[(Role, State)]) -> Snapshot {
        let processes =
            processes.iter().zip(1..).map(|(&(role, state), pid)| ProcessStatus::new(role, pid, state));
        Snapshot { processes: processes.collect(), ..Snapshot::new("x") }
    }

    #[test]
    fn a_master_or_a_worker_makes_a_node_alive_and_a_helper_does_not() {
        use Role::{Helper, Master, Visitor, Worker};
        use State::{Died, Exited, Serving, Unknown};
        for (processes, expected) in [
            (&[][..], Liveness::Gone),
            (&[(Master, Serving)], Liveness::Alive),
            (&[(Master, Died), (Worker, State::Orphaned)], Liveness::Alive),
            (&[(Master, Died), (Worker, State::Stalled)], Liveness::Alive),
            (&[(Master, Died), (Worker, Exited), (Worker, Died)], Liveness::Gone),
            (&[(Master, Died), (Worker, Died), (Helper, Serving)], Liveness::Gone),
            (&[(Master, Died), (Helper, Unknown)], Liveness::Gone),
            (&[(Master, Died), (Visitor, Serving), (Visitor, Unknown)], Liveness::Gone),
            (&[(Master, Unknown), (Worker, Died)], Liveness::Unknown(Doubt::Refused)),
            (&[(Master, Died), (Worker, Unknown), (Helper, Serving)], Liveness::Unknown(Doubt::Refused)),
            // In any order: one that is known to be alive is enough.
            (&[(Worker, Unknown), (Worker, Serving)], Liveness::Alive),
            (&[(Worker, Serving), (Worker, Unknown)], Liveness::Alive),
        ] {
            assert_eq!(node(processes).liveness(), expected, "{processes:?}");
        }
    }

    #[test]
    fn the_newest_committed_generation_is_not_announced_or_abandoned() {
        let mut snapshot = Snapshot::new("x");
        assert_eq!(snapshot.newest_committed(), None);
        let phases = [Phase::Committed, Phase::Committed, Phase::Abandoned, Phase::Announced];
        snapshot.generations =
            (1..).zip(phases).map(|(id, phase)| GenerationStatus::new(id, phase)).collect();
        assert_eq!(snapshot.newest_committed().map(|g| g.id), Some(2));
    }
}
