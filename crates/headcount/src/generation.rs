//! Generations: announced, committed, ended or abandoned; and how a process joins one.

use std::os::fd::AsFd;

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Cause, GenerationId, Kind, PreviousRun, Role};
use crate::hold::{Hold, Operation, Wait};
use crate::layout::{Generation as Record, joining_byte};
use crate::lifecycle::{GenerationFacts, Intent, Liveness, Phase, Scope};
use crate::node::{Node, NoticeLevel, OPEN_LOCKS, SlotRef};
use crate::sys::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::seqlock::rewrite;
use crate::sys::{clock, lock, process};
use crate::transitions::{Reported, Stage, Transitions, about, about_generation, announce, death, tidy};
use crate::worker::Worker;

/// How a generation begins.
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct Begin {
    cause: Option<Cause>,
    workers: u32,
}

impl Begin {
    /// The cause is found out: a reload if this process has begun a generation before, an upgrade if
    /// another master of the node is alive, else a start.
    pub fn new() -> Begin {
        Begin::default()
    }

    /// The server says the cause itself: [`Cause::Start`], [`Cause::Reload`] or [`Cause::Upgrade`].
    pub fn because(mut self, cause: Cause) -> Begin {
        self.cause = Some(cause);
        self
    }

    /// How many workers the generation is going to get. It makes the difference between its last worker
    /// and one that only left before the others had come; give it if you can.
    pub fn workers(mut self, workers: u32) -> Begin {
        self.workers = workers;
        self
    }
}

/// How a process joins a generation.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Join {
    role: Role,
    worker_id: Option<u32>,
    respawn: bool,
    wait: Wait,
}

impl Join {
    /// As a worker, with its number within the generation if it has one.
    pub fn worker(worker_id: Option<u32>) -> Join {
        Join { role: Role::Worker, worker_id, respawn: false, wait: Wait::Timeout }
    }

    /// As a process that does not serve: a cache manager, a privileged agent. It is shown, not counted.
    pub fn helper() -> Join {
        Join { role: Role::Helper, worker_id: None, respawn: false, wait: Wait::Timeout }
    }

    /// It replaces a worker that is gone.
    pub fn respawned(mut self, respawned: bool) -> Join {
        self.respawn = respawned;
        self
    }

    /// How long to wait for the node lock.
    pub fn wait(mut self, wait: Wait) -> Join {
        self.wait = wait;
        self
    }
}

/// The word that this process is about to join a generation, for as long as it waits for the node lock: whoever leaves
/// meanwhile must not take himself for the generation's last. A shared record lock, so that it ends with the process.
struct Joining<'a>(&'a Node, GenerationId);

impl<'a> Joining<'a> {
    fn announce(node: &'a Node, id: GenerationId) -> Option<Joining<'a>> {
        // Without it, the worst is a generation that is reported to end and to be resumed.
        matches!(lock::try_share(node.inner.store.lock_file.as_fd(), joining_byte(id)), Ok(true)).then_some(Joining(node, id))
    }
}

impl Drop for Joining<'_> {
    fn drop(&mut self) {
        // It cannot fail for an open descriptor; if it did, the process's end would free it.
        let _ = lock::unlock(self.0.inner.store.lock_file.as_fd(), joining_byte(self.1));
    }
}

/// A generation of a node.
#[derive(Clone)]
pub struct Generation {
    pub(crate) node: Node,
    pub(crate) id: GenerationId,
}

impl Generation {
    /// Its number.
    #[must_use]
    pub fn id(&self) -> GenerationId {
        self.id
    }

    /// Its node.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// It is certain that it gets workers: from now on it is a neighbour of the others. The first worker
    /// that joins commits it as well. Takes no lock.
    pub fn commit(&self) {
        self.change_phase(Phase::Announced, Phase::Committed);
    }

    /// It never gets a worker: the configuration could not be put into force. It is reported as abandoned
    /// by the next process that looks. Takes no lock; does nothing to a generation that is committed.
    pub fn abandon(&self) {
        self.change_phase(Phase::Announced, Phase::Abandoned);
        self.node.inner.wake();
    }

