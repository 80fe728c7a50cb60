//! What the holder of the node lock does, one step after the other, as `engine/session.rs`, `transitions.rs`, `master.rs`,
//! `generation.rs` and `worker.rs` do it. What is decided is decided by `lifecycle` itself.

use std::collections::VecDeque;

use super::node::{Broken, Call, Entry, Item, Life, Node, Op, Session};
use crate::event::{Cause, Event, Kind, Role};
use crate::lifecycle::{
    Act, Change, Facts, GenerationFacts, Intent, Mark, Phase, Scope, SlotFacts, SlotRef, Stage, Subject,
};
use crate::sys::identity::Liveness;

/// More than any call takes here. Who takes more has no end of work.
const MOST_STEPS: u32 = 2_000;

impl Node {
    /// Whether anything that others do could make a difference to the holder now: before it looks.
    pub(super) fn is_at_look(&self) -> bool {
        self.session
            .as_ref()
            .is_none_or(|s| s.is_stale && s.ops.is_empty() || matches!(s.ops.front(), Some(Op::Callback(_))))
    }

    /// The holder's next step. It must be alive and not hang.
    pub(super) fn step(&mut self) {
        let Some(mut session) = self.session.take() else { return };
        session.steps += 1;
        self.is_fresh = false;
        assert!(session.steps < MOST_STEPS, "there is no end of work: {session:?}");
        let op = session.ops.pop_front().unwrap_or_else(|| self.plan(&mut session));
        if self.perform(&mut session, op) {
            self.session = Some(session);
        }
    }

    /// The first step of what comes next.
    fn plan(&self, session: &mut Session) -> Op {
        loop {
            if session.is_stale {
                session.facts = self.facts(session.pid);
                session.is_stale = false;
            }
            let act = match session.agenda.front().cloned() {
                None => {
                    session.ops.push_back(Op::Unlock);
                    return Op::Unsign;
                }
                Some(Item::Do(op)) => {
                    session.agenda.pop_front();
                    return op;
                }
                Some(Item::Stage(Stage::Revive(id))) => {
                    session.agenda.pop_front();
                    let p = self.process(session.pid);
                    let is_parent = |s: &&SlotFacts| s.role == Role::Master && s.identity.pid == p.parent;
                    let master = session.facts.slots.iter().find(is_parent).map(SlotFacts::at);
                    return Op::NewGeneration(Box::new(GenerationFacts {
                        phase: Phase::Committed,
                        ..self.new_generation(id, Cause::Resume, self.expected(id), master, p.parent)
                    }));
                }
                Some(Item::Stage(stage)) => {
                    let act = session.facts.act(stage);
                    if act.as_ref().is_none_or(|act| act.is_last) {
                        session.agenda.pop_front();
                    }
                    act
                }
                Some(Item::Singletons) => {
                    let act = session.facts.next_about_singletons();
                    if act.is_none() {
                        session.agenda.pop_front();
                    }
                    act
                }
                Some(Item::Leftovers) => {
                    let act = session.facts.next_leftover();
                    if act.is_none() {
                        session.agenda.pop_front();
                    }
                    act
                }
            };
            if let Some(act) = act {
                session.ops = self.expand(&act);
                if let Some(op) = session.ops.pop_front() {
                    return op;
                }
            }
        }
    }

    /// The steps of an act: those of `Session::carry_out`, its callback, those of `Session::complete`.
    fn expand(&self, act: &Act) -> VecDeque<Op> {
        let mut ops: VecDeque<Op> = act.before.iter().map(|&c| Op::Change(c)).collect();
        let (kind, seq) = match &act.subject {
            Subject::Nothing => (None, None),
            Subject::New(report) => {
                if report.redeliver {
                    ops.push_back(Op::Redeliver);
                }
                let append = Op::Append(Box::new(Entry::of(&report.event, report.event.counts, 0)));
                match report.mark.map(Op::Mark) {
                    Some(mark) if self.broken == Broken::JournalledBeforeMark => ops.extend([append, mark]),
                    mark => ops.extend(mark.into_iter().chain([append])),
                }
                (Some(report.event.kind), None)
            }
            Subject::Known(seq, _) => (self.entry(*seq).map(|e| e.kind), Some(*seq)),
        };
        let after = act.after.iter().map(|&c| Op::Change(c));
        if act.deliver && kind.is_some_and(Kind::has_callback) {
            if self.broken == Broken::FreedBeforeDelivery {
                ops.extend(after.clone());
            }
            ops.extend([Op::CallbackBegins(seq), Op::Callback(seq)]);
            if self.broken != Broken::FreedBeforeDelivery {
                ops.extend(after);
            }
            ops.push_back(Op::CallbackEnds);
        } else {
            ops.extend(after);
        }
        ops
    }

