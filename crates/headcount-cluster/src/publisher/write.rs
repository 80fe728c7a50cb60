//! What is written of the nodes of this host, and how.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use headcount_report::Claim;
use tokio::time::Instant;

use super::{Publisher, SOON, note};
use crate::config::ClusterConfig;
use crate::etcd::Etcd;
use crate::keys::Keys;
use crate::node::{Node, Told, Writing};
use crate::presence::{Leases, is_ours, json, revision_of};
use crate::trouble::Trouble;

impl Publisher {
    /// Writes what is to be written, within the bound. When to look again, if that is soon. `round`: look at all nodes, since
    /// some changes no event tells.
    pub(super) async fn write(
        &mut self,
        etcd: &Etcd,
        leases: Leases,
        round: bool,
    ) -> Result<Option<Instant>, Trouble> {
        let nodes = self.nodes.borrow_and_update().clone();
        self.open.retain(|path, _| nodes.contains_key(path));
        let mut soon: Option<Instant> = None;
        let mut at = |when: Instant| soon = Some(soon.map_or(when, |soon| soon.min(when)));
        let mut there = BTreeMap::new();
        let mut complete = true;
        for path in nodes.keys() {
            let (node, _) = self.open.entry(path.clone()).or_insert_with(|| (Node::new(path), 0));
            // All of them, so that those that are gone can be taken back.
            let (snapshot, mut state) = match node.look() {
                Ok(found) => found,
                Err(error) => {
                    complete = false;
                    say_once(&mut self.said, error.to_string());
                    continue;
                }
            };
            let name = snapshot.node.clone();
            state.reload = self.doer.as_ref().is_some_and(|doer| doer.allows(&name));
            let claim = Claim::of(headcount::is_ours(path), &snapshot);
            let found = (claim, path.clone(), snapshot, state);
            match there.entry(name.clone()) {
                Entry::Vacant(free) => drop(free.insert(found)),
                Entry::Occupied(mut other) => {
                    let is_meant = claim > other.get().0;
                    let not_told = if is_meant { other.insert(found) } else { found };
                    // One that was stopped is nothing that anybody misses.
                    if not_told.0.lives() {
                        let path = not_told.1.display();
                        let what = format!(
                            "{path}: there is another node {name} on this host, which is told in its place"
                        );
                        say_once(&mut self.said, what);
                    }
                }
            }
        }
        let registries: BTreeSet<String> = self.open.values().map(|(node, _)| node.registry()).collect();
        let names: BTreeSet<String> = there.keys().cloned().collect();
        for (name, (_, path, snapshot, state)) in in_turn(there, self.turn.take()) {
            let Some((node, looked_at)) = self.open.get_mut(&path) else { continue };
            let number = nodes.get(&path).copied().unwrap_or_default();
            if state.is_in_progress() {
                at(Instant::now() + SOON);
            }
            let told = self.told.entry(name.clone()).or_default();
            // Nothing may have happened to it, and it is meant now, since something happened to another one.
            let is_told = told.value.as_ref().is_some_and(|value| value.registry == node.registry());
            if !round && *looked_at == number && is_told && !state.is_in_progress() {
                continue;
            }
            let since = (leases.since, leases.since_boot_ms);
            let writing = match node.writing((snapshot, state), told, since, &registries) {
                Ok(Some(writing)) => writing,
                Ok(None) => {
                    *looked_at = number;
                    continue;
                }
                Err(error) => {
                    say_once(&mut self.said, error.to_string());
                    continue;
                }
            };
            if let Err(later) = self.pace.take(Instant::now()) {
                at(later);
                self.turn.get_or_insert(name);
                continue;
            }
            let lease = match writing.events.is_empty() {
                true => 0,
                false => self.events.get(etcd).await?,
            };
            let is_as_told = is_at(&self.keys.node(&self.config.host, &name), told.revision);
            let txn = txn(&self.keys, &self.config, leases, is_as_told, &name, &writing, lease);
            let begun = Instant::now();
            let answer = etcd.write(txn).await;
            self.pace.took(begun.elapsed(), Instant::now());
            let answer = answer?;
            if !answer.succeeded() {
                return self.look_again(etcd, leases).await.map(Some);
            }
            if writing.more {
                at(Instant::now());
            } else {
                *looked_at = number;
            }
            let (events, skipped) = (writing.events.len() as u64, writing.skipped);
            if skipped > 0 {
                tracing::warn!(
                    "{name}: {skipped} events were not told to the cluster: there were too many, or they were overwritten"
                );
            }
            node.was_told(&writing.value);
            self.told.insert(name, Told { revision: revision_of(&answer), value: Some(writing.value) });
            note(&self.status, |status| {
                status.writes += 1;
                status.events += events;
                status.missed += skipped;
            });
        }
        // Not while one cannot be read: it may be any of them. Nor what was no state of ours.
        let is_gone =
            |(name, told): &(&String, &Told)| complete && !names.contains(*name) && told.value.is_some();
        let gone: Vec<String> = self.told.iter().filter(is_gone).map(|(name, _)| name.clone()).collect();
        for name in gone {
            if let Err(later) = self.pace.take(Instant::now()) {
                at(later);
                break;
            }
            let key = self.keys.node(&self.config.host, &name);
            let is_as_told = is_at(&key, self.told.get(&name).map_or(0, |told| told.revision));
            let txn = Txn::new()
                .when([is_ours(&self.keys, &self.config, leases), is_as_told])
                .and_then([TxnOp::delete(key, None)]);
            if !etcd.write(txn).await?.succeeded() {
                return self.look_again(etcd, leases).await.map(Some);
            }
            self.told.remove(&name);
            note(&self.status, |status| status.writes += 1);
        }
        Ok(soon)
    }

