//! What happens where something is used up, or at the largest sizes.

mod family;

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use headcount::{Cursor, Join, Kind, Options, Wait};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use family::home::{Home, leave_all};
use family::worker::{Habit, settle, start, worker};
use family::{Child, alone, fork};

/// As many descriptors as the host allows: each child of a test has a line to it.
fn many_descriptors() -> bool {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, all).is_ok() && limit.maximum.is_none_or(|most| most > 4_000)
}

#[test]
fn a_node_of_1024_workers() {
    const WORKERS: u32 = 1024;
    let _alone = alone();
    if !many_descriptors() {
        return family::skip("the test needs 4,000 descriptors");
    }
    // One more for the master.
    let options = |options: Options| {
        options
            .slots(WORKERS + 1)
            .journal_records(16_384)
            .lock_timeout(Duration::from_secs(60))
            .stall_after(Duration::from_secs(600))
    };
    let mut home = Home::with(options);
    let generation = home.begin(WORKERS);
    let join = |n| start(&generation, home.callbacks, Habit::Quiet, Join::worker(Some(n)));
    // A server forks one after the other, too: so many that wait at once would only wait for each other.
    let mut workers: Vec<Child> = Vec::new();
    while workers.len() < WORKERS as usize {
        let from = workers.len();
        workers.extend((from as u32..from as u32 + 64).map(join));
        workers[from..].iter_mut().for_each(|w| w.expect("joined"));
    }
    let snapshot = home.node.snapshot();
    assert_eq!((snapshot.total, snapshot.processes.len()), (WORKERS, WORKERS as usize + 1));
    let mine: Vec<_> = home.about(Kind::WorkerStarted).iter().map(|e| e.counts.mine).collect();
    assert_eq!(mine, (1..=WORKERS).collect::<Vec<_>>());

    // There is no slot for another, and an error that says so; nobody else is harmed.
    let full = fork(|line| {
        let error = generation.join(Join::worker(None)).err().expect("there is no room");
        line.say(&error.to_string());
        0
    })
    .hear();
    assert!(full.as_deref().is_some_and(|text| text.contains("all 1025 slots are taken")), "{full:?}");

    let mut dead: Vec<Child> = workers.drain(..100).collect();
    dead.iter_mut().for_each(|child| home.kill(child));
    workers[0].tell("watch");
    workers[0].tell("settle");
    assert_eq!(home.about(Kind::WorkerDied).len(), 100);
    assert_eq!(home.node.snapshot().total, WORKERS - 100);
    leave_all(&mut workers);
    let mine: Vec<_> = home.about(Kind::WorkerExited).iter().map(|e| e.counts.mine).collect();
    assert_eq!(mine, (1..=WORKERS - 100).rev().collect::<Vec<_>>());
    home.check();
}

#[test]
fn sixty_four_generations_drain_at_once() {
    const GENERATIONS: usize = 64;
    let _alone = alone();
    let mut home = Home::with(|options| options.slots(256).journal_records(4096));
    let mut old: Vec<Child> = Vec::new();
    let mut ids = Vec::new();
    for _ in 0..GENERATIONS {
        let generation = home.begin(2);
        let workers = [home.quiet(&generation, 0), home.quiet(&generation, 1)];
        // Those before have been told to go, and take their time.
        let from = old.len().saturating_sub(2);
        old[from..].iter_mut().for_each(|child| child.tell("drain"));
        old.extend(workers);
        ids.push(generation.id());
    }
    let snapshot = home.node.snapshot();
    assert_eq!(snapshot.generations.len(), GENERATIONS);
    assert_eq!(snapshot.total as usize, 2 * GENERATIONS);
    let draining = snapshot.generations.iter().map(|g| g.counts.draining).sum::<u32>();
    assert_eq!(draining as usize, 2 * (GENERATIONS - 1));

    // The older ones go in an order of their own: each generation ends once, with its last worker.
    let newest: Vec<Child> = old.split_off(2 * (GENERATIONS - 1));
    let (mut even, mut odd): (Vec<_>, Vec<_>) = old.into_iter().enumerate().partition(|(n, _)| n % 2 == 0);
    leave_all(even.iter_mut().rev().map(|(_, child)| child));
    assert!(home.about(Kind::GenerationEnded).is_empty(), "each has one worker left");
    leave_all(odd.iter_mut().map(|(_, child)| child));
    let ended: Vec<_> = home.about(Kind::GenerationEnded).iter().map(|e| e.generation).collect();
    assert_eq!(ended, ids[..GENERATIONS - 1], "in the order of their last workers");
    let mut newest = newest;
    leave_all(&mut newest);
    home.check();
}

