//! The clocks that registries use.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since boot, suspend included, as in [`headcount::Event::boot_ns`].
pub fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    // Neither is negative on this clock.
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Nanoseconds since 1970, as in [`headcount::Event::time_ns`].
pub fn wall_ns() -> u64 {
    nanoseconds(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// A duration in nanoseconds, at most `u64::MAX`.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A time limit, and when it began.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    begun_ns: u64,
    timeout: Duration,
}

impl Deadline {
    pub fn after(timeout: Duration) -> Deadline {
        Deadline { begun_ns: boot_ns(), timeout }
    }

    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(boot_ns().saturating_sub(self.begun_ns))
    }

    pub fn is_over(&self) -> bool {
        self.elapsed() >= self.timeout
    }

    pub fn left(&self) -> Duration {
        self.timeout.saturating_sub(self.elapsed())
    }

    pub fn timeout(&self) -> Duration {
        self.timeout
    }
}
