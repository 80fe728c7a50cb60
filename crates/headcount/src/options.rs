//! How a node is opened: every option's default, its bounds, and the one message about a wrong one. C library, Lua and
//! nginx module pass on what they are given, and put their own names and units into that message.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::engine::inner::Settings;
use crate::engine::opening::{self, Request};
use crate::error::{Allowed, Error, ErrorKind, Result};
use crate::master::Master;
use crate::observer::Observer;
use crate::registry::layout::{Geometry, LONGEST_NAME, is_in_a_name};
use crate::registry::{files, store};
use crate::snapshot::NodeSettings;
use crate::stale;
use crate::sys::identity::Liveness;

const SHORTEST: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(86_400);
const LONGEST: Duration = DAY;
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);
const SLOTS: u32 = 1024;
const SINGLETONS: u32 = 256;
const JOURNAL_RECORDS: u32 = 4096;
/// `stall_after` is so many heartbeats, and no less than so long.
const STALL_HEARTBEATS: u32 = 5;
const STALL_AT_LEAST: Duration = Duration::from_secs(5);

/// How a node is opened. All options have defaults; only the name is asked for.
///
/// Two of them depend on each other: a worker is stalled after five heartbeats, but no sooner than after 5 s and no later
/// than after a day, unless [`Options::stall_after`] is set. So whoever only sets [`Options::heartbeat_interval`] to 10 s
/// has workers stalled after 50 s.
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
    /// None: as the heartbeat says.
    stall_after: Option<Duration>,
    lock_timeout: Duration,
    slots: u32,
    singletons: u32,
    journal_records: u32,
    predecessor: Option<u32>,
}

impl Options {
    /// Options for the node of this name: 1 to 48 letters, digits, `.`, `_` and `-`, not beginning with `.`. A server that
    /// has no name of its own to give takes [`default_node`].
    pub fn new(node: impl Into<String>) -> Options {
        Options {
            node: node.into(),
            path: None,
            heartbeat_interval: HEARTBEAT_INTERVAL,
            stall_after: None,
            lock_timeout: LOCK_TIMEOUT,
            slots: SLOTS,
            singletons: SINGLETONS,
            journal_records: JOURNAL_RECORDS,
            predecessor: None,
        }
    }

    /// The registry's file, an absolute path. Default: `/run/headcount/NAME.registry` for root, otherwise
    /// `$XDG_RUNTIME_DIR/headcount/NAME.registry` or `/dev/shm/headcount-UID/NAME.registry`.
    pub fn path(mut self, path: impl Into<PathBuf>) -> Options {
        self.path = Some(path.into());
        self
    }

    /// How often a worker will beat, from 1 ms to a day. Default 1 s.
    pub fn heartbeat_interval(mut self, interval: Duration) -> Options {
        self.heartbeat_interval = interval;
        self
    }

    /// A worker without a heartbeat for this long is stalled: more than the interval, and at most a day. Default: five
    /// intervals, at least 5 s, at most a day.
    pub fn stall_after(mut self, limit: Duration) -> Options {
        self.stall_after = Some(limit);
        self
    }

    /// How long to wait for the node lock before a call fails, from 1 ms to a day. Default 30 s.
    pub fn lock_timeout(mut self, limit: Duration) -> Options {
        self.lock_timeout = limit;
        self
    }

    /// How many processes the registry holds, from 2 to 65,536. Default 1,024.
    pub fn slots(mut self, slots: u32) -> Options {
        self.slots = slots;
        self
    }

    /// How many roles, onces and locks the node can have at a time, from 1 to 65,536. Default 256.
    pub fn singletons(mut self, singletons: u32) -> Options {
        self.singletons = singletons;
        self
    }

    /// How many events the journal keeps, from 64 to 1,048,576. Default 4,096.
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
    /// the same process gives the same node, with the new timings. Call it at each reload: if somebody has removed the registry
    /// while the server runs, it makes another, which goes on with number and journal.
    ///
    /// Where no file can be made or used, or its lock is held by somebody for 5 s, the node runs on memory of its
    /// own, and [`crate::Node::take_notices`] says why. Where another live server has the node already, or is just
    /// starting under it, this one becomes `NAME-2`, and a notice says so.
    ///
    /// # Errors
    /// [`crate::ErrorKind::InvalidOption`] for an option that is not allowed, [`crate::ErrorKind::Io`] when there is
    /// not even memory.
    pub fn open(&self) -> Result<Master> {
        let NodeSettings { heartbeat_interval, stall_after, lock_timeout } = self.check()?;
        let path = self.path.clone().unwrap_or_else(|| default_path(&self.node));
        let (name, geometry) = (self.node.clone(), self.geometry()?);
        let settings = Settings { heartbeat_interval, stall_after, lock_timeout };
        let request = Request { name, path, geometry, settings, predecessor: self.predecessor };
        let master = Master::new(opening::open(&request)?);
        if self.path.is_none() && master.node().newest_begun().is_none() {
            // It has just started. A node that stops every evening keeps its history.
            stale::sweep(&files::default_folder(), 7 * DAY);
        }
        Ok(master)
    }

