//! `headcount run`: follows a node from outside, and runs commands or posts to URLs on its events.
//!
//! docs/cli/run.md says what it promises; `hooks.rs` is how. What is here is what only this command does.

mod args;
pub mod duty;
mod kill_stalled;
mod leader;

pub use args::RunArgs;

use anyhow::bail;

use crate::args::NodeSelector;
use crate::hooks::follow::Follower;
use crate::hooks::locator::Locator;
use crate::hooks::log::Log;
use crate::hooks::stop::Stop;
use crate::hooks::{rules, state};
use crate::outcome::{Outcome, UsageError};

pub fn run(selector: &NodeSelector, args: &RunArgs) -> anyhow::Result<Outcome> {
    let settings = &args.settings;
    if let Some(twice) = rules::given_twice(&settings.on) {
        bail!(UsageError(format!("--on {twice} is given twice")));
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
    let path = match &settings.state {
        Some(path) => path.clone(),
        // Its name needs the node's.
        None => match locator.wait(&stop, &log)? {
            Some(registry) => state::default_path(&registry, &settings.on)?,
            None => return Ok(Outcome::Done),
        },
    };
    let follower = Follower::open(settings, locator, &path, &stop, &log)?;
    if let Some(limit) = args.kill_stalled_after {
        kill_stalled::start(selector, limit, args.quiet)?;
    }
    follower.run()
}
