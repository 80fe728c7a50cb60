//! `headcount wait`: until the node is as it is wanted, for scripts. `docs/cli/wait.md` is the reference.

pub mod condition;
pub mod node_watch;
pub mod processes;
pub mod progress;
pub mod unmet;

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use clap::Args;
use headcount::{Event, GenerationId, Kind, Phase, Snapshot, State};
use headcount_report::Newest;

use crate::args::{NodeSelector, duration};
use crate::clock::Deadline;
use crate::outcome::Outcome;
use crate::say::complain;
use condition::Wanted;
use node_watch::NodeWatch;
use progress::Progress;

const WAIT_EXAMPLES: &str = "\
All conditions given must hold at the same time.

Examples:
  headcount wait --reloaded                 the newest generation serves with all its workers
  headcount wait --drained --timeout 5m     the last old worker has left
  headcount wait --reloaded --drained --newer-than 7
  headcount wait --stopped && headcount status

Exit codes: 0 reached; 1 timed out; 2 usage error; 3 the reload failed; 4 no such node, or it cannot be read.";

#[derive(Args)]
#[command(after_help = WAIT_EXAMPLES)]
#[command(group = clap::ArgGroup::new("condition").required(true).multiple(true))]
pub struct WaitArgs {
    /// Until the newest generation serves with all its workers, and its master is alive
    #[arg(long, group = "condition")]
    pub reloaded: bool,
    /// Until no older generation is left
    #[arg(long, group = "condition")]
    pub drained: bool,
    /// Until no process of the node is alive
    #[arg(long, group = "condition", conflicts_with = "reloaded")]
    pub stopped: bool,
    /// Until the newest generation has exactly N workers that serve
    #[arg(long, group = "condition", value_name = "N")]
    pub workers: Option<u32>,
    /// With --reloaded: accept only a generation with a number greater than this
    #[arg(long, value_name = "GENERATION", requires = "reloaded")]
    pub newer_than: Option<u64>,
    /// Give up after this time
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
}

/// How often the registry is read while something is in progress whose end no event tells: a worker's start, or what a
/// master does with its new generation. Soon enough for a script, and a few file reads.
pub const CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// The same otherwise: then a change wakes us.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

pub fn run(selector: &NodeSelector, args: &WaitArgs) -> anyhow::Result<Outcome> {
    let deadline = Deadline::after(args.timeout);
    let wanted = Wanted {
        reloaded: args.reloaded,
        drained: args.drained,
        stopped: args.stopped,
        workers: args.workers,
        newer_than: args.newer_than,
    };
    let Some(mut node) = NodeWatch::find(selector, wanted.newer_than.is_some())? else {
        if wanted.stopped && wanted.unmet(None, "").is_empty() {
            return reached(&wanted.reached(None, "on this host"));
        }
        anyhow::bail!("{}", crate::find::no_such_node(selector));
    };
    let mut progress = Progress::new(deadline);
    let tick = progress.tick();
    let ended = until(&mut node, &wanted, deadline, tick, &mut |what| progress.show(what))?;
    progress.end();
    ended.say()
}

/// How waiting ended, in words.
pub enum Ended {
    /// As wanted, and which generation is the newest, if there is one.
    Reached(String, Option<GenerationId>),
    /// Time is up.
    NotReached(String),
    /// The server refused its configuration, or could not apply it, or has ended.
    ReloadFailed(String),
}

impl Ended {
    /// Says it, as a command does.
    pub fn say(self) -> anyhow::Result<Outcome> {
        match self {
            Ended::Reached(what, _) => reached(&what),
            Ended::NotReached(why) => Ok(not_reached(&why)),
            Ended::ReloadFailed(why) => Ok(reload_failed(&why)),
        }
    }
}

/// Tells what is waited for.
pub type Show<'a> = dyn FnMut(&str) + 'a;

