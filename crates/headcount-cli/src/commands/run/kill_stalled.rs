//! `--kill-stalled-after`: ends a worker that has been stalled for too long, so that its master replaces it.
//!
//! In a thread of its own: a delivery that takes long does not hold it up, nor it a delivery.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use headcount::{Liveness, Observer, ProcessStatus, Role, Snapshot, State};
use headcount_report::age;
use rustix::process::{Signal, pidfd_send_signal};

use crate::args::NodeSelector;
use crate::find;
use crate::hooks::log::Log;
use crate::process;

/// How often it looks, at most and at least.
const LOOKS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Subjects of warnings that are not repeated.
const NODE: &str = "kill-stalled: node";
const WORKER: &str = "kill-stalled: worker";

/// Begins to look after the workers of this node.
pub fn start(selector: &NodeSelector, limit: Duration, quiet: bool) -> anyhow::Result<()> {
    let selector = selector.clone();
    let look_after = move || {
        let log = Log::new(quiet);
        let pause = (limit / 8).clamp(LOOKS.0, LOOKS.1);
        let mut registry = None;
        let mut watch = Watch::new(limit, pause);
        loop {
            match look(&selector, &mut registry, &mut watch, &log) {
                Ok(()) => log.is_well(NODE),
                Err(error) => {
                    log.warn_once(NODE, format!("no stalled worker would be killed now: {error:#}"))
                }
            }
            std::thread::sleep(pause);
        }
    };
    // It ends with the program.
    std::thread::Builder::new()
        .name("kill-stalled".into())
        .spawn(look_after)
        .context("cannot start a thread")?;
    Ok(())
}

fn look(
    selector: &NodeSelector,
    registry: &mut Option<PathBuf>,
    watch: &mut Watch,
    log: &Log,
) -> anyhow::Result<()> {
    // Once known, it stays, as for everything else that this program does.
    if registry.is_none() {
        *registry = find::the_one_meant(selector)?;
    }
    let Some(path) = registry.as_deref().filter(|path| path.exists()) else { return Ok(()) };
    let observer = Observer::open(path)?;
    let snapshot = observer.snapshot()?;
    let Some(worker) = watch.due(&snapshot, Instant::now()).cloned() else { return Ok(()) };
    match kill(path, &observer, &worker) {
        Ok(true) => {
            watch.killed.insert(key(&worker));
            log.is_well(WORKER);
            log.warn(format_args!(
                "killed {}: it had been stalled for more than {}, its last heartbeat was {} ago",
                name(&worker),
                age(watch.limit),
                age(worker.heartbeat_age)
            ));
        }
        // It beats again, or has ended.
        Ok(false) => {}
        Err(error) => log.warn_once(WORKER, format!("{} was not killed: {error:#}", name(&worker))),
    }
    Ok(())
}

fn name(worker: &ProcessStatus) -> String {
    let number = worker.worker_id.map_or(String::new(), |id| format!(" {id}"));
    format!("worker{number} (pid {}) of generation {}", worker.pid, worker.generation)
}

/// One claim of a slot: the heartbeat of a stalled worker does not change, so there is nothing else to tell two by that had
/// the same pid, one after the other.
type Key = (u32, u64);

fn key(worker: &ProcessStatus) -> Key {
    (worker.pid, worker.generation)
}

/// Who has been seen stalled since when, by our own looks: what the registry says of the time before is no reason. A host that
/// slept, or a container that was frozen, would lose all its workers when it wakes up.
struct Watch {
    limit: Duration,
    pause: Duration,
    looked: Option<Instant>,
    since: BTreeMap<Key, Instant>,
    killed: BTreeSet<Key>,
}

impl Watch {
    fn new(limit: Duration, pause: Duration) -> Watch {
        Watch { limit, pause, looked: None, since: BTreeMap::new(), killed: BTreeSet::new() }
    }

    /// The one that has been stalled for longest, if for too long. One at a look: if everything stands for a while, not
    /// all workers die at once.
    fn due<'a>(&mut self, snapshot: &'a Snapshot, now: Instant) -> Option<&'a ProcessStatus> {
        // We were stopped ourselves.
        let most = self.pause * 4 + Duration::from_secs(1);
        if self.looked.replace(now).is_some_and(|looked| now.saturating_duration_since(looked) > most) {
            self.since.clear();
        }
        let stalled: Vec<_> = snapshot
            .processes
            .iter()
            .filter(|p| p.role == Role::Worker && p.state == State::Stalled && p.liveness == Liveness::Alive)
            .collect();
        let keys: BTreeSet<_> = stalled.iter().map(|worker| key(worker)).collect();
        self.since.retain(|known, _| keys.contains(known));
        self.killed.retain(|known| keys.contains(known));
        for &key in &keys {
            self.since.entry(key).or_insert(now);
        }
        let since = |worker: &&ProcessStatus| self.since.get(&key(worker)).copied();
        let is_due = |worker: &&ProcessStatus| {
            let waited = since(worker).map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
            waited >= self.limit && !self.killed.contains(&key(worker))
        };
        stalled.into_iter().filter(is_due).min_by_key(since)
    }
}

