//! `headcount events`: the journal, for people or as JSON lines. `docs/cli/events.md` is the reference.

mod feed;
mod since;
mod text;

use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use headcount::{FolderWatch, Kind};
use jiff::tz::TimeZone;
use rustix::event::{PollFd, PollFlags};

use crate::args::Which;
use crate::find;
use crate::outcome::Outcome;
use crate::plain::plain;
use crate::ready::{Signals, wait};
use feed::{Entry, Feeds, News};
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

/// Looking for new nodes takes longer the more files there are: at most one part in so many of our time goes into that.
const LOOK_SHARE: u32 = 10;

/// For `--kind`.
fn kinds() -> impl TypedValueParser<Value = Kind> {
    let known = |name: &str| Kind::ALL.iter().copied().find(|kind| kind.name() == name);
    PossibleValuesParser::new(Kind::ALL.iter().map(|kind| kind.name()))
        .try_map(move |name| known(&name).ok_or("no such kind"))
}

pub fn run(which: &Which, args: &EventsArgs) -> anyhow::Result<Outcome> {
    let mut journal = Journal::open(which, args)?;
    let mut found = std::mem::take(&mut journal.first);
    keep_last(&mut found, args.lines);
    journal.print(&found)?;
    if args.follow {
        journal.follow(which)?;
    }
    Ok(Outcome::Done)
}

/// What is printed in the end: an entry, and the number of the feed that it comes from.
type Found = Vec<(usize, Entry)>;

struct Journal<'a> {
    args: &'a EventsArgs,
    zone: TimeZone,
    feeds: Feeds,
    /// What was there when it was opened.
    first: Found,
    /// All nodes of this host are meant.
    all: bool,
    /// There is more than was read at once.
    more: bool,
}

impl<'a> Journal<'a> {
    fn open(which: &Which, args: &'a EventsArgs) -> anyhow::Result<Journal<'a>> {
        let all = which.node.is_none() && which.registry.is_none();
        let from = args.since.map(From::now);
        let mut feeds = Feeds::new(all)?;
        feeds.add(paths(which)?, from)?;
        let mut journal =
            Journal { args, zone: TimeZone::system(), feeds, first: Vec::new(), all, more: false };
        let (found, mut errors) = journal.read(true)?;
        journal.first = found;
        if journal.feeds.len() == 0 || !all && !errors.is_empty() {
            return Err(errors.pop().unwrap_or_else(|| anyhow!("{}", find::no_node())));
        }
        // One of several that cannot be read does not hide the others.
        errors.iter().for_each(|error| say(&format!("{error:#}")));
        let names = journal.feeds.names();
        if names.len() > 1 && matches!(args.since, Some(Since::Seq(_))) {
            bail!(
                "--since: each node numbers its own events; say which one by --node ({})",
                names.join(", ")
            );
        }
        match journal.feeds.missing().filter(|_| !all) {
            Some(path) if args.follow => say(&format!("there is no {} yet: waiting for it", path.display())),
            Some(path) => bail!("there is no {}: is the server running?", path.display()),
            None => {}
        }
        Ok(journal)
    }

    /// What is new and asked for, of all nodes in the order in which it happened. Says what else is new, but what cannot be
    /// read. `first`: nothing has been read yet.
    fn read(&mut self, first: bool) -> anyhow::Result<(Found, Vec<anyhow::Error>)> {
        let feed::Found { mut entries, news, more } = self.feeds.read(first)?;
        self.more = more;
        entries.retain(|(_, entry)| match entry {
            Entry::Event(event) => text::wants(&self.args.kind, event),
            Entry::Lost(_) => true,
        });
        if self.feeds.len() > 1 {
            merge(&mut entries);
        }
        let mut errors = Vec::new();
        for news in news {
            match news {
                News::Gone(path) => {
                    say(&format!("{} is gone: waiting for it to come again", path.display()));
                }
                News::Come { node, path } => {
                    say(&format!("node {node}: a new registry, {}", path.display()));
                }
                News::New { node, path } => say(&format!("node {node}: new, {}", path.display())),
                News::Unreadable(error) => {
                    errors.push(anyhow::Error::new(error).context("cannot read the node"))
                }
            }
        }
        Ok((entries, errors))
    }

    fn print(&self, found: &Found) -> anyhow::Result<()> {
        if found.is_empty() {
            return Ok(());
        }
        let format =
            LineFormat { json: self.args.json, names: self.feeds.len() > 1, zone: self.zone.clone() };
        let mut out = anstream::stdout().lock();
        for (feed, entry) in found {
            writeln!(out, "{}", format.line(self.feeds.node(*feed), entry)?)?;
        }
        out.flush()?;
        Ok(())
    }

    fn follow(&mut self, which: &Which) -> anyhow::Result<()> {
        let signals = Signals::catch(&[signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])?;
        let mut folders = match self.all {
            true => Some(Folders::watch()?),
            false => None,
        };
        while !signals.came() {
            if let Some(folders) = &mut folders
                && let Some(paths) = folders.look(which)?
            {
                self.feeds.add(paths, None)?;
            }
            let (found, errors) = self.read(false)?;
            self.print(&found)?;
            self.feeds.let_go();
            for error in errors {
                // Of several, the others go on.
                if !self.all {
                    return Err(error);
                }
                say(&format!("{error:#}"));
            }
            // Without the last one, a follower of a quiet node would be left behind by `headcount events --follow | head`.
            let stdout = std::io::stdout();
            let mut fds = vec![
                PollFd::new(&signals, PollFlags::IN),
                PollFd::new(self.feeds.followers(), PollFlags::IN),
                PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::empty()),
            ];
            let rest = folders.as_ref().and_then(|folders| folders.rest(&mut fds));
            wait(&mut fds, if self.more { Some(Duration::ZERO) } else { rest })?;
            if fds[2].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
                break;
            }
        }
        Ok(())
    }
}

