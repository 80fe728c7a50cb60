//! What was looked at, and what is to be thought of it.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// What is to be thought of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Good,
    /// Good to know: nothing is wrong, or nobody can say.
    Note,
    /// To be mended.
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

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub level: Level,
    pub text: String,
    pub mend: Option<String>,
}

impl Check {
    pub fn good(text: impl Into<String>) -> Check {
        Check { level: Level::Good, text: text.into(), mend: None }
    }

    pub fn note(text: impl Into<String>) -> Check {
        Check { level: Level::Note, text: text.into(), mend: None }
    }

    pub fn finding(text: impl Into<String>, mend: impl Into<String>) -> Check {
        Check { level: Level::Finding, text: text.into(), mend: Some(mend.into()) }
    }

    pub fn with_mend(mut self, mend: impl Into<String>) -> Check {
        self.mend = Some(mend.into());
        self
    }
}

/// What was looked at together: the kernel, a folder, a registry.
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
    /// Of the file itself, not of where a link leads.
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
