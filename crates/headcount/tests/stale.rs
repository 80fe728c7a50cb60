//! The files of a node that is gone are removed; those of a node that lives, or comes at that moment, never.

mod family;

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use headcount::{Begin, ErrorKind, Generation, Join, Liveness, Observer, Wait, remove_stale};
use nix::sys::signal::Signal;
use rustix::fs::{FlockOperation, flock};

use family::callbacks::Callbacks;
use family::home::Home;
use family::worker::{Habit, worker};
use family::{Child, PATIENCE, Place, alone, fork, registry, wait_for};

fn files(place: &Place) -> Vec<String> {
    let entries = std::fs::read_dir(place.folder()).expect("our folder");
    let mut names: Vec<_> =
        entries.map(|e| e.expect("an entry").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

/// A master, and a worker, whose pid is said; it stays until it is told to end, or is killed.
fn server(place: &Place) -> Child {
    let mut master = fork(|line| {
        let master = place.open();
        let callbacks = Callbacks::new();
        let (generation, transitions) = master.begin(Begin::new().workers(1), Wait::Timeout).expect("begin");
        callbacks.run(transitions);
        master.commit(generation.id());
        let mut child = worker(&generation, callbacks, Habit::Quiet, Join::worker(Some(0)));
        line.say(&child.pid().to_string());
        line.hear();
        child.tell("leave");
        child.ended_well();
        callbacks.run(master.leave(Wait::Timeout).expect("leave"));
        0
    });
    let pid = master.hear().expect("a worker");
    assert!(pid.parse::<i32>().is_ok(), "{pid}");
    master
}

#[test]
fn what_lives_is_kept_and_what_is_gone_is_removed() {
    let _alone = alone();
    let place = Place::new();
    let path = place.registry();
    assert_eq!(remove_stale(&path).err().map(|e| e.kind()), Some(ErrorKind::NotFound));
    let mut master = server(&place);
    std::fs::write(place.folder().join("node.registry.mine"), "not theirs").expect("write");
    let all = files(&place);
    assert_eq!(remove_stale(&path).err().map(|e| e.kind()), Some(ErrorKind::InUse));
    // Stopped is not gone.
    master.signal(Signal::SIGSTOP);
    assert_eq!(remove_stale(&path).err().map(|e| e.kind()), Some(ErrorKind::InUse));
    master.signal(Signal::SIGCONT);
    assert_eq!(files(&place), all);
    // A reader is none of the node.
    let reader = Observer::open(&path).expect("observe");
    master.say("end");
    master.ended_well();
    let mut other = fork(|line| {
        let _reader = Observer::open(&place.registry()).expect("observe");
        line.say("reading");
        line.hear();
        0
    });
    other.expect("reading");
    let removed = remove_stale(&path).expect("nobody is alive");
    let expected: Vec<_> = ["node.registry", "node.registry.lock"].map(|n| place.folder().join(n)).into();
    assert_eq!(removed, expected);
    assert_eq!(files(&place), ["node.registry.mine"]);
    assert!(!reader.is_current());
    other.say("end");
    other.ended_well();
}

#[test]
fn one_that_was_killed_is_removed_when_its_last_process_is_gone() {
    let _alone = alone();
    let place = Place::new();
    let mut master = fork(|line| {
        let mut inner = server(&place);
        // The worker outlives its master.
        inner.kill();
        line.say("killed");
        line.hear();
        0
    });
    master.expect("killed");
    let observer = Observer::open(&place.registry()).expect("observe");
    let alive = || {
        let processes = observer.snapshot().expect("read").processes;
        processes.into_iter().find(|p| p.liveness == Liveness::Alive).map(|p| p.pid)
    };
    // Its line to the master is cut, so that it ends by itself, soon; until then nothing is removed.
    wait_for("the last one's end, or that it is found alive", || match remove_stale(&place.registry()) {
        Ok(removed) => {
            assert_eq!(removed.len(), 2);
            Some(())
        }
        Err(e) => {
            assert!(matches!(e.kind(), ErrorKind::InUse | ErrorKind::Busy), "{e}");
            None
        }
    });
    assert_eq!(alive(), None);
    assert_eq!(files(&place), [""; 0]);
    master.say("end");
    master.ended_well();
}

/// A file as a server makes it.
fn make_lock(path: &Path) {
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).expect("make");
}

#[test]
fn in_doubt_nothing_is_removed() {
    let _alone = alone();
    let place = Place::new();
    let path = place.registry();
    let lock = path.with_extension("registry.lock");
    let mut master = server(&place);
    // Whoever lives is found also when the file vanishes in which he has proved it.
    std::fs::remove_file(&lock).expect("remove");
    assert_eq!(remove_stale(&path).err().map(|e| e.kind()), Some(ErrorKind::InUse));
    assert!(path.exists());
    master.kill();
    wait_for("its worker's end", || {
        let processes = Observer::open(&path).ok()?.snapshot().ok()?.processes;
        processes.iter().all(|p| p.liveness == Liveness::Gone).then_some(())
    });
    // One of a container, of which nothing can be told from here: its proof was in another file.
    let foreign = registry::slot_of(&path, master.pid());
    foreign[registry::NAMESPACE].fetch_add(1, SeqCst);
    let error = remove_stale(&path).expect_err("it may live");
    let why = "another pid namespace";
    assert!(error.kind() == ErrorKind::InUse && error.to_string().contains(why), "{error}");
    assert_eq!(files(&place), ["node.registry", "node.registry.lock"]);
    // Of another boot nobody lives.
    registry::words(&path)[24 / 8].fetch_xor(0xdead, SeqCst);
    assert_eq!(remove_stale(&path).expect("another boot").len(), 2);

    for content in ["", "something else"] {
        std::fs::write(&path, content).expect("write");
        make_lock(&lock);
        assert_eq!(remove_stale(&path).err().map(|e| e.kind()), Some(ErrorKind::NotARegistry));
        assert_eq!(files(&place), ["node.registry", "node.registry.lock"]);
        std::fs::remove_file(&lock).expect("remove");
    }
    std::fs::remove_file(&path).expect("remove");
    std::os::unix::fs::symlink("/etc/hostname", &path).expect("link");
    assert_eq!(remove_stale(&path).err().map(|e| e.kind()), Some(ErrorKind::SymbolicLink));
    std::fs::remove_file(&path).expect("remove");
    // A FIFO is none that a server has made, and nobody waits in it.
    nix::unistd::mkfifo(&lock, nix::sys::stat::Mode::from_bits_truncate(0o600)).expect("a FIFO");
    assert_eq!(remove_stale(&path).err().map(|e| e.kind()), Some(ErrorKind::SymbolicLink));
    std::fs::remove_file(&lock).expect("remove");
    // What is left of a node without its registry.
    make_lock(&lock);
    assert_eq!(remove_stale(&path).expect("nobody has it"), [lock]);
}

/// A process of a container that is gone: nothing else tells, but the lock that it would still hold.
#[test]
fn one_of_another_namespace_that_held_its_lock_here_is_known_to_be_gone() {
    let _alone = alone();
    let place = Place::new();
    let path = place.registry();
    let mut master = fork(|line| {
        let master = place.open();
        let generation = Generation::of(master.node(), master.reserve());
        generation.join(Join::worker(None)).expect("join").1.run(|_| ());
        line.say("joined");
        line.hear();
        0
    });
    master.expect("joined");
    let slots = [0, 1].map(|index| registry::slot(&path, index));
    for slot in slots {
        assert_eq!(slot[2].load(SeqCst) as u32, master.pid());
        slot[registry::NAMESPACE].fetch_add(1, SeqCst);
        slot[registry::BIRTH].fetch_add(registry::BORN_ELSEWHERE, SeqCst);
    }
    let error = remove_stale(&path).expect_err("it lives");
    assert!(error.kind() == ErrorKind::InUse && error.to_string().contains("is alive"), "{error}");
    master.kill();
    assert_eq!(remove_stale(&path).expect("its lock is gone").len(), 2);
}

#[test]
fn a_server_does_not_remove_its_own_files() {
    let _alone = alone();
    let home = Home::new();
    let path = home.place.registry();
    let me = std::process::id();
    assert!(registry::is_proven(&path, me));
    assert_eq!(remove_stale(&path).err().map(|e| e.kind()), Some(ErrorKind::InUse));
    assert!(registry::is_proven(&path, me), "having looked, it is still a member");
}

/// The one moment that a lock on the file alone does not cover: the server has opened the lock file, and waits for the lock
/// in it, which is held by whoever removes it.
#[test]
fn a_server_that_waits_for_a_lock_file_that_is_removed_makes_another() {
    let _alone = alone();
    let place = Place::new();
    let mut first = server(&place);
    first.say("end");
    first.ended_well();
    let lock = PathBuf::from(format!("{}.lock", place.registry().display()));
    let file = std::fs::File::open(&lock).expect("open");
    flock(&file, FlockOperation::NonBlockingLockExclusive).expect("nobody else has it");
    let mut second = fork(|line| {
        line.say("opening");
        let master = place.open();
        let node = master.node();
        // It never made a registry beside the lock file that was gone.
        assert_eq!(node.take_notices(), []);
        line.say("open");
        line.hear();
        0
    });
    second.expect("opening");
    let fds = format!("/proc/{}/fd", second.pid());
    wait_for("it to have the lock file open", || {
        let links =
            std::fs::read_dir(&fds).ok()?.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
        // Ours is inherited, and a second one is its own.
        (links.filter(|to| *to == lock).count() == 2).then_some(())
    });
    for name in ["node.registry", "node.registry.lock"] {
        std::fs::remove_file(place.folder().join(name)).expect("remove");
    }
    // The child has its copy of the descriptor, so that to close ours is not enough.
    flock(&file, FlockOperation::Unlock).expect("unlock");
    second.expect("open");
    assert!(std::fs::symlink_metadata(&lock).expect("a new one").file_type().is_file());
    let snapshot = Observer::open(&place.registry()).expect("it is found").snapshot().expect("read");
    assert_eq!(
        snapshot.processes.iter().map(|p| (p.pid, p.liveness)).collect::<Vec<_>>(),
        [(second.pid(), Liveness::Alive)]
    );
    second.say("end");
    second.wait();
}

/// Servers come and go while somebody removes what is gone, as fast as both can: none ever runs on files that nobody finds.
#[test]
fn servers_that_start_while_the_files_are_removed_are_always_found() {
    let _alone = alone();
    let place = Place::new();
    let mut cleaner = fork(|line| {
        line.say("cleaning");
        let (mut removed, mut refused) = (0, 0);
        while std::fs::symlink_metadata(place.folder().join("end")).is_err() {
            let begun = Instant::now();
            match remove_stale(&place.registry()) {
                Ok(_) => {
                    removed += 1;
                    if removed == 3 {
                        std::fs::write(place.folder().join("in the way"), "").expect("write");
                    }
                }
                Err(e) => {
                    let expected = [ErrorKind::InUse, ErrorKind::Busy, ErrorKind::NotFound];
                    assert!(expected.contains(&e.kind()), "{e}");
                    refused += 1;
                }
            }
            // The lock goes to whoever happens to ask: leave it as long as it was held, or a server waits for seconds.
            std::thread::sleep(begun.elapsed());
        }
        line.say(&format!("{removed} {refused}"));
        0
    });
    cleaner.expect("cleaning");
    let begun = Instant::now();
    let mut rounds = 0;
    // Who gets the lock is chance: so until the one has really been in the way of the other.
    let was_in_the_way = || place.folder().join("in the way").exists();
    while rounds < 40 || begun.elapsed() < Duration::from_secs(2) || !was_in_the_way() {
        assert!(begun.elapsed() < PATIENCE, "nothing was removed in {rounds} rounds");
        let mut server = fork(|line| {
            // One that is killed before it has begun a generation leaves its slot to the next who begins one.
            let master = place.options().slots(1024).open().expect("open");
            let node = master.node();
            assert!(node.path().is_some(), "{:?}", node.take_notices());
            line.say("open");
            line.hear();
            0
        });
        server.expect("open");
        let observer = Observer::open(&place.registry()).expect("there is a registry");
        let snapshot = observer.snapshot().expect("read");
        let found = snapshot.processes.iter().any(|p| p.pid == server.pid() && p.liveness == Liveness::Alive);
        assert!(found, "round {rounds}: {} runs on files that nobody finds: {snapshot:#?}", server.pid());
        match rounds % 2 {
            0 => drop(server.kill()),
            _ => {
                server.say("end");
                server.ended_well();
            }
        }
        rounds += 1;
    }
    std::fs::write(place.folder().join("end"), "").expect("write");
    eprintln!("removed, refused: {:?} in {rounds} rounds", cleaner.hear());
    cleaner.ended_well();
}
