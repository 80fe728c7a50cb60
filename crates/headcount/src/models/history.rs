//! Random histories of a server, in virtual time: after each step what was reported is compared with `reference.rs`.
//!
//! Deterministic but for the seed, and shrinking. `HEADCOUNT_CASES` says how many histories; `make models` runs many.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};

use super::node::{Broken, Call, Entry, Life, Node, Process, SECOND, STALL_AFTER};
use crate::event::{Kind, PreviousRun, Role};
use crate::lifecycle::{Phase, Scope};

/// Where the one who carries something out dies, if it does: before this step.
type Fatal = Option<u16>;

/// What can happen.
#[derive(Clone, Copy, Debug)]
enum Deed {
    /// A master opens the node, if none is alive.
    Start,
    /// A new binary takes over.
    Upgrade,
    /// All at once, as a server does: a generation is begun, committed, and its workers are forked.
    Load(u32, Fatal),
    /// All that were forked come.
    Come,
    Begin(u32, Fatal),
    Commit,
    Abandon,
    /// A master forks a worker that its newest generation lacks, or a helper.
    Fork(u8, Role),
    /// A worker says that it waits to join.
    Announce(u8),
    Join(u8, Fatal),
    Drain(u8, Fatal),
    Leave(u8, Fatal),
    LeaveMaster(u8, Fatal),
    /// A worker looks at what there is.
    Look(u8, Fatal),
    /// Somebody, of any role, with its wait status, where it is told.
    Kill(u8, Option<i32>),
    KillAll,
    Tell(u8),
    Hang(u8),
    GoOn(u8),
    Time(u64),
    /// Everybody does what there is to do, for a while.
    Rest,
}

fn any_deed() -> impl Strategy<Value = Deed> {
    let fatal = || prop_oneof![6 => Just(None), 1 => (0..40u16).prop_map(Some)];
    let who = || any::<u8>();
    let role = prop_oneof![5 => Just(Role::Worker), 1 => Just(Role::Helper)];
    let status =
        prop_oneof![Just(None), Just(Some(9)), Just(Some(11)), (0..256i32).prop_map(|code| Some(code << 8))];
    prop_oneof![
        3 => Just(Deed::Start),
        1 => Just(Deed::Upgrade),
        5 => (1..4u32, fatal()).prop_map(|(n, f)| Deed::Load(n, f)),
        6 => Just(Deed::Come),
        2 => (1..4u32, fatal()).prop_map(|(n, f)| Deed::Begin(n, f)),
        2 => Just(Deed::Commit),
        1 => Just(Deed::Abandon),
        5 => (who(), role).prop_map(|(w, r)| Deed::Fork(w, r)),
        2 => who().prop_map(Deed::Announce),
        8 => (who(), fatal()).prop_map(|(w, f)| Deed::Join(w, f)),
        2 => (who(), fatal()).prop_map(|(w, f)| Deed::Drain(w, f)),
        3 => (who(), fatal()).prop_map(|(w, f)| Deed::Leave(w, f)),
        1 => (who(), fatal()).prop_map(|(w, f)| Deed::LeaveMaster(w, f)),
        5 => (who(), fatal()).prop_map(|(w, f)| Deed::Look(w, f)),
        3 => (who(), status).prop_map(|(w, s)| Deed::Kill(w, s)),
        1 => Just(Deed::KillAll),
        1 => who().prop_map(Deed::Tell),
        1 => who().prop_map(Deed::Hang),
        1 => who().prop_map(Deed::GoOn),
        2 => (0..4 * SECOND).prop_map(Deed::Time),
        1 => Just(Deed::Rest),
    ]
}

/// One of these, if there are any.
fn choose(pids: impl Iterator<Item = u32>, which: u8) -> Option<u32> {
    let pids: Vec<u32> = pids.collect();
    pids.get(usize::from(which).checked_rem(pids.len())?).copied()
}

struct History {
    node: Node,
    steps: u64,
    deaths: u64,
    /// What the next start must say of the run before it.
    owed: Option<PreviousRun>,
    /// The first event that can say it.
    owed_since: u64,
}

type Verdict = Result<(), TestCaseError>;

