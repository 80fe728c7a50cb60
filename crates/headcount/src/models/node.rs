//! A node: its processes as the kernel knows them, its registry as it lies in memory, its journal.

use std::collections::VecDeque;

use crate::event::{Cause, Counts, Event, GenerationId, Kind, PreviousRun, Role};
use crate::lifecycle::{
    Change, Facts, Families, GenerationFacts, Intent, Mark, Phase, Scope, SingletonFacts, SlotFacts, SlotRef,
    Stage,
};
use crate::sys::identity::{Birth, Identity, Liveness};

pub(super) const SECOND: u64 = 1_000_000_000;
pub(super) const STALL_AFTER: u64 = 5 * SECOND;

/// A rule that is broken on purpose, to see that it is missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Broken {
    Nothing,
    /// A record is freed before the callback about it has run.
    FreedBeforeDelivery,
    /// An event is written before its number is noted in the record.
    JournalledBeforeMark,
    /// What a holder that died left half-done is not made good by the next one.
    NoRepair,
    /// A leader is not asked to give its role up.
    NotAsked,
    /// A tenure has the token of the one before.
    SameToken,
    /// Who was at a once may have it again, though it was done.
    ForgetsDone,
}

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Life {
    /// It has not said anything yet.
    Forked,
    /// It says that it waits for the node lock to join.
    Waiting,
    Joined,
    Drained,
    /// It has left properly, and then ended.
    Left,
    Dead,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) parent: u32,
    pub(super) role: Role,
    pub(super) generation: GenerationId,
    pub(super) number: Option<u32>,
    pub(super) life: Life,
    /// Alive, and nothing of it runs.
    pub(super) hangs: bool,
    /// A master that was told to stop.
    pub(super) is_told: bool,
    pub(super) slot: Option<SlotRef>,
    pub(super) ended_at: u64,
    /// How it ended, where the kernel told.
    pub(super) wait_status: Option<i32>,
    /// What it makes of roles and onces.
    pub(super) duty: Duty,
}

/// What a process makes of the role and the once of `singletons.rs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Duty {
    /// Of the tenure that it was told; 0: none.
    pub(super) token: u64,
    /// It was told to give it up.
    pub(super) is_asked: bool,
    /// It does what the leader does.
    pub(super) leads: bool,
    /// It had as long as anybody has to stop.
    pub(super) is_late: bool,
    /// It is at the once.
    pub(super) runs: bool,
}

impl Process {
    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.life, Life::Left | Life::Dead)
    }
}

/// An event, and what became of its callback.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    pub(super) seq: u64,
    pub(super) at: u64,
    pub(super) kind: Kind,
    pub(super) cause: Cause,
    pub(super) generation: GenerationId,
    pub(super) pid: u32,
    pub(super) counts: Counts,
    pub(super) detail: u64,
    pub(super) end: (Option<i32>, Option<i32>),
    pub(super) previous_run: Option<PreviousRun>,
    pub(super) token: u64,
    /// How often its callback began, and how often it came to its end.
    pub(super) runs: u32,
    pub(super) delivered: u32,
    /// How many died between the two, or while they made such a death good.
    pub(super) killed: u32,
    /// Of these, those that ran it.
    pub(super) runners: u32,
}

impl Entry {
    pub(super) fn of(event: &Event, counts: Counts, seq: u64) -> Entry {
        Entry {
            seq,
            at: 0,
            kind: event.kind,
            cause: event.cause,
            generation: event.generation,
            pid: event.pid,
            counts,
            detail: event.detail,
            end: (event.signal, event.exit_code),
            previous_run: event.previous_run,
            token: event.token,
            runs: 0,
            delivered: 0,
            killed: 0,
            runners: 0,
        }
    }

    pub(super) fn event(&self) -> Event {
        let mut event = Event::new(self.kind, self.cause);
        (event.seq, event.generation, event.pid) = (self.seq, self.generation, self.pid);
        event
    }

    /// Whether others run its callback if its runner dies.
    pub(super) fn is_about_others(&self) -> bool {
        self.kind.has_callback()
            && !matches!(
                self.kind,
                Kind::WorkerStarted
                    | Kind::WorkerDraining
                    | Kind::WorkerExited
                    | Kind::HelperStarted
                    | Kind::HelperExited
            )
    }
}

