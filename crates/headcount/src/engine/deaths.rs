//! Deaths that were not reported in the usual way, and those of late.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::engine::node_lock::Hold;
use crate::engine::transitions::{announce, death};
use crate::event::{GenerationId, Kind, Role};
use crate::lifecycle::Liveness;
use crate::node::{Node, NoticeLevel};
use crate::registry::journal::Cursor;
use crate::sys::clock;

impl Node {
    /// How many workers of this generation have died whose last heartbeat is younger than `within`, whether
    /// their deaths have been reported yet or not. Takes no lock.
    #[must_use]
    pub fn recent_deaths(&self, generation: GenerationId, within: Duration) -> usize {
        /// How many events one look brings. Deaths are few, so one look is nearly always enough.
        const AT_ONCE: u64 = 256;
        let since = clock::boot_ns().saturating_sub(u64::try_from(within.as_nanos()).unwrap_or(u64::MAX));
        let unreported = self.facts().slots.into_iter().filter(|s| {
            s.role == Role::Worker
                && s.liveness == Liveness::Gone
                && s.generation == generation
                && s.started_seq != 0
                && s.exited_seq == 0
                && s.heartbeat_ns > since
        });
        // By process: one may be reported between the two looks.
        let mut dead: BTreeSet<u32> = unreported.map(|s| s.pid).collect();
        let mut end = self.newest_seq().saturating_add(1);
        // As many looks as the journal has room for, whatever its head says.
        let looks = self.inner.store.region.journal().len() as u64 / AT_ONCE + 2;
        for _ in 0..looks {
            if end <= 1 {
                break;
            }
            let start = end.saturating_sub(AT_ONCE).max(1);
            let batch = self.events(&mut Cursor::at(start), usize::try_from(end - start).unwrap_or(0));
            let deaths =
                batch.events.iter().filter(|e| e.kind == Kind::WorkerDied && e.generation == generation);
            dead.extend(deaths.filter(|e| e.heartbeat_ns > since).map(|e| e.pid));
            // What was reported before that time had its heartbeat before it as well.
            if batch.lost > 0 || batch.events.first().is_none_or(|e| e.boot_ns <= since) {
                break;
            }
            end = start;
        }
        dead.len()
    }
}

impl Hold {
    /// The table is full of workers that died so early that none lived long enough to report the others: they
    /// are written into the journal, and their callbacks do not run. `false`: there were none.
    pub(crate) fn bury_unreported(&self) -> bool {
        let facts = self.facts();
        let dead = facts.slots.iter().filter(|s| s.role == Role::Worker && s.liveness == Liveness::Gone);
        let mut buried = 0;
        for s in dead {
            if s.died_seq == 0
                && let Ok(slot) = self.node.inner.slot(s.index)
            {
                announce(self, &slot.died_seq, death(s, Kind::WorkerDied));
            }
            self.node.free_slot(s.index);
            buried += 1;
        }
        if buried > 0 {
            self.node.inner.notice(
                NoticeLevel::Warning,
                format!(
                    "{}: {buried} workers died and none lived long enough to report it by its callback: they stand in the \
                     journal (is the server in a crash loop?)",
                    self.node.inner.place()
                ),
            );
        }
        buried > 0
    }
}
