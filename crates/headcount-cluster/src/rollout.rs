//! Which nodes are reloaded when. Pure: the fleet, what became of each node, and the options go in; the next step comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fleet::{Fleet, Host};
use crate::task::{Outcome, Target, TaskState, TaskValue, bounded};
use crate::value::{NodeValue, VERSION};

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

/// Why nothing was begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is none.
    #[error("there is no node{} that could be reloaded", node.as_ref().map_or(String::new(), |node| format!(" {node}")))]
    NoNodes {
        /// Of this name.
        node: Option<String>,
    },
    /// What a host tells cannot be read.
    #[error("nothing was reloaded: {}", list(.0))]
    Unreadable(Vec<String>),
    /// What their nodes do is not known.
    #[error(
        "nothing was reloaded: lost: {}. What their nodes do is not known. --skip-lost leaves them out, and does not count them",
        list(.0)
    )]
    Lost(Vec<String>),
    /// Their agents would not do it.
    #[error(
        "nothing was reloaded: the agents' configuration does not allow it for {}. Set reload under [agent] there (docs/cli/agent.md), or choose nodes with --node",
        list(.0)
    )]
    NotAllowed(Vec<String>),
    /// Too many do not serve already.
    #[error(
        "nothing was reloaded: {} not serve already ({}), and {at_most} at a time may not. Repair them, or allow more with --max-unavailable",
        if nodes.len() == 1 { "1 node does".to_owned() } else { format!("{} nodes do", nodes.len()) },
        list(nodes)
    )]
    NotServing {
        /// Which.
        nodes: Vec<String>,
        /// So many may.
        at_most: usize,
    },
}

/// So many are named.
const NAMED: usize = 10;

fn list(all: &[String]) -> String {
    match all.len().checked_sub(NAMED).filter(|more| *more > 0) {
        Some(more) => format!("{} and {more} more", all[..NAMED].join(", ")),
        None => all.join(", "),
    }
}

/// What is known at one moment.
pub struct View<'a> {
    /// The hosts and their nodes.
    pub fleet: &'a Fleet,
    /// What was asked, and what became of it.
    pub tasks: &'a BTreeMap<Target, TaskValue>,
    /// Those of which nothing was heard for longer than they may take.
    pub overdue: &'a BTreeSet<Target>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Have these reload. They belong to this wave, counted from 0.
    Ask(usize, Vec<Target>),
    /// Some are about to reload, and nothing else can be done until they are through.
    Wait,
    /// Nothing is going on, and nothing may begin, for these reasons. It may pass.
    Blocked(Vec<String>),
    /// One has failed: none begins any more. Take back what nobody has begun, and wait for the others.
    Wind(Vec<Target>),
    /// It is over.
    Stop(Failure),
    /// All are through.
    Done,
}

/// Why it is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Of several the gravest.
    pub outcome: Outcome,
    /// Which nodes, and what is the matter with them.
    pub why: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why.join("; "))
    }
}

