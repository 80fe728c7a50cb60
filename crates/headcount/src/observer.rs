//! Reading a node from outside, without being part of it and without holding it up.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{Mode, OFlags, fstat, open};

use crate::engine::opening::OPEN_LOCKS;
use crate::error::{Error, ErrorKind, Result};
use crate::lifecycle::Liveness;
use crate::node::relock;
use crate::registry::journal::{Batch, Cursor};
use crate::registry::layout::{Geometry, Header, JOURNAL_RANGE, NODE_LOCK_BYTE, SLOT_LOCK_BASE, SLOTS_RANGE};
use crate::registry::reading::{JournalFile, read_exact};
use crate::registry::view::View;
use crate::registry::{files, header};
use crate::snapshot::Snapshot;
use crate::sys::atomic::Ordering::Relaxed;
use crate::sys::map::{Page, Region};
use crate::sys::{lock, process};

/// A reader of some node's registry.
///
/// It copies what it reads and takes no lock, so that it can be stopped at any moment without anybody
/// noticing. If it may not open the lock file (it is its owner's alone), it goes by process id and start
/// time, and says [`Liveness::Unknown`] where these do not suffice.
pub struct Observer {
    path: PathBuf,
    file: OwnedFd,
    geometry: Geometry,
    locks: Option<&'static OwnedFd>,
}

/// What a registry says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegistryInfo {
    /// The version of its layout.
    pub format: u32,
    /// Its size in bytes.
    pub size: u64,
    /// How many processes have room in it.
    pub slots: u32,
    /// How many events it keeps.
    pub journal_records: u32,
    /// When it was made, nanoseconds since 1970. With `boot_id` it tells one registry at this path from the next.
    pub created_ns: u64,
    /// The kernel's id of the boot in which it was made.
    pub boot_id: [u64; 2],
    /// Whether that was this boot. Of another one, nobody in it is alive.
    pub of_this_boot: bool,
    /// Device and inode of the lock file that it was made with. With another one beside it, nobody can say who lives.
    pub lock_file: (u64, u64),
    /// How often its node was started from nothing.
    pub runs: u64,
    /// How often somebody died while holding the node lock, and the next one had to mend what was half-done.
    pub repairs: u64,
}

/// Lock files that this process has looked at. They are never closed: should the process become part of such a node,
/// closing one would drop all its locks there.
static LOOKED_AT: Mutex<Vec<((u64, u64), &'static OwnedFd)>> = Mutex::new(Vec::new());

fn open_locks(path: &Path) -> Option<&'static OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut looked_at = relock(&LOOKED_AT);
    let identity = files::lock_identity(path)?;
    if let Some((_, known)) = looked_at.iter().find(|(known, _)| *known == identity) {
        return Some(known);
    }
    // Not being allowed to is no failure.
    let fd: &OwnedFd = Box::leak(Box::new(open(files::lock_path(path), flags, Mode::empty()).ok()?));
    let stat = fstat(fd).ok()?;
    looked_at.push(((stat.st_dev, stat.st_ino), fd));
    Some(fd)
}

impl Observer {
    /// Opens the registry at `path` for reading.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Permission`], [`ErrorKind::SymbolicLink`],
    /// [`ErrorKind::NotARegistry`], [`ErrorKind::Version`] or [`ErrorKind::Corrupt`], with the file and the
    /// mend; [`ErrorKind::WrongState`] in a process that is itself part of that node: ask its
    /// [`crate::Node`].
    pub fn open(path: &Path) -> Result<Observer> {
        let mut observer = Observer::of_journal(path)?;
        observer.locks = open_locks(path);
        Ok(observer)
    }

    /// The same for a reader of nothing but the journal: without the lock file, and so without a descriptor that is kept.
    pub(crate) fn of_journal(path: &Path) -> Result<Observer> {
        if files::lock_identity(path).is_some_and(|id| relock(&OPEN_LOCKS).contains(&id)) {
            return Err(Error::new(
                ErrorKind::WrongState,
                format!(
                    "this process is part of the node at {}: use its `Node`, not an observer",
                    path.display()
                ),
            ));
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = open(path, flags, Mode::empty()).map_err(|e| Error::of_reader("open", path, e.into()))?;
        let geometry = read_geometry(&file, path)?;
        Ok(Observer { path: path.to_owned(), file, geometry, locks: None })
    }

    /// Whether the observer may ask the kernel who is alive. If not, see [`Liveness::Unknown`].
    #[must_use]
    pub fn may_ask_the_kernel(&self) -> bool {
        self.locks.is_some()
    }

    /// The node at this instant.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the file cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let region = self.copy(self.geometry.journal_offset())?;
        let view = View { region: &region };
        let name = header::stored_name(region.header());
        let of_this_boot = is_of_this_boot(region.header());
        let mut snapshot = Snapshot::take(
            &view,
            &view.facts(&mut |index, version, pid| match of_this_boot {
                true => self.liveness(&region, index, version, pid),
                // A process that now has such a number and start time is another one.
                false => Liveness::Gone,
            }),
            &name,
            Some(&self.path),
        );
        if snapshot.holder.as_ref().is_some_and(|holder| !self.may_hold(&snapshot, holder.pid)) {
            snapshot.holder = None;
        }
        Ok(snapshot)
    }

    /// Whether a process that the registry names as holder of the node lock can have it. One that died with it has
    /// left its name there; the lock itself went with it.
    fn may_hold(&self, snapshot: &Snapshot, pid: u32) -> bool {
        match self.locks {
            Some(locks) => !matches!(lock::test(locks.as_fd(), NODE_LOCK_BYTE), Ok(lock::ByteLock::Free)),
            None => !snapshot.processes.iter().any(|p| p.pid == pid && p.liveness == Liveness::Gone),
        }
    }

