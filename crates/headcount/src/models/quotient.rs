//! Which states of a node are the same but for names: what happens next, and whether it is right, is then the same too.
//!
//! - Workers of one generation differ only in their pids and their numbers, and slots' versions only in being equal or not.
//! - Of what was told long ago only this matters: which words there were of each process and of each generation, in their
//!   order. An event's number matters while a record, the header or the holder of the lock has it: it says which event is meant.
//! - The counts of an event matter in the moment in which it is written, and are looked at then.
//!
//! That this holds is not only said here: `protocol.rs` tries it, state by state, where the bounds are small.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::node::{Entry, Item, Node, Op, Process};
use crate::event::{Counts, GenerationId, Kind, Role};
use crate::lifecycle::{Change, GenerationFacts, SlotFacts, SlotRef, Stage};
use crate::sys::identity::Birth;

/// A node with other names in place of its own. Two nodes have the same one only if they differ in nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Canonical {
    node: Node,
    /// What was told of each process.
    told: Vec<Vec<Entry>>,
    /// What was told of the generations themselves.
    words: Vec<(GenerationId, Kind)>,
    newest: Option<Entry>,
    /// The names of others, by the names that the caller gave.
    others: Vec<u32>,
}

/// The new names.
struct Names {
    pids: BTreeMap<u32, u32>,
    numbers: BTreeMap<(GenerationId, u32), u32>,
    seqs: BTreeMap<u64, u64>,
    versions: BTreeMap<u64, u64>,
    head: u64,
}

/// Of an event that was told, of which nobody needs to know any more which one it was.
const TOLD: u64 = 1;
/// Of one whose number was noted and that was not written: so much more than the last one.
const UNWRITTEN: u64 = 1_000;

impl Node {
    /// `others`: processes that the caller remembers, in no order.
    pub(super) fn canonical(&self, others: &[u32]) -> Canonical {
        let names = Names::of(self, others);
        let mut node = self.clone();
        let mut told = vec![Vec::new(); node.processes.len()];
        for entry in &self.journal {
            let entry = Entry { counts: Counts::default(), runs: 0, ..names.entry(entry) };
            if let Some(of) = (entry.pid as usize).checked_sub(1) {
                told[of].push(entry);
            }
        }
        let is_word = |e: &&Entry| {
            matches!(e.kind, Kind::GenerationStarted | Kind::GenerationEnded | Kind::GenerationAbandoned)
        };
        let mut words: Vec<_> = self.journal.iter().filter(is_word).map(|e| (e.generation, e.kind)).collect();
        // In their order for each.
        words.sort_by_key(|(generation, _)| *generation);
        let newest = self.journal.last().map(|e| {
            let entry = names.entry(e);
            if self.is_fresh { entry } else { Entry { counts: Counts::default(), ..entry } }
        });
        node.journal.clear();
        node.processes.iter_mut().for_each(|p| names.process(p));
        node.processes.sort_by_key(|p| p.pid);
        node.slots.iter_mut().for_each(|s| names.slot(s));
        node.generations.iter_mut().for_each(|g| names.generation(g));
        node.redeliver.0 = names.seq(node.redeliver.0);
        node.callback_seq = names.seq(node.callback_seq);
        node.sentinel = node.sentinel.map(|at| names.at(at));
        node.lock = node.lock.map(|pid| names.pid(pid));
        node.signed = node.signed.map(|pid| names.pid(pid));
        node.begun.iter_mut().for_each(|(master, _)| *master = names.pid(*master));
        node.there.sort_unstable();
        node.cleared.iter_mut().for_each(|seq| *seq = names.seq(*seq));
        node.cleared.sort_unstable();
        node.claims = 0;
        if let Some(session) = &mut node.session {
            session.steps = 0;
            session.pid = names.pid(session.pid);
            session.interrupted = session.interrupted.map(|pid| names.pid(pid));
            let facts = &mut session.facts;
            facts.slots.iter_mut().for_each(|s| names.slot(s));
            facts.generations.iter_mut().for_each(|g| names.generation(g));
            facts.redeliver_seq = names.seq(facts.redeliver_seq);
            let generation = self.process(self.session.as_ref().map_or(1, |s| s.pid)).generation;
            session.ops.iter_mut().for_each(|op| names.op(op, generation));
            for item in &mut session.agenda {
                match item {
                    Item::Do(op) => names.op(op, generation),
                    Item::Stage(Stage::Commit(id, Some(number))) => *number = names.number(*id, *number),
                    Item::Stage(_) | Item::Singletons | Item::Leftovers => {}
                }
            }
        }
        let mut others: Vec<u32> = others.iter().map(|pid| names.pid(*pid)).collect();
        others.sort_unstable();
        Canonical { node, told, words, newest, others }
    }

