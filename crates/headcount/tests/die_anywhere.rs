//! Each transition is reported once, in order, with exact counts, whichever instruction a process dies at.
//!
//! A scenario is run again and again. In the n-th run its victim is killed before its n-th store into shared memory
//! (see `family/deadly_store.rs`), until there is a run that it survives. Then others go on, and the
//! journal, the callbacks and the table must be right.
#![cfg(target_arch = "x86_64")]

mod family;

use std::cell::Cell;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitStatus;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use headcount::{Begin, Cursor, Generation, Join, Kind, Liveness, Master, Node, Role, Wait, Worker};

use family::callbacks::{Act, Callbacks};
use family::deadly_store::{self, Tally};
use family::journal::{Truth, check, print};
use family::registry;
use family::worker::{Habit, settle, worker};
use family::{Child, Place, alone, fork, news};

/// A node whose master is this process.
struct World {
    place: Place,
    master: Master,
    node: Node,
    callbacks: Callbacks,
    kill_at: u64,
    truth: Truth,
    /// Where this run begins in the journal.
    cursor: Cursor,
    /// The victim of this run survived.
    survived: bool,
}

/// Runs a scenario with each possible death of its victim, all in one node: what a run leaves behind, the
/// following ones find.
fn at_every_store(scenario: impl Fn(&mut World)) {
    let _alone = alone();
    let mut world = World::new();
    deaths(|kill_at| world.run(kill_at, &scenario));
}

/// As above, with a new node for each death.
fn at_every_store_of_a_new_node(scenario: impl Fn(&mut World)) {
    let _alone = alone();
    deaths(|kill_at| World::new().run(kill_at, &scenario));
}

/// Calls `run` with 1, 2, … until it says that the victim survived.
fn deaths(mut run: impl FnMut(u64) -> bool) {
    let begun = Instant::now();
    let stores = (1..).find(|&kill_at| run(kill_at)).expect("it survives") - 1;
    assert!(stores > 20, "the victim made only {stores} stores: was it armed?");
    eprintln!("{stores} deaths in {:.1?}", begun.elapsed());
}

impl World {
    fn new() -> World {
        let place = Place::new();
        let master = place.open();
        World {
            node: master.node().clone(),
            master,
            place,
            callbacks: Callbacks::new(),
            kill_at: 0,
            truth: Truth::default(),
            cursor: Cursor::oldest(),
            survived: false,
        }
    }

    /// One trial. `true`: the victim survived.
    fn run(&mut self, kill_at: u64, scenario: impl Fn(&mut World)) -> bool {
        loop {
            family::ids_must_grow();
            self.kill_at = kill_at;
            self.callbacks.forget();
            self.tally().stores.store(0, SeqCst);
            self.truth = Truth::default();
            self.cursor = Cursor::at(self.head() + 1);
            let ended = catch_unwind(AssertUnwindSafe(|| {
                scenario(self);
                self.check();
            }));
            match ended {
                Ok(()) => return self.survived,
                Err(panic) if family::is_void(&*panic) => *self = World::new(),
                Err(panic) => {
                    self.explain();
                    resume_unwind(panic);
                }
            }
        }
    }

    fn tally(&self) -> Tally {
        Tally { stores: self.callbacks.word(0), offset: self.callbacks.word(1) }
    }

    fn head(&self) -> u64 {
        self.node.snapshot().head
    }

    fn begin(&mut self, workers: u32) -> Generation {
        let (generation, transitions) =
            self.master.begin(Begin::new().workers(workers), Wait::Timeout).expect("begin");
        self.callbacks.run(transitions);
        self.truth.committed.push((generation.id(), self.head()));
        self.master.commit(generation.id());
        generation
    }

    fn quiet(&self, generation: &Generation, number: u32) -> Child {
        worker(generation, self.callbacks, Habit::Quiet, Join::worker(Some(number)))
    }

    /// Kills a child, as a fact that the node has to find out about.
    fn kill(&mut self, child: &mut Child) {
        let status = child.kill();
        self.died(child, status);
    }

    fn died(&mut self, child: &Child, status: i32) {
        self.truth.dead.push((child.pid(), self.head()));
        self.node.child_exited(child.pid(), ExitStatus::from_raw(status));
    }

