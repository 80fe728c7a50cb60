//! Carries out a reload: sends the signal, and waits for the generation that answers it. The command and the agent both use it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use headcount::{Cause, Event, GenerationId, GenerationStatus, Kind, Snapshot};
use headcount_report::{Newest, age};

use super::answer::{Begun, Facts, Taken, Verdict};
use super::error_log::ErrorLog;
use super::master::Master;
use crate::clock::{self, Deadline};
use crate::commands::wait::node_watch::NodeWatch;
use crate::commands::wait::{
    CHECK_INTERVAL, Ended, Show, abandoned, forget_the_oldest, unmet, was_abandoned,
};

/// How often the master is asked whether it has taken the signal.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Who holds the node lock for longer than this may keep a generation from being announced.
const LONG_HELD: Duration = Duration::from_millis(500);

/// More generations than any master begins while a reload is waited for.
const MOST_BEGUN: usize = 256;

const NGINX_T: &str = "The server's error log says why; `nginx -t` usually does, too";

/// A master, and how it is to be reloaded.
pub struct Reload {
    /// Of its node.
    pub registry: PathBuf,
    pub master: Master,
    /// Also wait until no older generation is left.
    pub drained: bool,
    pub deadline: Deadline,
}

impl Reload {
    /// Sends one signal, or says why not, and waits.
    pub fn perform(self, show: &mut Show<'_>) -> anyhow::Result<Ended> {
        let Reload { registry, master, drained, deadline } = self;
        let time = age(deadline.timeout());
        // An earlier reload that is still in progress must not be mistaken for ours.
        while master.is_nginx && !master.is_at_rest() {
            if !master.is_alive() {
                bail!("master {} has ended and was not signalled", master.pid);
            }
            if deadline.is_over() {
                let why = format!("master {} was busy for {time} and was not signalled", master.pid);
                return Ok(Ended::NotReached(why));
            }
            show(&format!("master {} is busy", master.pid));
            std::thread::sleep(POLL_INTERVAL);
        }
        let mut node = NodeWatch::at(registry.clone());
        let before = node.snapshot()?.with_context(|| format!("{} is gone", registry.display()))?;
        node.skip_to(&before);
        let log = master.is_nginx.then(|| ErrorLog::of(master.pid)).flatten();
        let sent_ns = clock::boot_ns();
        if deadline.is_over() {
            let why = format!("time was up after {time} and master {} was not signalled", master.pid);
            return Ok(Ended::NotReached(why));
        }
        master.hang_up()?;
        let Some(taken) = wait_till_taken(&master, sent_ns, deadline, show)? else {
            let why = format!("master {} did not take the signal within {time}", master.pid);
            return Ok(match master.is_alive() {
                true => Ended::NotReached(why),
                false => Ended::ReloadFailed(ended(&master)),
            });
        };
        let mut sent = Sent {
            drained,
            log,
            master,
            taken,
            before,
            begun: Vec::new(),
            abandoned: BTreeSet::new(),
            rest: None,
        };
        sent.wait(&mut node, deadline, show)
    }
}