/// What a process wants the node lock for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Call {
    /// For so many workers.
    Begin(u32),
    Join,
    Drain,
    Leave,
    LeaveMaster,
    Settle,
    Stand,
    BeginOnce,
    /// Well or not.
    EndOnce(bool),
}

/// One step of the holder. It may die before and after each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Op {
    RepairRecords,
    RepairCallback,
    RepairTries(u64),
    ClearCallback,
    Sign,
    Plan(Call),
    PlanJoin,
    NewGeneration(Box<GenerationFacts>),
    CountRun,
    Change(Change),
    /// The next event is to be delivered by another, should this process die.
    Redeliver,
    Stand,
    RunOnce,
    EndOnce(bool),
    Mark(Mark),
    Append(Box<Entry>),
    /// The newest event, or a known one.
    CallbackBegins(Option<u64>),
    Callback(Option<u64>),
    CallbackEnds,
    Unsign,
    Unlock,
}

/// What is still to be planned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Item {
    Do(Op),
    Stage(Stage),
    Singletons,
    Leftovers,
}

/// The holder of the node lock, in the middle of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Session {
    pub(super) pid: u32,
    pub(super) facts: Facts,
    pub(super) is_stale: bool,
    pub(super) interrupted: Option<u32>,
    pub(super) is_left_to_us: bool,
    pub(super) ops: VecDeque<Op>,
    pub(super) agenda: VecDeque<Item>,
    pub(super) steps: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node {
    pub(super) broken: Broken,
    pub(super) now: u64,
    /// By their ids, which begin with 1.
    pub(super) processes: Vec<Process>,
    /// The records that are taken, as they lie in memory.
    pub(super) slots: Vec<SlotFacts>,
    pub(super) generations: Vec<GenerationFacts>,
    pub(super) singletons: Vec<SingletonFacts>,
    pub(super) last_token: u64,
    pub(super) journal: Vec<Entry>,
    pub(super) redeliver: (u64, u32),
    pub(super) callback_seq: u64,
    pub(super) last_generation: GenerationId,
    pub(super) runs: u64,
    pub(super) sentinel: Option<SlotRef>,
    /// The lock's word, and who has signed.
    pub(super) lock: Option<u32>,
    pub(super) signed: Option<u32>,
    pub(super) session: Option<Session>,
    pub(super) claims: u64,
    /// What nobody in the node knows: which generations are there, the master and the workers to come of each.
    pub(super) there: Vec<GenerationId>,
    pub(super) begun: Vec<(u32, u32)>,
    /// Events whose records a start has cleared away with what a run before it left: it runs no callbacks.
    pub(super) cleared: Vec<u64>,
    /// The newest event was written by the last step.
    pub(super) is_fresh: bool,
}

impl Node {
    pub(super) fn new(broken: Broken) -> Node {
        Node {
            broken,
            now: SECOND,
            processes: Vec::new(),
            slots: Vec::new(),
            generations: Vec::new(),
            singletons: Vec::new(),
            last_token: 0,
            journal: Vec::new(),
            redeliver: (0, 0),
            callback_seq: 0,
            last_generation: 0,
            runs: 0,
            sentinel: None,
            lock: None,
            signed: None,
            session: None,
            claims: 0,
            there: Vec::new(),
            begun: Vec::new(),
            cleared: Vec::new(),
            is_fresh: false,
        }
    }

    pub(super) fn process(&self, pid: u32) -> &Process {
        &self.processes[pid as usize - 1]
    }

    pub(super) fn process_mut(&mut self, pid: u32) -> &mut Process {
        &mut self.processes[pid as usize - 1]
    }

    pub(super) fn living(&self, role: Role) -> impl Iterator<Item = &Process> {
        self.processes.iter().filter(move |p| p.role == role && p.is_alive())
    }

    /// Workers that are in the table and run.
    pub(super) fn at_work(&self) -> impl Iterator<Item = &Process> {
        self.living(Role::Worker).filter(|p| matches!(p.life, Life::Joined | Life::Drained) && !p.hangs)
    }

