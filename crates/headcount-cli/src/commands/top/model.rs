//! What was seen of a node so far: lives and moments, from its journal and from looking at it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use headcount::{Event, Kind, Liveness, ProcessStatus, Role, Snapshot, State};
use headcount_report::History;

use super::life::{End, Ending, Key, Life, Turn, before};
use crate::alive;

/// A life that ended longer ago than this is forgotten: no window reaches so far.
const KEPT_FOR: Duration = Duration::from_secs(86_400);
/// So many lives and moments are kept at most: a crash loop makes thousands of them.
const KEPT: usize = 5_000;
/// The latest events, which stand below the time line.
const LATEST: usize = 50;

/// All that is known of one node.
#[derive(Clone, Debug)]
pub struct Model {
    pub snapshot: Snapshot,
    pub history: History,
    pub moments: VecDeque<Moment>,
    pub latest: VecDeque<Event>,
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
    /// A model that knows nothing but this.
    pub fn new(snapshot: Snapshot) -> Model {
        Model {
            snapshot,
            history: History::default(),
            moments: VecDeque::new(),
            latest: VecDeque::new(),
            lost: 0,
            lives: BTreeMap::new(),
            newest: HashMap::new(),
            next_id: 0,
        }
    }

    /// A model that knows nothing, for the file that came in place of this one's. No life of it has an id of one here:
    /// what was selected is not suddenly another.
    pub fn anew(&self) -> Model {
        let mut snapshot = Snapshot::new(self.snapshot.node.clone());
        snapshot.path.clone_from(&self.snapshot.path);
        Model { next_id: self.next_id, ..Model::new(snapshot) }
    }

    pub fn lives(&self) -> impl DoubleEndedIterator<Item = &Life> {
        self.lives.values()
    }

    pub fn life(&self, id: u64) -> Option<&Life> {
        self.lives.get(&id)
    }

    /// Takes in a snapshot, and all events up to then or later.
    ///
    /// In this order, so that a process whose slot was free in the snapshot has its end among the events: a slot is freed
    /// only after its last report.
    pub fn update(&mut self, snapshot: Snapshot, events: Vec<Event>, lost: u64, history: History) {
        self.snapshot = snapshot;
        self.history = history;
        self.lost = self.lost.saturating_add(lost);
        let processes = std::mem::take(&mut self.snapshot.processes);
        let there: HashSet<Key> = processes.iter().map(key).collect();
        for life in self.lives.values_mut() {
            life.now = None;
        }
        for process in &processes {
            self.see(process.clone());
        }
        self.snapshot.processes = processes;
        for event in events {
            self.tell(event);
        }
        for life in self.lives.values_mut() {
            if life.end.is_none() && life.told_by <= self.snapshot.head && !there.contains(&life.key()) {
                life.end = Some(End { at: self.snapshot.boot_ns, how: Ending::Untold });
            }
        }
        self.forget();
    }

