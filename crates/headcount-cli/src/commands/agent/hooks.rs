//! The hooks of the configuration: what `headcount run` does, for each of them, by the same code.
//!
//! Deliveries block, so each node that a hook follows has a thread of its own. A task for each hook starts these threads and ends
//! them: a hook that is changed begins anew, by its record, when its last delivery has ended.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use headcount_cluster::Nodes;
use headcount_cluster::config::{ClusterConfig, Config, parse};
use headcount_cluster::turn::Turn;
use rustix::event::{PollFd, PollFlags};
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::hooks::cluster::{Courier, Memory};
use crate::hooks::follow::Follower;
use crate::hooks::locator::Locator;
use crate::hooks::log::Log;
use crate::hooks::settings::{Scope, Settings};
use crate::hooks::state;
use crate::hooks::stop::{Asker, Stop};
use crate::outcome::Outcome;
use crate::poll;

/// When the agent ends, deliveries may take so long to end by themselves. Then they are cut short.
const ENDING: Duration = Duration::from_secs(5);
/// A hook that cannot be followed is tried again after this time.
const AGAIN: Duration = Duration::from_secs(5);

/// The part of the configuration that is about hooks. The rest is read by others, who know what may be in it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    hook: Vec<Settings>,
}

/// Reads the hooks of a configuration.
pub fn read(path: &Path, text: &str, config: &Config) -> anyhow::Result<Vec<Settings>> {
    let file: File = parse(path, text)?;
    for (number, hook) in file.hook.iter().enumerate() {
        if let Err(why) = hook.check() {
            bail!("{}: hook {}: {why}", path.display(), hook.name);
        }
        if hook.scope == Scope::Cluster && config.cluster.is_none() {
            bail!("{}: hook {}: scope = \"cluster\" needs [cluster]", path.display(), hook.name);
        }
        if file.hook[..number].iter().any(|other| other.name == hook.name) {
            bail!("{}: hook {}: there are two of this name", path.display(), hook.name);
        }
    }
    if !file.hook.is_empty() && std::fs::metadata(path)?.mode() & 0o002 != 0 {
        bail!("{0}: everybody may write it, and its hooks are run: chmod o-w {0}", path.display());
    }
    Ok(file.hook)
}

/// A hook, and the nodes of this host.
#[derive(Clone)]
struct Wanted {
    settings: Settings,
    nodes: watch::Receiver<Nodes>,
    /// For a hook of all hosts.
    cluster: Option<ClusterConfig>,
}

/// The hooks that run.
pub struct Hooks {
    /// By their names. `None`: it is to end.
    wanted: BTreeMap<String, watch::Sender<Option<Wanted>>>,
    tasks: JoinSet<()>,
}

impl Hooks {
    pub fn begin(hooks: &[Settings], config: &Config, nodes: &watch::Receiver<Nodes>) -> Hooks {
        let mut all = Hooks { wanted: BTreeMap::new(), tasks: JoinSet::new() };
        all.change(hooks, config, nodes, false);
        all
    }

    /// Goes on with these. One that is as before goes on undisturbed, unless it follows other nodes now.
    pub fn change(
        &mut self,
        hooks: &[Settings],
        config: &Config,
        nodes: &watch::Receiver<Nodes>,
        other_nodes: bool,
    ) {
        self.wanted.retain(|name, wanted| {
            let stays = hooks.iter().any(|hook| hook.name == *name);
            if !stays {
                wanted.send_replace(None);
            }
            stays
        });
        for hook in hooks {
            let cluster = config.cluster.clone().filter(|_| hook.scope == Scope::Cluster);
            let now = Wanted { settings: hook.clone(), nodes: nodes.clone(), cluster };
            match self.wanted.entry(hook.name.clone()) {
                Entry::Vacant(free) => {
                    let (sender, receiver) = watch::channel(Some(now));
                    self.tasks.spawn(tend(receiver));
                    free.insert(sender);
                }
                Entry::Occupied(there) => {
                    there.get().send_if_modified(|wanted| {
                        let changed = match wanted.as_ref() {
                            Some(was) if was.settings == now.settings && was.cluster == now.cluster => {
                                other_nodes && now.cluster.is_none()
                            }
                            _ => true,
                        };
                        if changed {
                            *wanted = Some(now);
                        }
                        changed
                    });
                }
            }
        }
    }