    fn spawn(&mut self, parent: u32, role: Role, generation: GenerationId, number: Option<u32>) -> u32 {
        let pid = self.processes.len() as u32 + 1;
        self.processes.push(Process {
            pid,
            parent,
            role,
            generation,
            number,
            life: Life::Forked,
            hangs: false,
            is_told: false,
            slot: None,
            ended_at: 0,
            wait_status: None,
            duty: Duty::default(),
        });
        pid
    }

    /// A master opens the node. `parent`: of an upgrade.
    pub(super) fn open(&mut self, parent: u32) -> u32 {
        let pid = self.spawn(parent, Role::Master, 0, None);
        self.claim(pid, Cause::Unknown);
        self.process_mut(pid).life = Life::Joined;
        pid
    }

    pub(super) fn fork(
        &mut self,
        parent: u32,
        role: Role,
        generation: GenerationId,
        number: Option<u32>,
    ) -> u32 {
        self.spawn(parent, role, generation, number)
    }

    /// Takes a free slot for a process, as `engine/tables.rs` does.
    pub(super) fn claim(&mut self, pid: u32, cause: Cause) -> u32 {
        let index = (0..).find(|i| self.slots.iter().all(|s| s.index != *i)).unwrap_or(0);
        self.claims += 2;
        let p = self.process(pid).clone();
        let slot = SlotFacts {
            index,
            version: self.claims,
            role: p.role,
            generation: p.generation,
            identity: Identity { pid, namespace: 1, birth: Birth::Inode(u64::from(pid)) },
            lock_tag: 0,
            worker_id: p.number,
            cause,
            joined_ns: self.now,
            joined_wall_ns: 0,
            intent: if p.role == Role::Master { Intent::Listening } else { Intent::Starting },
            intent_since_ns: self.now,
            heartbeat_ns: self.now,
            slept_ns: 0,
            tries: 0,
            started_seq: 0,
            exited_seq: 0,
            died_seq: 0,
            stalled_seq: 0,
            recovered_seq: 0,
            wait_status: None,
            stands_for: 0,
            waits_for: None,
            liveness: Liveness::Gone,
        };
        self.process_mut(pid).slot = Some(slot.at());
        let place = self.slots.iter().position(|s| s.index > index).unwrap_or(self.slots.len());
        self.slots.insert(place, slot);
        index
    }

    pub(super) fn head(&self) -> u64 {
        self.journal.len() as u64
    }

    /// What `View::facts` and `Inner::facts` read, and the kernel says.
    pub(super) fn facts(&self, pid: u32) -> Facts {
        let head = self.head();
        let reported = |seq: &mut u64| *seq = if *seq <= head { *seq } else { 0 };
        let mut slots = self.slots.clone();
        for s in &mut slots {
            [
                &mut s.started_seq,
                &mut s.exited_seq,
                &mut s.died_seq,
                &mut s.stalled_seq,
                &mut s.recovered_seq,
            ]
            .into_iter()
            .for_each(reported);
            s.liveness =
                if self.process(s.identity.pid).is_alive() { Liveness::Alive } else { Liveness::Gone };
        }
        let mut generations = self.generations.clone();
        for g in &mut generations {
            [&mut g.started_seq, &mut g.ended_seq, &mut g.abandoned_seq].into_iter().for_each(reported);
        }
        let (mut redeliver_seq, redeliver_tries) = self.redeliver;
        reported(&mut redeliver_seq);
        let own = slots.iter().filter(|s| s.identity.pid == pid).map(|s| s.index).collect();
        let mut facts = Facts {
            slots,
            generations,
            singletons: self.read_singletons(),
            next_token: self.next_token(),
            now: self.now,
            stall_after: STALL_AFTER,
            redeliver_seq,
            redeliver_tries,
            as_reported: true,
            is_patient: false,
            own,
        };
        for p in self.processes.iter().filter(|p| p.life == Life::Waiting && p.role == Role::Worker) {
            let needs_joiner = facts.needs_joiner(p.generation);
            facts
                .generations
                .iter_mut()
                .filter(|g| needs_joiner && g.id == p.generation)
                .for_each(|g| g.joining = true);
        }
        for index in facts.awaiting() {
            let Some(master) = facts.generation_at(index).map(|g| g.master_pid) else { continue };
            let is_known = |p: &Process| facts.slots.iter().any(|s| s.identity.pid == p.pid);
            let is_empty = self.process(master).is_alive()
                && self.processes.iter().filter(|p| p.parent == master && p.is_alive()).all(is_known);
            facts.generations.iter_mut().filter(|g| g.index == index).for_each(|g| g.nobody_comes = is_empty);
        }
        facts
    }