    /// What etcd has is not what was written last: this host is not there any more, or a write that was given up has reached etcd
    /// after all. When to go on from what it has.
    async fn look_again(&mut self, etcd: &Etcd, leases: Leases) -> Result<Instant, Trouble> {
        let host = etcd.get(&self.keys.host(&self.config.host)).await?;
        if host.is_none_or(|kv| kv.mod_revision() != leases.revision) {
            return Err(Trouble::LeaseGone);
        }
        self.read_told(etcd).await?;
        Ok(Instant::now())
    }
}

/// All of them, beginning with this one: one in which something happens all the time must not keep the others from being told.
fn in_turn<T>(mut all: BTreeMap<String, T>, first: Option<String>) -> impl Iterator<Item = (String, T)> {
    let rest = first.map(|first| all.split_off(&first)).unwrap_or_default();
    rest.into_iter().chain(all)
}

/// So many different lines are remembered.
const REMEMBERED: usize = 256;

pub(super) fn say_once(said: &mut BTreeSet<String>, what: String) {
    if said.len() >= REMEMBERED {
        said.clear();
    }
    if !said.contains(&what) {
        tracing::warn!("{what}");
        said.insert(what);
    }
}

/// That a key is as it was written then; at 0, that it is not there.
fn is_at(key: &str, revision: i64) -> Compare {
    Compare::mod_revision(key, CompareOp::Equal, revision)
}

/// All of it or nothing, and only as long as this host is there, and nothing else was written: the events, each under a key of its
/// own; and the state, which says up to where events were told. So a write that arrives late, when it was done again, changes nothing.
fn txn(
    keys: &Keys,
    config: &ClusterConfig,
    leases: Leases,
    is_as_told: Compare,
    name: &str,
    writing: &Writing,
    event_lease: i64,
) -> Txn {
    let host = &config.host;
    let mut puts: Vec<TxnOp> = writing
        .events
        .iter()
        .map(|(number, event)| {
            let key = keys.event(host, name, &writing.value.registry, *number);
            TxnOp::put(key, json(event), Some(PutOptions::new().with_lease(event_lease)))
        })
        .collect();
    let options = PutOptions::new().with_lease(leases.records);
    puts.push(TxnOp::put(keys.node(host, name), json(&writing.value), Some(options)));
    Txn::new().when([is_ours(keys, config, leases), is_as_told]).and_then(puts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_take_turns() {
        let order = |first: Option<&str>| {
            let all: BTreeMap<String, ()> = ["a", "b", "c"].map(|name| (name.to_owned(), ())).into();
            in_turn(all, first.map(str::to_owned)).map(|(name, ())| name).collect::<String>()
        };
        assert_eq!((order(None), order(Some("b"))), ("abc".to_owned(), "bca".to_owned()));
        // One that is gone since.
        assert_eq!((order(Some("bb")), order(Some("z"))), ("cab".to_owned(), "abc".to_owned()));
    }
}