impl History {
    fn new(broken: Broken) -> History {
        History { node: Node::new(broken), steps: 0, deaths: 0, owed: None, owed_since: 0 }
    }

    fn kill(&mut self, pid: u32, status: Option<i32>) {
        self.deaths += 1;
        self.node.kill(pid, status);
    }

    fn check(&self) -> Verdict {
        let wrong = self.node.fault().or_else(|| self.node.misreport());
        match wrong {
            Some(wrong) => Err(TestCaseError::fail(format!("{wrong}\n{}", self.journal()))),
            None => Ok(()),
        }
    }

    fn journal(&self) -> String {
        let line = |e: &Entry| {
            format!("{} {} {} g{} p{} {:?}", e.seq, e.kind, e.cause, e.generation, e.pid, e.counts)
        };
        self.node.journal.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// Takes the lock, and does what is to be done, or dies before the given step.
    fn carry_out(&mut self, pid: u32, call: Call, fatal: Fatal) -> Verdict {
        let mut left = fatal;
        self.node.acquire(pid, call);
        while self.node.session.is_some() {
            if left == Some(0) {
                self.kill(pid, None);
                return self.check();
            }
            left = left.map(|n| n - 1);
            let records = (self.node.slots.len(), self.node.generations.len());
            self.node.step();
            self.steps += 1;
            if self.node.is_fresh || records != (self.node.slots.len(), self.node.generations.len()) {
                self.check()?;
            }
        }
        Ok(())
    }

    /// Who is not in the middle of anything, and runs.
    fn masters(&self) -> Vec<u32> {
        self.node.living(Role::Master).map(|p| p.pid).collect()
    }

    fn newest_master(&self) -> Option<u32> {
        self.masters().last().copied()
    }

    fn act(&mut self, deed: Deed) -> Verdict {
        match deed {
            Deed::Start if self.newest_master().is_none() => _ = self.node.open(0),
            Deed::Upgrade if self.masters().len() == 1 => {
                _ = self.newest_master().map(|old| self.node.open(old))
            }
            Deed::Begin(workers, fatal) => {
                let Some(master) = self.newest_master().filter(|m| !self.node.process(*m).is_told) else {
                    return Ok(());
                };
                let is_first = self.node.process(master).generation == 0;
                // A server loads one configuration after the other.
                self.change_phase(Phase::Abandoned);
                if is_first && self.masters().len() == 1 {
                    // One that died before it could say so has written it down.
                    let untold = self
                        .node
                        .generations
                        .iter()
                        .filter(|g| g.previous_run.is_some() && !g.start_delivered);
                    match untold.map(|g| g.id).max() {
                        None => (self.owed, self.owed_since) = (Some(self.previous_run()), self.node.head()),
                        // If others have run since, either may be told.
                        Some(untold) if self.has_started_since(untold) => self.owed = None,
                        Some(_) => {}
                    }
                }
                self.carry_out(master, Call::Begin(workers), fatal)?;
                self.check_start()?;
            }
            Deed::Load(workers, fatal) => {
                self.act(Deed::Start)?;
                self.act(Deed::Begin(workers, fatal))?;
                self.change_phase(Phase::Committed);
                (0..workers).for_each(|_| self.fork_of(self.newest_master(), Role::Worker));
            }
            Deed::Come => self.come()?,
            Deed::Commit => self.change_phase(Phase::Committed),
            Deed::Abandon => self.change_phase(Phase::Abandoned),
            Deed::Fork(which, role) => self.fork(which, role),
            Deed::Announce(which) => {
                let forked = self.node.living(Role::Worker).filter(|p| p.life == Life::Forked).map(|p| p.pid);
                if let Some(pid) = choose(forked, which) {
                    self.node.process_mut(pid).life = Life::Waiting;
                }
            }
            Deed::Join(which, fatal) => {
                let new =
                    |p: &&Process| matches!(p.life, Life::Forked | Life::Waiting) && p.role != Role::Master;
                if let Some(pid) = choose(self.node.processes.iter().filter(new).map(|p| p.pid), which) {
                    if self.node.process(pid).role == Role::Worker {
                        self.node.process_mut(pid).life = Life::Waiting;
                    }
                    self.carry_out(pid, Call::Join, fatal)?;
                }
            }
            Deed::Drain(which, fatal) => {
                let joined = self.node.at_work().filter(|p| p.life == Life::Joined).map(|p| p.pid);
                if let Some(pid) = choose(joined, which) {
                    self.carry_out(pid, Call::Drain, fatal)?;
                }
            }
            Deed::Leave(which, fatal) => {
                if let Some(pid) = choose(self.node.at_work().map(|p| p.pid), which) {
                    self.carry_out(pid, Call::Leave, fatal)?;
                }
            }
            Deed::LeaveMaster(which, fatal) => {
                let is_child = |p: &Process, m: u32| p.parent == m && p.role != Role::Master && p.is_alive();
                let masters = self.masters().into_iter();
                let masters = masters.filter(|m| !self.node.processes.iter().any(|p| is_child(p, *m)));
                if let Some(pid) = choose(masters, which) {
                    self.node.tell_to_stop(pid);
                    self.carry_out(pid, Call::LeaveMaster, fatal)?;
                }
            }
            Deed::Look(which, fatal) => self.look(which, fatal)?,
            Deed::Kill(which, status) => {
                if let Some(pid) =
                    choose(self.node.processes.iter().filter(|p| p.is_alive()).map(|p| p.pid), which)
                {
                    self.kill(pid, status);
                }
            }
            Deed::KillAll => {
                let all: Vec<u32> =
                    self.node.processes.iter().filter(|p| p.is_alive()).map(|p| p.pid).collect();
                all.into_iter().for_each(|pid| self.kill(pid, Some(9)));
            }
            Deed::Tell(which) => {
                _ = choose(self.masters().into_iter(), which).map(|pid| self.node.tell_to_stop(pid))
            }
            Deed::Hang(which) => {
                if let Some(pid) = choose(self.node.at_work().map(|p| p.pid), which) {
                    self.node.process_mut(pid).hangs = true;
                }
            }
            Deed::GoOn(which) => {
                if let Some(pid) =
                    choose(self.node.processes.iter().filter(|p| p.hangs).map(|p| p.pid), which)
                {
                    self.node.process_mut(pid).hangs = false;
                    self.node.beat(pid);
                }
            }
            Deed::Time(passed) => self.pass(passed),
            Deed::Rest => self.rest()?,
            Deed::Start | Deed::Upgrade => {}
        }
        self.check()
    }

    /// Who runs beats, and a drained one too.
    fn pass(&mut self, passed: u64) {
        self.node.now += passed;
        let pids: Vec<u32> = self.node.at_work().map(|p| p.pid).collect();
        pids.into_iter().for_each(|pid| self.node.beat(pid));
    }

    fn change_phase(&mut self, to: Phase) {
        let Some(master) = self.newest_master() else { return };
        let own = self.node.process(master).generation;
        self.node.change_phase(own, to);
    }

    fn fork(&mut self, which: u8, role: Role) {
        self.fork_of(choose(self.masters().into_iter(), which), role);
    }

    fn fork_of(&mut self, master: Option<u32>, role: Role) {
        let Some(master) = master else { return };
        let generation = self.node.process(master).generation;
        // Not for what it abandoned, and not while it stops.
        let is_fit = self.node.there.contains(&generation) || self.has_ended(generation);
        if generation == 0 || !is_fit || self.node.process(master).is_told {
            return;
        }
        let (_, expected) = self.node.begun[generation as usize - 1];
        let of = self.node.living(Role::Worker).filter(|p| p.generation == generation);
        let taken: Vec<u32> = of.filter_map(|p| p.number).collect();
        match role {
            Role::Worker => {
                if let Some(number) = (0..expected).find(|n| !taken.contains(n)) {
                    self.node.fork(master, role, generation, Some(number));
                }
            }
            _ => _ = self.node.fork(master, role, generation, None),
        }
    }

    fn has_ended(&self, id: u64) -> bool {
        self.node.journal.iter().any(|e| e.generation == id && e.kind == Kind::GenerationEnded)
    }

    fn look(&mut self, which: u8, fatal: Fatal) -> Verdict {
        let node = &self.node;
        let open = |pid: u32| node.facts(pid).next_step(Scope::Everything).is_some();
        match choose(node.at_work().map(|p| p.pid).filter(|pid| open(*pid)), which) {
            Some(pid) => self.carry_out(pid, Call::Settle, fatal),
            None => Ok(()),
        }
    }

    /// Everybody who is coming comes, and all that is open is reported; and again when so much time has passed that nobody
    /// is waited for any more.
    fn rest(&mut self) -> Verdict {
        for _ in 0..2 {
            self.come()?;
            self.settle()?;
            self.pass(20 * SECOND);
            self.settle()?;
        }
        self.check_rest()
    }

    fn come(&mut self) -> Verdict {
        let is_new = |p: &&Process| matches!(p.life, Life::Forked | Life::Waiting);
        while let Some(pid) = self.node.processes.iter().find(is_new).map(|p| p.pid) {
            if self.node.process(pid).role == Role::Worker {
                self.node.process_mut(pid).life = Life::Waiting;
            }
            self.carry_out(pid, Call::Join, None)?;
        }
        Ok(())
    }

    fn settle(&mut self) -> Verdict {
        for _ in 0..1_000 {
            let before = self.node.journal.len();
            self.look(0, None)?;
            if self.node.journal.len() == before && self.is_settled() {
                return Ok(());
            }
        }
        Err(TestCaseError::fail(format!("there is no end\n{}", self.journal())))
    }

    fn is_settled(&self) -> bool {
        self.node.at_work().all(|p| self.node.facts(p.pid).next_step(Scope::Everything).is_none())
    }

    fn check_rest(&self) -> Verdict {
        if self.node.at_work().next().is_none() {
            return Ok(());
        }
        if let Some(missing) = self.node.omission() {
            return Err(TestCaseError::fail(format!("nothing is said of {missing}\n{}", self.journal())));
        }
        for p in self.node.living(Role::Worker) {
            let Some(s) = self.node.slots.iter().find(|s| s.identity.pid == p.pid) else { continue };
            let beats = match p.life {
                Life::Joined => true,
                _ => s.heartbeat_ns > s.intent_since_ns,
            };
            let is_overdue = beats && self.node.now - s.heartbeat_ns > STALL_AFTER;
            let is_told = self.node.is_told_stalled(p.pid);
            prop_assert_eq!(is_told, p.hangs && is_overdue, "{:?}\n{}", p, self.journal());
        }
        Ok(())
    }

    /// As it stands in the journal: the newest generation that was there when its master died, and how many of its workers nobody
    /// has reported.
    fn previous_run(&self) -> PreviousRun {
        let node = &self.node;
        let is_open = |id: &&u64| !node.process(node.begun[**id as usize - 1].0).is_alive();
        let Some(&generation) = node.there.iter().filter(is_open).max() else {
            return if node.runs == 0 { PreviousRun::None } else { PreviousRun::Clean };
        };
        PreviousRun::Unclean { generation, workers: 0 }
    }

    fn has_started_since(&self, id: u64) -> bool {
        self.node.journal.iter().any(|e| e.generation > id && e.kind == Kind::GenerationStarted)
    }

    /// What a start says of the run before.
    fn check_start(&mut self) -> Verdict {
        let Some(start) =
            self.node.journal.iter().rfind(|e| e.kind == Kind::GenerationStarted && e.previous_run.is_some())
        else {
            return Ok(());
        };
        if start.delivered == 0 || start.seq <= self.owed_since {
            return Ok(());
        }
        let same = |run: Option<PreviousRun>| match run {
            Some(PreviousRun::Unclean { generation, .. }) => (3, generation),
            Some(PreviousRun::Clean) => (2, 0),
            Some(PreviousRun::None) => (1, 0),
            None => (0, 0),
        };
        if let Some(owed) = self.owed.take() {
            prop_assert_eq!(same(start.previous_run), same(Some(owed)), "{}", self.journal());
        }
        Ok(())
    }

    /// Everybody leaves, or is killed; the master has the last word. Then each generation has ended as often as it began.
    fn stop(&mut self) -> Verdict {
        self.act(Deed::Start)?;
        self.rest()?;
        self.masters().into_iter().for_each(|pid| self.node.tell_to_stop(pid));
        let hung: Vec<u32> = self.node.processes.iter().filter(|p| p.hangs).map(|p| p.pid).collect();
        hung.into_iter().for_each(|pid| self.kill(pid, Some(9)));
        let workers: Vec<u32> = self.node.at_work().map(|p| p.pid).collect();
        for pid in workers {
            self.carry_out(pid, Call::Leave, None)?;
        }
        let helpers: Vec<u32> = self.node.living(Role::Helper).map(|p| p.pid).collect();
        for pid in helpers {
            self.carry_out(pid, Call::Leave, None)?;
        }
        for pid in self.masters() {
            self.carry_out(pid, Call::LeaveMaster, None)?;
        }
        for id in 1..=self.node.last_generation {
            let of = |kind: Kind| {
                self.node.journal.iter().filter(|e| e.generation == id && e.kind == kind).count()
            };
            let ends = of(Kind::GenerationEnded) + of(Kind::GenerationAbandoned);
            prop_assert_eq!(of(Kind::GenerationStarted), ends, "generation {}\n{}", id, self.journal());
        }
        prop_assert!(self.node.slots.is_empty() && self.node.generations.is_empty(), "{:?}", self.node);
        for p in &self.node.processes {
            let of = |kinds: &[Kind]| {
                self.node.journal.iter().filter(|e| e.pid == p.pid && kinds.contains(&e.kind)).count()
            };
            let starts = of(&[Kind::WorkerStarted, Kind::HelperStarted]);
            let ends = of(&[Kind::WorkerExited, Kind::WorkerDied, Kind::HelperExited]);
            prop_assert_eq!(starts, ends, "{:?}\n{}", p, self.journal());
        }
        Ok(())
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[derive(Default)]
struct Figures {
    steps: AtomicU64,
    deaths: AtomicU64,
    events: AtomicU64,
}

fn run(broken: Broken, cases: u32, seed: u64, shrinks: u32, figures: &Figures) -> Result<(), String> {
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: shrinks,
        rng_seed: RngSeed::Fixed(seed),
        ..Config::default()
    };
    let found = TestRunner::new(config).run(&vec(any_deed(), 0..150), |deeds| {
        let mut history = History::new(broken);
        deeds.into_iter().try_for_each(|deed| history.act(deed))?;
        history.stop()?;
        figures.steps.fetch_add(history.steps, Relaxed);
        figures.deaths.fetch_add(history.deaths, Relaxed);
        figures.events.fetch_add(history.node.head(), Relaxed);
        Ok(())
    });
    found.map_err(|error| error.to_string())
}

/// HEADCOUNT_CASES: how many. HEADCOUNT_SEED replays a run.
#[test]
fn every_history_is_reported_as_it_was() {
    let cases = number("HEADCOUNT_CASES").map_or(32, |n| u32::try_from(n).unwrap_or(u32::MAX));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seed = number("HEADCOUNT_SEED").unwrap_or(now.as_millis() as u64);
    let begun = std::time::Instant::now();
    let figures = Figures::default();
    let found = run(Broken::Nothing, cases, seed, 100_000, &figures);
    let [steps, deaths, events] = [&figures.steps, &figures.deaths, &figures.events].map(|n| n.load(Relaxed));
    println!(
        "HEADCOUNT_SEED={seed}: {cases} histories, {steps} steps, {deaths} deaths, {events} events, {:.1?}",
        begun.elapsed()
    );
    if let Err(error) = found {
        panic!("HEADCOUNT_SEED={seed} HEADCOUNT_CASES={cases}: {error}");
    }
    assert!(steps.min(deaths).min(events) > u64::from(cases) / 2, "nothing happened");
}

/// With each rule broken, some history is misreported.
#[test]
fn each_broken_rule_shows_in_a_history() {
    for broken in [Broken::FreedBeforeDelivery, Broken::JournalledBeforeMark, Broken::NoRepair] {
        let found = run(broken, 2_000, 1, 0, &Figures::default());
        assert!(found.is_err(), "{broken:?} is not missed");
    }
}
