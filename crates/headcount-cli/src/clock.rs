//! The clock that registries carry.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since boot, suspend included, as in [`headcount::Event::boot_ns`].
pub fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    // Neither is negative on this clock.
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// A duration in nanoseconds, cut at the far end.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// From some moment on, and till when.
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
