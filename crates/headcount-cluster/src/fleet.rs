//! The picture of the cluster. Pure: keys and values go in.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::keys::{Key, Keys};
use crate::value::{self, HostValue, KnownValue, NodeValue, Presence, Unreadable};

/// All hosts, and what cannot be read of them.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// By their names.
    pub hosts: BTreeMap<String, Host>,
    /// Keys whose values are not what they should be.
    pub unreadable: BTreeMap<String, Unreadable>,
}

/// One host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Host {
    /// As long as its lease lasts.
    pub here: Option<HostValue>,
    /// What was noted of it.
    pub known: Option<KnownValue>,
    /// Its nodes, by their names, as it told of them last.
    pub nodes: BTreeMap<String, NodeValue>,
}

/// How it is with a host.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum HostState {
    /// It is there.
    Here {
        /// Since when.
        since: f64,
    },
    /// It has said that it leaves.
    Left {
        /// When.
        since: f64,
    },
    /// Its lease has run out: what its nodes do is not known.
    Lost {
        /// When that was noted; not yet, if nobody has.
        #[serde(skip_serializing_if = "Option::is_none")]
        since: Option<f64>,
    },
}

impl Host {
    /// How it is with it.
    #[must_use]
    pub fn state(&self) -> HostState {
        match (&self.here, &self.known) {
            (Some(here), _) => HostState::Here { since: here.since },
            (None, Some(known)) if known.presence == Presence::Left => HostState::Left { since: known.since },
            (None, Some(known)) if known.presence == Presence::Lost => {
                HostState::Lost { since: Some(known.since) }
            }
            (None, _) => HostState::Lost { since: None },
        }
    }

    /// Whether it is there.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.here.is_some()
    }

    /// Whether its lease has run out.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self.state(), HostState::Lost { .. })
    }

    fn is_nothing(&self) -> bool {
        *self == Host::default()
    }
}

impl Fleet {
    /// Takes in a key with its value, or that it is gone. Whether that changed the picture.
    pub(crate) fn take(&mut self, keys: &Keys, key: &[u8], value: Option<&[u8]>) -> bool {
        let Some(about) = keys.parse(key) else { return false };
        let name = String::from_utf8_lossy(key).into_owned();
        let was_unreadable = self.unreadable.remove(&name).is_some();
        let result = match about {
            Key::Host(host) => read(value).map(|value| self.host(&host, |host| host.here = value)),
            Key::Known(host) => read(value).map(|value| self.host(&host, |host| host.known = value)),
            Key::Node(host, node) => read(value).and_then(is_fit).map(|value: Option<NodeValue>| {
                self.host(&host, |host| {
                    match value {
                        Some(value) => host.nodes.insert(node, value),
                        None => host.nodes.remove(&node),
                    };
                });
            }),
            Key::Event { .. } | Key::Task { .. } => return was_unreadable,
        };
        if let Err(why) = result {
            self.unreadable.insert(name, why);
        }
        true
    }

    fn host(&mut self, name: &str, change: impl FnOnce(&mut Host)) {
        let host = self.hosts.entry(name.to_owned()).or_default();
        change(host);
        if host.is_nothing() {
            self.hosts.remove(name);
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(value: Option<&[u8]>) -> Result<Option<T>, Unreadable> {
    value.map(value::parse).transpose()
}

/// No state has a longer name, in this version or a later one. All rows of a table would be as wide as this one.
const LONGEST_STATE: usize = 32;

fn is_fit(value: Option<NodeValue>) -> Result<Option<NodeValue>, Unreadable> {
    match value.as_ref().map_or(0, |value| value.state.len()) {
        ..=LONGEST_STATE => Ok(value),
        length => Err(Unreadable::Garbage(format!("its state has {length} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &[u8] =
        br#"{"v":1,"agent":"0.1.0","place":"x","machine":"web-1","pid":7,"birth":9,"since":100.0}"#;
    const NODE: &[u8] = br#"{"v":1,"registry":"a","head":3,"time":100.0,"state":"serving"}"#;

    fn known(presence: &str) -> Vec<u8> {
        format!(r#"{{"v":1,"presence":"{presence}","since":120.0,"lease":1}}"#).into_bytes()
    }

    #[test]
    fn a_host_is_there_lost_or_has_left() {
        let keys = Keys::new("/h", "shop");
        let mut fleet = Fleet::default();
        let [host, known_at, node] = [keys.host("a"), keys.known("a"), keys.node("a", "nginx")];
        for (key, value) in [(&host, HERE), (&known_at, &known("here")), (&node, NODE)] {
            assert!(fleet.take(&keys, key.as_bytes(), Some(value)));
        }
        assert_eq!(fleet.hosts["a"].state(), HostState::Here { since: 100.0 });
        assert_eq!(fleet.hosts["a"].nodes["nginx"].state, "serving");
        // The lease has run out. Nobody has noted it yet.
        fleet.take(&keys, host.as_bytes(), None);
        assert_eq!(fleet.hosts["a"].state(), HostState::Lost { since: None });
        fleet.take(&keys, known_at.as_bytes(), Some(&known("lost")));
        assert_eq!(fleet.hosts["a"].state(), HostState::Lost { since: Some(120.0) });
        fleet.take(&keys, known_at.as_bytes(), Some(&known("left")));
        assert_eq!(fleet.hosts["a"].state(), HostState::Left { since: 120.0 });
        fleet.take(&keys, node.as_bytes(), None);
        fleet.take(&keys, known_at.as_bytes(), None);
        assert!(fleet.hosts.is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_kept_apart_until_it_can() {
        let keys = Keys::new("/h", "shop");
        let mut fleet = Fleet::default();
        let node = keys.node("a", "nginx");
        let long = String::from_utf8_lossy(NODE).replace("serving", &"x".repeat(33));
        fleet.take(&keys, node.as_bytes(), Some(long.as_bytes()));
        assert_eq!(fleet.unreadable.len(), 1);
        fleet.take(&keys, node.as_bytes(), Some(b"\xff"));
        fleet.take(&keys, keys.host("b").as_bytes(), Some(br#"{"v":9}"#));
        fleet.take(&keys, keys.host("c").as_bytes(), Some(HERE));
        assert_eq!((fleet.hosts.len(), fleet.unreadable.len()), (1, 2));
        assert_eq!(fleet.unreadable[&keys.host("b")], Unreadable::Newer(9));
        fleet.take(&keys, node.as_bytes(), Some(NODE));
        fleet.take(&keys, keys.host("b").as_bytes(), None);
        assert_eq!((fleet.hosts.len(), fleet.unreadable.len()), (2, 0));
        assert!(!fleet.take(&keys, b"/somebody/elses", Some(b"x")));
    }
}
