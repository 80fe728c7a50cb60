//! The node lock, and what is known and done while it is held: one look, then one change after the other, in the
//! registry and in what was seen alike.

mod callback;
mod singletons;

use std::sync::Arc;
use std::time::Duration;

use crate::engine::inner::Inner;
use crate::engine::node_lock::{NodeLock, Operation, Wait};
use crate::engine::process::{NoticeLevel, relock};
use crate::engine::tables::NewGeneration;
use crate::error::Result;
use crate::event::{Cause, Event, GenerationId, Role};
use crate::lifecycle::{
    Act, Change, Facts, GenerationFacts, Intent, Mark, Phase, Scope, SlotFacts, SlotRef, Stage, Subject,
};
use crate::registry::journal::MOST_EVENTS;
use crate::registry::layout::{Generation as GenerationRecord, Slot};
use crate::sys::atomic::Ordering::{Relaxed, Release};
use crate::sys::atomic::{AtomicU32, AtomicU64};
use crate::sys::identity::{Identity, Liveness};
use crate::sys::{clock, process};

pub(crate) struct Session {
    pub(crate) inner: Arc<Inner>,
    lock: NodeLock,
    facts: Facts,
    /// The facts are from before a callback.
    is_stale: bool,
    /// See [`Facts::is_patient`].
    is_patient: bool,
    /// How many more steps it may take: a bound that only a spoiled registry reaches.
    budget: usize,
    /// When the steps must have come to an end, callbacks apart.
    until: u64,
    /// When the callback began that runs now.
    paused: u64,
    /// The newest event that was there before and has been delivered by this session: they come in their order.
    delivered: u64,
}

/// A thousand deaths at once take less. Whoever has more to do lets others have the lock, and then goes on.
const LONGEST: Duration = Duration::from_secs(1);

impl Session {
    pub(crate) fn begin(inner: &Arc<Inner>, wait: Wait, operation: Operation) -> Result<Session> {
        let lock = NodeLock::acquire(inner, wait)?;
        if lock.interrupted().is_some() {
            // Before anything is believed.
            repair_records(inner);
        }
        inner.journal().heal_head(MOST_EVENTS);
        let budget = 64 + 8 * inner.store.region.geometry().slots();
        let mut session = Session {
            inner: inner.clone(),
            lock,
            facts: Facts::default(),
            is_stale: false,
            // Who does not watch cannot know whether they were all stopped, as a paused container is.
            is_patient: true,
            budget,
            until: clock::boot_ns().saturating_add(clock::nanos(LONGEST)),
            paused: 0,
            delivered: 0,
        };
        session.look();
        if let Some(dead) = session.lock.interrupted() {
            session.repair_callback(dead);
            inner.ring();
        }
        session.lock.sign(operation);
        Ok(session)
    }

