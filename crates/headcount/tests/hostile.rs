//! A worker that means harm writes whatever it likes into the whole registry, all the time. The master comes to no
//! harm: it does not crash, it does not hang, and it goes on.

mod family;

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use headcount::{Begin, Cause, Cursor, Generation, Join, Liveness, Master, Options, Wait};

use family::home::{Home, leave_all};
use family::worker::{Habit, worker};
use family::{Child, Place, Random, alone, fork, registry};

/// In words: the size of a slot and of a generation.
const SLOT: u64 = 192 / 8;
const GENERATION: u64 = 128 / 8;

/// Fills all tables with records that pass for real ones: as much as possible to see to.
fn plausible_nonsense(words: &[AtomicU64], random: &mut Random) {
    let slots = words[1].load(SeqCst) >> 32;
    let slots = if slots * (SLOT + GENERATION) * 8 < words.len() as u64 * 8 { slots } else { 16 };
    words[176 / 8].store(slots << 32 | slots, SeqCst);
    let namespace = words[248 / 8].load(SeqCst) >> 32;
    let tables = [(512, SLOT, 10), (512 + slots * SLOT, GENERATION, 8)];
    for (from, size, started) in tables {
        for record in 0..slots {
            let at = (from + record * size) as usize;
            let Some(record) = words.get(at..at + size as usize) else { return };
            record.iter().for_each(|word| word.store(random.below(3), SeqCst));
            // version; generation or id; pid and number, or phase and cause; role, or master's slot
            record[0].store(random.below(100) * 2, SeqCst);
            record[1].store(random.below(slots), SeqCst);
            record[2].store(random.below(4) | random.below(3) << 32, SeqCst);
            record[3].store(random.below(4) | random.below(3) << 32, SeqCst);
            record[started].store(1, SeqCst);
            if let Some(word) = record.get(registry::NAMESPACE) {
                // Mostly of our own namespace, so that its id is asked for.
                word.store(namespace.wrapping_add(random.below(4) / 3) | random.below(3) << 32, SeqCst);
            }
        }
    }
}

/// A name for the node lock and for those who wait to join: nobody, a process that is none of the node's, or any.
fn name(random: &mut Random) -> u64 {
    let somebody = [1, std::process::id(), std::os::unix::process::parent_id(), random.below(1 << 15) as u32];
    let pid = u64::from(somebody[random.below(4) as usize]);
    random.below(4) << 62 | pid << 40 | random.below(3)
}

/// Writes until it is killed.
fn vandal(path: &std::path::Path, seed: u64, master: u64) -> Child {
    let words = registry::words(path);
    fork(|line| {
        let mut random = Random::new(seed);
        line.say("ready");
        let begun = Instant::now();
        while begun.elapsed() < family::PATIENCE {
            if random.below(20_000) == 0 {
                plausible_nonsense(words, &mut random);
            }
            if random.below(64) == 0 {
                // A master that is named without holding the lock.
                let name = if random.below(4) == 0 { master } else { name(&mut random) };
                words[registry::LOCK + random.below(17) as usize].store(name, SeqCst);
            }
            let at = match random.below(4) {
                // The header and the tables are small, and what is in them matters most.
                0 => random.below(97) as usize,
                1 => 512 + random.below(512) as usize % (words.len() - 512),
                _ => random.below(words.len() as u64) as usize,
            };
            let value = match random.below(6) {
                0 => random.next(),
                1 => random.below(70),
                2 => u64::MAX,
                3 => words[random.below(words.len() as u64) as usize].load(SeqCst),
                4 => words[at].load(SeqCst).wrapping_add(1),
                _ => u64::from(std::process::id()) | random.below(8) << 32,
            };
            words[at].store(value, SeqCst);
        }
        0
    })
}

