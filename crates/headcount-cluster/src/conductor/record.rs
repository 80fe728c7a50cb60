//! The record of the cluster's last rollout, and who goes on with it.

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use serde::{Deserialize, Serialize};

use crate::config::ClusterConfig;
use crate::etcd::Etcd;
use crate::keys::Keys;
use crate::presence::json;
use crate::rollout::{Ended, How, RolloutValue};
use crate::task::Target;
use crate::trouble::Trouble;
use crate::value::{self, VERSION};

/// Who goes on with a rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HolderValue {
    /// The version of this document.
    pub v: u32,
    /// Who, and where.
    pub by: String,
    /// Since when, by that one's clock.
    pub since: f64,
}

/// Why it is not gone on with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    /// etcd.
    #[error(transparent)]
    Trouble(#[from] Trouble),
    /// Somebody else does so at this moment.
    #[error("{0} is going on with it")]
    Held(String, f64),
    /// There is one that has not ended, and nobody goes on with it.
    #[error("it was interrupted")]
    Interrupted(Box<RolloutValue>),
    /// There is none that has not ended.
    #[error("there is none")]
    Nothing,
    /// The record is nobody's who means well, or a later version's.
    #[error(
        "the key {0} cannot be read, and is left alone: {1}. If it is nobody's, remove it with etcdctl del"
    )]
    Unreadable(String, String),
}

/// The record, how it is kept, and who goes on with it.
pub(crate) struct Found {
    pub(crate) record: RolloutValue,
    pub(crate) revision: i64,
    pub(crate) lease: i64,
    pub(crate) holder: Option<(HolderValue, i64)>,
}

pub(crate) async fn look(etcd: &Etcd, keys: &Keys) -> Result<Option<Found>, Refused> {
    let Some(kv) = etcd.get(&keys.rollout()).await? else { return Ok(None) };
    let unreadable = |why: String| Refused::Unreadable(keys.rollout(), why);
    let record: RolloutValue = value::parse(kv.value()).map_err(|why| unreadable(why.to_string()))?;
    let is_named = |target: &Target| !target.host.is_empty() && !target.node.is_empty();
    if !is_name(&record.id) || record.at_most == 0 || !record.targets().all(is_named) {
        return Err(unreadable("it is not what headcount writes there".to_owned()));
    }
    let holder = etcd.get(&keys.holder(&record.id)).await?.map(|kv| {
        let unknown = HolderValue { v: VERSION, by: "somebody".to_owned(), since: 0.0 };
        (value::parse(kv.value()).unwrap_or(unknown), kv.lease())
    });
    Ok(Some(Found { record, revision: kv.mod_revision(), lease: kv.lease(), holder }))
}

fn is_name(id: &str) -> bool {
    (1..=16).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The rollout that stands in the way of another one, if there is one.
///
/// # Errors
/// What stands in the way, or why that cannot be told.
pub async fn is_free(config: &ClusterConfig) -> Result<(), Refused> {
    let keys = Keys::new(&config.prefix, &config.name);
    let etcd = Etcd::connect(config, keys.root()).await?;
    free(look(&etcd, &keys).await?).map(drop)
}

/// The revision of a record that may be replaced; 0 if there is none.
pub(crate) fn free(found: Option<Found>) -> Result<i64, Refused> {
    match found {
        None => Ok(0),
        Some(found) if found.record.ended.is_some() => Ok(found.revision),
        Some(Found { holder: Some((holder, _)), .. }) => Err(Refused::Held(holder.by, holder.since)),
        Some(found) => Err(Refused::Interrupted(Box::new(found.record))),
    }
}

/// Ends the one that has not ended, whoever goes on with it: that one is told. What has begun on a host ends there.
///
/// # Errors
/// There is none, or etcd stands in the way.
pub async fn abort(config: &ClusterConfig, who: &str) -> Result<RolloutValue, Refused> {
    let keys = Keys::new(&config.prefix, &config.name);
    let etcd = Etcd::connect(config, keys.root()).await?;
    loop {
        let Some(found) = look(&etcd, &keys).await? else { return Err(Refused::Nothing) };
        if found.record.ended.is_some() {
            return Err(Refused::Nothing);
        }
        let ended = Ended { how: How::Aborted, why: format!("by {who}"), time: crate::now() };
        let record = RolloutValue { ended: Some(ended), ..found.record };
        let options = PutOptions::new().with_ignore_lease();
        let txn = Txn::new()
            .when([Compare::mod_revision(keys.rollout(), CompareOp::Equal, found.revision)])
            .and_then([
                TxnOp::put(keys.rollout(), json(&record), Some(options)),
                TxnOp::delete(keys.holder(&record.id), None),
            ]);
        if etcd.txn("end a rollout", txn).await?.succeeded() {
            return Ok(record);
        }
    }
}
