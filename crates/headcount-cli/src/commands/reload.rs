//! `headcount reload`: sends SIGHUP to the master, and waits for the generation that answers. Reference: `docs/cli/reload.md`.

mod answer;
mod error_log;
mod master;
mod perform;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use headcount::{Liveness, Observer, Phase, ProcessStatus, Role, Snapshot};

use super::wait::progress::Progress;
use crate::args::{NodeSelector, duration};
use crate::clock::Deadline;
use crate::find;
use crate::outcome::Outcome;
pub use master::Master;
use master::read_pid_file;
pub use perform::Reload;

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

pub fn run(selector: &NodeSelector, args: &ReloadArgs) -> anyhow::Result<Outcome> {
    let deadline = Deadline::after(args.timeout);
    let asked = match &args.pid_file {
        Some(path) => Some(read_pid_file(path)?),
        None => args.pid,
    };
    let (registry, master) = match asked {
        Some(pid) => of_pid(selector, pid)?,
        None => of_node(selector)?,
    };
    let mut progress = Progress::new(deadline);
    let reload = Reload { registry, master, drained: args.drained, deadline };
    let ended = reload.perform(&mut |what| progress.show(what))?;
    progress.end();
    ended.say()
}

/// The node's master: that of its newest generation.
fn of_node(selector: &NodeSelector) -> anyhow::Result<(PathBuf, Master)> {
    let (path, observer) = find::one(selector)?;
    let master = of_registry(&path, &observer)?;
    Ok((path, master))
}

/// The master of the node of this registry.
pub fn of_registry(path: &Path, observer: &Observer) -> anyhow::Result<Master> {
    let snapshot = observer.snapshot().context("cannot read the node")?;
    let Some(pid) = newest_master(&snapshot).map(|p| p.pid) else {
        bail!("node {} ({}) has no live master: start the server", snapshot.node, path.display());
    };
    let mut master = Master::hold(pid)?;
    must_be(&mut master, observer, path)?;
    Ok(master)
}

/// The node whose master this process is.
fn of_pid(selector: &NodeSelector, pid: u32) -> anyhow::Result<(PathBuf, Master)> {
    // Before anything is found out about it.
    let mut master = Master::hold(pid)?;
    let (mut unreadable, mut others) = (Vec::new(), Vec::new());
    let registries = match selector.registry.is_some() || selector.node.is_some() {
        true => vec![find::one(selector)?.0],
        // Only these may name it as their master.
        false => find::of_root_or(master.user()),
    };
    for path in registries {
        let found = Observer::open(&path).and_then(|observer| Ok((observer.snapshot()?, observer)));
        match found {
            Ok((snapshot, observer)) if live_masters(&snapshot).any(|p| p.pid == pid) => {
                match must_be(&mut master, &observer, &path) {
                    Ok(()) => return Ok((path, master)),
                    Err(error) => unreadable.push(format!("{error:#}")),
                }
            }
            Ok((snapshot, _)) => others.push(format!("{} ({})", snapshot.node, path.display())),
            Err(error) => unreadable.push(error.to_string()),
        }
    }
    let mut why = format!("process {pid} is not a live master of any node and was not signalled");
    match (others.is_empty(), unreadable.is_empty()) {
        (false, _) => why.push_str(&format!("; nodes found: {}", others.join(", "))),
        (true, false) => {}
        (true, true) => why.push_str(
            "; no node was found. Does the server have headcount? If its registry is elsewhere, name it with --registry",
        ),
    }
    for error in unreadable {
        why.push_str(&format!("; {error}"));
    }
    bail!("{why}")
}

/// A master that has been superseded does not read its configuration on SIGHUP.
fn must_be(master: &mut Master, observer: &Observer, path: &Path) -> anyhow::Result<()> {
    let snapshot = observer.snapshot().context("cannot read the node")?;
    let pid = master.pid;
    match newest_master(&snapshot) {
        Some(newest) if newest.pid == pid => master.must_be_of(observer, path, newest),
        Some(newest) => bail!(
            "master {pid} was not signalled: master {0} has taken over by a binary upgrade, and SIGHUP would not \
             make {pid} read its configuration. Reload {0}, or end the upgrade",
            newest.pid
        ),
        None => bail!("process {pid} is not a live master of the node at {}", path.display()),
    }
}

fn live_masters(snapshot: &Snapshot) -> impl Iterator<Item = &ProcessStatus> {
    snapshot.processes.iter().filter(|p| p.role == Role::Master && p.liveness == Liveness::Alive)
}

fn newest_master(snapshot: &Snapshot) -> Option<&ProcessStatus> {
    let alive = |pid: u32| live_masters(snapshot).find(|p| p.pid == pid);
    let there = snapshot.generations.iter().filter(|g| g.phase != Phase::Abandoned);
    there.filter_map(|g| Some((g.id, alive(g.master)?))).max_by_key(|(id, _)| *id).map(|(_, master)| master)
}
