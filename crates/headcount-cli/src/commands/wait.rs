//! `headcount wait`.

use crate::cli::{WaitArgs, Which};
use crate::outcome::Outcome;

pub fn run(_which: &Which, _args: &WaitArgs) -> anyhow::Result<Outcome> {
    anyhow::bail!("not there yet")
}
