//! `headcount cluster events`: what happened on all hosts, in etcd's order.

use std::io::Write;
use std::os::fd::AsFd;

use anstyle::Style;
use clap::Args;
use headcount::Kind;
use headcount_cluster::config::ClusterConfig;
use headcount_cluster::follower::{FleetEvent, Follower, News};
use jiff::tz::TimeZone;
use rustix::event::{PollFd, PollFlags};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::commands::events::text::{colour, time};
use crate::escape::{escape, escape_json};
use crate::outcome::Outcome;
use crate::paint;
use crate::poll::wait;
use crate::say::say;

const EVENTS_EXAMPLES: &str = "\
Examples:
  headcount cluster events -n 20            the last twenty
  headcount cluster events --follow --json | jq -r '[.host, .kind] | @tsv'

Exit codes: 0 success; 2 usage error; 4 no cluster is configured, or etcd cannot be read.";

#[derive(Args)]
#[command(after_help = EVENTS_EXAMPLES)]
pub struct EventsArgs {
    /// Print JSON lines, for programs (described in docs/cli/cluster.md)
    #[arg(long)]
    pub json: bool,
    /// Keep showing new events
    #[arg(long, short)]
    pub follow: bool,
    /// Only the last N events of those that are kept
    #[arg(long, short = 'n', value_name = "N")]
    pub lines: Option<usize>,
    /// Only events of this host
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
}

struct Printer<'a> {
    args: &'a EventsArgs,
    node: Option<&'a str>,
    zone: TimeZone,
}

pub async fn run(config: ClusterConfig, node: Option<&str>, args: &EventsArgs) -> anyhow::Result<Outcome> {
    let printer = Printer { args, node, zone: TimeZone::system() };
    // Which of them are about one host or node, is known only when all are read.
    let number = args.lines.filter(|_| node.is_none() && args.host.is_none());
    let follower = Follower::from_last(config, number.unwrap_or(usize::MAX));
    let (follower, told) = super::read(follower).await?;
    let mut lines: Vec<String> = told.iter().filter_map(|news| printer.line(news)).collect();
    if let Some(last) = args.lines {
        lines.drain(..lines.len().saturating_sub(last));
    }
    let mut out = anstream::stdout().lock();
    for line in lines {
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    drop(out);
    if args.follow {
        printer.follow(follower).await?;
    }
    Ok(Outcome::Done)
}

impl Printer<'_> {
    async fn follow(&self, mut follower: Follower) -> anyhow::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut reader_gone = watch_reader()?;
        loop {
            let news = tokio::select! {
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                Ok(()) = &mut reader_gone => return Ok(()),
                news = follower.next() => news,
            };
            if let Some(line) = self.line(&news) {
                let mut out = anstream::stdout().lock();
                writeln!(out, "{line}")?;
                out.flush()?;
            }
        }
    }

    /// A line to print. What is no event is said beside.
    fn line(&self, news: &News) -> Option<String> {
        match news {
            News::Event(event) => self.event(event),
            News::Unreadable(key, why) => {
                say(&format!("the event {key} is skipped: {why}"));
                None
            }
            News::Missed { after, upto } => {
                say(&format!(
                    "etcd has compacted what happened between the revisions {after} and {upto}: events that were kept no longer than that are missing"
                ));
                None
            }
            News::SetBack => {
                say(
                    "etcd was set back to an older state: what it says of the time between is not true any more",
                );
                None
            }
            News::Away(trouble) => {
                say(&format!("{trouble}. Trying again; what happens meanwhile follows"));
                None
            }
            News::Back => {
                say("etcd answers again");
                None
            }
            News::Read | News::Changed => None,
        }
    }

    fn event(&self, event: &FleetEvent) -> Option<String> {
        let wanted = self.node.is_none_or(|node| event.node.as_deref() == Some(node))
            && self.args.host.as_ref().is_none_or(|host| *host == event.host);
        if !wanted {
            return None;
        }
        if self.args.json {
            return Some(json_line(event));
        }
        let seconds = event.value.document.get("time").and_then(Value::as_f64).unwrap_or(0.0);
        let time = time((seconds * 1e9) as u64, &self.zone);
        let who = match &event.node {
            Some(node) => format!("{}/{}", event.host, node),
            None => event.host.clone(),
        };
        let style = of_kind(event.value.text("kind"));
        let what = escape(event.value.text("sentence"));
        Some(format!("{}{time}{:#}  {}  {style}{what}{style:#}", paint::DIM, paint::DIM, escape(&who)))
    }
}

/// The document, without an end of the line.
pub fn json_line(event: &FleetEvent) -> String {
    let mut document = serde_json::Map::new();
    document.insert("host".to_owned(), Value::from(event.host.clone()));
    document.insert("revision".to_owned(), Value::from(event.revision));
    document.extend(event.value.document.clone());
    escape_json(Value::Object(document).to_string())
}

fn of_kind(kind: &str) -> Style {
    match kind {
        "host_joined" => paint::GOOD,
        "host_left" => paint::WARNING,
        "host_lost" => paint::ERROR,
        _ => Kind::ALL.iter().find(|known| known.name() == kind).map_or(Style::new(), |kind| colour(*kind)),
    }
}

/// Ends `headcount cluster events --follow | head` on a quiet fleet. In a thread: a runtime's descriptors must be its own.
fn watch_reader() -> std::io::Result<oneshot::Receiver<()>> {
    let (gone, told) = oneshot::channel();
    std::thread::Builder::new().name("reader".to_owned()).spawn(move || {
        let stdout = std::io::stdout();
        let mut fds = [PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::empty())];
        while !fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            if wait(&mut fds, None).is_err() {
                return;
            }
        }
        // Nobody waits for it any more if the command ends.
        let _ = gone.send(());
    })?;
    Ok(told)
}