    /// The numbers of events that somebody may still look up.
    fn wanted_seqs(&self) -> Vec<u64> {
        let of_slots = |slots: &[SlotFacts]| -> Vec<u64> {
            slots.iter().flat_map(|s| [s.died_seq, s.stalled_seq, s.recovered_seq]).collect()
        };
        let of_generations = |all: &[GenerationFacts]| -> Vec<u64> {
            all.iter().flat_map(|g| [g.started_seq, g.ended_seq, g.abandoned_seq]).collect()
        };
        let of_op = |op: &Op| match op {
            Op::RepairTries(seq) | Op::Change(Change::Redeliver(seq)) => Some(*seq),
            Op::CallbackBegins(seq) | Op::Callback(seq) => *seq,
            Op::Append(entry) if entry.kind == Kind::CallbackDied => Some(entry.detail),
            _ => None,
        };
        let mut wanted = of_slots(&self.slots);
        wanted.extend(of_generations(&self.generations));
        wanted.extend([self.redeliver.0, self.callback_seq]);
        wanted.extend(&self.cleared);
        wanted.extend(self.journal.iter().filter(|e| e.kind == Kind::CallbackDied).map(|e| e.detail));
        if let Some(session) = &self.session {
            wanted.extend(of_slots(&session.facts.slots));
            wanted.extend(of_generations(&session.facts.generations));
            wanted.push(session.facts.redeliver_seq);
            wanted.extend(session.ops.iter().filter_map(of_op));
            let items = session.agenda.iter();
            wanted.extend(items.filter_map(|item| if let Item::Do(op) = item { of_op(op) } else { None }));
        }
        wanted.retain(|seq| *seq != 0);
        wanted.sort_unstable();
        wanted.dedup();
        wanted
    }
}

impl Names {
    fn of(node: &Node, others: &[u32]) -> Names {
        let wanted = node.wanted_seqs();
        let seqs = wanted.iter().zip(TOLD + 1..).map(|(old, new)| (*old, new)).collect();
        let mut names = Names {
            pids: BTreeMap::new(),
            numbers: BTreeMap::new(),
            seqs,
            versions: BTreeMap::new(),
            head: node.head(),
        };
        let versions: std::collections::BTreeSet<u64> = node.slots.iter().map(|s| s.version).collect();
        names.versions = versions.into_iter().zip(1..).collect();
        let mut all: Vec<(u32, (bool, GenerationId, u32, u64))> =
            node.processes.iter().map(|p| (p.pid, names.rank(node, p, others))).collect();
        all.sort_by_key(|(pid, rank)| (*rank, *pid));
        names.pids = all.iter().zip(1..).map(|((old, _), new)| (*old, new)).collect();
        for (pid, _) in all {
            let p = node.process(pid);
            let Some(number) = p.number else { continue };
            let next = names.numbers.keys().filter(|(generation, _)| *generation == p.generation).count();
            names.numbers.entry((p.generation, number)).or_insert(next as u32);
        }
        names
    }