    /// Forks the victim, and has it die in `act`, if it has got that many stores to make.
    fn victim<T>(
        &mut self,
        prepare: impl FnOnce() -> T,
        meanwhile: impl FnOnce(&mut World),
        act: impl FnOnce(&mut T),
    ) {
        let (registry, also) = (self.place.registry(), self.callbacks.range());
        let (kill_at, tally) = (self.kill_at, self.tally());
        let mut child = fork(|line| {
            let mut prepared = prepare();
            line.say("ready");
            line.expect("go");
            deadly_store::arm(&registry, also, kill_at, tally);
            act(&mut prepared);
            deadly_store::disarm();
            line.say("survived");
            0
        });
        child.expect("ready");
        meanwhile(self);
        child.say("go");
        let last_words = child.hear();
        let status = child.wait();
        match last_words.as_deref() {
            Some("survived") => self.survived = true,
            None => assert_eq!(status, libc::SIGKILL, "it died of something else"),
            Some(other) => panic!("the victim: {other}"),
        }
        self.died(&child, status);
    }

    /// A new worker joins at once, whatever the dead one held, and settles everything; then it leaves.
    fn successor(&self, generation: &Generation, number: u32) {
        let mut child = self.settler(generation, number);
        child.tell("leave");
        child.ended_well();
    }

    fn settler(&self, generation: &Generation, number: u32) -> Child {
        let begun = Instant::now();
        // Not to wait at all: the lock is free.
        let join = Join::worker(Some(number)).respawned(true).wait(Wait::Try);
        let node = self.node.clone();
        let mut child = fork(|line| {
            let (worker, transitions) = generation.join(join).expect("join after a death");
            self.callbacks.run(transitions);
            let mut watch = worker.watch().expect("a watch");
            settle(&mut watch, &node, self.callbacks);
            line.say("settled");
            line.expect("leave");
            self.callbacks.run(worker.leave(Wait::Timeout).expect("leave"));
            line.say("done");
            0
        });
        child.expect("settled");
        // The lock itself is free at the death; the rest is forking and settling on a busy machine.
        assert!(begun.elapsed() < Duration::from_millis(900), "it took {:?}", begun.elapsed());
        child
    }

    /// The node is at rest, and everything that happened is told.
    fn check(&mut self) {
        let snapshot = self.node.snapshot();
        let left: Vec<_> = snapshot.processes.iter().filter(|p| p.role != Role::Master).collect();
        assert!(left.is_empty(), "left in the table: {left:?}");
        assert!(snapshot.generations.is_empty(), "left in the table: {:?}", snapshot.generations);
        assert!(snapshot.holder.is_none(), "the lock is held: {:?}", snapshot.holder);
        let counted: u64 = snapshot.event_counts.iter().map(|(_, number)| number).sum();
        assert_eq!(counted, snapshot.head, "each event is counted once: {:?}", snapshot.event_counts);
        let events = news(&self.node, &mut self.cursor.clone());
        check(&events, &self.callbacks.all(), &self.truth);
    }

    fn explain(&self) {
        let offset = self.tally().offset.load(SeqCst);
        let fate = if self.survived { "which it survived" } else { "at offset" };
        eprintln!("the victim was killed before store {}, {fate} {offset} of the registry", self.kill_at);
        print(
            &self.node.events(&mut self.cursor.clone(), usize::MAX).events,
            &self.callbacks.all(),
            &self.truth,
        );
        eprintln!("{:#?}", self.node.snapshot());
    }
}

/// A victim that dies as it joins.
fn dies_joining(world: &mut World, generation: &Generation, number: u32) {
    let callbacks = world.callbacks;
    let join =
        || drop(callbacks.run(generation.join(Join::worker(Some(number)).wait(Wait::Try)).expect("join").1));
    world.victim(|| (), |_| (), |()| join());
}

/// A victim that joins in peace; what it dies of is up to `act`.
fn dies_at_work(
    world: &mut World,
    generation: &Generation,
    number: u32,
    act: impl FnOnce(&Worker, Callbacks),
) {
    let callbacks = world.callbacks;
    let join = || {
        let (worker, transitions) = generation.join(Join::worker(Some(number))).expect("join");
        callbacks.run(transitions);
        worker
    };
    world.victim(join, |_| (), |worker| act(worker, callbacks));
}

fn dies_leaving(world: &mut World, generation: &Generation, number: u32) {
    dies_at_work(world, generation, number, |worker, callbacks| {
        callbacks.run(worker.leave(Wait::Timeout).expect("leave"));
    });
}