    /// Sets one of its 32 marks, which are for the layers above and have no meaning here. `true`: it was not
    /// set before, so whoever gets this answer is the only one. Takes no lock.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] if `mark` is not below 32, [`ErrorKind::NotFound`] if the generation is
    /// not there.
    pub fn mark(&self, mark: u32) -> Result<bool> {
        let bit = 1u32.checked_shl(mark).ok_or_else(|| {
            Error::new(ErrorKind::InvalidOption, format!("the mark is {mark}; allowed are 0 to 31"))
        })?;
        let record = self.node.generation_record(self.id).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("{} has no generation {}", self.node.inner.place(), self.id))
        })?;
        Ok(record.marks.fetch_or(bit, AcqRel) & bit == 0)
    }

    fn change_phase(&self, from: Phase, to: Phase) {
        if let Some(record) = self.node.generation_record(self.id) {
            // Losing the race means that it is past this already.
            let _ = record.phase.compare_exchange(from.code(), to.code(), AcqRel, Acquire);
        }
    }

    /// Joins the generation with this process, and reports it.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] if this process has joined this generation already,
    /// [`ErrorKind::Full`] if there is no free slot, [`ErrorKind::LockTimeout`] or [`ErrorKind::Busy`] if
    /// the node lock was not to be had. The process is not counted then, and may try again.
    pub fn join(&self, join: Join) -> Result<(Worker, Transitions)> {
        let node = &self.node;
        if let Some(worker) = node.joined_worker(self.id) {
            return Err(Error::new(
                ErrorKind::WrongState,
                format!("this process has joined generation {} already, in slot {}", self.id, worker.index),
            ));
        }
        let joining = (join.role == Role::Worker).then(|| Joining::announce(node, self.id)).flatten();
        if join.wait != Wait::Try {
            node.let_sentinel_go_first();
        }
        let hold = Hold::acquire(node, join.wait, Operation::Join)?;
        tidy(&hold);
        let facts = hold.facts();
        // One that was reported to have ended, or that the master could not announce, is begun (again).
        let known = facts.generation(self.id).filter(|g| g.ended_seq == 0 && g.abandoned_seq == 0);
        let replaces = known.is_some_and(|g| g.is_replacement(join.worker_id));
        let cause = match known {
            _ if join.role == Role::Worker && (join.respawn || replaces) => Cause::Respawn,
            Some(g) => g.cause,
            None => Cause::Resume,
        };
        let claim = || node.claim_slot(join.role, |slot| {
            slot.generation.store(self.id, Relaxed);
            slot.worker_id.store(join.worker_id.and_then(|i| i32::try_from(i).ok()).unwrap_or(-1), Relaxed);
            slot.cause.store(cause.code(), Relaxed);
            slot.intent.store(Intent::Starting.code(), Relaxed);
        });
        let slot = match claim() {
            Err(error) if error.kind() == ErrorKind::Full && hold.bury_unreported() => claim()?,
            claimed => claimed?,
        };
        node.inner.local().joined.push(slot);
        drop(joining);
        let mut stages = Vec::new();
        if join.role == Role::Worker {
            if known.is_none() {
                stages.extend([Stage::Settle(Scope::Generation(self.id)), Stage::Revive(self.id)]);
            }
            stages.extend([Stage::Commit(self.id, join.worker_id), Stage::StartGeneration(self.id)]);
        }
        stages.push(Stage::StartProcess(slot.index));
        Ok((Worker::new(node.clone(), self.id, slot), Transitions::new(hold, stages)))
    }
}

impl Node {
    /// Begins a generation: the configuration has been read, its workers are about to be forked.
    ///
    /// To be called in the master. The generation is announced, and reported as started; see
    /// [`Generation::commit`] and [`Generation::abandon`].
    ///
    /// # Errors
    /// [`ErrorKind::LockTimeout`] if the node lock was not to be had: then [`Node::reserve_generation`]
    /// gives a number that workers can join all the same. [`ErrorKind::Full`] if there are too many
    /// generations.
    pub fn begin_generation(&self, begin: Begin) -> Result<(Generation, Transitions)> {
        let hold = Hold::acquire(self, Wait::Timeout, Operation::Begin)?;
        let cause = begin.cause.unwrap_or_else(|| hold.guess_cause());
        // Written down with the generation before anything of it is cleared away: should this process die
        // meanwhile, the next start finds both.
        let previous = (cause == Cause::Start).then(|| hold.look_at_previous_run());
        let id = self.reserve_generation();
        let master = self.inner.local().master;
        hold.new_generation(id, cause, Phase::Announced, begin.workers, master, previous)?;
        if previous.is_some() {
            self.inner.store.region.header().runs.fetch_add(1, Relaxed);
            hold.clear_previous_run();
        }
        let mut local = self.inner.local();
        local.begun = Some(id);
        drop(local);
        let stages = [Stage::Settle(Scope::Tidy), Stage::StartGeneration(id)];
        Ok((self.generation(id), Transitions::new(hold, stages)))
    }

    /// A number for a generation that could not be begun because the node lock was not to be had. Its first
    /// worker begins it.
    #[must_use]
    pub fn reserve_generation(&self) -> GenerationId {
        self.inner.store.region.header().last_generation.fetch_add(1, AcqRel).wrapping_add(1)
    }

