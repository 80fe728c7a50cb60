//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// See, exactly and at once, which worker processes of your servers are alive; follow them, wait for them, run
/// something when they come and go.
#[derive(Parser)]
#[command(name = "headcount", version, propagate_version = true, after_help = EXIT_CODES, after_long_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    pub which: Which,
    /// When to use colours (never where NO_COLOR is set)
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: Colour,
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 as asked; 1 not reached in time (wait, reload), or something is to be mended (doctor); 2 wrong use; \
3 the reload failed (wait, reload); 4 no such node, or it cannot be read.";

const EXAMPLES: &str = "\
Examples:
  headcount status                          every node of this host
  headcount top --node nginx                the same, live
  headcount wait --drained --timeout 5m     until no older generation is left
  headcount reload --pid-file /run/nginx.pid
  headcount events --follow --json | jq .
  headcount run --on generation_started=./register --on generation_ended=./deregister

Exit codes: 0 as asked; 1 not reached in time (wait, reload), or something is to be mended (doctor); 2 wrong use; \
3 the reload failed (wait, reload); 4 no such node, or it cannot be read.

Nodes are looked for in /run/headcount, /run/user/*/headcount and /dev/shm/headcount-*, or only in \
$HEADCOUNT_RUNTIME_DIR where that is set.";

/// Which node is meant.
#[derive(Args, Clone, Debug, Default)]
pub struct Which {
    /// The node of this name
    #[arg(long, global = true, value_name = "NAME")]
    pub node: Option<String>,
    /// The node of this registry file
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "node")]
    pub registry: Option<PathBuf>,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Colour {
    Auto,
    Always,
    Never,
}

impl Colour {
    /// Has everything that is printed follow it.
    pub fn write_global(self) {
        match self {
            Colour::Auto => anstream::ColorChoice::Auto,
            Colour::Always => anstream::ColorChoice::Always,
            Colour::Never => anstream::ColorChoice::Never,
        }
        .write_global();
    }
}

#[derive(Subcommand)]
pub enum Command {
    /// Show every node: generations, workers, who holds the lock, deaths, and warn of a crash loop
    Status(StatusArgs),
    /// The same, live, in the terminal, with a time line of the workers
    Top(TopArgs),
    /// What happened: the node's journal, as sentences or JSON lines
    Events(EventsArgs),
    /// Wait until the node is reloaded, drained, stopped, or has so many workers; for scripts
    Wait(WaitArgs),
    /// Send HUP to the master, and wait until the generation that it made serves
    Reload(ReloadArgs),
    /// Look for what is wrong with this host's registries, and say how to mend it
    Doctor(DoctorArgs),
    /// Follow the node, and run commands or post to a URL on events, each event once
    Run(RunArgs),
    /// Print the completions for a shell
    Completions(CompletionsArgs),
    /// Print the manual page
    #[command(hide = true)]
    Man(ManArgs),
}

#[derive(Args)]
pub struct StatusArgs {
    /// As JSON, for programs (docs/cli.md describes it)
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct TopArgs {}

#[derive(Args)]
pub struct EventsArgs {
    /// As JSON lines, for programs (docs/cli.md describes them)
    #[arg(long)]
    pub json: bool,
    /// Go on with what happens from now on
    #[arg(long, short)]
    pub follow: bool,
}

#[derive(Args)]
pub struct WaitArgs {
    /// Give up after this time
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
}

#[derive(Args)]
pub struct ReloadArgs {
    /// Give up after this time
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
}

#[derive(Args)]
pub struct DoctorArgs {
    /// Remove registries of nodes that are gone
    #[arg(long)]
    pub clean: bool,
}

#[derive(Args)]
pub struct RunArgs {}

#[derive(Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

#[derive(Args)]
pub struct ManArgs {}

/// `500ms`, `60s`, `5m`, `2h`, `1d`; a number alone is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time; allowed are a number and ms, s, m, h or d: 500ms, 60s, 5m");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = |factor: u64| number.checked_mul(factor).map(Duration::from_secs).ok_or_else(wrong);
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "" | "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3_600),
        "d" => seconds(86_400),
        _ => Err(wrong()),
    }
}

/// The command line as data, for completions and the manual.
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn times() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(
            (duration("7"), duration("2m")),
            (Ok(Duration::from_secs(7)), Ok(Duration::from_secs(120)))
        );
        for wrong in ["", "s", "-1s", "1.5s", "3 s", "4w", "99999999999999999999s"] {
            assert!(duration(wrong).is_err_and(|e| e.contains("allowed")), "{wrong}");
        }
    }
}