/// Waits until the node is as it is wanted. `tick`: what is waited for is shown at least so often.
pub fn until(
    node: &mut NodeWatch,
    wanted: &Wanted,
    deadline: Deadline,
    tick: Option<Duration>,
    show: &mut Show<'_>,
) -> anyhow::Result<Ended> {
    let mut abandoned = Abandoned::default();
    loop {
        let snapshot = node.snapshot()?;
        if let Some(snapshot) = &snapshot {
            if abandoned.baseline.is_none() {
                abandoned.begin(wanted, snapshot);
                // With --newer-than, what was abandoned before we started counts as well.
                if wanted.newer_than.is_none() {
                    node.skip_to(snapshot);
                }
            }
            abandoned.read(&node.events()?, snapshot);
            if let Some(generation) = abandoned.verdict(snapshot).filter(|_| wanted.needs_a_generation()) {
                return Ok(Ended::ReloadFailed(was_abandoned(generation)));
            }
        }
        let unmet = wanted.unmet(snapshot.as_ref(), &node.name());
        if unmet.is_empty() {
            let newest = snapshot.as_ref().and_then(Newest::of).map(|newest| newest.generation.id);
            return Ok(Ended::Reached(wanted.reached(snapshot.as_ref(), &node.name()), newest));
        }
        if deadline.is_over() {
            return Ok(Ended::NotReached(unmet::not_reached(deadline.timeout(), &unmet)));
        }
        show(&unmet::line(&unmet));
        let is_in_progress = snapshot.as_ref().is_some_and(is_in_progress);
        let limit = if is_in_progress { CHECK_INTERVAL } else { tick.unwrap_or(IDLE_INTERVAL) };
        node.wait(limit.min(deadline.left()))?;
    }
}

/// Whether something is in progress whose end no event tells.
fn is_in_progress(snapshot: &Snapshot) -> bool {
    let announced = snapshot.generations.iter().any(|g| g.phase == Phase::Announced);
    announced || snapshot.processes.iter().any(|p| p.state == State::Starting)
}

/// Generations that were abandoned, and which of them matter.
#[derive(Default)]
struct Abandoned {
    /// Those up to this one do not matter.
    baseline: Option<GenerationId>,
    found: BTreeSet<GenerationId>,
}

impl Abandoned {
    fn begin(&mut self, wanted: &Wanted, snapshot: &Snapshot) {
        let serving = || snapshot.newest_committed().map_or(0, |g| g.id);
        self.baseline = Some(wanted.newer_than.unwrap_or_else(serving));
    }

    fn read(&mut self, events: &[Event], snapshot: &Snapshot) {
        self.found.extend(abandoned(events, snapshot));
        forget_the_oldest(&mut self.found);
    }

    /// The one that failed, unless a newer one has begun.
    fn verdict(&self, snapshot: &Snapshot) -> Option<GenerationId> {
        let newest = Newest::of(snapshot).map_or(0, |newest| newest.generation.id);
        let last = *self.found.last()?;
        (last > self.baseline.unwrap_or(0) && last > newest).then_some(last)
    }
}

/// So that a registry which tells of ever more cannot fill our memory.
pub fn forget_the_oldest(generations: &mut BTreeSet<GenerationId>) {
    const KEPT: usize = 4096;
    while generations.len() > KEPT {
        generations.pop_first();
    }
}

/// Generations that were abandoned, whether or not that was reported yet.
pub fn abandoned(events: &[Event], snapshot: &Snapshot) -> impl Iterator<Item = GenerationId> {
    let reported = events.iter().filter(|e| e.kind == Kind::GenerationAbandoned).map(|e| e.generation);
    let not_yet = snapshot.generations.iter().filter(|g| g.phase == Phase::Abandoned).map(|g| g.id);
    reported.chain(not_yet)
}

/// Why a generation that was announced has no worker.
pub fn was_abandoned(generation: GenerationId) -> String {
    format!(
        "generation {generation} was abandoned: its configuration was read but could not be applied. The \
         server's error log says why; the older generation still serves"
    )
}

pub fn reached(what: &str) -> anyhow::Result<Outcome> {
    writeln!(anstream::stdout().lock(), "{what}")?;
    Ok(Outcome::Done)
}

pub fn not_reached(reason: &str) -> Outcome {
    complain(reason);
    Outcome::NotReached
}

pub fn reload_failed(reason: &str) -> Outcome {
    complain(reason);
    Outcome::ReloadFailed
}
