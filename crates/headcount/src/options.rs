//! How a node is opened.

use std::path::PathBuf;
use std::time::Duration;

use crate::engine::inner::Settings;
use crate::engine::opening::{self, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::master::Master;
use crate::registry::files;
use crate::registry::layout::Geometry;
use crate::snapshot::NodeSettings;

/// How a node is opened. All options have defaults; only the name is asked for.
///
/// ```no_run
/// use std::time::Duration;
///
/// # fn main() -> headcount::Result<()> {
/// // In the master, before it forks.
/// let master = headcount::Options::new("my-server")
///     .heartbeat_interval(Duration::from_secs(1))
///     .stall_after(Duration::from_secs(5))
///     .open()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Options {
    node: String,
    path: Option<PathBuf>,
    heartbeat_interval: Duration,
    stall_after: Duration,
    lock_timeout: Duration,
    slots: u32,
    journal_records: u32,
    predecessor: Option<u32>,
}

impl Options {
    /// Options for the node of this name, which is at most 48 letters, digits, `.`, `_` and `-`.
    pub fn new(node: impl Into<String>) -> Options {
        Options {
            node: node.into(),
            path: None,
            heartbeat_interval: Duration::from_secs(1),
            stall_after: Duration::from_secs(5),
            lock_timeout: Duration::from_secs(30),
            slots: 1024,
            journal_records: 4096,
            predecessor: None,
        }
    }

    /// The registry's file. Default: `/run/headcount/NAME.registry` for root, otherwise
    /// `$XDG_RUNTIME_DIR/headcount/NAME.registry` or `/dev/shm/headcount-UID/NAME.registry`.
    pub fn path(mut self, path: impl Into<PathBuf>) -> Options {
        self.path = Some(path.into());
        self
    }

    /// How often a worker will beat. Default 1 s.
    pub fn heartbeat_interval(mut self, interval: Duration) -> Options {
        self.heartbeat_interval = interval;
        self
    }

    /// A worker without a heartbeat for this long is stalled. Default 5 s, at least one interval.
    pub fn stall_after(mut self, limit: Duration) -> Options {
        self.stall_after = limit;
        self
    }

    /// How long to wait for the node lock before a call fails. Default 30 s.
    pub fn lock_timeout(mut self, limit: Duration) -> Options {
        self.lock_timeout = limit;
        self
    }

    /// How many processes the registry holds. Default 1,024.
    pub fn slots(mut self, slots: u32) -> Options {
        self.slots = slots;
        self
    }

    /// How many events the journal keeps. Default 4,096.
    pub fn journal_records(mut self, records: u32) -> Options {
        self.journal_records = records;
        self
    }

    /// This server takes over from the running master with this pid. Not needed when that master is the
    /// parent process, as it is in nginx's binary upgrade.
    pub fn takes_over_from(mut self, master_pid: u32) -> Options {
        self.predecessor = Some(master_pid);
        self
    }

    /// Opens the node. To be called in the master before it forks; each later call with the same path in
    /// the same process gives the same node, with the new timings.
    ///
    /// Where no file can be made or used, or its lock is held by somebody for 5 s, the node runs on memory of its
    /// own, and [`crate::Node::take_notices`] says why. Where another live server has the node already, or is just
    /// starting under it, this one becomes `NAME-2`, and a notice says so.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] for an option that is not allowed, [`ErrorKind::Io`] when there is
    /// not even memory.
    pub fn open(&self) -> Result<Master> {
        let settings = self.settings()?;
        let path = self.path.clone().unwrap_or_else(|| default_path(&self.node));
        let (name, geometry) = (self.node.clone(), self.geometry()?);
        let request = Request { name, path, geometry, settings, predecessor: self.predecessor };
        Ok(Master::new(opening::open(&request)?))
    }

    fn geometry(&self) -> Result<Geometry> {
        Geometry::new(self.slots, self.journal_records)
    }

    /// Checks everything that can be wrong with the options alone.
    fn settings(&self) -> Result<Settings> {
        let invalid = |message: String| Err(Error::new(ErrorKind::InvalidOption, message));
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let name = self.node.as_bytes();
        if name.is_empty() || name.len() > 48 || !name.iter().all(|&b| allowed(b)) || name[0] == b'.' {
            return invalid(format!(
                "option `node` is {:?}; allowed are 1 to 48 letters, digits, `.`, `_` and `-`, not beginning with `.`",
                self.node
            ));
        }
        if let Some(path) = self.path.as_ref().filter(|p| !p.is_absolute() || p.file_name().is_none()) {
            return invalid(format!(
                "option `path` is {}; allowed is the absolute path of a file",
                path.display()
            ));
        }
        let bounds = Duration::from_millis(1)..=Duration::from_secs(86_400);
        for (option, value) in [
            ("heartbeat_interval", self.heartbeat_interval),
            ("stall_after", self.stall_after),
            ("lock_timeout", self.lock_timeout),
        ] {
            if !bounds.contains(&value) {
                return invalid(format!("option `{option}` is {value:?}; allowed are 1 ms to 1 day"));
            }
        }
        if self.stall_after <= self.heartbeat_interval {
            return invalid(format!(
                "option `stall_after` is {:?}; it must be longer than `heartbeat_interval`, which is {:?}",
                self.stall_after, self.heartbeat_interval
            ));
        }
        self.geometry()?;
        Ok(Settings {
            heartbeat_interval: self.heartbeat_interval,
            stall_after: self.stall_after,
            lock_timeout: self.lock_timeout,
        })
    }
}

impl Default for NodeSettings {
    /// Those of a node that was opened with nothing but a name.
    fn default() -> NodeSettings {
        let Options { heartbeat_interval, stall_after, lock_timeout, .. } = Options::new("");
        NodeSettings { heartbeat_interval, stall_after, lock_timeout }
    }
}

/// Where the registries of this user's nodes are, unless a path was given: `HEADCOUNT_RUNTIME_DIR`, or
/// `/run/headcount` for root, or `headcount` in `XDG_RUNTIME_DIR` or `/run/user/UID`, or `/dev/shm/headcount-UID`.
#[must_use]
pub fn default_folder() -> PathBuf {
    files::default_folder()
}

/// Where the registry of the node of this name is, unless a path was given.
#[must_use]
pub fn default_path(node: &str) -> PathBuf {
    // Appended by hand: `with_extension` would cut a name such as `api.v2`.
    files::default_folder().join(format!("{node}.registry"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bad_option_is_named() {
        let ok = || Options::new("n");
        let ms = Duration::from_millis;
        for (options, name) in [
            (Options::new(""), "node"),
            (Options::new("a/b"), "node"),
            (Options::new("..x"), "node"),
            (ok().path("relative"), "path"),
            (ok().heartbeat_interval(Duration::ZERO), "heartbeat_interval"),
            (ok().heartbeat_interval(ms(500)).stall_after(ms(500)), "stall_after"),
            (ok().lock_timeout(Duration::from_secs(90_000)), "lock_timeout"),
            (ok().slots(1), "slots"),
            (ok().journal_records(3), "journal_records"),
        ] {
            let error = options.settings().err().unwrap_or_else(|| panic!("{name} was accepted"));
            assert_eq!(error.kind(), ErrorKind::InvalidOption);
            assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
        }
    }

    #[test]
    fn a_dot_in_the_name_stays() {
        assert!(default_path("api.v2").ends_with("api.v2.registry"));
    }
}
