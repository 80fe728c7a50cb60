//! How C says how a node is opened.

use std::ffi::c_char;
use std::path::{Path, PathBuf};
use std::time::Duration;

use headcount_core::{Options, default_path};

use crate::border::{Failure, Sized32, string};

/// How a node is opened. Zero it, set `struct_size`, and set what shall not have its default.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// sizeof(headcount_options).
    pub struct_size: u32,
    /// How many processes the registry holds. 0: 1,024.
    pub slots: u32,
    /// How many events the journal keeps. 0: 4,096.
    pub journal_records: u32,
    /// The pid of the master that this server takes over from, if that is not its parent. 0: none.
    pub takes_over_from: u32,
    /// The node's name, at most 48 letters, digits, '.', '_' and '-'. NULL: the name of the program's file.
    pub node: *const c_char,
    /// The registry's file, an absolute path. NULL: /run/headcount/NAME.registry for root, otherwise
    /// $XDG_RUNTIME_DIR/headcount/NAME.registry or /dev/shm/headcount-UID/NAME.registry.
    pub path: *const c_char,
    /// How often a worker will beat, in milliseconds. 0: 1,000.
    pub heartbeat_interval_ms: u64,
    /// After how many milliseconds without a heartbeat a worker is stalled. 0: 5,000.
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
    /// # Safety
    /// The strings are NULL or NUL-terminated.
    pub(crate) unsafe fn wanted(&self) -> Result<Wanted, Failure> {
        // SAFETY: by the caller's word.
        let (name, path) = unsafe { (string(self.node, "node")?, string(self.path, "path")?) };
        let name = name.unwrap_or_else(name_of_program);
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
}

/// A name for a node whose server gives none: that of the program's file, made to fit.
fn name_of_program() -> String {
    let file = std::env::current_exe().unwrap_or_default();
    name_from(&file)
}

fn name_from(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    // What the kernel appends once the file was replaced, as in a binary upgrade.
    let name = name.trim_end_matches(" (deleted)").trim_start_matches('.');
    let fit = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' };
    let name: String = name.chars().map(fit).take(48).collect();
    if name.is_empty() { "server".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_gives_its_name() {
        assert_eq!(name_from(Path::new("/usr/sbin/nginx")), "nginx");
        assert_eq!(name_from(Path::new("/opt/my app (deleted)")), "my_app");
        assert_eq!(name_from(Path::new("/opt/.hidden")), "hidden");
        assert_eq!(name_from(Path::new("/")), "server");
        assert_eq!(name_from(Path::new(&"x".repeat(80))).len(), 48);
    }
}
