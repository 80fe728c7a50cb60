//! Which hosts are lost: one agent at a time notes it, so that it is known since when, also to those who ask later.
//!
//! It watches the hosts' keys, which end with their leases; all others watch one key, that of this role. Two that both
//! believe to have it do no harm: each note is made only if the host is gone and nobody has noted it.

use etcd_client::{Compare, CompareOp, EventType, PutOptions, Txn, TxnOp};
use tokio::time::sleep;

use crate::config::ClusterConfig;
use crate::etcd::Etcd;
use crate::keys::{Key, Keys};
use crate::pace::Backoff;
use crate::presence::{EventLease, note_lost};
use crate::trouble::Trouble;

/// Until it is aborted, which it is when this host's lease is no more.
pub(crate) async fn run(etcd: Etcd, keys: Keys, config: ClusterConfig, lease: i64) -> Trouble {
    let mut backoff = Backoff::default();
    let mut teller = Teller { events: EventLease::new(&config), etcd, keys, config, lease };
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
}

impl Teller {
    /// Gets the role and notes, or waits until nobody has it.
    async fn turn(&mut self) -> Result<(), Trouble> {
        let role = self.keys.teller();
        let mine = TxnOp::put(
            role.clone(),
            self.config.host.clone(),
            Some(PutOptions::new().with_lease(self.lease)),
        );
        let txn = Txn::new()
            .when([Compare::create_revision(role.clone(), CompareOp::Equal, 0)])
            .and_then([mine])
            .or_else([TxnOp::get(role.clone(), None)]);
        let answer = self.etcd.txn("note who is lost", txn).await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        let held = self.etcd.get(&role).await?;
        match held {
            Some(kv) if kv.lease() == self.lease => self.note().await,
            Some(_) => self.etcd.until_gone(&role, revision + 1).await,
            None => Ok(()),
        }
    }

    async fn note(&mut self) -> Result<(), Trouble> {
        let (hosts, revision) = self.etcd.all(&self.keys.hosts(), None).await?;
        let here: std::collections::BTreeSet<Vec<u8>> = hosts.iter().map(|kv| kv.key().to_vec()).collect();
        let (known, _) = self.etcd.all(&self.keys.all_known(), Some(revision)).await?;
        for kv in known {
            if let Some(Key::Known(host)) = self.keys.parse(kv.key())
                && !here.contains(self.keys.host(&host).as_bytes())
            {
                note_lost(&self.etcd, &self.keys, &mut self.events, &host).await?;
            }
        }
        let mut changes = self.etcd.watch(&self.keys.hosts(), true, revision + 1).await?;
        loop {
            let Some(answer) = changes.message().await.map_err(|e| self.etcd.trouble(&e, "watch"))? else {
                return Ok(());
            };
            if answer.canceled() {
                return Ok(());
            }
            for event in answer.events().iter().filter(|event| event.event_type() == EventType::Delete) {
                if let Some(Key::Host(host)) = event.kv().and_then(|kv| self.keys.parse(kv.key())) {
                    note_lost(&self.etcd, &self.keys, &mut self.events, &host).await?;
                }
            }
        }
    }
}
