//! Who leads, and what runs once: every order of the steps of those who stand for a role, of whoever reports, and of what workers do
//! without the lock; with deaths and stops between any two, a reload, and time. Exhaustive, with stateright.
//!
//! The decisions are `lifecycle`'s own. As in `protocol.rs` no state comes again, so "in the end" means: in each state in which nobody has
//! anything left to do.

use stateright::{Checker, Model, Property};

use super::node::{Broken, Call, Life, Node, Op, SECOND, STALL_AFTER};
use super::singletons::{ONCE, ROLE};
use crate::event::{Kind, Role};
use crate::lifecycle::{Intent, MOST_TRIES, Phase, Scope, SingletonState};

/// How much may happen.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    workers: u32,
    deaths: u32,
    /// How often somebody is stopped. Whether he goes on is open.
    stops: u32,
    /// A second generation comes, and the first one goes.
    reloads: bool,
    /// Workers drain before they leave.
    drains: bool,
    /// They stand for a role; they want something done once, which may fail so often.
    role: bool,
    once: Option<u32>,
    broken: Broken,
}

const SMALL: Bounds = Bounds {
    workers: 2,
    deaths: 1,
    stops: 0,
    reloads: false,
    drains: false,
    role: true,
    once: None,
    broken: Broken::Nothing,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    node: Node,
    deaths: u32,
    stops: u32,
    failures: u32,
    /// Those who have seen that the once is settled.
    know: Vec<u32>,
    /// How often it was done to the end.
    successes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    /// The holder of the lock goes on.
    Step,
    Kill(u32),
    Stop(u32),
    GoOn(u32),
    /// A process takes the free lock, for this.
    Acquire(u32, Call),
    Announce(u32),
    /// The master goes on after it has begun a generation, and forks its workers.
    Commit,
    /// A worker's loop turns for the first time.
    Turn(u32),
    /// A worker looks at what there is to watch.
    Watch(u32),
    /// A worker hears what became of the role.
    Hear(u32),
    /// One that was asked has stopped, and gives the role up; or stops because it leaves.
    GiveUp(u32),
    /// One that wants something done once sees that it is settled.
    Know(u32),
    /// So much time passes that nobody is waited for any more. Everybody who runs beats meanwhile.
    Time,
}

impl Bounds {
    /// A node that has begun its first generation, with workers that serve and stand.
    fn begin(&self) -> World {
        let mut node = Node::new(self.broken);
        let master = node.open(0);
        run(&mut node, master, Call::Begin(self.workers));
        node.change_phase(1, Phase::Committed);
        for number in 0..self.workers {
            let pid = node.fork(master, Role::Worker, 1, Some(number));
            node.process_mut(pid).life = Life::Waiting;
            run(&mut node, pid, Call::Join);
            if self.role {
                run(&mut node, pid, Call::Stand);
            }
        }
        World { node, deaths: 0, stops: 0, failures: 0, know: Vec::new(), successes: 0 }
    }

    /// What will happen, in some order, unless somebody dies or is stopped.
    fn due(&self, world: &World) -> Vec<Action> {
        let node = &world.node;
        let mut due = Vec::new();
        for p in node.at_work() {
            let is_over = self.is_over(node, p.generation);
            if p.duty.is_asked || is_over && !self.drains && p.duty.token != 0 && p.life == Life::Joined {
                due.push(Action::GiveUp(p.pid));
            } else if node.hears(p.pid).is_some() {
                due.push(Action::Hear(p.pid));
            }
        }
        if node.session.is_some() {
            due.push(Action::Step);
            return due;
        }
        let is_free = node.is_free();
        for p in &node.processes {
            if p.hangs || !p.is_alive() {
                continue;
            }
            match (p.role, p.life) {
                (Role::Worker, Life::Forked) => due.push(Action::Announce(p.pid)),
                (Role::Worker, Life::Waiting) if is_free => due.push(Action::Acquire(p.pid, Call::Join)),
                (Role::Worker, Life::Joined | Life::Drained) => {
                    self.due_of_worker(world, p.pid, is_free, &mut due)
                }
                (Role::Master, Life::Joined) if self.reloads && p.generation < 2 && is_free => {
                    due.push(Action::Acquire(p.pid, Call::Begin(self.workers)));
                }
                _ => {}
            }
        }
        let is_announced = |g: &crate::lifecycle::GenerationFacts| g.id == 2 && g.phase == Phase::Announced;
        if node.generations.iter().any(is_announced) && node.living(Role::Master).next().is_some() {
            due.push(Action::Commit);
        }
        due.extend(node.at_work().filter(|p| node.watches(p.pid).is_some()).map(|p| Action::Watch(p.pid)));
        if due.is_empty() && self.after_a_while(node).is_some() {
            due.push(Action::Time);
        }
        due
    }

