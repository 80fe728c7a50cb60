//! `headcount reload`: sends SIGHUP to the master, and waits for the generation that answers. Reference: `docs/cli/reload.md`.

mod answer;
mod master;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use headcount::{
    Cause, Event, GenerationId, GenerationStatus, Kind, Liveness, Observer, Phase, ProcessStatus, Role,
    Snapshot,
};
use headcount_report::age;

use super::wait::node_watch::NodeWatch;
use super::wait::progress::Progress;
use super::wait::{
    CHECK_INTERVAL, abandoned, forget_the_oldest, not_reached, reached, reload_failed, unmet, was_abandoned,
};
use crate::args::{NodeSelector, duration};
use crate::clock::{self, Deadline};
use crate::find;
use crate::outcome::Outcome;
use answer::{Begun, Facts, Taken, Verdict};
use master::{Master, read_pid_file};

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

/// How often the master is asked whether it has taken the signal.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Who holds the node lock for longer than this may keep a generation from being announced.
const LONG_HELD: Duration = Duration::from_millis(500);

/// More generations than any master begins while a reload is waited for.
const MOST_BEGUN: usize = 256;

const NGINX_T: &str = "The server's error log says why; `nginx -t` usually does, too";

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
    // An earlier reload that is still in progress must not be mistaken for ours.
    while master.is_nginx && !master.is_at_rest() {
        if !master.is_alive() {
            bail!("master {} has ended and was not signalled", master.pid);
        }
        if deadline.is_over() {
            progress.end()?;
            let why =
                format!("master {} was busy for {} and was not signalled", master.pid, age(args.timeout));
            return not_reached(&why);
        }
        progress.show(&format!("master {} is busy", master.pid))?;
        std::thread::sleep(POLL_INTERVAL);
    }
    let mut node = NodeWatch::at(registry.clone());
    let before = node.snapshot()?.with_context(|| format!("{} is gone", registry.display()))?;
    node.skip_to(&before);
    let sent_ns = clock::boot_ns();
    if deadline.is_over() {
        progress.end()?;
        let why =
            format!("time was up after {} and master {} was not signalled", age(args.timeout), master.pid);
        return not_reached(&why);
    }
    master.hang_up()?;
    let Some(taken) = wait_till_taken(&master, sent_ns, deadline, &mut progress)? else {
        progress.end()?;
        let why = format!("master {} did not take the signal within {}", master.pid, age(args.timeout));
        return if master.is_alive() { not_reached(&why) } else { reload_failed(&ended(&master)) };
    };
    let mut reload =
        Reload { args, master, taken, before, begun: Vec::new(), abandoned: BTreeSet::new(), rest: None };
    reload.wait(&mut node, deadline, &mut progress)
}

/// Watches until the signal is no longer pending. `None`: the master ended, or time is up.
fn wait_till_taken(
    master: &Master,
    sent_ns: u64,
    deadline: Deadline,
    progress: &mut Progress,
) -> anyhow::Result<Option<Taken>> {
    let mut not_before_ns = sent_ns;
    loop {
        let asked_ns = clock::boot_ns();
        let pending = master.hup().is_some_and(|hup| hup.pending);
        if !master.is_alive() {
            return Ok(None);
        }
        if !pending {
            return Ok(Some(Taken { not_before_ns, not_after_ns: clock::boot_ns() }));
        }
        not_before_ns = asked_ns;
        if deadline.is_over() {
            return Ok(None);
        }
        progress.show(&format!("master {} has not taken the signal yet", master.pid))?;
        std::thread::sleep(POLL_INTERVAL);
    }
}

struct Reload<'a> {
    args: &'a ReloadArgs,
    master: Master,
    taken: Taken,
    before: Snapshot,
    begun: Vec<Begun>,
    abandoned: BTreeSet<GenerationId>,
    /// Since when the master has been at rest.
    rest: Option<u64>,
}

