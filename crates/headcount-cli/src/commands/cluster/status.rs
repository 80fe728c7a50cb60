//! `headcount cluster status`: all hosts at one revision.

use std::io::Write;
use std::time::Duration;

use anstyle::Style;
use clap::Args;
use headcount_cluster::config::ClusterConfig;
use headcount_cluster::fleet::{Fleet, Host, HostState};
use headcount_cluster::follower::Follower;
use headcount_cluster::value::NodeValue;
use headcount_report::{age, plural};
use serde::Serialize;

use crate::clock;
use crate::escape::{escape, escape_json};
use crate::outcome::Outcome;
use crate::paint;
use crate::table::{Cell, Side, Table, paragraph};

const STATUS_EXAMPLES: &str = "\
Examples:
  headcount cluster status
  headcount cluster status --node nginx
  headcount cluster status --json | jq '.hosts[] | select(.state == \"lost\").host'

Exit codes: 0 success; 2 usage error; 4 no cluster is configured, or etcd cannot be read.";

#[derive(Args)]
#[command(after_help = STATUS_EXAMPLES)]
pub struct StatusArgs {
    /// Print JSON, for programs (described in docs/cli/cluster.md)
    #[arg(long)]
    pub json: bool,
}

pub async fn run(config: ClusterConfig, node: Option<&str>, args: &StatusArgs) -> anyhow::Result<Outcome> {
    let name = config.name.clone();
    let (follower, _) = super::read(Follower::new(config, false)).await?;
    let fleet = follower.fleet();
    let mut out = anstream::stdout().lock();
    if args.json {
        let document = Document::new(&name, follower.revision(), fleet, node);
        writeln!(out, "{}", escape_json(serde_json::to_string_pretty(&document)?))?;
    } else {
        write!(out, "{}", text(&name, fleet, node, clock::wall_ns() as f64 / 1e9))?;
    }
    out.flush()?;
    Ok(Outcome::Done)
}

/// The document of all that is followed, in one line.
pub fn document(cluster: &str, follower: &Follower) -> String {
    let document = Document::new(cluster, follower.revision(), follower.fleet(), None);
    // Structures of plain members, whose maps have texts for keys.
    escape_json(serde_json::to_string(&document).unwrap_or_default()) + "\n"
}

/// The version of the document, as that of `headcount status --json`.
const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    cluster: &'a str,
    revision: i64,
    hosts: Vec<HostDocument<'a>>,
    unreadable: Vec<UnreadableDocument<'a>>,
}

#[derive(Serialize)]
struct HostDocument<'a> {
    host: &'a str,
    #[serde(flatten)]
    state: HostState,
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<&'a str>,
    nodes: Vec<NodeDocument<'a>>,
}

#[derive(Serialize)]
struct NodeDocument<'a> {
    node: &'a str,
    /// Whether what follows is true now, or was when its host was lost.
    known: bool,
    #[serde(flatten)]
    value: &'a NodeValue,
}

#[derive(Serialize)]
struct UnreadableDocument<'a> {
    key: &'a str,
    error: String,
}

impl<'a> Document<'a> {
    fn new(cluster: &'a str, revision: i64, fleet: &'a Fleet, node: Option<&str>) -> Document<'a> {
        let host = |(name, host): (&'a String, &'a Host)| HostDocument {
            host: name,
            state: host.state(),
            machine: host.here.as_ref().map(|here| here.machine.as_str()),
            agent: host.here.as_ref().map(|here| here.agent.as_str()),
            nodes: nodes(host, node)
                .map(|(name, value)| NodeDocument { node: name, known: host.is_here(), value })
                .collect(),
        };
        Document {
            schema: SCHEMA,
            cluster,
            revision,
            hosts: fleet.hosts.iter().map(host).collect(),
            unreadable: fleet
                .unreadable
                .iter()
                .map(|(key, why)| UnreadableDocument { key, error: why.to_string() })
                .collect(),
        }
    }
}

/// The nodes of a host that were asked for.
pub fn nodes<'a>(host: &'a Host, node: Option<&str>) -> impl Iterator<Item = (&'a String, &'a NodeValue)> {
    host.nodes.iter().filter(move |(name, _)| node.is_none_or(|node| node == *name))
}

