//! What must be true of every journal and of the callbacks that were run, whoever died when.

use std::collections::{BTreeMap, HashMap};

use headcount::{Event, Kind};

use super::callbacks::Run;

/// What the test knows of what really happened, from `waitpid` and from what it did itself.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// Processes that are dead, and the number of the newest event at that time.
    pub dead: Vec<(u32, u64)>,
    /// Generations that are committed, and the number of the newest event at that time.
    pub committed: Vec<(u64, u64)>,
    /// Others were at work while processes died, so that nobody knows the counts of those moments.
    pub racing: bool,
    /// Nobody survived who could have run callbacks: only the journal is complete.
    pub no_survivors: bool,
}

impl Truth {
    fn was_alive(&self, pid: u32, seq: u64) -> bool {
        !self.dead.iter().any(|&(dead, head)| dead == pid && seq > head)
    }
}

/// Kinds whose callbacks run again elsewhere when their runner dies in them.
fn must_run(kind: Kind) -> bool {
    !matches!(kind, Kind::WorkerStarted | Kind::WorkerDraining | Kind::WorkerExited) && kind.has_callback()
}

/// For people who look into a failure.
pub fn print(events: &[Event], runs: &[Run], truth: &Truth) {
    eprintln!("{truth:?}");
    for event in events {
        let about = if event.detail > 0 { format!(" about {}", event.detail) } else { String::new() };
        eprintln!(
            "  {} {} g{} pid {} cause {} by {} {:?}{about}",
            event.seq, event.kind, event.generation, event.pid, event.cause, event.reporter_pid, event.counts,
        );
    }
    for run in runs {
        eprintln!("  {run:?}");
    }
}

/// Checks everything. To be called when the node is at rest and without workers.
pub fn check(events: &[Event], runs: &[Run], truth: &Truth) {
    numbers(events);
    lives(events);
    generations(events);
    if !truth.racing {
        counts(events, truth);
    }
    callbacks(events, runs, truth);
    callback_deaths(events, runs, truth);
}

fn numbers(events: &[Event]) {
    for pair in events.windows(2) {
        assert_eq!(pair[1].seq, pair[0].seq + 1, "a gap");
        assert!(pair[1].boot_ns >= pair[0].boot_ns, "time runs backwards");
    }
}

/// Each worker that was started has exited or died, once; no other has done either.
fn lives(events: &[Event]) {
    let mut lives: BTreeMap<(u64, u32), Vec<Kind>> = BTreeMap::new();
    for e in events.iter().filter(|e| {
        matches!(e.kind, Kind::WorkerStarted | Kind::WorkerDraining | Kind::WorkerExited | Kind::WorkerDied)
    }) {
        lives.entry((e.generation, e.pid)).or_default().push(e.kind);
    }
    for ((generation, pid), life) in lives {
        use Kind::{WorkerDied, WorkerDraining, WorkerExited, WorkerStarted};
        let right = matches!(
            life[..],
            [WorkerStarted, WorkerDied | WorkerExited]
                | [WorkerStarted, WorkerDraining, WorkerDied | WorkerExited]
        );
        assert!(right, "process {pid} of generation {generation}: {life:?}");
    }
}

/// A generation starts once and ends once, or is abandoned; only when it is resumed it may do so again.
fn generations(events: &[Event]) {
    let mut lives: BTreeMap<u64, Vec<&Event>> = BTreeMap::new();
    for e in events {
        if matches!(e.kind, Kind::GenerationStarted | Kind::GenerationEnded | Kind::GenerationAbandoned) {
            lives.entry(e.generation).or_default().push(e);
        }
    }
    for (id, life) in lives {
        for (i, e) in life.iter().enumerate() {
            let right = match e.kind {
                Kind::GenerationStarted => i % 2 == 0 && (i == 0 || e.cause == headcount::Cause::Resume),
                Kind::GenerationEnded => i % 2 == 1,
                _ => i == 1 && life.len() == 2,
            };
            assert!(right, "generation {id}: {:?}", life.iter().map(|e| (e.seq, e.kind)).collect::<Vec<_>>());
        }
        assert_eq!(life.len() % 2, 0, "generation {id} has not ended");
        let (first, last) = (life[0].seq, life[life.len() - 1].seq);
        let outside = events.iter().find(|e| e.generation == id && e.seq < first);
        assert!(outside.is_none(), "generation {id}: {outside:?} before its start");
        let outside = events.iter().find(|e| {
            e.generation == id && e.seq > last && !matches!(e.kind, Kind::CallbackDied | Kind::CallbackFailed)
        });
        assert!(outside.is_none(), "generation {id}: {outside:?} after its end");
    }
}