    fn due_of_worker(&self, world: &World, pid: u32, is_free: bool, due: &mut Vec<Action>) {
        let node = &world.node;
        let p = node.process(pid);
        let Some(slot) = node.slots.iter().find(|s| Some(s.at()) == p.slot) else { return };
        if slot.intent == Intent::Serving && slot.heartbeat_ns <= slot.intent_since_ns {
            due.push(Action::Turn(pid));
        }
        let mut calls = Vec::new();
        if self.role && slot.stands_for == 0 && p.life == Life::Joined {
            calls.push(Call::Stand);
        }
        if let Some(failures) = self.once {
            let once = node.singleton(ONCE);
            let is_open = once.is_none_or(|x| x.state == SingletonState::Open && x.attempts < MOST_TRIES);
            let is_settled =
                once.is_some_and(|x| matches!(x.state, SingletonState::Done | SingletonState::Failed));
            if p.duty.runs {
                calls.push(Call::EndOnce(true));
                calls.extend((world.failures < failures).then_some(Call::EndOnce(false)));
            } else if is_open && !world.know.contains(&pid) {
                calls.push(Call::BeginOnce);
            } else if is_settled && !world.know.contains(&pid) {
                due.push(Action::Know(pid));
            }
        }
        if self.is_over(node, p.generation) && !p.duty.runs {
            if self.drains && p.life == Life::Joined {
                calls.push(Call::Drain);
            } else if p.duty.token == 0 {
                calls.push(Call::Leave);
            }
        }
        due.extend(calls.into_iter().filter(|_| is_free).map(|call| Action::Acquire(pid, call)));
    }

    /// Workers of this generation are to leave.
    fn is_over(&self, node: &Node, generation: u64) -> bool {
        generation < 2 && node.there.contains(&2)
    }

    fn after_a_while(&self, node: &Node) -> Option<Node> {
        let mut later = node.clone();
        later.now += 20 * SECOND;
        const { assert!(20 * SECOND > STALL_AFTER) };
        let pids: Vec<u32> = later.at_work().map(|p| p.pid).collect();
        pids.iter().for_each(|pid| later.beat(*pid));
        // Whoever has not stopped by now had his time.
        later.processes.iter_mut().filter(|p| p.duty.leads).for_each(|p| p.duty.is_late = p.hangs);
        pids.iter().any(|pid| later.facts(*pid).next_step(Scope::Everything).is_some()).then_some(later)
    }

    fn may_be_hit(&self, world: &World, pid: u32) -> bool {
        let node = &world.node;
        let is_holder = node.session.as_ref().is_some_and(|s| s.pid == pid);
        node.process(pid).is_alive() && (is_holder || node.is_at_look())
    }
}

/// A call from its beginning to its end.
fn run(node: &mut Node, pid: u32, call: Call) {
    node.acquire(pid, call);
    while node.session.is_some() {
        node.step();
    }
    node.is_fresh = false;
}