    /// Whether a server that starts now could use the registry's file, as far as that shows without making, locking or
    /// changing anything: for the test of a configuration.
    ///
    /// # Errors
    /// As those of [`Options::check`]; [`ErrorKind::InUse`] if a node of another name lives there; and what is wrong with the
    /// file or its folder.
    pub fn look(&self) -> Result<()> {
        self.check()?;
        let path = self.path.clone().unwrap_or_else(|| default_path(&self.node));
        store::look(&path)?;
        match Observer::open(&path).and_then(|observer| observer.snapshot()) {
            Ok(there)
                if there.liveness() == Liveness::Alive && !opening::is_name_of(&there.node, &self.node) =>
            {
                Err(Error::new(ErrorKind::InUse, opening::other_name(&path, &there.node, &self.node)))
            }
            // One that cannot be read is not in use, or `store::look` has said what is wrong.
            _ => Ok(()),
        }
    }

    /// Checks all that can be wrong with the options alone, without opening anything. Gives the timings that the node
    /// would have.
    ///
    /// # Errors
    /// [`crate::ErrorKind::InvalidOption`]; [`Error::wrong_option`] says which.
    pub fn check(&self) -> Result<NodeSettings> {
        if !is_name(&self.node) {
            return Err(Error::option("node", format!("{:?}", self.node), Allowed::Name));
        }
        if let Some(path) = self.path.as_ref().filter(|path| !is_path_of_file(path)) {
            return Err(Error::option("path", format!("{path:?}"), Allowed::File));
        }
        let stall_after = self.stall_after.unwrap_or_else(|| {
            self.heartbeat_interval.saturating_mul(STALL_HEARTBEATS).clamp(STALL_AT_LEAST, LONGEST)
        });
        for (option, value) in [
            ("heartbeat_interval", self.heartbeat_interval),
            ("stall_after", stall_after),
            ("lock_timeout", self.lock_timeout),
        ] {
            if !(SHORTEST..=LONGEST).contains(&value) {
                let allowed = Allowed::Time { from: SHORTEST, to: LONGEST };
                return Err(Error::option(option, format!("{value:?}"), allowed));
            }
        }
        if stall_after <= self.heartbeat_interval {
            let allowed = Allowed::LongerThan { option: "heartbeat_interval", time: self.heartbeat_interval };
            return Err(Error::option("stall_after", format!("{stall_after:?}"), allowed));
        }
        self.geometry()?;
        let &Options { heartbeat_interval, lock_timeout, .. } = self;
        Ok(NodeSettings { heartbeat_interval, stall_after, lock_timeout })
    }

    fn geometry(&self) -> Result<Geometry> {
        Geometry::new(self.slots, self.singletons, self.journal_records)
    }
}

fn is_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len()) && name.chars().all(is_in_a_name) && !name.starts_with('.')
}

/// As it is written: a folder need not be there yet to be meant.
fn is_path_of_file(path: &Path) -> bool {
    let last = path.as_os_str().as_bytes().rsplit(|&b| b == b'/').next();
    let means_a_folder = matches!(last, None | Some(b"" | b"." | b".."));
    path.is_absolute() && !means_a_folder && !path.is_dir()
}

impl Default for NodeSettings {
    /// Those of a node that was opened with nothing but a name.
    fn default() -> NodeSettings {
        NodeSettings {
            heartbeat_interval: HEARTBEAT_INTERVAL,
            stall_after: STALL_AT_LEAST,
            lock_timeout: LOCK_TIMEOUT,
        }
    }
}

/// A name for the node of a server that gives none: that of the program's file, made to fit.
#[must_use]
pub fn default_node() -> String {
    name_of_program(&std::env::current_exe().unwrap_or_default())
}

fn name_of_program(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    // What the kernel appends once the file was replaced, as in a binary upgrade.
    let name = name.trim_end_matches(" (deleted)").trim_start_matches('.');
    let fit = |c: char| if is_in_a_name(c) { c } else { '_' };
    let name: String = name.chars().map(fit).take(LONGEST_NAME).collect();
    if name.is_empty() { "server".to_owned() } else { name }
}

/// Where the registries of this user's nodes are, unless a path was given: `HEADCOUNT_RUNTIME_DIR`, or
/// `/run/headcount` for root, or `headcount` in `XDG_RUNTIME_DIR` or `/run/user/UID`, or `/dev/shm/headcount-UID`.
#[must_use]
pub fn default_folder() -> PathBuf {
    files::default_folder()
}

/// The folder that `HEADCOUNT_RUNTIME_DIR` names, if it does: then registries are there, and looked for nowhere else.
#[must_use]
pub fn named_folder() -> Option<PathBuf> {
    files::named_folder()
}

