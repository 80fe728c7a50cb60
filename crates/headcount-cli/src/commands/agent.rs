//! `headcount agent`: one process for all nodes of a host. `docs/cli/agent.md` is the reference.

mod bounded;
mod cluster;
mod hooks;
mod http;
mod log;
mod nodes;
mod picture;
mod reload;
mod session;

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use headcount_cluster::config::{self, Config, DEFAULT_FILE, Reload};
use headcount_cluster::doer::Doer;
use headcount_cluster::ending::Ending;
use headcount_report::plural;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::NodeSelector;
use crate::hooks::settings::Settings;
use crate::outcome::{Outcome, UsageError};
use cluster::Membership;
use hooks::Hooks;
use http::{Listeners, Sockets};
use nodes::Nodes;
use session::Allowed;

const AGENT_EXAMPLES: &str = "\
Examples:
  headcount agent --check                   is /etc/headcount/agent.toml valid?
  headcount agent --config ./agent.toml
  curl --unix-socket /run/headcount-agent/agent.sock http://localhost/metrics

Exit codes: 0 stopped by SIGTERM, SIGINT or SIGUSR2, or the configuration is valid; 2 usage error; 4 the configuration \
is not valid, or the system failed.";

#[derive(Args)]
#[command(after_help = AGENT_EXAMPLES)]
pub struct AgentArgs {
    /// The configuration; /etc/headcount/agent.toml if there is one, and else what is the default for everything
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Only say whether the configuration is valid
    #[arg(long)]
    pub check: bool,
}

impl AgentArgs {
    fn read(&self) -> anyhow::Result<(String, Config, Vec<Settings>)> {
        let file = match &self.config {
            Some(file) => file.clone(),
            // One that is there and cannot be read is an error, as is a link that leads nowhere.
            None if std::fs::symlink_metadata(DEFAULT_FILE)
                .is_err_and(|e| e.kind() == ErrorKind::NotFound) =>
            {
                let name = format!("the default ({DEFAULT_FILE} does not exist)");
                return Ok((name, Config::default(), Vec::new()));
            }
            None => PathBuf::from(DEFAULT_FILE),
        };
        let text = config::text(&file)?;
        let config = Config::of(&file, &text)?;
        let hooks = hooks::read(&file, &text, &config)?;
        // What is wrong there would otherwise be found only when it is used.
        Allowed::find(&config.agent.claims).with_context(|| file.display().to_string())?;
        Ok((file.display().to_string(), config, hooks))
    }
}

pub fn run(selector: &NodeSelector, args: &AgentArgs) -> anyhow::Result<Outcome> {
    if selector.node.is_some() || selector.registry.is_some() {
        let text = "the agent follows all nodes of its host: name further registries in its configuration";
        return Err(UsageError(text.to_owned()).into());
    }
    let (file, config, hooks) = args.read()?;
    if args.check {
        anstream::println!("{file} is valid: {}", in_words(&config, &hooks));
        return Ok(Outcome::Done);
    }
    tracing::subscriber::set_global_default(log::to(std::io::stderr)).context("cannot begin the log")?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let outcome = runtime.block_on(serve(args, file, config, hooks));
    // Whoever waits for a name server that does not answer need not be waited for.
    runtime.shutdown_background();
    outcome
}

fn in_words(config: &Config, hooks: &[Settings]) -> String {
    let listen = config.agent.listen.map_or(String::new(), |address| format!(" and {address}"));
    let cluster = config.cluster.as_ref().map_or("without a cluster".to_owned(), |cluster| {
        format!(
            "as host {} of the cluster {} at {}",
            cluster.host,
            cluster.name,
            cluster.endpoints.join(", ")
        )
    });
    let reload = match &config.agent.reload {
        reload if reload.is_off() || config.cluster.is_none() => String::new(),
        Reload::Nodes(names) => format!(", reloads {} when the cluster asks for it", names.join(", ")),
        Reload::All(_) => ", reloads its nodes when the cluster asks for it".to_owned(),
    };
    let hooks = match hooks.len() {
        0 => String::new(),
        count => format!(", with {}", plural(count as u64, "hook")),
    };
    format!("listens on {}{listen}, {cluster}{reload}{hooks}", config.agent.socket.display())
}