impl Model for Bounds {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![self.begin()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        actions.extend(self.due(world));
        let node = &world.node;
        let workers = || node.living(Role::Worker).filter(|p| self.may_be_hit(world, p.pid));
        if world.deaths < self.deaths {
            actions.extend(workers().map(|p| Action::Kill(p.pid)));
        }
        // Who is stopped with the node lock holds all up, until it goes on: nothing to be seen there.
        let holder = node.lock;
        let idle =
            || workers().filter(|p| Some(p.pid) != holder && matches!(p.life, Life::Joined | Life::Drained));
        if world.stops < self.stops {
            actions.extend(idle().filter(|p| !p.hangs).map(|p| Action::Stop(p.pid)));
        }
        actions.extend(idle().filter(|p| p.hangs).map(|p| Action::GoOn(p.pid)));
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        let node = &mut next.node;
        node.is_fresh = false;
        match action {
            Action::Step => node.step(),
            Action::Kill(pid) => {
                node.kill(pid, None);
                let duty = &mut node.process_mut(pid).duty;
                (duty.token, duty.leads, duty.is_asked, duty.runs) = (0, false, false, false);
                next.deaths += 1;
            }
            Action::Stop(pid) => {
                node.process_mut(pid).hangs = true;
                next.stops += 1;
            }
            Action::GoOn(pid) => {
                node.process_mut(pid).hangs = false;
                node.beat(pid);
            }
            Action::Acquire(pid, call) => {
                match call {
                    Call::EndOnce(true) => next.successes += 1,
                    Call::EndOnce(false) => next.failures += 1,
                    _ => {}
                }
                node.acquire(pid, call);
            }
            Action::Announce(pid) => node.process_mut(pid).life = Life::Waiting,
            Action::Commit => {
                let master = node.living(Role::Master).next()?.pid;
                node.change_phase(2, Phase::Committed);
                for number in 0..self.workers {
                    node.fork(master, Role::Worker, 2, Some(number));
                }
            }
            Action::Turn(pid) => {
                node.now += 1;
                node.beat(pid);
            }
            Action::Watch(pid) => {
                let (takes_over, reports) = world.node.watches(pid)?;
                if takes_over {
                    node.sentinel = node.process(pid).slot;
                }
                if reports {
                    node.acquire(pid, Call::Settle);
                }
            }
            Action::Hear(pid) => node.hear(pid),
            Action::GiveUp(pid) => node.give_up(pid),
            Action::Know(pid) => next.know.push(pid),
            Action::Time => *node = self.after_a_while(node)?,
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Bounds>> {
        let always = Property::<Bounds>::always;
        vec![
            always("at most one process is the leader", |_, world: &World| {
                let node = &world.node;
                node.processes.iter().filter(|p| p.is_alive() && node.is_leader(p.pid)).count() <= 1
            }),
            always("nobody begins to lead before the one before has stopped", |_, world: &World| {
                world
                    .node
                    .processes
                    .iter()
                    .filter(|p| p.is_alive() && p.duty.leads && !p.duty.is_late)
                    .count()
                    <= 1
            }),
            always("tokens only grow, and each tenure ends before the next", |_, world: &World| {
                is_orderly(&world.node)
            }),
            always("each start, exit, death and end is reported once", |_, world: &World| {
                world.node.fault().is_none()
            }),
            always("one process at a time is at the once, three times at most", |_, world: &World| {
                let attempts = world.node.singleton(ONCE).map_or(0, |x| x.attempts);
                world.node.processes.iter().filter(|p| p.is_alive() && p.duty.runs).count() <= 1
                    && attempts <= MOST_TRIES
                    && world.successes <= 1 + world.deaths
            }),
            always("in the end somebody leads, if anybody is fit", |model: &Bounds, world: &World| {
                !model.role || !model.due(world).is_empty() || has_leader(world)
            }),
            always("in the end the once is done or has failed", |model: &Bounds, world: &World| {
                let somebody = world.node.at_work().next().is_some();
                model.once.is_none() || !model.due(world).is_empty() || !somebody || is_settled(world)
            }),
            // That the model does something at all.
            Property::sometimes(
                "somebody: a leader dies, and another one leads",
                |model: &Bounds, world: &World| {
                    let told = |kind| world.node.journal.iter().filter(|e| e.kind == kind).count();
                    !model.role || world.deaths > 0 && told(Kind::LeaderLost) > 0 && has_leader(world)
                },
            ),
            Property::sometimes(
                "somebody: a reporter dies between an event and its change",
                |_, world: &World| {
                    let node = &world.node;
                    let head = node.head();
                    world.deaths > 0
                        && node
                            .session
                            .as_ref()
                            .is_some_and(|s| s.ops.contains(&Op::RepairRecords) || s.interrupted.is_some())
                        && node.singletons.iter().any(|x| x.seq != 0 && x.seq <= head)
                },
            ),
        ]
    }
}

fn is_orderly(node: &Node) -> bool {
    let mut leads = None;
    let mut newest = 0;
    for e in &node.journal {
        match e.kind {
            Kind::LeaderElected if leads.is_some() || e.token <= newest => return false,
            Kind::LeaderElected => (leads, newest) = (Some(e.token), e.token),
            Kind::LeaderLost if leads != Some(e.token) => return false,
            Kind::LeaderLost => leads = None,
            _ => {}
        }
    }
    let settled = |e: &&super::node::Entry| matches!(e.kind, Kind::OnceDone | Kind::OnceFailed);
    node.journal.iter().filter(settled).count() <= 1
}

fn has_leader(world: &World) -> bool {
    let node = &world.node;
    let is_fit = |pid: &u32| {
        node.slots.iter().any(|s| s.identity.pid == *pid && s.stands_for != 0 && s.intent == Intent::Serving)
    };
    let fit: Vec<u32> = node.at_work().map(|p| p.pid).filter(is_fit).collect();
    let leads = |pid: &u32| node.is_leader(*pid) && node.process(*pid).duty.leads;
    let role = node.singleton(ROLE);
    fit.is_empty()
        || fit.iter().any(leads) && role.is_some_and(|x| x.seq == 0 && x.state == SingletonState::Held)
}

fn is_settled(world: &World) -> bool {
    let once = world.node.singleton(ONCE);
    once.is_some_and(|x| match x.state {
        SingletonState::Done => world.successes > 0,
        SingletonState::Failed => x.attempts == MOST_TRIES,
        // Who is at it is stopped.
        SingletonState::Running => world.node.processes.iter().any(|p| p.hangs && p.duty.runs),
        _ => false,
    })
}

fn explain(model: &Bounds, world: &World) -> String {
    let node = &world.node;
    let journal: Vec<String> = node.journal.iter().map(|e| format!("{e:?}")).collect();
    let processes: Vec<String> = node.processes.iter().map(|p| format!("{p:?}")).collect();
    format!("{model:?}\n{}\n{}\n{world:?}", journal.join("\n"), processes.join("\n"))
}

/// Every state within these bounds; gives how many there are.
fn explore(bounds: Bounds) -> usize {
    let begun = std::time::Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checker = bounds.checker().threads(threads).spawn_bfs().join();
    for (name, path) in checker.discoveries() {
        let actions: Vec<_> = path.clone().into_actions();
        assert!(name.starts_with("somebody"), "{name}: {actions:?}\n{}", explain(&bounds, path.last_state()));
    }
    assert!(checker.is_done());
    let examples = if bounds.deaths == 0 { 0 } else { 2 };
    assert_eq!(checker.discoveries().len(), examples, "{bounds:?}: {:?}", checker.discoveries().keys());
    let states = checker.unique_state_count();
    println!("{bounds:?}: {states} states, depth {}, {:.1?}", checker.max_depth(), begun.elapsed());
    states
}

#[test]
fn the_election_holds_in_every_order() {
    assert!(explore(SMALL) > 1_000);
    assert!(explore(Bounds { role: false, once: Some(1), deaths: 2, ..SMALL }) > 1_000);
}

/// `make models`.
#[test]
#[ignore = "a minute"]
fn the_election_holds_within_wide_bounds() {
    let reloads = Bounds { workers: 1, reloads: true, ..SMALL };
    for bounds in [
        Bounds { workers: 3, deaths: 2, ..SMALL },
        Bounds { stops: 1, ..SMALL },
        Bounds { drains: true, ..reloads },
        Bounds { deaths: 0, ..reloads },
        Bounds { deaths: 0, stops: 2, ..SMALL },
        Bounds { role: false, once: Some(2), deaths: 3, ..SMALL },
    ] {
        explore(bounds);
    }
}

/// The model can fail: with each rule broken it finds a run that shows it.
#[test]
fn each_broken_rule_is_found_out() {
    let reload = Bounds { workers: 1, deaths: 0, reloads: true, ..SMALL };
    for (broken, bounds, finds) in [
        (Broken::JournalledBeforeMark, SMALL, "tokens only grow"),
        (Broken::NoRepair, SMALL, "tokens only grow"),
        (Broken::SameToken, SMALL, "tokens only grow"),
        (Broken::NotAsked, Bounds { drains: true, ..reload }, "nobody begins to lead"),
        (Broken::ForgetsDone, Bounds { role: false, once: Some(0), ..SMALL }, "one process at a time"),
    ] {
        let checker = Bounds { broken, ..bounds }.checker().spawn_bfs().join();
        let found: Vec<&str> =
            checker.discoveries().into_keys().filter(|name| !name.starts_with("somebody")).collect();
        assert!(found.iter().any(|name| name.starts_with(finds)), "{broken:?}: {found:?}");
    }
}
