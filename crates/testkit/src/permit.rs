//! A semaphore over all test processes of this user, since nextest runs each test in one of its own.
//! Taken once per test, not per server: a test with two servers can then not wait for itself.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use crate::wait;

/// Held while a test's servers run.
#[derive(Debug)]
pub struct Permit {
    /// An abstract name is nobody else's while it is bound, goes with its process, and is no file.
    _place: UnixListener,
}

/// Waits for one of the places. `HEADCOUNT_TEST_SERVERS` sets how many there are.
pub fn permit() -> Permit {
    let places: usize = std::env::var("HEADCOUNT_TEST_SERVERS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| 2 * std::thread::available_parallelism().map_or(1, usize::from));
    let uid = rustix::process::geteuid().as_raw();
    // The whole run may take minutes on two cores; a place is kept for seconds.
    let permit = wait::poll(Duration::from_secs(600), || {
        (0..places.max(1)).find_map(|place| {
            let name = format!("headcount-testkit-{uid}-{place}");
            let address = SocketAddr::from_abstract_name(name).ok()?;
            Some(Permit { _place: UnixListener::bind_addr(&address).ok()? })
        })
    });
    permit.expect("no place for another server within 10 minutes: is a test process hanging?")
}
