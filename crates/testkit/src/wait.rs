//! Waiting for a condition until a deadline. Nothing in a test sleeps and hopes.

use std::time::{Duration, Instant};

/// Long enough for a loaded machine, short enough for a hang to be seen.
pub const PATIENCE: Duration = Duration::from_secs(15);

const STEP: Duration = Duration::from_millis(1);

/// Asks again every millisecond; `None` when the deadline passed.
pub fn poll<T>(timeout: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(found) = condition() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(STEP);
    }
}

/// The clock that reports carry, in nanoseconds.
pub fn boot_clock() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
