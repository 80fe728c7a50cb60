//! `headcount completions`: the completion script that packages install beside the program.

use std::io::{self, Write};

use clap::Args;

use crate::outcome::Outcome;

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  headcount completions bash > ~/.local/share/bash-completion/completions/headcount
  headcount completions zsh > ~/.zfunc/_headcount
  headcount completions fish > ~/.config/fish/completions/headcount.fish

Exit codes: 0 success; 2 usage error; 4 the output cannot be written.";

#[derive(Args)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

pub fn run(args: &CompletionsArgs, mut program: clap::Command) -> anyhow::Result<Outcome> {
    // Into memory first: clap_complete panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, "headcount", &mut script);
    io::stdout().write_all(&script)?;
    Ok(Outcome::Done)
}
