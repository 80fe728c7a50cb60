//! A true history passes; each doctored one is found out.

use super::*;
use crate::journal::Kind;
use crate::kernel::Status;

pub(super) const MS: u64 = 1_000_000;

pub(super) fn event(seq: u64, kind: Kind, pid: i32, mine: i64) -> Event {
    Event {
        seq,
        kind,
        cause: String::new(),
        generation: 1,
        pid: Some(pid),
        prev: None,
        mine,
        next: None,
        draining: 0,
        total: mine,
        signal: None,
        exit_code: None,
        about: None,
        name: String::new(),
        token: 0,
        attempts: 0,
        reporter: 9,
        time: 0.0,
        at: seq * 10 * MS,
    }
}

struct History {
    processes: Vec<Process>,
    events: Vec<Event>,
    calls: Vec<Call>,
}

/// Two workers; 11 is killed by signal 9, and 12 leaves.
fn truth() -> History {
    let process = |pid, ended: Option<(u64, i32)>| Process {
        pid,
        parent: 9,
        began: MS,
        ended: ended.map(|(at, _)| at * MS),
        status: ended.map(|(_, status)| Status(status)),
    };
    let mut events = vec![
        event(1, Kind::GenerationStarted, 9, 0),
        event(2, Kind::WorkerStarted, 11, 1),
        event(3, Kind::WorkerStarted, 12, 2),
        event(4, Kind::WorkerDied, 11, 1),
        event(5, Kind::WorkerDraining, 12, 1),
        event(6, Kind::WorkerExited, 12, 1),
        event(7, Kind::GenerationEnded, 9, 0),
    ];
    events[3].signal = Some(9);
    events[4].draining = 1;
    events[5].draining = 1;
    let calls = (1..=7).map(|seq| Call { seq, generation: 1, retry: false, runner: 9, at: None }).collect();
    let processes = vec![process(9, None), process(11, Some((39, 9))), process(12, Some((61, 0)))];
    History { processes, events, calls }
}

#[track_caller]
fn finds(doctor: impl FnOnce(&mut History), expected: &[Class]) {
    let mut history = truth();
    doctor(&mut history);
    let (found, _) = check(&Evidence {
        processes: &history.processes,
        complete: true,
        first: 1,
        events: &history.events,
        calls: &history.calls,
        deeds: &[],
        hindered: &[],
    });
    let classes: Vec<Class> = found.iter().map(|violation| violation.class).collect();
    assert_eq!(classes, expected, "{found:#?}");
}

/// Takes an event out, as if it had never been.
fn without(history: &mut History, seq: u64) {
    history.events.retain(|event| event.seq != seq);
    history.calls.retain(|call| call.seq != seq);
    for event in history.events.iter_mut().filter(|event| event.seq > seq) {
        event.seq -= 1;
    }
    for call in history.calls.iter_mut().filter(|call| call.seq > seq) {
        call.seq -= 1;
    }
}

#[test]
fn the_truth_passes() {
    finds(|_| {}, &[]);
}

#[test]
fn a_death_that_is_missed() {
    // The generation must not end before, either.
    finds(|history| without(history, 4), &[Class::Missed, Class::OutOfOrder]);
}

#[test]
fn a_death_that_is_told_twice() {
    finds(
        |history| {
            let mut again = history.events[3].clone();
            again.seq = 8;
            again.generation = 0;
            history.events.push(again);
            history.calls.push(Call { seq: 8, generation: 1, retry: false, runner: 9, at: None });
        },
        &[Class::Twice],
    );
}

#[test]
fn a_death_of_one_that_lives() {
    finds(
        |history| (history.processes[1].ended, history.processes[1].status) = (None, None),
        &[Class::Untrue],
    );
}

#[test]
fn a_death_before_its_time() {
    finds(|history| history.processes[1].ended = Some(60 * MS), &[Class::Untrue]);
}

#[test]
fn a_process_that_never_was() {
    finds(|history| history.processes.retain(|process| process.pid != 12), &[Class::Untrue; 3]);
}

#[test]
fn a_wrong_signal() {
    finds(|history| history.events[3].signal = Some(11), &[Class::WrongCause]);
    finds(
        |history| (history.events[3].signal, history.events[3].exit_code) = (None, Some(9)),
        &[Class::WrongCause],
    );
}

#[test]
fn a_wrong_count() {
    finds(|history| history.events[3].mine = 2, &[Class::WrongCount]);
    finds(|history| history.events[2].mine = 1, &[Class::WrongCount]);
    finds(|history| history.events[4].total = 2, &[Class::WrongCount]);
    finds(|history| history.events[2].prev = Some(0), &[Class::WrongCount]);
    finds(|history| history.events[4].draining = 2, &[Class::WrongCount]);
}

#[test]
fn a_start_after_the_end() {
    finds(
        |history| {
            history.events.swap(1, 3);
            for (at, event) in history.events.iter_mut().enumerate() {
                event.seq = at as u64 + 1;
            }
            history.events[1].mine = 0;
            history.events[1].total = 0;
            history.events[2].mine = 1;
            history.events[2].total = 1;
            history.events[3].mine = 2;
            history.events[3].total = 2;
        },
        &[Class::OutOfOrder; 3],
    );
}

#[test]
fn a_gap_in_the_numbers() {
    finds(
        |history| {
            history.events.remove(4);
            history.calls.remove(4);
            history.events[4].draining = 0;
        },
        &[Class::Gap],
    );
}

#[test]
fn callbacks_out_of_order_missing_twice_or_about_nothing() {
    finds(|history| history.calls.swap(2, 3), &[Class::OutOfOrder]);
    finds(|history| _ = history.calls.remove(3), &[Class::Callback]);
    finds(
        |history| {
            let again = history.calls[3].clone();
            history.calls.insert(3, again);
        },
        &[Class::Callback],
    );
    finds(
        |history| {
            let mut again = history.calls[3].clone();
            again.retry = true;
            history.calls.push(again);
        },
        &[Class::Callback],
    );
    finds(
        |history| history.calls.push(Call { seq: 99, generation: 1, retry: false, runner: 9, at: None }),
        &[Class::Callback],
    );
}

#[test]
fn lines_of_the_log() {
    assert!(bad_lines("2026 [alert] 1#1: worker process 7 exited on signal 9\n").is_empty());
    assert_eq!(bad_lines("2026 [alert] 1#1: something else\n").len(), 1);
    assert_eq!(bad_lines("thread 'main' panicked at src/x.rs\n").len(), 1);
}

#[test]
fn a_number_that_is_used_again_before_the_end_was_told_is_no_violation() {
    let again = Process { pid: 11, parent: 9, began: 39 * MS + MS / 2, ended: None, status: None };
    finds(|history| history.processes.push(again), &[]);
}
