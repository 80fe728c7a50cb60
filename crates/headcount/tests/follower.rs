//! Following a registry from another process: what happens to it, to its file and to its node, as it comes.

mod family;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use headcount::{
    Begin, Cursor, Event, Follow, Follower, Followers, Generation, Item, Join, Kind, Master, Wait,
};
use nix::sys::signal::Signal;

use family::callbacks::Callbacks;
use family::worker::{Habit, worker};
use family::{Child, Line, PATIENCE, Place, alone, fork, is_root, registry, skip};

/// A node in processes that are not the test's own. Its workers are children of the master.
fn elsewhere(place: &Place, life: impl FnOnce(&Master, Callbacks, &mut Line)) -> Child {
    let callbacks = Callbacks::new();
    let mut master = fork(|line| {
        life(&place.open(), callbacks, line);
        0
    });
    master.expect("ready");
    master
}

fn begin(master: &Master, callbacks: Callbacks, workers: u32) -> Generation {
    let begun = master.begin(Begin::new().workers(workers), Wait::Timeout);
    let (generation, transitions) = begun.expect("begin");
    callbacks.run(transitions);
    master.commit(generation.id());
    generation
}

/// A master with so many workers, which do nothing, until it hears something; then all leave. Says their process ids.
fn serving(place: &Place, workers: u32) -> (Child, Vec<u32>) {
    let mut master = elsewhere(place, |master, callbacks, line| {
        let generation = begin(master, callbacks, workers);
        let mut children: Vec<_> = (0..workers)
            .map(|n| worker(&generation, callbacks, Habit::Quiet, Join::worker(Some(n))))
            .collect();
        line.say("ready");
        for child in &children {
            line.say(&child.pid().to_string());
        }
        line.hear();
        family::home::leave_all(&mut children);
        callbacks.run(master.leave(Wait::Timeout).expect("leave"));
    });
    let mut pids = vec![master.pid()];
    pids.extend((0..workers).map(|_| master.hear().expect("a pid").parse::<u32>().expect("a number")));
    (master, pids)
}

/// What a follower tells, in short.
fn short(item: &Item) -> String {
    match item {
        Item::Events(events) => {
            let seqs: Vec<_> = events.iter().map(|e| e.seq).collect();
            assert!(seqs.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seqs:?}");
            format!("events {}..{}", seqs[0], seqs[seqs.len() - 1])
        }
        Item::Lost { first, count } => format!("lost {count} from {first}"),
        Item::SetBack { wanted, next } => format!("set back from {wanted} to {next}"),
        Item::Ended { .. } => "ended".to_owned(),
        Item::Node(liveness) => format!("node {liveness:?}").to_lowercase(),
        Item::Unreadable(error) => format!("unreadable {}", error.kind().name()),
        other => format!("{other:?}").to_lowercase(),
    }
}

fn next(follower: &mut Follower) -> Item {
    let item = follower.next_within(Some(PATIENCE)).expect("wait");
    item.unwrap_or_else(|| panic!("nothing was told for {PATIENCE:?}"))
}

/// Items until this one; they are what `all` says.
fn expect(follower: &mut Follower, all: &[&str]) {
    let told: Vec<_> = all.iter().map(|_| short(&next(follower))).collect();
    assert_eq!(told, all);
}

/// Reads on until there is an event of this kind. Gives the items before it, without events.
fn until(follower: &mut Follower, kind: Kind) -> Vec<String> {
    let mut others = Vec::new();
    loop {
        match next(follower) {
            Item::Events(events) if events.iter().any(|event| event.kind == kind) => return others,
            Item::Events(_) => {}
            other => others.push(short(&other)),
        }
    }
}

/// Nothing more is told, at least not now.
fn silent(follower: &mut Follower) {
    let more = follower.next_within(Some(Duration::from_millis(60))).expect("wait");
    assert!(more.is_none(), "{more:?}");
}