/// The folders in which new nodes may come.
struct Folders {
    watch: FolderWatch,
    watched: Vec<PathBuf>,
    /// Something has changed in them.
    changed: bool,
    /// No look before this instant.
    rests: Instant,
}

impl Folders {
    fn watch() -> anyhow::Result<Folders> {
        let watched = find::folders_of_folders();
        let watch = FolderWatch::new(watched.clone())?;
        // What came since the nodes were looked for is found by another look.
        Ok(Folders { watch, watched, changed: true, rests: Instant::now() })
    }

    /// The registries that are there, if that may have changed.
    fn look(&mut self, which: &Which) -> anyhow::Result<Option<Vec<PathBuf>>> {
        self.changed |= self.watch.changed()?;
        if !self.changed || self.rests > Instant::now() {
            return Ok(None);
        }
        let begun = Instant::now();
        self.changed = false;
        let folders = find::folders_of_folders();
        if folders != self.watched {
            self.watch.set(folders.clone())?;
            self.watched = folders;
        }
        let found = paths(which)?;
        self.rests = Instant::now() + begun.elapsed() * (LOOK_SHARE - 1);
        Ok(Some(found))
    }

    /// What is to be waited for: the descriptor, or the end of the rest.
    fn rest<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) -> Option<Duration> {
        if self.changed {
            return Some(self.rests.saturating_duration_since(Instant::now()));
        }
        fds.push(PollFd::new(&self.watch, PollFlags::IN));
        None
    }
}

fn paths(which: &Which) -> anyhow::Result<Vec<PathBuf>> {
    match find::given(which)? {
        Some(path) => Ok(vec![path]),
        None => find::paths(which),
    }
}

/// By time; a node's own order stays, and what it lost stays before its next event.
fn merge(found: &mut Found) {
    let mut keyed: Vec<(u64, (usize, Entry))> = Vec::with_capacity(found.len());
    let mut next = std::collections::HashMap::new();
    for (feed, entry) in found.drain(..).rev() {
        let last: &mut u64 = next.entry(feed).or_insert(u64::MAX);
        // Not later than what follows it, whatever a spoiled registry says.
        let time = if let Entry::Event(event) = &entry { event.boot_ns.min(*last) } else { *last };
        *last = time;
        keyed.push((time, (feed, entry)));
    }
    keyed.reverse();
    keyed.sort_by_key(|(time, _)| *time);
    found.extend(keyed.into_iter().map(|(_, entry)| entry));
}

/// The last so many events, and what was lost among them.
fn keep_last(found: &mut Found, lines: Option<usize>) {
    let Some(lines) = lines else { return };
    let events = found.iter().filter(|(_, entry)| matches!(entry, Entry::Event(_))).count();
    let Some(mut drop) = events.checked_sub(lines).filter(|&n| n > 0) else { return };
    found.retain(|(_, entry)| {
        let dropped = drop > 0;
        drop -= usize::from(dropped && matches!(entry, Entry::Event(_)));
        !dropped
    });
}

/// What is no event, for whoever looks on.
fn say(what: &str) {
    anstream::eprintln!("headcount: {}", plain(what));
}
