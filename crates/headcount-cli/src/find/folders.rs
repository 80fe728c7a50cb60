//! The folders where registries may be.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use headcount::{FolderWatch, default_folder, named_folder};

/// The folders to look for nodes in: our own and, unless the environment names that one, those of other users.
pub fn folders() -> Vec<PathBuf> {
    let mut folders = vec![default_folder()];
    if named_folder().is_none() {
        folders.push(PathBuf::from("/run/headcount"));
        let mut others: Vec<_> = children("/run/user").map(|user| user.join("headcount")).collect();
        others.extend(children("/dev/shm").filter(|path| {
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"headcount-"))
        }));
        // A link to another folder would show its nodes twice, and so make their names ambiguous.
        others.retain(|folder| !folder.is_symlink());
        folders.extend(others);
    }
    let mut seen = BTreeSet::new();
    folders.retain(|folder| seen.insert(folder.clone()));
    folders
}

/// What changes when a node appears or disappears: the folders of nodes, and those in which such a folder may appear.
fn watched_folders() -> Vec<PathBuf> {
    let mut folders = folders();
    if folders.len() > 1 {
        folders.extend(["/run/user", "/dev/shm"].map(PathBuf::from));
    }
    folders
}

/// None if a folder is missing, or we may not read it.
pub fn children(folder: impl AsRef<Path>) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// All of them, watched: the descriptor is readable when something has changed.
///
/// Look for registries after you have asked or refreshed this: then what appears later is told.
pub struct Folders {
    watch: FolderWatch,
}

impl Folders {
    pub fn watch() -> headcount::Result<Folders> {
        Ok(Folders { watch: FolderWatch::new(watched_folders())? })
    }

    /// Whether something has changed since this was asked last.
    pub fn changed(&mut self) -> headcount::Result<bool> {
        self.watch.changed()
    }

    /// Also watches folders that have appeared since.
    pub fn refresh(&mut self) -> headcount::Result<()> {
        self.watch.set(watched_folders())
    }
}

impl AsFd for Folders {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}
