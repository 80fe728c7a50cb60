//! How often something is done: writes within a bound, attempts with chance.

use std::time::Duration;

use tokio::time::Instant;

/// A bound of writes: so many at once, and so many per second for long.
pub(crate) struct Pace {
    burst: f64,
    per_second: f64,
    left: f64,
    at: Instant,
    /// Not before this, since etcd has been slow.
    spare_until: Instant,
}

/// So many writes are free.
pub(crate) const BURST: u32 = 10;

impl Pace {
    pub(crate) fn new(per_second: u32, now: Instant) -> Pace {
        let (burst, per_second) = (f64::from(BURST), f64::from(per_second));
        Pace { burst, per_second, left: burst, at: now, spare_until: now }
    }

    /// A write has taken so long. The longer, the longer is etcd spared: all hosts together must not ask for more than it can
    /// do, however many they are.
    pub(crate) fn took(&mut self, time: Duration, now: Instant) {
        self.spare_until = now + spared(time);
    }

    /// Takes one write, or says when there is one.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        if now < self.spare_until {
            return Err(self.spare_until);
        }
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * self.per_second;
        (self.left, self.at) = ((self.left + earned).min(self.burst), now);
        if self.left >= 1.0 {
            self.left -= 1.0;
            return Ok(());
        }
        Err(now + Duration::from_secs_f64((1.0 - self.left) / self.per_second) + Duration::from_millis(1))
    }
}

/// A write that takes longer tells that etcd has a lot to do, and not only a slow disk.
const SLOW: Duration = Duration::from_millis(100);
/// So many times as long as it took, nothing is written after it.
const SPARED: u32 = 4;

/// How long nothing is to be written after a call that took so long.
pub(crate) fn spared(time: Duration) -> Duration {
    if time > SLOW { (time * SPARED).min(LONGEST) } else { Duration::ZERO }
}

/// When to try again: later each time, and never all at the same moment.
#[derive(Default)]
pub(crate) struct Backoff {
    failures: u32,
}

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(10);

/// So many failures count as one for which etcd has too much to do: then it is all hosts that try again.
const BUSY: u32 = 3;

impl Backoff {
    /// When to try again what etcd had no time for.
    pub(crate) fn next_of_busy(&mut self) -> Duration {
        self.failures = self.failures.max(BUSY);
        self.next()
    }

    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }

    pub(crate) fn next(&mut self) -> Duration {
        let whole = (FIRST * 2_u32.saturating_pow(self.failures.min(10))).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        whole.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_holds_however_much_there_is_to_write() {
        let begun = Instant::now();
        let mut pace = Pace::new(5, begun);
        let mut taken = 0;
        let mut now = begun;
        while now < begun + Duration::from_secs(20) {
            match pace.take(now) {
                Ok(()) => taken += 1,
                Err(next) => {
                    assert!(next > now);
                    now = next;
                }
            }
        }
        assert!((105..=110).contains(&taken), "{taken}");
        // What is not used for long is not saved up beyond the burst.
        now += Duration::from_secs(3600);
        assert_eq!((0..100).filter(|_| pace.take(now).is_ok()).count(), BURST as usize);
    }

    /// As many hosts as there may be, each writing one thing after the other: the longer etcd takes, the less they ask for.
    #[test]
    fn a_slow_etcd_is_spared() {
        let begun = Instant::now();
        for (time, most) in [(1, 110), (100, 110), (150, 28), (1000, 4)] {
            let (mut pace, mut now, mut taken) = (Pace::new(5, begun), begun, 0);
            while now < begun + Duration::from_secs(20) {
                match pace.take(now) {
                    Ok(()) => {
                        taken += 1;
                        now += Duration::from_millis(time);
                        pace.took(Duration::from_millis(time), now);
                    }
                    Err(next) => {
                        assert!(next > now);
                        now = next;
                    }
                }
            }
            assert!((most - 5..=most).contains(&taken), "{time} ms: {taken}");
        }
    }

    #[test]
    fn attempts_become_rarer_up_to_a_bound() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..20).map(|_| backoff.next()).collect();
        assert!(pauses[0] <= FIRST && pauses.iter().all(|pause| *pause <= LONGEST && *pause >= FIRST / 2));
        assert!(pauses[19] >= LONGEST / 2);
        backoff.succeeded();
        assert!(backoff.next() <= FIRST);
        backoff.succeeded();
        let pauses: Vec<_> = (0..3).map(|_| backoff.next_of_busy()).collect();
        assert!(pauses.iter().all(|pause| *pause >= FIRST * 4), "{pauses:?}");
    }
}
