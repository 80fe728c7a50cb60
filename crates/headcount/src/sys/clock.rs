//! Clocks: one to compute with, one to show to people, and one that tells what something costs.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

fn nanoseconds(clock: ClockId) -> u64 {
    let t = clock_gettime(clock);
    // Both fields are never negative for the clocks asked here; a clock before 1970 reads as 0.
    u64::try_from(t.tv_sec).unwrap_or(0).saturating_mul(1_000_000_000) + u64::try_from(t.tv_nsec).unwrap_or(0)
}

/// Nanoseconds since boot, suspend included. The same in every process of the host, and not moved
/// by anybody who sets the date: all deadlines and ages are computed with it.
#[inline]
pub(crate) fn boot_ns() -> u64 {
    nanoseconds(ClockId::Boottime)
}

/// The time since then, on the clock of [`boot_ns`].
pub(crate) fn elapsed_since(boot_ns: u64) -> Duration {
    Duration::from_nanos(self::boot_ns().saturating_sub(boot_ns))
}

/// A duration in nanoseconds, as much of it as a word holds.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What the calling thread has used of the processor.
pub(crate) fn own_cpu() -> Duration {
    Duration::from_nanos(nanoseconds(ClockId::ThreadCPUTime))
}

/// Nanoseconds since 1970, for people only: it may jump in both directions.
pub(crate) fn wall_ns() -> u64 {
    nanoseconds(ClockId::Realtime)
}
