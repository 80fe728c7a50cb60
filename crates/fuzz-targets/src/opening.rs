//! A server that starts where a registry lies that somebody else has written: it runs, whatever stands there.

use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use headcount::{Begin, Cursor, Join, Options, Wait};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{image, room};

pub(crate) fn run(bytes: &[u8]) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    allow_many_descriptors();
    // What was opened is never closed, so each has a path of its own.
    let path = room::folder().join(format!("opening{}.registry", NUMBER.fetch_add(1, Relaxed)));
    let (registry, rest) = image::unpack(bytes, 0);
    write(&path, &registry);
    let lock_at = path.with_extension("registry.lock");
    if rest.first().is_some_and(|byte| byte % 2 == 1) {
        std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&lock_at)
            .expect("make");
    }
    let options = Options::new("opening").path(&path).slots(image::SLOTS).journal_records(image::RECORDS);
    let master = options.lock_timeout(Duration::from_secs(5)).open().expect("it starts");
    let (generation, transitions) = master.begin(Begin::new().workers(1), Wait::Timeout).expect("it begins");
    transitions.run(|_| ());
    master.commit(generation.id());
    let (worker, transitions) = generation.join(Join::worker(Some(0))).expect("it joins");
    transitions.run(|_| ());
    let snapshot = master.node().snapshot();
    assert!(snapshot.processes.iter().any(|p| p.pid == std::process::id()), "{snapshot:#?}");
    // More events than that no node ever has; and the newest is there.
    let newest = master.node().newest_seq();
    let event = master.node().events(&mut Cursor::at(newest), 1).events.pop();
    assert!(newest < 1 << 53 && event.is_some_and(|event| event.seq == newest), "{newest} can be read");
    worker.leave(Wait::Timeout).expect("it leaves").run(|_| ());
    master.leave(Wait::Timeout).expect("it leaves").run(|_| ());
    let place = master.node().path().map(Path::to_owned);
    for path in
        [Some(path), Some(lock_at), place.as_ref().map(|path| path.with_extension("registry.lock")), place]
    {
        // It may be there twice in this list, or not at all.
        let _ = path.map(std::fs::remove_file);
    }
}

/// Only what is not zero, so that the file takes little room.
fn write(path: &Path, bytes: &[u8]) {
    let file = std::fs::File::create(path).expect("make");
    file.set_len(bytes.len() as u64).expect("set the size");
    let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    file.write_all_at(&bytes[..used], 0).expect("write");
}

fn allow_many_descriptors() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
            .expect("up to the hard limit");
    });
}
