//! What is written of single tasks: many in one transaction, each of them only if nobody else has written it since.

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};

use super::Conductor;
use crate::etcd::Etcd;
use crate::presence::json;
use crate::task::{Target, TaskState, TaskValue};
use crate::trouble::Trouble;

/// So many tasks are written at once: etcd takes 128 operations.
const AT_ONCE: usize = 50;

impl Conductor {
    /// Asks the agents of these to reload them. One that was asked already is not asked again.
    ///
    /// # Errors
    /// etcd. What became of it, [`Conductor::next`] tells.
    pub async fn ask(&mut self, targets: &[Target]) -> Result<(), Trouble> {
        for some in targets.chunks(AT_ONCE) {
            let task = TaskValue::reload(&self.who, self.record.drained, self.record.timeout());
            let all = some.iter().map(|target| {
                let key = self.key(target);
                let options = PutOptions::new().with_lease(self.lasting);
                Txn::new()
                    .when([Compare::create_revision(key.clone(), CompareOp::Equal, 0)])
                    .and_then([TxnOp::put(key, json(&task), Some(options))])
            });
            let txn = self.if_held(all.collect());
            let Some(answer) = self.write("ask for a reload", txn).await? else { return Ok(()) };
            // Until it is read: it must not be asked again.
            let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
            for target in some {
                self.tasks.entry(target.clone()).or_insert_with(|| task.clone());
                self.revisions.entry(target.clone()).or_insert(revision);
            }
        }
        Ok(())
    }

    /// Takes back what nobody has begun. What somebody has just begun stays.
    ///
    /// # Errors
    /// etcd.
    pub async fn withdraw(&mut self, targets: &[Target]) -> Result<(), Trouble> {
        let etcd = self.etcd()?;
        let withdrawn = self.forget(&etcd, targets).await;
        if !matches!(withdrawn, Ok(true)) {
            // What is true is read anew.
            self.connection = None;
        }
        withdrawn.map(drop)
    }

    /// Removes these tasks, those that nobody has written since they were read; of the others, takes in what they are now. False:
    /// somebody else goes on with it.
    pub(super) async fn forget(&mut self, etcd: &Etcd, targets: &[Target]) -> Result<bool, Trouble> {
        for some in targets.chunks(AT_ONCE) {
            let all = some.iter().map(|target| {
                let key = self.key(target);
                let revision = self.revisions.get(target).copied().unwrap_or(0);
                Txn::new()
                    .when([Compare::mod_revision(key.clone(), CompareOp::Equal, revision)])
                    .and_then([TxnOp::delete(key.clone(), None)])
                    .or_else([TxnOp::get(key, None)])
            });
            let txn = self.if_held(all.collect());
            let answer = etcd.txn("take back what was asked", txn).await?;
            if !answer.succeeded() {
                return Ok(false);
            }
            let now = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
            for (target, answer) in some.iter().zip(answer.op_responses()) {
                let TxnOpResponse::Txn(answer) = answer else { continue };
                let there = answer.op_responses().into_iter().find_map(|answer| match answer {
                    TxnOpResponse::Get(found) => found.kvs().first().cloned(),
                    _ => None,
                });
                match there {
                    Some(kv) => drop(self.take(&kv, true)),
                    None => {
                        self.tasks.remove(target);
                        self.revisions.insert(target.clone(), now);
                    }
                }
            }
        }
        Ok(true)
    }

    /// What has not ended is written again, so that the agents look at it: they begin nothing while nobody goes on with the rollout.
    pub(super) async fn remind(&mut self) -> Result<(), Trouble> {
        let open: Vec<(Target, Vec<u8>)> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.state != TaskState::Done)
            .map(|(target, task)| (target.clone(), json(task)))
            .collect();
        for some in open.chunks(AT_ONCE) {
            let all = some.iter().map(|(target, task)| {
                let key = self.key(target);
                let revision = self.revisions.get(target).copied().unwrap_or(0);
                let options = PutOptions::new().with_ignore_lease();
                Txn::new()
                    .when([Compare::mod_revision(key.clone(), CompareOp::Equal, revision)])
                    .and_then([TxnOp::put(key, task.clone(), Some(options))])
            });
            let txn = self.if_held(all.collect());
            if self.write("ask again", txn).await?.is_none() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn key(&self, target: &Target) -> String {
        self.keys.task(&target.host, &target.node, &self.record.id)
    }

    /// All of these, each for itself.
    fn if_held(&self, all: Vec<Txn>) -> Txn {
        Txn::new().when([self.is_held()]).and_then(all.into_iter().map(TxnOp::txn).collect::<Vec<_>>())
    }
}
