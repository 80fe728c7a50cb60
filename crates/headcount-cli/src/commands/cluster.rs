//! `headcount cluster`: many hosts at once, by what their agents tell. `docs/cli/cluster.md` is the reference.

pub mod events;
mod leader;
mod reload;
pub mod status;
mod wait;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use headcount_cluster::config::{ClusterConfig, Config, DEFAULT_FILE};
use headcount_cluster::follower::{Follower, News};

use crate::args::NodeSelector;
use crate::outcome::{Outcome, UsageError};
use events::EventsArgs;
use leader::LeaderArgs;
use reload::ReloadArgs;
use status::StatusArgs;
use wait::WaitArgs;

const CLUSTER_EXAMPLES: &str = "\
Examples:
  headcount cluster status                  all hosts, and the nodes of each
  headcount cluster events --follow         what happens on all of them
  headcount cluster wait --nodes 12 --serving --timeout 5m
  headcount cluster reload --first 1 --max-unavailable 25%
  headcount cluster leader cron -- ./scheduler

Exit codes: 0 success; 1 timed out (wait, reload); 2 usage error; 3 a server refused its configuration (reload); 4 no \
cluster is configured, etcd cannot be read, or the system failed.";

#[derive(Args)]
#[command(after_help = CLUSTER_EXAMPLES)]
pub struct ClusterArgs {
    /// The agent's configuration, whose [cluster] says where etcd is
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_FILE)]
    pub config: PathBuf,
    #[command(subcommand)]
    pub command: ClusterCommand,
}

#[derive(Subcommand)]
pub enum ClusterCommand {
    /// Show all hosts, and the nodes of each: what serves, in which generation, and what is lost
    Status(StatusArgs),
    /// Show what happened on all hosts, as sentences or JSON lines
    Events(EventsArgs),
    /// Wait until so many nodes serve, or serve a newer generation; for scripts
    Wait(WaitArgs),
    /// Reload all nodes in waves, each through its host's agent, and go on only while they serve
    Reload(ReloadArgs),
    /// Show who leads which role of the cluster, or run a command while this process leads one
    Leader(LeaderArgs),
}

pub fn run(selector: &NodeSelector, args: &ClusterArgs) -> anyhow::Result<Outcome> {
    if selector.registry.is_some() {
        return Err(UsageError(
            "--registry names a file of this host: with a cluster, use --node".to_owned(),
        )
        .into());
    }
    if let ClusterCommand::Leader(LeaderArgs { role: Some(role), .. }) = &args.command {
        return leader::lead(role, args);
    }
    let config = configured(&args.config)?;
    let node = selector.node.as_deref();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let outcome = runtime.block_on(async {
        match &args.command {
            ClusterCommand::Status(args) => status::run(config, node, args).await,
            ClusterCommand::Events(args) => events::run(config, node, args).await,
            ClusterCommand::Wait(args) => wait::run(config, node, args).await,
            ClusterCommand::Reload(args) => reload::run(config, node, args).await,
            ClusterCommand::Leader(args) => leader::list(config, args).await,
        }
    });
    // Whoever waits for a name server that does not answer need not be waited for.
    runtime.shutdown_background();
    outcome
}

/// The cluster of this configuration.
pub fn configured(file: &Path) -> anyhow::Result<ClusterConfig> {
    let Config { cluster, .. } = Config::read(file)?;
    let Some(config) = cluster else {
        bail!(
            "{}: there is no [cluster] in it: see docs/cluster.md, or name another file with --config",
            file.display()
        );
    };
    Ok(config)
}

/// A follower that has read everything once, and what it told until then.
async fn read(mut follower: Follower) -> anyhow::Result<(Follower, Vec<News>)> {
    let mut told = Vec::new();
    loop {
        match follower.next().await {
            News::Read => return Ok((follower, told)),
            News::Away(trouble) => return Err(trouble.into()),
            news => told.push(news),
        }
    }
}
