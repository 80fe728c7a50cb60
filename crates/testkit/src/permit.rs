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
    _places: Vec<UnixListener>,
}

/// The whole run may take minutes on two cores; a place is kept for seconds.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

fn number_of_places() -> usize {
    let given = std::env::var("HEADCOUNT_TEST_SERVERS").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| 2 * std::thread::available_parallelism().map_or(1, usize::from)).max(1)
}

fn take(place: usize) -> Option<UnixListener> {
    let uid = rustix::process::geteuid().as_raw();
    let address = SocketAddr::from_abstract_name(format!("headcount-testkit-{uid}-{place}")).ok()?;
    UnixListener::bind_addr(&address).ok()
}

/// Waits for one of the places. `HEADCOUNT_TEST_SERVERS` sets how many there are.
pub fn permit() -> Permit {
    let taken = wait::poll(LONGEST_WAIT, || (0..number_of_places()).find_map(take));
    Permit {
        _places: vec![
            taken.expect("no place for another server within 10 minutes: is a test process hanging?"),
        ],
    }
}

/// Waits for all places: for a test that does something to the whole machine.
pub fn permit_alone() -> Permit {
    // One after the other in this order, so that two who want all of them do not wait for each other.
    let all = (0..number_of_places()).map(|place| {
        let taken = wait::poll(LONGEST_WAIT, || take(place));
        taken.expect("not alone within 10 minutes: is a test process hanging?")
    });
    Permit { _places: all.collect() }
}
