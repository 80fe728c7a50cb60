//! Where a node's files lie, and whether they may be trusted.
//!
//! The registry may be read by anybody; what is locked may not, because whoever can read a file can also
//! put a lock on it, and so hold up the whole node. Hence the lock file of its own, mode 0600.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, mknodat, open};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};

pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(suffix);
    PathBuf::from(name)
}

pub(crate) fn lock_path(registry: &Path) -> PathBuf {
    beside(registry, ".lock")
}

pub(crate) fn wake_path(registry: &Path) -> PathBuf {
    beside(registry, ".wake")
}

/// Where registries live unless a path is given.
pub(crate) fn default_folder() -> PathBuf {
    // For containers and tests whose /run is not theirs.
    if let Some(folder) = std::env::var_os("HEADCOUNT_RUNTIME_DIR").filter(|f| !f.is_empty()) {
        return PathBuf::from(folder);
    }
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return PathBuf::from("/run/headcount");
    }
    // What XDG_RUNTIME_DIR is by convention, also for a process whose environment was cleaned: nginx hands none
    // of it on to the new binary of an upgrade, which must find the same registry.
    let by_convention = PathBuf::from(format!("/run/user/{}", uid.as_raw()));
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|f| !f.is_empty()) {
        Some(folder) => PathBuf::from(folder).join("headcount"),
        None if by_convention.is_dir() => by_convention.join("headcount"),
        None => PathBuf::from(format!("/dev/shm/headcount-{}", uid.as_raw())),
    }
}

/// Makes the folder if need be, and refuses one in which strangers could swap our files.
pub(crate) fn check_folder(path: &Path) -> Result<()> {
    let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) else {
        return Err(Error::new(
            ErrorKind::InvalidOption,
            format!("option `path` is {}: give a file with its folder", path.display()),
        ));
    };
    if !folder.exists() {
        std::fs::DirBuilder::new()
            .mode(0o755)
            .create(folder)
            .or_else(|e| if e.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(e) })
            .map_err(|e| Error::file("make the folder", folder, e))?;
    }
    let meta = std::fs::metadata(folder).map_err(|e| Error::file("look at the folder", folder, e))?;
    let me = rustix::process::geteuid().as_raw();
    let strangers_may_write = meta.mode() & 0o022 != 0 && meta.mode() & 0o1000 == 0;
    if (meta.uid() != me && meta.uid() != 0) || strangers_may_write {
        return Err(Error::new(
            ErrorKind::WrongOwner,
            format!(
                "the folder {} belongs to uid {} with mode {:04o}: others could swap the registry in it \
                 (make it belong to uid {me}, mode 0755, or set another `path`)",
                folder.display(),
                meta.uid(),
                meta.mode() & 0o7777
            ),
        ));
    }
    Ok(())
}

pub(crate) fn check_file(path: &Path, stat: &Stat, expected: FileType, forbidden: u32) -> Result<()> {
    let found = FileType::from_raw_mode(stat.st_mode);
    if found != expected {
        return Err(Error::new(
            ErrorKind::SymbolicLink,
            format!(
                "{} is a {found:?}, expected was a {expected:?} (remove it, or set another `path`)",
                path.display()
            ),
        ));
    }
    let me = rustix::process::geteuid().as_raw();
    if stat.st_uid != me || stat.st_mode & forbidden != 0 || stat.st_nlink > 1 {
        return Err(Error::new(
            ErrorKind::WrongOwner,
            format!(
                "{} belongs to uid {} with mode {:04o} and {} links; expected were uid {me}, nobody else's write \
                 access and 1 link (remove it, or set another `path`)",
                path.display(),
                stat.st_uid,
                stat.st_mode & 0o7777,
                stat.st_nlink
            ),
        ));
    }
    Ok(())
}

pub(crate) fn make_or_open(
    path: &Path,
    flags: OFlags,
    mode: Mode,
    what: FileType,
    forbidden: u32,
) -> Result<OwnedFd> {
    let fd = open(path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK, mode)
        .map_err(|e| Error::file("open", path, e.into()))?;
    let stat = fstat(&fd).map_err(|e| Error::file("look at", path, e.into()))?;
    check_file(path, &stat, what, forbidden)?;
    Ok(fd)
}

/// The identity of a path's lock file without opening it: opening and closing it would drop the locks
/// of a process that has it open already.
pub(crate) fn lock_identity(registry: &Path) -> Option<(u64, u64)> {
    let meta = std::fs::symlink_metadata(lock_path(registry)).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// The same of one that is open.
pub(crate) fn identity_of(fd: &OwnedFd) -> Option<(u64, u64)> {
    fstat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

pub(crate) fn make_fifo(path: &Path) -> Result<()> {
    match mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(Error::file("make", path, e.into())),
    }
}
