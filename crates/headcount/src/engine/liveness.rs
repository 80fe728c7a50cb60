//! Who of the node is alive, by the cheapest question that proves it.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use crate::engine::inner::{Inner, Process, SlotRef};
use crate::lifecycle::SlotFacts;
use crate::sys::clock;
use crate::sys::identity::{Doubt, Identity, Liveness};

/// One look: who is asked, and how.
///
/// A process that shares the byte of its own id in the lock file is alive, and no stranger and no zombie: a fifth
/// of a microsecond. Nobody can do that in another's name. Whoever does not may be alive all the same, and is asked for by
/// its identity, which costs ten times as much.
///
/// The first question costs as much as there are locks in that file, though, and a hostile worker can take very many. Then
/// it is not asked again for some time.
pub(crate) struct Asking<'a> {
    inner: &'a Inner,
    process: &'a Process,
    own: &'a [SlotRef],
    /// The word of the lock file; 0 where that is not to be asked.
    lock_tag: u32,
    namespace: u32,
    begun: u64,
    asked: u32,
}

/// What asking the lock file may take, for the first process and for each more.
const FIRST: Duration = Duration::from_micros(300);
const EACH: Duration = Duration::from_micros(5);
/// After so many slow looks in a row, and for how long, it is not asked at all.
const MOST_SLOW: u32 = 3;
const REST: Duration = Duration::from_secs(10);

impl<'a> Asking<'a> {
    pub(crate) fn new(inner: &'a Inner, process: &'a Process, own: &'a [SlotRef]) -> Asking<'a> {
        let begun = clock::boot_ns();
        let rests = process.locks.rest_until.load(Relaxed) > begun;
        let lock_tag = if rests { 0 } else { inner.store.lock_tag() };
        let namespace = process.identity.namespace;
        Asking { inner, process, own, lock_tag, namespace, begun, asked: 0 }
    }

    pub(crate) fn liveness(&mut self, slot: &SlotFacts) -> Liveness {
        if self.own.contains(&SlotRef { index: slot.index, version: slot.version }) || self.is_proven(slot) {
            return Liveness::Alive;
        }
        self.inner.liveness_of(&slot.identity, slot.lock_tag)
    }

    fn is_proven(&mut self, slot: &SlotFacts) -> bool {
        if self.lock_tag == 0
            || slot.lock_tag != self.lock_tag
            || slot.identity.namespace != self.namespace
            || self.namespace == 0
        {
            return false;
        }
        let is_proven = self.inner.store.is_proven(slot.identity.pid);
        self.asked += 1;
        // Looked at now and then: the clock is a question, too.
        if self.asked % 8 == 0 && clock::elapsed_since(self.begun) > FIRST + EACH * self.asked {
            self.lock_tag = 0;
        }
        is_proven
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let was_slow = self.asked > 0 && self.lock_tag == 0;
        self.process.locks.note(self.begun, was_slow);
    }
}

/// How it went the last times.
#[derive(Default)]
pub(crate) struct LockPace {
    /// Until when they are not asked for.
    rest_until: AtomicU64,
    /// Slow looks in a row. One may be slow because something else ran meanwhile.
    slow: AtomicU32,
}

impl LockPace {
    fn note(&self, now: u64, was_slow: bool) {
        if !was_slow {
            // Only stored when it changes: many looks, nothing to say.
            if self.slow.load(Relaxed) != 0 {
                self.slow.store(0, Relaxed);
            }
        } else if self.slow.fetch_add(1, Relaxed) + 1 >= MOST_SLOW {
            self.rest_until.store(now.saturating_add(clock::nanos(REST)), Relaxed);
        }
    }
}

impl Inner {
    /// The exact answer about a process of this node.
    pub(crate) fn liveness_of(&self, identity: &Identity, lock_tag: u32) -> Liveness {
        match identity.liveness() {
            unknown @ Liveness::Unknown(Doubt::OtherNamespace | Doubt::NamespaceUnknown) => {
                match self.store.is_member(identity.pid, lock_tag) {
                    Some(true) => Liveness::Alive,
                    Some(false) => Liveness::Gone,
                    None => unknown,
                }
            }
            known => known,
        }
    }

    /// Whether a word names a process of this node that is alive, as far as can be told: whoever can write into the
    /// registry can also write the name of a stranger.
    pub(crate) fn is_real(&self, word: u64) -> bool {
        let process = Identity::from_word(word);
        let proof = self.store.is_member(process.pid, self.store.lock_tag());
        process.pid == self.process().identity.pid
            || proof != Some(false) && process.liveness() == Liveness::Alive
    }
}
