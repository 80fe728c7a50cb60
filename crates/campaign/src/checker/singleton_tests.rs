//! Roles, onces and locks: a true history passes; each doctored one is found out.

use super::tests::{MS, event};
use super::*;
use crate::deeds::What;
use crate::kernel::Status;

struct History {
    processes: Vec<Process>,
    events: Vec<Event>,
    deeds: Vec<Deed>,
    hindered: Vec<(u64, u64)>,
}

fn named(seq: u64, kind: Kind, pid: i32, name: &str, token: u64) -> Event {
    Event { name: name.to_owned(), token, ..event(seq, kind, pid, 0) }
}

fn deed(at: u64, pid: i32, what: What) -> Deed {
    Deed { pid, at: at * MS, what }
}

fn once(attempt: u32, finished: bool) -> What {
    let once = "warm-up".to_owned();
    if finished { What::Finished { once, attempt } } else { What::Begun { once, attempt } }
}

fn entered(token: u64, abandoned_by: Option<i32>) -> What {
    What::Entered { token, abandoned_by }
}

/// 11 leads, and is killed inside the lock; 12 warms up, comes after it in the lock, and leads then.
fn truth() -> History {
    let process = |pid, ended: Option<u64>| Process {
        pid,
        parent: 9,
        began: MS,
        ended: ended.map(|at| at * MS),
        status: ended.map(|_| Status(9)),
    };
    let mut events = vec![
        event(1, Kind::GenerationStarted, 9, 0),
        event(2, Kind::WorkerStarted, 11, 1),
        event(3, Kind::WorkerStarted, 12, 2),
        named(4, Kind::LeaderElected, 11, "scheduler", 5),
        Event { attempts: 1, ..named(5, Kind::OnceDone, 12, "warm-up", 0) },
        Event { signal: Some(9), ..event(6, Kind::WorkerDied, 11, 1) },
        named(7, Kind::LockAbandoned, 11, "report", 2),
        Event { signal: Some(9), cause: "signal".into(), ..named(8, Kind::LeaderLost, 11, "scheduler", 5) },
        named(9, Kind::LeaderElected, 12, "scheduler", 6),
    ];
    events[0].cause = "start".into();
    let deeds = vec![
        deed(21, 11, What::Stands),
        deed(31, 12, What::Stands),
        deed(41, 11, What::Elected { token: 5 }),
        deed(43, 11, What::Led { token: 5, from: 42 * MS }),
        deed(45, 12, once(1, false)),
        deed(49, 12, once(1, true)),
        deed(55, 11, entered(1, None)),
        deed(65, 12, entered(2, Some(11))),
        deed(66, 12, What::Left { token: 2 }),
        deed(67, 12, entered(3, None)),
        deed(68, 12, What::Left { token: 3 }),
        deed(91, 12, What::Elected { token: 6 }),
        deed(93, 12, What::Led { token: 6, from: 92 * MS }),
    ];
    let processes = vec![process(9, None), process(11, Some(59)), process(12, None)];
    History { processes, events, deeds, hindered: Vec::new() }
}

#[track_caller]
fn finds(doctor: impl FnOnce(&mut History), expected: &[Class]) {
    let mut history = truth();
    doctor(&mut history);
    for (seq, event) in (1..).zip(&mut history.events) {
        event.seq = seq;
    }
    history.deeds.sort_by_key(|deed| deed.at);
    let call = |seq| Call { seq, generation: 1, retry: false, runner: 9, at: None };
    let calls: Vec<Call> = history
        .events
        .iter()
        .filter(|event| event.kind.has_callback())
        .map(|event| call(event.seq))
        .collect();
    let (found, _) = check(&Evidence {
        processes: &history.processes,
        complete: true,
        first: 1,
        events: &history.events,
        calls: &calls,
        deeds: &history.deeds,
        hindered: &history.hindered,
    });
    let classes: Vec<Class> = found.iter().map(|violation| violation.class).collect();
    assert_eq!(classes, expected, "{found:#?}");
}

#[test]
fn the_truth_passes() {
    finds(|_| {}, &[]);
}

#[test]
fn two_leaders_at_one_instant() {
    let led = |token, from| What::Led { token, from: from * MS };
    finds(|history| history.deeds.push(deed(96, 11, led(5, 95))), &[Class::TwoLeaders]);
    // It looked before, and was stopped until it wrote: the token is for that.
    finds(|history| history.deeds.push(deed(96, 11, led(5, 90))), &[]);
    finds(|history| history.deeds.push(deed(94, 11, led(6, 93))), &[Class::Twice]);
    finds(|history| _ = history.events.remove(7), &[Class::TwoLeaders]);
}

