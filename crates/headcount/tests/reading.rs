//! Reading a node: its journal from a cursor, and all of it from outside, as root and as nobody.

mod family;

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering::SeqCst;

use headcount::{
    Begin, Cursor, Doubt, ErrorKind, Join, Kind, Liveness, Master, Observer, Options, ProcessStatus, Role,
    State, Wait,
};

use family::callbacks::Callbacks;
use family::home::{Home, leave_all};
use family::worker::{Habit, worker};
use family::{Child, Line, Place, alone, fork, is_root, registry, skip};

#[test]
fn a_reader_that_was_overrun_is_told_so() {
    let _alone = alone();
    let mut home = Home::with(|options| options.journal_records(64));
    let mut slow = Cursor::oldest();
    assert!(home.node.events(&mut slow, 10).events.is_empty());
    assert_eq!(slow.next_seq(), 1, "the next event will be the first");
    let generation = home.begin(0);
    // Each life is a start and an exit; each end and resumption of the generation two more.
    let mut lives = 0;
    while home.head() < 200 {
        leave_all([&mut home.quiet(&generation, lives)]);
        lives += 1;
    }
    let head = home.head();
    let batch = home.node.events(&mut slow, 10);
    assert_eq!((batch.lost, batch.events.len()), (head - 64, 10));
    assert_eq!(batch.events[0].seq, head - 63);
    assert_eq!(slow.next_seq(), head - 53);
    let batch = home.node.events(&mut slow, usize::MAX);
    assert_eq!((batch.lost, batch.events.len()), (0, 54));
    assert!(batch.events.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1));
    assert!(home.node.events(&mut slow, usize::MAX).events.is_empty());

    // From the oldest that is kept: nothing is lost of what was not wanted.
    let batch = home.node.events(&mut Cursor::oldest(), usize::MAX);
    assert_eq!((batch.lost, batch.events.len(), batch.events[0].seq), (0, 64, head - 63));
    // A cursor of another registry, from the future of this one.
    let mut foreign = Cursor::at(head + 1000);
    let batch = home.node.events(&mut foreign, usize::MAX);
    assert_eq!((batch.events.len(), foreign.next_seq()), (64, head + 1));
    // One that is kept over a restart.
    let kept = Cursor::at(head - 1).next_seq();
    assert_eq!(home.node.events(&mut Cursor::at(kept), usize::MAX).events.len(), 2);
}

#[test]
fn a_head_that_was_spoiled_ends_no_reader() {
    let _alone = alone();
    let home = Home::new();
    drop(home.announce(1));
    let head = &registry::words(&home.place.registry())[152 / 8];
    for spoiled in [u64::MAX, u64::MAX - 1, 1 << 63, u64::MAX - 300] {
        head.store(spoiled, SeqCst);
        for start in [0, 1, spoiled - 1, spoiled] {
            let batch = home.node.events(&mut Cursor::at(start), usize::MAX);
            assert!(batch.events.len() <= 256, "{} events from {start} to {spoiled}", batch.events.len());
        }
    }
    head.store(1, SeqCst);
}

/// A node in processes that are not the test's own, so that the test can observe it.
fn elsewhere(place: &Place, life: impl FnOnce(&Master, Callbacks, &mut Line)) -> Child {
    let callbacks = Callbacks::new();
    let mut master = fork(|line| {
        life(&place.open(), callbacks, line);
        0
    });
    master.expect("ready");
    master
}

/// A master with a worker that serves, one that drains, a helper, and one that died and whose parent has, or has not,
/// taken note of it.
fn a_bit_of_everything(place: &Place) -> Child {
    elsewhere(place, |master, callbacks, line| {
        let (generation, transitions) = master.begin(Begin::new().workers(4), Wait::Timeout).expect("begin");
        callbacks.run(transitions);
        master.commit(generation.id());
        let join = |join| worker(&generation, callbacks, Habit::Quiet, join);
        let mut serving = join(Join::worker(Some(0)));
        let mut draining = join(Join::worker(Some(1)));
        let mut helper = join(Join::helper());
        let mut reaped = join(Join::worker(Some(2)));
        let mut zombie = join(Join::worker(Some(3)));
        // Its loop turns: till then it is only starting.
        serving.tell("beat");
        draining.tell("drain");
        reaped.kill();
        zombie.signal(nix::sys::signal::Signal::SIGKILL);
        // Dead, and still in the list of processes.
        let stat = format!("/proc/{}/stat", zombie.pid());
        family::wait_for("its death", || std::fs::read_to_string(&stat).ok()?.contains(") Z ").then_some(()));
        line.say("ready");
        for child in [&serving, &draining, &helper, &reaped, &zombie] {
            line.say(&child.pid().to_string());
        }
        line.hear();
        zombie.wait();
        leave_all([&mut serving, &mut draining, &mut helper]);
        callbacks.run(master.leave(Wait::Timeout).expect("leave"));
    })
}

