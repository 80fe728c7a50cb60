//! Opening a node's files: the registry, and beside it the lock file and the wake-up pipe; making or replacing them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{
    FallocateFlags, FileType, Mode, OFlags, SealFlags, StatVfsMountFlags, fallocate, fstat, fstatvfs, open,
};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::registry::files::{
    beside, check_file, check_folder, identity_of, lock_identity, lock_path, make_fifo, make_or_open,
    wake_path,
};
use crate::registry::header::{boot_id, initialise, read_geometry};
use crate::registry::layout::{Geometry, NODE_LOCK_BYTE, SLOT_LOCK_BASE};
use crate::sys::atomic::Ordering::Relaxed;
use crate::sys::map::{Page, Region};
use crate::sys::{clock, lock};

/// An opened node: its memory, its lock file, its wake-up pipe. Never closed, see `sys/lock.rs`.
pub(crate) struct Store {
    pub(crate) region: Region,
    pub(crate) lock_file: OwnedFd,
    pub(crate) wake_read: OwnedFd,
    pub(crate) wake_write: OwnedFd,
    /// Where what was in the wake-up pipe goes.
    pub(crate) sink: OwnedFd,
    pub(crate) path: Option<PathBuf>,
}

/// A message for the host's log that came up while opening.
pub(crate) type Remarks = Vec<String>;

const LONGEST_OPENING: Duration = Duration::from_secs(5);

/// The mutual exclusion of those who open: the node lock, waited for without a holder's record, because
/// before the registry is open there is no memory to read one from.
struct OpenLock<'a>(BorrowedFd<'a>);

impl Drop for OpenLock<'_> {
    fn drop(&mut self) {
        // It cannot fail for a descriptor that is open; if it did, the process's end would free it.
        let _ = lock::unlock(self.0, NODE_LOCK_BYTE);
    }
}

/// Takes it.
fn take_open_lock(fd: BorrowedFd<'_>, path: &Path, timeout: Duration) -> Result<()> {
    // A start must not wait for a slow callback of the run before, nor for somebody who means harm.
    let timeout = timeout.min(LONGEST_OPENING);
    let deadline = clock::boot_ns().saturating_add(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX));
    let nobody = crate::sys::atomic::AtomicU32::new(0);
    loop {
        if lock::try_lock(fd, NODE_LOCK_BYTE).map_err(|e| Error::file("lock", path, e))? {
            return Ok(());
        }
        if clock::boot_ns() > deadline {
            let holder = match lock::test(fd, NODE_LOCK_BYTE) {
                Ok(lock::ByteLock::Held(pid)) => format!("process {pid}"),
                _ => "another process".to_owned(),
            };
            return Err(Error::new(
                ErrorKind::LockTimeout,
                format!(
                    "{holder} has held the lock {} for {timeout:?} (if it is none of a running server's, end it)",
                    path.display()
                ),
            ));
        }
        lock::wait_for_change(&nobody, 0, Duration::from_millis(5));
    }
}

/// Opens the lock file of the registry at `path`, making it if need be, and takes the node lock in it.
///
/// While we waited, or between our opening it and locking it, somebody may have removed the files of a node that was
/// gone (see `stale.rs`): a lock on a file that nobody finds any more excludes nobody, so then once more from the start.
fn lock_for_opening(path: &Path, timeout: Duration) -> Result<OwnedFd> {
    const MOST_TRIES: u32 = 64;
    let lock_at = lock_path(path);
    for _ in 0..MOST_TRIES {
        // A FIFO carries record locks as well as a regular file does, and a worker that inherited its descriptor
        // cannot fill up the file system through it.
        make_fifo(&lock_at)?;
        let lock_file = match make_or_open(&lock_at, OFlags::RDWR, Mode::empty(), FileType::Fifo, 0o077) {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            opened => opened?,
        };
        take_open_lock(lock_file.as_fd(), &lock_at, timeout)?;
        if identity_of(&lock_file) == lock_identity(path) {
            return Ok(lock_file);
        }
    }
    Err(Error::new(
        ErrorKind::Busy,
        format!(
            "{} is removed again and again while this server opens it (find out by whom)",
            lock_at.display()
        ),
    ))
}

