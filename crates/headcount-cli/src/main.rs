//! The program `headcount`: see a server's workers, follow them, wait for them.
//!
//! Each command lives in a module of its own, gives back how it ended, and prints nothing but its answer; this file
//! only sorts them out.

#![forbid(unsafe_code)]

mod alive;
mod args;
mod child;
mod cli;
mod clock;
mod commands;
mod escape;
mod find;
mod hooks;
mod outcome;
mod paint;
mod poll;
mod process;
mod say;
mod table;

use std::io;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use cli::{Cli, Command};
use outcome::{Outcome, UsageError};

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.color.write_global();
    match run(&cli) {
        Ok(outcome) => outcome.into(),
        // Whoever read our output has had enough of it.
        Err(error) if is_broken_pipe(&error) => Outcome::Done.into(),
        Err(error) => {
            if let Some(UsageError(text)) = error.downcast_ref() {
                cli::command().error(ErrorKind::ValueValidation, text).exit();
            }
            say::complain(&escape::escape(&format!("{error:#}")));
            Outcome::Failed.into()
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<Outcome> {
    let selector = &cli.selector;
    match &cli.command {
        Command::Status(args) => commands::status::run(selector, args),
        Command::Top(args) => commands::top::run(selector, args),
        Command::Events(args) => commands::events::run(selector, args),
        Command::Wait(args) => commands::wait::run(selector, args),
        Command::Reload(args) => commands::reload::run(selector, args),
        Command::Doctor(args) => commands::doctor::run(selector, args),
        Command::Run(args) => commands::run::run(selector, args),
        Command::Lock(args) => commands::lock::run(selector, args),
        Command::Exec(args) => commands::exec::run(args),
        Command::Agent(args) => commands::agent::run(selector, args),
        Command::Cluster(args) => commands::cluster::run(selector, args),
        Command::Completions(args) => commands::completions::run(args, cli::command()),
        Command::Man(args) => commands::man::run(args, cli::command()),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    io.into_iter().any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
