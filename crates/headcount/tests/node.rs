//! A node through its life: start, reload, many generations at once, abandoned and resumed ones, stop.

mod family;

use std::time::Duration;

use headcount::{Begin, Cause, Generation, Join, Kind, Phase, PreviousRun, State, Wait};

use family::callbacks::{Act, Callbacks};
use family::home::{Home, leave_all, moment, triple};
use family::worker::{Habit, worker};
use family::{Child, Place, Random, alone, fork, wait_for};

#[test]
fn a_cold_start_counts_from_one() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(4);
    let start = &home.about(Kind::GenerationStarted)[0];
    assert_eq!((triple(start), start.cause), ((None, 0, None), Cause::Start));
    assert_eq!(start.previous_run, Some(PreviousRun::None));
    assert_eq!(start.reporter_pid, std::process::id());

    let mut workers: Vec<Child> = (0..4).map(|n| home.serving(&generation, n)).collect();
    let started = home.about(Kind::WorkerStarted);
    assert_eq!(
        started.iter().map(triple).collect::<Vec<_>>(),
        (1..=4).map(|n| (None, n, None)).collect::<Vec<_>>()
    );
    assert!(started.iter().all(|e| e.cause == Cause::Start && e.previous_run.is_none()));
    assert_eq!(started.iter().map(|e| e.worker_id).collect::<Vec<_>>(), (0..4).map(Some).collect::<Vec<_>>());
    let snapshot = home.node.snapshot();
    assert_eq!((snapshot.total, snapshot.generations.len()), (4, 1));
    wait_for("their loops to turn", || {
        home.workers().iter().all(|p| p.state == State::Serving).then_some(())
    });
    wait_for("a sentinel", || {
        home.node.snapshot().sentinel.map(|pid| workers.iter().any(|w| w.pid() == pid))
    });

    leave_all(&mut workers);
    let exited = home.about(Kind::WorkerExited);
    assert_eq!(
        exited.iter().map(triple).collect::<Vec<_>>(),
        (1..=4).rev().map(|n| (None, n, None)).collect::<Vec<_>>()
    );
    assert!(exited.iter().all(|e| e.cause == Cause::Stop));
    let ended = &home.about(Kind::GenerationEnded)[..];
    assert_eq!((ended.len(), triple(&ended[0]), ended[0].cause), (1, (None, 0, None), Cause::Stop));
    home.check();
    home.callbacks.run(home.master.leave(Wait::Timeout).expect("leave"));
    let last = home.events().pop().expect("an event");
    assert_eq!((last.kind, last.pid), (Kind::MasterExited, std::process::id()));
    assert!(home.node.snapshot().processes.is_empty());
}

/// A whole run of the node in a process of its own. Gives what it was told of the run before it.
fn run_of(place: &Place, ends: &str) -> Option<PreviousRun> {
    let callbacks = Callbacks::new();
    let mut master = fork(|line| {
        let master = place.open();
        let (generation, mut transitions) =
            master.begin(Begin::new().workers(2), Wait::Timeout).expect("begin");
        let start = transitions.next().expect("a start").event;
        assert!(transitions.next().is_none());
        drop(transitions);
        line.say(&match start.previous_run {
            Some(PreviousRun::None) => "none".into(),
            Some(PreviousRun::Clean) => "clean".into(),
            Some(PreviousRun::Unclean { generation, workers }) => format!("{generation} {workers}"),
            other => format!("{other:?}"),
        });
        master.commit(generation.id());
        let join = |number| worker(&generation, callbacks, Habit::Quiet, Join::worker(Some(number)));
        let mut workers = [join(0), join(1)];
        if line.hear().as_deref() == Some("stop") {
            leave_all(&mut workers);
            callbacks.run(master.leave(Wait::Timeout).expect("leave"));
        } else {
            workers.iter_mut().for_each(|w| _ = w.kill());
        }
        0
    });
    let told = master.hear().expect("a start");
    master.say(ends);
    master.ended_well();
    match told.split_once(' ') {
        Some((generation, workers)) => Some(PreviousRun::Unclean {
            generation: generation.parse().expect("a number"),
            workers: workers.parse().expect("a number"),
        }),
        None if told == "none" => Some(PreviousRun::None),
        None if told == "clean" => Some(PreviousRun::Clean),
        None => panic!("{told}"),
    }
}

#[test]
fn a_start_tells_how_the_run_before_it_ended() {
    let _alone = alone();
    let place = Place::new();
    assert_eq!(run_of(&place, "stop"), Some(PreviousRun::None));
    assert_eq!(run_of(&place, "stop"), Some(PreviousRun::Clean));
    assert_eq!(run_of(&place, "crash"), Some(PreviousRun::Clean));
    assert_eq!(run_of(&place, "crash"), Some(PreviousRun::Unclean { generation: 3, workers: 2 }));
    assert_eq!(run_of(&place, "stop"), Some(PreviousRun::Unclean { generation: 4, workers: 2 }));
    assert_eq!(run_of(&place, "stop"), Some(PreviousRun::Clean));
}