impl Store {
    /// Opens the node at `path`, making its files where they are missing.
    pub(crate) fn open(
        path: &Path,
        name: &str,
        geometry: Geometry,
        timeout: Duration,
    ) -> Result<(Store, Remarks)> {
        check_folder(path)?;
        let lock_at = lock_path(path);
        let lock_file = lock_for_opening(path, timeout)?;
        let guard = OpenLock(lock_file.as_fd());
        let lock_stat = fstat(&lock_file).map_err(|e| Error::file("look at", &lock_at, e.into()))?;
        let lock_id = [lock_stat.st_dev, lock_stat.st_ino];

        let mut remarks = Remarks::new();
        let registry = match open_existing(path)? {
            Some(fd) => match examine(&fd, path, name, lock_file.as_fd(), lock_id)? {
                Found::Usable(found) => {
                    if found != geometry {
                        remarks.push(format!(
                            "{}: the registry keeps its {} slots and {} journal records as long as the node runs; \
                             the options differ and take effect when it is removed while the node is stopped",
                            path.display(),
                            found.slots(),
                            found.journal_records()
                        ));
                    }
                    Some((fd, found))
                }
                Found::Replace(why) => {
                    std::fs::remove_file(path).map_err(|e| Error::file("replace", path, e))?;
                    remarks.push(why);
                    None
                }
            },
            None => {
                if anybody_alive(lock_file.as_fd(), geometry.slots()) {
                    remarks.push(format!(
                        "{}: the registry was removed while its node runs; made anew, without the running \
                         generations (restart the server to have them counted)",
                        path.display()
                    ));
                }
                None
            }
        };
        let region = match registry {
            Some((fd, geometry)) => {
                // A hole in it would be filled at the first touch, or be fatal where there is no room.
                fallocate(&fd, FallocateFlags::empty(), 0, geometry.file_size() as u64)
                    .map_err(|e| Error::file("get room for", path, e.into()))?;
                Region::map(fd.as_fd(), geometry).map_err(|e| Error::file("map", path, e))?
            }
            None => create(path, name, geometry, lock_id)?,
        };
        let (wake_read, wake_write) = open_wake_pipe(&wake_path(path))?;
        drop(guard);
        let sink = open_sink()?;
        Ok((Store { region, lock_file, wake_read, wake_write, sink, path: Some(path.to_owned()) }, remarks))
    }

    /// The identity of the lock file that is open.
    pub(crate) fn lock_identity(&self) -> Option<(u64, u64)> {
        identity_of(&self.lock_file)
    }

    /// Whether its files are still those that others find at its path.
    pub(crate) fn is_current(&self) -> bool {
        self.path.as_ref().is_none_or(|path| lock_identity(path) == self.lock_identity())
    }

    /// A node without files: for this process and its forked children only.
    pub(crate) fn anonymous(name: &str, geometry: Geometry) -> Result<Store> {
        let memory = |e: io::Error| Error::io("get shared memory for a node without files", e);
        let region = Region::anonymous(geometry).map_err(memory)?;
        let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
        let lock_file = rustix::fs::memfd_create("headcount-lock", flags).map_err(|e| memory(e.into()))?;
        // It carries locks and nothing else: no worker can make memory of it.
        let sealed = SealFlags::GROW | SealFlags::SHRINK | SealFlags::WRITE | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&lock_file, sealed).map_err(|e| memory(e.into()))?;
        let flags = rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK;
        let (wake_read, wake_write) = rustix::pipe::pipe_with(flags).map_err(|e| memory(e.into()))?;
        initialise(region.header(), name, geometry, [0, 0]);
        Ok(Store { region, lock_file, wake_read, wake_write, sink: open_sink()?, path: None })
    }
}

fn open_existing(path: &Path) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = match open(path, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(Error::file("open", path, e.into())),
    };
    let stat = fstat(&fd).map_err(|e| Error::file("look at", path, e.into()))?;
    check_file(path, &stat, FileType::RegularFile, 0o022)?;
    let vfs = fstatvfs(&fd).map_err(|e| Error::file("look at", path, e.into()))?;
    if vfs.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(Error::file("write to", path, Errno::ROFS.into()));
    }
    Ok(Some(fd))
}

enum Found {
    Usable(Geometry),
    /// Ours, nobody uses it, and it cannot be gone on with: why.
    Replace(String),
}

pub(crate) fn anybody_alive(lock_file: BorrowedFd<'_>, slots: usize) -> bool {
    // Cannot be asked: then somebody may be alive.
    !matches!(lock::test_range(lock_file, SLOT_LOCK_BASE, slots as u64), Ok(lock::ByteLock::Free))
}

