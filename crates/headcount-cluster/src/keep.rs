//! Keeps the lease of what is there.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::etcd::Etcd;
use crate::trouble::Trouble;

/// Until the lease is no more, or until that cannot be known.
pub(crate) async fn keep(etcd: Etcd, lease: i64, ttl: Duration) -> Trouble {
    let mut keeping = Keeping { etcd, lease, ttl, heard: Instant::now(), asked: Instant::now() };
    loop {
        match keeping.ask().await {
            // An etcd that is behind with its writes extends nothing, and ends the stream. To connect anew would be more to do for it, and
            // it is the same for all members.
            Trouble::Slow(why) if keeping.heard.elapsed() > ttl => return Trouble::Away(why),
            // Nor is it asked more often: all hosts are refused at the same time.
            Trouble::Slow(_) => sleep((ttl / 3).saturating_sub(keeping.asked.elapsed()).max(ttl / 6)).await,
            trouble => return trouble,
        }
    }
}

struct Keeping {
    etcd: Etcd,
    lease: i64,
    ttl: Duration,
    /// When it was extended last.
    heard: Instant,
    /// When that was asked for last.
    asked: Instant,
}

impl Keeping {
    /// As long as one stream lasts.
    async fn ask(&mut self) -> Trouble {
        let left = self.ttl.saturating_sub(self.heard.elapsed()).max(self.ttl / 6);
        self.asked = Instant::now();
        let (mut keeper, mut answers) = match self.etcd.keep_alive_within(self.lease, left).await {
            Ok(both) => both,
            Err(trouble) => return trouble,
        };
        self.heard = Instant::now();
        let mut next_beat = Instant::now() + self.ttl / 3;
        // Only one is awaited at a time: an etcd that has a lot to do does not get more of it by being asked again.
        let (mut awaited, mut due) = (false, false);
        loop {
            if due && !awaited {
                if let Err(error) = keeper.keep_alive().await {
                    return self.etcd.trouble(&error, "keep the lease");
                }
                (awaited, due, self.asked) = (true, false, Instant::now());
            }
            tokio::select! {
                answer = answers.message() => match answer {
                    Ok(Some(answer)) if answer.ttl() > 0 => (self.heard, awaited) = (Instant::now(), false),
                    Ok(Some(_)) => return Trouble::LeaseGone,
                    Ok(None) => return Trouble::Away("it has closed the connection".to_owned()),
                    Err(error) => return self.etcd.trouble(&error, "keep the lease"),
                },
                () = sleep_until(next_beat) => {
                    if next_beat.elapsed() > self.ttl / 3 {
                        // It was this process that stood still. What became of the lease, etcd knows.
                        self.heard = Instant::now();
                    }
                    if self.heard.elapsed() > self.ttl {
                        return Trouble::Away(format!("no answer for {:?}", self.ttl));
                    }
                    (next_beat, due) = (Instant::now() + self.ttl / 3, true);
                }
            }
        }
    }
}
