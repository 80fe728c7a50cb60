//! What the last minutes tell.

use std::collections::HashMap;
use std::time::Duration;

use headcount::{Cause, Event, Kind, Snapshot, State};

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
    /// How long ago it died: it was reported, or, if its whole node was killed, it gave its last sign of life.
    pub age: Duration,
    /// How long it had lived.
    pub lived: Option<Duration>,
    /// In which state it had been, and for how long.
    pub was: Option<(State, Duration)>,
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

/// A worker that has started.
struct Life {
    start: u64,
    is_leaving: bool,
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

    /// Reads it off the journal: `events` in order, up to a snapshot or beyond it. What is of an earlier boot of the machine
    /// is left out: nothing of it goes on, and its times are those of another clock.
    #[must_use]
    pub fn of<'a>(events: impl IntoIterator<Item = &'a Event>, snapshot: &Snapshot) -> History {
        let mut started = HashMap::new();
        let mut history = History::default();
        let mut young: Vec<Duration> = Vec::new();
        let since = |ns: u64| Duration::from_nanos(snapshot.boot_ns.saturating_sub(ns));
        for event in events.into_iter().filter(|event| !snapshot.is_of_earlier_boot(event)) {
            let age = since(event.boot_ns);
            let who = (event.generation, event.pid);
            match event.kind {
                Kind::WorkerStarted => {
                    started.insert(who, Life { start: event.boot_ns, is_leaving: false });
                    if event.cause == Cause::Respawn && age <= History::WINDOW {
                        history.respawns += 1;
                    }
                }
                Kind::WorkerDraining => {
                    if let Some(life) = started.get_mut(&who) {
                        life.is_leaving = true;
                    }
                }
                Kind::WorkerDied => {
                    let life = started.remove(&who);
                    let died = event.end_ns();
                    let age = since(died);
                    if age > History::WINDOW {
                        continue;
                    }
                    let by_start = |l: &Life| Duration::from_nanos(died.saturating_sub(l.start));
                    let lived = event.age().or(life.as_ref().map(by_start));
                    // Who was killed with its node, or died on its way out, is not replaced.
                    let is_replaced = event.cause != Cause::Unclean && !life.is_some_and(|l| l.is_leaving);
                    if is_replaced && lived.is_some_and(|lived| lived < History::YOUNG) {
                        young.push(age);
                    }
                    history.deaths.push(Death {
                        pid: event.pid,
                        worker_id: event.worker_id,
                        generation: event.generation,
                        signal: event.signal,
                        exit_code: event.exit_code,
                        age,
                        lived,
                        was: event.was(),
                    });
                }
                // A node that was stopped does not go on dying.
                Kind::MasterExited if event.cause == Cause::Stop => young.clear(),
                _ => {}
            }
        }
        history.deaths.reverse();
        if let Some(&last) = young.last()
            && young.len() >= History::LOOP_DEATHS as usize
            && last <= History::LOOP_LASTS
        {
            let deaths = u32::try_from(young.len()).unwrap_or(u32::MAX);
            history.crash_loop = Some(CrashLoop { deaths, last });
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

    /// Found dead at a start, a second after the start was its last heartbeat.
    fn unclean([start, mut death]: [Event; 2]) -> [Event; 2] {
        death.cause = Cause::Unclean;
        death.heartbeat_ns = start.boot_ns + S;
        [start, death]
    }

    fn of(lives: &[[Event; 2]]) -> History {
        let mut events = lives.concat();
        events.sort_by_key(|e| e.boot_ns);
        History::of(&events, &now())
    }

    fn now() -> Snapshot {
        let mut snapshot = Snapshot::new("x");
        snapshot.boot_ns = NOW;
        snapshot
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
        let killed: Vec<_> = (0..5).map(|i| unclean(life(i, 52, 51, Cause::Start))).collect();
        assert_eq!(
            (of(&killed).crash_loop, of(&killed).deaths.len()),
            (None, 5),
            "they were killed with their node"
        );
        let ends: Vec<_> =
            of(&killed).deaths.iter().map(|d| (d.lived.map(|l| l.as_secs()), d.age.as_secs())).collect();
        assert_eq!(
            ends,
            vec![(Some(1), 51); 5],
            "by their last sign of life, and not by when that was found out"
        );
        let leaving: Vec<_> = (0u32..5).map(|i| life(i, 30, 2, Cause::Start)).collect();
        let mut events = leaving.concat();
        events.extend(leaving.iter().map(|life| {
            let mut draining = Event::new(Kind::WorkerDraining, Cause::Stop);
            (draining.pid, draining.generation, draining.boot_ns) = (life[0].pid, 1, life[0].boot_ns + S);
            draining
        }));
        events.sort_by_key(|e| e.boot_ns);
        assert_eq!(History::of(&events, &now()).crash_loop, None, "they died on their way out");
        let mut stopped = (0u32..5).flat_map(|i| life(i, 30, 1, Cause::Respawn)).collect::<Vec<_>>();
        stopped.push(Event::new(Kind::MasterExited, Cause::Stop));
        assert_eq!(History::of(&stopped, &now()).crash_loop, None, "the node was stopped");
        let past: Vec<_> = (0..5).map(|i| life(i, 600, 1, Cause::Respawn)).collect();
        assert_eq!(of(&past), History::default(), "that is history no more");
    }

    #[test]
    fn what_was_before_a_reboot_is_history_no_more() {
        let mut events = (0..3).map(|i| life(i, 30, 1, Cause::Respawn)).collect::<Vec<_>>().concat();
        (1..).zip(&mut events).for_each(|(seq, event)| event.seq = seq);
        let mut snapshot = now();
        assert!(History::of(&events, &snapshot).crash_loop.is_some());
        snapshot.earlier_boots = 6;
        assert_eq!(History::of(&events, &snapshot), History::default());
        // One that was found after it: nobody knows its last heartbeat by the clock of this boot.
        let [_, mut found] = unclean(life(9, 30, 1, Cause::Start));
        (found.seq, found.heartbeat_ns) = (7, 0);
        assert_eq!(History::of(&[found], &snapshot), History::default());
    }
}