#[test]
fn an_orphan_that_leads_over_a_start() {
    let start = |history: &mut History, lives: bool| {
        let left = 1 + i64::from(lives);
        let start = event(0, Kind::GenerationStarted, 9, 0);
        let start = Event { cause: "start".into(), at: 75 * MS, generation: 2, ..start };
        let start = Event { prev: Some(left), total: left, ..start };
        let mut events = history.events.split_off(7);
        history.events.push(start);
        // Nobody says anything of what was lost with the run before.
        history.events.push(events.swap_remove(1));
        if lives {
            history.processes[1].ended = None;
            history.events.remove(5);
        }
    };
    finds(|history| start(history, false), &[]);
    finds(|history| start(history, true), &[Class::TwoLeaders, Class::TwoInside, Class::Untrue]);
}

#[test]
fn a_leader_that_was_not_elected() {
    finds(|history| history.deeds.push(deed(97, 12, What::Elected { token: 7 })), &[Class::Untrue]);
    finds(|history| history.events[8].pid = Some(11), &[Class::Untrue]);
    finds(|history| history.events[7].token = 4, &[Class::OutOfOrder]);
}

#[test]
fn a_token_that_does_not_grow() {
    finds(
        |history| {
            history.events[8].token = 4;
            history.deeds[11].what = What::Elected { token: 4 };
            history.deeds[12].what = What::Led { token: 4, from: 92 * MS };
        },
        &[Class::TwoLeaders, Class::OutOfOrder],
    );
}

#[test]
fn one_who_leads_before_the_one_before_has_stopped() {
    let late = |history: &mut History| {
        history.events[7].cause = "superseded".into();
        history.deeds.push(deed(95, 11, What::Stopped { token: 5 }));
    };
    finds(late, &[Class::OutOfOrder]);
    finds(
        |history| {
            late(history);
            history.hindered.push((0, 94 * MS));
        },
        &[],
    );
}

#[test]
fn a_time_without_a_leader() {
    let late = |history: &mut History| {
        history.events[8].at = 3000 * MS;
        history.deeds[11].at = 3001 * MS;
        history.deeds[12] = deed(3003, 12, What::Led { token: 6, from: 3002 * MS });
    };
    finds(late, &[Class::Leaderless]);
    finds(
        |history| {
            late(history);
            history.hindered.push((0, 600 * MS));
        },
        &[],
    );
    // Nobody else was there for most of the time.
    finds(
        |history| {
            late(history);
            history.deeds[1].at = 2000 * MS;
        },
        &[],
    );
}

#[test]
fn something_that_is_done_twice() {
    finds(
        |history| {
            let again = history.events[4].clone();
            history.events.push(Event { at: 99 * MS, ..again });
        },
        &[Class::Twice],
    );
    // One that was at it has left, and ends a moment later.
    let leaves = |history: &mut History| {
        history.events[5] = Event { at: 44 * MS, ..event(0, Kind::WorkerExited, 11, 2) };
        history.events.swap(4, 5);
        history.events.retain(|event| event.kind != Kind::LockAbandoned);
        history.deeds.retain(|deed| !matches!(deed.what, What::Entered { .. } | What::Left { .. }));
        history.deeds.push(deed(42, 11, once(1, false)));
        for at in [4, 5] {
            history.deeds[at].what = once(2, at == 5);
        }
    };
    finds(leaves, &[]);
    finds(
        |history| {
            leaves(history);
            history.events[4].at = 48 * MS;
        },
        &[Class::Twice],
    );
    // A generation that has ended, and resumes, begins it anew.
    finds(
        |history| {
            let again = history.events[4].clone();
            let ended = Event { mine: 0, total: 0, ..event(0, Kind::GenerationEnded, 9, 0) };
            let resumed = Event { cause: "resume".into(), ..event(0, Kind::GenerationStarted, 9, 0) };
            let leaves = Event { total: 1, ..event(0, Kind::WorkerExited, 12, 1) };
            let come = event(0, Kind::WorkerStarted, 12, 1);
            history.events.extend([leaves, ended, resumed, come, again]);
            for (n, event) in (10..).zip(&mut history.events[9..]) {
                event.at = 10 * n * MS;
            }
            history.deeds.extend([deed(131, 12, once(1, false)), deed(139, 12, once(1, true))]);
            // The process that came is another one, with the same number.
            history.processes[2].ended = Some(105 * MS);
            history.processes[2].status = Some(Status(0));
            let again =
                Process { began: 120 * MS, ended: None, status: None, ..history.processes[2].clone() };
            history.processes.push(again);
        },
        &[],
    );
    // While the first is at it still, and after it was done.
    finds(|history| history.deeds.push(deed(47, 11, once(2, false))), &[Class::Twice]);
    finds(|history| history.deeds.push(deed(57, 11, once(2, false))), &[Class::Twice, Class::Twice]);
    finds(
        |history| {
            history.deeds.push(deed(46, 11, once(1, false)));
        },
        &[Class::Twice],
    );
}

