//! The node lock: one callback at a time over all processes and threads, passed on at once when its holder dies,
//! and cheap to wait for.

mod family;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use headcount::{ErrorKind, Join, Kind, Wait};

use family::callbacks::Act;
use family::home::{Home, leave_all};
use family::worker::{Habit, start};
use family::{Child, alone, fork, registry, wait_for};

/// A worker that is in the callback of its own start, and stays there.
fn sleeper(home: &Home, generation: &headcount::Generation, number: u32, time: Duration) -> Child {
    home.callbacks.plan(Kind::WorkerStarted, Act::Sleep, 1, time);
    let child = start(generation, home.callbacks, Habit::Quiet, Join::worker(Some(number)));
    wait_for("its callback", || {
        home.callbacks.about(Kind::WorkerStarted).iter().any(|r| r.subject == child.pid()).then_some(())
    });
    child
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_holder_that_is_killed_in_its_callback_passes_the_lock_on_at_once() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(2);
    for waited in [0, 30, 600] {
        let mut holder = sleeper(&home, &generation, 0, LONG);
        let mut waiter = start(&generation, home.callbacks, Habit::Quiet, Join::worker(Some(1)));
        // Waiters look ever less often: after a while it takes longest.
        std::thread::sleep(Duration::from_millis(waited));
        let begun = Instant::now();
        home.kill(&mut holder);
        waiter.expect("joined");
        let took = begun.elapsed();
        assert!(took < Duration::from_millis(100), "after a wait of {waited} ms it took {took:?}");
        let told = home.wait_for(Kind::CallbackDied, holder.pid());
        let about =
            home.events().into_iter().find(|e| e.seq == told.detail).expect("the event that it is about");
        assert_eq!((about.kind, about.pid), (Kind::WorkerStarted, holder.pid()));
        leave_all([&mut waiter]);
    }
    assert_eq!(home.about(Kind::WorkerDied).len(), 3);
}

#[test]
fn a_waiter_gives_up_in_time_and_says_whom_it_waited_for() {
    let _alone = alone();
    let mut home = Home::with(|options| options.lock_timeout(Duration::from_millis(300)));
    let generation = home.begin(2);
    let mut holder = sleeper(&home, &generation, 0, LONG);
    let head = home.head();
    let mut waiter = fork(|line| {
        let begun = Instant::now();
        let error = generation.join(Join::worker(Some(1))).err().expect("the lock is held");
        line.say(&format!("{} {}", begun.elapsed().as_millis(), error.kind().name()));
        line.say(&error.to_string());
        0
    });
    let said = waiter.hear().expect("an error");
    let (took, kind) = said.split_once(' ').expect("two words");
    assert_eq!(kind, "lock_timeout");
    assert!((300..800).contains(&took.parse::<u32>().expect("a number")), "{took} ms");
    let message = waiter.hear().expect("a message");
    for part in [&holder.pid().to_string(), "worker_started", "300ms", "lock_timeout"] {
        assert!(message.contains(part), "{message}: no {part}");
    }
    assert_eq!(home.head(), head, "nothing was done without the lock");
    assert!(home.workers().iter().all(|p| p.pid == holder.pid()), "{:?}", home.workers());
    let holder_seen = home.node.snapshot().holder.expect("a holder");
    assert_eq!(
        (holder_seen.pid, holder_seen.callback.map(|c| c.0)),
        (holder.pid(), Some(Kind::WorkerStarted))
    );

    // Not to wait at all is another error.
    let error = generation.join(Join::worker(Some(1)).wait(Wait::Try)).err().expect("the lock is held");
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.is_busy() && error.to_string().contains(&holder.pid().to_string()), "{error}");
    home.kill(&mut holder);
}

