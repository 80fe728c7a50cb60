//! `headcount run`: follows a node from outside, and runs commands or posts to URLs on its events.
//!
//! What it promises is in docs/cli/run.md. In short: the state file says which event is next and what is under way, and
//! is written before and after each attempt; so a restart knows what was delivered, and of one delivery at most that it
//! may have been.

mod backoff;
mod begin;
mod command;
mod deliver;
mod follow;
mod journal;
mod life;
mod lock;
mod log;
mod notice;
mod place;
mod post;
mod pulse;
mod rules;
mod state;
mod stop;

pub use backoff::Backoff;
pub use rules::Rule;

use clap::ValueEnum;
use clap::error::ErrorKind;

use crate::cli::{RunArgs, Which, command};
use crate::outcome::Outcome;

use deliver::Deliverer;
use follow::Follower;
use log::Log;
use place::Place;
use stop::Stop;

/// Where to begin without a state file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StartFrom {
    /// With the start of the run that is there
    Run,
    /// With what happens from now on
    Now,
    /// With the oldest event that is kept
    Oldest,
}

/// What becomes of a delivery whose end nobody saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IfInterrupted {
    /// Deliver again, marked as a retry
    Retry,
    /// Go on with the next
    Skip,
}

/// What to do when a delivery failed for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnFailure {
    /// Log it and go on with the next
    Continue,
    /// End with code 4; the next start tries it again
    Stop,
}

pub fn run(which: &Which, args: &RunArgs) -> anyhow::Result<Outcome> {
    if let Some(twice) = rules::given_twice(&args.on) {
        command().error(ErrorKind::ValueValidation, format!("the rule --on {twice} is given twice")).exit();
    }
    if args.timeout.is_zero() {
        command()
            .error(ErrorKind::ValueValidation, "--timeout 0 leaves a command no time: give 1ms or more")
            .exit();
    }
    let log = Log::new(args.quiet);
    let stop = Stop::watch()?;
    let mut place = Place::new(which)?;
    let path = match &args.state {
        Some(path) => path.clone(),
        // Its name needs the node's.
        None => match place.wait(&stop, &log)? {
            Some(registry) => state::default_path(&registry, &args.on)?,
            None => return Ok(Outcome::Done),
        },
    };
    let lock = lock::Lock::take(&path)?;
    let state = state::StateFile::open(&path)?;
    let outcome = Follower::new(args, place, Deliverer::new(args, state, &stop, &log)).run();
    drop(lock);
    outcome
}