    /// What a worker's look leads to: whether it becomes the sentinel, and whether it has something to report.
    pub(super) fn watches(&self, pid: u32) -> Option<(bool, bool)> {
        let facts = self.facts(pid);
        let me = facts.slots.iter().find(|s| s.identity.pid == pid)?;
        let families = Families::of(&facts);
        let holder = facts.slots.iter().find(|s| Some(s.at()) == self.sentinel);
        let takes_over = Some(me.at()) != self.sentinel && facts.takes_over(&families, holder, me, true);
        let sentinel = if takes_over { me.index } else { self.sentinel.map_or(u32::MAX, |s| s.index) };
        let is_on_duty =
            sentinel == me.index || facts.deputy(&families, Some(sentinel), me) == Some(me.index);
        let reports = is_on_duty && self.is_free() && facts.next_step(Scope::Everything).is_some();
        (takes_over || reports).then_some((takes_over, reports))
    }

    /// A process ends, wherever it is. `wait_status`: where somebody hears of it.
    pub(super) fn kill(&mut self, pid: u32, wait_status: Option<i32>) {
        let now = self.now;
        let p = self.process_mut(pid);
        (p.life, p.wait_status, p.ended_at, p.hangs) = (Life::Dead, wait_status, now, false);
        if let Some(s) = self.slots.iter_mut().find(|s| s.identity.pid == pid) {
            s.wait_status = wait_status;
        }
        self.is_fresh = false;
        if let Some(session) = self.session.take_if(|s| s.pid == pid) {
            let entry = self.callback_seq.checked_sub(1).and_then(|i| self.journal.get_mut(i as usize));
            if let Some(entry) = entry {
                entry.killed += 1;
                entry.runners += u32::from(session.ops.contains(&Op::CallbackEnds));
            }
        }
    }

    /// `Generation::commit` and `abandon` of a master, which take no lock.
    pub(super) fn change_phase(&mut self, id: GenerationId, to: Phase) {
        if let Some(g) = self.generations.iter_mut().find(|g| g.id == id && g.phase == Phase::Announced) {
            g.phase = to;
            if to == Phase::Committed {
                self.there.push(id);
            }
        }
    }

    /// The signal handler of a master.
    pub(super) fn tell_to_stop(&mut self, pid: u32) {
        if let Some(s) = self.slots.iter_mut().find(|s| s.identity.pid == pid) {
            s.intent = Intent::Leaving;
        }
        self.process_mut(pid).is_told = true;
    }

    pub(super) fn beat(&mut self, pid: u32) {
        let now = self.now;
        self.slots.iter_mut().filter(|s| s.identity.pid == pid).for_each(|s| s.heartbeat_ns = now);
    }

    /// Whether the node lock could be taken now.
    pub(super) fn is_free(&self) -> bool {
        self.lock.is_none_or(|holder| !self.process(holder).is_alive())
    }

    /// Takes the free lock.
    pub(super) fn acquire(&mut self, pid: u32, call: Call) {
        self.lock = Some(pid);
        let interrupted = self.signed;
        let mut ops = VecDeque::new();
        if interrupted.is_some() && self.broken != Broken::NoRepair {
            ops.extend([Op::RepairRecords, Op::RepairCallback]);
        }
        ops.extend([Op::Sign, Op::Plan(call)]);
        // A replacement gives a sentinel that runs a moment.
        let p = self.process(pid);
        let g = self.generations.iter().find(|g| g.id == p.generation);
        let is_left_to_us = call == Call::Join && g.is_some_and(|g| g.is_replacement(p.number));
        self.session = Some(Session {
            pid,
            facts: self.facts(pid),
            is_stale: false,
            interrupted,
            is_left_to_us,
            ops,
            agenda: VecDeque::new(),
            steps: 0,
        });
    }
}
