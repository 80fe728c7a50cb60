//! `headcount status`: every node at this instant.

mod document;
pub mod reading;
mod singletons;
mod text;
#[cfg(test)]
mod text_tests;

use std::io::Write;

use clap::Args;

use crate::args::NodeSelector;
use crate::escape::escape_json;
use crate::find::{self, Found};
use crate::outcome::Outcome;
use document::Document;
use reading::{Reading, Unreadable};

const STATUS_EXAMPLES: &str = "\
Examples:
  headcount status                          every node of this host
  headcount status --node nginx
  headcount status --json | jq '.nodes[].total'
  headcount status --metrics > /var/lib/prometheus/node-exporter/headcount.prom

Exit codes: 0 success; 2 usage error; 4 no such node, or one cannot be read (the others are still shown).";

#[derive(Args)]
#[command(after_help = STATUS_EXAMPLES)]
pub struct StatusArgs {
    /// Print JSON, for programs (described in docs/cli.md)
    #[arg(long)]
    pub json: bool,
    /// Print metrics for Prometheus (described in docs/metrics.md)
    #[arg(long, conflicts_with = "json")]
    pub metrics: bool,
}

pub fn run(selector: &NodeSelector, args: &StatusArgs) -> anyhow::Result<Outcome> {
    let (readings, unreadable) = read(find::all(selector)?);
    let mut out = anstream::stdout().lock();
    if args.json {
        let document = Document::new(&readings, &unreadable);
        writeln!(out, "{}", escape_json(serde_json::to_string_pretty(&document)?))?;
    } else if args.metrics {
        write!(out, "{}", reading::metrics(&readings)?)?;
        // Metrics have no place for it.
        for (path, error) in &unreadable {
            write!(anstream::stderr(), "{}", text::unreadable(path, error))?;
        }
    } else {
        let nodes = readings.iter().map(text::node);
        let blocks = nodes.chain(unreadable.iter().map(|(path, error)| text::unreadable(path, error)));
        for (i, block) in blocks.enumerate() {
            let gap = if i == 0 { "" } else { "\n" };
            write!(out, "{gap}{block}")?;
        }
    }
    out.flush()?;
    if readings.is_empty() && unreadable.is_empty() {
        anyhow::bail!("{}", find::no_node());
    }
    Ok(if unreadable.is_empty() { Outcome::Done } else { Outcome::Failed })
}

fn read(found: Vec<Found>) -> (Vec<Reading>, Vec<Unreadable>) {
    let (mut readings, mut unreadable) = (Vec::new(), Vec::new());
    for Found { path, observer } in found {
        match observer.and_then(|observer| Reading::at(path.clone(), &observer)) {
            Ok(reading) => readings.push(reading),
            Err(error) => unreadable.push((path, error)),
        }
    }
    (readings, unreadable)
}
