//! A process beside the server, with roles and locks of its node. With a real server, and processes that it did not fork:
//! `crates/headcount-cli/tests/lock.rs`.

mod family;

use std::os::unix::fs::chown;
use std::time::Duration;

use headcount::{Cause, ErrorKind, Event, Kind, LeaderChange, Liveness, Role, SingletonKind, Visitor, Wait};
use nix::sys::signal::Signal;

use family::home::{Home, leave_all};
use family::{Child, PATIENCE, alone, fork, is_root, skip, wait_for};

fn home() -> Home {
    Home::with(|o| o.heartbeat_interval(Duration::from_millis(50)).stall_after(Duration::from_millis(400)))
}

/// A visitor that takes a lock, says so, and leaves when it is told to.
fn holder(home: &Home) -> Child {
    let registry = home.place.registry();
    fork(move |line| {
        let visitor = Visitor::enter(&registry).expect("it takes part");
        let lock = visitor.lock("keys").expect("a lock");
        let guard = lock.acquire(Wait::For(PATIENCE)).expect("the lock");
        line.say(&format!("held {}", guard.abandoned_by().unwrap_or(0)));
        line.hear();
        drop(guard);
        visitor.leave(Wait::Timeout).expect("it leaves");
        0
    })
}

/// A visitor that stands for a role and says what it hears of it.
fn candidate(home: &Home) -> Child {
    let registry = home.place.registry();
    fork(move |line| {
        let visitor = Visitor::enter(&registry).expect("it takes part");
        let leader = visitor.leader("cron").expect("a role");
        line.say("stands");
        loop {
            visitor.tend();
            match leader.poll() {
                Some(LeaderChange::Elected { token }) => line.say(&format!("elected {token}")),
                Some(LeaderChange::GiveUp) => {
                    line.say("gives up");
                    leader.give_up();
                }
                Some(LeaderChange::Lost) => line.say("lost"),
                _ => {}
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    })
}

fn holder_of(home: &Home, kind: SingletonKind) -> Option<u32> {
    home.node.snapshot().singletons.into_iter().find(|x| x.kind == kind)?.holder
}

fn visitors(home: &Home) -> usize {
    home.node.snapshot().processes.iter().filter(|p| p.role == Role::Visitor).count()
}

fn newest(home: &Home, kind: Kind) -> Event {
    wait_for(&kind.to_string(), || home.about(kind).pop())
}

#[test]
fn it_is_shown_and_neither_counted_nor_told_of() {
    let _alone = alone();
    let mut home = home();
    let generation = home.begin(1);
    let mut worker = home.serving(&generation, 0);
    let head = home.head();
    let mut visitor = holder(&home);
    visitor.expect("held 0");
    let shown = home.process(visitor.pid());
    assert_eq!((shown.role, shown.liveness, shown.generation), (Role::Visitor, Liveness::Alive, 0));
    assert_eq!((home.node.snapshot().total, holder_of(&home, SingletonKind::Lock)), (1, Some(visitor.pid())));
    visitor.say("leave");
    visitor.ended_well();
    assert_eq!((home.head(), visitors(&home)), (head, 0));
    leave_all([&mut worker]);
    home.check();
}

#[test]
fn its_death_is_told_by_what_it_had() {
    let _alone = alone();
    let mut home = home();
    let generation = home.begin(1);
    let mut worker = home.serving(&generation, 0);
    let mut first = holder(&home);
    first.expect("held 0");
    // Nobody waits for the lock.
    first.kill();
    let abandoned = newest(&home, Kind::LockAbandoned);
    assert_eq!((abandoned.pid, abandoned.name.as_deref()), (first.pid(), Some("keys")));
    wait_for("its slot to be free", || (visitors(&home) == 0).then_some(()));
    // The next one is told, and one that waits gets it at once.
    let mut second = holder(&home);
    second.expect(&format!("held {}", first.pid()));
    let mut third = holder(&home);
    wait_for("the third to wait", || {
        home.node.snapshot().singletons.iter().any(|x| x.waiters == 1).then_some(())
    });
    second.kill();
    third.expect(&format!("held {}", second.pid()));
    wait_for("the second report", || (home.about(Kind::LockAbandoned).len() == 2).then_some(()));
    third.say("leave");
    third.ended_well();
    assert_eq!(home.about(Kind::LockAbandoned).len(), 2);
    leave_all([&mut worker]);
    home.check();
}

#[test]
fn roles_go_to_workers_first_and_from_one_that_hangs_to_the_next() {
    let _alone = alone();
    let mut home = home();
    let generation = home.begin(1);
    let mut worker = home.serving(&generation, 0);
    let mut all = [candidate(&home), candidate(&home)];
    all.iter_mut().for_each(|child| child.expect("stands"));
    let token = |heard: Option<String>| {
        let heard = heard.expect("news");
        heard.strip_prefix("elected ").unwrap_or_else(|| panic!("{heard}")).parse::<u64>().expect("a token")
    };
    let leads = wait_for("a leader", || holder_of(&home, SingletonKind::Role));
    let [first, second] = &mut all;
    let (first, second) = if first.pid() == leads { (first, second) } else { (second, first) };
    let one = token(first.hear());
    first.signal(Signal::SIGSTOP);
    let two = token(second.hear());
    assert!(two > one);
    assert_eq!(newest(&home, Kind::LeaderLost).cause, Cause::Overdue);
    assert!(home.about(Kind::WorkerStalled).is_empty(), "it is no worker");
    first.signal(Signal::SIGCONT);
    first.expect("lost");
    // A worker that stands for it is preferred.
    worker.tell("stand cron");
    second.expect("gives up");
    wait_for("the worker to lead", || {
        (holder_of(&home, SingletonKind::Role) == Some(worker.pid())).then_some(())
    });
    all.iter_mut().for_each(|child| _ = child.kill());
    wait_for("their slots to be free", || (visitors(&home) == 0).then_some(()));
    leave_all([&mut worker]);
    home.check();
}

#[test]
fn where_no_server_runs_visitors_do_what_there_is_to_do() {
    let _alone = alone();
    let mut home = home();
    let generation = home.begin(1);
    let mut worker = home.serving(&generation, 0);
    leave_all([&mut worker]);
    home.check();
    let mut first = candidate(&home);
    first.expect("stands");
    assert!(first.hear().expect("news").starts_with("elected"));
    let mut second = candidate(&home);
    second.expect("stands");
    first.kill();
    assert!(second.hear().expect("news").starts_with("elected"), "it has seen the death itself");
    assert_eq!(newest(&home, Kind::LeaderLost).pid, first.pid());
    wait_for("a free slot", || (visitors(&home) == 1).then_some(()));
    second.kill();
}

#[test]
fn who_cannot_take_part_is_told_why() {
    let _alone = alone();
    let home = home();
    let registry = home.place.registry();
    let refused = |path: &std::path::Path| Visitor::enter(path).map(|_| ()).expect_err("it is refused");
    let missing = refused(&home.place.folder().join("none.registry"));
    assert_eq!(missing.kind(), ErrorKind::NotFound, "{missing}");
    assert!(missing.to_string().contains("start its server"), "{missing}");
    // This is the master.
    let twice = refused(&registry);
    assert_eq!(twice.kind(), ErrorKind::WrongState, "{twice}");
    assert!(twice.to_string().contains("takes part in it already"), "{twice}");
    if !is_root() {
        return skip("only root can give a file to another user");
    }
    let theirs = home.place.folder().join("theirs.registry");
    std::fs::copy(&registry, &theirs).expect("our own folder");
    chown(&theirs, Some(65534), Some(65534)).expect("root may");
    let foreign = refused(&theirs);
    assert_eq!(foreign.kind(), ErrorKind::Permission, "{foreign}");
    assert!(foreign.to_string().contains("belongs to uid 65534"), "{foreign}");
    // Its lock file is gone.
    chown(&theirs, Some(0), Some(0)).expect("root may");
    let unlocked = refused(&theirs);
    assert!(unlocked.to_string().contains("theirs.registry.lock"), "{unlocked}");
}
