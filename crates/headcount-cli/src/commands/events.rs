//! `headcount events`.

use crate::cli::{EventsArgs, Which};
use crate::outcome::Outcome;

pub fn run(_which: &Which, _args: &EventsArgs) -> anyhow::Result<Outcome> {
    anyhow::bail!("not there yet")
}