/// Whether a registry is root's or this user's, or the user said where to look ([`named_folder`]). Anybody else can make one of any name,
/// too, and must not stand in the way of it.
#[must_use]
pub fn is_ours(registry: &Path) -> bool {
    files::is_ours(registry)
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
    use crate::error::ErrorKind;

    const MS: fn(u64) -> Duration = Duration::from_millis;
    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn each_bad_option_is_named() {
        let ok = || Options::new("n");
        for (options, name) in [
            (Options::new(""), "node"),
            (Options::new("a/b"), "node"),
            (Options::new("..x"), "node"),
            (Options::new("n".repeat(49)), "node"),
            (ok().path("relative"), "path"),
            (ok().heartbeat_interval(Duration::ZERO), "heartbeat_interval"),
            (ok().heartbeat_interval(MS(500)).stall_after(MS(500)), "stall_after"),
            (ok().heartbeat_interval(S(86_400)), "stall_after"),
            (ok().stall_after(S(86_401)), "stall_after"),
            (ok().lock_timeout(S(90_000)), "lock_timeout"),
            (ok().slots(1), "slots"),
            (ok().singletons(0), "singletons"),
            (ok().journal_records(3), "journal_records"),
        ] {
            let error = options.check().err().unwrap_or_else(|| panic!("{name} was accepted"));
            assert_eq!(error.kind(), ErrorKind::InvalidOption);
            assert_eq!(error.wrong_option().map(|wrong| wrong.option), Some(name), "{error}");
            assert!(error.to_string().starts_with(&format!("option `{name}` is ")), "{error}");
        }
    }

    #[test]
    fn the_names_of_the_options_are_those_of_what_sets_them() {
        let error = Options::new("n").heartbeat_interval(S(2)).stall_after(S(1)).check().err().unwrap();
        assert_eq!(
            error.to_string(),
            "option `stall_after` is 1s; allowed is a time longer than `heartbeat_interval`, which is 2s"
        );
        let wrong = error.wrong_option().unwrap();
        assert_eq!(wrong.allowed, Allowed::LongerThan { option: "heartbeat_interval", time: S(2) });
    }

    #[test]
    fn a_heartbeat_given_alone_moves_the_stall_with_it_up_to_a_day() {
        let stall_after = |options: Options| options.check().unwrap().stall_after;
        let beating = |interval| Options::new("n").heartbeat_interval(interval);
        assert_eq!(stall_after(Options::new("n")), S(5));
        assert_eq!(stall_after(beating(MS(1))), S(5));
        assert_eq!(stall_after(beating(S(10))), S(50));
        assert_eq!(stall_after(beating(S(86_399))), S(86_400));
        assert_eq!(stall_after(beating(S(10)).stall_after(S(11))), S(11));
        // In whichever order they are given.
        assert_eq!(stall_after(Options::new("n").stall_after(S(11)).heartbeat_interval(S(10))), S(11));
        assert_eq!(Options::new("n").check().unwrap(), NodeSettings::default());
    }

    #[test]
    fn a_path_that_means_a_folder_is_refused_whether_it_is_there_or_not() {
        let check = |path: &str| Options::new("n").path(path).check();
        for path in ["", "/", "/nowhere/", "/nowhere/.", "/nowhere/..", "relative", "/proc"] {
            let error = check(path).err().unwrap_or_else(|| panic!("{path} was accepted"));
            assert_eq!(error.wrong_option().map(|wrong| wrong.option), Some("path"), "{error}");
        }
        for path in ["/nowhere/x", "/proc/cpuinfo", "/.x"] {
            assert!(check(path).is_ok(), "{path}");
        }
    }

    #[test]
    fn a_program_gives_its_name() {
        assert_eq!(name_of_program(Path::new("/usr/sbin/nginx")), "nginx");
        assert_eq!(name_of_program(Path::new("/opt/my app (deleted)")), "my_app");
        assert_eq!(name_of_program(Path::new("/opt/.hidden")), "hidden");
        assert_eq!(name_of_program(Path::new("/")), "server");
        assert_eq!(name_of_program(Path::new(&"x".repeat(80))).len(), 48);
        assert!(Options::new(default_node()).check().is_ok());
    }

    #[test]
    fn a_dot_in_the_name_stays() {
        assert!(default_path("api.v2").ends_with("api.v2.registry"));
    }

    #[test]
    fn a_registry_of_root_or_of_this_user_is_ours() {
        if named_folder().is_some() || !rustix::process::geteuid().is_root() {
            return eprintln!(
                "skipped: only root can give a file away, and all in HEADCOUNT_RUNTIME_DIR are ours"
            );
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n.registry");
        assert!(!is_ours(&path), "there is none");
        std::fs::write(&path, "").unwrap();
        assert!(is_ours(&path));
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        assert!(!is_ours(&path));
        // Whoever makes a link to one of ours has made none.
        let link = folder.path().join("link.registry");
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(65534), None).unwrap();
        assert!(!is_ours(&link));
    }
}
