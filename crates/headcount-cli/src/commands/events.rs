//! `headcount events`: the journal, for people or as JSON lines. `docs/cli/events.md` is the reference.

mod feed;
mod since;
mod text;

use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use headcount::{Event, Kind, Observer};
use jiff::tz::TimeZone;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::wait::clock::Deadline;
use crate::cli::{EventsArgs, Which};
use crate::find;
use crate::outcome::Outcome;
use crate::plain::plain;
use feed::{Feed, Item, News};
use since::From;
pub use since::Since;
use text::Look;

/// How often a follower of all nodes looks for new ones.
const NEW_NODES: Duration = Duration::from_secs(1);

/// For `--kind`.
pub fn kinds() -> impl TypedValueParser<Value = Kind> {
    let known = |name: &str| Kind::ALL.iter().copied().find(|kind| kind.name() == name);
    PossibleValuesParser::new(Kind::ALL.iter().map(|kind| kind.name()))
        .try_map(move |name| known(&name).ok_or("no such kind"))
}

pub fn run(which: &Which, args: &EventsArgs) -> anyhow::Result<Outcome> {
    let mut journal = Journal::open(which, args)?;
    let mut found = journal.read()?;
    keep_last(&mut found, args.lines);
    journal.print(&found)?;
    if args.follow {
        journal.follow(which)?;
    }
    Ok(Outcome::Done)
}

/// What is printed in the end: an item, and the feed that it comes from.
type Found = Vec<(usize, Item)>;

struct Journal<'a> {
    args: &'a EventsArgs,
    from: Option<From>,
    zone: TimeZone,
    feeds: Vec<Feed>,
    /// All nodes of this host are meant.
    all: bool,
}

impl<'a> Journal<'a> {
    fn open(which: &Which, args: &'a EventsArgs) -> anyhow::Result<Journal<'a>> {
        let all = which.node.is_none() && which.registry.is_none();
        let mut journal = Journal {
            args,
            from: args.since.map(From::now),
            zone: TimeZone::system(),
            feeds: Vec::new(),
            all,
        };
        let mut errors = Vec::new();
        for path in paths(which)? {
            let mut feed = Feed::new(path, journal.from.and_then(From::first_seq));
            match feed.refresh() {
                Ok(_) => journal.feeds.push(feed),
                Err(error) => errors.push(error),
            }
        }
        if journal.feeds.is_empty() {
            return Err(errors.pop().unwrap_or_else(|| anyhow!("{}", find::no_node())));
        }
        // One of several that cannot be read does not hide the others.
        errors.iter().for_each(|error| say(&format!("{error:#}")));
        if journal.feeds.len() > 1 && matches!(args.since, Some(Since::Seq(_))) {
            let names: Vec<_> = journal.feeds.iter().map(|f| f.node.as_str()).collect();
            bail!(
                "--since: each node numbers its own events; say which one by --node ({})",
                names.join(", ")
            );
        }
        match journal.feeds.iter().find(|feed| !feed.is_open()) {
            Some(feed) if args.follow => {
                say(&format!("there is no {} yet: waiting for it", feed.path.display()))
            }
            Some(feed) if !all => bail!("there is no {}: is the server running?", feed.path.display()),
            _ => {}
        }
        Ok(journal)
    }

    /// What is new and asked for, of all nodes in the order in which it happened.
    fn read(&mut self) -> anyhow::Result<Found> {
        let mut found = Vec::new();
        for (index, feed) in self.feeds.iter_mut().enumerate() {
            let items = match feed.read() {
                Ok(items) => items,
                // Its file was cut off. Of several, the others go on.
                Err(error) if self.all => {
                    say(&format!("{error:#}"));
                    feed.close();
                    continue;
                }
                Err(error) => return Err(error),
            };
            let of_this_boot = feed.of_this_boot;
            let is_meant = |event: &Event| self.from.is_none_or(|from| from.covers(event, of_this_boot));
            // What was lost before an event that is too old is too old as well.
            let skip_lost = items.iter().any(|item| matches!(item, Item::Event(event) if !is_meant(event)));
            let meant = items.into_iter().filter(|item| match item {
                Item::Event(event) => text::wants(&self.args.kind, event) && is_meant(event),
                Item::Lost(_) => !skip_lost,
            });
            found.extend(meant.map(|item| (index, item)));
        }
        if self.feeds.len() > 1 {
            merge(&mut found);
        }
        Ok(found)
    }

    fn print(&self, found: &Found) -> anyhow::Result<()> {
        let look = Look { json: self.args.json, names: self.feeds.len() > 1, zone: self.zone.clone() };
        let mut out = anstream::stdout().lock();
        for (feed, item) in found {
            let node = self.feeds.get(*feed).map_or("", |f| f.node.as_str());
            writeln!(out, "{}", look.line(node, item)?)?;
        }
        out.flush()?;
        Ok(())
    }

    fn follow(&mut self, which: &Which) -> anyhow::Result<()> {
        let ended = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&ended)).context("cannot wait for signals")?;
        }
        let mut looked = Deadline::after(NEW_NODES);
        while !ended.load(Ordering::Relaxed) {
            let found = self.read()?;
            if !found.is_empty() {
                self.print(&found)?;
            }
            self.refresh()?;
            if self.all && looked.is_over() {
                self.find_new(which)?;
                looked = Deadline::after(NEW_NODES);
            }
            if reader_left(Observer::POLL_INTERVAL)? {
                break;
            }
        }
        Ok(())
    }

    fn refresh(&mut self) -> anyhow::Result<()> {
        let mut unreadable = None;
        for (index, feed) in self.feeds.iter_mut().enumerate() {
            match feed.refresh() {
                Ok(News::None) => {}
                Ok(News::Gone) => {
                    say(&format!("{} is gone: waiting for it to come again", feed.path.display()));
                }
                Ok(News::Come) => {
                    say(&format!("node {}: a new registry, {}", feed.node, feed.path.display()));
                    // All that is in it is new, and numbered anew.
                    self.from = None;
                }
                // Of several, the others go on; it is found again when it can be read.
                Err(error) if self.all => {
                    say(&format!("{error:#}"));
                    unreadable = Some(index);
                }
                Err(error) => return Err(error),
            }
        }
        unreadable.map(|index| self.feeds.remove(index));
        Ok(())
    }

    fn find_new(&mut self, which: &Which) -> anyhow::Result<()> {
        for path in paths(which)? {
            if self.feeds.iter().all(|feed| feed.path != path) {
                let mut feed = Feed::new(path, None);
                // One that cannot be read was not shown at the start either.
                if let Ok(News::Come) = feed.refresh() {
                    say(&format!("node {}: new, {}", feed.node, feed.path.display()));
                    self.feeds.push(feed);
                    self.from = None;
                }
            }
        }
        Ok(())
    }
}