    /// Not so in a child that was forked in a callback.
    pub(crate) fn is_ours(&self) -> bool {
        self.lock.is_ours()
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// It has watched the others, and knows that they have had time to beat.
    pub(crate) fn judge(&mut self) {
        self.is_patient = false;
        self.facts.is_patient = false;
    }

    /// Looks again: a callback may have taken long, or a record was changed directly.
    pub(crate) fn look(&mut self) {
        self.facts = self.inner.facts();
        self.facts.as_reported = true;
        self.facts.is_patient = self.is_patient;
        self.is_stale = false;
    }

    /// What a stage takes next; `None`: it has nothing more, or it has taken long enough. Each step takes something away
    /// from the table, unless somebody who means harm puts it back all the time: then this stops, and says so.
    pub(crate) fn next(&mut self, stage: Stage) -> Option<Act> {
        if self.is_stale {
            self.look();
        }
        if stage == Stage::Shrink {
            if self.facts.slots.is_empty() && self.facts.generations.is_empty() {
                self.inner.store.shrink();
            }
            return None;
        }
        if let Stage::Revive(id) = stage {
            if let Err(error) = self.revive(id) {
                self.inner.notice(NoticeLevel::Error, error.to_string());
            }
            return None;
        }
        self.facts.act(stage).filter(|act| self.may_go_on(act))
    }

    fn may_go_on(&mut self, act: &Act) -> bool {
        if clock::boot_ns() > self.until {
            self.inner.ring();
            return false;
        }
        let is_in_order = match act.subject {
            Subject::Known(seq, _) if act.deliver => {
                let is_next = seq > self.delivered;
                self.delivered = seq;
                is_next
            }
            _ => true,
        };
        if self.budget == 0 || !is_in_order {
            let text =
                format!("{}: there is no end of work, the registry is being spoiled", self.inner.place());
            self.inner.notice(NoticeLevel::Error, text);
            return false;
        }
        self.budget -= 1;
        true
    }

    /// Carries out an act up to its callback: gives the event that this is about.
    pub(crate) fn carry_out(&mut self, act: &Act) -> Option<Event> {
        act.before.iter().for_each(|&change| self.apply(change));
        match &act.subject {
            Subject::Nothing => None,
            Subject::New(report) => {
                if report.redeliver {
                    // Should this process die, the callback is run elsewhere: the header remembers, since no record waits.
                    self.apply(Change::Redeliver(self.next_seq()));
                }
                Some(self.report(report.event.clone(), report.mark))
            }
            Subject::Known(seq, fallback) => {
                self.inner.journal().read(*seq).or_else(|| fallback.as_deref().cloned())
            }
        }
    }

    /// Completes an act after its callback.
    pub(crate) fn complete(&mut self, act: &Act) {
        act.after.iter().for_each(|&change| self.apply(change));
        if act.ring {
            self.inner.ring();
        }
        if act.call {
            self.inner.call();
        }
    }

    /// Carries out acts for which no callback runs, until `next` gives none.
    pub(crate) fn clear(&mut self, mut next: impl FnMut(&Facts) -> Option<Act>) -> usize {
        let mut done = 0;
        while let Some(act) = next(&self.facts).filter(|act| self.may_go_on(act)) {
            self.carry_out(&act);
            self.complete(&act);
            done += 1;
        }
        done
    }

    /// For a master: sets right what only somebody who means harm can have spoiled, and what would outlive him. The header
    /// gets back what never changes. And strangers are taken out of the table: processes that live, or of which it is not
    /// known, and that are no members. They will not end with the one who wrote them there.
    ///
    /// `is_ours`: the node is certainly this server's. Then nobody else of it can be in another pid namespace.
    pub(crate) fn heal(&mut self, is_ours: bool) {
        const LONGEST_SEARCH: Duration = Duration::from_millis(500);
        let inner = &self.inner;
        inner.store.restore_header(&inner.name);
        // Well before others would: what they have reported under higher numbers counts as not reported.
        let is_another_head = inner.journal().heal_head(MOST_EVENTS / 2);
        inner.heal_singletons();
        if inner.heal_used() || is_another_head {
            self.look();
        }
        let inner = &self.inner;
        inner.free_unreadable(&self.facts, false);
        let process = inner.process();
        let (own, me) = (inner.own_slots(process), process.identity);
        let mut strangers = inner.store.strangers(LONGEST_SEARCH).of_own_node(is_ours);
        // In another's name, or once more in ours.
        let mut is_stranger = |s: &&SlotFacts| {
            s.liveness != Liveness::Gone
                && !own.contains(&s.at())
                && (s.identity.is(&me) || strangers.has(&s.identity, s.lock_tag))
        };
        let strangers: Vec<_> =
            self.facts.slots.iter().filter(|s| is_stranger(s)).map(|s| (s.index, s.pid())).collect();
        strangers.iter().for_each(|(index, _)| inner.free_slot(*index));
        if let Some((_, pid)) = strangers.first() {
            let text = format!(
                "{}: {} processes stood in the registry that are none of this node, process {pid} among them",
                inner.place(),
                strangers.len()
            );
            inner.notice(NoticeLevel::Error, text);
            self.look();
        }
        if self.facts.generations.len() > self.inner.store.region.geometry().generations() / 2 {
            self.clear(|facts| facts.next_empty());
        }
    }

    /// The slot of this master may have been overwritten, or freed for what somebody wrote into it: then it takes another.
    pub(crate) fn reclaim_master(&mut self) {
        let process = self.inner.process();
        let Some(master) = process.master_once() else { return };
        let is_whole = |s: &SlotFacts| {
            s.at() == master
                && s.role == Role::Master
                // In all its parts, since others see it by each of them.
                && s.identity == process.identity
                && s.exited_seq == 0
        };
        if self.facts.slots.iter().any(is_whole) {
            return;
        }
        // What is left of ours names somebody else by now, whom nobody would find there.
        if self.facts.slots.iter().any(|s| s.at() == master) {
            self.inner.free_slot(master.index);
            self.look();
        }
        match self.claim_master() {
            Ok(_) => self.inherit_generations(master),
            Err(error) => self.inner.notice(NoticeLevel::Error, error.to_string()),
        }
    }

    /// Makes this process a master of the node.
    pub(crate) fn claim_master(&mut self) -> Result<SlotRef> {
        self.claim_slot(Role::Master, |slot| slot.intent.store(Intent::Serving.code(), Relaxed))
    }

    /// The generations of a master that this one has been before, in another process or another slot, are its own.
    pub(crate) fn inherit_generations(&mut self, old: SlotRef) {
        let Some(new) = self.inner.process().master() else { return };
        for g in self.inner.view().used_generations() {
            if (g.master_slot.load(Relaxed), g.master_version.load(Relaxed)) == (old.index, old.version) {
                g.master_slot.store(new.index, Relaxed);
                g.master_version.store(new.version, Relaxed);
                g.master_pid.store(process::pid(), Relaxed);
            }
        }
        self.look();
    }

    /// Frees what has nothing to tell.
    pub(crate) fn tidy(&mut self) {
        self.clear(|facts| facts.act(Stage::Settle(Scope::Tidy)));
    }

    /// The number that the next event will have.
    fn next_seq(&self) -> u64 {
        self.inner.header().head.load(Relaxed).wrapping_add(1)
    }

    /// Writes an event into the journal, with the counts and the time; but first its number into the record that it is
    /// about. A writer that dies in between leaves a number beyond the journal's head, which reads as "not reported".
    pub(crate) fn report(&mut self, mut event: Event, mark: Option<Mark>) -> Event {
        let seq = self.next_seq();
        if let Some(mark) = mark {
            self.mark(mark, seq);
        }
        event.counts = self.facts.counts(event.generation);
        // That of an earlier boot has its date already.
        if event.time_ns == 0 {
            event.time_ns = clock::wall_ns();
        }
        event.boot_ns = clock::boot_ns();
        event.reporter_pid = process::pid();
        let (seq, is_kept) = self.inner.journal().append(&event);
        self.inner.keeps_events(is_kept);
        event.seq = seq;
        event
    }

    fn mark(&mut self, mark: Mark, seq: u64) {
        match mark {
            Mark::Started(index) => self.change_slot(index, |s| s.started_seq.store(seq, Release)),
            Mark::Exited(index) => self.change_slot(index, |s| s.exited_seq.store(seq, Release)),
            Mark::Died(index) => self.change_slot(index, |s| s.died_seq.store(seq, Release)),
            Mark::Stalled(index) => self.change_slot(index, |s| s.stalled_seq.store(seq, Release)),
            Mark::Recovered(index) => self.change_slot(index, |s| s.recovered_seq.store(seq, Release)),
            Mark::GenerationStarted(index) => {
                self.change_generation(index, |g| g.started_seq.store(seq, Release));
            }
            Mark::Ended(index) => self.change_generation(index, |g| g.ended_seq.store(seq, Release)),
            Mark::Abandoned(index) => self.change_generation(index, |g| g.abandoned_seq.store(seq, Release)),
            Mark::Singleton(index) => self.change_singleton(index, |x| x.seq.store(seq, Release)),
        }
    }

    fn apply(&mut self, change: Change) {
        let now = clock::boot_ns();
        self.facts.now = now;
        match change {
            Change::FreeSlot(index) => {
                self.inner.free_slot(index);
                self.facts.slots.retain(|s| s.index != index);
            }
            Change::FreeGeneration(index) => {
                self.inner.free_generation(index);
                self.facts.generations.retain(|g| g.index != index);
            }
            Change::Intent(index, intent) => self.change_slot(index, |s| {
                s.intent_since_ns.store(now, Relaxed);
                s.intent.store(intent.code(), Release);
            }),
            Change::Serving(index) => self.change_slot(index, |s| {
                s.beat(now);
                s.intent_since_ns.store(now, Relaxed);
                s.intent.store(Intent::Serving.code(), Release);
            }),
            Change::LostAtWork(index, at) => {
                self.change_generation(index, |g| g.lost_at_work.store(at, Relaxed));
            }
            Change::Joined { generation: index, number, is_complete } => self.change_generation(index, |g| {
                g.joined.fetch_add(1, Relaxed);
                if let Some(number) = number.filter(|&n| n < 64) {
                    g.came.fetch_or(1 << number, Relaxed);
                }
                g.phase.store(Phase::Committed.code(), Release);
                if is_complete {
                    g.lost_at_work.store(0, Relaxed);
                }
            }),
            Change::StartDelivered(index) => self.change_generation(index, |g| {
                g.start_delivered.store(1, Relaxed);
                g.retry.store(0, Relaxed);
            }),
            Change::ForgetTries(index) => self.change_generation(index, |g| g.retry.store(0, Relaxed)),
            Change::SlotTries(index) => self.change_slot(index, |s| more(&s.retry)),
            Change::GenerationTries(index) => self.change_generation(index, |g| more(&g.retry)),
            Change::Redeliver(seq) => self.redeliver(seq, self.facts.redeliver_tries),
            Change::RedeliverTries => {
                self.redeliver(self.facts.redeliver_seq, self.facts.redeliver_tries.saturating_add(1));
            }
            Change::Redelivered => self.redeliver(0, 0),
            _ => self.apply_singleton(change, now),
        }
    }

    fn redeliver(&mut self, seq: u64, tries: u32) {
        let header = self.inner.header();
        header.redeliver_seq.store(seq, Release);
        header.redeliver_tries.store(tries, Relaxed);
        (self.facts.redeliver_seq, self.facts.redeliver_tries) = (seq, tries);
    }

    /// Changes a record, and reads it again. Who is alive is not asked again, so it must still be about the same process.
    fn change_slot(&mut self, index: u32, change: impl FnOnce(&Slot)) {
        let (head, Some(slot)) = (self.next_seq(), self.inner.slot(index)) else { return };
        change(slot);
        if let Some(known) = self.facts.slots.iter_mut().find(|s| s.index == index) {
            match self.inner.view().slot(index, head, &mut |_| known.liveness) {
                Some(read) if read.identity == known.identity => *known = read,
                _ => {}
            }
        }
    }

    fn change_generation(&mut self, index: u32, change: impl FnOnce(&GenerationRecord)) {
        let (head, Some(generation)) = (self.next_seq(), self.inner.generation_at(index)) else { return };
        change(generation);
        if let Some(known) = self.facts.generations.iter_mut().find(|g| g.index == index) {
            if let Some(read) = self.inner.view().generation(index, head) {
                *known = GenerationFacts { joining: known.joining, nobody_comes: known.nobody_comes, ..read };
            }
        }
    }

    /// Claims a slot for this process.
    pub(crate) fn claim_slot(&mut self, role: Role, fill: impl FnOnce(&Slot)) -> Result<SlotRef> {
        let slot = self.inner.claim_slot(role, fill)?;
        let process = self.inner.process();
        match role {
            Role::Master => process.set_master(Some(slot)),
            _ => relock(&process.joined).push(slot),
        }
        let facts = self.inner.view().slot(slot.index, self.next_seq(), &mut |_| Liveness::Alive);
        self.facts.slots.extend(facts);
        self.facts.own.push(slot.index);
        Ok(slot)
    }

    pub(crate) fn new_generation(&mut self, new: NewGeneration) -> Result<()> {
        let index = self.inner.new_generation(new)?;
        self.facts.generations.extend(self.inner.view().generation(index, self.next_seq()));
        Ok(())
    }

    /// A worker joins a generation that the table does not have (any more). In a binary upgrade that is rolled back
    /// that happens: the old master starts workers again with the configuration that it has.
    fn revive(&mut self, id: GenerationId) -> Result<()> {
        let parent = Identity::parent();
        let inherited = self.inner.process().inherited_master.map(|(slot, _)| slot);
        let master = inherited.or_else(|| {
            let is_parent = |identity: &Identity| parent.is_some_and(|p| p.is(identity));
            let slot = self.facts.slots.iter().find(|s| s.role == Role::Master && is_parent(&s.identity))?;
            Some(SlotRef { index: slot.index, version: slot.version })
        });
        self.new_generation(NewGeneration {
            id,
            cause: Cause::Resume,
            phase: Phase::Committed,
            expected: self.inner.process().expected_of(id),
            master,
            master_pid: parent.map_or(0, |p| p.pid),
            previous_run: None,
        })
    }
}

fn more(tries: &AtomicU32) {
    tries.store(tries.load(Relaxed).saturating_add(1), Relaxed);
}

/// Undoes what a holder that died left half-done.
fn repair_records(inner: &Inner) {
    let header = inner.header();
    let head = header.head.load(Relaxed);
    header.repairs.fetch_add(1, Relaxed);
    inner.journal().count_newest();
    let never_happened = |seq: &AtomicU64| {
        if seq.load(Relaxed) > head {
            seq.store(0, Relaxed);
        }
    };
    never_happened(&header.redeliver_seq);
    let half_done = |version: &AtomicU64, kind: &AtomicU32| {
        let odd = version.load(Relaxed);
        if odd % 2 == 1 {
            kind.store(0, Relaxed);
            version.store(odd.wrapping_add(1), Release);
        }
    };
    for slot in inner.view().used_slots() {
        slot.seqs().into_iter().for_each(never_happened);
        half_done(&slot.version, &slot.role);
    }
    for singleton in inner.view().used_singletons() {
        never_happened(&singleton.seq);
        half_done(&singleton.version, &singleton.kind);
    }
    for generation in inner.view().used_generations() {
        generation.seqs().into_iter().for_each(never_happened);
        half_done(&generation.version, &generation.phase);
    }
}