/// The longest that one call has taken.
struct Slowest(Duration, &'static str);

impl Slowest {
    fn time<T>(&mut self, what: &'static str, call: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let answer = call();
        if begun.elapsed() > self.0 {
            *self = Slowest(begun.elapsed(), what);
        }
        answer
    }
}

/// Everything that a process of the node does, again and again, whatever comes of it.
fn busy_life(master: &Master, generation: &Generation, time: Duration, seed: u64) -> (u32, Slowest) {
    let node = master.node();
    let mut random = Random::new(seed);
    let mut slowest = Slowest(Duration::ZERO, "");
    let mut rounds = 0;
    let begun = Instant::now();
    while begun.elapsed() < time {
        rounds += 1;
        let _ = slowest.time("snapshot", || node.snapshot());
        let _ = slowest.time("events", || node.events(&mut Cursor::at(random.below(300)), usize::MAX));
        slowest.time("child_exited", || node.child_exited(random.below(70) as u32, ExitStatus::from_raw(9)));
        let generation = match random.below(3) {
            0 => Generation::of(node, random.below(70)),
            _ => generation.clone(),
        };
        let joined = slowest.time("join", || {
            let (worker, transitions) = generation.join(Join::worker(Some(random.below(4) as u32))).ok()?;
            transitions.run(|_| ());
            Some(worker)
        });
        if let Some(worker) = joined {
            worker.beat();
            slowest.time("watch", || {
                let Ok(mut watch) = worker.watch() else { return };
                for _ in 0..4 {
                    if let Ok(transitions) = watch.process() {
                        transitions.run(|_| ());
                    }
                }
            });
            slowest.time("leave", || {
                if let Ok(transitions) = worker.drain(Wait::Timeout) {
                    transitions.run(|_| ());
                }
                if let Ok(transitions) = worker.leave(Wait::Timeout) {
                    transitions.run(|_| ());
                }
            });
        }
        let begin = match random.below(3) {
            0 => Begin::new().because(Cause::Start),
            _ => Begin::new().workers(random.below(5) as u32),
        };
        slowest.time("begin", || {
            let Ok((generation, transitions)) = master.begin(begin, Wait::Timeout) else { return };
            transitions.run(|_| ());
            if random.below(2) == 0 {
                master.commit(generation.id());
            } else {
                master.abandon(generation.id());
            }
            let _ = generation.mark(random.below(32) as u32);
        });
        slowest.time("adopt_master", || drop(master.adopt(Wait::Timeout)));
        drop(node.take_notices());
    }
    (rounds, slowest)
}

fn vandalised(options: impl Fn(&Place) -> Options, seed: u64, time: Duration) {
    let place = Place::new();
    let mut master = fork(|line| {
        let master = options(&place).lock_timeout(Duration::from_secs(2)).open().expect("open");
        let (generation, transitions) = master.begin(Begin::new().workers(1), Wait::Timeout).expect("begin");
        transitions.run(|_| ());
        master.commit(generation.id());
        line.say("ready");
        line.expect("go");
        let mut other = fork(|line| {
            let (rounds, _) = busy_life(&master, &generation, time, seed + 1);
            line.say(&rounds.to_string());
            0
        });
        let (rounds, slowest) = busy_life(&master, &generation, time, seed);
        let others = other.hear().unwrap_or_default();
        other.ended_well();
        line.say(&format!(
            "{rounds} and {others} rounds, the slowest call {} with {:?}",
            slowest.1, slowest.0
        ));
        line.say(&slowest.0.as_millis().to_string());
        line.expect("the vandal is gone");
        leave(&master);
        0
    });
    master.expect("ready");
    let mut vandal = vandal(&place.registry(), seed, registry::name_of(master.pid()));
    vandal.expect("ready");
    master.say("go");
    eprintln!("seed {seed}: {}", master.hear().expect("the master lives"));
    let slowest: u64 = master.hear().expect("a figure").parse().expect("a number");
    // Calls that wait for the lock do so for 2 s at most; a hold ends after a bounded number of steps.
    assert!(slowest < 10_000, "a call took {slowest} ms");
    vandal.kill();
    master.say("the vandal is gone");
    master.ended_well();

    // And the next server starts on what is left, or beside it.
    let mut next = fork(|_| {
        let master = options(&place).open().expect("open");
        let (generation, transitions) = master.begin(Begin::new().workers(1), Wait::Timeout).expect("begin");
        transitions.run(|_| ());
        master.commit(generation.id());
        let callbacks = family::callbacks::Callbacks::new();
        let mut child = worker(&generation, callbacks, Habit::Serving, Join::worker(Some(0)));
        assert!(master.node().snapshot().processes.iter().any(|p| p.pid == child.pid()));
        child.tell("leave");
        child.ended_well();
        0
    });
    next.ended_well();
}

fn leave(master: &Master) {
    if let Ok(transitions) = master.leave(Wait::Timeout) {
        transitions.run(|_| ());
    }
}

#[test]
fn a_vandal_harms_only_the_registry() {
    let _alone = alone();
    for seed in 1..=5 {
        vandalised(|place| place.options(), seed, Duration::from_millis(500));
    }
}

#[test]
fn a_vandal_in_a_registry_of_the_default_size_holds_nobody_up() {
    let _alone = alone();
    vandalised(|place| Options::new("node").path(place.registry()), 6, Duration::from_secs(2));
}

/// What a worker has written into the table of others is set right by the next reload.
#[test]
fn a_master_heals_its_own_slot_and_takes_strangers_out() {
    let _alone = alone();
    let mut home = Home::new();
    let first = home.begin(1);
    let mut old = home.serving(&first, 0);
    let registry = home.place.registry();
    let master = std::process::id();
    let mine = registry::slot_of(&registry, master);
    let theirs = registry::slot_of(&registry, old.pid());
    // A live process that is none of the node, in a copy of the worker's slot; and the master's own is garbage.
    let mut stranger = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
    let forged = registry::slot(&registry, 9);
    for (to, from) in forged.iter().zip(theirs) {
        to.store(from.load(SeqCst), SeqCst);
    }
    let name = registry::name_of(stranger.id());
    forged[2].store(u64::from(stranger.id()), SeqCst);
    forged[registry::BIRTH].store(name & ((1 << 40) - 1), SeqCst);
    mine[registry::BIRTH].fetch_add(1, SeqCst);
    // `slots_used`
    registry::words(&registry)[176 / 8].fetch_add(10, SeqCst);

    let second = home.begin(1);
    let mut new = home.serving(&second, 0);
    leave_all([&mut old]);
    let snapshot = home.node.snapshot();
    assert!(snapshot.processes.iter().all(|p| p.pid != stranger.id()), "{snapshot:#?}");
    let known = snapshot.generations.iter().find(|g| g.id == second.id()).expect("it is there");
    assert_eq!((known.master, known.master_alive), (master, Some(true)));
    assert_eq!(snapshot.total, 1);

    // Somebody of whom nobody can know whether he is alive, in the master's own slot.
    let mine = registry::slot_of(&registry, master);
    mine[2].store(1, SeqCst);
    mine[registry::NAMESPACE].store(0, SeqCst);
    // `lock_tag`
    mine[136 / 8].store(1, SeqCst);
    // And nobody is to know of it: `slots_used`, `generations_used`.
    registry::words(&registry)[176 / 8].store(0, SeqCst);
    let third = home.begin(1);
    let mut newest = home.serving(&third, 0);
    leave_all([&mut new]);
    let snapshot = home.node.snapshot();
    let mut known: Vec<_> = snapshot.processes.iter().map(|p| (p.pid, p.liveness)).collect();
    known.sort_unstable_by_key(|(pid, _)| *pid);
    let mut truth = [(master, Liveness::Alive), (newest.pid(), Liveness::Alive)];
    truth.sort_unstable_by_key(|(pid, _)| *pid);
    assert_eq!(known, truth, "{snapshot:#?}");
    leave_all([&mut newest]);
    stranger.kill().expect("kill");
    stranger.wait().expect("wait");
}

/// A worker sets the counter of generations back, or far ahead: a reload gets a number that no other generation has, and its workers
/// are counted with it.
#[test]
fn a_new_generation_never_has_the_number_of_another() {
    const LAST: usize = 160 / 8;
    const LAST_GENERATION: u64 = 1 << 52;
    let _alone = alone();
    for counter in [0, 1, 2, LAST_GENERATION - 1, LAST_GENERATION, 1 << 53, u64::MAX] {
        let mut home = Home::new();
        let (first, second) = (home.begin(1), home.begin(1));
        let mut old = home.serving(&first, 0);
        let mut newer = home.serving(&second, 0);
        registry::words(&home.place.registry())[LAST].store(counter, SeqCst);
        let third = home.begin(1);
        let mut newest = home.serving(&third, 0);
        let snapshot = home.node.snapshot();
        let numbers: Vec<_> = snapshot.generations.iter().map(|g| g.id).collect();
        assert!(third.id() > second.id(), "{counter}: {numbers:?}");
        assert_eq!(numbers, [first.id(), second.id(), third.id()], "{counter}");
        assert_eq!(snapshot.total, 3, "{counter}: {snapshot:#?}");
        leave_all([&mut old, &mut newer, &mut newest]);
    }
}

/// A record that a worker has made up, with a number that no generation ever has, is not the newest one after the next reload.
#[test]
fn a_generation_beyond_all_numbers_does_not_outlive_a_reload() {
    let _alone = alone();
    for number in [(1 << 52) + 1, (1 << 53) - 1, u64::MAX] {
        let mut home = Home::new();
        let first = home.begin(1);
        let mut old = home.serving(&first, 0);
        let words = registry::words(&home.place.registry());
        let slots = words[1].load(SeqCst) >> 32;
        // The first generation's record once more, behind it, as abandoned.
        let at = |record: u64| (512 + slots * SLOT + record * GENERATION) as usize;
        for word in 0..GENERATION as usize {
            words[at(3) + word].store(words[at(0) + word].load(SeqCst), SeqCst);
        }
        words[at(3) + 1].store(number, SeqCst);
        // `slots_used`, `generations_used`
        words[176 / 8].fetch_add(3 << 32, SeqCst);
        let second = home.begin(1);
        let mut new = home.serving(&second, 0);
        let snapshot = home.node.snapshot();
        let numbers: Vec<_> = snapshot.generations.iter().map(|g| g.id).collect();
        assert_eq!(numbers, [first.id(), second.id()], "{number}");
        leave_all([&mut old, &mut new]);
    }
}