fn paths(which: &Which) -> anyhow::Result<Vec<std::path::PathBuf>> {
    match find::given(which)? {
        Some(path) => Ok(vec![path]),
        None => Ok(find::all(which)?.into_iter().map(|found| found.path).collect()),
    }
}

/// By time; a node's own order stays, and what it lost stays before its next event.
fn merge(found: &mut Found) {
    let mut keyed: Vec<(u64, (usize, Item))> = Vec::with_capacity(found.len());
    let mut next = std::collections::HashMap::new();
    for (feed, item) in found.drain(..).rev() {
        let last: &mut u64 = next.entry(feed).or_insert(u64::MAX);
        // Not later than what follows it, whatever a spoiled registry says.
        let time = if let Item::Event(event) = &item { event.boot_ns.min(*last) } else { *last };
        *last = time;
        keyed.push((time, (feed, item)));
    }
    keyed.reverse();
    keyed.sort_by_key(|(time, _)| *time);
    found.extend(keyed.into_iter().map(|(_, entry)| entry));
}

/// The last so many events, and what was lost among them.
fn keep_last(found: &mut Found, lines: Option<usize>) {
    let Some(lines) = lines else { return };
    let events = found.iter().filter(|(_, item)| matches!(item, Item::Event(_))).count();
    let Some(mut drop) = events.checked_sub(lines).filter(|&n| n > 0) else { return };
    found.retain(|(_, item)| {
        let dropped = drop > 0;
        drop -= usize::from(dropped && matches!(item, Item::Event(_)));
        !dropped
    });
}

/// Waits for so long, or until nobody reads our output any more: without that, a follower of a quiet node would be
/// left behind by `headcount events --follow | head`.
fn reader_left(limit: Duration) -> anyhow::Result<bool> {
    let stdout = std::io::stdout();
    let mut fds = [PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::empty())];
    let limit = Timespec { tv_sec: 0, tv_nsec: i64::from(limit.subsec_nanos()) };
    match poll(&mut fds, Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error).context("cannot wait"),
    }
    Ok(fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP))
}

/// What is no event, for whoever looks on.
fn say(what: &str) {
    anstream::eprintln!("headcount: {}", plain(what));
}
