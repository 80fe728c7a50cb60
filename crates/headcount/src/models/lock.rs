//! The node lock of `engine/node_lock.rs`: every order of the loads and stores of those who want it, and a death between
//! any two of them. Exhaustive, with stateright. `loom` sees to what these loads and stores may see of each other.
//!
//! Modelled, since it is made of atomics and of what the kernel says: the word, its release, the futex, the name of who holds it.

use stateright::{Checker, Model, Property};

/// How the lock is broken, to see that it is missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Broken {
    Nothing,
    /// The word is overwritten, and not exchanged for the one that was seen.
    Overwritten,
    /// A waiter does not look by himself.
    OnlyWoken,
    /// The holder does not sign.
    Unsigned,
}

/// Where a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum At {
    /// It will want the lock so often.
    Idle,
    /// It has read when the lock was last released.
    Wants {
        released: u8,
    },
    /// And who is named.
    Saw {
        released: u8,
        named: u8,
    },
    /// Who is named is none, or dead: so he takes it.
    Takes {
        named: u8,
    },
    Waits {
        released: u8,
    },
    Sleeps,
    /// It is named. `repairs`: somebody died before.
    Entered,
    Repairs,
    Works,
    /// Its signature is gone.
    Unsigned,
    /// The word too.
    Freed,
    /// And it has said so.
    Said,
    Dead,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Lock {
    /// 0, or a process by its place, from 1.
    word: u8,
    released: u8,
    signed: bool,
    /// The registry is in the middle of a change.
    is_dirty: bool,
    at: Vec<At>,
    turns: Vec<u8>,
    deaths: u8,
    /// Somebody worked on what another had left half-done.
    is_spoiled: bool,
}

#[derive(Clone, Copy, Debug)]
struct Bounds {
    processes: usize,
    turns: u8,
    deaths: u8,
    broken: Broken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Step(usize),
    /// This one wakes that one, or nobody.
    Wake(usize, Option<usize>),
    /// A sleeper looks by himself.
    Look(usize),
    Kill(usize),
}

impl Lock {
    fn is_dead(&self, named: u8) -> bool {
        named != 0 && self.at[usize::from(named) - 1] == At::Dead
    }

    fn holds(&self, i: usize) -> bool {
        matches!(self.at[i], At::Entered | At::Repairs | At::Works | At::Unsigned)
    }
}

impl Bounds {
    fn due(&self, lock: &Lock) -> Vec<Action> {
        let sleepers: Vec<usize> = (0..self.processes).filter(|i| lock.at[*i] == At::Sleeps).collect();
        let mut due = Vec::new();
        for i in 0..self.processes {
            match lock.at[i] {
                At::Dead => {}
                At::Idle if lock.turns[i] == 0 => {}
                // It only looks again and again as long as that makes no difference.
                At::Sleeps => {
                    let is_over = lock.word == 0 || lock.is_dead(lock.word);
                    if is_over && self.broken != Broken::OnlyWoken {
                        due.push(Action::Look(i));
                    }
                }
                At::Said if !sleepers.is_empty() => {
                    due.extend(sleepers.iter().map(|s| Action::Wake(i, Some(*s))));
                }
                At::Said => due.push(Action::Wake(i, None)),
                _ => due.push(Action::Step(i)),
            }
        }
        due
    }

    fn step(&self, lock: &mut Lock, i: usize) {
        let me = i as u8 + 1;
        lock.at[i] = match lock.at[i] {
            At::Idle => At::Wants { released: lock.released },
            At::Wants { released } => At::Saw { released, named: lock.word },
            At::Saw { released, named } => match named == 0 || named == me || lock.is_dead(named) {
                true => At::Takes { named },
                false => At::Waits { released },
            },
            At::Takes { named } if lock.word == named || self.broken == Broken::Overwritten => {
                lock.word = me;
                At::Entered
            }
            At::Takes { .. } => At::Wants { released: lock.released },
            // The kernel compares before it lets anybody sleep.
            At::Waits { released } if lock.released == released => At::Sleeps,
            At::Waits { .. } => At::Wants { released: lock.released },
            At::Entered if lock.signed => At::Repairs,
            At::Entered => self.begin(lock),
            At::Repairs => {
                lock.is_dirty = false;
                self.begin(lock)
            }
            At::Works => {
                lock.is_dirty = false;
                lock.signed = false;
                At::Unsigned
            }
            At::Unsigned => {
                if lock.word == me {
                    lock.word = 0;
                }
                At::Freed
            }
            At::Freed => {
                lock.released = lock.released.wrapping_add(1);
                At::Said
            }
            at => at,
        };
    }