#[test]
fn a_node_is_followed_from_before_it_is_there_to_its_end() {
    let _alone = alone();
    let place = Place::new();
    let mut follower = Follower::new(place.registry(), Cursor::at(1)).expect("follow");
    silent(&mut follower);
    assert!(follower.observer().is_none());
    let mut master = elsewhere(&place, |master, callbacks, line| {
        line.say("ready");
        line.expect("begin");
        let generation = begin(master, callbacks, 1);
        let mut child = worker(&generation, callbacks, Habit::Quiet, Join::worker(Some(0)));
        line.say("begun");
        line.expect("end");
        family::home::leave_all([&mut child]);
        callbacks.run(master.leave(Wait::Timeout).expect("leave"));
    });
    expect(&mut follower, &["appeared", "node alive"]);
    assert_eq!(follower.observer().expect("it is open").snapshot().expect("read").node, "node");
    silent(&mut follower);
    master.say("begin");
    assert!(until(&mut follower, Kind::WorkerStarted).is_empty());
    master.expect("begun");
    silent(&mut follower);
    master.say("end");
    // It leaves properly: its processes end, each after what it has written.
    let others = until(&mut follower, Kind::MasterExited);
    assert!(others.iter().all(|other| other == "ended"), "{others:?}");
    master.ended_well();
    let mut rest = Vec::new();
    while rest.last().map(String::as_str) != Some("node gone") {
        rest.push(short(&next(&mut follower)));
    }
    assert!(rest.len() <= 3, "{rest:?}");
    silent(&mut follower);
    // Again, in the same file.
    let (mut master, _) = serving(&place, 1);
    let others = until(&mut follower, Kind::WorkerStarted);
    if others.is_empty() {
        expect(&mut follower, &["node alive"]);
    } else {
        assert_eq!(others, ["node alive"]);
    }
    master.say("end");
    master.ended_well();
}

#[test]
fn a_registry_that_is_replaced_is_read_to_its_end_first() {
    let _alone = alone();
    let (place, other) = (Place::new(), Place::new());
    let (mut master, _) = serving(&place, 2);
    let mut follower = Follower::new(place.registry(), Cursor::at(1)).expect("follow");
    expect(&mut follower, &["appeared", "events 1..3", "node alive"]);
    // Both before it is asked again.
    master.say("end");
    master.ended_well();
    // A child that is forked now inherits what the follower has open: that must not keep it busy later.
    let (mut second, _) = serving(&other, 1);
    let lock_file = |place: &Place| place.folder().join("node.registry.lock");
    std::fs::rename(lock_file(&other), lock_file(&place)).expect("replace");
    std::fs::rename(other.registry(), place.registry()).expect("replace");
    let told: Vec<_> = std::iter::from_fn(|| Some(next(&mut follower)))
        .take_while(|item| !matches!(item, Item::Replaced))
        .map(|item| short(&item))
        .collect();
    let events: Vec<_> = told.iter().filter(|t| t.starts_with("events 4..")).collect();
    assert_eq!(events.len(), 1, "{told:?}");
    assert!(told.iter().all(|t| t.starts_with("events") || t == "ended" || t == "node gone"), "{told:?}");
    expect(&mut follower, &["events 1..2", "node alive"]);
    silent(&mut follower);
    second.say("end");
    second.ended_well();
}

#[test]
fn a_registry_that_is_removed_is_read_on_until_there_is_another() {
    let _alone = alone();
    let place = Place::new();
    let (mut master, _) = serving(&place, 1);
    let mut follower = Follower::new(place.registry(), Cursor::oldest()).expect("follow");
    expect(&mut follower, &["appeared", "events 1..2", "node alive"]);
    // Moved away, and back: the same one.
    let aside = place.folder().join("aside");
    std::fs::rename(place.registry(), &aside).expect("move it away");
    expect(&mut follower, &["removed"]);
    std::fs::rename(&aside, place.registry()).expect("move it back");
    expect(&mut follower, &["appeared"]);
    // Gone for good, with all of its folder; its node lives on.
    std::fs::remove_dir_all(place.folder()).expect("remove");
    expect(&mut follower, &["removed"]);
    silent(&mut follower);
    master.say("end");
    until(&mut follower, Kind::MasterExited);
    master.ended_well();
    while short(&next(&mut follower)) != "node gone" {}
    std::fs::create_dir(place.folder()).expect("make the folder again");
    let (mut master, _) = serving(&place, 1);
    expect(&mut follower, &["replaced", "events 1..2", "node alive"]);
    master.say("end");
    master.ended_well();
}

#[test]
fn a_node_that_is_killed_as_a_whole_is_told_by_the_kernel() {
    let _alone = alone();
    let place = Place::new();
    let (mut master, pids) = serving(&place, 3);
    let mut follower = Follower::new(place.registry(), Cursor::oldest()).expect("follow");
    expect(&mut follower, &["appeared", "events 1..4", "node alive"]);
    silent(&mut follower);
    let kill = |pid: &u32, signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid as i32), signal);
    // So that nobody can report anybody.
    pids.iter().for_each(|pid| kill(pid, Signal::SIGSTOP).expect("stop"));
    let begun = Instant::now();
    pids.iter().for_each(|pid| kill(pid, Signal::SIGKILL).expect("kill"));
    expect(&mut follower, &["ended", "ended", "ended", "ended", "node gone"]);
    // It was told, and not found out by one of the looks that are taken every second or more seldom; nor by a doubt.
    assert!(begun.elapsed() < Duration::from_millis(240), "{:?}", begun.elapsed());
    master.wait();
    silent(&mut follower);
}

