//! A master's calls: it claims the node, begins generations, and leaves.

use std::os::fd::AsFd;
use std::time::Duration;

use crate::engine::node_lock::{Hold, Operation, Wait};
use crate::engine::opening::OPEN_LOCKS;
use crate::engine::transitions::{Reported, Stage, Transitions, tidy};
use crate::error::Result;
use crate::event::{Cause, GenerationId, Role};
use crate::generation::{Begin, Generation};
use crate::lifecycle::{Intent, Liveness, Phase, Scope};
use crate::node::{Node, SlotRef};
use crate::sys::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use crate::sys::process;

/// What came of the attempt to be a node's master.
pub(crate) enum Claim {
    Ours,
    /// Another, unrelated master has it.
    Taken(u32),
    /// The files that are open are no longer those at the node's path.
    Removed,
}

impl Node {
    /// Begins a generation: the configuration has been read, its workers are about to be forked.
    ///
    /// To be called in the master. The generation is announced, and reported as started; see
    /// [`Generation::commit`] and [`Generation::abandon`].
    ///
    /// # Errors
    /// [`crate::ErrorKind::LockTimeout`] if the node lock was not to be had: then [`Node::reserve_generation`]
    /// gives a number that workers can join all the same. [`crate::ErrorKind::Full`] if there are too many
    /// generations.
    pub fn begin_generation(&self, begin: Begin) -> Result<(Generation, Transitions)> {
        let hold = Hold::acquire(self, Wait::Timeout, Operation::Begin)?;
        let cause = begin.cause.unwrap_or_else(|| hold.guess_cause());
        // Written down with the generation before anything of it is cleared away: should this process die
        // meanwhile, the next start finds both.
        let previous = (cause == Cause::Start).then(|| hold.look_at_previous_run());
        let id = self.reserve_generation();
        let master = self.inner.local().master;
        hold.new_generation(id, cause, Phase::Announced, begin.workers, master, previous)?;
        if previous.is_some() {
            self.inner.store.region.header().runs.fetch_add(1, Relaxed);
            hold.clear_previous_run();
        }
        let mut local = self.inner.local();
        local.begun = Some(id);
        drop(local);
        let stages = [Stage::Settle(Scope::Tidy), Stage::StartGeneration(id)];
        Ok((self.generation(id), Transitions::new(hold, stages)))
    }

    /// A number for a generation that could not be begun because the node lock was not to be had. Its first
    /// worker begins it.
    #[must_use]
    pub fn reserve_generation(&self) -> GenerationId {
        /// As many as a Lua number holds exactly.
        const MOST: GenerationId = 1 << 53;
        let last = &self.inner.store.region.header().last_generation;
        let mut old = last.load(Acquire);
        loop {
            let next = if old < MOST {
                old + 1
            } else {
                // Somebody has spoiled it: go on from what is in the table.
                let known = self.inner.view().used_generations().iter().map(|g| g.id.load(Relaxed));
                known.filter(|&id| id < MOST).max().unwrap_or(0) + 1
            };
            match last.compare_exchange(old, next, AcqRel, Acquire) {
                Ok(_) => return next,
                Err(now) => old = now,
            }
        }
    }