    fn begin(&self, lock: &mut Lock) -> At {
        lock.signed = self.broken != Broken::Unsigned;
        lock.is_spoiled |= lock.is_dirty;
        lock.is_dirty = true;
        At::Works
    }
}

impl Model for Bounds {
    type State = Lock;
    type Action = Action;

    fn init_states(&self) -> Vec<Lock> {
        vec![Lock {
            word: 0,
            released: 0,
            signed: false,
            is_dirty: false,
            at: vec![At::Idle; self.processes],
            turns: vec![self.turns; self.processes],
            deaths: 0,
            is_spoiled: false,
        }]
    }

    fn actions(&self, lock: &Lock, actions: &mut Vec<Action>) {
        actions.extend(self.due(lock));
        if lock.deaths < self.deaths {
            actions.extend((0..self.processes).filter(|i| lock.at[*i] != At::Dead).map(Action::Kill));
        }
    }

    fn next_state(&self, lock: &Lock, action: Action) -> Option<Lock> {
        let mut next = lock.clone();
        match action {
            Action::Step(i) => self.step(&mut next, i),
            Action::Look(i) => next.at[i] = At::Wants { released: next.released },
            Action::Wake(i, who) => {
                if let Some(who) = who {
                    next.at[who] = At::Wants { released: next.released };
                }
                next.at[i] = At::Idle;
                next.turns[i] -= 1;
            }
            Action::Kill(i) => {
                next.at[i] = At::Dead;
                next.deaths += 1;
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Bounds>> {
        vec![
            Property::always("one holder at a time", |model: &Bounds, lock: &Lock| {
                (0..model.processes).filter(|i| lock.holds(*i)).count() <= 1
            }),
            Property::always("what the dead left is made good first", |_, lock: &Lock| !lock.is_spoiled),
            Property::always("the lock is passed on", |model: &Bounds, lock: &Lock| {
                let is_served =
                    |i: usize| lock.at[i] == At::Dead || lock.at[i] == At::Idle && lock.turns[i] == 0;
                !model.due(lock).is_empty() || (0..model.processes).all(is_served)
            }),
            Property::sometimes("somebody dies who holds it", |_, lock: &Lock| {
                lock.is_dirty && lock.is_dead(lock.word)
            }),
        ]
    }
}

fn explore(bounds: Bounds) -> Vec<&'static str> {
    let begun = std::time::Instant::now();
    let checker = bounds.checker().spawn_bfs().join();
    let mut found: Vec<_> = checker.discoveries().into_keys().collect();
    found.sort_unstable();
    println!("{bounds:?}: {} states, {:.1?}, {found:?}", checker.unique_state_count(), begun.elapsed());
    found
}

#[test]
fn the_node_lock_has_one_holder_and_is_passed_on() {
    let all = Bounds { processes: 3, turns: 1, deaths: 2, broken: Broken::Nothing };
    assert_eq!(explore(all), ["somebody dies who holds it"]);
    // Without deaths, being woken is enough.
    let woken = Bounds { deaths: 0, broken: Broken::OnlyWoken, ..all };
    assert_eq!(explore(woken), [""; 0]);
}

#[test]
#[ignore = "a minute"]
fn the_node_lock_is_passed_on_again_and_again() {
    let all = Bounds { processes: 3, turns: 2, deaths: 2, broken: Broken::Nothing };
    assert_eq!(explore(all), ["somebody dies who holds it"]);
    assert_eq!(explore(Bounds { processes: 4, turns: 1, deaths: 3, ..all }), ["somebody dies who holds it"]);
}

#[test]
fn a_broken_lock_is_found_out() {
    let bounds = |broken| Bounds { processes: 3, turns: 1, deaths: 2, broken };
    assert!(explore(bounds(Broken::Overwritten)).contains(&"one holder at a time"));
    assert!(explore(bounds(Broken::OnlyWoken)).contains(&"the lock is passed on"));
    assert!(explore(bounds(Broken::Unsigned)).contains(&"what the dead left is made good first"));
}