/// What an observer says of each of them, in the order in which they were made.
fn states(observer: &Observer, pids: &[u32]) -> Vec<(Role, State)> {
    let processes = observer.snapshot().expect("read").processes;
    let of = |pid: &u32| processes.iter().find(|p: &&ProcessStatus| p.pid == *pid).map(|p| (p.role, p.state));
    pids.iter().map(|pid| of(pid).unwrap_or_else(|| panic!("no process {pid}"))).collect()
}

fn pids(master: &mut Child) -> Vec<u32> {
    let mut pids = vec![master.pid()];
    pids.extend((0..5).map(|_| master.hear().expect("a pid").parse::<u32>().expect("a number")));
    pids
}

#[test]
fn an_observer_sees_what_the_node_sees() {
    let _alone = alone();
    let place = Place::new();
    let error = Observer::open(&place.registry()).err().expect("there is no node");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("node.registry"), "{error}");
    let mut master = a_bit_of_everything(&place);
    let pids = pids(&mut master);
    let observer = Observer::open(&place.registry()).expect("observe");
    let expected = [
        (Role::Master, State::Serving),
        (Role::Worker, State::Serving),
        (Role::Worker, State::Draining),
        (Role::Helper, State::Serving),
        (Role::Worker, State::Died),
        (Role::Worker, State::Died),
    ];
    assert_eq!(states(&observer, &pids), expected);
    let snapshot = observer.snapshot().expect("read");
    assert_eq!((&*snapshot.node, snapshot.path, snapshot.total), ("node", Some(place.registry()), 2));
    let mut cursor = Cursor::oldest();
    let events = observer.events(&mut cursor, 3).expect("read").events;
    assert_eq!(
        events.iter().map(|e| e.kind).collect::<Vec<_>>(),
        [Kind::GenerationStarted, Kind::WorkerStarted, Kind::WorkerStarted]
    );
    drop(observer);
    master.say("end");
    master.ended_well();
    let observer = Observer::open(&place.registry()).expect("observe what is left");
    assert!(observer.snapshot().expect("read").processes.is_empty());
    let rest = observer.events(&mut cursor, usize::MAX).expect("read").events;
    assert_eq!(rest.last().map(|e| e.kind), Some(Kind::MasterExited));
}

#[test]
fn a_process_that_observes_its_own_node_keeps_its_proof() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(1);
    let mut child = home.quiet(&generation, 0);
    // As of a container: whether it is alive is a question to the lock file.
    let registry = home.place.registry();
    let foreign = registry::slot_of(&registry, child.pid());
    let (place, birth) = (&foreign[registry::NAMESPACE], &foreign[registry::BIRTH]);
    let (was, born) = (place.load(SeqCst), birth.load(SeqCst));
    place.store(was + 1, SeqCst);
    birth.store(born + registry::BORN_ELSEWHERE, SeqCst);
    let observer = Observer::open(&registry).expect("observe");
    let liveness = |pid: u32| {
        let processes = observer.snapshot().expect("read").processes;
        processes.into_iter().find(|p| p.pid == pid).expect("a process").liveness
    };
    assert_eq!(liveness(child.pid()), Liveness::Alive, "by the lock that only it can hold");
    assert_eq!(liveness(std::process::id()), Liveness::Alive);
    drop(observer);
    assert!(registry::is_proven(&registry, child.pid()));
    assert!(registry::is_proven(&registry, std::process::id()), "closing the lock file drops all our locks");
    place.store(was, SeqCst);
    birth.store(born, SeqCst);
    leave_all([&mut child]);
}

