//! Several masters of one node, or of two that must not meet: binary upgrade, its roll-back, strangers, a server
//! that goes into the background, and workers that lose their master.

mod family;

use std::io::{BufRead, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use headcount::{
    Begin, Begun, Cause, Cursor, Event, Generation, Join, Kind, LeaderChange, Liveness, Master, Observer,
    Once, OnceScope, Role, Snapshot, State, Wait,
};

use nix::fcntl::posix_fallocate;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;

use family::callbacks::Callbacks;
use family::home::{Home, leave_all, triple};
use family::worker::{Habit, worker};
use family::{Child, Place, alone, fork, wait_for};

/// Names the registry that the test below opens, in a process that was started as a new binary.
const PLACE: &str = "HEADCOUNT_TEST_PLACE";

fn begin(master: &Master, callbacks: Callbacks) -> Generation {
    let (generation, transitions) = master.begin(Begin::new().workers(1), Wait::Timeout).expect("begin");
    callbacks.run(transitions);
    master.commit(generation.id());
    generation
}

fn observe(place: &Place) -> (Snapshot, Vec<Event>) {
    let observer = Observer::open(&place.registry()).expect("observe");
    let events = observer.events(&mut Cursor::oldest(), usize::MAX).expect("read").events;
    (observer.snapshot().expect("read"), events)
}

/// What the new binary of an upgrade does: no test, but a program in one.
#[test]
#[ignore = "is run by `an_upgrade_is_one_node`"]
fn the_new_binary() {
    let Some(registry) = std::env::var_os(PLACE) else { return };
    let callbacks = Callbacks::new();
    let master =
        headcount::Options::new("node").path(registry).slots(16).journal_records(256).open().expect("open");
    let generation = begin(&master, callbacks);
    let mut child = worker(&generation, callbacks, Habit::Serving, Join::worker(Some(0)));
    // Until the old one says so.
    std::io::stdin().lock().read_line(&mut String::new()).expect("hear");
    leave_all([&mut child]);
    callbacks.run(master.leave(Wait::Timeout).expect("leave"));
}

/// The old master: does as it is told, and starts the new one.
fn old_master(place: &Place, line: &mut family::Line) -> i32 {
    let callbacks = Callbacks::new();
    let master = place.open();
    let generation = begin(&master, callbacks);
    let mut child = worker(&generation, callbacks, Habit::Serving, Join::worker(Some(0)));
    let mut new = None;
    line.say("ready");
    while let Some(order) = line.hear() {
        match order.as_str() {
            "upgrade" => {
                let program = std::env::current_exe().expect("this program");
                let spawned = Command::new(program)
                    .args(["--exact", "the_new_binary", "--ignored", "--test-threads=1"])
                    .env(PLACE, place.registry())
                    .stdin(Stdio::piped())
                    .stdout(Stdio::null())
                    .spawn();
                new = Some(spawned.expect("start the new binary"));
            }
            "workers leave" => leave_all([&mut child]),
            "workers come back" => {
                child = worker(&generation, callbacks, Habit::Serving, Join::worker(Some(0)))
            }
            "roll back" => {
                let mut process: std::process::Child = new.take().expect("an upgrade");
                process.stdin.take().expect("a pipe").write_all(b"leave\n").expect("tell");
                assert!(process.wait().expect("wait").success());
            }
            "leave" => break,
            _ => panic!("{order}"),
        }
        line.say("done");
    }
    leave_all([&mut child]);
    callbacks.run(master.leave(Wait::Timeout).expect("leave"));
    0
}

#[test]
fn an_upgrade_is_one_node() {
    let _alone = alone();
    let place = Place::new();
    let mut old = fork(|line| old_master(&place, line));
    old.expect("ready");
    old.tell("upgrade");
    wait_for("the new master's worker", || (observe(&place).0.total == 2).then_some(()));
    let (snapshot, events) = observe(&place);
    assert_eq!(snapshot.processes.iter().filter(|p| p.role == Role::Master).count(), 2);
    let start = events.iter().rfind(|e| e.kind == Kind::GenerationStarted).expect("a start");
    assert_eq!((triple(start), start.cause, start.previous_run), ((Some(1), 0, None), Cause::Upgrade, None));
    assert_ne!(start.pid, old.pid());

    // The old workers leave, the old master stays.
    old.tell("workers leave");
    let (snapshot, events) = observe(&place);
    let ended = events.last().expect("an event");
    assert_eq!((ended.kind, ended.generation, triple(ended)), (Kind::GenerationEnded, 1, (None, 0, Some(1))));
    assert_eq!(ended.cause, Cause::Superseded);
    assert_eq!(snapshot.processes.iter().filter(|p| p.role == Role::Master).count(), 2);

    // Rolled back: the old master starts workers with the configuration that it has, and the new one leaves.
    old.tell("workers come back");
    let (_, events) = observe(&place);
    let resumed = events.iter().rfind(|e| e.kind == Kind::GenerationStarted).expect("a start");
    assert_eq!((resumed.generation, resumed.cause, triple(resumed)), (1, Cause::Resume, (None, 0, Some(1))));
    old.tell("roll back");
    let (snapshot, events) = observe(&place);
    let ended = events.iter().rfind(|e| e.kind == Kind::GenerationEnded).expect("an end");
    assert_eq!((ended.generation, triple(ended)), (2, (Some(1), 0, None)));
    let exit = events.iter().rfind(|e| e.kind == Kind::WorkerExited).expect("an exit");
    assert_eq!((exit.cause, ended.cause), (Cause::Superseded, Cause::Superseded), "the node goes on");
    assert_eq!(snapshot.processes.iter().filter(|p| p.role == Role::Master).count(), 1);

    old.say("leave");
    old.ended_well();
    let (snapshot, events) = observe(&place);
    assert!(snapshot.processes.is_empty() && snapshot.generations.is_empty(), "{snapshot:?}");
    let stop = events.iter().rfind(|e| e.kind == Kind::WorkerExited).expect("an exit");
    assert_eq!((stop.cause, triple(stop)), (Cause::Stop, (None, 1, None)));
}

/// A master that tells its node's name and the first notice, and stays until it is told to go.
fn stranger(place: &Place, predecessor: Option<u32>) -> (Child, String, String) {
    let options = place.options();
    let options = predecessor.into_iter().fold(options, headcount::Options::takes_over_from);
    let mut child = fork(|line| {
        let master = options.open().expect("open");
        let node = master.node();
        let notice = node.take_notices().first().map_or_else(String::new, |n| n.text.clone());
        line.say(node.name());
        line.say(&notice);
        line.say(&node.path().map_or_else(String::new, |p| p.display().to_string()));
        let generation = begin(&master, Callbacks::new());
        // Its only process, so that it is certain which one is the master.
        generation.join(Join::worker(None)).expect("join").1.run(|_| ());
        line.say("serving");
        line.hear();
        0
    });
    let name = child.hear().expect("a name");
    let notice = child.hear().expect("a notice");
    let path = child.hear().expect("a path");
    assert!(path.ends_with(&format!("{name}.registry")), "{path}");
    child.expect("serving");
    (child, name, notice)
}

#[test]
fn a_server_that_a_worker_starts_is_another_one() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(1);
    let registry = home.place.registry();
    let mut child = fork(|line| {
        let (worker, transitions) = generation.join(Join::worker(Some(0))).expect("join");
        transitions.run(|_| ());
        let program = std::env::current_exe().expect("this program");
        let mut server = Command::new(program)
            .args(["--exact", "the_new_binary", "--ignored", "--test-threads=1"])
            .env(PLACE, &registry)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("start a server");
        line.expect("end");
        server.stdin.take().expect("a pipe").write_all(b"leave\n").expect("tell");
        assert!(server.wait().expect("wait").success());
        worker.leave(Wait::Timeout).expect("leave").run(|_| ());
        0
    });
    // Its parent is a member of the node, but no master of it.
    let other = home.place.folder().join("node-2.registry");
    let snapshot = wait_for("its worker", || {
        let snapshot = Observer::open(&other).ok()?.snapshot().ok()?;
        (snapshot.total == 1).then_some(snapshot)
    });
    assert_eq!(snapshot.node, "node-2");
    let (snapshot, _) = observe(&home.place);
    assert_eq!((snapshot.processes.len(), snapshot.total), (2, 1), "{snapshot:?}");
    child.say("end");
    child.ended_well();
}

