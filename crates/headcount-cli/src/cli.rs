//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::commands::run::{Backoff, IfInterrupted, OnFailure, Rule, StartFrom};

/// See which worker processes of your servers are alive, exactly and at once. Follow them, wait for them, and run
/// commands when they start, stop or die.
#[derive(Parser)]
#[command(name = "headcount", version, propagate_version = true, after_help = EXIT_CODES, after_long_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    pub which: Which,
    /// When to use colours; `auto` means on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: Colour,
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 success; 1 timed out (wait, reload), or problems found (doctor); 2 usage error; \
3 the reload failed (wait, reload); 4 no such node, or it cannot be read.";

const EXAMPLES: &str = "\
Examples:
  headcount status                          every node of this host
  headcount top --node nginx                the same, live
  headcount wait --drained --timeout 5m     until no older generation is left
  headcount reload --pid-file /run/nginx.pid
  headcount events --follow --json | jq .
  headcount run --on generation_started=./register --on generation_ended=./deregister

Exit codes: 0 success; 1 timed out (wait, reload), or problems found (doctor); 2 usage error; \
3 the reload failed (wait, reload); 4 no such node, or it cannot be read.

headcount looks for nodes in /run/headcount, /run/user/*/headcount and /dev/shm/headcount-*. If \
$HEADCOUNT_RUNTIME_DIR is set, it looks only there.";

/// Which node is meant.
#[derive(Args, Clone, Debug, Default)]
pub struct Which {
    /// The node with this name
    #[arg(long, global = true, value_name = "NAME")]
    pub node: Option<String>,
    /// The node with this registry file
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
    /// Show every node: generations, workers, lock holder, recent deaths, and a warning about a crash loop
    Status(StatusArgs),
    /// Show a node live in the terminal, with a timeline of its workers
    Top(TopArgs),
    /// Show what happened: the node's journal, as sentences or JSON lines
    Events(EventsArgs),
    /// Wait until a node is reloaded, drained, stopped, or has a given number of workers; for scripts
    Wait(WaitArgs),
    /// Send SIGHUP to the master, and wait until the new generation serves
    Reload(ReloadArgs),
    /// Find out what is wrong with this host's registries, and how to fix it
    Doctor(DoctorArgs),
    /// Follow a node, and run commands or post to URLs on its events, once for each event
    Run(RunArgs),
    /// Print the completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page
    #[command(hide = true)]
    Man(ManArgs),
}

const STATUS_EXAMPLES: &str = "\
Examples:
  headcount status                          every node of this host
  headcount status --node nginx
  headcount status --json | jq '.nodes[].total'

Exit codes: 0 success; 2 usage error; 4 no such node, or one cannot be read (the others are still shown).";

#[derive(Args)]
#[command(after_help = STATUS_EXAMPLES)]
pub struct StatusArgs {
    /// Print JSON, for programs (described in docs/cli.md)
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct TopArgs {}

const EVENTS_EXAMPLES: &str = "\
Examples:
  headcount events -n 20                    the last twenty
  headcount events --since 10m --kind worker_died
  headcount events --follow --json | jq -r .kind

Exit codes: 0 success; 2 usage error; 4 no such node, or it cannot be read.";

#[derive(Args)]
#[command(after_help = EVENTS_EXAMPLES)]
pub struct EventsArgs {
    /// Print JSON lines, for programs (described in docs/cli.md)
    #[arg(long)]
    pub json: bool,
    /// Keep showing new events, even when the registry is replaced
    #[arg(long, short)]
    pub follow: bool,
    /// Only events since 10m (ago), 2025-01-31T12:00:00Z, or seq:123 (an event's number; 123 alone means the same)
    #[arg(long, value_name = "TIME", value_parser = crate::commands::events::Since::parse)]
    pub since: Option<crate::commands::events::Since>,
    /// Only the last N events
    #[arg(long, short = 'n', value_name = "N")]
    pub lines: Option<usize>,
    /// Only events of this kind; may be repeated
    #[arg(long, value_name = "KIND", value_parser = crate::commands::events::kinds())]
    pub kind: Vec<headcount::Kind>,
}

const WAIT_EXAMPLES: &str = "\
All conditions given must hold at the same time.

Examples:
  headcount wait --reloaded                 the newest generation serves with all its workers
  headcount wait --drained --timeout 5m     the last old worker has left
  headcount wait --reloaded --drained --newer-than 7
  headcount wait --stopped && headcount status

Exit codes: 0 reached; 1 timed out; 2 usage error; 3 the reload failed; 4 no such node, or it cannot be read.";

#[derive(Args)]
#[command(after_help = WAIT_EXAMPLES)]
#[command(group = clap::ArgGroup::new("condition").required(true).multiple(true))]
pub struct WaitArgs {
    /// Until the newest generation serves with all its workers, and its master is alive
    #[arg(long, group = "condition")]
    pub reloaded: bool,
    /// Until no older generation is left
    #[arg(long, group = "condition")]
    pub drained: bool,
    /// Until no process of the node is alive
    #[arg(long, group = "condition", conflicts_with = "reloaded")]
    pub stopped: bool,
    /// Until the newest generation has exactly N workers that serve
    #[arg(long, group = "condition", value_name = "N")]
    pub workers: Option<u32>,
    /// With --reloaded: accept only a generation with a number greater than this
    #[arg(long, value_name = "GENERATION", requires = "reloaded")]
    pub newer_than: Option<u64>,
    /// Give up after this time
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
}

const RELOAD_EXAMPLES: &str = "\
Examples:
  headcount reload                          the only node of this host
  headcount reload --pid-file /run/nginx.pid --timeout 2m
  headcount reload --node nginx --drained

Exit codes: 0 the new generation serves with all its workers; 1 timed out; 2 usage error; 3 the server refused the \
configuration, or could not apply it; 4 no such node or master, or you may not signal it.";

#[derive(Args)]
#[command(after_help = RELOAD_EXAMPLES)]
pub struct ReloadArgs {
    /// The master is the process whose id is in this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// The master is the process with this id
    #[arg(long, value_name = "PID", conflicts_with = "pid_file")]
    pub pid: Option<u32>,
    /// Also wait until no older generation is left
    #[arg(long)]
    pub drained: bool,
    /// Give up after this time
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
}

const DOCTOR_EXAMPLES: &str = "\
Examples:
  headcount doctor                          the kernel, and all registries of this host
  headcount doctor --clean                  also remove registries with no live process
  headcount doctor --json | jq '.checks[] | select(.level == \"finding\")'

Exit codes: 0 no problems; 1 problems found; 2 usage error; 4 something is missing, or you may not read it.";

#[derive(Args)]
#[command(after_help = DOCTOR_EXAMPLES)]
pub struct DoctorArgs {
    /// Remove the registries of nodes that certainly have no live process
    #[arg(long)]
    pub clean: bool,
    /// Print JSON, for programs (described in docs/cli.md)
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(after_long_help = RUN_EXAMPLES)]
pub struct RunArgs {
    /// Run COMMAND with `sh -c`, or post to it if it is a URL, on these events; may be repeated
    ///
    /// EVENT is a kind of event in the journal (worker_died, generation_ended, …), or node_started, node_stopped,
    /// node_died, lost or any. COMMAND gets the event in HEADCOUNT_… variables and as JSON on standard input.
    #[arg(long = "on", value_name = "EVENT[,EVENT…]=COMMAND", required = true, value_parser = Rule::parse)]
    pub on: Vec<Rule>,
    /// The file that records what was delivered [default: one per node and set of rules, in $STATE_DIRECTORY,
    /// /var/lib/headcount for root, or $XDG_STATE_HOME/headcount]
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// Where to begin if there is no state file yet
    #[arg(long, value_name = "WHERE", default_value = "run")]
    pub from: StartFrom,
    /// What to do with a delivery that was in progress when `headcount run` was killed
    #[arg(long, value_name = "WHAT", default_value = "retry")]
    pub if_interrupted: IfInterrupted,
    /// Stop a command, or give up on a post, after this time
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
    /// How many times to retry a failed delivery
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub retries: u32,
    /// The wait before the first retry, and the longest wait; it doubles each time
    #[arg(long, value_name = "TIME..TIME", default_value = "1s..60s", value_parser = Backoff::parse)]
    pub backoff: Backoff,
    /// What to do when the last retry has failed
    #[arg(long, value_name = "WHAT", default_value = "continue")]
    pub on_failure: OnFailure,
    /// How many events to read ahead of the one being delivered
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub queue: u32,
    /// Print problems only
    #[arg(long, short)]
    pub quiet: bool,
}

const RUN_EXAMPLES: &str = "\
Examples:
  headcount run --node nginx --on node_started=/etc/headcount/register --on node_stopped,node_died=/etc/headcount/deregister
  headcount run --on worker_died=https://alerts.example/hook --retries 10 --backoff 500ms..5m
  headcount run --on any='cat; echo' --from oldest --state /tmp/seen.json

Exit codes: 0 ended by SIGTERM or SIGINT; 2 usage error; 4 the state file or the node cannot be read, another \
`headcount run` is using the state file, or a delivery failed for good with --on-failure stop.";

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

#[derive(Args)]
pub struct ManArgs {
    /// Write one page for each command into this folder, instead of printing the main page
    #[arg(long, value_name = "PATH")]
    pub folder: Option<PathBuf>,
}

/// `500ms`, `60s`, `5m`, `2h`, `1d`; a number alone is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!("{text:?} is not a time; allowed are a number and ms, s, m, h or d, such as 500ms, 60s or 5m")
    };
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
