//! Claiming and freeing the records of the tables. Only for the holder of the node lock.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::engine::inner::Inner;
use crate::engine::look::identity_in;
use crate::engine::process::relock;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Cause, GenerationId, PreviousRun, Role};
use crate::lifecycle::{Facts, Phase, SlotRef};
use crate::registry::layout::{Generation, Slot};
use crate::registry::seqlock::{rewrite, rewrite_beyond};
use crate::sys::atomic::AtomicU32;
use crate::sys::atomic::Ordering::{AcqRel, Relaxed, Release};
use crate::sys::clock;
use crate::sys::identity::OF_ANOTHER_BOOT;

/// A generation that is to be put into the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewGeneration {
    pub(crate) id: GenerationId,
    pub(crate) cause: Cause,
    pub(crate) phase: Phase,
    pub(crate) expected: u32,
    pub(crate) master: Option<SlotRef>,
    pub(crate) master_pid: u32,
    pub(crate) previous_run: Option<PreviousRun>,
}

impl Inner {
    /// A slot that nobody is in. Where somebody has filled the table up, one of those that he has made up: freed first, it
    /// would be taken again before we are in it.
    fn find_room(&self) -> Option<(u32, &Slot)> {
        const LONGEST_SEARCH: Duration = Duration::from_millis(100);
        let region = &self.store.region;
        region.find_slot(|slot| slot.role.load(Relaxed) == 0).or_else(|| {
            let mut strangers = self.store.strangers(LONGEST_SEARCH);
            region.find_slot(|slot| strangers.has(&identity_in(slot), slot.lock_tag.load(Relaxed)))
        })
    }

    /// Claims a slot for this process.
    pub(crate) fn claim_slot(&self, role: Role, fill: impl FnOnce(&Slot)) -> Result<SlotRef> {
        let Some((index, slot)) = self.find_room() else {
            let (place, region) = (self.place(), &self.store.region);
            let text = match region.slots().len() {
                all if all == region.geometry().slots() => format!(
                    "{place}: all {all} slots are taken; set the option `slots` higher, stop the server, remove the \
                     registry and start again"
                ),
                few => {
                    format!("{place}: the file system is full, with room for {few} slots; make room in it")
                }
            };
            return Err(Error::new(ErrorKind::Full, text));
        };
        let now = clock::boot_ns();
        let identity = self.process().identity;
        let lock_tag = self.prove_membership();
        let (birth_kind, birth) = identity.birth.to_words();
        // First of all: a repair looks no further than this.
        self.header().slots_used.fetch_max(index + 1, Release);
        // The claim's version is the time: a process that has held this slot before, in a table that was spoiled since, does
        // not take it for its own.
        let version = rewrite_beyond(now, &slot.version, || {
            slot.pid.store(identity.pid, Relaxed);
            slot.namespace.store(identity.namespace, Relaxed);
            slot.birth_kind.store(birth_kind, Relaxed);
            slot.birth.store(birth, Relaxed);
            slot.lock_tag.store(lock_tag, Relaxed);
            slot.joined_ns.store(now, Relaxed);
            slot.joined_wall_ns.store(clock::wall_ns(), Relaxed);
            slot.beat(now);
            slot.intent_since_ns.store(now, Relaxed);
            slot.generation.store(0, Relaxed);
            slot.worker_id.store(-1, Relaxed);
            slot.cause.store(0, Relaxed);
            slot.retry.store(0, Relaxed);
            slot.wait_status.store(0, Relaxed);
            slot.stands_for.store(0, Relaxed);
            slot.waits_for.store(0, Relaxed);
            slot.seqs().into_iter().for_each(|seq| seq.store(0, Relaxed));
            fill(slot);
            slot.role.store(role.code(), Relaxed);
        });
        Ok(SlotRef { index, version })
    }

    /// Frees the records that are neither free nor make sense, so that `facts` knows nothing of them. `everywhere`: also
    /// where no record should have been yet.
    pub(crate) fn free_unreadable(&self, facts: &Facts, everywhere: bool) {
        let view = self.view();
        let (slots, generations) = match everywhere {
            true => self.store.region.everything(),
            false => (view.used_slots(), view.used_generations()),
        };
        for index in unknown(slots.iter().map(Slot::is_taken), facts.slots.iter().map(|s| s.index)) {
            self.free_slot(index);
        }
        let known = facts.generations.iter().map(|g| g.index);
        for index in unknown(generations.iter().map(Generation::is_taken), known) {
            self.free_generation(index);
        }
    }

