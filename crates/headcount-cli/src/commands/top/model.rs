//! What was seen of a node so far: lives and moments, from its journal and from looking at it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use headcount::{Kind, Role, State};

use super::life::{End, Ending, Key, Life, Turn, before};
use super::seen::{Fact, Look, Process, Recent};

/// A life that ended longer ago than this is forgotten: no window reaches so far.
const KEPT_FOR: Duration = Duration::from_secs(86_400);
/// So many lives and moments are kept at most: a crash loop makes thousands of them.
const KEPT: usize = 5_000;
/// The latest events, which stand below the time line.
const LATEST: usize = 50;

/// All that is known of one node.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub look: Look,
    pub recent: Recent,
    pub moments: VecDeque<Moment>,
    pub latest: VecDeque<Fact>,
    /// Events that were overwritten before they could be read.
    pub lost: u64,
    lives: BTreeMap<u64, Life>,
    /// The newest life of each key.
    newest: HashMap<Key, u64>,
    next_id: u64,
}

/// What happened to a generation, or to all: marked on the axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub at: u64,
    pub generation: u64,
    pub what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    GenerationStarted,
    GenerationAbandoned,
    MasterLost,
}

impl Model {
    /// A model that knows nothing, for the file that came in place of this one's. No life of it has an id of one here:
    /// what was selected is not suddenly another.
    pub fn anew(&self) -> Model {
        Model { next_id: self.next_id, ..Model::default() }
    }

    pub fn lives(&self) -> impl DoubleEndedIterator<Item = &Life> {
        self.lives.values()
    }

    pub fn life(&self, id: u64) -> Option<&Life> {
        self.lives.get(&id)
    }

    /// Takes in a look, and all events up to then or later.
    ///
    /// In this order, so that a process whose slot was free at the look has its end among the events: a slot is freed
    /// only after its last report.
    pub fn update(&mut self, look: Look, facts: Vec<Fact>, lost: u64, recent: Recent) {
        self.look = look;
        self.recent = recent;
        self.lost = self.lost.saturating_add(lost);
        let processes = std::mem::take(&mut self.look.processes);
        let there: HashSet<Key> = processes.iter().map(key).collect();
        for life in self.lives.values_mut() {
            life.now = None;
        }
        for process in &processes {
            self.see(process.clone());
        }
        self.look.processes = processes;
        for fact in facts {
            self.tell(fact);
        }
        for life in self.lives.values_mut() {
            if life.end.is_none() && life.told_by <= self.look.head && !there.contains(&life.key()) {
                life.end = Some(End { at: self.look.boot_ns, how: Ending::Untold });
            }
        }
        self.forget();
    }

    fn see(&mut self, process: Process) {
        let boot_ns = self.look.boot_ns;
        let joined = before(boot_ns, process.age);
        let key = key(&process);
        let id = match self.newest.get(&key).and_then(|id| self.lives.get(id)) {
            // It has reported its exit, and its slot is not free yet.
            Some(life) if life.end.is_some_and(|end| joined <= end.at) => return,
            Some(life) if life.end.is_none() => life.id,
            _ => self.begin(key, joined),
        };
        if let Some(life) = self.lives.get_mut(&id) {
            life.see(process, boot_ns);
        }
    }

