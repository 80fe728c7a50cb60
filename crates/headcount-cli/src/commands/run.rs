//! `headcount run`: follows a node from outside, and runs commands or posts to URLs on its events.
//!
//! docs/cli/run.md says what it promises. In short: the state file records which event is next and what is in progress. It is
//! written before and after each attempt, so a restart knows what was delivered, and that at most one more delivery may have
//! been.

mod args;
mod attempt;
pub mod backoff;
mod command;
mod deliver;
pub mod duty;
mod follow;
mod kill_stalled;
mod leader;
mod locator;
mod lock;
pub mod log;
mod node_event;
mod node_state;
mod notification;
mod queue;
mod rules;
mod start_position;
mod state;
pub mod stop;
mod webhook;

pub use args::RunArgs;

use anyhow::bail;

use crate::args::NodeSelector;
use crate::outcome::{Outcome, UsageError};

use deliver::Deliverer;
use follow::Follower;
use locator::Locator;
use log::Log;
use stop::Stop;

pub fn run(selector: &NodeSelector, args: &RunArgs) -> anyhow::Result<Outcome> {
    if let Some(twice) = rules::given_twice(&args.on) {
        bail!(UsageError(format!("--on {twice} is given twice")));
    }
    if args.timeout.is_zero() {
        bail!(UsageError("--timeout must be at least 1ms".to_owned()));
    }
    if args.kill_stalled_after.is_some_and(|time| time.is_zero()) {
        bail!(UsageError("--kill-stalled-after must be at least 1ms".to_owned()));
    }
    // `--as-leader` conflicts with `--on`, and clap asks for nothing that conflicts.
    if args.as_leader.is_none() && (!args.command.is_empty() || args.grace.is_some()) {
        bail!(UsageError("-- COMMAND and --grace are for --as-leader ROLE".to_owned()));
    }
    let log = Log::new(args.quiet);
    let stop = Stop::watch()?;
    let mut locator = Locator::new(selector)?;
    if let Some(role) = &args.as_leader {
        return leader::run(role, args, &mut locator, &stop, &log);
    }
    let path = match &args.state {
        Some(path) => path.clone(),
        // Its name needs the node's.
        None => match locator.wait(&stop, &log)? {
            Some(registry) => state::default_path(&registry, &args.on)?,
            None => return Ok(Outcome::Done),
        },
    };
    let lock = lock::Lock::take(&path)?;
    let state = state::StateFile::open(&path)?;
    if let Some(limit) = args.kill_stalled_after {
        kill_stalled::start(selector, limit, args.quiet)?;
    }
    let outcome = Follower::new(args, locator, Deliverer::new(args, state, &stop, &log)).run();
    drop(lock);
    outcome
}