/// Watches until the signal is no longer pending. `None`: the master ended, or time is up.
fn wait_till_taken(
    master: &Master,
    sent_ns: u64,
    deadline: Deadline,
    show: &mut Show<'_>,
) -> anyhow::Result<Option<Taken>> {
    let mut not_before_ns = sent_ns;
    loop {
        let asked_ns = clock::boot_ns();
        let pending = master.hup().is_some_and(|hup| hup.pending);
        if !master.is_alive() {
            return Ok(None);
        }
        if !pending {
            return Ok(Some(Taken { not_before_ns, not_after_ns: clock::boot_ns() }));
        }
        not_before_ns = asked_ns;
        if deadline.is_over() {
            return Ok(None);
        }
        show(&format!("master {} has not taken the signal yet", master.pid));
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The signal was sent.
struct Sent {
    drained: bool,
    log: Option<ErrorLog>,
    master: Master,
    taken: Taken,
    before: Snapshot,
    begun: Vec<Begun>,
    abandoned: BTreeSet<GenerationId>,
    /// Since when the master has been at rest.
    rest: Option<u64>,
}

impl Sent {
    fn wait(
        &mut self,
        node: &mut NodeWatch,
        deadline: Deadline,
        show: &mut Show<'_>,
    ) -> anyhow::Result<Ended> {
        loop {
            // Whoever rests now has done all that it will do, so what it did is in the registry, which is read next.
            let at_rest = self.master.is_at_rest();
            let alive = self.master.is_alive();
            let snapshot = node.snapshot()?.context("the registry is gone")?;
            self.read(&node.events()?, &snapshot);
            let lock_is_free = snapshot.holder.as_ref().is_none_or(|holder| holder.held_for < LONG_HELD);
            let since = self.rest.unwrap_or(snapshot.boot_ns);
            self.rest = (at_rest && lock_is_free).then_some(since);
            let facts = Facts {
                taken: self.taken,
                begun: &self.begun,
                abandoned: &self.abandoned,
                snapshot: &snapshot,
                master: self.master.pid,
                is_nginx: self.master.is_nginx,
                rests_for: self
                    .rest
                    .map(|since| Duration::from_nanos(snapshot.boot_ns.saturating_sub(since))),
                drained: self.drained,
            };
            match facts.verdict() {
                Verdict::Serves(_) => {
                    let what = facts.wanted().reached(Some(&snapshot), "");
                    let newest = Newest::of(&snapshot).map(|newest| newest.generation.id);
                    return Ok(Ended::Reached(
                        format!("{what}; it took {}", age(deadline.elapsed())),
                        newest,
                    ));
                }
                Verdict::Abandoned(generation) => return Ok(self.failed(&was_abandoned(generation))),
                Verdict::Refused => return Ok(self.failed(&refused(&self.master))),
                Verdict::Uncounted => return Ok(self.failed(&uncounted(&self.master))),
                Verdict::Wait if !alive => return Ok(self.failed(&ended(&self.master))),
                Verdict::Wait => {}
            }
            if deadline.is_over() {
                return Ok(Ended::NotReached(unmet::not_reached(deadline.timeout(), &facts.unmet())));
            }
            show(&unmet::line(&facts.unmet()));
            // What the master does is looked at, and what its workers do wakes us.
            node.wait(CHECK_INTERVAL)?;
        }
    }

    /// With what the server itself says of it, where that can be read.
    fn failed(&self, why: &str) -> Ended {
        let log = self.log.as_ref().and_then(ErrorLog::complaint);
        Ended::ReloadFailed(log.map_or(why.to_owned(), |line| format!("{why}. Its error log: {line}")))
    }

    /// A generation is in the registry's table while it is there, and in the journal for longer.
    fn read(&mut self, events: &[Event], snapshot: &Snapshot) {
        let old = self.before.generations.iter().map(|g| g.id).max().unwrap_or(0);
        // `resume`: the master could not announce it, and its first worker did.
        let ours = |cause: Cause, master: u32| {
            matches!(cause, Cause::Reload | Cause::Resume) && master == self.master.pid
        };
        // The table first: it says when the generation was begun, and the journal only when that was reported.
        let there = snapshot.generations.iter().filter(|g| ours(g.cause, g.master));
        let there = there.map(|g| (g.id, begun_ns(snapshot, g)));
        let started = events.iter().filter(|e| e.kind == Kind::GenerationStarted && ours(e.cause, e.pid));
        let found: Vec<_> = there.chain(started.map(|e| (e.generation, e.boot_ns))).collect();
        for (id, begun_ns) in found {
            let is_known = self.begun.iter().any(|b| b.id == id);
            if id > old && !is_known && self.begun.len() < MOST_BEGUN {
                self.begun.push(Begun { id, begun_ns });
            }
        }
        self.abandoned.extend(abandoned(events, snapshot));
        forget_the_oldest(&mut self.abandoned);
    }
}

/// When a generation was begun, on the clock that events carry.
fn begun_ns(snapshot: &Snapshot, generation: &GenerationStatus) -> u64 {
    snapshot.boot_ns.saturating_sub(clock::nanoseconds(generation.age))
}

fn refused(master: &Master) -> String {
    format!(
        "master {} took the signal and went back to sleep without beginning a generation: it refused the \
         configuration and still serves with the old one. {NGINX_T}",
        master.pid
    )
}

fn uncounted(master: &Master) -> String {
    format!(
        "master {} took the signal and its old workers are leaving, but it has begun no generation. Is headcount no \
         longer in its configuration, or could it not use its registry? See the server's error log",
        master.pid
    )
}

fn ended(master: &Master) -> String {
    format!("master {} ended during the reload; the server's error log may say why", master.pid)
}
