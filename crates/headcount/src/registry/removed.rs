//! A registry whose file was removed while its server runs, as a binary upgrade finds it: by the descriptors of the master
//! that it takes over from.

use std::ffi::OsString;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, Stat, fstat, open};

use crate::registry::files::{FileId, check_file, check_lock_file, lock_path, open_looked_at};
use crate::registry::membership::is_proven;
use crate::sys::identity::Identity;

/// The registry that lay at `path` when this member opened it, open for writing, and as it was looked at. `None` if it still
/// lies there.
pub(crate) fn registry(path: &Path, member: &Identity) -> Option<(OwnedFd, (OwnedFd, Stat))> {
    let is_it = |(_, stat): &(OwnedFd, Stat)| {
        check_file(path, stat, 0o022).is_ok() && FileId::at(path) != Some(FileId::from(stat))
    };
    let looked_at = descriptors(path, member).find(is_it)?;
    let fd = open_looked_at(path, &looked_at.0, &looked_at.1, OFlags::RDWR).ok()?;
    Some((fd, looked_at))
}

/// The lock file in which this member has proved itself. It may not be closed again: it may be the one in which this process
/// has proved itself, too.
pub(crate) fn lock_file(path: &Path, member: &Identity) -> Option<OwnedFd> {
    let lock_at = lock_path(path);
    descriptors(&lock_at, member).filter(|(_, stat)| check_lock_file(&lock_at, stat).is_ok()).find_map(
        |(fd, stat)| {
            let lock_file = open_looked_at(&lock_at, &fd, &stat, OFlags::RDONLY).ok()?;
            if is_proven(lock_file.as_fd(), member) {
                return Some(lock_file);
            }
            let _kept_open = lock_file.into_raw_fd();
            None
        },
    )
}

/// What a process has open that lies at `path` or lay there. Only looked at, and not opened for reading or writing.
fn descriptors(path: &Path, of: &Identity) -> impl Iterator<Item = (OwnedFd, Stat)> + use<> {
    let real = path.parent().and_then(|folder| folder.canonicalize().ok()).zip(path.file_name());
    let real = real.map(|(folder, name)| folder.join(name));
    let entries = std::fs::read_dir(format!("/proc/{}/fd", of.pid));
    entries.into_iter().flatten().filter_map(Result::ok).filter_map(move |entry| {
        let link = entry.path();
        let was_at = std::fs::read_link(&link).ok().map(without_suffix);
        if was_at.is_none() || was_at != real {
            return None;
        }
        let fd = open(&link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let stat = fstat(&fd).ok()?;
        Some((fd, stat))
    })
}

/// The path in the kernel's words about a descriptor.
fn without_suffix(link: PathBuf) -> PathBuf {
    let link = link.into_os_string().into_vec();
    let kept = link.strip_suffix(b" (deleted)").map(<[u8]>::to_vec);
    PathBuf::from(OsString::from_vec(kept.unwrap_or(link)))
}
