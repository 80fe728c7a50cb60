//! A semaphore over all test processes of this user, since nextest runs each test in one of its own.
//! Taken once per test, not per server: a test with two servers can then not wait for itself.

use std::fs::{self, File, OpenOptions};

use rustix::fs::FlockOperation;

use crate::wait;

/// Held while a test's servers run.
#[derive(Debug)]
pub struct Permit {
    _lock: File,
}

/// Waits for one of the places. `HEADCOUNT_TEST_SERVERS` sets how many there are.
pub fn permit() -> Permit {
    let places: usize = std::env::var("HEADCOUNT_TEST_SERVERS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| 2 * std::thread::available_parallelism().map_or(1, usize::from));
    let uid = rustix::process::geteuid().as_raw();
    let folder = std::env::temp_dir().join(format!("headcount-testkit-permits-{uid}"));
    fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("cannot make {}: {error}", folder.display()));
    // The whole run may take minutes on two cores; a place is kept for seconds.
    wait::poll(std::time::Duration::from_secs(600), || {
        (0..places.max(1)).find_map(|place| {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(folder.join(place.to_string()))
                .ok()?;
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
            Some(Permit { _lock: file })
        })
    })
    .expect("no place for another server within 10 minutes: is a test process hanging?")
}
