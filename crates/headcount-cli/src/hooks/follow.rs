//! The loop: read, deliver, and wait when there is nothing to deliver.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use headcount_report::plural;

use super::deliver::{Deliverer, Ended};
use super::locator::Locator;
use super::lock::Lock;
use super::log::Log;
use super::node_event;
use super::node_state;
use super::notification::Notification;
use super::queue::{GoesOn, Item, Queue, warn_unreadable};
use super::settings::Settings;
use super::start_position;
use super::state::{ANOTHER, Ask, Record, Registry, State, StateFile};
use super::stop::Stop;
use crate::clock::wall_ns;
use crate::outcome::Outcome;

/// How often the position is saved while no rule wants what is read.
const BETWEEN_SAVES: Duration = Duration::from_secs(1);
/// How often a node that cannot be read is tried again.
const BETWEEN_CHECKS: Duration = Duration::from_secs(1);

/// Follows one node.
pub struct Follower<'a> {
    settings: &'a Settings,
    locator: Locator,
    deliverer: Deliverer<'a, StateFile>,
    /// As long as this follows, nobody else uses the state file.
    _lock: Lock,
    /// A registry has been followed.
    has_followed: bool,
    saved: Instant,
    /// The position in the state file.
    saved_seq: u64,
}

impl<'a> Follower<'a> {
    /// With the record in this file, which nobody else may be using.
    pub fn open(
        settings: &'a Settings,
        locator: Locator,
        file: &Path,
        stop: &'a Stop,
        log: &'a Log,
    ) -> anyhow::Result<Follower<'a>> {
        let lock = Lock::take(file)?;
        let record = StateFile::open(file)?;
        let saved_seq = record.state.next_seq;
        let deliverer = Deliverer::new(settings, record, stop, log);
        let saved = Instant::now();
        Ok(Follower { settings, locator, deliverer, _lock: lock, has_followed: false, saved, saved_seq })
    }

    /// Follows until it is stopped, or gives up.
    pub fn run(mut self) -> anyhow::Result<Outcome> {
        let mut ended = self.deliverer.resume()?;
        if ended == Ended::Finished
            && let Some(path) = self.locator.wait(self.deliverer.stop, self.deliverer.log)?
        {
            let mut queue = Queue::new(&path, usize::try_from(self.settings.queue).unwrap_or(usize::MAX))?;
            while ended == Ended::Finished && !self.deliverer.stop.is_asked() {
                ended = self.step(&mut queue)?;
            }
        }
        self.deliverer.record.save()?;
        Ok(if ended == Ended::GaveUp { Outcome::Failed } else { Outcome::Done })
    }

    fn state(&mut self) -> &mut State {
        &mut self.deliverer.record.state
    }

    fn node(&mut self) -> String {
        self.state().registry.as_ref().map_or(String::new(), |registry| registry.node.clone())
    }

    /// Finds where to continue in a registry that was opened.
    fn begin(
        &mut self,
        registry: &Registry,
        goes_on: Option<GoesOn>,
        queue: &mut Queue,
    ) -> anyhow::Result<Ended> {
        let (log, settings) = (self.deliverer.log, self.settings);
        match self.state().registry.clone() {
            // All of it has happened since we started.
            None if self.locator.was_missing => self.advance(1),
            None => {
                match queue
                    .opened()
                    .map(|observer| start_position::set(self.state(), observer, settings.from))
                {
                    Some(Ok(())) => {}
                    // It was truncated at this moment: the follower tells when it is readable again, or replaced.
                    Some(Err(error)) => return self.unreadable(&error.to_string()),
                    None => return Ok(Ended::Finished),
                }
            }
            Some(known) if known.node != registry.node => bail!(
                "the state file is for node {}, but {} belongs to node {}: {ANOTHER}",
                known.node,
                registry.path.display(),
                registry.node
            ),
            Some(known) if known.created_ns == registry.created_ns => {}
            // The old one was removed under its server, which lives, and whose journal goes on in the new one.
            Some(known) if goes_on.is_some_and(|goes_on| goes_on.from == known.created_ns) => {
                log.note(format_args!(
                    "the registry {} was removed, and made anew by its server",
                    registry.path.display()
                ));
                let first = goes_on.map_or(1, |goes_on| goes_on.at.saturating_add(1));
                if self.state().next_seq > first {
                    self.advance(first);
                }
            }
            Some(_) => {
                // The old registry is gone, and so is its node: with the file, or with the boot.
                if self.state().node_is_up {
                    let ended = self.died(None, &mut || {})?;
                    if ended != Ended::Finished {
                        return Ok(ended);
                    }
                }
                log.note(format_args!("the registry {} was replaced", registry.path.display()));
                self.advance(1);
                self.state().ask = Ask::Never;
            }
        }
        let next = self.state().next_seq;
        let position = if next == 0 { "the oldest event".to_owned() } else { format!("event {next}") };
        log.note(format_args!("following node {} from {position}", registry.node));
        self.state().registry = Some(registry.clone());
        self.deliverer.record.save()?;
        self.has_followed = true;
        self.locator.was_missing = false;
        queue.go_on(next);
        Ok(Ended::Finished)
    }

    fn unreadable(&mut self, why: &str) -> anyhow::Result<Ended> {
        if !self.has_followed {
            bail!("cannot read the node: {why}");
        }
        warn_unreadable(self.deliverer.log, why);
        Ok(Ended::Finished)
    }

    /// Delivers what is next, or waits for it.
    fn step(&mut self, queue: &mut Queue) -> anyhow::Result<Ended> {
        queue.read_ahead(self.deliverer.log);
        if self.state().ask == Ask::AtOnce && queue.observer().is_some() {
            return self.ask(queue);
        }
        let Some(item) = queue.front().cloned() else { return self.idle(queue) };
        let ended = self.item(&item, queue)?;
        if ended == Ended::Finished {
            queue.pop();
        }
        Ok(ended)
    }

    fn item(&mut self, item: &Item, queue: &mut Queue) -> anyhow::Result<Ended> {
        let node = self.node();
        let log = self.deliverer.log;
        let tick = &mut || queue.read_ahead(log);
        match item {
            Item::Opened(registry, goes_on) => return self.begin(registry, *goes_on, queue),
            Item::Unreadable(why) => return self.unreadable(why),
            &Item::Gone(generation) => {
                if self.state().node_is_up {
                    return self.died(generation, tick);
                }
            }
            Item::Event(event) => {
                let changes = node_event::of(self.state().node_is_up, event);
                let before = changes.before.iter().map(|&what| Notification::node(&node, what, event));
                let after = changes.after.iter().map(|&what| Notification::node(&node, what, event));
                for notification in before.chain([Notification::event(&node, event)]).chain(after) {
                    let ended = self.deliverer.deliver(&notification, tick)?;
                    if ended != Ended::Finished {
                        return Ok(ended);
                    }
                }
                self.advance(event.seq.saturating_add(1));
                self.state().node_is_up = changes.up;
            }
            &Item::Lost { from, count } => {
                log.warn_rarely("lost", format_args!(
                    "{} lost, from number {from} on: overwritten before they could be read (a larger journal_records \
                     of the node, a larger --queue or a faster command would help)",
                    plural(count, "event")
                ));
                let ended =
                    self.deliverer.deliver(&Notification::lost(&node, from, count, wall_ns()), tick)?;
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
    fn idle(&mut self, queue: &mut Queue) -> anyhow::Result<Ended> {
        if self.locator.has_gone() && !self.state().node_is_up {
            return Ok(Ended::Stopped);
        }
        let mut limit = None;
        if queue.observer().is_some() {
            if self.state().next_seq == 0 {
                // It begins with the oldest event, and there is none.
                self.state().next_seq = queue.next_seq();
            }
            if self.state().ask == Ask::WhenCaughtUp {
                return self.ask(queue);
            }
        } else if !self.has_followed {
            self.locator.is_missing(self.deliverer.log);
        }
        if self.saved_seq != self.state().next_seq {
            match BETWEEN_SAVES.checked_sub(self.saved.elapsed()) {
                Some(left) => limit = Some(left),
                None => {
                    self.deliverer.record.save()?;
                    self.saved = Instant::now();
                    self.saved_seq = self.state().next_seq;
                }
            }
        }
        queue.wait(self.deliverer.stop, limit)?;
        Ok(Ended::Finished)
    }

    fn died(&mut self, generation: Option<u64>, tick: &mut dyn FnMut()) -> anyhow::Result<Ended> {
        let notification = Notification::died(&self.node(), self.state().next_seq, generation, wall_ns());
        let ended = self.deliverer.deliver(&notification, tick)?;
        if ended == Ended::Finished {
            self.state().node_is_up = false;
            self.deliverer.record.save()?;
        }
        Ok(ended)
    }

    /// Asks the kernel whether the node is up, where the journal no longer says it. If it is not, the follower tells.
    fn ask(&mut self, queue: &mut Queue) -> anyhow::Result<Ended> {
        let log = self.deliverer.log;
        let Some(observer) = queue.observer() else { return Ok(Ended::Finished) };
        let snapshot = match observer.snapshot() {
            Ok(snapshot) => snapshot,
            Err(error) => {
                warn_unreadable(log, &error.to_string());
                queue.wait(self.deliverer.stop, Some(BETWEEN_CHECKS))?;
                return Ok(Ended::Finished);
            }
        };
        if !self.state().node_is_up && node_state::serves(&snapshot) {
            let notification = Notification::present(&self.node(), self.state().next_seq, &snapshot);
            let ended = self.deliverer.deliver(&notification, &mut || queue.read_ahead(log))?;
            if ended != Ended::Finished {
                return Ok(ended);
            }
            self.state().node_is_up = true;
        }
        self.state().ask = Ask::Never;
        self.deliverer.record.save()?;
        Ok(Ended::Finished)
    }
}