    fn entry(&self, seq: u64) -> Option<&Entry> {
        self.journal.get(usize::try_from(seq.checked_sub(1)?).ok()?)
    }

    fn entry_mut(&mut self, seq: Option<u64>) -> Option<&mut Entry> {
        let seq = seq.unwrap_or(self.head());
        self.journal.get_mut(usize::try_from(seq.checked_sub(1)?).ok()?)
    }

    /// `false`: the lock is released.
    fn perform(&mut self, session: &mut Session, op: Op) -> bool {
        match op {
            Op::RepairRecords => self.repair_records(session),
            Op::RepairCallback => self.repair_callback(session),
            Op::RepairTries(seq) => {
                if let Some(about) = self.entry(seq).map(Entry::event) {
                    let changes = session.facts.died_in_callback(&about);
                    changes.into_iter().rev().for_each(|c| session.ops.push_front(Op::Change(c)));
                }
            }
            Op::ClearCallback => self.callback_seq = 0,
            Op::Sign => self.signed = Some(session.pid),
            Op::Plan(call) => self.plan_call(session, call),
            Op::PlanJoin => self.plan_join(session),
            Op::NewGeneration(g) => {
                let g = GenerationFacts { begun_ns: self.now, ..*g };
                session.facts.generations.push(g.clone());
                if g.phase == Phase::Committed {
                    self.there.push(g.id);
                }
                let place =
                    self.generations.iter().position(|o| o.index > g.index).unwrap_or(self.generations.len());
                self.generations.insert(place, g);
            }
            Op::CountRun => self.runs += 1,
            Op::Stand => self.stand(session),
            Op::RunOnce => self.run_once(session),
            Op::EndOnce(well) => {
                if let Some(act) = self.end_once(session, well) {
                    session.ops = self.expand(&act);
                }
            }
            Op::Change(change) if self.apply_to_singletons(change, session) => {}
            Op::Change(change) => {
                self.note(change, session.agenda.front() == Some(&Item::Leftovers));
                apply(change, self.now, &mut self.slots, &mut self.generations, &mut self.redeliver);
                session.facts.now = self.now;
                let Facts { slots, generations, redeliver_seq, redeliver_tries, .. } = &mut session.facts;
                let mut redeliver = (*redeliver_seq, *redeliver_tries);
                apply(change, self.now, slots, generations, &mut redeliver);
                (*redeliver_seq, *redeliver_tries) = redeliver;
                if let Change::FreeSlot(_) = change {
                    let p = self.process(session.pid);
                    let is_out = p.slot.is_some_and(|at| self.slots.iter().all(|s| s.at() != at));
                    if is_out {
                        self.process_mut(session.pid).slot = None;
                    }
                }
            }
            Op::Redeliver => {
                let seq = self.head() + 1;
                self.redeliver.0 = seq;
                session.facts.redeliver_seq = seq;
            }
            Op::Mark(mark) => {
                let seq = match self.broken {
                    Broken::JournalledBeforeMark => self.head(),
                    _ => self.head() + 1,
                };
                if let Mark::Singleton(index) = mark {
                    self.change_singleton(index, session, |x| x.seq = seq);
                }
                apply_mark(mark, seq, &mut self.slots, &mut self.generations);
                apply_mark(mark, seq, &mut session.facts.slots, &mut session.facts.generations);
            }
            Op::Append(entry) => {
                let counts = session.facts.counts(entry.generation);
                if entry.kind == Kind::GenerationEnded {
                    self.there.retain(|id| *id != entry.generation);
                }
                self.journal.push(Entry { seq: self.head() + 1, at: self.now, counts, ..*entry });
                self.is_fresh = true;
            }
            Op::CallbackBegins(seq) => {
                self.callback_seq = seq.unwrap_or(self.head());
                if let Some(entry) = self.entry_mut(seq) {
                    entry.runs += 1;
                }
            }
            Op::Callback(seq) => {
                if let Some(entry) = self.entry_mut(seq) {
                    entry.delivered += 1;
                }
            }
            Op::CallbackEnds => {
                self.callback_seq = 0;
                session.is_stale = true;
            }
            Op::Unsign => self.signed = None,
            Op::Unlock => {
                self.lock = None;
                self.call_ends(session.pid);
                return false;
            }
        }
        true
    }

