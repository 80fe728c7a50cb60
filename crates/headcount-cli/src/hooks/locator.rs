//! Finds the registry to follow, and waits for it if there is none yet.

use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags};

use super::log::Log;
use super::stop::Stop;
use crate::args::NodeSelector;
use crate::find::{self, Folders};
use crate::poll;

/// Where the registry is, as soon as that is known.
#[derive(Clone)]
pub struct Locator {
    selector: NodeSelector,
    path: Option<PathBuf>,
    /// There was no registry when it was looked for: one that appears later is new, from its first event on.
    pub was_missing: bool,
    /// It is one of all that there are, and is followed only as long as it is there.
    is_one_of_all: bool,
}

impl Locator {
    pub fn new(selector: &NodeSelector) -> anyhow::Result<Locator> {
        let path = find::given(selector)?;
        Ok(Locator { selector: selector.clone(), path, was_missing: false, is_one_of_all: false })
    }

    /// Of one that was found among all. `is_new`: it was not there when they were looked for first.
    pub fn of(registry: PathBuf, is_new: bool) -> Locator {
        let path = Some(registry);
        Locator { selector: NodeSelector::default(), path, was_missing: is_new, is_one_of_all: true }
    }

    /// Whether it need not be followed any more, unless its node is up.
    pub fn has_gone(&self) -> bool {
        self.is_one_of_all && self.path.as_ref().is_some_and(|path| !path.exists())
    }

    /// Where the registry is, or is to be; `None`: not known yet. Once known, it stays.
    pub fn find(&mut self) -> anyhow::Result<Option<&Path>> {
        if self.path.is_none() {
            // What is found is followed for ever, and commands are run by what it says: so not what any user could have made
            // before the server that is waited for.
            self.path = find::the_one_meant(&self.selector)?;
        }
        Ok(self.path.as_deref())
    }

    /// Waits until it is known; `None`: it is to end.
    pub fn wait(&mut self, stop: &Stop, log: &Log) -> anyhow::Result<Option<PathBuf>> {
        let mut folders = None;
        while !stop.is_asked() {
            if let Some(path) = self.find()? {
                return Ok(Some(path.to_owned()));
            }
            self.is_missing(log);
            match &mut folders {
                // Then it is looked once more: what appears later is told.
                None => folders = Some(Folders::watch()?),
                Some(folders) => {
                    folders.refresh()?;
                    if !folders.changed()? {
                        let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::new(folders, PollFlags::IN)];
                        poll::wait(&mut fds, None)?;
                    }
                }
            }
        }
        Ok(None)
    }

    /// Says that there is none.
    pub fn is_missing(&mut self, log: &Log) {
        if !std::mem::replace(&mut self.was_missing, true) {
            log.note(self.waiting());
        }
    }

    fn waiting(&self) -> String {
        match (&self.path, &self.selector.node) {
            (Some(path), _) => format!("waiting for the registry {}", path.display()),
            (None, Some(node)) => format!("waiting for the node {node}"),
            (None, None) => format!("waiting for a node: {}", find::no_node()),
        }
    }
}