    /// Makes this process the master, if the one that opened the node was only its parent that went into
    /// the background. To be called before the first worker is forked; costs nothing when there is nothing
    /// to do. `Ok(true)`: it has become the master.
    ///
    /// # Errors
    /// As those of [`Generation::join`].
    pub fn adopt_master(&self) -> Result<bool> {
        let local = self.inner.local();
        let Some((old, old_pid)) = local
            .inherited_master
            .filter(|_| local.master.is_none() && local.joined.is_empty() && !local.no_master)
        else {
            return Ok(false);
        };
        drop(local);
        // The parent of a process that goes into the background ends at once. One that is still there after this time, and
        // not about to end, is a master, and we are a child of its own. On a machine that has too much to do, "at once"
        // takes its time, and its memory that is given back takes more.
        const PATIENCE: Duration = Duration::from_millis(500);
        const PATIENCE_WITH_ONE_THAT_ENDS: Duration = Duration::from_secs(10);
        let lives = || self.inner.liveness(&[], old.index, old.version, old_pid) == Liveness::Alive;
        if lives()
            && let Ok(pidfd) = process::open_pidfd(old_pid)
        {
            process::wait_for_end(pidfd.as_fd(), PATIENCE);
            if lives() && process::is_ending(old_pid) {
                process::wait_for_end(pidfd.as_fd(), PATIENCE_WITH_ONE_THAT_ENDS);
            }
        }
        if lives() {
            self.inner.local().no_master = true;
            return Ok(false);
        }
        let hold = Hold::acquire(self, Wait::Timeout, Operation::Begin)?;
        let slot = self.claim_master_slot()?;
        for record in self.inner.view().used_generations() {
            if record.master_slot.load(Relaxed) == old.index
                && record.master_version.load(Relaxed) == old.version
            {
                record.master_slot.store(slot.index, Relaxed);
                record.master_version.store(slot.version, Relaxed);
                record.master_pid.store(process::pid(), Relaxed);
            }
        }
        // The old one's slot has nothing left to tell.
        tidy(&hold);
        drop(hold);
        Ok(true)
    }

    /// The master leaves properly. If no process of the node is left, it reports what nobody was left to
    /// report. Does nothing in a process that is no master.
    ///
    /// # Errors
    /// [`crate::ErrorKind::LockTimeout`] or [`crate::ErrorKind::Busy`] if the node lock was not to be had.
    pub fn leave_master(&self, wait: Wait) -> Reported {
        let Some(master) = self.inner.local().master else { return Ok(Transitions::none()) };
        let hold = Hold::acquire(self, wait, Operation::Leave)?;
        let facts = hold.facts();
        let alone = !facts
            .slots
            .iter()
            .any(|s| s.role != Role::Helper && s.index != master.index && s.liveness != Liveness::Gone);
        let scope = if alone { Scope::LastWord } else { Scope::Tidy };
        Ok(Transitions::new(hold, [Stage::Settle(scope), Stage::ExitMaster(master.index)]))
    }

    /// Makes this process a master of the node.
    pub(crate) fn claim_master(&self, predecessor: Option<u32>) -> Result<Claim> {
        let hold = Hold::acquire(self, Wait::Timeout, Operation::Open)?;
        // Whoever removes the files of a node that is gone holds the lock while he does: from here on he finds us alive.
        if !self.inner.store.is_current() {
            return Ok(Claim::Removed);
        }
        let related = [process::parent_pid(), process::pid(), predecessor.unwrap_or(0)];
        let facts = hold.facts();
        let stranger = facts
            .slots
            .iter()
            .find(|s| s.role == Role::Master && s.liveness != Liveness::Gone && !related.contains(&s.pid));
        if let Some(stranger) = stranger {
            return Ok(Claim::Taken(stranger.pid));
        }
        self.claim_master_slot()?;
        if let Some(identity) = self.path().and_then(crate::registry::files::lock_identity) {
            let mut known = crate::node::relock(&OPEN_LOCKS);
            if !known.contains(&identity) {
                known.push(identity);
            }
        }
        let header = self.inner.store.region.header();
        let boot = crate::registry::header::boot_id();
        for (word, value) in header.boot_id.iter().zip(boot) {
            word.store(value, Relaxed);
        }
        Ok(Claim::Ours)
    }

    fn claim_master_slot(&self) -> Result<SlotRef> {
        let slot = self.claim_slot(Role::Master, |slot| {
            slot.intent.store(Intent::Serving.code(), Relaxed);
        })?;
        let mut local = self.inner.local();
        local.master = Some(slot);
        local.inherited_master = None;
        drop(local);
        Ok(slot)
    }
}

impl Hold {
    fn guess_cause(&self) -> Cause {
        let local = self.node.inner.local();
        if local.begun.is_some() {
            return Cause::Reload;
        }
        let own = local.master.map(|m| m.index);
        drop(local);
        let other_master = self
            .facts()
            .slots
            .iter()
            .any(|s| s.role == Role::Master && Some(s.index) != own && s.liveness == Liveness::Alive);
        if other_master { Cause::Upgrade } else { Cause::Start }
    }
}