#[test]
fn a_reload_has_the_old_generation_beside_the_new_one() {
    let _alone = alone();
    let mut home = Home::new();
    let old = home.begin(4);
    let mut old_workers: Vec<Child> = (0..4).map(|n| home.serving(&old, n)).collect();
    let new = home.begin(2);
    let start = home.about(Kind::GenerationStarted).pop().expect("a start");
    assert_eq!((triple(&start), start.cause, start.previous_run), ((Some(4), 0, None), Cause::Reload, None));
    let mut new_workers: Vec<Child> = (0..2).map(|n| home.serving(&new, n)).collect();
    let started = home.about(Kind::WorkerStarted);
    assert_eq!(started[4..].iter().map(triple).collect::<Vec<_>>(), [(Some(4), 1, None), (Some(4), 2, None)]);

    for child in &mut old_workers {
        child.tell("drain");
        assert_eq!(home.state(child.pid()), State::Draining);
    }
    let draining = home.about(Kind::WorkerDraining);
    assert_eq!(draining.iter().map(|e| e.counts.draining).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(draining.iter().all(|e| triple(e) == (None, 4, Some(2)) && e.cause == Cause::Superseded));
    leave_all(&mut old_workers);
    let exited = home.about(Kind::WorkerExited);
    let mine: Vec<_> = exited.iter().map(triple).collect();
    assert_eq!(mine, (1..=4).rev().map(|n| (None, n, Some(2))).collect::<Vec<_>>());
    let ended = home.about(Kind::GenerationEnded);
    assert_eq!((ended.len(), triple(&ended[0]), ended[0].cause), (1, (None, 0, Some(2)), Cause::Superseded));

    // From now on there is no older one.
    let third = home.begin(8);
    let mut third_workers: Vec<Child> = (0..8).map(|n| home.serving(&third, n)).collect();
    let started = home.about(Kind::WorkerStarted);
    assert_eq!(triple(started.last().expect("a start")), (Some(2), 8, None));
    leave_all(&mut new_workers);
    leave_all(&mut third_workers);
    assert_eq!(triple(home.about(Kind::WorkerExited).last().expect("an exit")), (None, 1, None));
    home.check();
}

#[test]
fn twenty_generations_overlap_and_each_ends_once() {
    let _alone = alone();
    let mut home = Home::with(|options| options.slots(64));
    let mut random = Random::new(20);
    let mut workers = Vec::new();
    for _ in 0..20 {
        let generation = home.begin(2);
        workers.extend((0..2).map(|n| home.quiet(&generation, n)));
        if workers.len() > 2 {
            // Those of the generation before, which is told to go.
            let at = workers.len() - 4;
            workers[at..at + 2].iter_mut().for_each(|w| w.tell("drain"));
        }
    }
    assert_eq!((home.node.snapshot().total, home.node.snapshot().generations.len()), (40, 20));
    while !workers.is_empty() {
        let mut child = workers.swap_remove(random.below(workers.len() as u64) as usize);
        child.tell("leave");
        child.ended_well();
    }
    assert_eq!(home.about(Kind::GenerationEnded).len(), 20);
    home.check();
}

#[test]
fn an_abandoned_generation_is_nobodys_neighbour() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(2);
    let mut first = home.serving(&generation, 0);
    let ghost = home.announce(2);
    let phases = || home.node.snapshot().generations.iter().map(|g| g.phase).collect::<Vec<_>>();
    assert_eq!(phases(), [Phase::Committed, Phase::Announced]);
    // While it is not certain, it is no neighbour either.
    let mut second = home.serving(&generation, 1);
    home.master.abandon(ghost.id());
    // Once abandoned it cannot be committed any more.
    home.master.commit(ghost.id());
    home.wait_for_callback(Kind::GenerationAbandoned, std::process::id());
    let abandoned = &home.about(Kind::GenerationAbandoned)[0];
    assert_eq!((abandoned.generation, abandoned.cause), (ghost.id(), Cause::NoWorkers));
    wait_for("its record to be freed", || (home.node.snapshot().generations.len() == 1).then_some(()));

    let new = home.begin(1);
    let start = home.about(Kind::GenerationStarted).pop().expect("a start");
    assert_eq!(triple(&start), (Some(2), 0, None), "prev is the serving generation");
    let mut third = home.serving(&new, 0);
    leave_all([&mut first, &mut second]);
    leave_all([&mut third]);
    let stop = home.about(Kind::WorkerExited).pop().expect("an exit");
    assert_eq!((triple(&stop), stop.cause), ((None, 1, None), Cause::Stop), "a later stop is a stop");
    home.check();
}