#[test]
fn something_that_is_said_to_be_done_or_not() {
    finds(|history| _ = history.events.remove(4), &[Class::Missed]);
    finds(|history| history.deeds.retain(|deed| deed.what != once(1, true)), &[Class::Untrue]);
    finds(|history| history.events[4].kind = Kind::OnceFailed, &[Class::Untrue, Class::Missed]);
    finds(
        |history| {
            history.deeds.retain(|deed| !matches!(deed.what, What::Begun { .. } | What::Finished { .. }));
            history.deeds.extend([deed(45, 12, once(4, false)), deed(49, 12, once(4, true))]);
        },
        &[Class::Twice],
    );
}

#[test]
fn two_in_a_lock() {
    finds(|history| history.deeds[7].at = 56 * MS, &[Class::TwoInside]);
    finds(|history| history.deeds[8].at = 67 * MS + 1, &[Class::TwoInside]);
    // One that lives, and has not left.
    finds(|history| _ = history.deeds.remove(8), &[Class::TwoInside]);
    finds(|history| history.deeds[9].what = entered(2, None), &[Class::OutOfOrder]);
}

#[test]
fn a_lock_whose_holder_died() {
    finds(|history| history.deeds[7].what = entered(2, None), &[Class::Missed]);
    finds(|history| history.deeds[9].what = entered(3, Some(12)), &[Class::Untrue]);
    finds(|history| history.deeds[9].what = entered(3, Some(11)), &[Class::Untrue]);
    finds(|history| _ = history.events.remove(6), &[Class::Missed]);
    // The one who was told died inside, too, before anybody could report the first.
    let twice = |history: &mut History| {
        history.events[6].pid = Some(13);
        history.events[6].at = 72 * MS;
        let started = event(0, Kind::WorkerStarted, 13, 3);
        let died = Event { total: 1, at: 71 * MS, ..event(0, Kind::WorkerDied, 13, 1) };
        history.events.insert(6, died);
        history.events.insert(3, Event { at: 35 * MS, ..started });
        history.events[6].mine = 2;
        history.events[6].total = 2;
        let dead = Process {
            pid: 13,
            began: MS,
            ended: Some(70 * MS),
            status: None,
            ..history.processes[1].clone()
        };
        history.processes.push(dead);
        for at in [7, 9, 10] {
            history.deeds[at].pid = 13;
        }
        history.deeds.remove(10);
        history.deeds.remove(8);
        history.deeds[7].pid = 13;
        history.deeds.remove(8);
        history.deeds.push(deed(75, 12, entered(3, Some(13))));
        history.deeds.push(deed(76, 12, What::Left { token: 3 }));
    };
    finds(twice, &[]);
    finds(
        |history| {
            twice(history);
            history.events.retain(|event| event.kind != Kind::LockAbandoned);
        },
        &[Class::Missed],
    );
    finds(
        |history| {
            let again = history.events[6].clone();
            history.events.push(Event { at: 99 * MS, ..again });
        },
        &[Class::Twice],
    );
    finds(|history| history.events[6].pid = Some(12), &[Class::Untrue, Class::Missed]);
}

#[test]
fn lines_that_workers_write() {
    let printed = "elected token=5 by=11 at=41\nentered lock=report token=2 abandoned_by=11 by=12 at=65\nbegun once=x att";
    let deeds = crate::deeds::printed(printed);
    assert_eq!(deeds.len(), 2);
    assert_eq!((deeds[1].pid, deeds[1].at, &deeds[1].what), (12, 65, &entered(2, Some(11))));
    let recorded = "{\"at\":41,\"cal{\"event\":{\"token\":5,\"from\":40},\"callback\":\"note:jobs\",\"runner\":11,\"at\":42}\n";
    let deeds = crate::deeds::recorded(recorded);
    assert_eq!((deeds[0].at, &deeds[0].what), (42, &What::Led { token: 5, from: 40 }));
}