#[test]
fn a_storm_overruns_the_journal_and_says_how_much_it_lost() {
    let _alone = alone();
    let mut home = Home::with(|options| options.slots(16).journal_records(64));
    let mut cursor = Cursor::at(home.head() + 1);
    let mut began = 0;
    while home.head() < 500 {
        let generation = home.begin(1);
        let mut worker = home.quiet(&generation, 0);
        leave_all([&mut worker]);
        began += 1;
    }
    let batch = home.node.events(&mut cursor, usize::MAX);
    assert_eq!(batch.lost + batch.events.len() as u64, home.head());
    assert_eq!(batch.events.len(), 64);
    let numbers: Vec<_> = batch.events.iter().map(|e| e.seq).collect();
    assert_eq!(numbers, (batch.lost + 1..=home.head()).collect::<Vec<_>>(), "what is there is whole");
    let ended = home.callbacks.about(Kind::GenerationEnded).len();
    assert_eq!(ended, began, "and every callback has run");
}

#[test]
fn a_worker_without_descriptors_joins_beats_and_leaves() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(2);
    let mut quiet = home.quiet(&generation, 0);
    let callbacks = home.callbacks;
    let mut poor = fork(|line| {
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        setrlimit(Resource::Nofile, none).expect("less is always allowed");
        let (worker, transitions) = generation.join(Join::worker(Some(1))).expect("join");
        callbacks.run(transitions);
        worker.beat();
        // It cannot watch, and says so.
        let error = worker.watch().err().expect("there is no descriptor");
        line.say(error.kind().name());
        line.hear();
        callbacks.run(worker.drain(Wait::Timeout).expect("drain"));
        callbacks.run(worker.leave(Wait::Timeout).expect("leave"));
        0
    });
    assert_eq!(poor.hear().as_deref(), Some("io"));
    assert_eq!(home.node.snapshot().total, 2);
    poor.say("go");
    poor.ended_well();
    leave_all([&mut quiet]);
    home.check();
}

/// It can beat without memory, and not look; and that it died of it is told as any other death.
#[test]
fn a_worker_without_memory_beats_and_dies_as_it_looks() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(2);
    let mut sentinel = home.serving(&generation, 0);
    let callbacks = home.callbacks;
    let mut poor = fork(|line| {
        let (worker, transitions) = generation.join(Join::worker(Some(1))).expect("join");
        callbacks.run(transitions);
        line.say("joined");
        line.hear();
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        setrlimit(Resource::Core, none).expect("less is always allowed");
        setrlimit(Resource::As, none).expect("less is always allowed");
        // What the allocator still has.
        for size in [1 << 16, 1 << 12, 1 << 8, 16] {
            // SAFETY: what is never used and never given back.
            while !unsafe { libc::malloc(size) }.is_null() {}
        }
        worker.beat();
        drop(worker.node().snapshot());
        0
    });
    poor.expect("joined");
    let told = home.node.snapshot().boot_ns;
    poor.say("spend it");
    home.truth.dead.push((poor.pid(), home.head()));
    let status = poor.wait();
    assert_eq!(status & 0x7f, libc::SIGABRT, "{status:#x}");
    home.node.child_exited(poor.pid(), ExitStatus::from_raw(status));
    let death = home.wait_for(Kind::WorkerDied, poor.pid());
    assert_eq!(death.signal, Some(libc::SIGABRT));
    assert!(death.heartbeat_ns > told, "it has beaten without: {death:?}");
    leave_all([&mut sentinel]);
    home.check();
}

#[test]
fn a_sentinel_without_pidfds_reports_deaths_all_the_same() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(2);
    let mut victim = worker(&generation, home.callbacks, Habit::Quiet, Join::worker(Some(0)));
    let callbacks = home.callbacks;
    let mut sentinel = fork(|line| {
        no_pidfds();
        let (worker, transitions) = generation.join(Join::worker(Some(1))).expect("join");
        callbacks.run(transitions);
        let mut watch = worker.watch().expect("a watch");
        settle(&mut watch, worker.node(), callbacks);
        line.say("watching");
        line.hear();
        settle(&mut watch, worker.node(), callbacks);
        line.say("settled");
        line.hear();
        callbacks.run(worker.leave(Wait::Timeout).expect("leave"));
        0
    });
    assert_eq!(sentinel.hear().as_deref(), Some("watching"));
    home.kill(&mut victim);
    sentinel.say("settle");
    assert_eq!(sentinel.hear().as_deref(), Some("settled"));
    assert_eq!(home.about(Kind::WorkerDied).len(), 1);
    sentinel.say("go");
    sentinel.ended_well();
    home.check();
}

/// A sandbox: from here on pidfd_open(2) is refused.
fn no_pidfds() {
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        // The number of the system call.
        step(LOAD, 0, 0, 0),
        step(JUMP_IF_EQUAL, 0, 1, libc::SYS_pidfd_open as u32),
        step(RETURN, 0, 0, ERRNO | libc::EPERM as u32),
        step(RETURN, 0, 0, ALLOW),
    ];
    let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    // SAFETY: plain calls about this process, with a program that outlives them.
    let answers = unsafe {
        [
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
            libc::prctl(libc::PR_SET_SECCOMP, 2, &raw const filter),
        ]
    };
    assert_eq!(answers, [0, 0], "seccomp: {}", std::io::Error::last_os_error());
}
