//! `headcount events`: the journal, for people or as JSON lines. `docs/cli/events.md` is the reference.

mod journals;
mod since;
pub mod text;

use std::io::{BufWriter, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use headcount::Kind;
use jiff::tz::TimeZone;
use rustix::event::{PollFd, PollFlags};

use crate::args::NodeSelector;
use crate::find::{self, Folders};
use crate::outcome::Outcome;
use crate::poll::{Signals, wait};
use crate::say::say;
use journals::{Batch, Entry, Journals, News};
use since::From;
use since::Since;
use text::LineFormat;

const EVENTS_EXAMPLES: &str = "\
Examples:
  headcount events -n 20                    the last twenty
  headcount events --since 10m --kind worker_died
  headcount events --follow --json | jq -r .kind

Exit codes: 0 success; 2 usage error; 4 no such node, or it cannot be read.";

#[derive(Args)]
#[command(after_help = EVENTS_EXAMPLES)]
pub struct EventsArgs {
    /// Print JSON lines, for programs (described in docs/cli.md)
    #[arg(long)]
    pub json: bool,
    /// Keep showing new events, even when the registry is replaced
    #[arg(long, short)]
    pub follow: bool,
    /// Only events since 10m (ago), 2025-01-31T12:00:00Z, or seq:123 (an event's number; 123 alone means the same)
    #[arg(long, value_name = "TIME", value_parser = Since::parse)]
    pub since: Option<Since>,
    /// Only the last N events
    #[arg(long, short = 'n', value_name = "N")]
    pub lines: Option<usize>,
    /// Only events of this kind; may be repeated
    #[arg(long, value_name = "KIND", value_parser = kinds())]
    pub kind: Vec<headcount::Kind>,
}

/// Searching for new nodes takes longer the more files there are: it takes at most one part in so many of our time.
const SEARCH_SHARE: u32 = 10;

/// For `--kind`.
fn kinds() -> impl TypedValueParser<Value = Kind> {
    let known = |name: &str| Kind::ALL.iter().copied().find(|kind| kind.name() == name);
    PossibleValuesParser::new(Kind::ALL.iter().map(|kind| kind.name()))
        .try_map(move |name| known(&name).ok_or("no such kind"))
}

pub fn run(selector: &NodeSelector, args: &EventsArgs) -> anyhow::Result<Outcome> {
    let mut printer = Printer::open(selector, args)?;
    let mut found = std::mem::take(&mut printer.first);
    keep_last(&mut found, args.lines);
    printer.print(&found)?;
    if args.follow {
        printer.follow(selector)?;
    }
    Ok(Outcome::Done)
}

/// Entries, each with the number of the journal that it is from.
type Entries = Vec<(usize, Entry)>;

struct Printer<'a> {
    args: &'a EventsArgs,
    zone: TimeZone,
    journals: Journals,
    /// What the journals held when they were opened.
    first: Entries,
    /// All nodes of this host were asked for.
    all: bool,
    /// There was more than is read at once.
    more: bool,
}