/// A victim that is the sentinel, and dies as it settles what has come up `meanwhile`.
fn dies_settling(
    world: &mut World,
    generation: &Generation,
    number: u32,
    meanwhile: impl FnOnce(&mut World),
) {
    let callbacks = world.callbacks;
    let join = || {
        let (worker, transitions) = generation.join(Join::worker(Some(number))).expect("join");
        callbacks.run(transitions);
        worker.watch().expect("a watch")
    };
    let node = world.node.clone();
    world.victim(join, meanwhile, |watch| settle(watch, &node, callbacks));
}

#[test]
fn a_worker_dies_as_it_joins_beside_another() {
    at_every_store(|world| {
        let generation = world.begin(2);
        let mut sibling = world.quiet(&generation, 0);
        dies_joining(world, &generation, 1);
        let mut successor = world.settler(&generation, 1);
        sibling.tell("leave");
        successor.tell("leave");
    });
}

#[test]
fn the_first_worker_dies_as_it_joins() {
    at_every_store(|world| {
        let generation = world.begin(1);
        dies_joining(world, &generation, 0);
        world.successor(&generation, 0);
    });
}

#[test]
fn the_last_worker_dies_as_it_leaves() {
    at_every_store(|world| {
        let generation = world.begin(1);
        dies_leaving(world, &generation, 0);
        world.successor(&generation, 0);
    });
}

#[test]
fn one_of_two_workers_dies_as_it_leaves() {
    at_every_store(|world| {
        let generation = world.begin(2);
        let mut sibling = world.quiet(&generation, 0);
        dies_leaving(world, &generation, 1);
        // Nobody else is there: what the sibling settles as it leaves must be all.
        sibling.tell("leave");
    });
}

#[test]
fn the_last_worker_of_an_old_generation_dies_as_it_leaves() {
    at_every_store(|world| {
        let old = world.begin(1);
        let (mut new, mut sibling) = (None, None);
        let callbacks = world.callbacks;
        let drains = || {
            let (worker, transitions) = old.join(Join::worker(Some(0))).expect("join");
            callbacks.run(transitions);
            callbacks.run(worker.drain(Wait::Timeout).expect("drain"));
            worker
        };
        let reload = |world: &mut World| {
            let generation = new.insert(world.begin(1));
            sibling = Some(world.quiet(generation, 0));
        };
        world.victim(drains, reload, |worker| {
            callbacks.run(worker.leave(Wait::Timeout).expect("leave"));
        });
        world.successor(&new.expect("begun"), 1);
        sibling.expect("forked").tell("leave");
    });
}

#[test]
fn a_worker_dies_as_it_begins_to_drain() {
    at_every_store(|world| {
        let generation = world.begin(2);
        let mut sibling = world.quiet(&generation, 0);
        dies_at_work(world, &generation, 1, |worker, callbacks| {
            callbacks.run(worker.drain(Wait::Timeout).expect("drain"));
        });
        world.successor(&generation, 1);
        sibling.tell("leave");
    });
}

#[test]
fn the_sentinel_dies_as_it_reports_a_death() {
    at_every_store(|world| {
        let generation = world.begin(3);
        let mut sibling = world.quiet(&generation, 0);
        let mut other = world.quiet(&generation, 1);
        dies_settling(world, &generation, 2, |world| world.kill(&mut other));
        world.successor(&generation, 1);
        sibling.tell("leave");
    });
}

#[test]
fn the_sentinel_dies_as_it_reports_the_end_of_a_generation() {
    at_every_store(|world| {
        let old = world.begin(1);
        let mut last = world.quiet(&old, 0);
        let new = world.begin(2);
        last.tell("drain");
        let mut sibling = world.quiet(&new, 0);
        dies_settling(world, &new, 1, |world| world.kill(&mut last));
        world.successor(&new, 1);
        sibling.tell("leave");
    });
}

#[test]
fn the_sentinel_dies_as_it_reports_an_abandoned_generation() {
    at_every_store(|world| {
        let generation = world.begin(2);
        let mut sibling = world.quiet(&generation, 0);
        dies_settling(world, &generation, 1, |world| {
            let (ghost, transitions) =
                world.master.begin(Begin::new().workers(2), Wait::Timeout).expect("begin");
            world.callbacks.run(transitions);
            world.master.abandon(ghost.id());
        });
        world.successor(&generation, 1);
        sibling.tell("leave");
    });
}

