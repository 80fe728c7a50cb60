//! A worker's own hand on its slot.

use std::time::Duration;

use crate::engine::node_lock::{Hold, Operation, Wait};
use crate::engine::sentinel::Watch;
use crate::engine::transitions::{Reported, Stage, Transitions};
use crate::error::{Error, ErrorKind, Result};
use crate::event::GenerationId;
use crate::lifecycle::{Intent, Scope};
use crate::node::{Node, SlotRef};
use crate::sys::atomic::Ordering::{Acquire, Relaxed};
use crate::sys::clock;

/// This process, as a worker or helper of a generation.
///
/// It belongs to the process that joined. Threads may share it; a forked child must not use it (every
/// call but [`Worker::beat`] finds out and fails). Dropping it does not leave: a process that just ends has
/// died, and is reported so.
#[derive(Clone)]
pub struct Worker {
    node: Node,
    generation: GenerationId,
    slot: SlotRef,
}

impl Worker {
    pub(crate) fn new(node: Node, generation: GenerationId, slot: SlotRef) -> Worker {
        Worker { node, generation, slot }
    }

    /// The generation that it joined.
    #[must_use]
    pub fn generation(&self) -> GenerationId {
        self.generation
    }

    /// Its node.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Says "I make progress". Call it from the loop that does the work, at least every
    /// `heartbeat_interval`, and from nowhere else: a beat from a thread of its own proves nothing.
    ///
    /// One look at the clock and one store; no lock, no system call. Does nothing once it has left.
    #[inline]
    pub fn beat(&self) {
        self.beat_at(clock::boot_ns());
    }

    /// The same, with the time as the caller has it.
    #[inline]
    pub(crate) fn beat_at(&self, now: u64) {
        let Ok(slot) = self.node.inner.slot(self.slot.index) else { return };
        if slot.version.load(Relaxed) != self.slot.version {
            // It has left, and the slot may be somebody else's by now.
            return;
        }
        slot.heartbeat_ns.store(now, Relaxed);
        if slot.stalled_seq.load(Relaxed) > slot.recovered_seq.load(Relaxed) {
            // Said to be stalled: have it taken back now.
            self.node.inner.wake();
        }
    }

    /// It takes no new work from now on, and finishes what it has.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] if this process has left, or is not the one that joined;
    /// [`ErrorKind::LockTimeout`] or [`ErrorKind::Busy`] if the node lock was not to be had.
    pub fn drain(&self, wait: Wait) -> Reported {
        self.check()?;
        let slot = self.node.inner.slot(self.slot.index)?;
        if Intent::from_code(slot.intent.load(Acquire)) == Intent::Draining {
            return Ok(Transitions::none());
        }
        let hold = Hold::acquire(&self.node, wait, Operation::Drain)?;
        Ok(Transitions::new(hold, [Stage::Drain(self.slot.index)]))
    }

    /// It leaves: its last words. If it was the last of its generation, the generation's end is reported
    /// as well; if nobody else is left in the node, everything that is still open.
    ///
    /// # Errors
    /// As those of [`Worker::drain`]. A process that ends without having left has died.
    pub fn leave(&self, wait: Wait) -> Reported {
        self.check()?;
        let hold = Hold::acquire(&self.node, wait, Operation::Leave)?;
        let index = self.slot.index;
        let mut stages = vec![
            Stage::Settle(Scope::Tidy),
            Stage::Exit(index),
            Stage::Settle(Scope::Generation(self.generation)),
        ];
        if hold.facts().nobody_else(Some(index)) {
            stages.push(Stage::Settle(Scope::Everything));
        }
        self.node.inner.wake();
        Ok(Transitions::new(hold, stages))
    }

    /// What this process is told about the others: see [`Watch`].
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when there are no descriptors left.
    pub fn watch(&self) -> Result<Watch> {
        self.check()?;
        Watch::new(self.node.clone(), self.slot)
    }

    /// The same for one that looks by itself when the watch says.
    pub(crate) fn watch_without_timer(&self, now: u64) -> Result<Watch> {
        Watch::without_timer(self.node.clone(), self.slot, now)
    }

    /// Whether its heartbeat is: nobody else had a chance to beat either, if it was this process that slept.
    pub(crate) fn is_overdue(&self, now: u64) -> bool {
        let beaten =
            self.node.inner.slot(self.slot.index).map_or(now, |slot| slot.heartbeat_ns.load(Relaxed));
        Duration::from_nanos(now.saturating_sub(beaten)) > self.node.inner.settings().stall_after
    }

    fn check(&self) -> Result<()> {
        let ours = self.node.inner.local().joined.contains(&self.slot);
        let same = self.node.inner.slot(self.slot.index)?.version.load(Acquire) == self.slot.version;
        if ours && same {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::WrongState,
            format!(
                "this process is not (any more) the worker in slot {} of {}",
                self.slot.index,
                self.node.inner.place()
            ),
        ))
    }
}
