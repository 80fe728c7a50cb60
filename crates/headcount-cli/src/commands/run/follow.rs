//! The loop: read, deliver, and look after the node when there is nothing to deliver.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use headcount::{ErrorKind, Observer};

use super::begin::begin;
use super::deliver::{Deliverer, Ended};
use super::journal::{Item, Journal};
use super::life;
use super::notice::Notice;
use super::place::{self, Place};
use super::pulse::{self, Pulse, Verdict};
use super::state::{Ask, Registry, State};
use crate::cli::RunArgs;
use crate::outcome::Outcome;

/// How often it is looked whether the registry is still the one at its path.
const BETWEEN_CHECKS: Duration = Duration::from_millis(500);
/// How often it is written down what was read and concerns nobody.
const BETWEEN_SAVES: Duration = Duration::from_secs(1);

/// What warnings are about.
const PULSE: &str = "pulse";
const REGISTRY: &str = "registry";

/// Follows one node.
pub struct Follower<'a> {
    args: &'a RunArgs,
    place: Place,
    deliverer: Deliverer<'a>,
    pulse: Pulse,
    /// A registry was there.
    has_followed: bool,
    checked: Instant,
    saved: Instant,
}

impl<'a> Follower<'a> {
    pub fn new(args: &'a RunArgs, place: Place, deliverer: Deliverer<'a>) -> Follower<'a> {
        let now = Instant::now();
        Follower {
            args,
            place,
            deliverer,
            pulse: Pulse::default(),
            has_followed: false,
            checked: now,
            saved: now,
        }
    }

    /// Follows until it is to end.
    pub fn run(mut self) -> anyhow::Result<Outcome> {
        let mut ended = self.deliverer.resume()?;
        let mut journal = None;
        while ended == Ended::Finished && !self.deliverer.stop.is_asked() {
            ended = match &mut journal {
                None => self.attach(&mut journal)?,
                Some(open) => self.step(open)?,
            };
            if ended == Ended::Finished && journal.as_ref().is_some_and(|open| self.is_replaced(open)) {
                journal = None;
            }
        }
        self.deliverer.file.save()?;
        Ok(if ended == Ended::GaveUp { Outcome::Failed } else { Outcome::Done })
    }

    fn state(&mut self) -> &mut State {
        &mut self.deliverer.file.state
    }

    fn node(&mut self) -> String {
        self.state().registry.as_ref().map_or(String::new(), |registry| registry.node.clone())
    }

    fn pause(&self, time: Duration) {
        self.deliverer.stop.wait(time, &mut || {});
    }

    /// Opens the registry, and finds where to go on in it. It may not be there, yet or any more.
    fn attach(&mut self, journal: &mut Option<Journal>) -> anyhow::Result<Ended> {
        let (log, args) = (self.deliverer.log, self.args);
        let Some(path) = self.place.wait(self.deliverer.stop, log)? else { return Ok(Ended::Finished) };
        let (observer, registry) = match open(&path) {
            Ok(open) => open,
            Err(error) => {
                let missing = error.kind() == ErrorKind::NotFound;
                if !missing && !self.has_followed {
                    return Err(error).context("cannot read the node");
                }
                if !missing {
                    log.warn_once(REGISTRY, error);
                } else {
                    self.place.is_missing(log);
                }
                self.pause(place::BETWEEN_LOOKS);
                return Ok(Ended::Finished);
            }
        };
        match self.state().registry.clone() {
            // All of it happened since we look.
            None if self.place.was_missing => self.advance(1),
            None => begin(self.state(), &observer, args.from)?,
            Some(known) if known.node != registry.node => bail!(
                "the state file is about the node {}, and {} is of the node {}: name another file by --state",
                known.node,
                path.display(),
                registry.node
            ),
            Some(known) if known.created_ns == registry.created_ns => {}
            Some(_) => {
                // The old one is gone, and whoever lived by it: with its file, or with the boot.
                if self.state().node_is_up {
                    let ended = self.died(None, &mut || {})?;
                    if ended != Ended::Finished {
                        return Ok(ended);
                    }
                }
                log.note(format_args!("the registry {} was made anew", path.display()));
                self.advance(1);
                self.state().ask = Ask::Never;
            }
        }
        let next = self.state().next_seq;
        let position = if next == 0 { "the oldest event".to_owned() } else { format!("event {next}") };
        log.note(format_args!("following the node {} from {position} on", registry.node));
        self.state().registry = Some(registry);
        self.deliverer.file.save()?;
        log.is_well(REGISTRY);
        self.has_followed = true;
        self.place.was_missing = false;
        *journal = Some(Journal::new(observer, next, usize::try_from(args.queue).unwrap_or(usize::MAX)));
        Ok(Ended::Finished)
    }

    /// Whether another registry is at the path, and this one is read to its end.
    fn is_replaced(&mut self, journal: &Journal) -> bool {
        if journal.front().is_some() || self.checked.elapsed() < BETWEEN_CHECKS {
            return false;
        }
        self.checked = Instant::now();
        if journal.observer.is_current() {
            return false;
        }
        // As long as there is none that can be read, the old one is better than none.
        match self.place.find() {
            Ok(Some(path)) => open(path).is_ok(),
            _ => false,
        }
    }

    /// Delivers what is next, or looks after the node.
    fn step(&mut self, journal: &mut Journal) -> anyhow::Result<Ended> {
        journal.read_ahead(self.deliverer.log);
        if self.state().ask == Ask::AtOnce {
            return self.ask(journal);
        }
        let Some(item) = journal.front().cloned() else { return self.idle(journal) };
        let ended = self.item(&item, journal)?;
        if ended == Ended::Finished {
            journal.pop();
        }
        Ok(ended)
    }

    fn item(&mut self, item: &Item, journal: &mut Journal) -> anyhow::Result<Ended> {
        let node = self.node();
        let log = self.deliverer.log;
        let tick = &mut || journal.read_ahead(log);
        match item {
            Item::Event(event) => {
                let life = life::of(self.state().node_is_up, event);
                let before = life.before.iter().map(|&what| Notice::node(&node, what, event));
                let after = life.after.iter().map(|&what| Notice::node(&node, what, event));
                for notice in before.chain([Notice::event(&node, event)]).chain(after) {
                    let ended = self.deliverer.deliver(&notice, tick)?;
                    if ended != Ended::Finished {
                        return Ok(ended);
                    }
                }
                self.advance(event.seq.saturating_add(1));
                self.state().node_is_up = life.up;
            }
            &Item::Lost { from, count } => {
                log.warn(format_args!(
                    "{count} events from {from} on were overwritten before they were read (a larger journal_records \
                     of the node, a larger --queue or a faster command would help)"
                ));
                let ended = self.deliverer.deliver(&Notice::lost(&node, from, count, wall_ns()), tick)?;
                if ended != Ended::Finished {
                    return Ok(ended);
                }
                self.advance(from.saturating_add(count));
                self.state().ask = Ask::WhenCaughtUp;
            }
            &Item::SetBack(next) => {
                self.advance(next);
                self.state().ask = Ask::WhenCaughtUp;
            }
        }
        Ok(Ended::Finished)
    }

    fn advance(&mut self, next: u64) {
        let state = self.state();
        state.next_seq = next;
        state.finished.clear();
    }

    /// There is nothing to deliver.
    fn idle(&mut self, journal: &mut Journal) -> anyhow::Result<Ended> {
        if self.state().next_seq == 0 {
            // From the oldest on, and there is none.
            self.state().next_seq = journal.next_seq();
        }
        if self.state().ask == Ask::WhenCaughtUp {
            return self.ask(journal);
        }
        if self.state().node_is_up && self.pulse.is_due() {
            let ended = self.feel_pulse(journal)?;
            if ended != Ended::Finished || journal.front().is_some() {
                return Ok(ended);
            }
        }
        if self.saved.elapsed() >= BETWEEN_SAVES {
            self.deliverer.file.save()?;
            self.saved = Instant::now();
        }
        self.pause(Observer::POLL_INTERVAL);
        Ok(Ended::Finished)
    }

    fn feel_pulse(&mut self, journal: &mut Journal) -> anyhow::Result<Ended> {
        let log = self.deliverer.log;
        match self.pulse.look(&journal.observer) {
            Ok((Verdict::Gone, snapshot)) => {
                // What they did last may have come after our last look into the journal.
                journal.read_ahead(log);
                if journal.front().is_none() {
                    let newest = snapshot.generations.last().map(|generation| generation.id);
                    return self.died(newest, &mut || journal.read_ahead(log));
                }
            }
            Ok((Verdict::Unknown, _)) => log.warn_once(
                PULSE,
                "it cannot be known whether the node is alive (run as the node's owner, or where /proc shows its \
                 processes): its death would not be noticed",
            ),
            Ok((Verdict::Alive, _)) => log.is_well(PULSE),
            Ok((Verdict::Doubtful, _)) => {}
            Err(error) => log.warn_once(PULSE, error),
        }
        Ok(Ended::Finished)
    }

    fn died(&mut self, generation: Option<u64>, tick: &mut dyn FnMut()) -> anyhow::Result<Ended> {
        let notice = Notice::died(&self.node(), self.state().next_seq, generation, wall_ns());
        let ended = self.deliverer.deliver(&notice, tick)?;
        if ended == Ended::Finished {
            self.state().node_is_up = false;
            self.deliverer.file.save()?;
        }
        Ok(ended)
    }

    /// Asks whether the node is up, where the journal does not say it. That it is not, is the pulse's to find.
    fn ask(&mut self, journal: &mut Journal) -> anyhow::Result<Ended> {
        let log = self.deliverer.log;
        let snapshot = match journal.observer.snapshot() {
            Ok(snapshot) => snapshot,
            Err(error) => {
                log.warn_once(PULSE, error);
                self.pause(Observer::POLL_INTERVAL);
                return Ok(Ended::Finished);
            }
        };
        if !self.state().node_is_up && pulse::serves(&snapshot) {
            let notice = Notice::present(&self.node(), self.state().next_seq, &snapshot);
            let ended = self.deliverer.deliver(&notice, &mut || journal.read_ahead(log))?;
            if ended != Ended::Finished {
                return Ok(ended);
            }
            self.state().node_is_up = true;
        }
        self.state().ask = Ask::Never;
        self.deliverer.file.save()?;
        Ok(Ended::Finished)
    }
}

fn open(path: &Path) -> headcount::Result<(Observer, Registry)> {
    let observer = Observer::open(path)?;
    let info = observer.registry()?;
    let registry = Registry {
        node: observer.snapshot()?.node,
        path: path.to_owned(),
        created_ns: info.created_ns,
        boot_id: info.boot_id.map(|word| format!("{word:016x}")).concat(),
    };
    Ok((observer, registry))
}

fn wall_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
