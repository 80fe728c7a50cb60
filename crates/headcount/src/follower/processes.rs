//! The live processes of a node, as descriptors that become readable when one ends.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll;
use rustix::io::Errno;

use crate::snapshot::{ProcessStatus, Snapshot};
use crate::sys::identity::{Identity, Liveness};
use crate::sys::process::{has_ended, open_pidfd};

/// Those that are held, by process id.
#[derive(Default)]
pub(super) struct Processes {
    held: BTreeMap<u32, Process>,
}

/// A process, until it is dropped.
struct Process {
    pidfd: OwnedFd,
    epoll: Arc<OwnedFd>,
}

impl Process {
    fn open(pid: u32, epoll: &Arc<OwnedFd>, token: u64) -> io::Result<Process> {
        let pidfd = open_pidfd(pid)?;
        epoll::add(epoll, &pidfd, epoll::EventData::new_u64(token), epoll::EventFlags::IN)?;
        Ok(Process { pidfd, epoll: Arc::clone(epoll) })
    }

    fn has_ended(&self) -> bool {
        has_ended(self.pidfd.as_fd())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // To close it is not enough: a child that was forked meanwhile has it as well, and then the epoll instance would
        // tell of its end for ever. Both descriptors are open, and the one is in the other, so this does not fail.
        let deleted = epoll::delete(&self.epoll, &self.pidfd);
        debug_assert!(deleted.is_ok(), "{deleted:?}");
    }
}

/// What [`Processes::hold`] did.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// These have ended.
    pub(super) ended: Vec<u32>,
    /// There are live ones that are not held: there are too many, this kernel opens no such descriptor for us, or they are
    /// in another pid namespace.
    pub(super) others: bool,
}

impl Processes {
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Holds the processes that are alive in this snapshot, and no others. `room`: for so many at most; a registry may
    /// name any process of this host. `token`: what the epoll instance says of a process that has ended.
    pub(super) fn hold(
        &mut self,
        snapshot: &Snapshot,
        epoll: &Arc<OwnedFd>,
        room: usize,
        token: impl Fn(u32) -> u64,
    ) -> Held {
        let mut held = Held::default();
        let (alive, elsewhere) = wanted(snapshot);
        held.others = elsewhere;
        let set: BTreeSet<_> = alive.iter().map(|process| process.pid).collect();
        self.held.retain(|pid, process| {
            let keep = set.contains(pid);
            // What left its node and lives on has not ended.
            if !keep && process.has_ended() {
                held.ended.push(*pid);
            }
            keep
        });
        for &ProcessStatus { pid, identity, .. } in alive {
            if self.held.contains_key(&pid) {
                continue;
            }
            if self.held.len() >= room {
                held.others = true;
                break;
            }
            match Process::open(pid, epoll, token(pid)) {
                // Its id was looked at before this was opened: only now is it certain that it is the same process.
                Ok(process) if identity.is_none_or(|identity| identity.liveness() == Liveness::Alive) => {
                    self.held.insert(pid, process);
                }
                // It has ended meanwhile; so it was there, and is not any more.
                Ok(_) => held.ended.push(pid),
                Err(e) if e.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => held.ended.push(pid),
                Err(_) => held.others = true,
            }
        }
        held
    }

    /// This one has ended: whether it was held.
    pub(super) fn let_go(&mut self, pid: u32) -> bool {
        self.held.remove(&pid).is_some()
    }
}

/// Each that is alive, once. Masters come first, then workers: as long as one of these is held, the end of the node is told.
/// And whether there are others in a pid namespace where their ids mean nothing to us.
fn wanted(snapshot: &Snapshot) -> (Vec<&ProcessStatus>, bool) {
    let namespace = Identity::own().namespace;
    let is_here = |p: &ProcessStatus| p.identity.is_none_or(|identity| identity.namespace == namespace);
    let alive = snapshot.processes.iter().filter(|p| p.liveness == Liveness::Alive && p.pid != 0);
    let (mut here, elsewhere): (Vec<_>, Vec<_>) = alive.partition(|p| is_here(p));
    here.sort_by_key(|p| (p.role.code(), p.pid));
    let mut seen = BTreeSet::new();
    here.retain(|p| seen.insert(p.pid));
    (here, !elsewhere.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Role;
    use crate::lifecycle::State;

    fn look(pids: &[u32]) -> Snapshot {
        let mut snapshot = Snapshot::new("x");
        snapshot.processes =
            pids.iter().map(|&pid| ProcessStatus::new(Role::Worker, pid, State::Serving)).collect();
        snapshot
    }

    #[test]
    fn a_registry_that_names_many_processes_gets_few_descriptors() {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
        let mut children: Vec<_> =
            (0..5).map(|_| std::process::Command::new("sleep").arg("60").spawn().unwrap()).collect();
        let pids: Vec<_> = children.iter().map(std::process::Child::id).collect();
        let mut processes = Processes::default();
        // The same one in a thousand slots is one.
        let mut held = processes.hold(&look(&vec![pids[0]; 1000]), &epoll, 3, u64::from);
        assert_eq!((held.others, processes.len()), (false, 1));
        held = processes.hold(&look(&pids), &epoll, 3, u64::from);
        assert_eq!((held.others, processes.len()), (true, 3));
        // Another look with others alive: those are let go of that left, and have not ended.
        held = processes.hold(&look(&pids[3..]), &epoll, 3, u64::from);
        assert_eq!((held.ended, processes.len()), (vec![], 2));
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        held = processes.hold(&look(&[]), &epoll, 3, u64::from);
        assert_eq!(held.ended, pids[3..]);
    }
}