    fn see(&mut self, process: ProcessStatus) {
        let boot_ns = self.snapshot.boot_ns;
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

    fn tell(&mut self, event: Event) {
        self.latest.push_back(event.clone());
        if self.latest.len() > LATEST {
            self.latest.pop_front();
        }
        if self.snapshot.is_of_earlier_boot(&event) {
            return;
        }
        let (at, generation) = (event.boot_ns, event.generation);
        match event.kind {
            Kind::WorkerStarted | Kind::HelperStarted => self.started(event),
            Kind::WorkerDraining => self.turned(event, Turn::Drains),
            Kind::WorkerStalled => self.turned(event, Turn::Stalls),
            Kind::WorkerRecovered => self.turned(event, Turn::Recovers),
            Kind::WorkerExited | Kind::HelperExited | Kind::MasterExited => self.ended(event, Ending::Exited),
            Kind::WorkerDied => self.ended(event, Ending::Died),
            Kind::MasterLost => {
                self.mark(at, generation, What::MasterLost);
                self.ended(event, Ending::Died);
            }
            Kind::GenerationStarted => {
                self.mark(at, generation, What::GenerationStarted);
                // Told by the process that read the configuration; one that turned into a daemon since has another pid.
                let master = self.newest.get(&event_key(&event));
                if let Some(life) = master.and_then(|id| self.lives.get_mut(id)) {
                    life.note(event);
                }
            }
            Kind::GenerationAbandoned => self.mark(at, generation, What::GenerationAbandoned),
            Kind::CallbackDied | Kind::CallbackFailed => {
                let known = |id: &&u64| self.lives.get(id).is_some_and(|life| life.pid == event.pid);
                let id = self.newest.values().filter(known).max().copied();
                if let Some(life) = id.and_then(|id| self.lives.get_mut(&id)) {
                    life.note(event);
                }
            }
            _ => {}
        }
    }

    fn mark(&mut self, at: u64, generation: u64, what: What) {
        self.moments.push_back(Moment { at, generation, what });
    }

    fn started(&mut self, event: Event) {
        let key = event_key(&event);
        let known = self.newest.get(&key).and_then(|id| self.lives.get(id));
        let id = match known {
            // A look saw it before its event was read.
            Some(life) if life.end.is_none() && life.told_by == 0 => life.id,
            known => {
                // Its pid came back within its generation, and the end of the one before was never told.
                let open = known.filter(|life| life.end.is_none()).map(|life| life.id);
                if let Some(life) = open.and_then(|id| self.lives.get_mut(&id)) {
                    life.end = Some(End { at: event.boot_ns, how: Ending::Untold });
                }
                self.begin(key, event.boot_ns)
            }
        };
        if let Some(life) = self.lives.get_mut(&id) {
            life.began = event.boot_ns;
            life.began_known = true;
            life.told_by = event.seq;
            life.cause = event.cause;
            life.number = event.worker_id.or(life.number);
            life.note(event);
        }
    }

    fn turned(&mut self, event: Event, turn: Turn) {
        let life = self.of(&event);
        life.turn(event.boot_ns, turn);
        life.note(event);
    }

    fn ended(&mut self, event: Event, how: Ending) {
        let life = self.of(&event);
        // Who died after it had told of its exit has ended already.
        if life.end.is_none_or(|end| end.how == Ending::Untold) {
            life.end = Some(End { at: event.boot_ns, how });
        }
        life.note(event);
    }

    /// The life that an event is about. One whose start is not known was there before the event.
    fn of(&mut self, event: &Event) -> &mut Life {
        let key = event_key(event);
        let id = match self.newest.get(&key).filter(|id| self.lives.contains_key(id)) {
            Some(&id) => id,
            None => {
                let id = self.begin(key, event.boot_ns);
                if let Some(life) = self.lives.get_mut(&id) {
                    life.began = 0;
                    life.began_known = false;
                }
                id
            }
        };
        let life = self.lives.entry(id).or_insert_with(|| Life::new(id, key, event.boot_ns));
        life.told_by = life.told_by.max(event.seq);
        life.number = life.number.or(event.worker_id);
        life
    }

    fn forget(&mut self) {
        let oldest = before(self.snapshot.boot_ns, KEPT_FOR);
        let mut gone: Vec<_> = self.lives.values().filter_map(|life| Some((life.end?.at, life.id))).collect();
        gone.sort_unstable();
        let too_many = self.lives.len().saturating_sub(KEPT);
        for (index, (at, id)) in gone.into_iter().enumerate() {
            if index >= too_many && at >= oldest {
                break;
            }
            if let Some(key) = self.lives.remove(&id).map(|life| life.key())
                && self.newest.get(&key) == Some(&id)
            {
                self.newest.remove(&key);
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
        let snapshot = &self.snapshot;
        // Nothing was seen yet.
        if snapshot.boot_ns == 0 {
            return all;
        }
        let in_state = |state| snapshot.processes.iter().filter(move |p| p.state == state);
        if let Some(crashes) = &self.history.crash_loop {
            all.push(format!(
                "CRASH LOOP: {} died soon after their start, the last {} ago",
                plural(crashes.deaths.into(), "worker"),
                age(crashes.last)
            ));
        }
        for g in snapshot.generations.iter().filter(|g| g.master_alive == Some(false)) {
            let orphans = in_state(State::Orphaned).filter(|p| p.generation == g.id).count() as u64;
            all.push(format!(
                "MASTER LOST: master {} of generation {} is gone; {} orphaned",
                g.master,
                g.id,
                plural(orphans, "worker")
            ));
        }
        let dead = in_state(State::Died).filter(|p| p.role == Role::Worker).count() as u64;
        match snapshot.liveness() {
            Liveness::Gone => {
                let (what, who) = match in_state(State::Died).next() {
                    None => ("STOPPED", "this node has no process"),
                    Some(_) => ("DEAD", "no process of this node is alive, and none is left to report it"),
                };
                let who = alive::only_helpers(snapshot).unwrap_or_else(|| who.to_owned());
                all.push(format!("{what}: {who}"));
            }
            _ if dead > 0 => all.push(format!("DIED: {}, not reported yet", plural(dead, "worker"))),
            _ => {}
        }
        let mut stalled: Vec<_> = in_state(State::Stalled).collect();
        stalled.sort_by_key(|p| std::cmp::Reverse(p.heartbeat_age));
        if let Some(worst) = stalled.first() {
            all.push(format!(
                "STALLED: {}, longest {} whose heartbeat is {} old",
                plural(stalled.len() as u64, "worker"),
                worst.pid,
                age(worst.heartbeat_age)
            ));
        }
        if let Some(holder) = snapshot.holder.as_ref().filter(|h| h.held_for > Duration::from_secs(1)) {
            let why =
                holder.callback.map_or(String::new(), |(kind, _)| format!(", in the callback about {kind}"));
            let (pid, held) = (holder.pid, age(holder.held_for));
            all.push(format!("LOCK: process {pid} has held the node lock for {held}{why}"));
        }
        if self.lost > 0 {
            let events = plural(self.lost, "event");
            all.push(format!("LOST: {events}, overwritten before they could be read"));
        }
        all.extend(alive::doubts(&self.snapshot).into_iter().map(|doubt| format!("UNKNOWN: {doubt}")));
        all
    }
}

fn key(process: &ProcessStatus) -> Key {
    // A master belongs to all its generations.
    let generation = if process.role == Role::Master { 0 } else { process.generation };
    (process.role, generation, process.pid)
}

fn event_key(event: &Event) -> Key {
    match event.kind {
        Kind::MasterLost | Kind::MasterExited | Kind::GenerationStarted => (Role::Master, 0, event.pid),
        Kind::HelperStarted | Kind::HelperExited => (Role::Helper, event.generation, event.pid),
        _ => (event.role.filter(|&r| r != Role::Master).unwrap_or(Role::Worker), event.generation, event.pid),
    }
}

#[cfg(test)]
mod tests {
    use headcount::Cause;

    use super::super::life::Stretch;
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn process(pid: u32, state: State, age: u64) -> ProcessStatus {
        let mut process = ProcessStatus::new(Role::Worker, pid, state);
        (process.generation, process.worker_id, process.cause) = (1, Some(0), Cause::Start);
        (process.age, process.in_state_for) = (Duration::from_secs(age), Duration::from_secs(age));
        process.heartbeat_age = Duration::from_secs(1);
        process
    }

    fn event(seq: u64, at: u64, kind: Kind, pid: u32) -> Event {
        let mut event = Event::new(kind, Cause::Start);
        (event.seq, event.boot_ns, event.generation, event.pid) = (seq, at * SECOND, 1, pid);
        (event.role, event.worker_id) = (Some(Role::Worker), Some(0));
        event
    }

    fn node(at: u64, head: u64, processes: Vec<ProcessStatus>) -> Snapshot {
        let mut snapshot = Snapshot::new("x");
        (snapshot.boot_ns, snapshot.head, snapshot.processes) = (at * SECOND, head, processes);
        snapshot
    }

    fn after(steps: Vec<(Snapshot, Vec<Event>)>) -> Model {
        let mut model = Model::new(Snapshot::new("x"));
        for (snapshot, events) in steps {
            model.update(snapshot, events, 0, History::default());
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
        let seen = node(100, 1, vec![process(7, State::Serving, 10)]);
        let model = after(vec![(seen.clone(), vec![]), (seen, vec![event(1, 89, Kind::WorkerStarted, 7)])]);
        assert_eq!((only(&model).began, only(&model).told_by), (89 * SECOND, 1));
    }

    #[test]
    fn a_worker_that_told_of_its_exit_and_is_still_there_is_one() {
        let there = vec![process(7, State::Leaving, 10)];
        let told = vec![event(1, 90, Kind::WorkerStarted, 7), event(2, 99, Kind::WorkerExited, 7)];
        let model = after(vec![(node(99, 2, there.clone()), told), (node(100, 2, there), vec![])]);
        assert_eq!(only(&model).end, Some(End { at: 99 * SECOND, how: Ending::Exited }));
    }

    #[test]
    fn a_pid_that_comes_back_is_another_worker() {
        let told = vec![
            event(1, 10, Kind::WorkerStarted, 7),
            event(2, 20, Kind::WorkerDied, 7),
            event(3, 30, Kind::WorkerStarted, 7),
        ];
        let model = after(vec![(node(40, 3, vec![process(7, State::Serving, 10)]), told)]);
        let lives: Vec<_> = model.lives().map(|life| (life.began / SECOND, life.is_gone())).collect();
        assert_eq!(lives, [(10, true), (30, false)]);
    }

    #[test]
    fn a_worker_whose_end_was_overwritten_is_gone_and_one_that_came_after_the_look_is_not() {
        let first =
            (node(10, 1, vec![process(7, State::Serving, 5)]), vec![event(1, 5, Kind::WorkerStarted, 7)]);
        let second = (node(20, 9, vec![]), vec![event(10, 21, Kind::WorkerStarted, 8)]);
        let model = after(vec![first, second]);
        let ends: Vec<_> = model.lives().map(|life| (life.pid, life.end.map(|end| end.how))).collect();
        assert_eq!(ends, [(7, Some(Ending::Untold)), (8, None)]);
    }

    #[test]
    fn a_worker_found_dead_lived_until_its_last_sign() {
        let alive = (node(10, 0, vec![process(7, State::Serving, 5)]), vec![]);
        let mut dead = process(7, State::Died, 15);
        dead.heartbeat_age = Duration::from_secs(12);
        let model = after(vec![alive, (node(20, 0, vec![dead.clone()]), vec![])]);
        assert_eq!(only(&model).until(20 * SECOND), 10 * SECOND, "it was seen alive after it beat");
        let model = after(vec![(node(20, 0, vec![dead]), vec![])]);
        assert_eq!(only(&model).until(20 * SECOND), 8 * SECOND, "it beat");
        assert!(model.warnings()[0].starts_with("DEAD"), "{:?}", model.warnings());
    }

    #[test]
    fn a_stall_that_nobody_reported_is_seen() {
        let mut stalled = process(7, State::Stalled, 50);
        stalled.heartbeat_age = Duration::from_secs(20);
        let model = after(vec![(node(100, 0, vec![stalled]), vec![])]);
        let stretches = only(&model).stretches(100 * SECOND, model.snapshot.settings.stall_after);
        assert_eq!(stretches, [(50 * SECOND, Stretch::Serving), (85 * SECOND, Stretch::Stalled)]);
    }

    #[test]
    fn a_daemons_first_pid_is_no_master() {
        let model = after(vec![(node(10, 1, vec![]), vec![event(1, 9, Kind::GenerationStarted, 600)])]);
        assert_eq!((model.lives().count(), model.moments.len()), (0, 1));
    }

    #[test]
    fn memory_is_bounded() {
        let mut model = Model::new(Snapshot::new("x"));
        for round in 0..20 {
            let events = (0..1_000)
                .flat_map(|n| {
                    let seq = round * 2_000 + 2 * n + 1;
                    let pid = u32::try_from(seq).expect("small");
                    [event(seq, seq, Kind::WorkerStarted, pid), event(seq + 1, seq, Kind::WorkerDied, pid)]
                })
                .chain([event(round, round, Kind::GenerationStarted, 1)])
                .collect();
            model.update(node(round * 2_000 + 2_000, 0, vec![]), events, 0, History::default());
        }
        assert!(model.lives.len() <= KEPT && model.newest.len() <= KEPT && model.latest.len() <= LATEST);
        assert!(model.lives().any(|life| life.began == 39_999 * SECOND), "the newest are kept");
        model.update(node(1_000_000, 0, vec![]), vec![], 0, History::default());
        assert_eq!((model.lives.len(), model.moments.len()), (0, 0), "a day later nothing is left");
    }
}
