//! Removing the files of a node that is gone, without taking them away from one that just comes.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, openat, statat, unlinkat};
use rustix::io::Errno;

use crate::engine::opening::OPEN_LOCKS;
use crate::error::{Error, ErrorKind, Result};
use crate::node::relock;
use crate::observer::Observer;
use crate::registry::files::{check_file, lock_identity, lock_path, make_fifo, wake_path};
use crate::registry::layout::{NODE_LOCK_BYTE, SLOTS_RANGE};
use crate::registry::store::anybody_alive;
use crate::sys::{lock, process};

/// Removes the registry at `path`, its lock file and its wake-up pipe, if it is certain that nobody is alive who uses
/// them; gives the files that it removed. A lock file without a registry is removed under the same conditions.
///
/// It holds the node lock meanwhile. A server that starts at that moment finds out that its lock file was removed, and
/// makes new ones; one that has started is found alive.
///
/// # Errors
/// [`ErrorKind::InUse`] if somebody is alive, or cannot be ruled out to be; [`ErrorKind::Busy`] if the node lock is held;
/// [`ErrorKind::NotFound`] if there is nothing; [`ErrorKind::WrongOwner`] if the files or the folder are not this
/// user's; what [`Observer::open`] says of a registry that it cannot read. Nothing was removed then.
pub fn remove_stale(path: &Path) -> Result<Vec<PathBuf>> {
    let folder = Folder::of(path)?;
    let registry = folder.look_at(path, FileType::RegularFile)?;
    let lock_at = lock_path(path);
    if registry && lock_identity(path).is_none() {
        let info = Observer::open(path)?.registry()?;
        if info.of_this_boot {
            return Err(in_doubt(path, "its lock file is missing, so nobody can say who is alive"));
        }
        // Nobody of another boot lives; the lock is to keep away a server that starts now.
        make_fifo(&lock_at)?;
    }
    if !folder.look_at(&lock_at, FileType::Fifo)? {
        return Err(Error::new(ErrorKind::NotFound, format!("there is no {}", path.display())));
    }
    let identity = lock_identity(path);
    if identity.is_some_and(|id| relock(&OPEN_LOCKS).contains(&id)) {
        return Err(in_use(path, "this process is part of it"));
    }
    // Opening and closing it drops no lock: this process has none in it.
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let locks = folder.open(&lock_at, flags)?;
    if !lock::try_lock(locks.as_fd(), NODE_LOCK_BYTE).map_err(|e| Error::of_reader("lock", &lock_at, e))? {
        return Err(Error::new(
            ErrorKind::Busy,
            format!("somebody holds the node lock of {} (try again)", path.display()),
        ));
    }
    let stat = fstat(&locks).map_err(|e| Error::of_reader("look at", &lock_at, e.into()))?;
    let locked = (stat.st_dev, stat.st_ino);
    if lock_identity(path) != Some(locked) {
        return Err(in_doubt(path, "its lock file was replaced a moment ago"));
    }
    // From here on no server opens it, until `locks` is closed.
    if registry {
        let observer = Observer::open(path)?;
        let info = observer.registry()?;
        if info.of_this_boot && info.lock_file != locked {
            return Err(in_doubt(path, "its lock file is not the one that it was made with"));
        }
    }
    if anybody_alive(locks.as_fd(), *SLOTS_RANGE.end() as usize) || somebody_joins(&locks) {
        return Err(in_use(path, "processes of it are alive"));
    }
    match Openers::of(locked) {
        Openers::Nobody => {}
        Openers::Process(pid) => {
            return Err(in_use(path, &format!("process {pid} has it open, and may be about to use it")));
        }
        Openers::Unknown(pid) => {
            return Err(in_doubt(path, &format!("what process {pid} has open may not be asked")));
        }
    }
    // The lock file last: as long as it is there, it keeps others away.
    let mut removed = Vec::new();
    for (file, kind) in [
        (path.to_owned(), FileType::RegularFile),
        (wake_path(path), FileType::Fifo),
        (lock_at, FileType::Fifo),
    ] {
        if folder.look_at(&file, kind)? && folder.remove(&file)? {
            removed.push(file);
        }
    }
    Ok(removed)
}

