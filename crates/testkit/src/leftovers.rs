//! Files that a server must not leave behind outside its folder.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::folder::PREFIX;
use crate::wait;

const PLACES: [&str; 3] = ["/dev/shm", "/run", "/tmp"];

/// What lay about before the server started.
#[derive(Debug)]
pub struct Leftovers {
    before: BTreeSet<PathBuf>,
}

impl Leftovers {
    /// Looks around.
    pub fn before() -> Self {
        Self { before: ours() }
    }

    /// New names that belong to one of these processes. Other tests run meanwhile, so a new name alone
    /// says nothing. One that carries a number carries the pid of who made it; else its owner must do.
    pub fn found(&self, pids: &BTreeSet<i32>) -> Vec<PathBuf> {
        let look = || -> Vec<PathBuf> {
            let belongs = |path: &&PathBuf| match first_number(path) {
                Some(pid) => pids.contains(&pid),
                None => owned_by_workers(path),
            };
            ours().difference(&self.before).filter(belongs).cloned().collect()
        };
        // Somebody may be between making a file and unlinking it.
        let clean = wait::poll(Duration::from_secs(1), || look().is_empty().then_some(()));
        if clean.is_some() { Vec::new() } else { look() }
    }
}

fn first_number(path: &Path) -> Option<i32> {
    let name = path.file_name()?.to_string_lossy();
    name.split(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty())?.parse().ok()
}

fn owned_by_workers(path: &Path) -> bool {
    const WWW_DATA: u32 = 33;
    fs::symlink_metadata(path).is_ok_and(|meta| meta.uid() == WWW_DATA)
}

fn ours() -> BTreeSet<PathBuf> {
    PLACES
        .iter()
        .filter_map(|place| fs::read_dir(place).ok())
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.contains("headcount") && !name.starts_with(PREFIX)
        })
        .map(|entry| entry.path())
        .collect()
}
