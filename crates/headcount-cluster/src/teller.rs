//! Which hosts are lost: one agent at a time notes it, so that it is known since when, also to those who ask later.
//!
//! It watches the hosts' keys, which end with their leases; all others watch one key, that of this role. Two that both
//! believe to have it do no harm: each note is made only if the host is gone and nobody has noted it.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use etcd_client::{Compare, CompareOp, EventType, KeyValue, PutOptions, Txn, TxnOp};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::config::ClusterConfig;
use crate::etcd::Etcd;
use crate::keys::{Key, Keys};
use crate::pace::Backoff;
use crate::presence::{EventLease, note_lost};
use crate::trouble::Trouble;
use crate::value::{self, KnownValue, Presence};

/// So many losses are noted at once: a whole site may be lost at the same moment.
const AT_ONCE: usize = 16;
/// So many keep-alives a second are no trouble for an etcd that has two processors, with writes of all hosts beside them.
const KEEP_ALIVES: usize = 2_000;

/// Until it is aborted, which it is when this host's lease is no more.
pub(crate) async fn run(etcd: Etcd, keys: Keys, config: ClusterConfig, lease: i64) -> Trouble {
    let mut backoff = Backoff::default();
    let events = EventLease::new(&config);
    let mut teller = Teller { events, etcd, keys, config, lease, said_of: 0, has_said: false };
    loop {
        // What goes wrong here goes wrong for the publisher as well, which says it.
        match teller.turn().await {
            Ok(()) => backoff.succeeded(),
            Err(Trouble::LeaseGone) => teller.events.forget(),
            Err(_) => {}
        }
        sleep(backoff.next()).await;
    }
}

struct Teller {
    etcd: Etcd,
    keys: Keys,
    config: ClusterConfig,
    lease: i64,
    events: EventLease,
    /// Of how many hosts it was said that they are too many.
    said_of: usize,
    /// That somebody else has the role for ever.
    has_said: bool,
}

impl Teller {
    /// Gets the role and notes, or waits until nobody has it.
    async fn turn(&mut self) -> Result<(), Trouble> {
        let role = self.keys.teller();
        let revision = self.etcd.revision(&role).await?;
        // Of very many hosts that join or wait, one tries to have it: trying is a write, and looking is none.
        if self.etcd.get(&role).await?.is_none() {
            let mine = PutOptions::new().with_lease(self.lease);
            let txn = Txn::new()
                .when([Compare::create_revision(role.clone(), CompareOp::Equal, 0)])
                .and_then([TxnOp::put(role.clone(), self.config.host.clone(), Some(mine))]);
            self.etcd.txn("note who is lost", txn).await?;
        }
        match self.etcd.get(&role).await? {
            Some(kv) if kv.lease() == self.lease => self.note().await,
            Some(kv) if kv.lease() == 0 && !std::mem::replace(&mut self.has_said, true) => {
                // No agent writes it so.
                tracing::warn!(
                    "cluster {}: the key {role} is under no lease, so that nobody notes who is lost: remove it with etcdctl del",
                    self.config.name
                );
                Ok(())
            }
            Some(_) => self.etcd.until_free(&role, revision + 1).await,
            None => Ok(()),
        }
    }

    async fn note(&mut self) -> Result<(), Trouble> {
        let (hosts, revision) = self.etcd.all(&self.keys.hosts(), None).await?;
        let mut here: BTreeSet<Vec<u8>> = hosts.iter().map(|kv| kv.key().to_vec()).collect();
        let (known, _) = self.etcd.all(&self.keys.all_known(), Some(revision)).await?;
        let mut lost: VecDeque<String> = known.iter().filter_map(|kv| self.not_noted(kv)).collect();
        lost.retain(|host| !here.contains(self.keys.host(host).as_bytes()));
        let mut changes = self.etcd.watch(&self.keys.hosts(), true, revision + 1).await?;
        let mut notes = JoinSet::new();
        loop {
            self.advise(here.len());
            while notes.len() < AT_ONCE
                && let Some(host) = lost.pop_front()
            {
                let (etcd, keys) = (self.etcd.clone(), self.keys.clone());
                let lease = self.events.get(&etcd).await?;
                notes.spawn(async move { note_lost(&etcd, &keys, lease, &host).await });
            }
            tokio::select! {
                answer = changes.message() => {
                    let answer = answer.map_err(|e| self.etcd.trouble(&e, "watch"))?;
                    let Some(answer) = answer.filter(|answer| !answer.canceled()) else { return Ok(()) };
                    for event in answer.events() {
                        let Some(key) = event.kv().map(KeyValue::key) else { continue };
                        if event.event_type() == EventType::Put {
                            here.insert(key.to_vec());
                            continue;
                        }
                        here.remove(key);
                        if let Some(Key::Host(host)) = self.keys.parse(key) {
                            lost.push_back(host);
                        }
                    }
                }
                Some(noted) = notes.join_next() => noted
                    .map_err(|error| Trouble::Other { what: "note who is lost", why: error.to_string() })??,
            }
        }
    }

    /// Says when there are more hosts than their leases' time is good for, and again when there are twice as many.
    fn advise(&mut self, hosts: usize) {
        let Some(ttl) = better_ttl(hosts, self.config.ttl).filter(|_| hosts >= self.said_of * 2) else {
            return;
        };
        self.said_of = hosts;
        tracing::warn!(
            "cluster {}: {hosts} hosts with a ttl of {:?} ask etcd for {} keep-alives a second, which may be more than it \
             can do in time: set cluster.ttl to \"{}s\" on all of them (see docs/cluster.md, What it costs)",
            self.config.name,
            self.config.ttl,
            hosts * 3 / self.config.ttl.as_secs().max(1) as usize,
            ttl.as_secs()
        );
    }

    /// The host, if it was there when somebody noted something of it last. What cannot be read is left alone.
    fn not_noted(&self, kv: &KeyValue) -> Option<String> {
        let Some(Key::Known(host)) = self.keys.parse(kv.key()) else { return None };
        let known: KnownValue = value::parse(kv.value()).ok()?;
        (known.presence == Presence::Here).then_some(host)
    }
}

/// The time for a lease that is better with so many hosts, if this one is too short: a whole multiple of 5 s.
fn better_ttl(hosts: usize, ttl: Duration) -> Option<Duration> {
    let better = Duration::from_secs((hosts * 3).div_ceil(KEEP_ALIVES).next_multiple_of(5) as u64);
    let too_many = hosts * 3 > KEEP_ALIVES * ttl.as_secs().max(1) as usize;
    too_many.then_some(better)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_too_short_for_very_many_hosts() {
        let seconds = Duration::from_secs;
        for (hosts, ttl, better) in [
            (1, 2, None),
            (3_333, 5, None),
            (3_334, 5, Some(10)),
            (1_334, 2, Some(5)),
            (10_000, 5, Some(15)),
            (10_000, 15, None),
        ] {
            assert_eq!(better_ttl(hosts, seconds(ttl)), better.map(seconds), "{hosts} hosts, {ttl} s");
        }
    }
}