    fn begin(&mut self, key: Key, at: u64) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.lives.insert(id, Life::new(id, key, at));
        self.newest.insert(key, id);
        id
    }

    fn tell(&mut self, fact: Fact) {
        self.latest.push_back(fact.clone());
        if self.latest.len() > LATEST {
            self.latest.pop_front();
        }
        let (at, generation) = (fact.boot_ns, fact.generation);
        match fact.kind {
            Kind::WorkerStarted | Kind::HelperStarted => self.started(fact),
            Kind::WorkerDraining => self.turned(fact, Turn::Drains),
            Kind::WorkerStalled => self.turned(fact, Turn::Stalls),
            Kind::WorkerRecovered => self.turned(fact, Turn::Recovers),
            Kind::WorkerExited | Kind::HelperExited | Kind::MasterExited => self.ended(fact, Ending::Exited),
            Kind::WorkerDied => self.ended(fact, Ending::Died),
            Kind::MasterLost => {
                self.mark(at, generation, What::MasterLost);
                self.ended(fact, Ending::Died);
            }
            Kind::GenerationStarted => {
                self.mark(at, generation, What::GenerationStarted);
                // Told by the process that read the configuration; one that turned into a daemon since has another pid.
                let master = self.newest.get(&fact_key(&fact));
                if let Some(life) = master.and_then(|id| self.lives.get_mut(id)) {
                    life.note(fact);
                }
            }
            Kind::GenerationAbandoned => self.mark(at, generation, What::GenerationAbandoned),
            Kind::CallbackDied | Kind::CallbackFailed => {
                let known = |id: &&u64| self.lives.get(id).is_some_and(|life| life.pid == fact.pid);
                let id = self.newest.values().filter(known).max().copied();
                if let Some(life) = id.and_then(|id| self.lives.get_mut(&id)) {
                    life.note(fact);
                }
            }
            _ => {}
        }
    }

    fn mark(&mut self, at: u64, generation: u64, what: What) {
        self.moments.push_back(Moment { at, generation, what });
    }

    fn started(&mut self, fact: Fact) {
        let key = fact_key(&fact);
        let known = self.newest.get(&key).and_then(|id| self.lives.get(id));
        let id = match known {
            // A look saw it before its event was read.
            Some(life) if life.end.is_none() && life.told_by == 0 => life.id,
            known => {
                // Its pid came back within its generation, and the end of the one before was never told.
                let open = known.filter(|life| life.end.is_none()).map(|life| life.id);
                if let Some(life) = open.and_then(|id| self.lives.get_mut(&id)) {
                    life.end = Some(End { at: fact.boot_ns, how: Ending::Untold });
                }
                self.begin(key, fact.boot_ns)
            }
        };
        if let Some(life) = self.lives.get_mut(&id) {
            life.began = fact.boot_ns;
            life.began_known = true;
            life.told_by = fact.seq;
            life.cause = fact.cause;
            life.number = fact.number.or(life.number);
            life.note(fact);
        }
    }

    fn turned(&mut self, fact: Fact, turn: Turn) {
        let life = self.of(&fact);
        life.turn(fact.boot_ns, turn);
        life.note(fact);
    }

    fn ended(&mut self, fact: Fact, how: Ending) {
        let life = self.of(&fact);
        // Who died after it had told of its exit has ended already.
        if life.end.is_none_or(|end| end.how == Ending::Untold) {
            life.end = Some(End { at: fact.boot_ns, how });
        }
        life.note(fact);
    }

    /// The life that an event is about. One whose start is not known was there before the event.
    fn of(&mut self, fact: &Fact) -> &mut Life {
        let key = fact_key(fact);
        let id = match self.newest.get(&key).filter(|id| self.lives.contains_key(id)) {
            Some(&id) => id,
            None => {
                let id = self.begin(key, fact.boot_ns);
                if let Some(life) = self.lives.get_mut(&id) {
                    life.began = 0;
                    life.began_known = false;
                }
                id
            }
        };
        let life = self.lives.entry(id).or_insert_with(|| Life::new(id, key, fact.boot_ns));
        life.told_by = life.told_by.max(fact.seq);
        life.number = life.number.or(fact.number);
        life
    }

    fn forget(&mut self) {
        let oldest = before(self.look.boot_ns, KEPT_FOR);
        let mut gone: Vec<_> = self.lives.values().filter_map(|life| Some((life.end?.at, life.id))).collect();
        gone.sort_unstable();
        let too_many = self.lives.len().saturating_sub(KEPT);
        for (index, (at, id)) in gone.into_iter().enumerate() {
            if index >= too_many && at >= oldest {
                break;
            }
            if let Some(life) = self.lives.remove(&id)
                && self.newest.get(&life.key()) == Some(&id)
            {
                self.newest.remove(&life.key());
            }
        }
        while self.moments.len() > KEPT || self.moments.front().is_some_and(|m| m.at < oldest) {
            self.moments.pop_front();
        }
    }

    /// What somebody on watch must not miss, worst first.
    pub fn warnings(&self) -> Vec<String> {
        use headcount_report::{age, plural};
        let mut all = Vec::new();
        let look = &self.look;
        // Nothing was seen yet.
        if look.boot_ns == 0 {
            return all;
        }
        let in_state = |state| look.processes.iter().filter(move |p| p.state == state);
        if let Some((deaths, last)) = self.recent.crash_loop {
            all.push(format!(
                "CRASH LOOP: {} died soon after their start, the last {} ago",
                plural(deaths.into(), "worker"),
                age(last)
            ));
        }
        for g in look.generations.iter().filter(|g| g.master_alive == Some(false)) {
            let orphans = in_state(State::Orphaned).filter(|p| p.generation == g.id).count() as u64;
            all.push(format!(
                "MASTER LOST: master {} of generation {} is gone; {} orphaned",
                g.master,
                g.id,
                plural(orphans, "worker")
            ));
        }
        let dead = in_state(State::Died).filter(|p| p.role == Role::Worker).count() as u64;
        let alive = look.processes.iter().any(|p| !matches!(p.state, State::Died | State::Exited));
        match (look.processes.is_empty(), alive) {
            (true, _) => all.push("STOPPED: no process of this node is there".to_owned()),
            (false, false) => {
                all.push(
                    "DEAD: no process of this node is alive, and nobody is left to report it".to_owned(),
                );
            }
            (false, true) if dead > 0 => {
                all.push(format!("DIED: {}, not reported yet", plural(dead, "worker")))
            }
            (false, true) => {}
        }
        let mut stalled: Vec<_> = in_state(State::Stalled).collect();
        stalled.sort_by_key(|p| std::cmp::Reverse(p.heartbeat_age));
        if let Some(worst) = stalled.first() {
            all.push(format!(
                "STALLED: {}, longest {} whose heartbeat is {} old",
                plural(stalled.len() as u64, "worker"),
                worst.pid,
                age(worst.heartbeat_age.unwrap_or_default())
            ));
        }
        if let Some(holder) = look.holder.as_ref().filter(|h| h.held_for > Duration::from_secs(1)) {
            let why = holder.callback.map_or(String::new(), |kind| format!(", in the callback about {kind}"));
            let (pid, held) = (holder.pid, age(holder.held_for));
            all.push(format!("LOCK: process {pid} has held the node lock for {held}{why}"));
        }
        if self.lost > 0 {
            let events = plural(self.lost, "event");
            all.push(format!("LOST: {events} were overwritten before they could be read"));
        }
        if look.by_pid_only {
            let how = "who is alive is told by pid and start time: the lock file is its owner's and root's";
            all.push(format!("LIMITED: {how}"));
        }
        all
    }
}

