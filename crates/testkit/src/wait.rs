//! Waiting for a condition until a deadline. Nothing in a test sleeps and hopes.

use std::time::{Duration, Instant};

/// Long enough for a loaded machine, short enough for a hang to be seen.
pub const PATIENCE: Duration = Duration::from_secs(15);

const STEP: Duration = Duration::from_millis(1);

/// The longest pause between two questions, however long one takes.
const LONGEST_STEP: Duration = Duration::from_millis(50);

/// Asks again every millisecond, or after a pause of twice the time that asking takes: who looks at all processes of the machine without
/// a pause takes from what is waited for the processor that it needs to come. `None` when the deadline passed.
pub fn poll<T>(timeout: Duration, condition: impl FnMut() -> Option<T>) -> Option<T> {
    ask(timeout, |asking| (2 * asking).clamp(STEP, LONGEST_STEP), condition)
}

/// Asks again every millisecond, whatever that costs: for who must not miss what is there for a moment.
pub fn poll_closely<T>(timeout: Duration, condition: impl FnMut() -> Option<T>) -> Option<T> {
    ask(timeout, |_| STEP, condition)
}

fn ask<T>(
    timeout: Duration,
    pause_after: impl Fn(Duration) -> Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Option<T> {
    let deadline = Instant::now() + timeout;
    loop {
        let asked = Instant::now();
        if let Some(found) = condition() {
            return Some(found);
        }
        let now = Instant::now();
        if now >= deadline {
            return None;
        }
        std::thread::sleep(pause_after(now - asked).min(deadline - now));
    }
}

/// The clock that reports carry, in nanoseconds.
pub fn boot_clock() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
