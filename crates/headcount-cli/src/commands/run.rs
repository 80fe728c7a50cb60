//! `headcount run`: follows a node from outside, and runs commands or posts to URLs on its events.
//!
//! What it promises is in docs/cli/run.md. In short: the state file says which event is next and what is under way, and
//! is written before and after each attempt; so a restart knows what was delivered, and of one delivery at most that it
//! may have been.

mod args;
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

pub use args::RunArgs;

use anyhow::bail;

use crate::args::Which;
use crate::outcome::{Outcome, UsageError};

use deliver::Deliverer;
use follow::Follower;
use log::Log;
use place::Place;
use stop::Stop;

pub fn run(which: &Which, args: &RunArgs) -> anyhow::Result<Outcome> {
    if let Some(twice) = rules::given_twice(&args.on) {
        bail!(UsageError(format!("the rule --on {twice} is given twice")));
    }
    if args.timeout.is_zero() {
        bail!(UsageError("--timeout 0 leaves a command no time: give 1ms or more".to_owned()));
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
