//! A test's own folder, removed at its end.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Every temporary thing of this crate begins so, and is no leftover of a server.
pub const PREFIX: &str = "headcount-testkit-";

/// A folder that workers may enter but not write to.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes a folder with the parts that every server needs.
    pub fn new() -> Self {
        let name = format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        // Of an earlier process with this pid that was killed.
        let _ = fs::remove_dir_all(&path);
        let folder = Self { path };
        for part in ["", "temp", "run"] {
            make(&folder.at(part), 0o755);
        }
        // Workers run as www-data; they leave marks and reports here.
        make(&folder.at("markers"), 0o777);
        folder.write("reports.jsonl", "");
        chmod(&folder.at("reports.jsonl"), 0o666);
        folder
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Something in it.
    pub fn at(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.path.clone() } else { self.path.join(name) }
    }

    /// Writes a file in it.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.at(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).unwrap_or_else(|e| panic!("{}: {e}", parent.display()));
        }
        fs::write(&path, text).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
    }

    /// The same at once: whoever reads it meanwhile finds the old or the new text.
    pub fn replace(&self, name: &str, text: &str) {
        let new = format!("{name}.new");
        self.write(&new, text);
        fs::rename(self.at(&new), self.at(name)).unwrap_or_else(|e| panic!("cannot replace {name}: {e}"));
    }

    /// Reads a file in it; empty when there is none.
    pub fn read(&self, name: &str) -> String {
        let bytes = fs::read(self.at(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::env::var_os("HEADCOUNT_TEST_KEEP").is_some() {
            eprintln!("kept: {}", self.path.display());
        } else {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn make(path: &Path, mode: u32) {
    fs::create_dir_all(path).unwrap_or_else(|e| panic!("cannot make {}: {e}", path.display()));
    chmod(path, mode);
}

/// Sets a mode whatever the umask is.
pub fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .unwrap_or_else(|e| panic!("cannot chmod {}: {e}", path.display()));
}