fn in_use(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::InUse, format!("{} is in use: {why}", path.display()))
}

fn in_doubt(path: &Path, why: &str) -> Error {
    let path = path.display();
    Error::new(
        ErrorKind::InUse,
        format!(
            "{path} may be in use: {why} (stop its server, then remove {path} and what lies beside it by hand)"
        ),
    )
}

fn somebody_joins(locks: &OwnedFd) -> bool {
    // Bytes 1 to 48, see `joining_byte`. Cannot be asked: then somebody may.
    !matches!(lock::test_range(locks.as_fd(), NODE_LOCK_BYTE + 1, 48), Ok(lock::ByteLock::Free))
}

/// The folder, held open: whoever may write to its parent must not be able to have us remove a file elsewhere.
struct Folder(OwnedFd);

impl Folder {
    fn of(path: &Path) -> Result<Folder> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let failed = |e: Errno| Error::of_reader("open the folder", folder, e.into());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(folder, flags, Mode::empty()).map_err(failed)?;
        let stat = fstat(&fd).map_err(failed)?;
        let me = rustix::process::geteuid().as_raw();
        if stat.st_uid != me && stat.st_uid != 0 {
            return Err(Error::new(
                ErrorKind::WrongOwner,
                format!(
                    "the folder {} belongs to uid {} (run it as that user)",
                    folder.display(),
                    stat.st_uid
                ),
            ));
        }
        Ok(Folder(fd))
    }

    /// Whether the file is there; refuses one that is not what a server would have made.
    fn look_at(&self, path: &Path, kind: FileType) -> Result<bool> {
        match statat(&self.0, name(path), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => check_file(path, &stat, kind, 0o022).map(|()| true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(Error::of_reader("look at", path, e.into())),
        }
    }

    fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd> {
        openat(&self.0, name(path), flags, Mode::empty())
            .map_err(|e| Error::of_reader("open", path, e.into()))
    }

    fn remove(&self, path: &Path) -> Result<bool> {
        match unlinkat(&self.0, name(path), AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(Error::of_reader("remove", path, e.into())),
        }
    }
}

fn name(path: &Path) -> &std::ffi::OsStr {
    path.file_name().unwrap_or_default()
}

/// Who has a lock file open for writing, as those do who belong to its node, or are about to. Its locks alone don't
/// tell of a process between two of its steps: opened and not yet claimed, forked and not yet joined.
enum Openers {
    Nobody,
    Process(u32),
    /// This process is one of our user's, and its descriptors may not be looked at.
    Unknown(u32),
}

impl Openers {
    fn of(file: (u64, u64)) -> Openers {
        let Ok(processes) = fs::read_dir("/proc") else { return Openers::Unknown(0) };
        let own = process::pid();
        for pid in processes.flatten().filter_map(|p| p.file_name().to_str()?.parse::<u32>().ok()) {
            if pid == own {
                continue;
            }
            match opens(pid, file) {
                Ok(true) => return Openers::Process(pid),
                Ok(false) => {}
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied && !may_be_ours(pid) => {}
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Openers::Unknown(pid),
                // It has ended meanwhile.
                Err(_) => {}
            }
        }
        Openers::Nobody
    }
}

fn opens(pid: u32, file: (u64, u64)) -> io::Result<bool> {
    for fd in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Ok(fd) = fd else { continue };
        let Ok(meta) = fs::metadata(fd.path()) else { continue };
        if (meta.dev(), meta.ino()) == file && writes(pid, &fd.file_name()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Readers have it open as well, and are no reason to keep it.
fn writes(pid: u32, fd: &std::ffi::OsStr) -> bool {
    let text = fs::read_to_string(Path::new(&format!("/proc/{pid}/fdinfo")).join(fd)).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    // Does not tell: then it may.
    flags.and_then(|f| u32::from_str_radix(f.trim(), 8).ok()).is_none_or(|f| f & 0o3 != 0)
}

/// The lock file is its owner's alone, so that only processes of this user can have opened it.
fn may_be_ours(pid: u32) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let me = rustix::process::geteuid().as_raw().to_string();
    text.lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .is_some_and(|ids| ids.split_ascii_whitespace().any(|id| id == me))
}
