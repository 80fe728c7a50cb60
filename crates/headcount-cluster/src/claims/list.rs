//! Who has which roles, as etcd says at one revision.

use std::collections::BTreeMap;

use super::book::Kind;
use super::values::ClaimValue;
use crate::config::ClusterConfig;
use crate::etcd::Etcd;
use crate::keys::Keys;
use crate::trouble::Trouble;
use crate::value;

/// One role or lock.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// Its name.
    pub name: String,
    /// Who has it. What it says of itself; `None` if that cannot be read.
    pub holder: Option<ClaimValue>,
    /// etcd's revision of the tenure.
    pub token: i64,
    /// How many hosts wait for it.
    pub waiting: usize,
}

/// All roles, or all locks, by their names, and as of which revision.
///
/// # Errors
/// etcd cannot be read.
pub async fn list(config: &ClusterConfig, kind: Kind) -> Result<(Vec<Claim>, i64), Trouble> {
    let keys = Keys::new(&config.prefix, &config.name);
    let etcd = Etcd::connect(config, keys.root()).await?;
    let (mut found, revision) = etcd.all(&keys.all_of(kind), None).await?;
    found.sort_by_key(etcd_client::KeyValue::create_revision);
    let mut claims: BTreeMap<String, Claim> = BTreeMap::new();
    for kv in found {
        let Some(name) = keys.name_in(kind, kv.key()) else { continue };
        match claims.get_mut(&name) {
            Some(claim) => claim.waiting += 1,
            None => {
                let holder = value::parse(kv.value()).ok();
                let token = kv.create_revision();
                claims.insert(name.clone(), Claim { name, holder, token, waiting: 0 });
            }
        }
    }
    Ok((claims.into_values().collect(), revision))
}
