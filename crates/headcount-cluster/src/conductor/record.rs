//! The record of the cluster's last rollout, and who goes on with it.

use std::collections::BTreeSet;

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use serde::{Deserialize, Serialize};

use crate::config::ClusterConfig;
use crate::etcd::Etcd;
use crate::keys::Keys;
use crate::presence::json;
use crate::rollout::{Ended, How, LeftOut, RolloutValue};
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

/// Some of a rollout's nodes: as many as make a value of a size that etcd likes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PartValue {
    /// The version of this document.
    v: u32,
    /// The number of the first of these waves, from 0. It may have begun in the part before.
    from: usize,
    /// Nodes that are reloaded.
    waves: Vec<Vec<Target>>,
    /// Nodes that are not.
    #[serde(default)]
    left_out: Vec<LeftOut>,
}

/// A part is about so long. etcd takes 1.5 MiB in a request, and gives so many values in one answer.
const PART_BYTES: usize = 32 << 10;

impl PartValue {
    fn new(from: usize) -> PartValue {
        PartValue { v: VERSION, from, waves: Vec::new(), left_out: Vec::new() }
    }

    /// All of this rollout.
    pub(crate) fn all_of(rollout: &RolloutValue) -> Vec<PartValue> {
        let mut parts = vec![PartValue::new(0)];
        let mut bytes = 0;
        for (number, wave) in rollout.waves.iter().enumerate() {
            let mut is_begun = false;
            for target in wave {
                if bytes >= PART_BYTES {
                    parts.push(PartValue::new(number));
                    (bytes, is_begun) = (0, false);
                }
                bytes += json(target).len() + 4;
                let Some(part) = parts.last_mut() else { continue };
                if !std::mem::replace(&mut is_begun, true) {
                    part.waves.push(Vec::new());
                }
                part.waves.last_mut().into_iter().for_each(|wave| wave.push(target.clone()));
            }
        }
        for left in &rollout.left_out {
            if bytes >= PART_BYTES {
                parts.push(PartValue::new(rollout.waves.len()));
                bytes = 0;
            }
            bytes += json(left).len() + 1;
            parts.last_mut().into_iter().for_each(|part| part.left_out.push(left.clone()));
        }
        parts
    }

    /// Adds it to those before it. False: it does not follow them.
    fn add_to(self, rollout: &mut RolloutValue) -> bool {
        let known = rollout.waves.len();
        let mut waves = self.waves.into_iter();
        if known.checked_sub(1) == Some(self.from) {
            let more = waves.next().unwrap_or_default();
            rollout.waves.last_mut().into_iter().for_each(|wave| wave.extend(more.clone()));
        } else if self.from != known {
            return false;
        }
        rollout.waves.extend(waves);
        rollout.left_out.extend(self.left_out);
        true
    }
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

/// Reads which nodes it is about. They never change.
pub(crate) async fn read_waves(etcd: &Etcd, keys: &Keys, record: &mut RolloutValue) -> Result<(), Refused> {
    let (found, _) = etcd.all(&keys.waves(&record.id), None).await?;
    for (number, kv) in found.iter().enumerate() {
        let key = keys.wave_part(&record.id, number);
        let unreadable = |why: String| Refused::Unreadable(key.clone(), why);
        if kv.key() != key.as_bytes() {
            return Err(unreadable("it is missing".to_owned()));
        }
        let part: PartValue = value::parse(kv.value()).map_err(|why| unreadable(why.to_string()))?;
        if !part.add_to(record) {
            return Err(unreadable("it does not follow the one before".to_owned()));
        }
    }
    let is_named = |target: &&Target| !target.host.is_empty() && !target.node.is_empty();
    let different: BTreeSet<&Target> = record.targets().filter(is_named).collect();
    if found.len() != record.parts
        || different.len() != record.nodes
        || record.targets().count() != record.nodes
    {
        let why = "the parts below it are not those that it names".to_owned();
        return Err(Refused::Unreadable(keys.waves(&record.id), why));
    }
    Ok(())
}

/// Its header, without its nodes.
pub(crate) async fn look(etcd: &Etcd, keys: &Keys) -> Result<Option<Found>, Refused> {
    let Some(kv) = etcd.get(&keys.rollout()).await? else { return Ok(None) };
    let unreadable = |why: String| Refused::Unreadable(keys.rollout(), why);
    let record: RolloutValue = value::parse(kv.value()).map_err(|why| unreadable(why.to_string()))?;
    if !is_name(&record.id) || record.at_most == 0 {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout(waves: Vec<Vec<Target>>, left_out: Vec<LeftOut>) -> RolloutValue {
        let text =
            r#"{"v":1,"id":"7f","by":"me","begun":1.5,"at_most":1,"nodes":0,"parts":0,"timeout":60.0}"#;
        let empty: RolloutValue = value::parse(text.as_bytes()).unwrap();
        RolloutValue { waves, left_out, ..empty }
    }

    /// However many nodes there are and however long their names: the parts are small, and together they are all of it.
    #[test]
    fn parts_are_small_and_together_they_are_all() {
        let name = |n: usize, length: usize| format!("{n:05}-{}", "\u{1}".repeat(length));
        for (nodes, of_wave, length) in
            [(0, 1, 0), (1, 1, 0), (10_000, 1, 10), (10_000, 2500, 40), (5000, 7, 255)]
        {
            let all: Vec<Target> = (0..nodes).map(|n| Target::new(name(n, length), "nginx")).collect();
            let left: Vec<_> = (0..nodes / 3)
                .map(|n| LeftOut {
                    target: Target::new(name(n, length), "x"),
                    lost: n % 2 == 0,
                    why: "so".to_owned(),
                })
                .collect();
            let whole = rollout(all.chunks(of_wave).map(<[Target]>::to_vec).collect(), left);
            let parts = PartValue::all_of(&whole);
            let mut again = rollout(Vec::new(), Vec::new());
            for part in &parts {
                let text = json(part);
                assert!(text.len() < PART_BYTES + 4096, "{}", text.len());
                assert!(value::parse::<PartValue>(&text).unwrap().add_to(&mut again));
            }
            assert!(again == whole, "{nodes} nodes, {of_wave} of a wave, {} parts", parts.len());
            // One that is missing is noticed.
            if parts.len() > 2 {
                let mut torn = rollout(Vec::new(), Vec::new());
                let all = parts.into_iter().enumerate().filter(|(number, _)| *number != 1);
                let fits = all.map(|(_, part)| part.add_to(&mut torn)).collect::<Vec<_>>();
                assert!(fits.contains(&false) || torn.targets().count() < nodes);
            }
        }
    }
}