#[test]
fn a_master_that_is_left_alone_is_a_node_and_a_worker_too() {
    let _alone = alone();
    let place = Place::new();
    let (mut master, pids) = serving(&place, 1);
    let mut follower = Follower::new(place.registry(), Cursor::oldest()).expect("follow");
    expect(&mut follower, &["appeared", "events 1..2", "node alive"]);
    // It is its master's child, and would end with it.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pids[1] as i32), Signal::SIGSTOP).expect("stop");
    master.kill();
    expect(&mut follower, &["ended"]);
    silent(&mut follower);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pids[1] as i32), Signal::SIGKILL).expect("kill");
    expect(&mut follower, &["ended", "node gone"]);
}

#[test]
fn who_is_overrun_is_told_how_many_are_missing_and_where() {
    let _alone = alone();
    let place = Place::new();
    let (mut master, _) = serving(&place, 1);
    let words = registry::words(&place.registry());
    let journal = registry::journal(words);
    let forge = |seq: u64| {
        let at = journal + (seq as usize - 1) % 256 * 16;
        words[at + 6].store(u64::from(Kind::WorkerStarted.code()), SeqCst);
        words[at].store(seq, SeqCst);
    };
    (3..=400).for_each(forge);
    // One of them is none.
    words[journal + (300 - 1) % 256 * 16 + 6].store(0, SeqCst);
    words[152 / 8].store(400, SeqCst);
    let mut follower = Follower::new(place.registry(), Cursor::at(3)).expect("follow");
    expect(
        &mut follower,
        &["appeared", "lost 142 from 3", "events 145..299", "lost 1 from 300", "events 301..400"],
    );
    expect(&mut follower, &["node alive"]);
    // Somebody sets it back.
    words[152 / 8].store(10, SeqCst);
    drop(follower);
    let mut follower = Follower::new(place.registry(), Cursor::at(401)).expect("follow");
    expect(&mut follower, &["appeared", "set back from 401 to 11", "node alive"]);
    master.kill();
}

#[test]
fn a_stranger_is_told_as_soon_as_anybody() {
    let _alone = alone();
    if !is_root() {
        return skip("only root can become somebody else");
    }
    let place = Place::new();
    std::fs::set_permissions(place.folder(), std::fs::Permissions::from_mode(0o755))
        .expect("open the folder");
    let (mut master, _) = serving(&place, 1);
    let registry = place.registry();
    let mut nobody = fork(|line| {
        family::become_nobody();
        let mut follower = Follower::new(&registry, Cursor::at(1)).expect("follow");
        expect(&mut follower, &["appeared", "events 1..2", "node alive"]);
        silent(&mut follower);
        line.say("waits");
        let begun = Instant::now();
        until(&mut follower, Kind::WorkerExited);
        // Woken, and not by a look every so often.
        assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
        while short(&next(&mut follower)) != "node gone" {}
        0
    });
    nobody.expect("waits");
    master.say("end");
    master.ended_well();
    nobody.ended_well();
}

#[test]
fn a_file_that_is_cut_off_or_spoiled_ends_no_reader() {
    let _alone = alone();
    let place = Place::new();
    let (mut master, pids) = serving(&place, 1);
    let mut follower = Follower::new(place.registry(), Cursor::at(1)).expect("follow");
    expect(&mut follower, &["appeared", "events 1..2", "node alive"]);
    // Its processes would die of it.
    pids.iter().for_each(|pid| {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid as i32), Signal::SIGSTOP).expect("stop");
    });
    let file = std::fs::OpenOptions::new().write(true).open(place.registry()).expect("open");
    let whole = std::fs::read(place.registry()).expect("read");
    file.set_len(0).expect("cut");
    expect(&mut follower, &["unreadable io"]);
    silent(&mut follower);
    std::os::unix::fs::FileExt::write_all_at(&file, &whole, 0).expect("write");
    expect(&mut follower, &["readable"]);
    silent(&mut follower);
    // Something else takes its place.
    std::fs::write(place.folder().join("other"), [7; 10_000]).expect("write");
    std::fs::rename(place.folder().join("other"), place.registry()).expect("replace");
    expect(&mut follower, &["unreadable not_a_registry"]);
    silent(&mut follower);
    std::fs::remove_file(place.registry()).expect("remove");
    let told = short(&next(&mut follower));
    assert!(["readable", "removed"].contains(&&*told), "{told}");
    for pid in &pids {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid as i32), Signal::SIGKILL).expect("kill");
    }
    master.wait();
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc").count()
}

/// The threads of this process that wait for registries.
fn sleepers() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc").flatten();
    let name =
        |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    tasks.map(name).filter(|name| name.trim_end() == "headcount-wait").count()
}