fn text(cluster: &str, fleet: &Fleet, node: Option<&str>, now: f64) -> String {
    let since = |time: f64| age(Duration::from_secs_f64((now - time).clamp(0.0, 1e9)));
    let mut out = String::new();
    let count = |of: fn(&Host) -> bool| fleet.hosts.values().filter(|host| of(host)).count() as u64;
    let lost = count(Host::is_lost);
    let mut title = format!("cluster {}: {}", escape(cluster), plural(count(Host::is_here), "host"));
    if lost > 0 {
        title += &format!(", {lost} lost");
    }
    paragraph(&mut out, 0, paint::HEADING, &title);
    let mut table = Table::new(&[
        ("HOST", Side::Left),
        ("NODE", Side::Left),
        ("STATE", Side::Left),
        ("GEN", Side::Right),
        ("AGE", Side::Left),
        ("WORKERS", Side::Right),
        ("DRAINING", Side::Right),
        ("DEATHS", Side::Right),
    ]);
    for (name, host) in &fleet.hosts {
        let name = || Cell::new(escape(name).into_owned());
        let mut rows = nodes(host, node).peekable();
        let whole = match host.state() {
            HostState::Here { .. } if rows.peek().is_none() => {
                Some((format!("no node{}", of_name(node)), paint::DIM))
            }
            HostState::Here { .. } => None,
            HostState::Left { since: time } => Some((format!("left {} ago", since(time)), paint::DIM)),
            HostState::Lost { since: Some(time) } => {
                Some((format!("lost {} ago", since(time)), paint::ERROR))
            }
            HostState::Lost { since: None } => Some(("lost".to_owned(), paint::ERROR)),
        };
        if let Some((state, style)) = whole {
            table.row(vec![name(), Cell::none(), Cell::new(state).style(style)]);
        }
        for (node, value) in rows {
            table.row(row(name(), node, value, host.is_here(), &since));
        }
    }
    if !table.is_empty() {
        out.push('\n');
        table.write(&mut out);
    }
    if lost > 0 {
        out.push('\n');
        paragraph(
            &mut out,
            2,
            paint::DIM,
            "Of a lost host it is not known what its nodes do. What is shown was true before.",
        );
    }
    for (key, why) in &fleet.unreadable {
        paragraph(
            &mut out,
            2,
            paint::WARNING,
            &format!("the key {} is skipped: {}", escape(key), escape(&why.to_string())),
        );
    }
    out
}

fn of_name(node: Option<&str>) -> String {
    node.map_or(String::new(), |node| format!(" {}", escape(node)))
}

fn row(host: Cell, node: &str, value: &NodeValue, known: bool, since: &dyn Fn(f64) -> String) -> Vec<Cell> {
    let style = |style: Style| if known { style } else { paint::DIM };
    let (state, colour) = match known {
        true => (escape(&value.state).into_owned(), colour(&value.state)),
        false => (format!("unknown, was {}", escape(&value.state)), paint::DIM),
    };
    let number = |n: u32, colour: Style| match n {
        0 => Cell::none(),
        n => Cell::new(n.to_string()).style(style(colour)),
    };
    let of = value.expected.map_or(String::new(), |n| format!("/{n}"));
    vec![
        host,
        Cell::new(escape(node).into_owned()),
        Cell::new(state).style(colour),
        value.generation.map_or_else(Cell::none, |id| Cell::new(id.to_string())),
        value.begun.map_or_else(Cell::none, |begun| Cell::new(since(begun))),
        Cell::new(format!("{}{of}", value.serving)).style(style(Style::new())),
        number(value.draining, paint::WARNING),
        number(value.deaths, paint::ERROR),
    ]
}

fn colour(state: &str) -> Style {
    match state {
        "serving" => paint::GOOD,
        "starting" | "short" | "unknown" => paint::WARNING,
        "crash_loop" | "orphaned" | "stopped" => paint::ERROR,
        _ => paint::DIM,
    }
}

#[cfg(test)]
mod tests {
    use headcount_cluster::value::{HostValue, KnownValue, Presence};

    use super::*;

    fn here() -> HostValue {
        HostValue {
            v: 1,
            agent: "0.1.0".into(),
            place: "x".into(),
            machine: "web-1".into(),
            pid: 7,
            birth: 9,
            since: 900.0,
        }
    }

    fn known(presence: Presence) -> Option<KnownValue> {
        Some(KnownValue { v: 1, presence, since: 940.0, lease: 1 })
    }

    fn fleet() -> Fleet {
        let node = NodeValue {
            state: "serving".into(),
            generation: Some(3),
            begun: Some(880.0),
            expected: Some(4),
            serving: 4,
            draining: 2,
            ..NodeValue::default()
        };
        let mut looping = node.clone();
        (looping.state, looping.serving, looping.deaths) = ("crash_loop".into(), 1, 17);
        let mut fleet = Fleet::default();
        let nodes = [("nginx".to_owned(), node), ("shop".to_owned(), looping)];
        for (name, host) in [
            ("web-1", Host { here: Some(here()), known: known(Presence::Here), nodes: nodes.clone().into() }),
            ("web-2", Host { here: None, known: known(Presence::Lost), nodes: nodes.into() }),
            ("web-3", Host { here: None, known: known(Presence::Left), ..Host::default() }),
            ("web-4", Host { here: Some(here()), ..Host::default() }),
        ] {
            fleet.hosts.insert(name.to_owned(), host);
        }
        fleet
    }

    #[test]
    fn for_people() {
        let text = anstream::adapter::strip_str(&text("shop", &fleet(), None, 1000.0)).to_string();
        insta::assert_snapshot!(text);
    }

    #[test]
    fn for_programs() {
        let document = serde_json::to_value(Document::new("shop", 7, &fleet(), Some("nginx"))).unwrap();
        assert_eq!(document["hosts"][1]["state"], "lost");
        assert_eq!(document["hosts"][1]["nodes"][0]["known"], false);
        assert_eq!(document["hosts"][0]["nodes"].as_array().unwrap().len(), 1);
        assert_eq!(document["hosts"][0]["nodes"][0]["state"], "serving");
    }
}