#[test]
fn waiting_costs_next_to_nothing_and_is_told() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(2);
    let mut holder = sleeper(&home, &generation, 0, LONG);
    let node = home.node.clone();
    let mut waiter = fork(|line| {
        let begun = Instant::now();
        let error = generation.join(Join::worker(Some(1)).wait(Wait::For(Duration::from_millis(1500)))).err();
        assert_eq!(error.expect("the lock is held").kind(), ErrorKind::LockTimeout);
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        line.say(&format!("{} {}", begun.elapsed().as_millis(), cpu.tv_nsec / 1_000_000 + cpu.tv_sec * 1000));
        line.say(&node.take_notices().into_iter().map(|n| n.text).collect::<Vec<_>>().join("; "));
        0
    });
    let said = waiter.hear().expect("figures");
    let (took, cpu) = said.split_once(' ').expect("two figures");
    assert!(cpu.parse::<u32>().expect("a number") < 50, "{cpu} ms of CPU for {took} ms of waiting");
    let notices = waiter.hear().expect("notices");
    assert!(notices.contains(&holder.pid().to_string()) && notices.contains("worker_started"), "{notices}");
    home.kill(&mut holder);
}

#[test]
fn heartbeats_and_readers_wait_for_nobody() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(2);
    let mut other = home.quiet(&generation, 1);
    let mut holder = sleeper(&home, &generation, 0, LONG);
    let begun = Instant::now();
    other.tell("beat");
    assert!(home.process(other.pid()).heartbeat_age < Duration::from_secs(1));
    assert_eq!(home.events().len(), 3);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    home.kill(&mut holder);
    leave_all([&mut other]);
}

#[test]
fn a_handler_that_panics_gives_the_lock_back() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(1);
    let callbacks = home.callbacks;
    callbacks.plan(Kind::WorkerStarted, Act::Panic, 1, Duration::ZERO);
    let mut child = fork(|line| {
        let mut worker = None;
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let (joined, transitions) = generation.join(Join::worker(Some(0))).expect("join");
            worker = Some(joined);
            callbacks.run(transitions);
        }));
        assert_eq!(
            panicked.expect_err("a panic").downcast_ref(),
            Some(&"as planned"),
            "the error reaches the caller"
        );
        line.say("panicked");
        line.expect("leave");
        // It has joined all the same, and can go on.
        callbacks.run(worker.expect("joined").leave(Wait::Timeout).expect("leave"));
        0
    });
    child.expect("panicked");
    assert!(home.node.snapshot().holder.is_none());
    let failed = home.wait_for(Kind::CallbackFailed, child.pid());
    let about =
        home.events().into_iter().find(|e| e.seq == failed.detail).expect("the event that it is about");
    assert_eq!((about.kind, about.pid), (Kind::WorkerStarted, child.pid()));
    assert_eq!(home.workers().len(), 1);
    child.say("leave");
    child.ended_well();
    assert!(home.about(Kind::CallbackDied).is_empty() && home.about(Kind::WorkerDied).is_empty());
    assert_eq!(home.about(Kind::GenerationEnded).len(), 1);
    assert!(home.node.snapshot().generations.is_empty());
}

#[test]
fn a_callback_cannot_start_another_transition() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(1);
    let mut child = fork(|_| {
        let (worker, mut transitions) = generation.join(Join::worker(Some(0))).expect("join");
        let begun = Instant::now();
        while transitions.next().is_some() {
            let error = worker.leave(Wait::Timeout).expect_err("in a callback");
            assert_eq!(error.kind(), ErrorKind::Busy);
            assert!(error.to_string().contains("in a callback"), "{error}");
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "it was not waited for");
        worker.leave(Wait::Timeout).expect("leave").run(|_| ());
        0
    });
    child.ended_well();
}

