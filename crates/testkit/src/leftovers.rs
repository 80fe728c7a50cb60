//! Files that a server must not leave behind outside its folder.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
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

    /// New names that belong to one of these processes. Other tests run meanwhile, so a new name
    /// alone says nothing: it must carry a pid of the server, or belong to the workers' user.
    pub fn found(&self, pids: &BTreeSet<i32>) -> Vec<PathBuf> {
        let look = || -> Vec<PathBuf> {
            ours()
                .difference(&self.before)
                .filter(|path| {
                    let name = path.to_string_lossy();
                    let mut numbers =
                        name.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok());
                    let by_pid = numbers.any(|n: i32| pids.contains(&n));
                    by_pid || owned_by_workers(path)
                })
                .cloned()
                .collect()
        };
        // Another test's worker may be between making its socket and unlinking it.
        let clean = wait::poll(Duration::from_secs(1), || look().is_empty().then_some(()));
        if clean.is_some() { Vec::new() } else { look() }
    }
}

fn owned_by_workers(path: &PathBuf) -> bool {
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
