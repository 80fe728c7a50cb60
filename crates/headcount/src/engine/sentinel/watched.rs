//! Whom a worker watches, and how those have died.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll;

use super::{Watch, sentinel_index};
use crate::event::Role;
use crate::lifecycle::{Facts, SlotFacts};
use crate::sys::atomic::Ordering::Acquire;
use crate::sys::clock::nanos as ns;
use crate::sys::identity::Liveness;
use crate::sys::process::PidfdState;
use crate::sys::{clock, process};

pub(super) struct Watched {
    version: u64,
    pid: u32,
    pidfd: OwnedFd,
}

/// How long a death may wait for its cause: until the parent has asked for it, or this long.
const CAUSE_PATIENCE: Duration = Duration::from_millis(20);
/// Within one call: as long as a parent usually takes.
const CAUSE_BLOCK: Duration = Duration::from_millis(1);

impl Watch {
    /// Watches those of these slots that others hold, and nobody else.
    pub(super) fn watch_those(&mut self, facts: &Facts, wanted: impl Fn(u32) -> bool) {
        let me = self.me.index;
        let wanted: Vec<_> = facts.slots.iter().filter(|s| s.index != me && wanted(s.index)).collect();
        self.watched.retain(|index, w| wanted.iter().any(|s| s.index == *index && s.version == w.version));
        wanted.into_iter().for_each(|slot| self.watch(slot));
    }

    /// Watches the sentinel from now on, without a look: how it ended can only be told by who watched it before its parent
    /// asked.
    pub(crate) fn watch_sentinel(&mut self) {
        let Some(index) = sentinel_index(&self.inner).filter(|index| *index != self.me.index) else { return };
        let head = self.inner.header().head.load(Acquire);
        let slot = self.inner.view().slot(index, head, &mut |_| Liveness::Alive);
        slot.iter().for_each(|slot| self.watch(slot));
    }

    fn watch(&mut self, slot: &SlotFacts) {
        if self.watched.get(&slot.index).is_some_and(|w| w.version == slot.version)
            || slot.liveness != Liveness::Alive
        {
            return;
        }
        // The descriptors are the server's first of all. Who is not watched is looked at once a second. One process in
        // many slots is somebody who wants to use them up.
        let pid = slot.pid();
        if self.watched.len() >= self.most_watched || self.watched.values().any(|w| w.pid == pid) {
            return;
        }
        let Ok(pidfd) = process::open_pidfd(pid) else {
            // Gone in this moment (the next look sees it), or no descriptors left (the timer stands in).
            return;
        };
        // Only now is it certain that the pidfd is of that process, and not of one that got its number.
        if self.inner.liveness_of(slot) != Liveness::Alive {
            return;
        }
        let data = epoll::EventData::new_u64(u64::from(slot.index));
        // Edges: a death is one, and the parent's asking for the status is another.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        if epoll::add(&self.epoll, &pidfd, data, flags).is_ok() {
            self.watched.insert(slot.index, Watched { version: slot.version, pid, pidfd });
        }
    }

    /// Asks the kernel how the dead have died. `true`: somebody may tell about one in a moment (the kernel,
    /// once its parent has asked; or its parent, see [`crate::Node::child_exited`]), so that it is to be waited for.
    pub(super) fn find_causes(&mut self, facts: &Facts, now: u64) -> bool {
        let mut block = CAUSE_BLOCK;
        let mut undecided = false;
        let unexplained = |s: &&SlotFacts| {
            s.liveness == Liveness::Gone && matches!(s.role, Role::Master | Role::Worker) && s.needs_cause()
        };
        self.dead_since.retain(|&(index, version), _| {
            facts.slots.iter().any(|s| s.index == index && s.version == version)
        });
        for slot in facts.slots.iter().filter(unexplained) {
            let begun = clock::boot_ns();
            if let Some(watched) = self.watched.get(&slot.index).filter(|w| w.version == slot.version) {
                let tell = |status: i32| self.inner.note_end(slot.index, slot.version, status);
                // Mostly known before the parent has asked, which takes as long again as all the rest.
                let state = process::pidfd_state(watched.pidfd.as_fd(), Duration::ZERO);
                if state == PidfdState::Zombie {
                    if let Some(status) = process::zombie_status(watched.pidfd.as_fd(), slot.pid()) {
                        tell(status);
                        continue;
                    }
                }
                let state = process::pidfd_state(watched.pidfd.as_fd(), block);
                block = block.saturating_sub(Duration::from_nanos(clock::boot_ns().saturating_sub(begun)));
                if state == PidfdState::Reaped {
                    if let Some(status) = process::wait_status(watched.pidfd.as_fd()) {
                        tell(status);
                    }
                    continue;
                }
            }
            let since = *self.dead_since.entry((slot.index, slot.version)).or_insert(now);
            undecided |= clock::boot_ns().saturating_sub(since) < ns(CAUSE_PATIENCE);
        }
        undecided
    }
}
