//! A look at the registry: shared memory, which anybody may have spoiled, becomes facts.

use crate::event::{Cause, LAST_GENERATION, PreviousRun, Role};
use crate::lifecycle::{
    Facts, GenerationFacts, Intent, Phase, SingletonFacts, SingletonKind, SingletonState, SlotFacts, SlotRef,
};
use crate::registry::journal::Journal;
use crate::registry::layout::{Generation, Singleton, Slot, read_name};
use crate::registry::region::Region;
use crate::registry::seqlock::consistent;
use crate::sys::atomic::AtomicU64;
use crate::sys::atomic::Ordering::{Acquire, Relaxed};
use crate::sys::clock::{self, Moment};
use crate::sys::identity::{Birth, Identity, Liveness};

/// A registry in memory, shared or copied.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) region: &'a Region,
}

/// What a sentinel's word says: a slot and its claim, by the index and the lower half of the version.
pub(crate) fn sentinel_word(index: u32, version: u64) -> u64 {
    ((version & 0xffff_ffff) << 32) | (u64::from(index) + 1)
}

/// The index of the slot that a sentinel's word names.
pub(crate) fn sentinel_index(word: u64) -> Option<u32> {
    u32::try_from(word & 0xffff_ffff).ok()?.checked_sub(1)
}

/// Whether a slot is the one that a sentinel's word names, and not only has its index.
pub(crate) fn is_sentinel(word: u64, slot: &SlotFacts) -> bool {
    word == sentinel_word(slot.index, slot.version)
}

/// How the reader learns whether the process in a slot is alive.
pub(crate) type Oracle<'a> = &'a mut dyn FnMut(&SlotFacts) -> Liveness;

impl<'a> View<'a> {
    pub(crate) fn journal(self) -> Journal<'a> {
        let header = self.region.header();
        Journal { head: &header.head, kinds: &header.kinds, region: self.region }
    }

    /// The setting by which everybody judges, kept within reason whatever the registry says.
    pub(crate) fn stall_after(self) -> u64 {
        const DAY: u64 = 86_400_000_000_000;
        self.region.header().stall_after_ns.load(Relaxed).clamp(1_000_000, 365 * DAY)
    }

    pub(crate) fn used_slots(self) -> &'a [Slot] {
        let used = self.region.header().slots_used.load(Acquire) as usize;
        let slots = self.region.slots_up_to(used);
        &slots[..used.min(slots.len())]
    }

    pub(crate) fn used_generations(self) -> &'a [Generation] {
        let used = self.region.header().generations_used.load(Acquire) as usize;
        let generations = self.region.generations_up_to(used);
        &generations[..used.min(generations.len())]
    }

    pub(crate) fn used_singletons(self) -> &'a [Singleton] {
        let used = self.region.header().singletons_used.load(Acquire) as usize;
        let singletons = self.region.singletons_up_to(used);
        &singletons[..used.min(singletons.len())]
    }

    /// One role, once or lock, as [`View::slot`].
    pub(crate) fn singleton(self, index: u32, head: u64) -> Option<SingletonFacts> {
        singleton_facts(index, self.region.singletons_up_to(index as usize + 1).get(index as usize)?, head)
    }

    /// The token that the next leader gets: it also grows where a registry was lost or the last one spoiled, since no node
    /// elects a million leaders a second.
    pub(crate) fn next_token(self) -> u64 {
        // The highest that a reader of JSON has exactly.
        const LAST_TOKEN: u64 = 1 << 53;
        let last = self.region.header().last_token.load(Relaxed);
        let beyond = if last < LAST_TOKEN { last + 1 } else { 0 };
        beyond.max(clock::wall_ns() / 1000)
    }

    /// One slot, if anybody is in it. Everything that has a number up to `head` is taken as reported: the lock's holder
    /// includes the report that it is just about to write.
    pub(crate) fn slot(self, index: u32, head: u64, oracle: Oracle<'_>) -> Option<SlotFacts> {
        let slot = self.region.slots_up_to(index as usize + 1).get(index as usize)?;
        slot_facts(index, slot, head, Moment::now(), oracle)
    }

    /// One generation, as [`View::slot`].
    pub(crate) fn generation(self, index: u32, head: u64) -> Option<GenerationFacts> {
        generation_facts(index, self.region.generations_up_to(index as usize + 1).get(index as usize)?, head)
    }

    pub(crate) fn facts(self, oracle: Oracle<'_>) -> Facts {
        let head = self.region.header().head.load(Acquire);
        let slots = (0u32..).zip(self.used_slots());
        let generations = (0u32..).zip(self.used_generations());
        let singletons = (0u32..).zip(self.used_singletons());
        let now = Moment::now();
        let mut facts = Facts {
            slots: slots.filter_map(|(i, s)| slot_facts(i, s, head, now, oracle)).collect(),
            generations: generations.filter_map(|(i, g)| generation_facts(i, g, head)).collect(),
            singletons: singletons.filter_map(|(i, x)| singleton_facts(i, x, head)).collect(),
            next_token: self.next_token(),
            now: 0,
            stall_after: self.stall_after(),
            redeliver_seq: reported(&self.region.header().redeliver_seq, head),
            redeliver_tries: self.region.header().redeliver_tries.load(Relaxed),
            as_reported: false,
            own: Vec::new(),
            is_patient: false,
        };
        // After the heartbeats were read, or a beat in between would lie in the future.
        facts.now = clock::boot_ns();
        facts.forget_the_future();
        facts
    }
}

