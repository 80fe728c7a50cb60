//! `headcount reload`.

use crate::cli::{ReloadArgs, Which};
use crate::outcome::Outcome;

pub fn run(_which: &Which, _args: &ReloadArgs) -> anyhow::Result<Outcome> {
    anyhow::bail!("not there yet")
}
