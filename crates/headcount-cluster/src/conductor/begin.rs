//! How a rollout begins, and how one that was interrupted or has stopped is gone on with.

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use tokio::task::JoinSet;

use super::record::{PartValue, free, look, read_waves};
use super::{Conductor, News, Refused};
use crate::config::ClusterConfig;
use crate::etcd::Etcd;
use crate::keep::keep;
use crate::keys::Keys;
use crate::presence::json;
use crate::rollout::{Ended, How, RolloutValue};
use crate::task::{Outcome, TaskState, TaskValue};
use crate::trouble::Trouble;

impl Conductor {
    /// Begins a rollout. Nothing is asked of anybody yet.
    ///
    /// # Errors
    /// Another one stands in the way, or etcd does.
    pub async fn begin(config: ClusterConfig, who: &str, plan: RolloutValue) -> Result<Conductor, Refused> {
        let keys = Keys::new(&config.prefix, &config.name);
        let etcd = Etcd::connect(&config, keys.root()).await?;
        let before = look(&etcd, &keys).await?;
        let old = before.as_ref().map(|found| (found.record.id.clone(), found.lease));
        let revision = free(before)?;
        let lasting = etcd.grant(config.forget_after).await?;
        let record = RolloutValue { id: format!("{lasting:x}"), by: who.to_owned(), ..plan };
        let begun = Conductor::begin_as(config, &etcd, keys, record, lasting, revision).await;
        match &begun {
            Ok(_) => {
                // What is left of the last one is of no use any more; otherwise it ends by itself.
                if let Some((id, lease)) = old
                    && format!("{lease:x}") == id
                {
                    let _ = etcd.revoke(lease).await;
                }
            }
            // With what was written of it, whatever that is.
            Err(_) => drop(etcd.revoke(lasting).await),
        }
        begun
    }

    async fn begin_as(
        config: ClusterConfig,
        etcd: &Etcd,
        keys: Keys,
        mut record: RolloutValue,
        lasting: i64,
        revision: i64,
    ) -> Result<Conductor, Refused> {
        // Before the record, which is there only with all of them.
        let parts = PartValue::all_of(&record);
        record.parts = parts.len();
        for (number, part) in parts.iter().enumerate() {
            let options = PutOptions::new().with_lease(lasting);
            let put = TxnOp::put(keys.wave_part(&record.id, number), json(part), Some(options));
            etcd.txn("begin a rollout", Txn::new().and_then([put])).await?;
        }
        let lease = etcd.grant(config.ttl).await?;
        let who = record.by.clone();
        let conductor = Conductor::new(config, keys, &who, record, lasting, lease);
        let txn = Txn::new()
            .when([Compare::mod_revision(conductor.keys.rollout(), CompareOp::Equal, revision)])
            .and_then([conductor.put_record(&conductor.record), conductor.put_holder()]);
        if etcd.txn("begin a rollout", txn).await?.succeeded() {
            return Ok(conductor);
        }
        // Somebody else was quicker.
        let _ = etcd.revoke(lease).await;
        free(look(etcd, &conductor.keys).await?)?;
        Err(Trouble::Other { what: "begin a rollout", why: "somebody else has just ended one".to_owned() }
            .into())
    }

    /// Goes on with the one that was interrupted, or has stopped: with all that is not through. What failed is asked for again.
    ///
    /// # Errors
    /// There is none, somebody else goes on with it, or etcd stands in the way.
    pub async fn resume(config: ClusterConfig, who: &str) -> Result<Conductor, Refused> {
        let keys = Keys::new(&config.prefix, &config.name);
        let etcd = Etcd::connect(&config, keys.root()).await?;
        let Some(found) = look(&etcd, &keys).await? else { return Err(Refused::Nothing) };
        if matches!(&found.record.ended, Some(ended) if ended.how != How::Stopped) {
            return Err(Refused::Nothing);
        }
        let mut record = found.record;
        read_waves(&etcd, &keys, &mut record).await?;
        let lease = etcd.grant(config.ttl).await?;
        let mut conductor = Conductor::new(config, keys, who, record, found.lease, lease);
        match conductor.take_hold(&etcd).await? {
            None => {}
            Some(News::Lost(by)) => {
                let _ = etcd.revoke(lease).await;
                let since = found.holder.map_or(0.0, |(holder, _)| holder.since);
                return Err(Refused::Held(by, since));
            }
            Some(_) => return Err(Refused::Nothing),
        }
        if let Some(ended) = conductor.record.ended.clone() {
            conductor.reopen(&etcd, found.revision, ended).await?;
        }
        Ok(conductor)
    }

    /// Forgets what has failed, and then that it has ended: whoever is killed in between leaves one that has stopped.
    async fn reopen(&mut self, etcd: &Etcd, revision: i64, ended: Ended) -> Result<(), Refused> {
        let mut keeping = JoinSet::new();
        keeping.spawn(keep(etcd.clone(), self.lease, self.config.ttl));
        self.read_tasks(etcd).await?;
        let failed = |task: &TaskValue| {
            let is_through = task.report.as_ref().is_some_and(|report| report.outcome == Outcome::Serving);
            task.state == TaskState::Done && !is_through
        };
        let again: Vec<_> =
            self.tasks.iter().filter(|(_, task)| failed(task)).map(|(target, _)| target.clone()).collect();
        let is_held = self.forget(etcd, &again).await?;
        let record = RolloutValue { ended: None, ..self.record.clone() };
        let txn = Txn::new()
            .when([self.is_held(), Compare::mod_revision(self.keys.rollout(), CompareOp::Equal, revision)])
            .and_then([self.put_record(&record)]);
        if !is_held || !etcd.txn("go on with a rollout", txn).await?.succeeded() {
            return Err(Refused::Nothing);
        }
        self.record = record;
        self.had_stopped = Some(ended);
        Ok(())
    }
}
