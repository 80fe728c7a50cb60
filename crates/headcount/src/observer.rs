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
use crate::registry::files::FileId;
use crate::registry::journal::{Batch, Cursor};
use crate::registry::layout::{Geometry, Header, Slot};
use crate::registry::membership::{Strangers, is_certain, is_member};
use crate::registry::reading::JournalFile;
use crate::registry::region::Region;
use crate::registry::store::{Store, geometry_of};
use crate::registry::{files, header};
use crate::snapshot::{ProcessStatus, Snapshot};
use crate::sys::atomic::Ordering::Relaxed;
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
    /// If it was made in place of one that was removed under its running server: the `created_ns` of that one, and the number
    /// of the last event that both have. Up to there the journal is the same; what comes after is not in the other one.
    pub goes_on: Option<(u64, u64)>,
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
        let region = Region::read_tables(self.file.as_fd(), self.geometry)
            .map_err(|e| Error::of_reader("read", &self.path, e))?;
        let view = View { region: &region };
        let name = header::stored_name(region.header());
        let boot = self.boot(region.header());
        let lock_file = LockFile::beside(&self.path);
        let mut strangers = self.strangers(&lock_file);
        let facts = view.facts(&mut |slot| match boot {
            Some(true) => self.liveness(slot, &lock_file, &mut strangers),
            // Of another boot nobody is alive, whoever has the same id in this one.
            Some(false) => Liveness::Gone,
            // Who is gone in this boot is gone, whichever it was.
            None => match self.liveness(slot, &lock_file, &mut strangers) {
                Liveness::Alive => Liveness::Unknown(Doubt::BootUnknown),
                other => other,
            },
        });
        let may_hold =
            |word: u64| boot != Some(false) && Identity::from_word(word).liveness() != Liveness::Gone;
        let mut snapshot = Snapshot::take(&view, &facts, &name, Some(&self.path), &may_hold);
        if boot == Some(false) {
            snapshot.earlier_boots = snapshot.head;
        }
        Ok(snapshot)
    }

    /// Whether this process, of a snapshot of this node, is alive and certainly one of its members, whatever its registry
    /// says: it shares a byte of the node's lock file, which nobody can do in another's name. For whoever is about to do
    /// something to it.
    ///
    /// # Errors
    /// If the lock file cannot be opened: [`ErrorKind::Permission`] unless you are its owner or root;
    /// [`ErrorKind::SymbolicLink`], [`ErrorKind::WrongOwner`] if it is not what the registry's owner has made.
    pub fn is_proven(&self, process: &ProcessStatus) -> Result<bool> {
        let Some(identity) = &process.identity else { return Ok(false) };
        let registry = self.registry_file();
        let lock_at = files::lock_path(&self.path);
        if let Some(node) = opening::with_lock_file(&lock_at) {
            return Ok(node.store.is_certain(identity, registry));
        }
        let owner = fstat(&self.file).map_err(|e| Error::of_reader("look at", &self.path, e.into()))?.st_uid;
        let file = files::open_of(&lock_at, owner, OFlags::RDONLY, 0o077)?;
        Ok(file.is_some_and(|file| is_certain(file.as_fd(), identity, registry)))
    }

    fn registry_file(&self) -> Option<(FileId, &Path)> {
        FileId::of(&self.file).ok().map(|id| (id, self.path.as_path()))
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
            goes_on: Some((header.goes_on_from_ns.load(Relaxed), header.goes_on_at.load(Relaxed)))
                .filter(|(from, _)| *from != 0),
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

    fn strangers<'a>(&'a self, lock_file: &'a LockFile<'_>) -> Strangers<'a> {
        const LONGEST: Duration = Duration::from_millis(20);
        match lock_file {
            LockFile::OfNode(store) => store.strangers(LONGEST),
            LockFile::Opened(fd, tag) => self.strangers_by(Some((fd.as_fd(), *tag)), LONGEST),
            LockFile::Nobody => self.strangers_by(None, LONGEST),
        }
    }

    fn strangers_by<'a>(
        &'a self,
        lock_file: Option<(BorrowedFd<'a>, u32)>,
        limit: Duration,
    ) -> Strangers<'a> {
        Strangers::new(lock_file, self.registry_file(), limit)
    }

    /// The record is a copy, so it is compared once more with the registry before somebody is called gone.
    fn liveness(
        &self,
        slot: &SlotFacts,
        lock_file: &LockFile<'_>,
        strangers: &mut Strangers<'_>,
    ) -> Liveness {
        let answer = match slot.identity.liveness() {
            // Somebody who lives, and whom another has written there.
            Liveness::Alive if strangers.has(&slot.identity, slot.lock_tag) => Liveness::Gone,
            known => known.or_else(|| lock_file.is_member(slot)),
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

/// The lock file, as far as it may be asked: for its owner.
enum LockFile<'a> {
    /// Of a node that this process has open: it may not be opened once more.
    OfNode(&'a Store),
    Opened(OwnedFd, u32),
    Nobody,
}

impl LockFile<'_> {
    fn beside(registry: &Path) -> LockFile<'static> {
        let lock_at = files::lock_path(registry);
        if let Some(node) = opening::with_lock_file(&lock_at) {
            return LockFile::OfNode(&node.store);
        }
        let opened = files::open_own(&lock_at, OFlags::RDONLY, 0o077).ok().flatten();
        let tagged = opened.and_then(|fd| FileId::of(&fd).ok().map(|id| (fd, id.tag())));
        tagged.map_or(LockFile::Nobody, |(fd, tag)| LockFile::Opened(fd, tag))
    }

    fn is_member(&self, slot: &SlotFacts) -> Option<bool> {
        match self {
            LockFile::OfNode(store) => store.is_member(&slot.identity, slot.lock_tag),
            LockFile::Opened(fd, tag) if *tag == slot.lock_tag => is_member(fd.as_fd(), &slot.identity),
            LockFile::Opened(..) | LockFile::Nobody => None,
        }
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
