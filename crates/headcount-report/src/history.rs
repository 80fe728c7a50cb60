//! What the last minutes tell.

use std::collections::HashMap;
use std::time::Duration;

use headcount::{Cause, Event, Kind};

/// Deaths and respawns of the recent past, and whether they are a crash loop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct History {
    /// The workers that died, newest first.
    pub deaths: Vec<Death>,
    /// How many workers took the place of one that was gone.
    pub respawns: u32,
    /// Workers die soon after they were started, again and again.
    pub crash_loop: Option<CrashLoop>,
}

/// A worker's death.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Death {
    /// Its process id.
    pub pid: u32,
    /// Its number within its generation.
    pub worker_id: Option<u32>,
    /// Its generation.
    pub generation: u64,
    /// The signal that ended it, where the kernel tells.
    pub signal: Option<i32>,
    /// Its exit code, where the kernel tells.
    pub exit_code: Option<i32>,
    /// How long ago it was reported.
    pub age: Duration,
    /// How long it had lived, if the journal still has its start.
    pub lived: Option<Duration>,
}

/// A crash loop: the server looks healthy, and its workers don't live.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CrashLoop {
    /// How many workers died young within [`History::WINDOW`].
    pub deaths: u32,
    /// How long ago the last of them died.
    pub last: Duration,
}

impl History {
    /// What counts as recent.
    pub const WINDOW: Duration = Duration::from_secs(300);
    /// A worker that lived shorter than this died young.
    pub const YOUNG: Duration = Duration::from_secs(60);
    /// So many that died young are a crash loop,
    pub const LOOP_DEATHS: u32 = 3;
    /// for as long as the last of them died within this time.
    pub const LOOP_LASTS: Duration = Duration::from_secs(120);

    /// Reads it off the journal. `events` in order; `boot_ns` is now, as in [`headcount::Snapshot::boot_ns`].
    #[must_use]
    pub fn of<'a>(events: impl IntoIterator<Item = &'a Event>, boot_ns: u64) -> History {
        let mut started = HashMap::new();
        let mut history = History::default();
        for event in events {
            let age = Duration::from_nanos(boot_ns.saturating_sub(event.boot_ns));
            match event.kind {
                Kind::WorkerStarted => {
                    started.insert((event.generation, event.pid), event.boot_ns);
                    if event.cause == Cause::Respawn && age <= History::WINDOW {
                        history.respawns += 1;
                    }
                }
                Kind::WorkerDied if age <= History::WINDOW => {
                    let start = started.remove(&(event.generation, event.pid));
                    history.deaths.push(Death {
                        pid: event.pid,
                        worker_id: event.worker_id,
                        generation: event.generation,
                        signal: event.signal,
                        exit_code: event.exit_code,
                        age,
                        lived: start.map(|s| Duration::from_nanos(event.boot_ns.saturating_sub(s))),
                    });
                }
                _ => {}
            }
        }
        history.deaths.reverse();
        let mut young =
            history.deaths.iter().filter(|d| d.lived.is_some_and(|l| l < History::YOUNG)).peekable();
        if let Some(last) = young.peek().map(|d| d.age) {
            let deaths = u32::try_from(young.count()).unwrap_or(u32::MAX);
            if deaths >= History::LOOP_DEATHS && last <= History::LOOP_LASTS {
                history.crash_loop = Some(CrashLoop { deaths, last });
            }
        }
        history
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    const NOW: u64 = 10_000 * S;

    /// A worker that joined so many seconds ago, and died so many seconds after that.
    fn life(pid: u32, began: u64, lived: u64, cause: Cause) -> [Event; 2] {
        let at = |kind, cause, boot_ns| {
            let mut event = Event::new(kind, cause);
            (event.pid, event.generation, event.boot_ns) = (pid, 1, boot_ns);
            event
        };
        let start = NOW - began * S;
        let mut death = at(Kind::WorkerDied, Cause::Signal, start + lived * S);
        death.signal = Some(11);
        [at(Kind::WorkerStarted, cause, start), death]
    }

    fn of(lives: &[[Event; 2]]) -> History {
        let mut events = lives.concat();
        events.sort_by_key(|e| e.boot_ns);
        History::of(&events, NOW)
    }

    #[test]
    fn three_that_died_young_are_a_crash_loop() {
        let lives: Vec<_> = (0u32..3).map(|i| life(i, 30 - u64::from(i) * 10, 1, Cause::Respawn)).collect();
        let history = of(&lives);
        let seen: Vec<_> = history.deaths.iter().map(|d| (d.pid, d.age.as_secs(), d.signal)).collect();
        assert_eq!(seen, [(2, 9, Some(11)), (1, 19, Some(11)), (0, 29, Some(11))], "newest first");
        assert_eq!(history.respawns, 3);
        assert_eq!(history.crash_loop, Some(CrashLoop { deaths: 3, last: Duration::from_secs(9) }));
        assert_eq!(of(&lives[..2]).crash_loop, None, "two are not");
    }

    #[test]
    fn what_is_no_crash_loop() {
        let old: Vec<_> = (0..5).map(|i| life(i, 3_000, 2_990 + u64::from(i), Cause::Start)).collect();
        assert_eq!((of(&old).crash_loop, of(&old).deaths.len()), (None, 5), "they had lived for long");
        let over: Vec<_> = (0..5).map(|i| life(i, 200, 1, Cause::Start)).collect();
        assert_eq!((of(&over).crash_loop, of(&over).deaths.len()), (None, 5), "the last one died long ago");
        let past: Vec<_> = (0..5).map(|i| life(i, 600, 1, Cause::Respawn)).collect();
        assert_eq!(of(&past), History::default(), "that is history no more");
    }
}
