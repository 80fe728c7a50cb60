//! Which nodes are reloaded when. Pure: the fleet, what became of each node, and the options go in; the next step comes out.

mod next;
mod plan;

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fleet::{Fleet, Host};
use crate::task::{Target, bounded};
use crate::value::NodeValue;
pub use next::{Failure, Step, View};
pub use plan::Refusal;

/// A number of nodes, or a part of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// So many.
    Nodes(usize),
    /// So many of a hundred, rounded down, and at least one.
    Percent(usize),
}

impl Count {
    /// How many of these.
    #[must_use]
    pub fn of(self, total: usize) -> usize {
        match self {
            Count::Nodes(number) => number,
            Count::Percent(percent) => (total * percent / 100).max(1),
        }
    }
}

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Count, String> {
        let (number, is_percent) = text.strip_suffix('%').map_or((text, false), |number| (number, true));
        let plain = number.bytes().all(|byte| byte.is_ascii_digit());
        match number.parse() {
            Ok(n @ 1..=100) if plain && is_percent => Ok(Count::Percent(n)),
            Ok(n @ 1..=1_000_000) if plain && !is_percent => Ok(Count::Nodes(n)),
            _ => Err("allowed are a number from 1, such as 2, or a percentage from 1% to 100%".to_owned()),
        }
    }
}

/// How it is to be done.
#[derive(Clone, Debug)]
pub struct Options {
    /// Only nodes of this name.
    pub node: Option<String>,
    /// So many may at any time not serve, or be about to reload.
    pub max_unavailable: Count,
    /// So many are reloaded before all others.
    pub first: Option<Count>,
    /// A node is through when it has drained as well.
    pub drained: bool,
    /// So long may each take.
    pub timeout: Duration,
    /// Leave out the nodes of lost hosts.
    pub skip_lost: bool,
}

/// A node that is not reloaded, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Which.
    #[serde(flatten)]
    pub target: Target,
    /// Its host is lost: it is not counted either.
    pub lost: bool,
    /// In words.
    pub why: String,
}

/// How a rollout ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// All nodes are through.
    Done,
    /// One was not.
    Stopped,
    /// Somebody has ended it.
    Aborted,
}

/// That it has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// How.
    pub how: How,
    /// By whom, or why.
    pub why: String,
    /// When, by the clock of whoever wrote it.
    pub time: f64,
}

/// The record of a rollout: what whoever goes on with it needs to know. What became of each node is in its task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutValue {
    /// The version of this document.
    pub v: u32,
    /// Its name: the lease that all of it is under.
    pub id: String,
    /// Who has begun it.
    pub by: String,
    /// When, by that one's clock.
    pub begun: f64,
    /// Only nodes of this name.
    #[serde(default)]
    pub node: Option<String>,
    /// So many may at any time not serve, or be about to reload.
    pub at_most: usize,
    /// How many nodes there are in all waves.
    pub nodes: usize,
    /// In so many parts these are kept, beside this document: all of a large fleet does not fit into one.
    pub parts: usize,
    /// The first wave was asked for.
    #[serde(default)]
    pub first: bool,
    /// A node is through when it has drained as well.
    #[serde(default)]
    pub drained: bool,
    /// So many seconds may each take.
    pub timeout: f64,
    /// Leave out the nodes of lost hosts.
    #[serde(default)]
    pub skip_lost: bool,
    /// All nodes, in their order. A wave begins when the one before is through. From the parts.
    #[serde(skip)]
    pub waves: Vec<Vec<Target>>,
    /// Those that are not reloaded. From the parts as well.
    #[serde(skip)]
    pub left_out: Vec<LeftOut>,
    /// It has ended.
    #[serde(default)]
    pub ended: Option<Ended>,
}

impl RolloutValue {
    /// So long may each node take. What is written there may be anything.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        bounded(self.timeout)
    }

    /// All nodes that are to be reloaded, in their order.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.waves.iter().flatten()
    }
}

/// A node of the fleet, by its names there: of thousands, most are only looked at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct At<'a> {
    host: &'a str,
    node: &'a str,
}

impl At<'_> {
    fn target(self) -> Target {
        Target::new(self.host, self.node)
    }
}

/// All nodes of this name.
fn all<'a>(
    fleet: &'a Fleet,
    node: Option<&'a str>,
) -> impl Iterator<Item = (At<'a>, &'a Host, &'a NodeValue)> {
    fleet.hosts.iter().flat_map(move |(name, host)| {
        let wanted = host.nodes.iter().filter(move |(of, _)| node.is_none_or(|node| node == *of));
        wanted.map(move |(node, value)| (At { host: name, node }, host, value))
    })
}

fn find<'a>(fleet: &'a Fleet, target: &Target) -> Option<(&'a Host, &'a NodeValue)> {
    let host = fleet.hosts.get(&target.host)?;
    host.nodes.get(&target.node).map(|value| (host, value))
}

fn serves(value: &NodeValue) -> bool {
    value.state == "serving"
}

/// There is no master that could reload.
fn is_idle(value: &NodeValue) -> bool {
    matches!(value.state.as_str(), "stopped" | "none")
}

#[cfg(test)]
#[path = "rollout_tests.rs"]
mod tests;
