//! The arguments of `headcount run`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::backoff::Backoff;
use super::rules::Rule;
use crate::args::duration;

const RUN_EXAMPLES: &str = "\
Examples:
  headcount run --node nginx --on node_started=/etc/headcount/register --on node_stopped,node_died=/etc/headcount/deregister
  headcount run --on worker_died=https://alerts.example/hook --retries 10 --backoff 500ms..5m
  headcount run --kill-stalled-after 30s
  headcount run --on any='cat; echo' --from oldest --state /tmp/seen.json
  headcount run --as-leader cron -- /usr/local/bin/scheduler

Exit codes: 0 ended by SIGTERM or SIGINT; 2 usage error; 4 the state file or the node cannot be read or taken part in, another \
`headcount run` is using the state file, or a delivery failed for good with --on-failure stop.";

#[derive(Args)]
#[command(after_long_help = RUN_EXAMPLES)]
pub struct RunArgs {
    /// Run COMMAND with `sh -c`, or post to it if it is a URL, on these events; may be repeated
    ///
    /// EVENT is a kind of event in the journal (worker_died, generation_ended, …), or node_started, node_stopped,
    /// node_died, lost or any. COMMAND gets the event in HEADCOUNT_… variables and as JSON on standard input.
    #[arg(long = "on", value_name = "EVENT[,EVENT…]=COMMAND", required_unless_present_any = ["kill_stalled_after", "as_leader"], value_parser = Rule::parse)]
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
    /// Kill a worker that has been stalled for this long, so that its master replaces it [default: never]
    ///
    /// By SIGKILL, and only a process that the kernel says is a worker of this node. A worker is stalled when its last heartbeat
    /// is older than the server's own limit; this time comes on top of that.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub kill_stalled_after: Option<Duration>,
    /// Run COMMAND while this process leads the role, instead of delivering events
    ///
    /// At most one process of the node leads a role: the newest workers that stand for it come first, then whoever runs `headcount
    /// run --as-leader` with the same role. COMMAND is started when this process is elected, again if it ends, after --backoff,
    /// and told to end when the role is lost. It gets HEADCOUNT_NODE, HEADCOUNT_LEADER and HEADCOUNT_LEADER_TOKEN in its
    /// environment.
    #[arg(
        long,
        value_name = "ROLE",
        requires = "command",
        conflicts_with_all = [
            "on", "state", "from", "if_interrupted", "timeout", "retries", "on_failure", "queue", "kill_stalled_after",
        ]
    )]
    pub as_leader: Option<String>,
    /// With --as-leader: between SIGTERM and SIGKILL, no longer than three quarters of the server's `stall_after` [default: 2s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub grace: Option<Duration>,
    /// Print problems only
    #[arg(long, short)]
    pub quiet: bool,
    /// With --as-leader: what to run
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Where to begin without a state file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StartFrom {
    /// With the start of the run that is there
    Run,
    /// With what happens from now on
    Now,
    /// With the oldest event that is kept
    Oldest,
}

/// What becomes of a delivery whose end nobody saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IfInterrupted {
    /// Deliver again, marked as a retry
    Retry,
    /// Go on with the next
    Skip,
}

/// What to do when a delivery failed for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnFailure {
    /// Log it and go on with the next
    Continue,
    /// End with code 4; the next start tries it again
    Stop,
}
