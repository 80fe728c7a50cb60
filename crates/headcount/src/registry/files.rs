//! Where a node's files lie, and whether they may be trusted.
//!
//! The registry may be read by anybody; what is locked may not, because whoever can read a file can also
//! put a lock on it, and so keep others from opening the node. Hence the lock file of its own, mode 0600.
//!
//! Opening something can be harmful by itself: a FIFO can hold whoever opens it in a sleep that no signal ends. So
//! a path is first looked at, without being opened (O_PATH), and then opened is what was looked at.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, FileType, Mode, OFlags, Stat, access, fstat, open};
use rustix::io::Errno;

use crate::error::{Allowed, Error, ErrorKind, Result};

pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(suffix);
    PathBuf::from(name)
}

pub(crate) fn lock_path(registry: &Path) -> PathBuf {
    beside(registry, ".lock")
}

/// For containers and tests whose /run is not theirs.
pub(crate) fn named_folder() -> Option<PathBuf> {
    std::env::var_os("HEADCOUNT_RUNTIME_DIR").filter(|f| !f.is_empty()).map(PathBuf::from)
}

pub(crate) fn is_ours(registry: &Path) -> bool {
    let of_trusted = || std::fs::symlink_metadata(registry).is_ok_and(|found| is_trusted(found.uid()));
    named_folder().is_some() || of_trusted()
}

/// Root and this user.
fn is_trusted(user: u32) -> bool {
    user == 0 || user == rustix::process::geteuid().as_raw()
}

/// Where registries live unless a path is given.
pub(crate) fn default_folder() -> PathBuf {
    if let Some(folder) = named_folder() {
        return folder;
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
    let folder = folder_of(path)?;
    if !folder.exists() {
        std::fs::DirBuilder::new()
            .mode(0o755)
            .create(folder)
            .or_else(|e| if e.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(e) })
            .map_err(|e| Error::file("make the folder", folder, e))?;
    }
    check_owner_of(folder)
}

/// Whether files could be made beside it, or their folder; makes nothing.
pub(crate) fn may_make(path: &Path) -> Result<()> {
    let folder = folder_of(path)?;
    let place = if folder.exists() { folder } else { folder.parent().unwrap_or(folder) };
    access(place, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|e| Error::file("write to the folder", place, e.into()))
}

/// The same for what is there already, and refuses the same as [`check_folder`].
pub(crate) fn look_at_folder(path: &Path) -> Result<()> {
    let folder = folder_of(path)?;
    if folder.exists() { check_owner_of(folder) } else { may_make(path) }
}

fn folder_of(path: &Path) -> Result<&Path> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    folder.ok_or_else(|| Error::option("path", format!("{path:?}"), Allowed::File))
}

