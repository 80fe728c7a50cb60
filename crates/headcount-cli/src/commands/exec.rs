//! `headcount exec-beside`, which is for this program alone: becomes a command that the kernel kills when its parent ends.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, bail};
use clap::Args;
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use crate::outcome::Outcome;

#[derive(Args)]
pub struct ExecArgs {
    /// The process that it must not outlive
    pub parent: i32,
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

pub fn run(args: &ExecArgs) -> anyhow::Result<Outcome> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .context("cannot ask the kernel to kill the command with its parent")?;
    // It may have ended before that was asked for.
    if getppid().is_none_or(|parent| parent.as_raw_nonzero().get() != args.parent) {
        bail!("the process that started this one has ended");
    }
    let Some((program, arguments)) = args.command.split_first() else { bail!("there is no command") };
    let error = Command::new(program).args(arguments).exec();
    // As a shell has it.
    let code = if error.kind() == ErrorKind::NotFound { 127 } else { 126 };
    crate::say::complain(&crate::escape::escape(&format!(
        "cannot run {}: {error}",
        program.to_string_lossy()
    )));
    Ok(Outcome::Exit(code))
}
