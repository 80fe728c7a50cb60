//! A folder of this process alone, in memory, and a child that removes it when this process ends, however it ends.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The folder, and who keeps it.
struct Room {
    folder: PathBuf,
    keeper: u32,
}

fn room() -> &'static Room {
    static ROOM: OnceLock<Room> = OnceLock::new();
    ROOM.get_or_init(|| {
        let folder = tempfile::Builder::new().prefix("headcount-fuzz-").tempdir_in("/dev/shm");
        let folder = folder.expect("a folder in /dev/shm").keep();
        let keeper = Command::new("sh")
            .args(["-c", "cat; rm -rf \"$1\"", "sh"])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("sh");
        let pid = keeper.id();
        // Its input ends when this process does.
        std::mem::forget(keeper);
        Room { folder, keeper: pid }
    })
}

/// Where files may lie.
pub(crate) fn folder() -> &'static Path {
    &room().folder
}

/// A child that lives as long as this process.
pub(crate) fn keeper() -> u32 {
    room().keeper
}