/// Kills it, if it is what the registry says by what the kernel says. `false`: it is not stalled any more.
fn kill(registry: &Path, observer: &Observer, worker: &ProcessStatus) -> anyhow::Result<bool> {
    // Held before it is looked at, so that what is found out is true of the process that is killed.
    let Some(fd) = process::hold(worker.pid)? else { return Ok(false) };
    let snapshot = observer.snapshot()?;
    let is_it =
        |p: &&ProcessStatus| key(p) == key(worker) && p.role == Role::Worker && p.state == State::Stalled;
    let Some(now) = snapshot.processes.iter().find(is_it) else { return Ok(false) };
    if !observer.is_proven(now)? {
        bail!(
            "it does not hold a lock of the registry (if the server runs in a container, run this inside it)"
        );
    }
    // A worker may write anything into the registry, also that its master is a stalled worker. A worker is the child of a
    // master of the node, and a master is not, unless another one has started it for an upgrade.
    let masters =
        || snapshot.processes.iter().filter(|p| p.role == Role::Master && p.liveness == Liveness::Alive);
    let parent = process::parent(worker.pid).context("cannot tell whose child it is")?;
    let Some(master) = masters().find(|master| master.pid == parent) else {
        bail!("it is no child of a live master of the node, so nothing would replace it");
    };
    if !observer.is_proven(master)? {
        bail!("its parent {parent} does not hold a lock of the registry");
    }
    if masters().any(|master| master.pid == worker.pid)
        || snapshot.generations.iter().any(|g| g.master == worker.pid)
    {
        bail!("it is a master");
    }
    let owner = std::fs::symlink_metadata(registry)?.uid();
    let user = process::user(worker.pid).context("cannot tell who owns it")?;
    if !process::may_name(owner, user) {
        bail!("it belongs to uid {user}, and the registry to uid {owner}");
    }
    let others = snapshot.processes.iter().filter(|p| p.role == Role::Worker && p.pid != worker.pid);
    if user == owner && others.filter_map(|p| process::user(p.pid)).any(|other| other != owner) {
        bail!("it runs as uid {user}, and the other workers do not");
    }
    pidfd_send_signal(&fd, Signal::KILL).context("cannot send SIGKILL")?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn node(workers: &[(u32, State)]) -> Snapshot {
        let mut snapshot = Snapshot::new("x");
        snapshot.processes = workers
            .iter()
            .map(|&(pid, state)| {
                let mut worker = ProcessStatus::new(Role::Worker, pid, state);
                // As it is after the host has slept.
                worker.heartbeat_age = Duration::from_secs(100_000);
                worker
            })
            .collect();
        snapshot
    }

    /// Who is due at each of these seconds.
    fn due(looks: &[(u64, &[(u32, State)])]) -> Vec<Option<u32>> {
        let mut watch = Watch::new(10 * SECOND, SECOND);
        let begin = Instant::now();
        let looks = looks.iter().map(|&(second, workers)| {
            let due = watch.due(&node(workers), begin + u32::try_from(second).unwrap() * SECOND).map(key);
            watch.killed.extend(due);
            due.map(|(pid, _)| pid)
        });
        looks.collect()
    }

    #[test]
    fn only_who_was_seen_stalled_all_the_time() {
        use State::{Serving, Stalled};
        let stalled = &[(1, Stalled), (2, Serving)][..];
        let looks: Vec<_> = (0..14).map(|second| (second, stalled)).collect();
        let found = due(&looks);
        assert_eq!(found.iter().position(Option::is_some), Some(10), "{found:?}");
        assert_eq!(found.iter().flatten().count(), 1, "it is killed once: {found:?}");

        let mut recovered = looks.clone();
        recovered[5].1 = &[(1, Serving)];
        assert_eq!(due(&recovered).iter().flatten().count(), 0, "it begins anew");

        let slept: Vec<_> = looks.iter().map(|&(s, w)| (if s < 5 { s } else { s + 3_600 }, w)).collect();
        assert_eq!(due(&slept).iter().flatten().count(), 0, "nobody saw what was in that hour");
    }

    #[test]
    fn one_after_the_other() {
        let all = &[(1, State::Stalled), (2, State::Stalled)][..];
        let looks: Vec<_> =
            (0..13).map(|second| (second, if second == 0 { &all[1..] } else { all })).collect();
        let found: Vec<_> = due(&looks).into_iter().flatten().collect();
        assert_eq!(found, [2, 1], "the one that has stood for longest first");
    }
}
