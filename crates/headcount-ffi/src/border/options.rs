//! How C says how a node is opened, and how a process joins it.

use std::ffi::c_char;
use std::path::PathBuf;
use std::time::Duration;

use headcount_core::{ErrorKind, Join, NodeSettings, Options, Wait, default_node, default_path};

use crate::border::entry::{Failure, Sized32, string, wait};
use crate::border::words::{HEADCOUNT_ROLE_HELPER, HEADCOUNT_ROLE_WORKER};

/// How a node is opened. Zero it, set `struct_size`, and set what shall not have its default.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// sizeof(headcount_options).
    pub struct_size: u32,
    /// How many processes the registry holds. 0: 1,024.
    pub slots: u32,
    /// How many roles, onces and locks the node can have at a time. 0: 256.
    pub singletons: u32,
    /// How many events the journal keeps. 0: 4,096.
    pub journal_records: u32,
    /// The pid of the master that this server takes over from, if that is not its parent. 0: none.
    pub takes_over_from: u32,
    /// 0.
    pub reserved: u32,
    /// The node's name: 1 to 48 letters, digits, '.', '_' and '-', not beginning with '.'. NULL: the name of the
    /// program's file.
    pub node: *const c_char,
    /// The registry's file, an absolute path. NULL: /run/headcount/NAME.registry for root, otherwise
    /// $XDG_RUNTIME_DIR/headcount/NAME.registry or /dev/shm/headcount-UID/NAME.registry.
    pub path: *const c_char,
    /// How often a worker will beat, in milliseconds. 0: 1,000.
    pub heartbeat_interval_ms: u64,
    /// After how many milliseconds without a heartbeat a worker is stalled. 0: five heartbeats, at least 5,000 and
    /// at most a day.
    pub stall_after_ms: u64,
    /// How many milliseconds to wait for the node lock. 0: 30,000.
    pub lock_timeout_ms: u64,
}

// SAFETY: repr(C), integers and pointers only, and it begins with its size.
unsafe impl Sized32 for OpenOptions {
    const NAME: &'static str = "headcount_options";
}

/// The core's options, and the path by which the core tells nodes apart.
pub(crate) struct Wanted {
    pub(crate) options: Options,
    pub(crate) path: PathBuf,
}

impl OpenOptions {
    /// What is not 0 or NULL is set; what is allowed is for the core to say.
    ///
    /// # Safety
    /// The strings are NULL or NUL-terminated.
    pub(crate) unsafe fn wanted(&self) -> Result<Wanted, Failure> {
        // SAFETY: by the caller's word.
        let (name, path) = unsafe { (string(self.node, "node")?, string(self.path, "path")?) };
        let name = name.unwrap_or_else(default_node);
        let mut options = Options::new(&name);
        let path = match path {
            Some(path) => PathBuf::from(path),
            None => default_path(&name),
        };
        // A name that is not allowed must not lead to a path outside of the default folder, nor to a
        // complaint about the option `path`, which nobody has set.
        if !self.path.is_null() {
            options = options.path(&path);
        }
        if self.slots != 0 {
            options = options.slots(self.slots);
        }
        if self.singletons != 0 {
            options = options.singletons(self.singletons);
        }
        if self.journal_records != 0 {
            options = options.journal_records(self.journal_records);
        }
        if self.takes_over_from != 0 {
            options = options.takes_over_from(self.takes_over_from);
        }
        if self.heartbeat_interval_ms != 0 {
            options = options.heartbeat_interval(Duration::from_millis(self.heartbeat_interval_ms));
        }
        if self.stall_after_ms != 0 {
            options = options.stall_after(Duration::from_millis(self.stall_after_ms));
        }
        if self.lock_timeout_ms != 0 {
            options = options.lock_timeout(Duration::from_millis(self.lock_timeout_ms));
        }
        Ok(Wanted { options, path })
    }

    /// The same with the timings that a node would have.
    pub(crate) fn with_timings(self, timings: NodeSettings) -> OpenOptions {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        OpenOptions {
            heartbeat_interval_ms: ms(timings.heartbeat_interval),
            stall_after_ms: ms(timings.stall_after),
            lock_timeout_ms: ms(timings.lock_timeout),
            ..self
        }
    }
}

/// How a process joins a generation.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct JoinOptions {
    /// sizeof(headcount_join_options).
    pub struct_size: u32,
    /// HEADCOUNT_ROLE_WORKER or HEADCOUNT_ROLE_HELPER. 0: worker.
    pub role: u32,
    /// The generation, as `headcount_begin` gave it to the master.
    pub generation: u64,
    /// The worker's number within its generation, best counted from 0; HEADCOUNT_NONE if it has none. One that
    /// replaces another has its number.
    pub worker_id: i32,
    /// The pid of the worker that it replaces; 0: it replaces none; -1: one that is not known.
    pub replaces_pid: i32,
    /// How many milliseconds to wait for the node lock; HEADCOUNT_WAIT_LOCK_TIMEOUT, HEADCOUNT_WAIT_TRY.
    pub wait_ms: i64,
}

// SAFETY: repr(C), integers only, and it begins with its size.
unsafe impl Sized32 for JoinOptions {
    const NAME: &'static str = "headcount_join_options";
}

impl JoinOptions {
    pub(crate) fn join(&self) -> Result<(Join, Wait), Failure> {
        let invalid = |message: String| Failure::new(ErrorKind::InvalidOption, message);
        let join = match self.role {
            0 | HEADCOUNT_ROLE_WORKER => Join::worker(u32::try_from(self.worker_id).ok()),
            HEADCOUNT_ROLE_HELPER => Join::helper(),
            other => {
                return Err(invalid(format!(
                    "option `role` is {other}; allowed are 2 (worker) and 3 (helper)"
                )));
            }
        };
        if self.generation == 0 {
            return Err(invalid(
                "option `generation` is 0: give the number that headcount_begin gave".to_owned(),
            ));
        }
        Ok((join.respawned(self.replaces_pid != 0), wait(self.wait_ms)?))
    }
}