#[test]
fn two_servers_do_not_share_a_node_by_accident() {
    let _alone = alone();
    let place = Place::new();
    let (mut first, name, notice) = stranger(&place, None);
    assert_eq!((&*name, &*notice), ("node", ""));
    let (_second, name, notice) = stranger(&place, None);
    assert_eq!(name, "node-2");
    assert!(
        notice.contains(&format!("master is process {}", first.pid())) && notice.contains("option `node`"),
        "{notice}"
    );
    let (_third, name, _) = stranger(&place, None);
    assert_eq!(name, "node-3");
    assert_eq!(observe(&place).1.len(), 2, "the others have left no trace in the first one's journal");
    first.kill();
    // Its name is free again; nobody else's is.
    let (_fourth, name, notice) = stranger(&place, None);
    assert_eq!((&*name, &*notice), ("node", ""));
}

/// Until it is certain which of its processes is the master: while it goes into the background, there is a moment in
/// which none of them has the master's slot.
#[test]
fn a_server_that_is_just_starting_has_its_name() {
    let _alone = alone();
    let place = Place::new();
    let mut first = fork(|line| {
        let master = place.open();
        let generation = begin(&master, Callbacks::new());
        line.say("begun");
        line.expect("go on");
        let mut child = worker(&generation, Callbacks::new(), Habit::Quiet, Join::worker(Some(0)));
        line.say("serving");
        line.hear();
        leave_all([&mut child]);
        0
    });
    first.expect("begun");
    let second = || {
        let mut second = fork(|line| {
            let master = place.options().lock_timeout(Duration::from_millis(100)).open().expect("open");
            let notices: Vec<_> = master.node().take_notices().into_iter().map(|n| n.text).collect();
            line.say(&format!("{}: {}", master.node().name(), notices.join("; ")));
            0
        });
        let said = second.hear().expect("a name and notices");
        second.ended_well();
        said
    };
    let said = second();
    assert!(said.starts_with("node-2: ") && said.contains("just starting"), "{said}");
    // From its first worker on it is known for what it is.
    first.say("go on");
    first.expect("serving");
    let said = second();
    let by_whom = format!("master is process {}", first.pid());
    assert!(said.starts_with("node-2: ") && said.contains(&by_whom), "{said}");
    first.say("end");
    first.ended_well();
    assert_eq!(second(), "node:");
}

