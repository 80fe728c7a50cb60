//! The protocol between master, workers, sentinel, deputy and whoever reports a death: every order of their steps, and a
//! death between any two of them. Exhaustive, with stateright.
//!
//! The decisions are `lifecycle`'s own. No step can be undone, so no state is met again: each run ends, and that
//! everything is told in every state in which nobody has anything left to do is that it is told in the end.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use stateright::{Checker, Model, Property};

use super::node::{Broken, Call, Life, Node, Op, SECOND};
use crate::event::Role;
use crate::lifecycle::{Phase, Scope};

/// How much may happen.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    generations: u32,
    workers: u32,
    deaths: u32,
    respawns: u32,
    /// Workers drain before they leave.
    drains: bool,
    /// The master tells everybody to stop in the end, and leaves.
    stops: bool,
    /// A generation begins only when all but the one before it have ended.
    pairs: bool,
    broken: Broken,
    /// States that are the same but for names are taken for one.
    merges: bool,
}

const SMALL: Bounds = Bounds {
    generations: 1,
    workers: 2,
    deaths: 2,
    respawns: 0,
    drains: false,
    stops: false,
    pairs: false,
    broken: Broken::Nothing,
    merges: true,
};

#[derive(Clone, Debug, PartialEq, Eq)]
struct World {
    node: Node,
    deaths: u32,
    respawns: u32,
    replaced: Vec<u32>,
    merges: bool,
    /// What was wrong at a step that is no state of its own.
    wrong: Option<String>,
}

/// What the checker takes for the same state.
impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.deaths, self.respawns).hash(state);
        if self.merges {
            self.node.canonical(&self.replaced).hash(state);
        } else {
            (&self.node, &self.replaced).hash(state);
        }
        self.wrong.hash(state);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    /// The holder of the lock goes on.
    Step,
    Kill(u32),
    /// A process takes the free lock, for this.
    Acquire(u32, Call),
    /// A process says that it waits for the lock to join.
    Announce(u32),
    /// The master goes on after it has begun a generation, and forks its workers.
    Commit,
    Respawn(u32),
    /// A worker looks at what there is to watch.
    Watch(u32),
    Stop,
    /// So much time passes that nobody is waited for any more. Everybody beats meanwhile.
    Time,
}

impl Bounds {
    fn master(world: &World) -> Option<u32> {
        world.node.living(Role::Master).next().map(|p| p.pid)
    }

    /// What will happen, in some order, unless somebody dies.
    fn due(&self, world: &World) -> Vec<Action> {
        let node = &world.node;
        if node.session.is_some() {
            return vec![Action::Step];
        }
        let mut due = Vec::new();
        let is_free = node.is_free();
        let newest = node.last_generation;
        let master = Bounds::master(world).map(|pid| node.process(pid));
        let is_committed = node.there.contains(&newest);
        let has_begun = master.is_some_and(|m| m.generation == newest) && newest > 0;
        for p in &node.processes {
            let call = match (p.role, p.life) {
                (Role::Worker, Life::Forked) => {
                    due.push(Action::Announce(p.pid));
                    continue;
                }
                (Role::Worker, Life::Waiting) => Some(Call::Join),
                (Role::Worker, Life::Joined | Life::Drained) => {
                    let is_over = p.generation < newest && is_committed;
                    let is_told = is_over || master.is_some_and(|m| m.is_told);
                    if !is_told {
                        None
                    } else if self.drains && p.life == Life::Joined {
                        Some(Call::Drain)
                    } else {
                        Some(Call::Leave)
                    }
                }
                (Role::Master, Life::Joined) => {
                    let has_children = node.living(Role::Worker).any(|w| w.parent == p.pid);
                    let has_room = !self.pairs || node.there.len() < 2;
                    let may_begin =
                        newest == 0 || (is_committed && has_room && newest < u64::from(self.generations));
                    match p.is_told {
                        true => (!has_children).then_some(Call::LeaveMaster),
                        false => may_begin.then_some(Call::Begin(self.workers)),
                    }
                }
                _ => None,
            };
            due.extend(call.filter(|_| is_free).map(|call| Action::Acquire(p.pid, call)));
        }
        if has_begun && node.generations.iter().any(|g| g.id == newest && g.phase == Phase::Announced) {
            due.push(Action::Commit);
        }
        due.extend(node.at_work().filter(|p| node.watches(p.pid).is_some()).map(|p| Action::Watch(p.pid)));
        if self.stops
            && is_committed
            && newest == u64::from(self.generations)
            && master.is_some_and(|m| !m.is_told)
        {
            due.push(Action::Stop);
        }
        if due.is_empty() && self.after_a_while(node).is_some() {
            due.push(Action::Time);
        }
        due
    }

    fn after_a_while(&self, node: &Node) -> Option<Node> {
        let mut later = node.clone();
        later.now += 20 * SECOND;
        let pids: Vec<u32> = later.at_work().map(|p| p.pid).collect();
        pids.iter().for_each(|pid| later.beat(*pid));
        pids.iter().any(|pid| later.facts(*pid).next_step(Scope::Everything).is_some()).then_some(later)
    }