/// Threads of one process and several processes: the kernel keeps only the latter apart.
#[test]
fn no_two_callbacks_run_at_the_same_time() {
    let _alone = alone();
    let mut home = Home::new();
    let inside = home.callbacks.word(0);
    let overlaps = home.callbacks.word(1);
    let handler = |_: &headcount::Transition| {
        if inside.fetch_add(1, SeqCst) != 0 {
            overlaps.fetch_add(1, SeqCst);
        }
        // Long enough for another to come in, if it could.
        (0..500).for_each(|_| std::hint::spin_loop());
        inside.fetch_sub(1, SeqCst);
    };
    // Without waiting: then each release is raced for by those who try at that very moment.
    let patiently = |call: &dyn Fn() -> headcount::Result<headcount::Transitions>| loop {
        match call() {
            Ok(transitions) => return transitions.run(handler),
            Err(e) => assert!(e.is_busy(), "{e}"),
        }
    };
    let generations: Vec<_> = (0..6).map(|_| home.begin(0)).collect();
    let lives = |generation: &headcount::Generation, stop: &AtomicBool| {
        let mut lives = 0;
        while !stop.load(SeqCst) {
            let worker = std::cell::OnceCell::new();
            patiently(&|| {
                let (joined, transitions) = generation.join(Join::worker(None).wait(Wait::Try))?;
                assert!(worker.set(joined).is_ok(), "joined once");
                Ok(transitions)
            });
            let worker = worker.get().expect("joined");
            patiently(&|| worker.leave(Wait::Try));
            lives += 1;
        }
        lives
    };
    let mut children: Vec<Child> = generations
        .chunks(3)
        .map(|generations| {
            fork(|line| {
                let stop = AtomicBool::new(false);
                let lived: Vec<u32> = std::thread::scope(|scope| {
                    let threads: Vec<_> =
                        generations.iter().map(|g| scope.spawn(|| lives(g, &stop))).collect();
                    std::thread::sleep(Duration::from_secs(1));
                    stop.store(true, SeqCst);
                    threads.into_iter().map(|t| t.join().expect("a thread")).collect()
                });
                line.say(&format!("{lived:?}"));
                0
            })
        })
        .collect();
    for child in &mut children {
        let lived = child.hear().expect("figures");
        eprintln!("lives by thread: {lived}");
        assert!(!lived.contains("[0") && !lived.contains(" 0"), "a thread starved: {lived}");
        child.ended_well();
    }
    assert_eq!((overlaps.load(SeqCst), inside.load(SeqCst)), (0, 0));
    assert!(home.workers().is_empty());
}

#[test]
fn a_child_that_is_forked_in_a_callback_changes_nothing() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(1);
    let mut child = home.quiet(&generation, 0);
    let (node, callbacks) = (home.node.clone(), home.callbacks);
    let head = home.head();
    let (_, transitions) =
        home.master.begin(headcount::Begin::new().workers(1), Wait::Timeout).expect("begin");
    let parent = std::process::id();
    let mut grandchild = None;
    transitions.run(|transition| {
        callbacks.handle(transition);
        // It returns from the handler as its parent does, and so from `run`.
        // SAFETY: one test runs at a time, and the child only runs plain code until it ends below.
        grandchild = match unsafe { nix::unistd::fork() }.expect("fork") {
            nix::unistd::ForkResult::Parent { child } => Some(child),
            nix::unistd::ForkResult::Child => None,
        };
        if grandchild.is_some() {
            // The lock is still held after the child has dropped its copy of the transitions.
            wait_for("the child", || (callbacks.word(0).load(SeqCst) != 0).then_some(()));
            let holder = node.snapshot().holder.expect("the lock is held");
            assert_eq!((holder.pid, holder.callback.map(|c| c.0)), (parent, Some(Kind::GenerationStarted)));
        }
    });
    if grandchild.is_none() {
        callbacks.word(0).store(1, SeqCst);
        // SAFETY: ends the process without running the test harness's destructors a second time.
        unsafe { libc::_exit(0) }
    }
    nix::sys::wait::waitpid(grandchild, None).expect("wait");
    assert_eq!(home.head(), head + 1);
    assert_eq!(callbacks.about(Kind::GenerationStarted).len(), 2);
    leave_all([&mut child]);
}

#[test]
fn a_worker_that_waits_to_join_keeps_its_generation_open() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(1);
    let mut old = home.quiet(&generation, 0);
    home.callbacks.plan(Kind::WorkerExited, Act::Sleep, 1, Duration::from_millis(300));
    old.say("leave");
    wait_for("its last callback", || (!home.callbacks.about(Kind::WorkerExited).is_empty()).then_some(()));
    let mut new = start(&generation, home.callbacks, Habit::Quiet, Join::worker(Some(0)).respawned(true));
    old.expect("done");
    new.expect("joined");
    assert!(home.about(Kind::GenerationEnded).is_empty(), "{:?}", home.events());
    leave_all([&mut new]);
    home.check();
}

/// A process that has forked off the node's and is no member of it.
fn stranger() -> Child {
    fork(|line| {
        line.hear();
        0
    })
}

