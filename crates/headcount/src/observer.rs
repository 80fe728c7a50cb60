//! Reading a node from outside, without being part of it and without holding it up.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FileType, OFlags, fstat};

use crate::engine::look::View;
use crate::engine::opening;
use crate::error::{Error, ErrorKind, Result};
use crate::lifecycle::SlotFacts;
use crate::registry::journal::{Batch, Cursor};
use crate::registry::layout::{Geometry, Header, Slot};
use crate::registry::reading::JournalFile;
use crate::registry::region::Region;
use crate::registry::store::{geometry_of, is_member, maps};
use crate::registry::{files, header};
use crate::snapshot::Snapshot;
use crate::sys::atomic::Ordering::Relaxed;
use crate::sys::clock;
use crate::sys::identity::{Doubt, Identity, Liveness};

/// A reader of some node's registry.
///
/// It copies what it reads and takes no lock, so that it can be stopped at any moment without anybody
/// noticing. Of processes that it cannot see (those of a container, from outside) it says
/// [`Liveness::Unknown`], and why.
pub struct Observer {
    path: PathBuf,
    file: OwnedFd,
    geometry: Geometry,
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
    /// Whether that was this boot: of another one, nobody in it is alive. `None`: `/proc` does not tell which boot this is.
    pub of_this_boot: Option<bool>,
    /// How often its node was started from nothing.
    pub runs: u64,
    /// How often somebody died while holding the node lock, and the next one had to repair what was half-done.
    pub repairs: u64,
}

impl Observer {
    /// Opens the registry at `path` for reading. What is no regular file is looked at, and not opened.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Permission`], [`ErrorKind::SymbolicLink`],
    /// [`ErrorKind::NotARegistry`], [`ErrorKind::Version`] or [`ErrorKind::Corrupt`], with the file and how to
    /// fix it.
    pub fn open(path: &Path) -> Result<Observer> {
        let file = open_to_read(path)?;
        let geometry = read_geometry(&file, path)?;
        Ok(Observer { path: path.to_owned(), file, geometry })
    }

    /// The node at this instant.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the file cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let region = self.copy(self.geometry.journal_offset())?;
        let view = View { region: &region };
        let name = header::stored_name(region.header());
        let boot = self.boot(region.header());
        let mut members = Members { observer: self, lock_file: None, begun: clock::boot_ns() };
        let facts = view.facts(&mut |slot| match boot {
            Some(true) => self.liveness(slot, &mut members),
            // Of another boot nobody is alive, whoever has the same id in this one.
            Some(false) => Liveness::Gone,
            // Who is gone in this boot is gone, whichever it was.
            None => match self.liveness(slot, &mut members) {
                Liveness::Alive => Liveness::Unknown(Doubt::BootUnknown),
                other => other,
            },
        });
        let may_hold =
            |word: u64| boot != Some(false) && Identity::from_word(word).liveness() != Liveness::Gone;
        Ok(Snapshot::take(&view, &facts, &name, Some(&self.path), &may_hold))
    }

    /// Whether it is of this boot; `None` if it may be.
    fn boot(&self, header: &Header) -> Option<bool> {
        let then = header.boot_id.each_ref().map(|word| word.load(Relaxed));
        let now = header::boot_id();
        (now != [0, 0] && then != [0, 0]).then_some(then == now)
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
            of_this_boot: self.boot(header),
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
        Region::read(self.file.as_fd(), self.geometry, len)
            .map_err(|e| Error::of_reader("read", &self.path, e))
    }

    /// The record is a copy, so it is compared once more with the registry before somebody is called gone.
    fn liveness(&self, slot: &SlotFacts, members: &mut Members<'_>) -> Liveness {
        let answer = match slot.identity.liveness() {
            // Somebody who lives, and whom another has written there.
            Liveness::Alive if members.is_stranger(slot) => Liveness::Gone,
            known => known.or_else(|| members.has(slot)),
        };
        if answer == Liveness::Gone && !self.still(slot.index, slot.version) {
            return Liveness::Unknown(Doubt::Changing);
        }
        answer
    }

    /// Whether the slot is still the one that was copied.
    fn still(&self, index: u32, version: u64) -> bool {
        let at = (self.geometry.slots_offset() + index as usize * size_of::<Slot>()) as u64;
        self.journal().word(at).is_ok_and(|now| now == version)
    }
}

/// Who is a member, as the lock file proves it to its owner.
struct Members<'a> {
    observer: &'a Observer,
    /// Opened when it is needed; `Some(None)`: it may not be.
    lock_file: Option<Option<OwnedFd>>,
    begun: u64,
}

impl Members<'_> {
    /// How long one snapshot asks: each question costs as much as there are locks in the file.
    const LONGEST: Duration = Duration::from_millis(20);

    /// `None`: no proof either way.
    fn has(&mut self, slot: &SlotFacts) -> Option<bool> {
        let lock_at = files::lock_path(&self.observer.path);
        if let Some(node) = opening::with_lock_file(&lock_at) {
            return node.store.is_member(&slot.identity, slot.lock_tag);
        }
        let open = || files::open_own(&lock_at, OFlags::RDONLY, 0o077).ok().flatten();
        let lock_file = self.lock_file.get_or_insert_with(open).as_ref()?;
        let id = files::FileId::of(lock_file).ok()?;
        let may_ask = id.tag() == slot.lock_tag && clock::elapsed_since(self.begun) < Members::LONGEST;
        may_ask.then(|| is_member(lock_file.as_fd(), &slot.identity)).flatten()
    }

    /// Certainly none: it has proved nothing, and has not mapped the registry as far as can be told.
    fn is_stranger(&mut self, slot: &SlotFacts) -> bool {
        let registry = files::FileId::of(&self.observer.file).ok();
        self.has(slot) == Some(false)
            && registry.and_then(|id| maps(slot.pid(), id, &self.observer.path)) != Some(true)
    }
}

fn open_to_read(path: &Path) -> Result<OwnedFd> {
    let failed = |e| Error::of_reader("open", path, e);
    let Some((looked_at, stat)) = files::look_at(path).map_err(failed)? else {
        return Err(failed(rustix::io::Errno::NOENT.into()));
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Symlink => return Err(failed(rustix::io::Errno::LOOP.into())),
        other => {
            let (path, found) = (path.display(), files::in_words(other));
            let text = format!("{path} is not a registry but {found} (give another one)");
            return Err(Error::new(ErrorKind::NotARegistry, text));
        }
    }
    files::open_looked_at(path, &looked_at, &stat, OFlags::RDONLY).map_err(failed)
}

/// The same as for a server; but what is no registry is nothing that a reader is to remove.
fn read_geometry(file: &OwnedFd, path: &Path) -> Result<Geometry> {
    let found = geometry_of(file, path).map_err(|e| Error::of_reader("read", path, e))?;
    found.map_err(|error| match error.kind() {
        ErrorKind::NotARegistry => {
            let text = format!("{} is no headcount registry (give another one)", path.display());
            Error::new(ErrorKind::NotARegistry, text)
        }
        _ => error,
    })
}
