//! `headcount status`.

use crate::cli::{StatusArgs, Which};
use crate::outcome::Outcome;

pub fn run(_which: &Which, _args: &StatusArgs) -> anyhow::Result<Outcome> {
    anyhow::bail!("not there yet")
}