    /// Has the header say again how far the tables are used, whatever somebody has made of that. `true`: it has said less, so
    /// there may be some of whom nobody knew. They would be there all of a sudden when others are claimed behind them.
    pub(crate) fn heal_used(&self) -> bool {
        let (slots, generations) = self.store.region.everything();
        let end = |last: Option<usize>| last.map_or(0, |last| u32::try_from(last + 1).unwrap_or(u32::MAX));
        let header = self.header();
        let set = |used: &AtomicU32, end: u32| used.swap(end, AcqRel) < end;
        let more_slots = set(&header.slots_used, end(slots.iter().rposition(Slot::is_taken)));
        let more = set(&header.generations_used, end(generations.iter().rposition(Generation::is_taken)));
        more_slots || more
    }

    /// Declares the process in a slot to be gone: it was one of another boot.
    pub(crate) fn bury(&self, index: u32) {
        let Some(slot) = self.slot(index) else { return };
        let (birth_kind, birth) = OF_ANOTHER_BOOT.to_words();
        rewrite(&slot.version, || {
            slot.namespace.store(self.process().identity.namespace, Relaxed);
            slot.birth.store(birth, Relaxed);
            slot.birth_kind.store(birth_kind, Relaxed);
            slot.lock_tag.store(0, Relaxed);
        });
    }

    pub(crate) fn free_slot(&self, index: u32) {
        let Some(slot) = self.slot(index) else { return };
        rewrite(&slot.version, || slot.role.store(0, Relaxed));
        let process = self.process();
        relock(&process.joined).retain(|s| s.index != index);
        if process.master().is_some_and(|s| s.index == index) {
            process.set_master(None);
        }
    }

    /// Puts a generation into the table, and gives its index.
    pub(crate) fn new_generation(&self, new: NewGeneration) -> Result<u32> {
        let region = &self.store.region;
        let free = region.find_generation(|g| g.phase.load(Relaxed) == 0);
        let Some((index, record)) = free else {
            let place = self.place();
            let text = match region.generations().len() {
                all if all == region.geometry().generations() => format!(
                    "{place}: {all} generations are there at once, and there is no room for another (do old workers \
                     drain for ever? limit how long they may, or set the option `slots` higher)"
                ),
                few => format!(
                    "{place}: the file system is full, with room for {few} generations; make room in it"
                ),
            };
            return Err(Error::new(ErrorKind::Full, text));
        };
        let (master_slot, master_version) = new.master.map_or((u32::MAX, 0), |m| (m.index, m.version));
        // First of all: a repair looks no further than this.
        self.header().generations_used.fetch_max(index + 1, Release);
        rewrite(&record.version, || {
            record.id.store(new.id, Relaxed);
            record.cause.store(new.cause.code(), Relaxed);
            record.master_slot.store(master_slot, Relaxed);
            record.master_version.store(master_version, Relaxed);
            record.master_pid.store(new.master_pid, Relaxed);
            record.begun_ns.store(clock::boot_ns(), Relaxed);
            record.begun_wall_ns.store(clock::wall_ns(), Relaxed);
            record.expected.store(new.expected, Relaxed);
            record.joined.store(0, Relaxed);
            record.came.store(0, Relaxed);
            record.lost_at_work.store(0, Relaxed);
            record.seqs().into_iter().for_each(|seq| seq.store(0, Relaxed));
            record.start_delivered.store(0, Relaxed);
            record.marks.store(0, Relaxed);
            record.retry.store(0, Relaxed);
            let (code, generation, workers) = PreviousRun::to_words(new.previous_run);
            record.previous_generation.store(generation, Relaxed);
            record.previous_workers.store(workers, Relaxed);
            record.previous_run.store(code, Relaxed);
            record.phase.store(new.phase.code(), Relaxed);
        });
        Ok(index)
    }

    pub(crate) fn free_generation(&self, index: u32) {
        let Some(record) = self.generation_at(index) else { return };
        rewrite(&record.version, || record.phase.store(0, Relaxed));
    }
}

/// The places that are taken and not known. Mostly there are none, which is found out by counting.
fn unknown(
    taken: impl Iterator<Item = bool> + Clone,
    known: impl ExactSizeIterator<Item = u32>,
) -> impl Iterator<Item = u32> {
    let differ = taken.clone().filter(|is_taken| *is_taken).count() != known.len();
    let known: BTreeSet<u32> = if differ { known.collect() } else { BTreeSet::new() };
    let unknown: Vec<u32> = (0u32..)
        .zip(taken)
        .filter(|(index, is_taken)| differ && *is_taken && !known.contains(index))
        .map(|(index, _)| index)
        .collect();
    unknown.into_iter()
}