impl RolloutValue {
    /// The plan. Its name and who has begun it are filled in later.
    ///
    /// # Errors
    /// Why nothing may be begun.
    pub fn plan(fleet: &Fleet, options: &Options) -> Result<RolloutValue, Refusal> {
        let node = options.node.as_deref();
        let unreadable: Vec<_> = fleet
            .unreadable
            .iter()
            .map(|(key, why)| format!("the key {key} cannot be read: {why}"))
            .collect();
        if !unreadable.is_empty() {
            return Err(Refusal::Unreadable(unreadable));
        }
        let lost: Vec<_> = all(fleet, node).filter(|(_, host, _)| host.is_lost()).collect();
        if !lost.is_empty() && !options.skip_lost {
            let hosts: BTreeSet<_> = lost.iter().map(|(at, ..)| at.host.to_owned()).collect();
            return Err(Refusal::Lost(hosts.into_iter().collect()));
        }
        let mut left_out: Vec<_> = lost
            .into_iter()
            .map(|(at, ..)| LeftOut { target: at.target(), lost: true, why: "its host is lost".to_owned() })
            .collect();
        let here: Vec<_> = all(fleet, node).filter(|(_, host, _)| host.is_here()).collect();
        let (idle, mut meant): (Vec<_>, Vec<_>) = here.iter().partition(|(_, _, value)| is_idle(value));
        left_out.extend(idle.into_iter().map(|(at, _, value)| LeftOut {
            target: at.target(),
            lost: false,
            why: format!("{}: it reads its configuration when it starts", value.state),
        }));
        let not_allowed: Vec<_> = meant
            .iter()
            .filter(|(.., value)| !value.reload)
            .map(|(at, ..)| at.target().to_string())
            .collect();
        if !not_allowed.is_empty() {
            return Err(Refusal::NotAllowed(not_allowed));
        }
        if meant.is_empty() {
            return Err(Refusal::NoNodes { node: options.node.clone() });
        }
        let at_most = options.max_unavailable.of(here.len());
        let not_serving: Vec<_> = here
            .iter()
            .filter(|(.., value)| !serves(value))
            .map(|(at, _, value)| format!("{}: {}", at.target(), value.state))
            .collect();
        // With as many as may, only what does not serve anyway can be reloaded.
        let is_stuck = not_serving.len() == at_most && meant.iter().all(|(.., value)| serves(value));
        if not_serving.len() > at_most || is_stuck {
            return Err(Refusal::NotServing { nodes: not_serving, at_most });
        }
        // Those that do not serve first: their reload takes nothing away.
        meant.sort_by_key(|(at, _, value)| (serves(value), *at));
        let mut rest: Vec<Target> = meant.into_iter().map(|(at, ..)| at.target()).collect();
        let mut waves = Vec::new();
        if let Some(first) = options.first {
            waves.push(rest.drain(..first.of(here.len()).min(rest.len())).collect());
        }
        waves.extend(rest.chunks(at_most).map(<[Target]>::to_vec));
        Ok(RolloutValue {
            v: VERSION,
            id: String::new(),
            by: String::new(),
            begun: crate::now(),
            node: options.node.clone(),
            at_most,
            nodes: waves.iter().map(Vec::len).sum(),
            parts: 0,
            first: options.first.is_some(),
            drained: options.drained,
            timeout: options.timeout.as_secs_f64(),
            skip_lost: options.skip_lost,
            waves,
            left_out,
            ended: None,
        })
    }

