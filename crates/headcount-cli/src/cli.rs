//! The command line: what the commands share, and the commands, each with its own arguments.

use clap::{Parser, Subcommand, ValueEnum};

use crate::args::NodeSelector;
use crate::commands::agent::AgentArgs;
use crate::commands::cluster::ClusterArgs;
use crate::commands::completions::CompletionsArgs;
use crate::commands::doctor::DoctorArgs;
use crate::commands::events::EventsArgs;
use crate::commands::exec::ExecArgs;
use crate::commands::lock::LockArgs;
use crate::commands::man::ManArgs;
use crate::commands::reload::ReloadArgs;
use crate::commands::run::RunArgs;
use crate::commands::status::StatusArgs;
use crate::commands::top::TopArgs;
use crate::commands::wait::WaitArgs;

/// See which worker processes of your servers are alive, exactly and at once. Follow them, wait for them, and run
/// commands when they start, stop or die.
#[derive(Parser)]
#[command(name = "headcount", version, propagate_version = true, after_help = EXIT_CODES, after_long_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    pub selector: NodeSelector,
    /// When to use colours; `auto` means on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: Colour,
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 success; 1 timed out (wait, reload, lock), or problems found (doctor); 2 usage error; \
3 the reload failed (wait, reload); 4 no such node, or it cannot be read. `lock` ends with the code of its command.";

const EXAMPLES: &str = "\
Examples:
  headcount status                          every node of this host
  headcount top --node nginx                the same, live
  headcount wait --drained --timeout 5m     until no older generation is left
  headcount reload --pid-file /run/nginx.pid
  headcount events --follow --json | jq .
  headcount run --on generation_started=./register --on generation_ended=./deregister
  headcount run --as-leader cron -- ./scheduler
  headcount lock backup -- ./backup          as flock(1), and the next one is told if it is killed

Exit codes: 0 success; 1 timed out (wait, reload, lock), or problems found (doctor); 2 usage error; \
3 the reload failed (wait, reload); 4 no such node, or it cannot be read. `lock` ends with the code of its command.

headcount looks for nodes in /run/headcount, /run/user/*/headcount and /dev/shm/headcount-*. If \
$HEADCOUNT_RUNTIME_DIR is set, it looks only there.";

/// When to use colours.
#[derive(Clone, Copy, Debug, ValueEnum)]
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
    /// Run a command while no other process of the node has the lock of this name
    Lock(LockArgs),
    /// Serve metrics and a page of all nodes of this host, and tell the cluster of them
    Agent(AgentArgs),
    /// See, follow and wait for the nodes of many hosts, whose agents share an etcd
    Cluster(ClusterArgs),
    /// Print the completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page
    #[command(hide = true)]
    Man(ManArgs),
    /// Become a command that the kernel kills when its parent ends
    #[command(hide = true, name = "exec-beside")]
    Exec(ExecArgs),
}

/// The command line as data, for completions and the manual.
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::man::{documented, pages};

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn there_is_a_page_for_each_command_that_help_lists() {
        let names: Vec<_> = pages(command()).expect("pages").into_iter().map(|page| page.name).collect();
        for expected in ["headcount", "headcount-status", "headcount-doctor", "headcount-completions"] {
            assert!(names.iter().any(|name| name == expected), "{expected}: {names:?}");
        }
        assert!(!names.iter().any(|name| name == "headcount-man"), "{names:?}");
    }

    #[test]
    fn a_page_tells_the_exit_codes_and_the_examples() {
        let program = pages(command()).expect("pages").swap_remove(0);
        let text = String::from_utf8(program.text).expect("text");
        for part in
            [".SH \"EXIT STATUS\"", ".SH EXAMPLES", "headcount reload \\-\\-pid\\-file", ".SH ENVIRONMENT"]
        {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        for (command, page) in documented(command()).into_iter().zip(pages(command()).expect("pages")) {
            let help = command.get_after_long_help().or(command.get_after_help()).map(ToString::to_string);
            let (name, text) = (page.name, String::from_utf8(page.text).expect("text"));
            let sections: Vec<_> = text.lines().filter(|line| line.starts_with(".SH")).collect();
            assert!(sections.len() >= 6 && text.contains(".TH "), "{sections:?}");
            // Each code that the help names has its entry.
            let named = help.as_deref().and_then(|help| help.split("Exit codes: ").nth(1));
            let named = named.map_or(0, |codes| codes.split("\n\n").next().unwrap_or("").split("; ").count());
            let status = text.split(".SH \"EXIT STATUS\"").nth(1).and_then(|rest| rest.split(".SH").next());
            let entries = status.expect("exit codes").matches("\n.TP").count();
            assert!(entries >= named.max(3), "{name}: {entries} of {named}:\n{text}");
        }
    }
}