fn key(process: &Process) -> Key {
    // A master belongs to all its generations.
    let generation = if process.role == Role::Master { 0 } else { process.generation };
    (process.role, generation, process.pid)
}

fn fact_key(fact: &Fact) -> Key {
    match fact.kind {
        Kind::MasterLost | Kind::MasterExited | Kind::GenerationStarted => (Role::Master, 0, fact.pid),
        Kind::HelperStarted | Kind::HelperExited => (Role::Helper, fact.generation, fact.pid),
        _ => (fact.role.filter(|&r| r != Role::Master).unwrap_or(Role::Worker), fact.generation, fact.pid),
    }
}

#[cfg(test)]
mod tests {
    use headcount::Cause;

    use super::super::life::Stretch;
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn process(pid: u32, state: State, age: u64) -> Process {
        Process {
            pid,
            role: Role::Worker,
            generation: 1,
            number: Some(0),
            state,
            cause: Cause::Start,
            age: Duration::from_secs(age),
            in_state_for: Duration::from_secs(age),
            heartbeat_age: Some(Duration::from_secs(1)),
        }
    }

    fn fact(seq: u64, at: u64, kind: Kind, pid: u32) -> Fact {
        Fact {
            seq,
            kind,
            cause: Cause::Start,
            generation: 1,
            pid,
            role: Some(Role::Worker),
            number: Some(0),
            boot_ns: at * SECOND,
            time_ns: 0,
            sentence: String::new(),
        }
    }

    fn look(at: u64, head: u64, processes: Vec<Process>) -> Look {
        let stall_after = Duration::from_secs(5);
        Look { boot_ns: at * SECOND, head, processes, stall_after, ..Look::default() }
    }

    fn after(steps: Vec<(Look, Vec<Fact>)>) -> Model {
        let mut model = Model::default();
        for (look, facts) in steps {
            model.update(look, facts, 0, Recent::default());
        }
        model
    }

    fn only(model: &Model) -> &Life {
        let all: Vec<_> = model.lives().collect();
        assert_eq!(all.len(), 1, "{all:?}");
        all[0]
    }

    #[test]
    fn a_worker_that_was_seen_before_its_start_was_read_is_one() {
        let seen = look(100, 1, vec![process(7, State::Serving, 10)]);
        let model = after(vec![(seen.clone(), vec![]), (seen, vec![fact(1, 89, Kind::WorkerStarted, 7)])]);
        assert_eq!((only(&model).began, only(&model).told_by), (89 * SECOND, 1));
    }

