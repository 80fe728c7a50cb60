//! `headcount top`.

use crate::cli::{TopArgs, Which};
use crate::outcome::Outcome;

pub fn run(_which: &Which, _args: &TopArgs) -> anyhow::Result<Outcome> {
    anyhow::bail!("not there yet")
}