async fn serve(
    args: &AgentArgs,
    file: String,
    config: Config,
    hooks: Vec<Settings>,
) -> anyhow::Result<Outcome> {
    let mut signals = Signals::catch()?;
    let sockets = Sockets::bind(&config)?;
    let nodes = Nodes::follow(&config.agent.registries)?;
    let doer = Arc::new(Doer::new(config.agent.reload.clone(), reload::perform()));
    let membership = Membership::begin(&config, nodes.subscribe(), &doer);
    let listeners = sockets.serve(&config, &membership);
    tracing::info!("headcount agent {}, {file}: {}", env!("CARGO_PKG_VERSION"), in_words(&config, &hooks));
    let hooks = Hooks::begin(&hooks, &config, &nodes.subscribe());
    let mut agent = Agent { config, nodes, doer, membership, hooks, listeners: Some(listeners) };
    tell_manager(&[NotifyState::Ready]);
    // Half of what the manager waits for; it is fed by the loop that does all the work.
    let beat = sd_notify::watchdog_enabled().map(|limit| limit / 2);
    let ending = loop {
        tokio::select! {
            () = pause(beat) => tell_manager(&[NotifyState::Watchdog]),
            ended = agent.nodes.ended() => return Err(ended.context("cannot follow the nodes of this host")),
            asked = signals.next() => match asked {
                Asked::End(ending) => break ending,
                Asked::Reload => {
                    let mut states = vec![NotifyState::Reloading];
                    states.extend(NotifyState::monotonic_usec_now().ok());
                    tell_manager(&states);
                    match args.read() {
                        Ok((_, new, hooks)) => agent.reload(new, &hooks).await?,
                        Err(error) => tracing::error!("not reloaded, going on as before: {error:#}"),
                    }
                    tell_manager(&[NotifyState::Ready]);
                }
            }
        }
    };
    tell_manager(&[NotifyState::Stopping]);
    tokio::join!(agent.membership.end(ending), agent.hooks.end());
    Ok(Outcome::Done)
}

/// What runs.
struct Agent {
    config: Config,
    nodes: Nodes,
    /// What it does for the cluster goes on, whatever changes here.
    doer: Arc<Doer>,
    membership: Membership,
    hooks: Hooks,
    /// `None` only for a moment: where it listens can be listened to again only when it does not any more.
    listeners: Option<Listeners>,
}

impl Agent {
    /// Goes on with another configuration; if that cannot be, as before.
    async fn reload(&mut self, new: Config, hooks: &[Settings]) -> anyhow::Result<()> {
        if let Some(listeners) = self.listeners.take() {
            listeners.close().await;
        }
        let sockets = match Sockets::bind(&new) {
            Ok(sockets) => sockets,
            Err(error) => {
                tracing::error!("not reloaded, going on as before: {error:#}");
                self.listeners = Some(Sockets::bind(&self.config)?.serve(&self.config, &self.membership));
                return Ok(());
            }
        };
        let other_nodes = new.agent.registries != self.config.agent.registries;
        let other_cluster = other_nodes || new.cluster != self.config.cluster;
        if other_cluster || new.agent.reload != self.config.agent.reload {
            // First: it tells of these nodes. Of what it may do nobody needs to hear that it has left.
            self.membership.end(if other_cluster { Ending::Leave } else { Ending::HandOver }).await;
            if other_nodes {
                self.nodes = Nodes::follow(&new.agent.registries)?;
            }
            self.doer.allow(new.agent.reload.clone());
            self.membership = Membership::begin(&new, self.nodes.subscribe(), &self.doer);
        }
        self.listeners = Some(sockets.serve(&new, &self.membership));
        self.hooks.change(hooks, &new, &self.nodes.subscribe(), other_nodes);
        self.config = new;
        tracing::info!("reloaded: {}", in_words(&self.config, hooks));
        Ok(())
    }
}

async fn pause(beat: Option<std::time::Duration>) {
    match beat {
        Some(beat) => tokio::time::sleep(beat).await,
        None => std::future::pending().await,
    }
}

/// There may be none: then this does nothing.
fn tell_manager(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("cannot tell the service manager: {error}");
    }
}

enum Asked {
    End(Ending),
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hand_over: Signal,
    reload: Signal,
}

impl Signals {
    fn catch() -> anyhow::Result<Signals> {
        let catch = |kind| signal(kind).context("cannot wait for signals");
        Ok(Signals {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
            hand_over: catch(SignalKind::user_defined2())?,
            reload: catch(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End(Ending::Leave),
            _ = self.interrupt.recv() => Asked::End(Ending::Leave),
            _ = self.hand_over.recv() => Asked::End(Ending::HandOver),
            _ = self.reload.recv() => Asked::Reload,
        }
    }
}
