//! `headcount completions` and `headcount man`: what packages install beside the program.

use std::io::{self, Write};

use crate::cli::{CompletionsArgs, ManArgs, command};
use crate::outcome::Outcome;

pub fn completions(args: &CompletionsArgs) -> anyhow::Result<Outcome> {
    // Into memory first: clap_complete panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "headcount", &mut script);
    io::stdout().write_all(&script)?;
    Ok(Outcome::Done)
}

pub fn man(_args: &ManArgs) -> anyhow::Result<Outcome> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command()).render(&mut page)?;
    io::stdout().write_all(&page)?;
    Ok(Outcome::Done)
}