#[test]
fn a_generation_whose_master_vanished_before_its_workers_came_is_abandoned() {
    let _alone = alone();
    let place = Place::new();
    let callbacks = Callbacks::new();
    // It dies in the callback of its start, which has nothing to do with how often others are tried.
    callbacks.plan(Kind::GenerationStarted, Act::Die, 1, Duration::ZERO);
    let mut master = fork(|_| {
        let master = place.open();
        let (_, transitions) = master.begin(Begin::new().workers(2), Wait::Timeout).expect("begin");
        callbacks.run(transitions);
        0
    });
    assert_eq!(master.wait(), libc::SIGKILL);
    // Another server, started by somebody who did not see the first one die.
    let mut second = fork(|_| {
        let master = place.options().takes_over_from(1).open().expect("open");
        // Not called a start, which would sweep away what it finds.
        let begin = Begin::new().because(Cause::Reload).workers(1);
        let (generation, transitions) = master.begin(begin, Wait::Timeout).expect("begin");
        callbacks.run(transitions);
        master.commit(generation.id());
        let mut child = worker(&generation, callbacks, Habit::Serving, Join::worker(Some(0)));
        wait_for("the first generation to be abandoned", || {
            (!callbacks.about(Kind::GenerationAbandoned).is_empty()).then_some(())
        });
        leave_all([&mut child]);
        callbacks.run(master.leave(Wait::Timeout).expect("leave"));
        0
    });
    second.ended_well();
    let abandoned = callbacks.about(Kind::GenerationAbandoned);
    assert_eq!(
        abandoned.iter().map(|r| (r.generation, r.subject, r.retry)).collect::<Vec<_>>(),
        [(1, master.pid(), false)]
    );
}

#[test]
fn a_server_that_never_got_workers_stops_properly() {
    let _alone = alone();
    let place = Place::new();
    let callbacks = Callbacks::new();
    let mut master = fork(|_| {
        let master = place.open();
        let node = master.node();
        let (_, transitions) = master.begin(Begin::new().workers(2), Wait::Timeout).expect("begin");
        callbacks.run(transitions);
        callbacks.run(master.leave(Wait::Timeout).expect("leave"));
        assert!(node.snapshot().generations.is_empty());
        0
    });
    master.ended_well();
    let abandoned = callbacks.about(Kind::GenerationAbandoned);
    assert_eq!(abandoned.iter().map(|r| (r.generation, r.runner)).collect::<Vec<_>>(), [(1, master.pid())]);
    assert_eq!(run_of(&place, "stop"), Some(PreviousRun::Clean));
}

#[test]
fn a_generation_that_had_ended_is_resumed() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(1);
    leave_all([&mut home.serving(&generation, 0)]);
    assert!(home.node.snapshot().generations.is_empty());
    let mut again = home.serving(&generation, 0);
    let events = home.events();
    let short: Vec<_> = events.iter().map(|e| (e.kind, e.cause)).collect();
    let expected = [
        (Kind::GenerationStarted, Cause::Start),
        (Kind::WorkerStarted, Cause::Start),
        (Kind::WorkerExited, Cause::Stop),
        (Kind::GenerationEnded, Cause::Stop),
        (Kind::GenerationStarted, Cause::Resume),
        (Kind::WorkerStarted, Cause::Resume),
    ];
    assert_eq!(short, expected);
    assert_eq!(home.node.snapshot().generations[0].master, std::process::id());
    wait_for("it to serve, since its master is known to live", || {
        (home.state(again.pid()) == State::Serving).then_some(())
    });
    leave_all([&mut again]);
    home.check();
}

#[test]
fn a_generation_that_could_not_be_begun_is_begun_by_its_first_worker() {
    let _alone = alone();
    let home = Home::new();
    let generation = Generation::of(&home.node, home.master.reserve());
    let mut first = home.serving(&generation, 0);
    let mut second = home.serving(&generation, 1);
    let kinds: Vec<_> = home.events().iter().map(|e| (e.kind, e.reporter_pid)).collect();
    let expected = [
        (Kind::GenerationStarted, first.pid()),
        (Kind::WorkerStarted, first.pid()),
        (Kind::WorkerStarted, second.pid()),
    ];
    assert_eq!(kinds, expected);
    leave_all([&mut first, &mut second]);
    home.check();
}

#[test]
fn the_same_registry_is_opened_once_in_a_process() {
    let _alone = alone();
    let mut home = Home::new();
    let again = home.place.options().lock_timeout(Duration::from_secs(3)).open().expect("open again");
    let again = again.node();
    assert_eq!((again.name(), again.path()), (home.node.name(), home.node.path()));
    assert_eq!(again.snapshot().processes.len(), 1);
    // The same by another way to write the path.
    let by_detour = home.place.folder().join("..").join(home.place.folder().file_name().expect("a name"));
    let detour = home.place.options().path(by_detour.join("node.registry")).open().expect("open by a detour");
    assert_eq!(detour.node().name(), home.node.name());
    // All its locks have survived that: the kernel drops them when any descriptor of the file is closed.
    let generation = home.begin(1);
    let mut child = home.quiet(&generation, 0);
    let master = child_sees_master(&home, std::process::id());
    assert!(master, "the master's lock is gone");
    moment();
    leave_all([&mut child]);
    home.check();
}

/// Asked in another process: the own lock is invisible to its holder.
fn child_sees_master(home: &Home, pid: u32) -> bool {
    let mut child = fork(|_| i32::from(home.process(pid).liveness != headcount::Liveness::Alive));
    child.wait() == 0
}
