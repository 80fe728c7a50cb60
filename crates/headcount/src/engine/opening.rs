//! How a process comes to its node: the same one again, a new one under a name of its own, or one without files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::master::Claim;
use crate::node::{Node, NodeInner, NoticeLevel, Settings, relock};
use crate::options::Options;
use crate::registry::files::lock_identity;
use crate::registry::store::Store;
use crate::sys::atomic::Ordering::Relaxed;

/// Every node that this process has open, by the path that was asked for. Nothing is ever taken out.
static OPEN: Mutex<Vec<(PathBuf, Node)>> = Mutex::new(Vec::new());

/// The identities of all lock files that this process has open for good.
pub(crate) static OPEN_LOCKS: Mutex<Vec<(u64, u64)>> = Mutex::new(Vec::new());

impl Node {
    pub(crate) fn open(options: &Options) -> Result<Node> {
        let settings = options.settings()?;
        let wanted = options.registry_path();
        let mut open = relock(&OPEN);
        let identity = lock_identity(&wanted);
        let same = |(path, node): &&(PathBuf, Node)| {
            *path == wanted || identity.is_some() && node.inner.store.lock_identity() == identity
        };
        if let Some((_, node)) = open.iter().find(same) {
            // The same master again, at a reload: a second descriptor of the lock file would drop every
            // lock of this process when it is closed.
            let node = node.clone();
            *relock(&node.inner.settings) = settings;
            node.publish_settings();
            let local = node.inner.local();
            let has_left =
                local.master.is_none() && local.joined.is_empty() && local.inherited_master.is_none();
            drop(local);
            if has_left {
                // A master that had left (the server was reconfigured to do without), and is back.
                node.claim_master(options.predecessor())?;
            }
            return Ok(node);
        }
        let node = Node::open_files(options, &wanted, settings).or_else(|error| {
            if error.kind() == ErrorKind::InvalidOption {
                return Err(error);
            }
            Node::without_files(options, settings, &error)
        })?;
        node.publish_settings();
        open.push((wanted, node.clone()));
        Ok(node)
    }

    fn open_files(options: &Options, wanted: &Path, settings: Settings) -> Result<Node> {
        const MOST_NAMESAKES: u32 = 64;
        const MOST_REMOVED: u32 = 64;
        let geometry = options.geometry()?;
        let mut taken = None;
        let mut removed = 0;
        let mut number = 1;
        while number <= MOST_NAMESAKES {
            let (path, name) = match number {
                1 => (wanted.to_owned(), options.node_name().to_owned()),
                _ => namesake(wanted, options.node_name(), number),
            };
            if already_open(&path) {
                number += 1;
                continue;
            }
            let (store, remarks) = Store::open(&path, &name, geometry, settings.lock_timeout)?;
            let node = Node { inner: Arc::new(NodeInner::new(store, name, settings)) };
            for remark in remarks {
                node.inner.notice(NoticeLevel::Warning, remark);
            }
            match node.claim_master(options.predecessor())? {
                Claim::Ours => {
                    if let Some((pid, name)) = taken {
                        node.inner.notice(
                            NoticeLevel::Warning,
                            format!(
                                "node {name} is in use by another server (master process {pid}): this one is \
                                 tracked as node {}; give it a name of its own with the option `node`",
                                node.name()
                            ),
                        );
                    }
                    return Ok(node);
                }
                Claim::Taken(master) => {
                    taken.get_or_insert((master, node.name().to_owned()));
                    // Dropping the descriptor is harmless: this process holds no lock of that file.
                    number += 1;
                }
                // Between our opening and our claiming it: the same once more, with new files.
                Claim::Removed if removed < MOST_REMOVED => removed += 1,
                Claim::Removed => {
                    return Err(Error::new(
                        ErrorKind::Busy,
                        format!(
                            "{} is removed again and again while this server opens it (find out by whom)",
                            path.display()
                        ),
                    ));
                }
            }
        }
        Err(Error::new(
            ErrorKind::InUse,
            format!(
                "{} and its {MOST_NAMESAKES} namesakes are in use by other servers: give this one a name of its own \
                 with the option `node`",
                wanted.display()
            ),
        ))
    }

    /// The server must run whatever is wrong with the file.
    fn without_files(options: &Options, settings: Settings, why: &Error) -> Result<Node> {
        let store = Store::anonymous(options.node_name(), options.geometry()?)?;
        let node = Node { inner: Arc::new(NodeInner::new(store, options.node_name().to_owned(), settings)) };
        node.inner.notice(
            NoticeLevel::Warning,
            format!(
                "{why}; the node {} runs on memory of its own: counts and callbacks work, no program outside \
                 can see it, and a binary upgrade or restart will not know of it",
                options.node_name()
            ),
        );
        node.claim_master(None)?;
        Ok(node)
    }

    fn publish_settings(&self) {
        let header = self.inner.store.region.header();
        let settings = self.inner.settings();
        let ns = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        header.heartbeat_interval_ns.store(ns(settings.heartbeat_interval), Relaxed);
        header.stall_after_ns.store(ns(settings.stall_after), Relaxed);
        header.lock_timeout_ns.store(ns(settings.lock_timeout), Relaxed);
    }
}

fn already_open(path: &Path) -> bool {
    // `OPEN` is locked by the caller. A path is open if its lock file is one that we hold: opening it a
    // second time and closing it again would drop our locks on it.
    let Some(identity) = lock_identity(path) else { return false };
    relock(&OPEN_LOCKS).contains(&identity)
}

fn namesake(path: &Path, name: &str, number: u32) -> (PathBuf, String) {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let file = match path.extension() {
        Some(extension) => format!("{stem}-{number}.{}", extension.to_string_lossy()),
        None => format!("{stem}-{number}"),
    };
    (path.with_file_name(file), format!("{name}-{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namesake_keeps_its_suffix() {
        let (path, name) = namesake(Path::new("/run/headcount/nginx.registry"), "nginx", 2);
        assert_eq!(path, Path::new("/run/headcount/nginx-2.registry"));
        assert_eq!(name, "nginx-2");
    }

    #[test]
    fn who_claims_files_that_were_removed_is_told_so() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("node.registry");
        let options = Options::new("node").path(&path).slots(16);
        let settings = options.settings().expect("they are right");
        let geometry = options.geometry().expect("it is right");
        let (store, _) = Store::open(&path, "node", geometry, settings.lock_timeout).expect("open");
        let node = Node { inner: Arc::new(NodeInner::new(store, "node".into(), settings)) };
        std::fs::remove_file(crate::registry::files::lock_path(&path)).expect("remove");
        assert!(matches!(node.claim_master(None), Ok(Claim::Removed)));
        assert!(node.snapshot().processes.is_empty());
    }
}