    /// Makes this process the master, if the one that opened the node was only its parent that went into
    /// the background. To be called before the first worker is forked; costs nothing when there is nothing
    /// to do. `Ok(true)`: it has become the master.
    ///
    /// # Errors
    /// As those of [`Generation::join`].
    pub fn adopt_master(&self) -> Result<bool> {
        let local = self.inner.local();
        let Some((old, old_pid)) = local.inherited_master.filter(|_| local.master.is_none() && local.joined.is_empty())
        else {
            return Ok(false);
        };
        drop(local);
        // The parent of a process that goes into the background ends at once. One that is still there after
        // this time is a master, and we are a child of its own.
        const PATIENCE: u32 = 100;
        for attempt in 0.. {
            let local = self.inner.local();
            if self.inner.liveness(&local, old.index, old.version, old_pid) != Liveness::Alive {
                break;
            }
            drop(local);
            if attempt == PATIENCE {
                return Ok(false);
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let hold = Hold::acquire(self, Wait::Timeout, Operation::Begin)?;
        let slot = self.claim_master_slot()?;
        for record in self.inner.view().used_generations() {
            if record.master_slot.load(Relaxed) == old.index && record.master_version.load(Relaxed) == old.version {
                record.master_slot.store(slot.index, Relaxed);
                record.master_version.store(slot.version, Relaxed);
                record.master_pid.store(process::pid(), Relaxed);
            }
        }
        // The old one's slot has nothing left to tell.
        tidy(&hold);
        drop(hold);
        Ok(true)
    }

    /// The master leaves properly. If no process of the node is left, it reports what nobody was left to
    /// report. Does nothing in a process that is no master.
    ///
    /// # Errors
    /// [`ErrorKind::LockTimeout`] or [`ErrorKind::Busy`] if the node lock was not to be had.
    pub fn leave_master(&self, wait: Wait) -> Reported {
        let Some(master) = self.inner.local().master else { return Ok(Transitions::none()) };
        let hold = Hold::acquire(self, wait, Operation::Leave)?;
        let facts = hold.facts();
        let alone = !facts.slots.iter().any(|s| {
            s.role != Role::Helper && s.index != master.index && s.liveness != Liveness::Gone
        });
        let scope = if alone { Scope::LastWord } else { Scope::Tidy };
        Ok(Transitions::new(hold, [Stage::Settle(scope), Stage::ExitMaster(master.index)]))
    }

    /// Makes this process a master of the node. `Some(pid)`: another, unrelated master has it.
    pub(crate) fn claim_master(&self, predecessor: Option<u32>) -> Result<Option<u32>> {
        let hold = Hold::acquire(self, Wait::Timeout, Operation::Open)?;
        let related = [process::parent_pid(), process::pid(), predecessor.unwrap_or(0)];
        let facts = hold.facts();
        let stranger = facts.slots.iter().find(|s| {
            s.role == Role::Master && s.liveness != Liveness::Gone && !related.contains(&s.pid)
        });
        if let Some(stranger) = stranger {
            return Ok(Some(stranger.pid));
        }
        self.claim_master_slot()?;
        if let Some(identity) = self.path().and_then(crate::store::lock_identity) {
            let mut known = crate::node::relock(&OPEN_LOCKS);
            if !known.contains(&identity) {
                known.push(identity);
            }
        }
        let header = self.inner.store.region.header();
        let boot = crate::store::boot_id();
        for (word, value) in header.boot_id.iter().zip(boot) {
            word.store(value, Relaxed);
        }
        Ok(None)
    }

    fn claim_master_slot(&self) -> Result<SlotRef> {
        let slot = self.claim_slot(Role::Master, |slot| {
            slot.intent.store(Intent::Serving.code(), Relaxed);
        })?;
        let mut local = self.inner.local();
        local.master = Some(slot);
        local.inherited_master = None;
        drop(local);
        Ok(slot)
    }

    /// A worker that replaces a dead one is often quicker than the report of the death. The sentinel reports
    /// from its event loop, where a callback may do everything, so it gets a moment to do that first: then
    /// also the callbacks run in the order of the journal. It is not waited for longer than that.
    fn let_sentinel_go_first(&self) {
        const MOMENT_NS: u64 = 50_000_000;
        let deadline = clock::boot_ns().saturating_add(MOMENT_NS);
        let header = self.inner.store.region.header();
        loop {
            let word = header.wake_word.load(Acquire);
            let facts = self.facts();
            // If the sentinel itself is the dead one, another takes over at once.
            let at_work = facts.slots.iter().any(|s| s.is_fit(facts.now, facts.stall_after));
            let open = facts.slots.iter().any(|s| s.role == Role::Worker && s.liveness == Liveness::Gone);
            if !at_work || !open || facts.now > deadline {
                return;
            }
            self.inner.wake();
            lock::wait_for_change(&header.wake_word, word, std::time::Duration::from_millis(1));
        }
    }

    fn joined_worker(&self, generation: GenerationId) -> Option<SlotRef> {
        let joined = self.inner.local().joined.clone();
        joined.into_iter().find(|s| {
            self.inner.slot(s.index).is_ok_and(|slot| {
                slot.version.load(Relaxed) == s.version && slot.generation.load(Relaxed) == generation
            })
        })
    }

    pub(crate) fn generation_record(&self, id: GenerationId) -> Option<&Record> {
        let records = self.inner.view().used_generations();
        records.iter().find(|g| {
            g.version.load(Acquire) % 2 == 0 && g.phase.load(Relaxed) != 0 && g.id.load(Relaxed) == id
        })
    }
}

impl Hold {
    fn guess_cause(&self) -> Cause {
        let local = self.node.inner.local();
        if local.begun.is_some() {
            return Cause::Reload;
        }
        let own = local.master.map(|m| m.index);
        drop(local);
        let other_master = self.facts().slots.iter().any(|s| {
            s.role == Role::Master && Some(s.index) != own && s.liveness == Liveness::Alive
        });
        if other_master { Cause::Upgrade } else { Cause::Start }
    }

    pub(crate) fn generation_at(&self, index: u32) -> Result<&Record> {
        self.node.inner.store.region.generations().get(index as usize).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("{}: there is no generation record {index}", self.node.inner.place()))
        })
    }

    fn new_generation(
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

    /// The table is full of workers that died so early that none lived long enough to report the others: they
    /// are written into the journal, and their callbacks do not run. `false`: there were none.
    fn bury_unreported(&self) -> bool {
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

    /// At a start: how the run before this one ended, by what it has left in the table.
    fn look_at_previous_run(&self) -> PreviousRun {
        let facts = self.facts();
        let left = || facts.generations.iter().filter(|g| facts.master_alive(g) == Some(false));
        // A master that died as it started had found out, and has told nobody; and had perhaps begun to
        // clear away what it found.
        let untold = left().filter(|g| !g.start_delivered).max_by_key(|g| g.id);
        if let Some(found) = untold.and_then(|g| self.previous_run(g)) {
            return found;
        }
        let newest = left().filter(|g| g.phase == Phase::Committed && g.ended_seq == 0).map(|g| g.id).max();
        let workers = facts.slots.iter().filter(|s| {
            s.role == Role::Worker && s.exited_seq == 0 && left().any(|g| g.id == s.generation)
        });
        let runs = self.node.inner.store.region.header().runs.load(Relaxed);
        match newest {
            Some(generation) => {
                PreviousRun::Unclean { generation, workers: u32::try_from(workers.count()).unwrap_or(u32::MAX) }
            }
            None if runs == 0 => PreviousRun::None,
            None => PreviousRun::Clean,
        }
    }

    /// At a start: what is left of a run that nobody ended, is ended now.
    fn clear_previous_run(&self) {
        let facts = self.facts();
        let left: Vec<_> = facts.generations.iter().filter(|g| facts.master_alive(g) == Some(false)).collect();
        for s in facts.slots.iter().filter(|s| {
            s.role == Role::Worker && s.liveness == Liveness::Gone && left.iter().any(|g| g.id == s.generation)
        }) {
            let Ok(slot) = self.node.inner.slot(s.index) else { continue };
            if s.exited_seq == 0 && s.died_seq == 0 && s.started_seq != 0 {
                announce(self, &slot.died_seq, about(s, Kind::WorkerDied, Cause::Unclean));
            }
            self.node.free_slot(s.index);
        }
        let facts = self.facts();
        for g in left {
            if facts.slots.iter().any(|s| s.role == Role::Worker && s.generation == g.id) {
                // Orphans serve on.
                continue;
            }
            let Ok(record) = self.generation_at(g.index) else { continue };
            if g.started_seq != 0 && g.ended_seq == 0 && g.abandoned_seq == 0 {
                let (seq, kind) = match g.phase {
                    Phase::Committed => (&record.ended_seq, Kind::GenerationEnded),
                    _ => (&record.abandoned_seq, Kind::GenerationAbandoned),
                };
                announce(self, seq, about_generation(g, kind, Cause::Unclean));
            }
            self.free_generation(g.index);
        }
    }

    pub(crate) fn previous_run(&self, generation: &GenerationFacts) -> Option<PreviousRun> {
        let record = self.node.generation_record(generation.id)?;
        match record.previous_run.load(Relaxed) {
            1 => Some(PreviousRun::None),
            2 => Some(PreviousRun::Clean),
            3 => Some(PreviousRun::Unclean {
                generation: record.previous_generation.load(Relaxed),
                workers: record.previous_workers.load(Relaxed),
            }),
            _ => None,
        }
    }
}
