//! A worker's own hand on its slot.

use crate::engine::node_lock::{Operation, Wait};
use crate::engine::process::relock;
use crate::engine::sentinel::Watch;
use crate::engine::session::Session;
use crate::engine::transitions::Transitions;
use crate::error::{Error, ErrorKind, Result};
use crate::event::GenerationId;
use crate::lifecycle::{Intent, Scope, SlotRef, Stage};
use crate::node::Node;
use crate::registry::layout::Slot;
use crate::sys::atomic::Ordering::{Acquire, Relaxed};
use crate::sys::clock;

/// This process, as a worker or helper of a generation.
///
/// It belongs to the process that joined. Threads may share it; a forked child must not use it (every
/// call but [`Worker::beat`] finds out and fails). Dropping it does not leave: a process that just ends has
/// died, and is reported so.
#[derive(Clone)]
pub struct Worker {
    pub(crate) node: Node,
    generation: GenerationId,
    pub(crate) slot: SlotRef,
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
    /// Two looks at the clock and two stores; no lock, no system call. Does nothing once it has left.
    #[inline]
    pub fn beat(&self) {
        self.beat_at(clock::boot_ns());
    }

    /// The same, with the time as the caller has it.
    #[inline]
    pub(crate) fn beat_at(&self, now: u64) {
        let Some(slot) = self.node.inner.slot(self.slot.index) else { return };
        if slot.version.load(Relaxed) != self.slot.version {
            // It has left, and the slot may be somebody else's by now.
            return;
        }
        slot.beat(now);
        if slot.stalled_seq.load(Relaxed) > slot.recovered_seq.load(Relaxed) {
            // Said to be stalled: have it taken back now.
            self.node.inner.ring();
        }
    }

    /// It takes no new work from now on, and finishes what it has.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] if this process has left, or is not the one that joined;
    /// [`ErrorKind::LockTimeout`] or [`ErrorKind::Busy`] if somebody else holds the node lock.
    pub fn drain(&self, wait: Wait) -> Result<Transitions> {
        self.check()?;
        let intent = |slot: &Slot| Intent::from_code(slot.intent.load(Acquire));
        if self.node.inner.slot(self.slot.index).and_then(intent) == Some(Intent::Draining) {
            return Ok(Transitions::none());
        }
        let session = Session::begin(&self.node.inner, wait, Operation::Drain)?;
        Ok(Transitions::new(session, [Stage::Drain(self.slot.index)]))
    }

    /// It leaves: its last words. If it was the last of its generation, the generation's end is reported
    /// as well; if nobody else is left in the node, everything that is still open.
    ///
    /// # Errors
    /// As those of [`Worker::drain`]. A process that ends without having left has died.
    pub fn leave(&self, wait: Wait) -> Result<Transitions> {
        self.check()?;
        let session = Session::begin(&self.node.inner, wait, Operation::Leave)?;
        let index = self.slot.index;
        let mut stages = vec![
            Stage::Settle(Scope::Tidy),
            Stage::LetGo(index),
            Stage::Exit(index),
            Stage::Settle(Scope::Generation(self.generation)),
        ];
        if session.facts().nobody_else(Some(index)) {
            stages.push(Stage::Settle(Scope::Everything));
        }
        self.node.inner.ring();
        Ok(Transitions::new(session, stages))
    }

    /// What this process is told about the others: see [`Watch`].
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when there are no descriptors left.
    pub fn watch(&self) -> Result<Watch> {
        self.check()?;
        Watch::new(self.node.inner.clone(), self.slot)
    }

    /// The same for one that looks by itself when the watch says.
    pub(crate) fn watch_without_timer(&self, now: u64) -> Result<Watch> {
        Watch::without_timer(self.node.inner.clone(), self.slot, now)
    }

    /// Whether its heartbeat is: nobody else had a chance to beat either, if it was this process that slept.
    pub(crate) fn is_overdue(&self, now: u64) -> bool {
        let beaten =
            self.node.inner.slot(self.slot.index).map_or(now, |slot| slot.heartbeat_ns.load(Relaxed));
        now.saturating_sub(beaten) > clock::nanos(self.node.inner.settings().stall_after)
    }

    pub(crate) fn check(&self) -> Result<()> {
        let ours = relock(&self.node.inner.process().joined).contains(&self.slot);
        if ours { self.check_slot() } else { Err(self.no_longer()) }
    }

    /// The same by what the registry says, for a call that is made often.
    pub(crate) fn check_slot(&self) -> Result<()> {
        if self.node.inner.holds(self.slot) { Ok(()) } else { Err(self.no_longer()) }
    }

    fn no_longer(&self) -> Error {
        Error::new(
            ErrorKind::WrongState,
            format!(
                "this process is no longer the worker in slot {} of {}",
                self.slot.index,
                self.node.inner.place()
            ),
        )
    }
}