impl<'a> Printer<'a> {
    fn open(selector: &NodeSelector, args: &'a EventsArgs) -> anyhow::Result<Printer<'a>> {
        let all = selector.node.is_none() && selector.registry.is_none();
        let from = args.since.map(From::now);
        let mut journals = Journals::new(all)?;
        journals.add(find::paths(selector)?, from)?;
        let mut printer =
            Printer { args, zone: TimeZone::system(), journals, first: Vec::new(), all, more: false };
        let (found, mut errors) = printer.read(true)?;
        printer.first = found;
        if printer.journals.len() == 0 || !all && !errors.is_empty() {
            return Err(errors.pop().unwrap_or_else(|| anyhow!("{}", find::no_node())));
        }
        // One node that cannot be read does not hide the others.
        errors.iter().for_each(|error| say(&format!("{error:#}")));
        let names = printer.journals.names();
        if names.len() > 1 && matches!(args.since, Some(Since::Seq(_))) {
            bail!("--since: each node numbers its own events; choose one with --node ({})", names.join(", "));
        }
        match printer.journals.missing().filter(|_| !all) {
            Some(path) if args.follow => {
                say(&format!("{} does not exist yet; waiting for it", path.display()))
            }
            Some(path) => bail!("{} does not exist; is the server running?", path.display()),
            None => {}
        }
        Ok(printer)
    }

    /// New events that were asked for, of all nodes in the order of time, and errors. Tells other news on standard error.
    /// `first`: nothing has been read yet.
    fn read(&mut self, first: bool) -> anyhow::Result<(Entries, Vec<anyhow::Error>)> {
        let Batch { mut entries, news, more } = self.journals.read(first)?;
        self.more = more;
        entries.retain(|(_, entry)| match entry {
            Entry::Event(event) => text::wants(&self.args.kind, event),
            Entry::Lost(_) => true,
        });
        if self.journals.len() > 1 {
            merge(&mut entries);
        }
        let mut errors = Vec::new();
        for news in news {
            match news {
                News::Gone(path) => {
                    say(&format!("{} was removed; waiting for a new one", path.display()));
                }
                News::Come { node, path } => {
                    say(&format!("node {node} has a new registry: {}", path.display()));
                }
                News::New { node, path } => say(&format!("new node {node}: {}", path.display())),
                News::Unreadable(error) => {
                    errors.push(anyhow::Error::new(error).context("cannot read the node"))
                }
            }
        }
        Ok((entries, errors))
    }

    fn print(&self, found: &Entries) -> anyhow::Result<()> {
        if found.is_empty() {
            return Ok(());
        }
        let format =
            LineFormat { json: self.args.json, names: self.journals.len() > 1, zone: self.zone.clone() };
        // One write for many lines: a journal may have a million.
        let mut out = BufWriter::with_capacity(1 << 16, anstream::stdout().lock());
        for (number, entry) in found {
            writeln!(out, "{}", format.line(self.journals.node(*number), entry)?)?;
        }
        out.flush()?;
        Ok(())
    }

    fn follow(&mut self, selector: &NodeSelector) -> anyhow::Result<()> {
        let signals = Signals::catch(&[signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])?;
        let mut discovery = match self.all {
            true => Some(Discovery::begin()?),
            false => None,
        };
        while !signals.came() {
            if let Some(discovery) = &mut discovery
                && let Some(paths) = discovery.search(selector)?
            {
                self.journals.add(paths, None)?;
            }
            let (found, errors) = self.read(false)?;
            self.print(&found)?;
            self.journals.close_old();
            for error in errors {
                // The other nodes are still followed.
                if !self.all {
                    return Err(error);
                }
                say(&format!("{error:#}"));
            }
            // The last one ends `headcount events --follow | head` on a quiet node.
            let stdout = std::io::stdout();
            let mut fds = vec![
                PollFd::new(&signals, PollFlags::IN),
                PollFd::new(self.journals.followers(), PollFlags::IN),
                PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::empty()),
            ];
            let pause = discovery.as_ref().and_then(|discovery| discovery.poll(&mut fds));
            wait(&mut fds, if self.more { Some(Duration::ZERO) } else { pause })?;
            if fds[2].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
                break;
            }
        }
        Ok(())
    }
}

/// Finds new nodes.
struct Discovery {
    folders: Folders,
    /// Something has changed in them.
    changed: bool,
    /// No search before this instant.
    pause_until: Instant,
}

impl Discovery {
    fn begin() -> anyhow::Result<Discovery> {
        // What has appeared since the first search is found by the next one.
        Ok(Discovery { folders: Folders::watch()?, changed: true, pause_until: Instant::now() })
    }

    /// The registries of this host, if they may have changed.
    fn search(&mut self, selector: &NodeSelector) -> anyhow::Result<Option<Vec<PathBuf>>> {
        self.changed |= self.folders.changed()?;
        let begun = Instant::now();
        if !self.changed || self.pause_until > begun {
            return Ok(None);
        }
        self.changed = false;
        self.folders.refresh()?;
        let found = find::paths(selector)?;
        self.pause_until = Instant::now() + begun.elapsed() * (SEARCH_SHARE - 1);
        Ok(Some(found))
    }

    /// Adds the descriptor to wait for. During a pause there is none, and its end is returned.
    fn poll<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) -> Option<Duration> {
        if self.changed {
            return Some(self.pause_until.saturating_duration_since(Instant::now()));
        }
        fds.push(PollFd::new(&self.folders, PollFlags::IN));
        None
    }
}

/// Sorts by time. The events of one node keep their order, and what was lost stays before the next event.
fn merge(found: &mut Entries) {
    let mut keyed: Vec<(u64, (usize, Entry))> = Vec::with_capacity(found.len());
    let mut next = std::collections::HashMap::new();
    for (number, entry) in found.drain(..).rev() {
        let last: &mut u64 = next.entry(number).or_insert(u64::MAX);
        // Not later than the event after it, whatever a damaged registry says.
        let time = if let Entry::Event(event) = &entry { event.boot_ns.min(*last) } else { *last };
        *last = time;
        keyed.push((time, (number, entry)));
    }
    keyed.reverse();
    keyed.sort_by_key(|(time, _)| *time);
    found.extend(keyed.into_iter().map(|(_, entry)| entry));
}

/// Keeps the last `lines` events, and what was lost among them.
fn keep_last(found: &mut Entries, lines: Option<usize>) {
    let Some(lines) = lines else { return };
    let events = found.iter().filter(|(_, entry)| matches!(entry, Entry::Event(_))).count();
    let Some(mut drop) = events.checked_sub(lines).filter(|&n| n > 0) else { return };
    found.retain(|(_, entry)| {
        let dropped = drop > 0;
        drop -= usize::from(dropped && matches!(entry, Entry::Event(_)));
        !dropped
    });
}