/// The number of a report. One beyond the journal's head was being made when its writer died: the
/// report never happened.
fn reported(seq: &AtomicU64, head: u64) -> u64 {
    let seq = seq.load(Relaxed);
    if seq <= head { seq } else { 0 }
}

fn slot_facts(index: u32, slot: &Slot, head: u64, now: Moment, oracle: Oracle<'_>) -> Option<SlotFacts> {
    consistent(&slot.version, |version| {
        let role = Role::from_code(slot.role.load(Relaxed))?;
        let heartbeat_ns = slot.heartbeat_ns.load(Relaxed);
        let beat = Moment { boot: heartbeat_ns, awake: slot.heartbeat_awake_ns.load(Relaxed) };
        let mut facts = SlotFacts {
            index,
            version,
            role,
            generation: slot.generation.load(Relaxed),
            identity: identity_in(slot),
            lock_tag: slot.lock_tag.load(Relaxed),
            worker_id: u32::try_from(slot.worker_id.load(Relaxed)).ok(),
            cause: Cause::from_code(slot.cause.load(Relaxed)).unwrap_or(Cause::Unknown),
            joined_ns: slot.joined_ns.load(Relaxed),
            joined_wall_ns: slot.joined_wall_ns.load(Relaxed),
            // Garbage reads as serving, the intent that hides nothing.
            intent: Intent::from_code(slot.intent.load(Relaxed)).unwrap_or(Intent::Serving),
            intent_since_ns: slot.intent_since_ns.load(Relaxed),
            heartbeat_ns,
            slept_ns: now.slept_since(beat),
            tries: slot.retry.load(Relaxed),
            started_seq: reported(&slot.started_seq, head),
            exited_seq: reported(&slot.exited_seq, head),
            died_seq: reported(&slot.died_seq, head),
            stalled_seq: reported(&slot.stalled_seq, head),
            recovered_seq: reported(&slot.recovered_seq, head),
            wait_status: wait_status(slot.wait_status.load(Relaxed)),
            stands_for: slot.stands_for.load(Relaxed),
            waits_for: slot.waits_for.load(Relaxed).checked_sub(1),
            liveness: Liveness::Gone,
        };
        // Asked last: a process that left has changed the version before it ended.
        facts.liveness = oracle(&facts);
        Some(facts)
    })
}

