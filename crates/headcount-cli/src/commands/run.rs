//! `headcount run`.

use crate::cli::{RunArgs, Which};
use crate::outcome::Outcome;

pub fn run(_which: &Which, _args: &RunArgs) -> anyhow::Result<Outcome> {
    anyhow::bail!("not there yet")
}