fn examine(fd: &OwnedFd, path: &Path, name: &str, locks: BorrowedFd<'_>, lock_id: [u64; 2]) -> Result<Found> {
    let size =
        std::cmp::max(fstat(fd).map_err(|e| Error::file("look at", path, e.into()))?.st_size, 0) as u64;
    let mut page = Page::buffer(4096);
    let read = rustix::io::pread(fd, Page::bytes_mut(&mut page), 0)
        .map_err(|e| Error::file("read", path, e.into()))?;
    if read < 4096 {
        return Err(Error::new(
            ErrorKind::NotARegistry,
            format!(
                "{} is truncated: it has {size} bytes, not even a registry's first page (remove it, or set another \
                 `path`)",
                path.display()
            ),
        ));
    }
    // The smallest geometry: only the header of this copy is looked at.
    let header_only = Geometry::new(
        *crate::registry::layout::SLOTS_RANGE.start(),
        *crate::registry::layout::JOURNAL_RANGE.start(),
    )?;
    page.resize(header_only.file_size() / 4096, Page::buffer(4096).remove(0));
    let copy = Region::copy(page, header_only)
        .ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("{} cannot be copied", path.display())))?;
    let header = copy.header();
    match read_geometry(header, size, path) {
        Ok(geometry) => {
            let known: [u64; 2] = std::array::from_fn(|i| header.lock_file[i].load(Relaxed));
            if known == lock_id {
                return Ok(Found::Usable(geometry));
            }
            if header.boot_id[0].load(Relaxed) == boot_id()[0] && anybody_listed_lives(fd, geometry) {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!(
                        "the lock file of {} was replaced while the node {name} runs: who is alive cannot be known \
                         (stop the server, remove both files, start it again)",
                        path.display()
                    ),
                ));
            }
            Ok(Found::Replace(format!("{}: made anew, its lock file was another one", path.display())))
        }
        // Another version's, or spoiled: no loss to replace it if nobody uses it.
        Err(e) if matches!(e.kind(), ErrorKind::Version | ErrorKind::Corrupt) => {
            if anybody_alive(locks, *crate::registry::layout::SLOTS_RANGE.end() as usize) {
                return Err(e);
            }
            Ok(Found::Replace(format!("{e}; nobody uses it, so it was made anew and its history is lost")))
        }
        Err(e) => Err(e),
    }
}

/// Without its lock file a registry cannot tell who lives: whether one of those in its table does, by pid and
/// start time.
fn anybody_listed_lives(fd: &OwnedFd, geometry: Geometry) -> bool {
    let mut pages = Page::buffer(geometry.file_size());
    let bytes = &mut Page::bytes_mut(&mut pages)[..geometry.generations_offset()];
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(fd, &mut bytes[done..], done as u64) {
            Ok(0) => return false,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            // Cannot be asked: then somebody may be alive.
            Err(_) => return true,
        }
    }
    let Some(copy) = Region::copy(pages, geometry) else { return true };
    copy.slots().iter().filter(|slot| slot.role.load(Relaxed) != 0).any(|slot| {
        let started = slot.start_time.load(Relaxed);
        started != 0 && crate::sys::process::start_time(slot.pid.load(Relaxed)) == Some(started)
    })
}

/// Makes the file under a temporary name nobody sees, so that no reader ever finds half of one.
fn create(path: &Path, name: &str, geometry: Geometry, lock_id: [u64; 2]) -> Result<Region> {
    let failed = |action: &'static str| move |e: Errno| Error::file(action, path, e.into());
    let temporary = beside(path, ".new");
    match std::fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(Error::file("remove the remains of", &temporary, e));
        }
        _ => {}
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = open(&temporary, flags, Mode::from_raw_mode(0o644)).map_err(failed("make"))?;
    let made = (|| {
        // A umask must not decide whether people may read the state of their node.
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o644)).map_err(failed("set the mode of"))?;
        // Blocks that are there cannot be missing later, when touching them would be fatal.
        fallocate(&fd, FallocateFlags::empty(), 0, geometry.file_size() as u64)
            .map_err(failed("get room for"))?;
        let region = Region::map(fd.as_fd(), geometry).map_err(|e| Error::file("map", path, e))?;
        initialise(region.header(), name, geometry, lock_id);
        std::fs::rename(&temporary, path).map_err(|e| Error::file("make", path, e))?;
        Ok(region)
    })();
    if made.is_err() {
        // The error that is reported is the first one.
        let _ = std::fs::remove_file(&temporary);
    }
    made
}

fn open_sink() -> Result<OwnedFd> {
    let path = Path::new("/dev/null");
    open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::file("open", path, e.into()))
}

/// A named pipe, so that also a process that was not forked from the opener (an upgraded master's
/// workers) can wake the sentinel.
fn open_wake_pipe(path: &Path) -> Result<(OwnedFd, OwnedFd)> {
    make_fifo(path)?;
    let read = make_or_open(path, OFlags::RDWR, Mode::empty(), FileType::Fifo, 0o077)?;
    let write = read.try_clone().map_err(|e| Error::file("open", path, e))?;
    Ok((read, write))
}