/// Makes a registry with one event, whose node has ended.
fn made(path: &Path) {
    let path = path.to_owned();
    let mut child = fork(|_| {
        let master =
            headcount::Options::new("node").path(path).slots(16).journal_records(64).open().expect("open");
        begin(&master, Callbacks::new(), 0);
        master.leave(Wait::Timeout).expect("leave").run(|_| {});
        0
    });
    child.ended_well();
}

#[test]
fn many_registries_that_come_and_go_leave_no_descriptor_behind() {
    let _alone = alone();
    const MANY: usize = 150;
    let place = Place::new();
    made(&place.registry());
    let template = std::fs::read(place.registry()).expect("read");
    let path = |n: usize| place.folder().join(format!("{n}.registry"));
    let put = |n: usize| {
        std::fs::write(place.folder().join("new"), &template).expect("write");
        std::fs::rename(place.folder().join("new"), path(n)).expect("put");
    };
    let before = descriptors();
    let mut all = Followers::new().expect("follow");
    let own = descriptors() - before;
    assert!(own <= 7, "{own}");
    (0..MANY).for_each(put);
    for n in 0..MANY {
        assert_eq!(all.add(path(n), Cursor::at(1), Follow::Journal).expect("follow"), n);
    }
    let tell = |all: &mut Followers, what: &str| {
        let mut missing: std::collections::BTreeSet<_> = (0..MANY).collect();
        while !missing.is_empty() {
            let (number, item) = all.next_within(Some(PATIENCE)).expect("wait").expect("news of all");
            if short(&item) == what {
                assert!(missing.remove(&number), "{number}: {what} twice");
            } else {
                assert!(matches!(item, Item::Events(_)), "{number}: {item:?}");
            }
        }
        while all.try_next().is_some_and(|(_, item)| matches!(item, Item::Events(_))) {}
    };
    tell(&mut all, "appeared");
    assert_eq!(descriptors() - before, own + MANY);
    for _ in 0..5 {
        (0..MANY).for_each(put);
        tell(&mut all, "replaced");
        assert_eq!(descriptors() - before, own + MANY);
    }
    // Each is slept on, those as well for which another thread was needed.
    assert_eq!(sleepers(), MANY.div_ceil(127));
    (0..MANY).for_each(|n| all.remove(n));
    assert!(all.try_next().is_none());
    assert_eq!(descriptors() - before, own);
    drop(all);
    family::wait_for("the threads to end", || (sleepers() == 0).then_some(()));
    assert_eq!(descriptors(), before);
}

#[test]
fn the_last_of_many_registries_wakes_as_the_first() {
    let _alone = alone();
    let place = Place::new();
    made(&place.registry());
    let template = std::fs::read(place.registry()).expect("read");
    let mut all = Followers::new().expect("follow");
    let path = |n: usize| place.folder().join(format!("{n}.registry"));
    for n in 0..130 {
        std::fs::write(path(n), &template).expect("write");
        all.add(path(n), Cursor::at(1), Follow::Journal).expect("follow");
    }
    while all.next_within(Some(Duration::from_millis(100))).expect("wait").is_some() {}
    for n in [0, 126, 127, 129] {
        let begun = Instant::now();
        made(&path(n));
        let told: Vec<Event> = std::iter::from_fn(|| {
            let (number, item) = all.next_within(Some(Duration::from_millis(200))).expect("wait")?;
            assert_eq!(number, n);
            Some(item)
        })
        .flat_map(|item| if let Item::Events(events) = item { events } else { Vec::new() })
        .collect();
        assert!(!told.is_empty() && begun.elapsed() < Duration::from_secs(5), "{n}: {told:?}");
    }
}

/// How often the threads of this process have gone to sleep of their own will.
fn sleeps() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc");
    let of = |path: std::path::PathBuf| {
        let status = std::fs::read_to_string(path.join("status")).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.expect("a count").trim().parse::<u64>().expect("a number")
    };
    tasks.map(|task| of(task.expect("a thread").path())).sum()
}

#[test]
fn nobody_is_woken_while_nothing_happens() {
    let _alone = alone();
    let place = Place::new();
    let (mut master, _) = serving(&place, 2);
    let mut reader = fork(|line| {
        let mut follower = Follower::new(place.registry(), Cursor::at(1)).expect("follow");
        while follower.next_within(Some(Duration::from_millis(300))).expect("wait").is_some() {}
        let before = sleeps();
        assert!(follower.next_within(Some(Duration::from_secs(3))).expect("wait").is_none());
        // The one sleep that has just ended.
        assert!(sleeps() - before <= 2, "{} in three quiet seconds", sleeps() - before);
        line.say("ready");
        0
    });
    reader.expect("ready");
    reader.ended_well();
    master.say("end");
    master.ended_well();
}
