//! What was checked, and the verdict on it.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// The verdict on one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Good,
    /// Worth knowing: nothing is wrong, or it cannot be told.
    Note,
    /// A problem to fix.
    Finding,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Level::Good => "ok",
            Level::Note => "note",
            Level::Finding => "finding",
        }
    }
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub level: Level,
    pub text: String,
    pub fix: Option<String>,
}

impl Check {
    pub fn good(text: impl Into<String>) -> Check {
        Check { level: Level::Good, text: text.into(), fix: None }
    }

    pub fn note(text: impl Into<String>) -> Check {
        Check { level: Level::Note, text: text.into(), fix: None }
    }

    pub fn finding(text: impl Into<String>, fix: impl Into<String>) -> Check {
        Check { level: Level::Finding, text: text.into(), fix: Some(fix.into()) }
    }

    pub fn with_fix(mut self, fix: impl Into<String>) -> Check {
        self.fix = Some(fix.into());
        self
    }
}

/// Checks that belong together: the kernel, a folder, a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    pub subject: String,
    pub checks: Vec<Check>,
}

/// What the file system says of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFacts {
    pub kind: FileKind,
    pub uid: u32,
    /// The permissions alone.
    pub mode: u32,
    pub links: u64,
    pub size: u64,
    /// Device and inode.
    pub identity: (u64, u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    Regular,
    Folder,
    Fifo,
    Link,
    Other,
}

impl FileKind {
    pub fn name(self) -> &'static str {
        match self {
            FileKind::Regular => "regular file",
            FileKind::Folder => "folder",
            FileKind::Fifo => "FIFO",
            FileKind::Link => "symbolic link",
            FileKind::Other => "device or socket",
        }
    }
}

impl FileFacts {
    /// Of the file itself, not of what a link points to.
    pub fn of(path: &Path) -> std::io::Result<FileFacts> {
        let meta = std::fs::symlink_metadata(path)?;
        let kind = meta.file_type();
        Ok(FileFacts {
            kind: match () {
                () if kind.is_file() => FileKind::Regular,
                () if kind.is_dir() => FileKind::Folder,
                () if kind.is_fifo() => FileKind::Fifo,
                () if kind.is_symlink() => FileKind::Link,
                () => FileKind::Other,
            },
            uid: meta.uid(),
            mode: meta.mode() & 0o7777,
            links: meta.nlink(),
            size: meta.len(),
            identity: (meta.dev(), meta.ino()),
        })
    }

    /// `belongs to uid 0, mode 0644`.
    pub fn whose(&self) -> String {
        format!("belongs to uid {}, mode {:04o}", self.uid, self.mode)
    }
}