    fn note(&mut self, change: Change, is_leftover: bool) {
        let id = |index: u32| self.generations.iter().find(|g| g.index == index).map(|g| g.id);
        if is_leftover {
            let slots = self.slots.iter().filter(|s| change == Change::FreeSlot(s.index)).map(|s| s.died_seq);
            let freed = self.generations.iter().filter(|g| change == Change::FreeGeneration(g.index));
            let generations = freed.flat_map(|g| [g.started_seq, g.ended_seq, g.abandoned_seq]);
            self.cleared.extend(slots.chain(generations).filter(|seq| *seq != 0));
        }
        match change {
            Change::Joined { generation, .. } => {
                if let Some(id) = id(generation).filter(|id| !self.there.contains(id)) {
                    self.there.push(id);
                }
            }
            Change::FreeGeneration(generation) => {
                let freed = id(generation);
                self.there.retain(|id| Some(*id) != freed);
            }
            _ => {}
        }
    }

    /// What the process is after its call.
    fn call_ends(&mut self, pid: u32) {
        let intent =
            self.process(pid).slot.and_then(|at| self.slots.iter().find(|s| s.at() == at)).map(|s| s.intent);
        let p = self.process_mut(pid);
        p.life = match (p.life, intent) {
            (Life::Forked | Life::Waiting, Some(_)) => Life::Joined,
            (Life::Joined, Some(Intent::Draining)) => Life::Drained,
            (Life::Joined | Life::Drained, None) => Life::Left,
            (life, _) => life,
        };
    }

    fn repair_records(&mut self, session: &mut Session) {
        let head = self.head();
        let never_happened = |seq: &mut u64| *seq = if *seq > head { 0 } else { *seq };
        never_happened(&mut self.redeliver.0);
        for s in &mut self.slots {
            [
                &mut s.started_seq,
                &mut s.exited_seq,
                &mut s.died_seq,
                &mut s.stalled_seq,
                &mut s.recovered_seq,
            ]
            .into_iter()
            .for_each(never_happened);
        }
        for g in &mut self.generations {
            [&mut g.started_seq, &mut g.ended_seq, &mut g.abandoned_seq].into_iter().for_each(never_happened);
        }
        self.singletons.iter_mut().map(|x| &mut x.seq).for_each(never_happened);
        session.facts = self.facts(session.pid);
    }

    fn repair_callback(&mut self, session: &mut Session) {
        let seq = self.callback_seq;
        let (Some(dead), true) = (session.interrupted, seq != 0) else { return };
        let mut ops = VecDeque::new();
        let newest = self.journal.last();
        if !newest.is_some_and(|e| e.kind == Kind::CallbackDied && e.detail == seq && e.pid == dead) {
            let about = self.entry(seq);
            let mut event = Event::new(Kind::CallbackDied, about.map_or(Cause::Unknown, |e| e.cause));
            (event.pid, event.detail) = (dead, seq);
            event.generation = about.map_or(0, |e| e.generation);
            ops.push_back(Op::Append(Box::new(Entry::of(&event, event.counts, 0))));
        }
        ops.extend([Op::RepairTries(seq), Op::ClearCallback]);
        ops.append(&mut session.ops);
        session.ops = ops;
    }