impl Reload<'_> {
    fn wait(
        &mut self,
        node: &mut NodeWatch,
        deadline: Deadline,
        progress: &mut Progress,
    ) -> anyhow::Result<Outcome> {
        loop {
            // Whoever rests now has done all that it will do, so what it did is in the registry, which is read next.
            let at_rest = self.master.is_at_rest();
            let alive = self.master.is_alive();
            let snapshot = node.snapshot()?.context("the registry is gone")?;
            self.read(&node.events()?, &snapshot);
            let lock_is_free = snapshot.holder.as_ref().is_none_or(|holder| holder.held_for < LONG_HELD);
            let since = self.rest.unwrap_or(snapshot.boot_ns);
            self.rest = (at_rest && lock_is_free).then_some(since);
            let facts = Facts {
                taken: self.taken,
                begun: &self.begun,
                abandoned: &self.abandoned,
                snapshot: &snapshot,
                master: self.master.pid,
                is_nginx: self.master.is_nginx,
                rests_for: self
                    .rest
                    .map(|since| Duration::from_nanos(snapshot.boot_ns.saturating_sub(since))),
                drained: self.args.drained,
            };
            let verdict = facts.verdict();
            if verdict != Verdict::Wait {
                progress.end()?;
            }
            match verdict {
                Verdict::Serves(_) => {
                    let what = facts.wanted().reached(Some(&snapshot), "");
                    return reached(&format!("{what}; it took {}", age(deadline.elapsed())));
                }
                Verdict::Abandoned(generation) => return reload_failed(&was_abandoned(generation)),
                Verdict::Refused => return reload_failed(&refused(&self.master)),
                Verdict::Uncounted => return reload_failed(&uncounted(&self.master)),
                Verdict::Wait if !alive => {
                    progress.end()?;
                    return reload_failed(&ended(&self.master));
                }
                Verdict::Wait => {}
            }
            if deadline.is_over() {
                progress.end()?;
                return not_reached(&unmet::not_reached(self.args.timeout, &facts.unmet()));
            }
            progress.show(&unmet::line(&facts.unmet()))?;
            // What the master does is looked at, and what its workers do wakes us.
            node.wait(CHECK_INTERVAL)?;
        }
    }

    /// A generation is in the registry's table while it is there, and in the journal for longer.
    fn read(&mut self, events: &[Event], snapshot: &Snapshot) {
        let old = self.before.generations.iter().map(|g| g.id).max().unwrap_or(0);
        // `resume`: the master could not announce it, and its first worker did.
        let ours = |cause: Cause, master: u32| {
            matches!(cause, Cause::Reload | Cause::Resume) && master == self.master.pid
        };
        // The table first: it says when the generation was begun, and the journal only when that was reported.
        let there = snapshot.generations.iter().filter(|g| ours(g.cause, g.master));
        let there = there.map(|g| (g.id, begun_ns(snapshot, g)));
        let started = events.iter().filter(|e| e.kind == Kind::GenerationStarted && ours(e.cause, e.pid));
        let found: Vec<_> = there.chain(started.map(|e| (e.generation, e.boot_ns))).collect();
        for (id, begun_ns) in found {
            let is_known = self.begun.iter().any(|b| b.id == id);
            if id > old && !is_known && self.begun.len() < MOST_BEGUN {
                self.begun.push(Begun { id, begun_ns });
            }
        }
        self.abandoned.extend(abandoned(events, snapshot));
        forget_the_oldest(&mut self.abandoned);
    }
}

/// When a generation was begun, on the clock that events carry.
fn begun_ns(snapshot: &Snapshot, generation: &GenerationStatus) -> u64 {
    snapshot.boot_ns.saturating_sub(clock::nanoseconds(generation.age))
}

fn refused(master: &Master) -> String {
    format!(
        "master {} took the signal and went back to sleep without beginning a generation: it refused the \
         configuration and still serves with the old one. {NGINX_T}",
        master.pid
    )
}

fn uncounted(master: &Master) -> String {
    format!(
        "master {} took the signal and its old workers are leaving, but it has begun no generation. Is headcount no \
         longer in its configuration, or could it not use its registry? See the server's error log",
        master.pid
    )
}

fn ended(master: &Master) -> String {
    format!("master {} ended during the reload; the server's error log may say why", master.pid)
}

/// The node's master: that of its newest generation.
fn of_node(selector: &NodeSelector) -> anyhow::Result<(PathBuf, Master)> {
    let (path, observer) = find::one(selector)?;
    let snapshot = observer.snapshot().context("cannot read the node")?;
    let Some(pid) = newest_master(&snapshot).map(|p| p.pid) else {
        bail!("node {} ({}) has no live master: start the server", snapshot.node, path.display());
    };
    let mut master = Master::hold(pid)?;
    must_be(&mut master, &observer, &path)?;
    Ok((path, master))
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
fn must_be(master: &mut Master, observer: &Observer, path: &std::path::Path) -> anyhow::Result<()> {
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
