//! `headcount cluster wait`: until the fleet is as it is wanted, for scripts.

use std::time::Duration;

use clap::Args;
use headcount_cluster::config::ClusterConfig;
use headcount_cluster::fleet::Fleet;
use headcount_cluster::follower::{Follower, News};
use headcount_cluster::value::NodeValue;
use headcount_report::{age, plural};

use super::status::nodes;
use crate::args::duration;
use crate::clock::Deadline;
use crate::commands::wait::progress::Progress;
use crate::commands::wait::{not_reached, reached};
use crate::escape::escape;
use crate::outcome::Outcome;

const WAIT_EXAMPLES: &str = "\
All conditions given must hold at the same time.

Examples:
  headcount cluster wait --nodes 12 --serving
  headcount cluster wait --node nginx --serving --generation-newer-than 7 --timeout 10m
  headcount cluster wait --hosts 3 --drained

Exit codes: 0 reached; 1 timed out; 2 usage error; 4 no cluster is configured, or etcd cannot be read.";

#[derive(Args)]
#[command(after_help = WAIT_EXAMPLES)]
#[command(group = clap::ArgGroup::new("condition").required(true).multiple(true))]
pub struct WaitArgs {
    /// Until so many nodes are known, on hosts that are there
    #[arg(long, group = "condition", value_name = "N")]
    pub nodes: Option<usize>,
    /// Until so many hosts are there
    #[arg(long, group = "condition", value_name = "N")]
    pub hosts: Option<usize>,
    /// Until every node serves with all its workers, none loops in crashes, and no host is lost
    #[arg(long, group = "condition")]
    pub serving: bool,
    /// Until no node has an older generation left, and no host is lost
    #[arg(long, group = "condition")]
    pub drained: bool,
    /// With --serving: accept only generations with a number greater than this
    #[arg(long, value_name = "GENERATION", requires = "serving")]
    pub generation_newer_than: Option<u64>,
    /// Give up after this time
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
}

/// So many of those that are not as they should be are named.
const NAMED: usize = 5;

pub async fn run(config: ClusterConfig, node: Option<&str>, args: &WaitArgs) -> anyhow::Result<Outcome> {
    let deadline = Deadline::after(args.timeout);
    let (mut follower, _) = super::read(Follower::new(config, false)).await?;
    let mut progress = Progress::new(deadline);
    let mut away: Option<String> = None;
    loop {
        let unmet = match &away {
            Some(why) => vec![why.clone()],
            None => args.unmet(follower.fleet(), node),
        };
        if unmet.is_empty() {
            progress.end();
            return reached(&args.reached(follower.fleet(), node));
        }
        let unmet = unmet.join("; ");
        if deadline.is_over() {
            progress.end();
            return Ok(not_reached(&format!("timed out after {}: {}", age(args.timeout), escape(&unmet))));
        }
        progress.show(&escape(&unmet));
        let limit = progress.tick().map_or(deadline.left(), |tick| tick.min(deadline.left()));
        if let Ok(news) = tokio::time::timeout(limit, next(&mut follower)).await {
            away = match news {
                News::Away(trouble) => Some(trouble.to_string()),
                _ => None,
            };
        }
    }
}

/// What may have changed the picture.
async fn next(follower: &mut Follower) -> News {
    loop {
        let news = follower.next().await;
        if matches!(news, News::Read | News::Changed | News::Away(_) | News::Back) {
            return news;
        }
    }
}

impl WaitArgs {
    /// What does not hold.
    fn unmet(&self, fleet: &Fleet, node: Option<&str>) -> Vec<String> {
        let mut unmet = Vec::new();
        let (here, there) = (hosts(fleet), known(fleet, node));
        if let Some(wanted) = self.hosts.filter(|wanted| *wanted != here) {
            unmet.push(format!("{} of {wanted}", plural(here as u64, "host")));
        }
        if let Some(wanted) = self.nodes.filter(|wanted| *wanted != there.len()) {
            unmet.push(format!("{} of {wanted}", plural(there.len() as u64, "node")));
        }
        if self.serving || self.drained {
            let lost =
                fleet.hosts.iter().filter(|(_, host)| host.is_lost() && nodes(host, node).next().is_some());
            unmet.extend(several(lost.map(|(name, _)| format!("host {name} is lost"))));
            unmet.extend(several(
                fleet.unreadable.iter().map(|(key, why)| format!("the key {key} cannot be read: {why}")),
            ));
        }
        if self.serving {
            if there.is_empty() {
                unmet.push("there is no node".to_owned());
            }
            unmet.extend(several(there.iter().filter_map(|(name, value)| self.not_serving(name, value))));
        }
        if self.drained {
            let left = there.iter().filter(|(_, value)| value.old_generations > 0);
            unmet.extend(several(left.map(|(name, value)| {
                format!("{name}: {} left", plural(value.old_generations.into(), "older generation"))
            })));
        }
        unmet
    }