    fn plan_call(&mut self, session: &mut Session, call: Call) {
        let pid = session.pid;
        let slot = self.process(pid).slot.map(|at| at.index);
        let stages = |session: &mut Session, stages: Vec<Stage>| {
            session.agenda.extend(stages.into_iter().map(Item::Stage));
        };
        match (call, slot) {
            (Call::Settle, _) => stages(session, vec![Stage::Settle(Scope::Everything)]),
            (Call::Join, _) => {
                stages(session, vec![Stage::Settle(Scope::Tidy)]);
                session.agenda.push_back(Item::Do(Op::PlanJoin));
            }
            (Call::Stand, Some(_)) => {
                session.agenda.extend([Item::Do(Op::Stand), Item::Singletons]);
            }
            (Call::BeginOnce, Some(_)) => {
                session.agenda.extend([Item::Singletons, Item::Do(Op::RunOnce)]);
            }
            (Call::EndOnce(well), Some(_)) => {
                session.agenda.extend([Item::Do(Op::EndOnce(well)), Item::Singletons]);
            }
            (Call::Drain, Some(index)) => stages(session, vec![Stage::Drain(index)]),
            (Call::Leave, Some(index)) => {
                let generation = self.process(pid).generation;
                let mut all = vec![
                    Stage::Settle(Scope::Tidy),
                    Stage::LetGo(index),
                    Stage::Exit(index),
                    Stage::Settle(Scope::Generation(generation)),
                ];
                if session.facts.nobody_else(Some(index)) {
                    all.push(Stage::Settle(Scope::Everything));
                }
                stages(session, all);
            }
            (Call::LeaveMaster, Some(index)) => {
                let mut others =
                    session.facts.slots.iter().filter(|s| s.role != Role::Helper && s.index != index);
                let is_alone = !others.any(|s| s.liveness != Liveness::Gone);
                let scope = if is_alone { Scope::LastWord } else { Scope::Tidy };
                stages(session, vec![Stage::Settle(scope), Stage::ExitMaster(index)]);
            }
            (Call::Begin(expected), _) => self.plan_begin(session, expected, slot),
            (
                Call::Drain
                | Call::Leave
                | Call::LeaveMaster
                | Call::Stand
                | Call::BeginOnce
                | Call::EndOnce(_),
                None,
            ) => {}
        }
    }

    fn plan_begin(&mut self, session: &mut Session, expected: u32, slot: Option<u32>) {
        let p = self.process(session.pid).clone();
        let has_begun = p.generation != 0;
        let cause = session.facts.begin_cause(has_begun, false, slot);
        let previous_run = (cause == Cause::Start).then(|| session.facts.find_previous_run(self.runs));
        self.last_generation += 1;
        self.begun.push((session.pid, expected));
        let id = self.last_generation;
        let g = self.new_generation(id, cause, expected, p.slot, session.pid);
        session
            .agenda
            .push_back(Item::Do(Op::NewGeneration(Box::new(GenerationFacts { previous_run, ..g }))));
        if previous_run.is_some() {
            session.agenda.extend([Item::Do(Op::CountRun), Item::Leftovers]);
        }
        let stages = [Stage::Settle(Scope::Tidy), Stage::StartGeneration(id)];
        session.agenda.extend(stages.map(Item::Stage));
        self.process_mut(session.pid).generation = id;
    }

    fn expected(&self, id: u64) -> u32 {
        self.begun.get(id as usize - 1).map_or(0, |(_, expected)| *expected)
    }

    fn new_generation(
        &self,
        id: u64,
        cause: Cause,
        expected: u32,
        master: Option<SlotRef>,
        master_pid: u32,
    ) -> GenerationFacts {
        let (master_slot, master_version) = master.map_or((u32::MAX, 0), |m| (m.index, m.version));
        GenerationFacts {
            index: (0..).find(|i| self.generations.iter().all(|g| g.index != *i)).unwrap_or(0),
            id,
            phase: Phase::Announced,
            cause,
            master_slot,
            master_version,
            master_pid,
            begun_ns: self.now,
            begun_wall_ns: 0,
            expected,
            joined: 0,
            came: 0,
            lost_at_work: 0,
            started_seq: 0,
            ended_seq: 0,
            abandoned_seq: 0,
            start_delivered: false,
            tries: 0,
            previous_run: None,
            joining: false,
            nobody_comes: false,
        }
    }

