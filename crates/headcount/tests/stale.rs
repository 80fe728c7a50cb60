//! The files of a node that is gone are removed; those of a node that lives, or comes at that moment, never.

mod family;

use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use headcount::{Begin, ErrorKind, Join, Liveness, Observer, Wait, remove_stale};
use nix::sys::signal::Signal;

use family::callbacks::Callbacks;
use family::worker::{Habit, worker};
use family::{Child, Place, alone, fork, registry, wait_for};

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
    let expected: Vec<_> =
        ["node.registry", "node.registry.wake", "node.registry.lock"].map(|n| place.folder().join(n)).into();
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
            assert_eq!(removed.len(), 3);
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

#[test]
fn in_doubt_nothing_is_removed() {
    let _alone = alone();
    let place = Place::new();
    let path = place.registry();
    let mut master = server(&place);
    master.say("end");
    master.ended_well();
    let lock = PathBuf::from(format!("{}.lock", path.display()));
    // Whoever lives holds locks in a file that cannot be found any more.
    std::fs::remove_file(&lock).expect("remove");
    let error = remove_stale(&path).expect_err("the lock file is missing");
    assert!(error.kind() == ErrorKind::InUse && error.to_string().contains("missing"), "{error}");
    assert_eq!(files(&place), ["node.registry", "node.registry.wake"]);
    // Another one tells nothing.
    nix::unistd::mkfifo(&lock, nix::sys::stat::Mode::from_bits_truncate(0o600)).expect("a FIFO");
    let error = remove_stale(&path).expect_err("it is another one");
    assert!(error.kind() == ErrorKind::InUse && error.to_string().contains("made with"), "{error}");
    assert_eq!(files(&place).len(), 3);
    // Of another boot nobody lives.
    registry::words(&path)[24 / 8].fetch_xor(0xdead, SeqCst);
    assert_eq!(remove_stale(&path).expect("another boot").len(), 3);

    for content in ["", "something else"] {
        std::fs::write(&path, content).expect("write");
        nix::unistd::mkfifo(&lock, nix::sys::stat::Mode::from_bits_truncate(0o600)).expect("a FIFO");
        assert_eq!(remove_stale(&path).err().map(|e| e.kind()), Some(ErrorKind::NotARegistry));
        assert_eq!(files(&place), ["node.registry", "node.registry.lock"]);
        std::fs::remove_file(&lock).expect("remove");
    }
    std::fs::remove_file(&path).expect("remove");
    std::os::unix::fs::symlink("/etc/hostname", &path).expect("link");
    assert_eq!(remove_stale(&path).err().map(|e| e.kind()), Some(ErrorKind::SymbolicLink));
    std::fs::remove_file(&path).expect("remove");
    // What is left of a node without its registry.
    nix::unistd::mkfifo(&lock, nix::sys::stat::Mode::from_bits_truncate(0o600)).expect("a FIFO");
    assert_eq!(remove_stale(&path).expect("nobody has it"), [lock]);
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
    let file = std::fs::File::options().read(true).write(true).open(&lock).expect("open");
    let held =
        nix::libc::flock { l_type: nix::libc::F_WRLCK as i16, l_whence: 0, l_start: 0, l_len: 1, l_pid: 0 };
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETLK(&held)).expect("nobody else has it");
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
    for name in ["node.registry", "node.registry.wake", "node.registry.lock"] {
        std::fs::remove_file(place.folder().join(name)).expect("remove");
    }
    drop(file);
    second.expect("open");
    assert!(std::fs::symlink_metadata(&lock).expect("a new one").file_type().is_fifo());
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
                Ok(_) => removed += 1,
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
    while rounds < 40 || begun.elapsed() < Duration::from_secs(2) {
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
    let told = cleaner.hear().expect("what it did");
    let removed: u32 =
        told.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{told}"));
    assert!(removed >= 3, "it was to be in the way: {told} in {rounds} rounds");
    cleaner.ended_well();
}