/// The counts in each event are those of the processes that were alive then.
fn counts(events: &[Event], truth: &Truth) {
    for e in events.iter().filter(|e| e.kind.has_callback() && e.kind != Kind::MasterLost) {
        let mut live: HashMap<u32, (u64, bool)> = HashMap::new();
        for other in events.iter().filter(|o| o.seq <= e.seq) {
            match other.kind {
                Kind::WorkerStarted => _ = live.insert(other.pid, (other.generation, false)),
                Kind::WorkerDraining => _ = live.insert(other.pid, (other.generation, true)),
                // The exiting one is still counted in its own event, but drains no more.
                Kind::WorkerExited if other.seq == e.seq => {
                    _ = live.insert(other.pid, (other.generation, false))
                }
                Kind::WorkerExited | Kind::WorkerDied => _ = live.remove(&other.pid),
                _ => {}
            }
        }
        let stalled = |pid: u32| {
            let about =
                |o: &&Event| o.pid == pid && matches!(o.kind, Kind::WorkerStalled | Kind::WorkerRecovered);
            let last = events.iter().filter(|o| o.seq <= e.seq).rfind(about);
            last.is_some_and(|o| o.kind == Kind::WorkerStalled)
        };
        live.retain(|&pid, _| truth.was_alive(pid, e.seq) && !stalled(pid));
        let tally = |id: u64| {
            let mine = live.values().filter(|(g, _)| *g == id);
            (mine.clone().count() as u32, mine.filter(|(_, draining)| *draining).count() as u32)
        };
        let ended = |id: u64| {
            events.iter().any(|o| o.kind == Kind::GenerationEnded && o.generation == id && o.seq <= e.seq)
        };
        let there = truth.committed.iter().filter(|&&(id, head)| head < e.seq && !ended(id)).map(|c| c.0);
        let prev = there.clone().filter(|&id| id < e.generation).max();
        let next = there.filter(|&id| id > e.generation).min();
        let c = e.counts;
        let found = (c.prev, c.mine, c.next, c.total, c.draining, c.prev_draining, c.next_draining);
        let expected = (
            prev.map(|id| tally(id).0),
            tally(e.generation).0,
            next.map(|id| tally(id).0),
            live.len() as u32,
            tally(e.generation).1,
            prev.map_or(0, |id| tally(id).1),
            next.map_or(0, |id| tally(id).1),
        );
        assert_eq!(
            found, expected,
            "counts (prev, mine, next, total, draining …) of {e:?}; alive were {live:?}"
        );
    }
}

/// Each callback ran once. One whose runner died ran again, marked so, where that was possible.
fn callbacks(events: &[Event], runs: &[Run], truth: &Truth) {
    // What is found at the next start has no callback; nor has, any more, what its dead master had begun.
    let swept = |e: &Event| {
        events.iter().any(|o| o.generation == e.generation && o.cause == headcount::Cause::Unclean)
    };
    for e in events.iter().filter(|e| e.kind.has_callback() && !swept(e)) {
        let own: Vec<&Run> = runs.iter().filter(|r| r.seq == e.seq).collect();
        for (i, run) in own.iter().enumerate() {
            assert_eq!((run.kind, run.subject, run.generation), (e.kind, e.pid, e.generation), "{e:?}");
            // A runner that died just before its handler began counts as one that died in it.
            let begun = events
                .iter()
                .any(|o| o.kind == Kind::CallbackDied && o.detail == e.seq && o.pid != run.runner);
            assert_eq!(run.retry, i > 0 || begun, "run {i} of the callback of {e:?}: {run:?}");
            let again = own.get(i + 1).is_some();
            let died = truth.dead.iter().any(|d| d.0 == run.runner);
            assert!(!again || died, "the callback of {e:?} ran twice, and its first runner lives");
            assert!(run.ended || died, "the callback of {e:?} has not ended, and its runner lives");
        }
        let ended = own.iter().any(|r| r.ended);
        let reporter_died = truth.dead.iter().any(|d| d.0 == e.reporter_pid);
        if must_run(e.kind) {
            assert!(ended || truth.no_survivors, "the callback of {e:?} has not run to its end: {own:?}");
        } else {
            assert!(own.len() <= 1, "the callback of {e:?} ran {} times", own.len());
            assert!(ended || reporter_died, "the callback of {e:?} has not run");
        }
    }
    let known = |run: &&Run| !events.iter().any(|e| e.seq == run.seq);
    let stray = runs.iter().find(known);
    assert!(stray.is_none(), "a callback about no event: {stray:?}");
}

/// A process that died in a callback is in the journal with that callback, once.
fn callback_deaths(events: &[Event], runs: &[Run], truth: &Truth) {
    for run in runs.iter().filter(|r| !r.ended) {
        let told = events
            .iter()
            .filter(|e| e.kind == Kind::CallbackDied && e.detail == run.seq && e.pid == run.runner);
        assert_eq!(told.count(), 1, "callback_died for {run:?}");
    }
    for e in events.iter().filter(|e| e.kind == Kind::CallbackDied) {
        let about = events.iter().find(|o| o.seq == e.detail);
        assert!(about.is_some_and(|o| o.kind.has_callback()), "{e:?} is about {about:?}");
        assert!(truth.dead.iter().any(|d| d.0 == e.pid), "{e:?}: that process lives");
        let same =
            events.iter().filter(|o| o.kind == Kind::CallbackDied && o.detail == e.detail && o.pid == e.pid);
        assert_eq!(same.count(), 1, "{e:?} is there twice");
        // Begun and not ended, or so little outside of it that nobody can tell.
        let runs: Vec<_> = runs.iter().filter(|r| r.seq == e.detail && r.runner == e.pid).collect();
        assert!(runs.len() <= 1, "{e:?}: {runs:?}");
    }
}