    fn not_serving(&self, name: &str, value: &NodeValue) -> Option<String> {
        if let Some(old) = self.generation_newer_than.filter(|old| value.generation.is_none_or(|g| g <= *old))
        {
            return Some(format!("{name}: no generation newer than {old}"));
        }
        let of = value.expected.map_or(String::new(), |n| format!(" of {n}"));
        (value.state != "serving").then(|| {
            let workers = format!("{}{of} workers serving", value.serving);
            match value.state.as_str() {
                "crash_loop" => format!("{name}: its workers loop in crashes"),
                "starting" | "short" => format!("{name}: {workers}"),
                state => format!("{name}: {state}"),
            }
        })
    }

    fn reached(&self, fleet: &Fleet, node: Option<&str>) -> String {
        let mut text = plural(known(fleet, node).len() as u64, "node");
        if self.serving {
            text += if text.starts_with("1 ") { " serves" } else { " serve" };
        }
        text += &format!(" on {}", plural(hosts(fleet) as u64, "host"));
        if self.drained {
            text += "; no older generation is left";
        }
        text
    }
}

fn hosts(fleet: &Fleet) -> usize {
    fleet.hosts.values().filter(|host| host.is_here()).count()
}

/// The nodes of which something is known, by host and name.
fn known<'a>(fleet: &'a Fleet, node: Option<&str>) -> Vec<(String, &'a NodeValue)> {
    let here = fleet.hosts.iter().filter(|(_, host)| host.is_here());
    here.flat_map(|(name, host)| {
        nodes(host, node).map(move |(node, value)| (format!("{name}/{node}"), value))
    })
    .collect()
}

fn several(all: impl Iterator<Item = String>) -> Vec<String> {
    let mut all: Vec<_> = all.collect();
    if let Some(more) = all.len().checked_sub(NAMED).filter(|more| *more > 0) {
        all.truncate(NAMED);
        all.push(format!("and {more} more"));
    }
    all
}

#[cfg(test)]
mod tests {
    use headcount_cluster::fleet::Host;
    use headcount_cluster::value::HostValue;

    use super::*;

    fn args(nodes: Option<usize>, newer: Option<u64>) -> WaitArgs {
        WaitArgs {
            nodes,
            hosts: None,
            serving: true,
            drained: true,
            generation_newer_than: newer,
            timeout: Duration::ZERO,
        }
    }

    fn fleet(states: &[&str]) -> Fleet {
        let here = HostValue {
            v: 1,
            agent: String::new(),
            place: String::new(),
            machine: String::new(),
            pid: 1,
            birth: 1,
            since: 0.0,
        };
        let mut fleet = Fleet::default();
        for (number, state) in states.iter().enumerate() {
            let (is_here, state) = state.strip_prefix("lost ").map_or((true, *state), |state| (false, state));
            let value = NodeValue { state: state.into(), generation: Some(3), ..NodeValue::default() };
            let nodes = [("nginx".to_owned(), value)].into();
            fleet.hosts.insert(
                format!("web-{number}"),
                Host { here: is_here.then(|| here.clone()), nodes, known: None },
            );
        }
        fleet
    }

    #[test]
    fn all_must_serve_and_none_be_lost() {
        for (states, nodes, newer, unmet) in [
            (&["serving", "serving"][..], Some(2), None, ""),
            (&["serving"], Some(2), None, "1 node of 2"),
            (&["serving", "serving"], Some(1), None, "2 nodes of 1"),
            (&["serving", "crash_loop"], None, None, "web-1/nginx: its workers loop in crashes"),
            (&["serving", "lost serving"], None, None, "host web-1 is lost"),
            (&["stopped"], None, None, "web-0/nginx: stopped"),
            (&["serving"], None, Some(3), "web-0/nginx: no generation newer than 3"),
            (&["serving"], None, Some(2), ""),
            (&[], None, None, "there is no node"),
        ] {
            assert_eq!(args(nodes, newer).unmet(&fleet(states), None).join("; "), unmet, "{states:?}");
        }
        // Of other nodes nothing is asked.
        assert_eq!(args(None, None).unmet(&fleet(&["crash_loop"]), Some("shop")), ["there is no node"]);
        let many = args(None, None).unmet(&fleet(&["stopped"; 9]), None);
        assert_eq!((many.len(), many[5].as_str()), (6, "and 4 more"));
    }
}