#[test]
fn a_server_that_says_so_takes_over() {
    let _alone = alone();
    let place = Place::new();
    let (old, ..) = stranger(&place, None);
    let (_new, name, notice) = stranger(&place, Some(old.pid()));
    assert_eq!((&*name, &*notice), ("node", ""));
    let start = wait_for("a second start", || observe(&place).1.into_iter().find(|e| e.generation == 2));
    assert_eq!(start.cause, Cause::Upgrade);
}

#[test]
fn a_server_goes_into_the_background() {
    let _alone = alone();
    goes_into_the_background(Duration::ZERO, false);
}

#[test]
fn a_server_goes_into_the_background_of_a_slow_machine() {
    let _alone = alone();
    goes_into_the_background(Duration::from_millis(300), false);
}

#[test]
fn a_server_that_has_begun_a_session_is_sure_of_its_parents_end() {
    let _alone = alone();
    // Longer than it would wait for a parent that may be a master, and its own.
    goes_into_the_background(Duration::from_millis(1500), true);
}

/// The foreground process needs that long to end.
fn goes_into_the_background(slow: Duration, with_session: bool) {
    let place = Place::new();
    let callbacks = Callbacks::new();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("become a subreaper");
    let mut foreground = fork(|line| {
        let master = place.open();
        let (generation, transitions) = master.begin(Begin::new().workers(1), Wait::Timeout).expect("begin");
        callbacks.run(transitions);
        // Forgotten: the foreground process ends, and its child goes on.
        std::mem::forget(fork(|_| {
            if with_session {
                rustix::process::setsid().expect("a session");
            }
            assert!(master.adopt(Wait::Timeout).expect("adopt"), "it is the master now");
            assert!(!master.adopt(Wait::Timeout).expect("adopt again"), "it was already");
            master.commit(generation.id());
            let mut child = worker(&generation, callbacks, Habit::Serving, Join::worker(Some(0)));
            let reload = begin(&master, callbacks);
            let mut second = worker(&reload, callbacks, Habit::Serving, Join::worker(Some(0)));
            callbacks.word(0).store(u64::from(std::process::id()), SeqCst);
            wait_for("the test", || (callbacks.word(1).load(SeqCst) != 0).then_some(()));
            leave_all([&mut child]);
            leave_all([&mut second]);
            callbacks.run(master.leave(Wait::Timeout).expect("leave"));
            0
        }));
        line.say("forked");
        std::thread::sleep(slow);
        0
    });
    foreground.expect("forked");
    assert_eq!(foreground.wait(), 0);
    let word = |i| callbacks.word(i).load(SeqCst);
    let master = wait_for("the background process", || Some(word(0)).filter(|&pid| pid != 0)) as u32;
    let (snapshot, _) = observe(&place);
    let masters: Vec<_> =
        snapshot.processes.iter().filter(|p| p.role == Role::Master).map(|p| p.pid).collect();
    assert_eq!(masters, [master], "{snapshot:?}");
    assert!(
        snapshot.generations.iter().all(|g| g.master == master && g.master_alive == Some(true)),
        "{snapshot:?}"
    );
    callbacks.word(1).store(1, SeqCst);
    let pid = rustix::process::Pid::from_raw(master as i32);
    let ended = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty())
        .expect("wait")
        .expect("a status");
    assert_eq!(ended.1.exit_status(), Some(0));
    let (snapshot, events) = observe(&place);
    assert!(snapshot.processes.is_empty() && snapshot.generations.is_empty(), "{snapshot:?}");
    let causes: Vec<_> =
        events.iter().filter(|e| e.kind == Kind::GenerationStarted).map(|e| e.cause).collect();
    assert_eq!(causes, [Cause::Start, Cause::Reload]);
    let odd = |e: &&Event| matches!(e.kind, Kind::MasterLost | Kind::GenerationAbandoned | Kind::WorkerDied);
    assert!(!events.iter().any(|e| odd(&e)), "{events:?}");
}

