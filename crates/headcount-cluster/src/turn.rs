//! What one agent at a time does for all of its cluster, and how far it has come: a role under a lease of its own, and a record
//! that nobody may write but who has the role.
//!
//! Who has it gives it up by itself, and before etcd can give it to another, if its lease is not confirmed in time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Compare, CompareOp, KeyValue, PutOptions, Txn, TxnOp};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::config::ClusterConfig;
use crate::etcd::Etcd;
use crate::keys::Keys;
use crate::trouble::Trouble;

/// The role, as long as this is kept and [`Turn::lost`] does not return.
pub struct Turn {
    record: Record,
    lost: watch::Receiver<bool>,
    /// Extends the lease. Ends with this.
    _keeping: JoinSet<()>,
}

/// The record: it can be written as long as the role is ours.
#[derive(Clone)]
pub struct Record {
    /// Another connection, when the one before is broken.
    etcd: Arc<Mutex<Etcd>>,
    role: String,
    key: String,
    lease: i64,
}

/// What was found in the record, and at which revision that was written.
pub type Recorded = Option<(Vec<u8>, i64)>;

impl Turn {
    /// Waits until nobody has the role of the hook of this name, and takes it.
    ///
    /// # Errors
    /// What is wrong with etcd. It can be tried again.
    pub async fn take(config: &ClusterConfig, hook: &str) -> Result<Turn, Trouble> {
        let keys = Keys::new(&config.prefix, &config.name);
        let (role, key) = (keys.hook_role(hook), keys.hook(hook));
        let etcd = Etcd::connect(config, keys.root()).await?;
        loop {
            let revision = etcd.revision(&role).await?;
            if let Some(kv) = etcd.get(&role).await? {
                if kv.lease() == 0 {
                    return Err(Trouble::Taken(format!(
                        "the key {role} is under no lease, so that it is nobody's turn: remove it with etcdctl del"
                    )));
                }
                etcd.until_free(&role, revision + 1).await?;
                continue;
            }
            let asked = boot_time();
            let lease = etcd.grant(config.ttl).await?;
            let mine =
                TxnOp::put(role.clone(), config.host.clone(), Some(PutOptions::new().with_lease(lease)));
            let txn = Txn::new()
                .when([Compare::create_revision(role.clone(), CompareOp::Equal, 0)])
                .and_then([mine]);
            let done = etcd.txn("take turns with a hook", txn).await;
            if !done.as_ref().is_ok_and(etcd_client::TxnResponse::succeeded) {
                // If this fails as well, the lease ends by itself.
                let _ = etcd.revoke(lease).await;
                done?;
                continue;
            }
            let record = Record { etcd: Arc::new(Mutex::new(etcd)), role, key, lease };
            let (tell, lost) = watch::channel(false);
            let mut keeping = JoinSet::new();
            keeping.spawn(keep(config.clone(), keys, record.clone(), asked, tell));
            return Ok(Turn { record, lost, _keeping: keeping });
        }
    }

    /// Its record.
    #[must_use]
    pub fn record(&self) -> Record {
        self.record.clone()
    }

    /// Returns when the role is not ours any more, or not for certain.
    pub async fn lost(&mut self) {
        // Who tells is gone only if it panicked: then nobody extends the lease.
        let _ = self.lost.wait_for(|lost| *lost).await;
    }

    /// Another one may have it, at once.
    pub async fn give_up(self) {
        // If not, the lease ends by itself.
        let _ = self.record.etcd().revoke(self.record.lease).await;
    }
}

impl Record {
    /// What it says.
    ///
    /// # Errors
    /// What is wrong with etcd.
    pub async fn read(&self) -> Result<Recorded, Trouble> {
        let found: Option<KeyValue> = self.etcd().get(&self.key).await?;
        Ok(found.map(|kv| (kv.value().to_vec(), kv.mod_revision())))
    }

    /// Writes it; at which revision. `None`: the role is not ours any more, and nothing was written.
    ///
    /// # Errors
    /// What is wrong with etcd: nobody knows whether it was written.
    pub async fn write(&self, value: Vec<u8>) -> Result<Option<i64>, Trouble> {
        let txn = Txn::new()
            .when([Compare::lease(self.role.clone(), CompareOp::Equal, self.lease)])
            .and_then([TxnOp::put(self.key.clone(), value, None)]);
        let answer = self.etcd().txn("write the record of a hook", txn).await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        Ok(answer.succeeded().then_some(revision))
    }

    /// Tells one tenure of the role from all others.
    #[must_use]
    pub fn tenure(&self) -> i64 {
        self.lease
    }

    fn etcd(&self) -> Etcd {
        self.etcd.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// By the clock that goes on while the machine is suspended.
fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Extends the lease until that cannot be done, or was not confirmed in time.
async fn keep(config: ClusterConfig, keys: Keys, record: Record, asked: Duration, lost: watch::Sender<bool>) {
    // etcd counts from when it is asked, so not before we ask. The margin is for clocks that differ, and for what has begun.
    let most = config.ttl - config.ttl / 5;
    let mut confirmed = asked;
    let is_over = |confirmed: Duration| boot_time().saturating_sub(confirmed) >= most;
    loop {
        let left = most.saturating_sub(boot_time().saturating_sub(confirmed));
        sleep(left.min(config.ttl / 4)).await;
        if is_over(confirmed) {
            break;
        }
        let left = most.saturating_sub(boot_time().saturating_sub(confirmed));
        let sent = boot_time();
        match tokio::time::timeout(left, record.etcd().keep_alive(record.lease)).await {
            Ok(Ok(_)) => confirmed = sent,
            Ok(Err(Trouble::LeaseGone)) => break,
            // Another member may answer.
            Ok(Err(_)) => {
                if let Ok(Ok(etcd)) = tokio::time::timeout(left, Etcd::connect(&config, keys.root())).await {
                    *record.etcd.lock().unwrap_or_else(PoisonError::into_inner) = etcd;
                }
            }
            Err(_) => {}
        }
    }
    lost.send_replace(true);
}
