use rustix::event::{PollFd, PollFlags, poll};

use super::*;
use crate::{Begin, Join, Options};

/// As who drives the watch from two places: woken by it, and by a timer of its own.
#[test]
fn who_rests_is_not_woken_by_the_end_of_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let master = Options::new("rest").path(folder.path().join("registry")).open().unwrap();
    let (generation, transitions) = master.begin(Begin::new().workers(1), Wait::Timeout).unwrap();
    transitions.run(|_| ());
    let (worker, transitions) = generation.join(Join::worker(Some(0))).unwrap();
    transitions.run(|_| ());
    let bell = &worker.node().inner.store.bell;
    let mut watch = worker.watch().unwrap();
    let deadline = clock::boot_ns() + ns(Duration::from_secs(5));
    while watch.is_listening || !watch.on_duty {
        assert!(clock::boot_ns() < deadline, "rung in vain again and again, and it does not rest");
        bell.ring();
        watch.process().unwrap().run(|_| ());
    }
    let until = clock::boot_ns() + ns(Duration::from_millis(300));
    let mut woken = 0;
    while clock::boot_ns() < until {
        let wait = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        if poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&wait)).unwrap() > 0 {
            woken += 1;
            watch.process().unwrap().run(|_| ());
        }
        watch.process().unwrap().run(|_| ());
    }
    assert!(woken <= 10, "nobody rings, and it was woken {woken} times");
}

#[test]
fn the_sentinels_word_names_its_slot() {
    let slot = SlotRef { index: 7, version: 12 };
    assert_eq!(look::sentinel_index(code(slot)), Some(7));
    assert_eq!(look::sentinel_index(0), None);
}