    /// Returns when the last delivery has ended, or was cut short.
    pub async fn end(&mut self) {
        self.wanted.values().for_each(|wanted| drop(wanted.send_replace(None)));
        while self.tasks.join_next().await.is_some() {}
    }
}

/// One hook, through all that it is to be, until it is to end.
async fn tend(mut wanted: watch::Receiver<Option<Wanted>>) {
    loop {
        let Some(now) = wanted.borrow_and_update().clone() else { return };
        let mut threads = Threads::new(now.settings);
        match now.cluster {
            Some(cluster) => threads.take_turns(&cluster, &mut wanted).await,
            None => threads.run(now.nodes, &mut wanted).await,
        }
        threads.end(&mut wanted).await;
    }
}

/// Those that deliver for one hook, by the registries that they follow. One that finds its registry by a node's name is under an
/// empty path.
struct Threads {
    settings: Settings,
    running: BTreeMap<PathBuf, Asker>,
    tell_end: mpsc::UnboundedSender<PathBuf>,
    ended: mpsc::UnboundedReceiver<PathBuf>,
    /// Of a hook of all hosts: it is this one's.
    turn: Option<Turn>,
}

impl Threads {
    fn new(settings: Settings) -> Threads {
        let (tell_end, ended) = mpsc::unbounded_channel();
        Threads { settings, running: BTreeMap::new(), tell_end, ended, turn: None }
    }

    /// Until the hook is to be another one.
    async fn run(&mut self, mut nodes: watch::Receiver<Nodes>, wanted: &mut watch::Receiver<Option<Wanted>>) {
        if let Some(selector) = self.settings.selector() {
            match Locator::new(&selector) {
                Ok(locator) => self.start(PathBuf::new(), locator),
                Err(error) => tracing::error!("hook {}: {error:#}", self.settings.name),
            }
            // It ends when it is asked to, or was given up.
            let _ = wanted.changed().await;
            return;
        }
        let mut is_first = true;
        loop {
            for path in nodes.borrow_and_update().keys() {
                if !self.running.contains_key(path) && (is_first || path.exists()) {
                    self.start(path.clone(), Locator::of(path.clone(), !is_first));
                }
            }
            is_first = false;
            tokio::select! {
                _ = wanted.changed() => return,
                changed = nodes.changed() => if changed.is_err() {
                    // Other nodes are to be followed: that is told in a moment.
                    let _ = wanted.changed().await;
                    return;
                },
                // Its registry may be there again by now.
                Some(path) = self.ended.recv() => drop(self.running.remove(&path)),
            }
        }
    }

    /// Delivers for all hosts whenever it is this one's turn, until the hook is to be another one.
    async fn take_turns(&mut self, config: &ClusterConfig, wanted: &mut watch::Receiver<Option<Wanted>>) {
        let name = self.settings.name.clone();
        let memory = Memory::default();
        let mut said = None;
        loop {
            let taken = tokio::select! {
                _ = wanted.changed() => return,
                taken = Turn::take(config, &name) => taken,
            };
            let turn = match taken {
                Ok(turn) => self.turn.insert(turn),
                Err(trouble) => {
                    let kind = std::mem::discriminant(&trouble);
                    if said.replace(kind) != Some(kind) {
                        tracing::warn!("hook {name}: {trouble}. Trying again");
                    }
                    tokio::select! {
                        _ = wanted.changed() => return,
                        () = sleep_until(Instant::now() + AGAIN.mul_f64(0.1 + fastrand::f64())) => continue,
                    }
                }
            };
            said = None;
            let (config, memory, record) = (config.clone(), memory.clone(), turn.record());
            let (settings, handle) = (self.settings.clone(), Handle::current());
            let asker = spawn(&name, TellEnd(self.tell_end.clone(), PathBuf::new()), move |stop, log| {
                repeat(stop, log, || {
                    let (settings, config, memory) = (&settings, &config, &memory);
                    Courier { settings, config, record: record.clone(), memory, handle: &handle, stop, log }
                        .run()
                });
            });
            let Some(asker) = asker else { return drop(wanted.changed().await) };
            let asker = self.running.entry(PathBuf::new()).insert_entry(asker).into_mut();
            tokio::select! {
                _ = wanted.changed() => return,
                () = turn.lost() => {
                    // Another one goes on: what is in progress here must not go on beside it.
                    tracing::warn!("hook {name}: its turn is over, since its lease was not confirmed in time");
                    asker.urge();
                    self.ended.recv().await;
                }
                Some(_) = self.ended.recv() => {}
            }
            self.running.clear();
            if let Some(turn) = self.turn.take() {
                turn.give_up().await;
            }
        }
    }