/// A wait status, if there is one in the word.
fn wait_status(word: u64) -> Option<i32> {
    (word >> 32 == 1).then_some(word as u32 as i32)
}

/// The other way round.
pub(crate) fn status_word(status: Option<i32>) -> u64 {
    status.map_or(0, |status| 1 << 32 | u64::from(status as u32))
}

fn singleton_facts(index: u32, x: &Singleton, head: u64) -> Option<SingletonFacts> {
    consistent(&x.version, |_| {
        let owner = x.owner_slot.load(Relaxed).checked_sub(1);
        Some(SingletonFacts {
            index,
            kind: SingletonKind::from_code(x.kind.load(Relaxed))?,
            state: SingletonState::from_code(x.state.load(Relaxed)).unwrap_or(SingletonState::Free),
            name: read_name(x.name.iter().flat_map(|word| word.load(Relaxed).to_le_bytes()))?,
            word: x.word.load(Acquire),
            token: x.token.load(Relaxed),
            broken_from: x.broken_from.load(Relaxed),
            last_dead: x.last_dead.load(Relaxed),
            owner: owner.map(|index| SlotRef { index, version: x.owner_version.load(Relaxed) }),
            owner_pid: x.owner_pid.load(Relaxed),
            owner_worker_id: u32::try_from(x.owner_worker_id.load(Relaxed)).ok(),
            attempts: x.attempts.load(Relaxed),
            cause: Cause::from_code(x.cause.load(Relaxed)).unwrap_or(Cause::Unknown),
            wait_status: wait_status(x.wait_status.load(Relaxed)),
            since_ns: x.since_ns.load(Relaxed),
            generation: x.generation.load(Relaxed),
            asked_ns: x.asked_ns.load(Relaxed),
            number: x.number.load(Relaxed),
            next_state: SingletonState::from_code(x.next_state.load(Relaxed)),
            seq: reported(&x.seq, head),
        })
    })
}

/// Who is in a slot.
pub(crate) fn identity_in(slot: &Slot) -> Identity {
    Identity {
        pid: slot.pid.load(Relaxed),
        namespace: slot.namespace.load(Relaxed),
        birth: Birth::from_words(slot.birth_kind.load(Relaxed), slot.birth.load(Relaxed)),
    }
}

fn generation_facts(index: u32, generation: &Generation, head: u64) -> Option<GenerationFacts> {
    consistent(&generation.version, |_| {
        Some(GenerationFacts {
            index,
            id: Some(generation.id.load(Relaxed)).filter(|id| (1..=LAST_GENERATION).contains(id))?,
            phase: Phase::from_code(generation.phase.load(Relaxed))?,
            cause: Cause::from_code(generation.cause.load(Relaxed)).unwrap_or(Cause::Unknown),
            master_slot: generation.master_slot.load(Relaxed),
            master_version: generation.master_version.load(Relaxed),
            master_pid: generation.master_pid.load(Relaxed),
            begun_ns: generation.begun_ns.load(Relaxed),
            begun_wall_ns: generation.begun_wall_ns.load(Relaxed),
            expected: generation.expected.load(Relaxed),
            joined: generation.joined.load(Relaxed),
            came: generation.came.load(Relaxed),
            lost_at_work: generation.lost_at_work.load(Relaxed),
            started_seq: reported(&generation.started_seq, head),
            ended_seq: reported(&generation.ended_seq, head),
            abandoned_seq: reported(&generation.abandoned_seq, head),
            start_delivered: generation.start_delivered.load(Relaxed) != 0,
            tries: generation.retry.load(Relaxed),
            previous_run: PreviousRun::from_words(
                generation.previous_run.load(Relaxed),
                generation.previous_generation.load(Relaxed),
                generation.previous_workers.load(Relaxed),
            ),
            joining: false,
            nobody_comes: false,
        })
    })
}