#[test]
fn a_child_of_a_living_master_does_not_adopt() {
    let _alone = alone();
    let home = Home::new();
    let mut child = fork(|_| i32::from(home.master.adopt(Wait::Timeout).expect("adopt")));
    assert_eq!(child.wait(), 0);
    assert!(!home.master.adopt(Wait::Timeout).expect("adopt"), "the master itself has nothing to adopt");
}

#[test]
fn workers_that_lose_their_master_serve_on() {
    let _alone = alone();
    let place = Place::new();
    let callbacks = Callbacks::new();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("become a subreaper");
    let stop = callbacks.word(0);
    let mut master = fork(|line| {
        let master = place.open();
        let (generation, transitions) = master.begin(Begin::new().workers(2), Wait::Timeout).expect("begin");
        callbacks.run(transitions);
        master.commit(generation.id());
        for number in 0..2 {
            // Workers that go on when their master does not.
            let mut child = fork(|line| {
                let (worker, transitions) = generation.join(Join::worker(Some(number))).expect("join");
                callbacks.run(transitions);
                let mut watch = worker.watch().expect("a watch");
                // Or it would still be starting when it is looked at.
                worker.beat();
                line.say("joined");
                wait_for("the test", || {
                    worker.beat();
                    match watch.process() {
                        Ok(transitions) => _ = callbacks.run(transitions),
                        Err(e) => assert!(e.is_busy(), "{e}"),
                    }
                    (stop.load(SeqCst) != 0).then_some(())
                });
                callbacks.run(worker.leave(Wait::Timeout).expect("leave"));
                0
            });
            child.expect("joined");
            std::mem::forget(child);
        }
        line.say("ready");
        line.hear();
        0
    });
    master.expect("ready");
    let status = master.kill();
    wait_for("the loss to be reported", || {
        callbacks.about(Kind::MasterLost).iter().any(|r| r.ended).then_some(())
    });
    let (snapshot, events) = observe(&place);
    let lost: Vec<_> = events.iter().filter(|e| e.kind == Kind::MasterLost).collect();
    assert_eq!(lost.len(), 1);
    assert_eq!((lost[0].pid, lost[0].generation, lost[0].counts.mine), (master.pid(), 1, 2));
    assert!(lost[0].signal.is_none_or(|s| s == status), "{lost:?}");
    assert_eq!(snapshot.total, 2, "the counts go on");
    assert!(
        snapshot.processes.iter().all(|p| p.state == State::Orphaned && p.liveness == Liveness::Alive),
        "{snapshot:?}"
    );
    assert_eq!(snapshot.generations[0].master_alive, Some(false));

    // A new server is a start; it says what it found, and leaves the orphans alone.
    let mut second = fork(|_| {
        let master = place.open();
        let node = master.node();
        let generation = begin(&master, callbacks);
        let mut child = worker(&generation, callbacks, Habit::Serving, Join::worker(Some(0)));
        stop.store(1, SeqCst);
        wait_for("the orphans to leave", || (node.snapshot().total == 1).then_some(()));
        wait_for("their generation to end", || (node.snapshot().generations.len() == 1).then_some(()));
        leave_all([&mut child]);
        callbacks.run(master.leave(Wait::Timeout).expect("leave"));
        0
    });
    second.ended_well();
    let (_, events) = observe(&place);
    let start = events.iter().find(|e| e.generation == 2).expect("a start");
    assert_eq!((triple(start), start.cause), ((Some(2), 0, None), Cause::Start));
    let unclean = headcount::PreviousRun::Unclean { generation: 1, workers: 2 };
    assert_eq!(start.previous_run, Some(unclean));
    let ended: Vec<_> =
        events.iter().filter(|e| e.kind == Kind::GenerationEnded).map(|e| e.generation).collect();
    assert_eq!(ended, [1, 2]);
    assert_eq!(callbacks.about(Kind::MasterLost).len(), 1);
}