#[test]
fn a_stranger_that_is_named_in_the_lock_holds_nobody_up() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(1);
    let stranger = stranger();
    let lock = &registry::words(&home.place.registry())[registry::LOCK];
    lock.store(registry::name_of(stranger.pid()), SeqCst);
    let error = generation.join(Join::worker(Some(0)).wait(Wait::Try)).err().expect("it may be a holder");
    assert_eq!(error.kind(), ErrorKind::Busy);
    let begun = Instant::now();
    let mut child = home.quiet(&generation, 0);
    // The lock timeout is 10 s.
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    // One that ends is nobody at once.
    lock.store(registry::name_of(stranger.pid()), SeqCst);
    drop(stranger);
    let mut other = home.respawned(&generation, 1, Habit::Quiet);
    leave_all([&mut child, &mut other]);
    assert!(home.about(Kind::CallbackDied).is_empty(), "nobody died in the lock");
}

/// Whoever is named: a worker, or a master that waits for signals and never looks.
#[test]
fn nobody_is_named_in_the_lock_who_only_stands_in_the_table() {
    let _alone = alone();
    let mut home = Home::with(|options| options.lock_timeout(Duration::from_secs(2)));
    let path = home.place.registry();
    // Not forked off the node's processes: it has not mapped the registry.
    let mut stranger = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
    let forge = |pid: u32, birth: u64, name: u64| {
        let forged = registry::slot(&path, 9);
        // `pid`; `role`; `birth`; `namespace` and `birth_kind`; `lock_tag`: it says that it can prove nothing
        forged[2].store(u64::from(pid), SeqCst);
        forged[3].store(1, SeqCst);
        forged[registry::BIRTH].store(birth, SeqCst);
        let words = registry::words(&path);
        let own = registry::slot_of(&path, std::process::id())[registry::NAMESPACE].load(SeqCst);
        forged[registry::NAMESPACE].store(own, SeqCst);
        forged[136 / 8].store(0, SeqCst);
        // `slots_used`, the header's `namespace`, and the lock
        words[176 / 8].store(16 << 32 | 16, SeqCst);
        words[248 / 8].store(1 << 32, SeqCst);
        words[registry::LOCK].store(name, SeqCst);
    };
    let in_time = |home: &mut Home, who: &str| {
        let begun = Instant::now();
        let generation = home.begin(1);
        assert!(begun.elapsed() < Duration::from_millis(500), "{who} held it for {:?}", begun.elapsed());
        leave_all([&mut home.quiet(&generation, 0)]);
    };
    forge(0, 0, 2 << 62);
    in_time(&mut home, "nobody");
    let name = registry::name_of(stranger.id());
    forge(stranger.id(), name & ((1 << 40) - 1), name);
    in_time(&mut home, "a stranger");
    stranger.kill().expect("kill");
    stranger.wait().expect("wait");
}

#[test]
fn a_member_that_is_named_in_the_lock_and_does_not_hold_it_holds_nobody_up() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(3);
    let mut named = home.serving(&generation, 0);
    let lock = &registry::words(&home.place.registry())[registry::LOCK];
    let mut others = Vec::new();
    for (number, pid) in [(1, named.pid()), (2, std::process::id())] {
        lock.store(registry::name_of(pid), SeqCst);
        assert_eq!(home.node.snapshot().holder, None, "it does not say that it holds it");
        let begun = Instant::now();
        others.push(home.serving(&generation, number));
        assert!(begun.elapsed() < Duration::from_secs(5), "the lock timeout is 10 s: {:?}", begun.elapsed());
    }
    // Who is named takes it as if nobody were.
    lock.store(registry::name_of(named.pid()), SeqCst);
    named.tell("leave");
    named.ended_well();
    leave_all(&mut others);
    home.check();
}

#[test]
fn a_stranger_that_is_named_among_those_who_wait_to_join_keeps_no_generation_open() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(1);
    let mut child = home.quiet(&generation, 0);
    let stranger = stranger();
    let words = registry::words(&home.place.registry());
    words[registry::LOCK + 1].store(registry::name_of(stranger.pid()), SeqCst);
    words[registry::LOCK + 17].store(generation.id(), SeqCst);
    leave_all([&mut child]);
    assert_eq!(home.about(Kind::GenerationEnded).len(), 1);
    home.check();
}