    /// Reads on in the journal, at most `limit` records of it. There is nothing more when a batch has neither events nor
    /// lost ones.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the file cannot be read.
    pub fn events(&self, cursor: &mut Cursor, limit: usize) -> Result<Batch> {
        self.journal().batch(cursor, limit).map_err(|e| Error::of_reader("read", &self.path, e))
    }

    /// The number of the newest event; 0 if there is none.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the file cannot be read.
    pub fn newest_seq(&self) -> Result<u64> {
        self.journal().head().map_err(|e| Error::of_reader("read", &self.path, e))
    }

    /// The registry's file.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn journal(&self) -> JournalFile<'_> {
        JournalFile { file: self.file.as_fd(), geometry: self.geometry }
    }

    /// What kind of registry this is.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the file cannot be read.
    pub fn registry(&self) -> Result<RegistryInfo> {
        let region = self.copy(self.geometry.slots_offset())?;
        let header = region.header();
        let boot = header.boot_id.each_ref().map(|word| word.load(Relaxed));
        Ok(RegistryInfo {
            format: header.format.load(Relaxed),
            size: self.geometry.file_size() as u64,
            slots: header.slots.load(Relaxed),
            journal_records: header.journal_records.load(Relaxed),
            created_ns: header.created_ns.load(Relaxed),
            boot_id: boot,
            of_this_boot: is_of_this_boot(header),
            lock_file: (header.lock_file[0].load(Relaxed), header.lock_file[1].load(Relaxed)),
            runs: header.runs.load(Relaxed),
            repairs: header.repairs.load(Relaxed),
        })
    }

    /// Whether the path still leads to the file that this observer has open. A server that finds its registry
    /// spoiled or of another size makes a new one: then open another observer.
    #[must_use]
    pub fn is_current(&self) -> bool {
        let open = fstat(&self.file).map(|stat| (stat.st_dev, stat.st_ino));
        let there = std::fs::symlink_metadata(&self.path).map(|meta| (meta.dev(), meta.ino()));
        matches!((open, there), (Ok(open), Ok(there)) if open == there)
    }

    /// The registry's tables, up to `len` bytes, without the journal.
    fn copy(&self, len: usize) -> Result<Region> {
        let failed = |e| Error::of_reader("read", &self.path, e);
        // A region has a journal: the smallest, and not the one of the file, which may be large.
        let smallest = Geometry::new(self.geometry.slots() as u32, *JOURNAL_RANGE.start())?;
        let mut pages = Page::buffer(smallest.file_size());
        read_exact(self.file.as_fd(), &mut Page::bytes_mut(&mut pages)[..len], 0).map_err(failed)?;
        Region::copy(pages, smallest).ok_or_else(|| failed(std::io::ErrorKind::UnexpectedEof.into()))
    }

    fn liveness(&self, region: &Region, index: u32, version: u64, pid: u32) -> Liveness {
        let start_time = region.slots().get(index as usize).map(|s| s.start_time.load(Relaxed));
        if let Some(locks) = self.locks {
            return match lock::test(locks.as_fd(), SLOT_LOCK_BASE + u64::from(index)) {
                Ok(lock::ByteLock::Held(holder)) if holder == 0 || holder == pid => Liveness::Alive,
                // The same one, called otherwise in our pid namespace.
                Ok(lock::ByteLock::Held(holder)) if process::start_time(holder) == start_time => {
                    Liveness::Alive
                }
                Ok(_) if self.still(index, version) => Liveness::Gone,
                // It left between our copy and our question.
                Ok(_) | Err(_) => Liveness::Unknown,
            };
        }
        match (process::start_time(pid), start_time) {
            (Some(now), Some(then)) if now == then && then != 0 => Liveness::Alive,
            (Some(_), Some(then)) if then != 0 => Liveness::Gone,
            (None, _)
                if !Path::new(&format!("/proc/{pid}")).exists() && Path::new("/proc/self/stat").exists() =>
            {
                Liveness::Gone
            }
            _ => Liveness::Unknown,
        }
    }

    /// Whether the slot is still the one that was copied.
    fn still(&self, index: u32, version: u64) -> bool {
        let at = self.geometry.slots_offset() as u64 + u64::from(index) * 128;
        self.journal().word(at).is_ok_and(|now| now == version)
    }
}

fn is_of_this_boot(header: &Header) -> bool {
    header.boot_id.each_ref().map(|word| word.load(Relaxed)) == header::boot_id()
}

fn read_geometry(file: &OwnedFd, path: &Path) -> Result<Geometry> {
    let stat = fstat(file).map_err(|e| Error::of_reader("look at", path, e.into()))?;
    let smallest = Geometry::new(*SLOTS_RANGE.start(), *JOURNAL_RANGE.start())?;
    let mut pages = Page::buffer(smallest.file_size());
    let read = rustix::io::pread(file, &mut Page::bytes_mut(&mut pages)[..4096], 0)
        .map_err(|e| Error::of_reader("read", path, e.into()))?;
    let not_a_registry = |why: &str| {
        let text = format!("{} is no headcount registry{why} (give another one)", path.display());
        Error::new(ErrorKind::NotARegistry, text)
    };
    if read < 4096 {
        return Err(not_a_registry(&format!(": it has {read} bytes")));
    }
    let region = Region::copy(pages, smallest)
        .ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("{} cannot be copied", path.display())))?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    // The same as for a server; but what is no registry is nothing that a reader is to remove.
    header::read_geometry(region.header(), size, path).map_err(|error| match error.kind() {
        ErrorKind::NotARegistry => not_a_registry(""),
        _ => error,
    })
}