/// They keep what they have, so nobody else gets it meanwhile, although a start begins anew what is once for the node.
#[test]
fn orphans_keep_their_locks_and_onces_over_a_start_and_hand_their_role_on() {
    let _alone = alone();
    let (place, callbacks) = (Place::new(), Callbacks::new());
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("become a subreaper");
    let stop = callbacks.word(0);
    let mut first = fork(|line| {
        let generation = begin(&place.open(), callbacks);
        let mut orphan = fork(|line| {
            let (worker, transitions) = generation.join(Join::worker(Some(0))).expect("join");
            callbacks.run(transitions);
            let mut watch = worker.watch().expect("a watch");
            let cron = worker.leader("cron").expect("stand");
            let (keys, idle) = (worker.lock("keys").expect("a lock"), worker.lock("idle").expect("a lock"));
            let guard = keys.acquire(Wait::Try).expect("it is free");
            drop(idle.acquire(Wait::Try).expect("it is free"));
            let Begun::Run(run) =
                worker.begin_once(OnceScope::Node, "migrate", Wait::Timeout).expect("begin")
            else {
                panic!("nobody else is there");
            };
            let done = worker.once(OnceScope::Node, "done", |_| Ok::<_, ()>(()));
            assert_eq!(done.expect("once"), Once::Done);
            let turn = |watch: &mut headcount::Watch| {
                worker.beat();
                match watch.process() {
                    Ok(transitions) => _ = callbacks.run(transitions),
                    Err(e) => assert!(e.is_busy(), "{e}"),
                }
                cron.poll()
            };
            let token = wait_for("the role", || match turn(&mut watch) {
                Some(LeaderChange::Elected { token }) => Some(token),
                _ => None,
            });
            line.say("joined");
            wait_for("to be asked for the role", || {
                assert!(cron.token().is_none_or(|now| now == token));
                (turn(&mut watch) == Some(LeaderChange::GiveUp)).then(|| cron.give_up())
            });
            wait_for("the test", || {
                turn(&mut watch);
                (stop.load(SeqCst) != 0).then_some(())
            });
            run.done().expect("it was ours all the time");
            drop(guard);
            callbacks.run(worker.leave(Wait::Timeout).expect("leave"));
            0
        });
        orphan.expect("joined");
        std::mem::forget(orphan);
        line.say("ready");
        line.hear();
        0
    });
    first.expect("ready");
    first.kill();

    let mut second = fork(|_| {
        let master = place.open();
        let node = master.node();
        let generation = begin(&master, callbacks);
        let mut child = worker(&generation, callbacks, Habit::Serving, Join::worker(Some(0)));
        child.tell("stand cron");
        let mut answer = |order: &str| {
            child.say(order);
            child.hear().expect("an answer")
        };
        assert!(answer("lock keys 0").starts_with("error busy: "), "two would hold it");
        assert!(answer("lock idle 0").starts_with("locked "));
        assert!(answer("once node migrate do").starts_with("running "), "two would be at it");
        assert_eq!(answer("once node done do"), "run 1 after None None", "a new run begins it anew");
        child.expect("did");
        wait_for("the role to move", || {
            let role = node.snapshot().singletons.into_iter().find(|x| x.name == "cron")?;
            (role.holder == Some(child.pid())).then_some(())
        });
        stop.store(1, SeqCst);
        wait_for("the orphan to leave", || (node.snapshot().total == 1).then_some(()));
        child.tell("unlock");
        child.say("lock keys 0");
        assert!(child.hear().expect("an answer").ends_with(" after None"), "it had been released");
        leave_all([&mut child]);
        callbacks.run(master.leave(Wait::Timeout).expect("leave"));
        0
    });
    second.ended_well();
}

/// A server that is killed and started again at once meets its own master, which to the kernel is alive for a moment more.
#[test]
fn a_start_while_the_master_before_is_ending_goes_on_with_its_node() {
    let _alone = alone();
    let place = Place::new();
    // Given back after its locks, and slowly.
    let hoard = memfd_create(c"hoard", MFdFlags::empty()).expect("a file in memory");
    posix_fallocate(&hoard, 0, 256 << 20).expect("memory");
    let mut old = fork(|line| {
        let master = place.open();
        begin(&master, Callbacks::new());
        line.say("ready");
        line.hear();
        0
    });
    drop(hoard);
    old.expect("ready");
    old.signal(Signal::SIGKILL);
    let maps = format!("/proc/{}/maps", old.pid());
    wait_for("it to give up its memory", || std::fs::read_to_string(&maps).ok().filter(String::is_empty));
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", old.pid())).unwrap_or_default();
    let was_ending = !stat.contains(") Z ");
    let master = place.open();
    assert_eq!(master.node().path(), Some(place.registry().as_path()));
    let generation = begin(&master, Callbacks::new());
    assert_eq!(generation.id(), 2);
    old.wait();
    if !was_ending {
        family::skip("the master ended too quickly to be met on its way out");
    }
}
