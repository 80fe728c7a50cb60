//! Who of the node is alive, by the cheapest question that proves it.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use crate::lifecycle::{SlotFacts, SlotRef};
use crate::registry::store::Store;
use crate::sys::clock;
use crate::sys::identity::{Identity, Liveness};

/// One look: who is asked, and how.
///
/// A process that shares the byte of its own id and birth in the lock file is alive, and no stranger and no zombie: a fifth
/// of a microsecond. Nobody can do that in another's name. Whoever does not may be alive all the same, and is asked for by
/// its identity, which costs ten times as much.
///
/// The first question costs as much as there are locks in that file, though, and a hostile worker can take very many. Then
/// it is not asked again for some time.
pub(crate) struct Asking<'a> {
    store: &'a Store,
    pace: &'a LockPace,
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
    /// `own`: the slots of this process.
    pub(crate) fn new(store: &'a Store, pace: &'a LockPace, own: &'a [SlotRef]) -> Asking<'a> {
        let begun = clock::boot_ns();
        let rests = pace.rest_until.load(Relaxed) > begun;
        let lock_tag = if rests { 0 } else { store.lock_tag() };
        Asking { store, pace, own, lock_tag, namespace: Identity::own().namespace, begun, asked: 0 }
    }

    pub(crate) fn liveness(&mut self, slot: &SlotFacts) -> Liveness {
        if self.own.contains(&slot.at()) || self.is_proven(slot) {
            return Liveness::Alive;
        }
        liveness_of(self.store, &slot.identity, slot.lock_tag)
    }

    fn is_proven(&mut self, slot: &SlotFacts) -> bool {
        if self.lock_tag == 0
            || slot.lock_tag != self.lock_tag
            || slot.identity.namespace != self.namespace
            || self.namespace == 0
        {
            return false;
        }
        let is_proven = self.store.is_proven(&slot.identity);
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
        self.pace.note(self.begun, was_slow);
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

/// The exact answer about a process of a node.
pub(crate) fn liveness_of(store: &Store, identity: &Identity, lock_tag: u32) -> Liveness {
    identity.liveness().or_else(|| store.is_member(identity, lock_tag))
}