    fn may_die(&self, world: &World, pid: u32) -> bool {
        let node = &world.node;
        let is_holder = node.session.as_ref().is_some_and(|s| s.pid == pid);
        world.deaths < self.deaths && node.process(pid).is_alive() && (is_holder || node.is_at_look())
    }
}

impl Model for Bounds {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let mut node = Node::new(self.broken);
        node.open(0);
        vec![World { node, deaths: 0, respawns: 0, replaced: Vec::new(), merges: self.merges, wrong: None }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        actions.extend(self.due(world));
        let node = &world.node;
        actions.extend(
            node.processes.iter().filter(|p| self.may_die(world, p.pid)).map(|p| Action::Kill(p.pid)),
        );
        let is_idle = node.session.is_none();
        if let Some(master) = Bounds::master(world).filter(|_| is_idle && world.respawns < self.respawns) {
            let newest = node.last_generation;
            let is_told = node.process(master).is_told;
            let gone = node.processes.iter().filter(|p| {
                p.parent == master
                    && p.generation == newest
                    && p.life == Life::Dead
                    && !world.replaced.contains(&p.pid)
            });
            actions.extend(gone.filter(|_| !is_told).map(|p| Action::Respawn(p.pid)));
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        let node = &mut next.node;
        node.is_fresh = false;
        match action {
            Action::Step => {
                node.step();
                // Nobody can die any more, so nothing comes between his steps.
                while self.merges
                    && next.wrong.is_none()
                    && next.deaths == self.deaths
                    && node.session.is_some()
                {
                    next.wrong = node.fault().or_else(|| node.misreport());
                    node.is_fresh = false;
                    node.step();
                }
            }
            Action::Kill(pid) => {
                node.kill(pid, None);
                next.deaths += 1;
            }
            Action::Acquire(pid, call) => node.acquire(pid, call),
            Action::Announce(pid) => node.process_mut(pid).life = Life::Waiting,
            Action::Commit => {
                let (master, id) = (Bounds::master(world)?, node.last_generation);
                node.change_phase(id, Phase::Committed);
                for number in 0..self.workers {
                    node.fork(master, Role::Worker, id, Some(number));
                }
            }
            Action::Respawn(pid) => {
                let dead = node.process(pid).clone();
                node.fork(dead.parent, Role::Worker, dead.generation, dead.number);
                next.replaced.push(pid);
                next.respawns += 1;
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
            Action::Stop => node.tell_to_stop(Bounds::master(world)?),
            Action::Time => *node = self.after_a_while(node)?,
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Bounds>> {
        let always = Property::<Bounds>::always;
        vec![
            always(
                "each start, exit, death and end is reported once, and no record is freed before its callback ran",
                |_, world: &World| world.wrong.is_none() && world.node.fault().is_none(),
            ),
            always("the counts and causes are right at each report", |_, world: &World| {
                world.node.misreport().is_none()
            }),
            always(
                "in the end everything is reported, if anybody lives, and nobody waits",
                |model: &Bounds, world: &World| {
                    let is_over = model.due(world).is_empty();
                    let somebody = world.node.at_work().next().is_some();
                    !is_over || !somebody || world.node.omission().is_none()
                },
            ),
            // That the model does something at all.
            Property::sometimes("somebody dies in a callback", |_, world: &World| {
                world.node.journal.iter().any(|e| e.runners > 0 && e.delivered > 0)
            }),
            Property::sometimes("somebody dies while he makes good what another left", |_, world: &World| {
                world.node.session.as_ref().is_some_and(|s| s.ops.contains(&Op::ClearCallback))
                    && world.node.journal.iter().any(|e| e.killed > 0)
            }),
        ]
    }
}

fn explain(model: &Bounds, world: &World) -> String {
    let node = &world.node;
    let journal: Vec<String> = node.journal.iter().map(|e| format!("{e:?}")).collect();
    let processes: Vec<String> = node.processes.iter().map(|p| format!("{p:?}")).collect();
    let wrong = (&world.wrong, node.fault(), node.misreport(), node.omission());
    format!("{model:?}\n{wrong:?}\n{}\n{}\n{node:?}", journal.join("\n"), processes.join("\n"))
}

/// Every state within these bounds; gives how many there are.
fn explore(bounds: Bounds) -> usize {
    let begun = std::time::Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checker = bounds.checker().threads(threads).spawn_dfs().join();
    for (name, path) in checker.discoveries() {
        let is_example = name.starts_with("somebody");
        let actions: Vec<_> = path.clone().into_actions();
        assert!(is_example, "{name}: {actions:?}\n{}", explain(&bounds, path.last_state()));
    }
    assert!(checker.is_done());
    let examples = bounds.deaths.min(2) as usize;
    assert!(checker.discoveries().len() >= examples, "{bounds:?}: nobody dies in a callback, or in a repair");
    let states = checker.unique_state_count();
    println!("{bounds:?}: {states} states, depth {}, {:.1?}", checker.max_depth(), begun.elapsed());
    states
}

#[test]
fn the_protocol_holds_in_every_order() {
    assert!(explore(SMALL) > 1_000);
}

/// `make models`. HEADCOUNT_BOUNDS names others: generations, workers, deaths, respawns; and then, if it is to be so, `drains`,
/// `stops`, `pairs`, and `plain`: each state by itself.
#[test]
#[ignore = "a minute"]
fn the_protocol_holds_within_wide_bounds() {
    if let Ok(named) = std::env::var("HEADCOUNT_BOUNDS") {
        let numbers: Vec<u32> = named.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let &[generations, workers, deaths, respawns] = &numbers[..] else { panic!("four numbers: {named}") };
        let [drains, stops, pairs, plain] =
            ["drains", "stops", "pairs", "plain"].map(|word| named.contains(word));
        let merges = !plain;
        explore(Bounds { generations, workers, deaths, respawns, drains, stops, pairs, merges, ..SMALL });
        return;
    }
    for bounds in [
        Bounds { respawns: 1, ..SMALL },
        Bounds { workers: 3, deaths: 1, respawns: 1, ..SMALL },
        Bounds { workers: 1, deaths: 4, respawns: 3, ..SMALL },
        Bounds { generations: 2, workers: 1, deaths: 1, drains: true, stops: true, ..SMALL },
        Bounds { generations: 3, workers: 1, deaths: 1, ..SMALL },
        Bounds { generations: 2, workers: 2, deaths: 1, ..SMALL },
        Bounds { generations: 3, workers: 3, deaths: 0, pairs: true, ..SMALL },
    ] {
        explore(bounds);
    }
}

/// Takes every state of these bounds by itself, and sees that those which are taken for one have the same future, and are right or
/// wrong alike. Gives how many there are, and for how many they are taken.
fn compare_merged(bounds: Bounds) -> (usize, usize) {
    let plain = Bounds { merges: false, ..bounds };
    let name = |world: &World, merges: bool| {
        let mut hasher = DefaultHasher::new();
        World { merges, ..world.clone() }.hash(&mut hasher);
        hasher.finish()
    };
    let mut open = plain.init_states();
    let mut seen: HashSet<u64> = HashSet::new();
    let mut futures: HashMap<u64, (BTreeSet<u64>, [bool; 5], World)> = HashMap::new();
    while let Some(world) = open.pop() {
        if !seen.insert(name(&world, false)) {
            continue;
        }
        let mut actions = Vec::new();
        plain.actions(&world, &mut actions);
        let next: Vec<World> = actions.into_iter().filter_map(|a| plain.next_state(&world, a)).collect();
        let future: BTreeSet<u64> = next.iter().map(|world| name(world, true)).collect();
        let node = &world.node;
        let verdict = [
            node.fault().is_some(),
            node.misreport().is_some(),
            node.omission().is_some(),
            plain.due(&world).is_empty(),
            node.at_work().next().is_some(),
        ];
        match futures.entry(name(&world, true)) {
            Entry::Vacant(entry) => _ = entry.insert((future, verdict, world)),
            Entry::Occupied(entry) => {
                let (other_future, other_verdict, other) = entry.get();
                assert!(
                    (other_future, other_verdict) == (&future, &verdict),
                    "{}

and

{}",
                    explain(&plain, other),
                    explain(&plain, &world)
                );
            }
        }
        open.extend(next);
    }
    (seen.len(), futures.len())
}

#[test]
fn states_that_are_taken_for_one_have_the_same_future() {
    let (all, merged) = compare_merged(Bounds { deaths: 1, ..SMALL });
    assert!(merged < all, "{merged} of {all}");
}

/// `make models`.
#[test]
#[ignore = "a minute"]
fn states_that_are_taken_for_one_have_the_same_future_within_wide_bounds() {
    for bounds in [
        Bounds { respawns: 1, ..SMALL },
        Bounds { workers: 3, deaths: 1, ..SMALL },
        Bounds { generations: 2, workers: 1, deaths: 1, drains: true, stops: true, ..SMALL },
    ] {
        let begun = std::time::Instant::now();
        let (all, merged) = compare_merged(bounds);
        println!("{bounds:?}: {all} states are {merged}, {:.1?}", begun.elapsed());
    }
}

/// The model can fail: with each rule broken it finds a run that misreports.
#[test]
fn each_broken_rule_is_found_out() {
    for broken in [Broken::FreedBeforeDelivery, Broken::JournalledBeforeMark, Broken::NoRepair] {
        let checker = Bounds { broken, ..SMALL }.checker().spawn_bfs().join();
        let found = checker.discoveries().keys().filter(|name| !name.starts_with("somebody")).count();
        assert!(found > 0, "{broken:?} is not missed");
    }
}
