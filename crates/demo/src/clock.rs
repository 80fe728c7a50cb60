//! The clock that the journal's times are on.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since boot, suspend included.
pub fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    // Neither part of this clock is ever negative.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