    fn plan_join(&mut self, session: &mut Session) {
        let p = self.process(session.pid).clone();
        let facts = &session.facts;
        let is_fit = |s: &SlotFacts| s.is_fit(facts.now, facts.stall_after);
        let nobody_watches = session.is_left_to_us || !facts.slots.iter().any(is_fit);
        let is_known = facts.joinable(p.generation).is_some();
        let cause = facts.join_cause(p.generation, p.role, p.number, false);
        let index = self.claim(session.pid, cause);
        let claimed = self.slots.iter().find(|s| s.index == index).cloned();
        session.facts.slots.extend(claimed.map(|s| SlotFacts { liveness: Liveness::Alive, ..s }));
        session.facts.own.push(index);
        if p.life == Life::Waiting {
            // No longer announced; in the table instead.
            self.process_mut(session.pid).life = Life::Forked;
        }
        let mut stages = Vec::new();
        if p.role == Role::Worker {
            if nobody_watches {
                stages.push(Stage::Settle(Scope::Everything));
            }
            if !is_known {
                stages.extend([Stage::Settle(Scope::Generation(p.generation)), Stage::Revive(p.generation)]);
            }
            stages.extend([Stage::Commit(p.generation, p.number), Stage::StartGeneration(p.generation)]);
        }
        stages.push(Stage::StartProcess(index));
        session.agenda.extend(stages.into_iter().map(Item::Stage));
    }
}

/// `Session::apply`.
fn apply(
    change: Change,
    now: u64,
    slots: &mut Vec<SlotFacts>,
    generations: &mut Vec<GenerationFacts>,
    redeliver: &mut (u64, u32),
) {
    let mut slot = |index: u32, change: &dyn Fn(&mut SlotFacts)| {
        slots.iter_mut().filter(|s| s.index == index).for_each(change);
    };
    let mut generation = |index: u32, change: &dyn Fn(&mut GenerationFacts)| {
        generations.iter_mut().filter(|g| g.index == index).for_each(change);
    };
    match change {
        Change::FreeSlot(index) => slots.retain(|s| s.index != index),
        Change::FreeGeneration(index) => generations.retain(|g| g.index != index),
        Change::Intent(index, intent) => slot(index, &|s| (s.intent, s.intent_since_ns) = (intent, now)),
        Change::Serving(index) => slot(index, &|s| {
            (s.intent, s.intent_since_ns, s.heartbeat_ns) = (Intent::Serving, now, now);
        }),
        Change::LostAtWork(index, at) => generation(index, &|g| g.lost_at_work = at),
        Change::Joined { generation: index, number, is_complete } => generation(index, &|g| {
            g.joined += 1;
            g.came |= number.filter(|n| *n < 64).map_or(0, |n| 1 << n);
            g.phase = Phase::Committed;
            if is_complete {
                g.lost_at_work = 0;
            }
        }),
        Change::StartDelivered(index) => generation(index, &|g| (g.start_delivered, g.tries) = (true, 0)),
        Change::ForgetTries(index) => generation(index, &|g| g.tries = 0),
        Change::SlotTries(index) => slot(index, &|s| s.tries += 1),
        Change::GenerationTries(index) => generation(index, &|g| g.tries += 1),
        Change::Redeliver(seq) => redeliver.0 = seq,
        Change::RedeliverTries => redeliver.1 += 1,
        Change::Redelivered => *redeliver = (0, 0),
        // See `singletons.rs`.
        Change::FreeSingleton(_)
        | Change::Next(..)
        | Change::Turn(_)
        | Change::Nominate { .. }
        | Change::Ask(_)
        | Change::End(..)
        | Change::Unlock(..) => {}
    }
}

/// `Session::mark`.
fn apply_mark(mark: Mark, seq: u64, slots: &mut [SlotFacts], generations: &mut [GenerationFacts]) {
    let mut slot = |index: u32, change: &dyn Fn(&mut SlotFacts)| {
        slots.iter_mut().filter(|s| s.index == index).for_each(change);
    };
    let mut generation = |index: u32, change: &dyn Fn(&mut GenerationFacts)| {
        generations.iter_mut().filter(|g| g.index == index).for_each(change);
    };
    match mark {
        Mark::Started(index) => slot(index, &|s| s.started_seq = seq),
        Mark::Exited(index) => slot(index, &|s| s.exited_seq = seq),
        Mark::Died(index) => slot(index, &|s| s.died_seq = seq),
        Mark::Stalled(index) => slot(index, &|s| s.stalled_seq = seq),
        Mark::Recovered(index) => slot(index, &|s| s.recovered_seq = seq),
        Mark::GenerationStarted(index) => generation(index, &|g| g.started_seq = seq),
        Mark::Ended(index) => generation(index, &|g| g.ended_seq = seq),
        Mark::Abandoned(index) => generation(index, &|g| g.abandoned_seq = seq),
        Mark::Singleton(_) => {}
    }
}
