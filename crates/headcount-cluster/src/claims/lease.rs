//! How long what this host has is its own for certain.
//!
//! etcd counts a lease's time from when it handles a keep-alive, so not before that was sent. This host counts from *sending*,
//! by `CLOCK_BOOTTIME`, which goes on while the machine is suspended, and stops [`margin`] earlier.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::{sleep, timeout};

use crate::etcd::Etcd;
use crate::trouble::Trouble;

/// Milliseconds since the boot, suspend included.
#[must_use]
pub fn boot_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    // Neither is negative on this clock.
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// So long before etcd can give it to another, this host has it no more. For clocks that do not run at the same speed, and for what
/// a process began before it asked whether it still has it.
#[must_use]
pub fn margin(ttl: Duration) -> Duration {
    ttl / 5
}

/// Until when the lease is ours for certain, if a keep-alive that was sent then was confirmed.
#[must_use]
pub fn deadline(sent_ms: u64, ttl: Duration) -> u64 {
    let time = ttl.saturating_sub(margin(ttl)).as_millis();
    sent_ms.saturating_add(u64::try_from(time).unwrap_or(u64::MAX))
}

/// So often it is extended, as parts of the lease's time: three may fail in a row.
const BEATS: u32 = 4;
/// Who does not answer within this part of it is not waited for: another member is asked.
const PATIENCE: u32 = 6;

/// A lease that is held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub id: i64,
    /// As etcd has granted it.
    pub ttl: Duration,
    pub deadline: u64,
}

impl Lease {
    /// A new one.
    pub async fn grant(etcd: &Etcd, ttl: Duration) -> Result<Lease, Trouble> {
        let sent = boot_ms();
        let id = etcd.grant(ttl).await?;
        Ok(Lease { id, ttl, deadline: deadline(sent, ttl) })
    }

    /// Extends it for as long as etcd confirms it, one keep-alive at a time, so that each answer is to the last one. `renewed` is told each
    /// deadline.
    pub async fn keep(self, etcd: Etcd, renewed: impl Fn(u64)) -> Trouble {
        match self.extend(&etcd, renewed).await {
            // Whatever is the reason: it is not confirmed.
            Err(Trouble::Slow(why)) => Trouble::Away(why),
            Err(trouble) => trouble,
            Ok(never) => match never {},
        }
    }

    async fn extend(self, etcd: &Etcd, renewed: impl Fn(u64)) -> Result<std::convert::Infallible, Trouble> {
        let silent =
            || Trouble::Away(format!("it did not confirm the lease within {:?}", self.ttl / PATIENCE));
        let mut sent = boot_ms();
        let (mut keeper, mut answers) =
            timeout(self.ttl / PATIENCE, etcd.keep_alive(self.id)).await.map_err(|_| silent())??;
        loop {
            renewed(deadline(sent, self.ttl));
            sleep(self.ttl / BEATS).await;
            sent = boot_ms();
            let answer = timeout(self.ttl / PATIENCE, async {
                keeper.keep_alive().await?;
                answers.message().await
            });
            match answer.await.map_err(|_| silent())? {
                Ok(Some(answer)) if answer.ttl() > 0 => {}
                Ok(Some(_)) => return Err(Trouble::LeaseGone),
                Ok(None) => return Err(Trouble::Away("it has closed the connection".to_owned())),
                Err(error) => return Err(etcd.trouble(&error, "keep the lease")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever is confirmed, and however late: it is over here before etcd can give it to another.
    #[test]
    fn it_ends_here_before_it_ends_there() {
        for ttl in [2, 5, 60, 300].map(Duration::from_secs) {
            for (sent, on_its_way) in [(1_000_u64, 0_u64), (1_000, 1), (1_000, 900), (5_000_000, 4_000)] {
                let over_there = sent + on_its_way + u64::try_from(ttl.as_millis()).unwrap();
                let here = deadline(sent, ttl);
                assert!(over_there - here >= u64::try_from(margin(ttl).as_millis()).unwrap());
                assert!(here > sent);
            }
        }
    }

    #[test]
    fn three_keep_alives_may_fail() {
        let ttl = Duration::from_secs(5);
        assert!(ttl / BEATS * 3 < ttl - margin(ttl));
        assert!(ttl / PATIENCE < ttl / BEATS);
    }
}