/// A process that died in a callback has left the table in need of repair: whoever repairs it dies too.
#[test]
fn a_worker_dies_as_it_repairs() {
    at_every_store(|world| {
        let generation = world.begin(3);
        let mut sibling = world.quiet(&generation, 0);
        let mut other = world.quiet(&generation, 1);
        world.kill(&mut other);
        world.callbacks.plan(Kind::WorkerDied, Act::Die, 1, Duration::ZERO);
        let (callbacks, node) = (world.callbacks, world.node.clone());
        let mut first = fork(|_| {
            let (worker, transitions) = generation.join(Join::worker(Some(2)).wait(Wait::Try)).expect("join");
            callbacks.run(transitions);
            settle(&mut worker.watch().expect("a watch"), &node, callbacks);
            0
        });
        let status = first.wait();
        assert_eq!(status, libc::SIGKILL, "it was to die in the callback");
        world.died(&first, status);
        dies_joining(world, &generation, 1);
        world.successor(&generation, 2);
        sibling.tell("leave");
    });
}

/// What a dead one had half claimed is free again: nothing is lost of a table that nobody has used before.
#[test]
fn no_slot_and_no_generation_is_lost() {
    at_every_store_of_a_new_node(|world| {
        let generation = world.begin(1);
        dies_joining(world, &generation, 0);
        world.successor(&generation, 0);
        let generation = world.begin(15);
        let join = |number| {
            let join = Join::worker(Some(number)).wait(Wait::For(Duration::from_secs(1)));
            worker(&generation, world.callbacks, Habit::Quiet, join)
        };
        // All slots but the master's.
        let mut workers: Vec<Child> = (0..15).map(join).collect();
        workers.iter_mut().for_each(|w| w.tell("leave"));
    });
}

/// A process that hangs, and whose heartbeat is therefore overdue, as far as the others can see.
fn hangs(world: &World, child: &Child) {
    registry::silence(&world.place.registry(), child.pid());
}

#[test]
fn the_sentinel_dies_as_it_reports_a_stalled_worker() {
    at_every_store(|world| {
        let generation = world.begin(3);
        let mut sibling = world.quiet(&generation, 0);
        let mut other = world.quiet(&generation, 1);
        dies_settling(world, &generation, 2, |world| hangs(world, &other));
        let mut successor = world.settler(&generation, 1);
        world.kill(&mut other);
        sibling.tell("leave");
        successor.tell("leave");
        assert!(!world.callbacks.about(Kind::WorkerStalled).is_empty());
    });
}

/// The same without the trick, and with others at work: killed by the clock, anywhere in the worker's life.
#[test]
fn a_worker_dies_at_any_moment_of_its_life() {
    let _alone = alone();
    let mut world = World::new();
    let mut random = family::Random::new(7);
    let begun = Instant::now();
    let fates = [Cell::new(0), Cell::new(0)];
    while begun.elapsed() < Duration::from_secs(2) {
        let moment = Duration::from_micros(random.below(300));
        let scenario = |world: &mut World| {
            world.truth.racing = true;
            let generation = world.begin(3);
            let callbacks = world.callbacks;
            let serving = |number| worker(&generation, callbacks, Habit::Serving, Join::worker(Some(number)));
            let mut siblings = [serving(0), serving(1)];
            let mut victim = fork(|line| {
                line.say("ready");
                let (worker, transitions) = generation.join(Join::worker(Some(2))).expect("join");
                callbacks.run(transitions);
                let mut watch = worker.watch().expect("a watch");
                while let Err(e) = watch.process().map(|transitions| callbacks.run(transitions)) {
                    assert!(e.is_busy(), "{e}");
                }
                callbacks.run(worker.drain(Wait::Timeout).expect("drain"));
                callbacks.run(worker.leave(Wait::Timeout).expect("leave"));
                0
            });
            victim.expect("ready");
            std::thread::sleep(moment);
            world.kill(&mut victim);
            let fate = &fates[usize::from(world.callbacks.about(Kind::WorkerExited).is_empty())];
            fate.set(fate.get() + 1);
            let mut third = serving(2);
            family::wait_for("the death to be reported", || {
                world.node.snapshot().processes.iter().all(|p| p.liveness == Liveness::Alive).then_some(())
            });
            siblings.iter_mut().chain([&mut third]).for_each(|w| w.tell("leave"));
        };
        world.run(0, scenario);
    }
    eprintln!("{} left, {} died before that", fates[0].get(), fates[1].get());
    assert!(fates.iter().all(|n| n.get() > 0), "{fates:?}");
}