    /// So long may each node take. What is written there may be anything.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        bounded(self.timeout)
    }

    /// All nodes that are to be reloaded, in their order.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.waves.iter().flatten()
    }

    /// What to do next.
    #[must_use]
    pub fn next(&self, view: &View<'_>) -> Step {
        let state = |target: &Target| view.tasks.get(target).map(|task| task.state);
        let is_under_way = |target: &&Target| {
            matches!(state(target), Some(TaskState::Asked | TaskState::Taken))
                && !view.overdue.contains(*target)
        };
        let under_way: BTreeSet<&Target> = self.targets().filter(is_under_way).collect();
        if let Some(failure) = self.failure(view) {
            let not_begun: Vec<_> =
                self.targets().filter(|target| state(target) == Some(TaskState::Asked)).cloned().collect();
            return match (not_begun.is_empty(), under_way.is_empty()) {
                (false, _) => Step::Wind(not_begun),
                (true, false) => Step::Wait,
                (true, true) => Step::Stop(failure),
            };
        }
        let mut unavailable = self.not_serving(view.fleet);
        unavailable.extend(under_way.iter().map(|target| ((*target).clone(), "reloads".to_owned())));
        for (number, wave) in self.waves.iter().enumerate() {
            let is_lost = |target: &&Target| view.fleet.hosts.get(&target.host).is_some_and(Host::is_lost);
            let is_passed_over = |target: &&Target| self.skip_lost && is_lost(target);
            let open: Vec<&Target> =
                wave.iter().filter(|t| state(t).is_none() && !is_passed_over(t)).collect();
            let is_unsettled =
                |target: &&Target| state(target).is_some() && unavailable.contains_key(*target);
            let unsettled: Vec<&Target> = wave.iter().filter(is_unsettled).collect();
            if open.is_empty() && unsettled.is_empty() {
                continue;
            }
            let (mut begin, mut why) = (Vec::new(), Vec::new());
            for target in open {
                match find(view.fleet, target) {
                    Some((host, _)) if host.is_lost() => why.push(format!("host {} is lost", target.host)),
                    None => why.push(format!("{target} is gone")),
                    Some((_, value)) if !value.reload => {
                        why.push(format!("{target}: its agent's configuration does not allow it any more"));
                    }
                    Some(_) if !view.fleet.unreadable.is_empty() => {
                        why.extend(
                            view.fleet.unreadable.keys().map(|key| format!("the key {key} cannot be read")),
                        );
                    }
                    Some(_) => {
                        // One that does not serve is counted already.
                        let more = usize::from(!unavailable.contains_key(target));
                        if unavailable.len() + more <= self.at_most {
                            unavailable.insert(target.clone(), "reloads".to_owned());
                            begin.push(target.clone());
                        }
                    }
                }
            }
            if !begin.is_empty() {
                return Step::Ask(number, begin);
            }
            if !under_way.is_empty() {
                return Step::Wait;
            }
            why.extend(unavailable.iter().map(|(target, state)| format!("{target}: {state}")));
            why.dedup();
            return Step::Blocked(why);
        }
        Step::Done
    }

    /// What has failed so far, if something has.
    fn failure(&self, view: &View<'_>) -> Option<Failure> {
        let mut failed = Vec::new();
        for target in self.targets() {
            let task = view.tasks.get(target);
            let report = task.and_then(|task| task.report.as_ref());
            let state = task.map(|task| task.state);
            // Too late is too late, whatever came then.
            if view.overdue.contains(target) {
                let is_lost = view.fleet.hosts.get(&target.host).is_some_and(Host::is_lost);
                let why = match (is_lost, state) {
                    (true, _) => "its host is lost",
                    (false, Some(TaskState::Taken)) => "its agent has not said what became of it",
                    (false, Some(TaskState::Done)) => "its agent has said too late what became of it",
                    (false, _) => "its agent has not begun it. See the log of headcount agent there",
                };
                failed.push((Outcome::TimedOut, format!("{target}: {why}")));
            } else if state == Some(TaskState::Done) {
                match report {
                    Some(report) if report.outcome == Outcome::Serving => {}
                    Some(report) => failed.push((report.outcome, format!("{target}: {}", report.text))),
                    None => failed.push((Outcome::Unknown, format!("{target}: there is no report"))),
                }
            }
        }
        let outcome = failed.iter().map(|(outcome, _)| *outcome).max_by_key(|outcome| gravity(*outcome))?;
        Some(Failure { outcome, why: failed.into_iter().map(|(_, why)| why).collect() })
    }

    /// All nodes that count and do not serve, as far as is known, with their states.
    fn not_serving(&self, fleet: &Fleet) -> BTreeMap<Target, String> {
        let does_not_count: BTreeSet<&Target> =
            self.left_out.iter().filter(|left| left.lost).map(|left| &left.target).collect();
        let mut found: BTreeMap<Target, String> = all(fleet, self.node.as_deref())
            .filter(|(_, host, value)| !host.is_here() || !serves(value))
            .map(|(at, host, value)| {
                let state = if host.is_here() { &value.state } else { "its host is lost" };
                (at.target(), state.to_owned())
            })
            .filter(|(target, _)| !does_not_count.contains(target))
            .collect();
        for target in self.targets().filter(|target| find(fleet, target).is_none()) {
            found.insert(target.clone(), "gone".to_owned());
        }
        found
    }
}

/// Which of several is told by the exit code.
fn gravity(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Refused => 3,
        Outcome::Failed | Outcome::NotAllowed => 2,
        Outcome::TimedOut | Outcome::Unknown => 1,
        Outcome::Serving => 0,
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
