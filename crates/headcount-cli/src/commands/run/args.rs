//! The arguments of `headcount run`.

use std::ffi::OsString;
use std::time::Duration;

use clap::Args;

use crate::args::duration;
use crate::hooks::settings::Settings;

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
    #[command(flatten)]
    pub settings: Settings,
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
