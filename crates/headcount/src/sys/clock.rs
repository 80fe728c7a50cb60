//! Clocks: one to compute with, one that stands still while the machine is suspended, one to show to people, and one that
//! tells what something costs.

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

/// Nanoseconds for which the machine was awake: who could run, and did not, is measured with it.
#[inline]
pub(crate) fn awake_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// The same, at most a tick of the kernel ago, for a quarter of the price.
#[inline]
pub(crate) fn awake_lately_ns() -> u64 {
    nanoseconds(ClockId::MonotonicCoarse)
}

/// One moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) boot: u64,
    pub(crate) awake: u64,
}

impl Moment {
    pub(crate) fn now() -> Moment {
        Moment { boot: boot_ns(), awake: awake_ns() }
    }

    /// How long the machine was suspended since an earlier moment.
    pub(crate) fn slept_since(self, then: Moment) -> u64 {
        let all = self.boot.saturating_sub(then.boot);
        all.saturating_sub(self.awake.saturating_sub(then.awake))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_clocks_differ_by_is_sleep() {
        let at = |boot, awake| Moment { boot, awake };
        assert_eq!(at(900, 400).slept_since(at(100, 100)), 500);
        assert_eq!(at(400, 400).slept_since(at(100, 100)), 0);
        // A time that was not noted, and one that nobody can have noted yet.
        assert_eq!(at(900, 400).slept_since(at(800, 0)), 0);
        assert_eq!(at(900, 400).slept_since(at(950, 500)), 0);
    }
}