#[test]
fn an_observer_without_rights_knows_who_is_alive_and_says_what_it_does_not_know() {
    let _alone = alone();
    if !is_root() {
        return skip("only root can become somebody else");
    }
    let place = Place::new();
    std::fs::set_permissions(place.folder(), std::fs::Permissions::from_mode(0o755))
        .expect("open the folder");
    let mut master = a_bit_of_everything(&place);
    let pids = pids(&mut master);
    let mut nobody = fork(|line| {
        family::become_nobody();
        let observer = Observer::open(&place.registry()).expect("everybody may read it");
        let expected = [
            (Role::Master, State::Serving),
            (Role::Worker, State::Serving),
            (Role::Worker, State::Draining),
            (Role::Helper, State::Serving),
            (Role::Worker, State::Died),
            // There is still something with that number, and it runs nothing.
            (Role::Worker, State::Died),
        ];
        assert_eq!(states(&observer, &pids), expected);
        let all = |what: &str| {
            let processes = observer.snapshot().expect("read").processes;
            let found = pids[..4].iter().map(|pid| processes.iter().find(|p| p.pid == *pid));
            found.map(|p| p.unwrap_or_else(|| panic!("{what}")).liveness).collect::<Vec<_>>()
        };
        for (told, expected) in [
            ("they are of another namespace", Liveness::Unknown(Doubt::OtherNamespace)),
            ("their namespace is not known", Liveness::Unknown(Doubt::NamespaceUnknown)),
            ("their births are others", Liveness::Gone),
        ] {
            line.say("seen");
            line.expect(told);
            // There is a process with each number, and nothing says whether it is the same; or that it is not.
            assert_eq!(all(told), [expected; 4], "{told}");
        }
        0
    });
    let slots: Vec<_> = (0..16).map(|index| registry::slot(&place.registry(), index)).collect();
    let namespaces: Vec<_> = slots.iter().map(|slot| slot[registry::NAMESPACE].load(SeqCst)).collect();
    let namespace = |change: &dyn Fn(u64) -> u64| {
        slots.iter().zip(&namespaces).for_each(|(slot, was)| {
            slot[registry::NAMESPACE].store(change(*was), SeqCst);
        });
    };
    let kind = |word: u64| word >> 32 << 32;
    nobody.expect("seen");
    // Not theirs any more, or they would be known by their births all over the machine.
    slots.iter().for_each(|slot| _ = slot[registry::BIRTH].fetch_add(1 << 30, SeqCst));
    // A number that a pid namespace can have.
    namespace(&|was| kind(was) | 0xF7FF_FFF0);
    nobody.say("they are of another namespace");
    nobody.expect("seen");
    namespace(&kind);
    nobody.say("their namespace is not known");
    nobody.expect("seen");
    namespace(&|was| was);
    nobody.say("their births are others");
    nobody.ended_well();
    slots.iter().for_each(|slot| _ = slot[registry::BIRTH].fetch_sub(1 << 30, SeqCst));
    master.say("end");
    master.ended_well();
}

#[test]
fn of_another_boot_nobody_is_alive() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(1);
    let mut child = home.quiet(&generation, 0);
    // The copy has no lock file, so who is alive goes by process id and birth: both fit by chance.
    let copy = home.place.folder().join("copy.registry");
    let mut bytes = std::fs::read(home.place.registry()).expect("read");
    let mut observe = |boot: u8| {
        bytes[24] ^= boot;
        std::fs::write(&copy, &bytes).expect("write");
        Observer::open(&copy).expect("a registry").snapshot().expect("read")
    };
    assert_eq!(observe(0).liveness(), Liveness::Alive);
    let snapshot = observe(1);
    assert_eq!(snapshot.liveness(), Liveness::Gone);
    assert_eq!((snapshot.processes.len(), snapshot.total), (2, 0));
    leave_all([&mut child]);
}

#[test]
fn an_observer_of_something_else_says_so() {
    let _alone = alone();
    let place = Place::new();
    let path = place.registry();
    let kind = |content: &[u8]| {
        std::fs::write(&path, content).expect("write");
        let error = Observer::open(&path).err().expect("no registry");
        assert!(error.to_string().contains("node.registry"), "{error}");
        error.kind()
    };
    assert_eq!(kind(b""), ErrorKind::NotARegistry);
    assert_eq!(kind(&[7; 10_000]), ErrorKind::NotARegistry);
    std::fs::remove_file(&path).expect("remove");
    std::os::unix::fs::symlink("/etc/passwd", &path).expect("link");
    assert_eq!(Observer::open(&path).err().expect("a link").kind(), ErrorKind::SymbolicLink);
}

#[test]
fn a_node_without_a_file_is_read_by_its_own_processes() {
    let _alone = alone();
    let mut master = fork(|_| {
        let master = Options::new("node").path("/proc/no/such/folder/node.registry").open().expect("open");
        let node = master.node();
        assert!(node.path().is_none());
        let (_, transitions) = master.begin(Begin::new(), Wait::Timeout).expect("begin");
        transitions.run(|_| ());
        assert_eq!(node.events(&mut Cursor::oldest(), 10).events.len(), 1);
        assert_eq!(node.snapshot().processes.len(), 1);
        0
    });
    master.ended_well();
}