    /// Asks all of them to end, and waits until they have. If the agent ends, they have less time.
    async fn end(&mut self, wanted: &mut watch::Receiver<Option<Wanted>>) {
        self.running.values().for_each(Asker::ask);
        let mut limit = None;
        while !self.running.is_empty() {
            tokio::select! {
                Some(path) = self.ended.recv() => drop(self.running.remove(&path)),
                // Whoever wants something of it is gone: as if it were to end.
                _ = wanted.wait_for(Option::is_none), if limit.is_none() => limit = Some(Instant::now() + ENDING),
                () = sleep_until(limit.unwrap_or_else(Instant::now)), if limit.is_some() => {
                    self.running.values().for_each(Asker::urge);
                    limit = Some(Instant::now() + ENDING);
                }
            }
        }
        if let Some(turn) = self.turn.take() {
            turn.give_up().await;
        }
    }

    fn start(&mut self, path: PathBuf, locator: Locator) {
        let settings = self.settings.clone();
        let end = TellEnd(self.tell_end.clone(), path.clone());
        let asker = spawn(&self.settings.name, end, move |stop, log| {
            repeat(stop, log, || follow(&settings, locator.clone(), stop, log));
        });
        self.running.extend(asker.map(|asker| (path, asker)));
    }
}

/// Runs this in a thread of its own.
fn spawn(hook: &str, end: TellEnd, run: impl FnOnce(&Stop, &Log) + Send + 'static) -> Option<Asker> {
    let log = Log::of_hook(hook);
    let begun = Stop::by_another().and_then(|(asker, stop)| {
        let run = move || {
            let _end = end;
            run(&stop, &log);
        };
        std::thread::Builder::new().name(format!("hook {hook}")).spawn(run)?;
        Ok(asker)
    });
    begun.inspect_err(|error| tracing::error!("hook {hook}: cannot start a thread: {error:#}")).ok()
}

/// Tells it also if the thread panics.
struct TellEnd(mpsc::UnboundedSender<PathBuf>, PathBuf);

impl Drop for TellEnd {
    fn drop(&mut self) {
        // The agent has ended.
        let _ = self.0.send(std::mem::take(&mut self.1));
    }
}

/// Delivers until it is asked to end. What cannot be done is said once, and tried again.
fn repeat(stop: &Stop, log: &Log, mut deliver: impl FnMut() -> anyhow::Result<Outcome>) {
    while !stop.is_asked() {
        match deliver() {
            Ok(Outcome::Failed) => {
                log.warn(
                    "stopped, since a delivery failed for good: the next start or change tries it again",
                );
                // Not ended: it would be started again.
                while !stop.is_asked() {
                    if let Err(error) = poll::wait(&mut [PollFd::new(stop, PollFlags::IN)], None) {
                        return log.warn(format_args!("{error:#}"));
                    }
                }
            }
            Ok(_) => return,
            Err(error) => log.warn_once("deliver", format_args!("{error:#}; trying again")),
        }
        if let Err(error) = stop.wait(AGAIN, &mut || {}) {
            return log.warn(format_args!("{error:#}"));
        }
    }
}

fn follow(settings: &Settings, mut locator: Locator, stop: &Stop, log: &Log) -> anyhow::Result<Outcome> {
    let Some(registry) = locator.wait(stop, log)? else { return Ok(Outcome::Done) };
    let path = state::path_of_hook(&settings.name, &registry)?;
    Follower::open(settings, locator, &path, stop, log)?.run()
}