    #[test]
    fn a_worker_that_told_of_its_exit_and_is_still_there_is_one() {
        let there = vec![process(7, State::Leaving, 10)];
        let told = vec![fact(1, 90, Kind::WorkerStarted, 7), fact(2, 99, Kind::WorkerExited, 7)];
        let model = after(vec![(look(99, 2, there.clone()), told), (look(100, 2, there), vec![])]);
        assert_eq!(only(&model).end, Some(End { at: 99 * SECOND, how: Ending::Exited }));
    }

    #[test]
    fn a_pid_that_comes_back_is_another_worker() {
        let told = vec![
            fact(1, 10, Kind::WorkerStarted, 7),
            fact(2, 20, Kind::WorkerDied, 7),
            fact(3, 30, Kind::WorkerStarted, 7),
        ];
        let model = after(vec![(look(40, 3, vec![process(7, State::Serving, 10)]), told)]);
        let lives: Vec<_> = model.lives().map(|life| (life.began / SECOND, life.is_gone())).collect();
        assert_eq!(lives, [(10, true), (30, false)]);
    }

    #[test]
    fn a_worker_whose_end_was_overwritten_is_gone_and_one_that_came_after_the_look_is_not() {
        let first =
            (look(10, 1, vec![process(7, State::Serving, 5)]), vec![fact(1, 5, Kind::WorkerStarted, 7)]);
        let second = (look(20, 9, vec![]), vec![fact(10, 21, Kind::WorkerStarted, 8)]);
        let model = after(vec![first, second]);
        let ends: Vec<_> = model.lives().map(|life| (life.pid, life.end.map(|end| end.how))).collect();
        assert_eq!(ends, [(7, Some(Ending::Untold)), (8, None)]);
    }

    #[test]
    fn a_worker_found_dead_lived_until_its_last_sign() {
        let alive = (look(10, 0, vec![process(7, State::Serving, 5)]), vec![]);
        let mut dead = process(7, State::Died, 15);
        dead.heartbeat_age = Some(Duration::from_secs(12));
        let model = after(vec![alive, (look(20, 0, vec![dead.clone()]), vec![])]);
        assert_eq!(only(&model).until(20 * SECOND), 10 * SECOND, "it was seen alive after it beat");
        let model = after(vec![(look(20, 0, vec![dead]), vec![])]);
        assert_eq!(only(&model).until(20 * SECOND), 8 * SECOND, "it beat");
        assert!(model.warnings()[0].starts_with("DEAD"), "{:?}", model.warnings());
    }

    #[test]
    fn a_stall_that_nobody_reported_is_seen() {
        let mut stalled = process(7, State::Stalled, 50);
        stalled.heartbeat_age = Some(Duration::from_secs(20));
        let model = after(vec![(look(100, 0, vec![stalled]), vec![])]);
        let stretches = only(&model).stretches(100 * SECOND, model.look.stall_after);
        assert_eq!(stretches, [(50 * SECOND, Stretch::Serving), (85 * SECOND, Stretch::Stalled)]);
    }

    #[test]
    fn a_daemons_first_pid_is_no_master() {
        let model = after(vec![(look(10, 1, vec![]), vec![fact(1, 9, Kind::GenerationStarted, 600)])]);
        assert_eq!((model.lives().count(), model.moments.len()), (0, 1));
    }

    #[test]
    fn memory_is_bounded() {
        let mut model = Model::default();
        for round in 0..20 {
            let facts = (0..1_000)
                .flat_map(|n| {
                    let seq = round * 2_000 + 2 * n + 1;
                    let pid = u32::try_from(seq).expect("small");
                    [fact(seq, seq, Kind::WorkerStarted, pid), fact(seq + 1, seq, Kind::WorkerDied, pid)]
                })
                .chain([fact(round, round, Kind::GenerationStarted, 1)])
                .collect();
            model.update(look(round * 2_000 + 2_000, 0, vec![]), facts, 0, Recent::default());
        }
        assert!(model.lives.len() <= KEPT && model.newest.len() <= KEPT && model.latest.len() <= LATEST);
        assert!(model.lives().any(|life| life.began == 39_999 * SECOND), "the newest are kept");
        model.update(look(1_000_000, 0, vec![]), vec![], 0, Recent::default());
        assert_eq!((model.lives.len(), model.moments.len()), (0, 0), "a day later nothing is left");
    }
}