fn check_owner_of(folder: &Path) -> Result<()> {
    let meta = std::fs::metadata(folder).map_err(|e| Error::file("look at the folder", folder, e))?;
    let me = rustix::process::geteuid().as_raw();
    let strangers_may_write = meta.mode() & 0o022 != 0 && meta.mode() & 0o1000 == 0;
    if !is_trusted(meta.uid()) || strangers_may_write {
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

pub(crate) fn check_file(path: &Path, stat: &Stat, forbidden: u32) -> Result<()> {
    check_file_of(path, stat, rustix::process::geteuid().as_raw(), forbidden)
}

fn check_file_of(path: &Path, stat: &Stat, owner: u32, forbidden: u32) -> Result<()> {
    let found = FileType::from_raw_mode(stat.st_mode);
    if found != FileType::RegularFile {
        return Err(Error::new(
            ErrorKind::SymbolicLink,
            format!(
                "{} is not a regular file but {} (remove it, or set another `path`)",
                path.display(),
                in_words(found)
            ),
        ));
    }
    if stat.st_uid != owner || stat.st_mode & forbidden != 0 || stat.st_nlink > 1 {
        return Err(Error::new(
            ErrorKind::WrongOwner,
            format!(
                "{} belongs to uid {} with mode {:04o} and {} links; expected were uid {owner}, nobody else's write \
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

/// A kind of file, as people call it.
pub(crate) fn in_words(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "something unknown",
    }
}

/// Which file it is, whatever its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

impl FileId {
    pub(crate) fn of(fd: &OwnedFd) -> io::Result<FileId> {
        Ok(FileId::from(&fstat(fd)?))
    }

    /// In one word that is not 0: good for comparing files of one path.
    pub(crate) fn tag(self) -> u32 {
        (self.inode as u32 ^ self.device as u32).max(1)
    }

    /// Of what lies at a path, if anything does.
    pub(crate) fn at(path: &Path) -> Option<FileId> {
        let meta = std::fs::symlink_metadata(path).ok()?;
        Some(FileId { device: meta.dev(), inode: meta.ino() })
    }
}

impl From<&Stat> for FileId {
    fn from(stat: &Stat) -> FileId {
        FileId { device: stat.st_dev, inode: stat.st_ino }
    }
}

/// Looks at a path and at nothing that it leads to: `None` if there is nothing. The descriptor can neither be read nor
/// written.
pub(crate) fn look_at(path: &Path) -> io::Result<Option<(OwnedFd, Stat)>> {
    match open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => {
            let stat = fstat(&fd)?;
            Ok(Some((fd, stat)))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Opens the regular file that was looked at, and no other.
pub(crate) fn open_looked_at(
    path: &Path,
    looked_at: &OwnedFd,
    stat: &Stat,
    flags: OFlags,
) -> io::Result<OwnedFd> {
    // Also a regular file can make us wait, for its owner to give up a lease on it.
    let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let by_descriptor = format!("/proc/self/fd/{}", looked_at.as_raw_fd());
    match open(by_descriptor, flags, Mode::empty()) {
        // Without /proc it is opened by its path. Only where nobody else can put something else there in between.
        Err(Errno::NOENT | Errno::NOTDIR) if is_ours_alone(path.parent()) => {
            let fd = open(path, flags | OFlags::NOFOLLOW, Mode::empty())?;
            let again = fstat(&fd)?;
            if (again.st_dev, again.st_ino) != (stat.st_dev, stat.st_ino) {
                return Err(io::Error::other("it was replaced during the look"));
            }
            Ok(fd)
        }
        Err(Errno::NOENT | Errno::NOTDIR) => Err(io::Error::other(
            "it cannot be opened safely without /proc, in a folder where others may write",
        )),
        opened => Ok(opened?),
    }
}

fn is_ours_alone(folder: Option<&Path>) -> bool {
    let Some(Ok(meta)) = folder.map(std::fs::metadata) else { return false };
    is_trusted(meta.uid()) && meta.mode() & 0o022 == 0
}

/// Opens a regular file of our own, which nobody else may have changed; `None` if there is nothing.
pub(crate) fn open_own(path: &Path, flags: OFlags, forbidden: u32) -> Result<Option<OwnedFd>> {
    open_of(path, rustix::process::geteuid().as_raw(), flags, forbidden)
}

/// The same of a file of this user's.
pub(crate) fn open_of(path: &Path, owner: u32, flags: OFlags, forbidden: u32) -> Result<Option<OwnedFd>> {
    let failed = |e: io::Error| Error::file("open", path, e);
    let Some((looked_at, stat)) = look_at(path).map_err(failed)? else { return Ok(None) };
    check_file_of(path, &stat, owner, forbidden)?;
    Ok(Some(open_looked_at(path, &looked_at, &stat, flags).map_err(failed)?))
}

/// The modes that a lock file may not have.
const NOT_IN_A_LOCK_FILE: u32 = 0o077;

pub(crate) fn check_lock_file(path: &Path, stat: &Stat) -> Result<()> {
    check_file(path, stat, NOT_IN_A_LOCK_FILE)
}

/// Opens the lock file, if there is one. Read-only: its descriptor is inherited by workers, and by a writable one they could
/// fill up the file system.
pub(crate) fn open_lock(path: &Path) -> Result<Option<OwnedFd>> {
    open_own(path, OFlags::RDONLY, NOT_IN_A_LOCK_FILE)
}

/// The same, making it if need be. `None`: others have made or removed it at this moment.
pub(crate) fn make_or_open_lock(path: &Path) -> Result<Option<OwnedFd>> {
    if let Some(fd) = open_lock(path)? {
        return Ok(Some(fd));
    }
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match open(path, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::EXIST) => Ok(None),
        Err(e) => Err(Error::file("make", path, e.into())),
    }
}
