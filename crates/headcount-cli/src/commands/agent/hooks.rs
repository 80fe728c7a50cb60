//! The hooks of the configuration: what `headcount run` does, for each of them, by the same code.
//!
//! Deliveries block, so each node that a hook follows has a thread of its own. A task for each hook starts these threads and ends
//! them: a hook that is changed begins anew, by its record, when its last delivery has ended.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use headcount_cluster::Nodes;
use rustix::event::{PollFd, PollFlags};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::hooks::follow::Follower;
use crate::hooks::locator::Locator;
use crate::hooks::log::Log;
use crate::hooks::settings::Settings;
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
pub fn read(path: &Path) -> anyhow::Result<Vec<Settings>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let file: File = toml::from_str(&text)
        .map_err(|error| anyhow::anyhow!("{}: {}", path.display(), error.to_string().trim_end()))?;
    for (number, hook) in file.hook.iter().enumerate() {
        if let Err(why) = hook.check() {
            bail!("{}: hook {}: {why}", path.display(), hook.name);
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
}

/// The hooks that run.
pub struct Hooks {
    /// By their names. `None`: it is to end.
    wanted: BTreeMap<String, watch::Sender<Option<Wanted>>>,
    tasks: JoinSet<()>,
}

impl Hooks {
    pub fn begin(hooks: &[Settings], nodes: &watch::Receiver<Nodes>) -> Hooks {
        let mut all = Hooks { wanted: BTreeMap::new(), tasks: JoinSet::new() };
        all.change(hooks, nodes, false);
        all
    }

    /// Goes on with these. One that is as before goes on undisturbed, unless it follows other nodes now.
    pub fn change(&mut self, hooks: &[Settings], nodes: &watch::Receiver<Nodes>, other_nodes: bool) {
        self.wanted.retain(|name, wanted| {
            let stays = hooks.iter().any(|hook| hook.name == *name);
            if !stays {
                wanted.send_replace(None);
            }
            stays
        });
        for hook in hooks {
            let now = Wanted { settings: hook.clone(), nodes: nodes.clone() };
            match self.wanted.entry(hook.name.clone()) {
                Entry::Vacant(free) => {
                    let (sender, receiver) = watch::channel(Some(now));
                    self.tasks.spawn(tend(receiver));
                    free.insert(sender);
                }
                Entry::Occupied(there) => {
                    there.get().send_if_modified(|wanted| {
                        let changed = other_nodes || wanted.as_ref().is_none_or(|was| was.settings != *hook);
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
        threads.run(now.nodes, &mut wanted).await;
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
}

impl Threads {
    fn new(settings: Settings) -> Threads {
        let (tell_end, ended) = mpsc::unbounded_channel();
        Threads { settings, running: BTreeMap::new(), tell_end, ended }
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
                    self.running.values().for_each(Asker::ask);
                    limit = Some(Instant::now() + ENDING);
                }
            }
        }
    }

    fn start(&mut self, path: PathBuf, locator: Locator) {
        let settings = self.settings.clone();
        let end = TellEnd(self.tell_end.clone(), path.clone());
        let begun = Stop::by_another().and_then(|(asker, stop)| {
            let run = move || {
                let _end = end;
                deliver(&settings, &locator, &stop);
            };
            std::thread::Builder::new().name(format!("hook {}", self.settings.name)).spawn(run)?;
            Ok(asker)
        });
        match begun {
            Ok(asker) => drop(self.running.insert(path, asker)),
            Err(error) => tracing::error!("hook {}: cannot start a thread: {error:#}", self.settings.name),
        }
    }
}

/// Tells it also if the thread panics.
struct TellEnd(mpsc::UnboundedSender<PathBuf>, PathBuf);

impl Drop for TellEnd {
    fn drop(&mut self) {
        // The agent has ended.
        let _ = self.0.send(std::mem::take(&mut self.1));
    }
}

/// Follows one node until it is asked to end, or has given up. What cannot be done is said once, and tried again.
fn deliver(settings: &Settings, locator: &Locator, stop: &Stop) {
    let log = Log::of_hook(&settings.name);
    while !stop.is_asked() {
        match follow(settings, locator.clone(), stop, &log) {
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
            Err(error) => log.warn_once("follow", format_args!("{error:#}; trying again")),
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
