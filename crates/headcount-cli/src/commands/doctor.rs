//! `headcount doctor`.

use crate::cli::{DoctorArgs, Which};
use crate::outcome::Outcome;

pub fn run(_which: &Which, _args: &DoctorArgs) -> anyhow::Result<Outcome> {
    anyhow::bail!("not there yet")
}
