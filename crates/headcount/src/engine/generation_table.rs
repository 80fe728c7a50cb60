//! The table of generations: finding, claiming and freeing its records.

use crate::engine::node_lock::Hold;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Cause, GenerationId, PreviousRun, Role};
use crate::lifecycle::Phase;
use crate::node::{Node, SlotRef};
use crate::registry::layout::Generation as Record;
use crate::registry::seqlock::rewrite;
use crate::sys::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sys::{clock, process};

impl Node {
    pub(crate) fn generation_record(&self, id: GenerationId) -> Option<&Record> {
        let records = self.inner.view().used_generations();
        records.iter().find(|g| {
            g.version.load(Acquire) % 2 == 0 && g.phase.load(Relaxed) != 0 && g.id.load(Relaxed) == id
        })
    }
}

impl Hold {
    pub(crate) fn generation_at(&self, index: u32) -> Result<&Record> {
        self.node.inner.store.region.generations().get(index as usize).ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                format!("{}: there is no generation record {index}", self.node.inner.place()),
            )
        })
    }

    pub(crate) fn new_generation(
        &self,
        id: GenerationId,
        cause: Cause,
        phase: Phase,
        expected: u32,
        master: Option<SlotRef>,
        previous: Option<PreviousRun>,
    ) -> Result<u32> {
        let records = self.node.inner.store.region.generations();
        let free = (0u32..).zip(records).find(|(_, g)| g.phase.load(Relaxed) == 0);
        let Some((index, record)) = free else {
            return Err(Error::new(
                ErrorKind::Full,
                format!(
                    "{}: {} generations are there at once, there is no room for another (are old workers draining \
                     for ever? set worker_shutdown_timeout, or the option `slots` higher)",
                    self.node.inner.place(),
                    records.len()
                ),
            ));
        };
        // First of all: a repair looks no further than this.
        self.node.inner.store.region.header().generations_used.fetch_max(index + 1, Release);
        rewrite(&record.version, || {
            record.id.store(id, Relaxed);
            record.cause.store(cause.code(), Relaxed);
            let (slot, slot_version) = master.map_or((u32::MAX, 0), |m| (m.index, m.version));
            record.master_slot.store(slot, Relaxed);
            record.master_version.store(slot_version, Relaxed);
            let master_pid = if master.is_some() { process::pid() } else { process::parent_pid() };
            record.master_pid.store(master_pid, Relaxed);
            record.begun_ns.store(clock::boot_ns(), Relaxed);
            record.begun_wall_ns.store(clock::wall_ns(), Relaxed);
            record.expected.store(expected, Relaxed);
            record.joined.store(0, Relaxed);
            record.came.store(0, Relaxed);
            record.died_at_work.store(0, Relaxed);
            for seq in [&record.started_seq, &record.ended_seq, &record.abandoned_seq] {
                seq.store(0, Relaxed);
            }
            record.start_delivered.store(0, Relaxed);
            record.marks.store(0, Relaxed);
            record.retry.store(0, Relaxed);
            let (code, generation, workers) = match previous {
                None => (0, 0, 0),
                Some(PreviousRun::None) => (1, 0, 0),
                Some(PreviousRun::Clean) => (2, 0, 0),
                Some(PreviousRun::Unclean { generation, workers }) => (3, generation, workers),
            };
            record.previous_generation.store(generation, Relaxed);
            record.previous_workers.store(workers, Relaxed);
            record.previous_run.store(code, Relaxed);
            record.phase.store(phase.code(), Relaxed);
        });
        Ok(index)
    }

    pub(crate) fn free_generation(&self, index: u32) {
        let Ok(record) = self.generation_at(index) else { return };
        rewrite(&record.version, || record.phase.store(0, Relaxed));
    }

    /// A worker joins a generation that the table does not have (any more). In nginx a rolled-back upgrade
    /// does that: the old master starts workers again with the configuration that it has.
    pub(crate) fn revive_generation(&self, id: GenerationId) -> Result<()> {
        let parent = process::parent_pid();
        let inherited = self.node.inner.local().inherited_master.map(|(slot, _)| slot);
        let master = inherited.or_else(|| {
            let facts = self.facts();
            let slot = facts.slots.iter().find(|s| s.role == Role::Master && s.pid == parent)?;
            Some(SlotRef { index: slot.index, version: slot.version })
        });
        self.new_generation(id, Cause::Resume, Phase::Committed, 0, master, None)?;
        if let Some(record) = self.node.generation_record(id) {
            record.master_pid.store(parent, Relaxed);
        }
        Ok(())
    }
}