    /// What tells a process from others like it. Who has the same one can have either's name.
    fn rank(&self, node: &Node, p: &Process, others: &[u32]) -> (bool, GenerationId, u32, u64) {
        let mut hasher = DefaultHasher::new();
        let with_number: Vec<_> =
            node.processes.iter().filter(|o| (o.generation, o.number) == (p.generation, p.number)).collect();
        (p.life, p.hangs, p.is_told, p.ended_at, p.wait_status, with_number.len()).hash(&mut hasher);
        with_number.iter().map(|o| o.life).collect::<Vec<_>>().hash(&mut hasher);
        let came = node.generations.iter().find(|g| g.id == p.generation).map_or(0, |g| g.came);
        p.number.map(|number| came >> number & 1).hash(&mut hasher);
        [node.lock, node.signed, node.session.as_ref().and_then(|s| s.interrupted)]
            .map(|of| of == Some(p.pid))
            .hash(&mut hasher);
        others.contains(&p.pid).hash(&mut hasher);
        for e in node.journal.iter().filter(|e| e.pid == p.pid) {
            (e.kind, e.cause, self.seqs.get(&e.seq), e.at, e.delivered, e.killed, e.runners)
                .hash(&mut hasher);
        }
        let slot = p.slot.map_or(u32::MAX, |at| self.at(at).index);
        (p.role != Role::Master, p.generation, slot, hasher.finish())
    }

    fn pid(&self, pid: u32) -> u32 {
        self.pids.get(&pid).copied().unwrap_or(pid)
    }

    fn number(&self, generation: GenerationId, number: u32) -> u32 {
        self.numbers.get(&(generation, number)).copied().unwrap_or(number)
    }

    fn seq(&self, seq: u64) -> u64 {
        match seq {
            0 => 0,
            seq if seq > self.head => UNWRITTEN + seq - self.head,
            seq => self.seqs.get(&seq).copied().unwrap_or(TOLD),
        }
    }

    /// Of one that nobody looks up: only that it was told matters.
    fn told(&self, seq: u64) -> u64 {
        if seq == 0 || seq > self.head { self.seq(seq) } else { TOLD }
    }

    fn version(&self, version: u64) -> u64 {
        self.versions.get(&version).copied().unwrap_or(0)
    }

    fn at(&self, at: SlotRef) -> SlotRef {
        // Of one that is gone, nothing is asked but that it is.
        match self.version(at.version) {
            0 => SlotRef { index: u32::MAX, version: 0 },
            version => SlotRef { version, ..at },
        }
    }

    fn process(&self, p: &mut Process) {
        p.pid = self.pid(p.pid);
        p.parent = self.pid(p.parent);
        p.number = p.number.map(|number| self.number(p.generation, number));
        p.slot = p.slot.map(|at| self.at(at));
    }

    fn slot(&self, s: &mut SlotFacts) {
        s.version = self.version(s.version);
        s.identity.pid = self.pid(s.identity.pid);
        s.identity.birth = Birth::Inode(u64::from(s.identity.pid));
        s.worker_id = s.worker_id.map(|number| self.number(s.generation, number));
        (s.started_seq, s.exited_seq) = (self.told(s.started_seq), self.told(s.exited_seq));
        for seq in [&mut s.died_seq, &mut s.stalled_seq, &mut s.recovered_seq] {
            *seq = self.seq(*seq);
        }
    }

    fn generation(&self, g: &mut GenerationFacts) {
        g.master_pid = self.pid(g.master_pid);
        g.master_version = self.version(g.master_version);
        for seq in [&mut g.started_seq, &mut g.ended_seq, &mut g.abandoned_seq] {
            *seq = self.seq(*seq);
        }
        let came = (0..64).filter(|bit| g.came >> bit & 1 == 1);
        g.came = came.map(|bit| 1 << self.number(g.id, bit)).sum();
    }

    fn entry(&self, e: &Entry) -> Entry {
        let seq = self.seq(e.seq);
        let detail = if e.kind == Kind::CallbackDied { self.seq(e.detail) } else { e.detail };
        Entry { seq, pid: self.pid(e.pid), detail, ..e.clone() }
    }

    /// `generation`: that of the holder, who is the one to join where somebody does.
    fn op(&self, op: &mut Op, generation: GenerationId) {
        match op {
            Op::RepairTries(seq)
            | Op::Change(Change::Redeliver(seq))
            | Op::CallbackBegins(Some(seq))
            | Op::Callback(Some(seq)) => *seq = self.seq(*seq),
            Op::Change(Change::Joined { number: Some(number), .. }) => {
                *number = self.number(generation, *number);
            }
            Op::NewGeneration(g) => self.generation(g),
            Op::Append(entry) => **entry = Entry { seq: 0, ..self.entry(entry) },
            _ => {}
        }
    }
}
