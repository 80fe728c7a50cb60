//! Opening a node's files: the registry, and beside it the lock file; making or replacing them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed as RelaxedBool;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags, Stat, StatVfsMountFlags, flock, fstatvfs, ftruncate, open};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::registry::files::{self, FileId, beside, check_folder, lock_path};
use crate::registry::header::{self, boot_id, initialise, read_geometry};
use crate::registry::layout::{Geometry, Header, engaged_byte, member_byte};
use crate::registry::membership::{self, Strangers, has_kin, has_members};
use crate::registry::region::Region;
use crate::registry::removed;
use crate::sys::bell::Bell;
use crate::sys::clock;
use crate::sys::identity::Identity;
use crate::sys::record_lock::{self, ByteLock};

/// An opened node: its memory, its lock file, its bell. Never closed: see `sys/record_lock.rs`.
pub(crate) struct Store {
    pub(crate) region: Region,
    pub(crate) bell: Bell,
    /// The bell for those who stand for roles, or wait for a once.
    pub(crate) calls: Bell,
    pub(crate) path: Option<PathBuf>,
    id: Option<FileId>,
    /// The registry, as something that can neither be read nor written. By it a binary upgrade finds a registry whose file was
    /// removed: see [`Store::removed`].
    _registry: Option<OwnedFd>,
    lock_file: Option<OwnedFd>,
    lock_tag: u32,
    /// The boot that we are in.
    boot: [u64; 2],
    /// The lock of those who open is held by the description of `lock_file`.
    is_opening: AtomicBool,
    /// What names memory of its own.
    _name: Option<OwnedFd>,
}

/// A message for the host's log that came up while opening.
pub(crate) type Remarks = Vec<String>;

/// A start must not wait for long, whoever holds the lock.
pub(crate) const LONGEST_OPENING: Duration = Duration::from_secs(5);

/// What came of the attempt to open.
pub(crate) enum Opened {
    Ours(Box<Store>, Remarks),
    /// Another server has been opening it for all the time that we waited: it is about to be that one's.
    Taken,
}

impl Store {
    /// Opens the node at `path`, making its files where they are missing.
    ///
    /// From then on nobody else can open it, until [`Store::opened`]: the lock is that of a file description, which
    /// children share, so it also covers the time in which a server goes into the background. Whoever has a relative
    /// among the members takes over from a server that runs already, and does not need it.
    pub(crate) fn open(
        path: &Path,
        name: &str,
        geometry: Geometry,
        timeout: Duration,
        relatives: &[Identity],
    ) -> Result<Opened> {
        check_folder(path)?;
        let lock_at = lock_path(path);
        let had_lock_file = files::look_at(&lock_at).is_ok_and(|found| found.is_some());
        // Before anything is made beside it: it may be no registry at all. One that is spoiled still has its lock file.
        match find(path)? {
            Some((_, Err(error))) if error.kind() == ErrorKind::NotARegistry && !had_lock_file => {
                return Err(error);
            }
            _ => {}
        }
        let begun = clock::boot_ns();
        let timeout = timeout.min(LONGEST_OPENING);
        let lock_file = loop {
            let Some(lock_file) = files::make_or_open_lock(&lock_at)? else { continue };
            let lock_id = FileId::of(&lock_file).map_err(|e| Error::file("look at", &lock_at, e))?;
            match flock(&lock_file, FlockOperation::NonBlockingLockExclusive) {
                // One that nobody finds any more excludes nobody.
                Ok(()) if FileId::at(&lock_at) == Some(lock_id) => break lock_file,
                Ok(()) => continue,
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(e) => return Err(Error::file("lock", &lock_at, e.into())),
            }
            if has_kin(lock_file.as_fd(), relatives) {
                let kins = find(path)?.and_then(|(fd, found)| {
                    let geometry = found.ok().or_else(|| has_size_of(&fd, geometry))?;
                    Some((fd, geometry))
                });
                if let Some((fd, geometry)) = kins {
                    let region = map(&fd, path, geometry)?;
                    let store = Store::new(region, make_bells()?, lock_file, path, look_at(path)?);
                    return Ok(Opened::Ours(Box::new(store), Remarks::new()));
                }
            }
            if clock::elapsed_since(begun) > timeout {
                return Ok(Opened::Taken);
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut remarks = Remarks::new();
        let registry = match find(path)? {
            Some((fd, Ok(found))) => {
                if found != geometry {
                    remarks.push(format!(
                        "{}: the registry keeps its {} slots and {} journal records; the options differ and take effect \
                         when it is removed while the node is stopped",
                        path.display(),
                        found.slots(),
                        found.journal_records()
                    ));
                }
                Some((fd, found))
            }
            // Spoiled by a worker of the server that we belong to: whoever takes over sets it right.
            Some((fd, Err(_)))
                if has_kin(lock_file.as_fd(), relatives) && has_size_of(&fd, geometry).is_some() =>
            {
                Some((fd, geometry))
            }
            // Another version's, or spoiled: no loss to replace it if nobody uses it.
            Some((fd, Err(error))) => {
                // What has the size of one, beside a lock file of ours, was one.
                let is_spoiled = error.kind() != ErrorKind::NotARegistry
                    || had_lock_file && has_size_of(&fd, geometry).is_some();
                if !is_spoiled || has_members(lock_file.as_fd()) {
                    return Err(error);
                }
                std::fs::remove_file(path).map_err(|e| Error::file("replace", path, e))?;
                remarks
                    .push(format!("{error}; nobody uses it, so a new one was made and its history is lost"));
                None
            }
            None => {
                if has_members(lock_file.as_fd()) {
                    remarks.push(format!(
                        "{}: the registry was removed while its node runs; a new one was made, without the running \
                         generations (restart the server to have them counted)",
                        path.display()
                    ));
                }
                None
            }
        };
        let region = match registry {
            Some((fd, geometry)) => map(&fd, path, geometry)?,
            None => create(path, name, geometry)?,
        };
        let store = Store::new(region, make_bells()?, lock_file, path, look_at(path)?);
        store.is_opening.store(true, RelaxedBool);
        Ok(Opened::Ours(Box::new(store), remarks))
    }

    /// The registry that lay at `path` when this member opened it, and that was removed or replaced since. `None`: there is
    /// none, or it cannot be had.
    pub(crate) fn removed(path: &Path, member: &Identity) -> Option<Store> {
        let (fd, registry) = removed::registry(path, member)?;
        let region = map(&fd, path, geometry_of(&fd, path).ok()?.ok()?).ok()?;
        let bells = make_bells().ok()?;
        // Last: once it is open, it may not be closed again.
        let lock_file = removed::lock_file(path, member)?;
        Some(Store::new(region, bells, lock_file, path, Some(registry)))
    }

    /// The node at `path` for a process that takes part beside its server. Makes and changes no file.
    pub(crate) fn visit(path: &Path) -> Result<Store> {
        let missing = |what: &str| {
            let text = format!("there is no {what} (start its server, or give another registry)");
            Error::new(ErrorKind::NotFound, text)
        };
        let Some(registry) = look_at(path)? else { return Err(missing(&path.display().to_string())) };
        let (me, owner) = (rustix::process::geteuid().as_raw(), registry.1.st_uid);
        if owner != me {
            let text = format!(
                "{} belongs to uid {owner}, and nobody else can take part in its node (run it as that user; this is uid {me})",
                path.display()
            );
            return Err(Error::new(ErrorKind::Permission, text));
        }
        let lock_at = lock_path(path);
        let Some((fd, geometry)) = find(path)? else { return Err(missing(&path.display().to_string())) };
        let region = map(&fd, path, geometry?)?;
        let bells = make_bells()?;
        // Last: once it is open, it may not be closed again.
        let lock_file = files::open_lock(&lock_at)?;
        let lock_file = lock_file.ok_or_else(|| missing(&lock_at.display().to_string()))?;
        Ok(Store::new(region, bells, lock_file, path, Some(registry)))
    }

    fn new(
        region: Region,
        [bell, calls]: [Bell; 2],
        lock_file: OwnedFd,
        path: &Path,
        registry: Option<(OwnedFd, Stat)>,
    ) -> Store {
        let (registry, stat) = registry.unzip();
        Store {
            region,
            bell,
            calls,
            id: stat.as_ref().map(FileId::from),
            _registry: registry,
            path: Some(path.to_owned()),
            lock_tag: FileId::of(&lock_file).map_or(0, FileId::tag),
            lock_file: Some(lock_file),
            boot: boot_id(),
            is_opening: AtomicBool::new(false),
            _name: None,
        }
    }

    /// A node without files: for this process and its forked children only.
    pub(crate) fn anonymous(name: &str, geometry: Geometry) -> Result<Store> {
        let (region, descriptor) = Region::anonymous(name, geometry)
            .map_err(|e| Error::io("get shared memory for a node without files", e))?;
        initialise(region.header(), name, geometry);
        let [bell, calls] = make_bells()?;
        Ok(Store {
            region,
            bell,
            calls,
            path: None,
            id: None,
            _registry: None,
            lock_file: None,
            lock_tag: 0,
            boot: boot_id(),
            is_opening: AtomicBool::new(false),
            _name: descriptor,
        })
    }

    /// It is certain which process is the master: others may open the node from now on.
    pub(crate) fn opened(&self) {
        if self.is_opening.swap(false, RelaxedBool) {
            if let Some(lock_file) = &self.lock_file {
                // It cannot fail for an open descriptor; if it did, the description's end would free it.
                let _ = flock(lock_file, FlockOperation::Unlock);
            }
        }
    }

    /// Makes the registry as small as what is in it. Not while somebody opens the node, who counts on the room.
    pub(crate) fn shrink(&self) {
        let Some(lock_file) = &self.lock_file else { return };
        if flock(lock_file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            self.region.shrink();
            // It cannot fail for an open descriptor.
            let _ = flock(lock_file, FlockOperation::Unlock);
        }
    }

    /// Whether one of these is a member that is alive.
    pub(crate) fn has_kin(&self, relatives: &[Identity]) -> bool {
        self.lock_file.as_ref().is_some_and(|lock_file| has_kin(lock_file.as_fd(), relatives))
    }

    /// Whether this is the registry that lies at `path`.
    pub(crate) fn lies_at(&self, path: &Path) -> bool {
        self.id.is_some() && FileId::at(path) == self.id
    }

    /// Whether its file does not lie where it was made: somebody has removed or replaced it.
    pub(crate) fn is_missing(&self) -> bool {
        self.path.as_deref().is_some_and(|path| match std::fs::symlink_metadata(path) {
            Ok(_) => !self.lies_at(path),
            // Who may not look does not know.
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        })
    }

    /// Whether this is the lock file that lies at `path`.
    pub(crate) fn has_lock_file(&self, path: &Path) -> bool {
        let own = self.lock_file.as_ref().and_then(|fd| FileId::of(fd).ok());
        own.is_some() && FileId::at(path) == own
    }

    /// Shares the byte of this process in the lock file, and gives the word for that file: 0 if that cannot be done.
    pub(crate) fn prove_membership(&self, process: &Identity) -> u32 {
        let Some(lock_file) = self.open_lock_file() else { return 0 };
        match record_lock::share(lock_file.as_fd(), member_byte(process.to_word())) {
            Ok(()) => self.lock_tag(),
            // The server has closed all descriptors, say. Then there is no proof.
            Err(_) => 0,
        }
    }

    /// The lock file in one word; 0 if there is none.
    pub(crate) fn lock_tag(&self) -> u32 {
        self.lock_tag
    }

    /// Writes what never changes into the header again.
    pub(crate) fn restore_header(&self, name: &str) {
        header::restore(self.region.header(), name, self.region.geometry(), self.boot);
    }

    /// Shares the byte that says: this process waits to join or holds the node lock. `false`: it cannot say so.
    pub(crate) fn engage(&self, process: &Identity) -> bool {
        let Some(lock_file) = self.open_lock_file() else { return false };
        record_lock::share(lock_file.as_fd(), engaged_byte(process.to_word())).is_ok()
    }

    pub(crate) fn disengage(&self, process: &Identity) {
        if let Some(lock_file) = &self.lock_file {
            // Failing means that it was not shared.
            let _ = record_lock::release(lock_file.as_fd(), engaged_byte(process.to_word()));
        }
    }

    /// Whether a process, other than this one, waits to join or holds the node lock. `None`: no proof either way.
    pub(crate) fn is_engaged(&self, process: &Identity) -> Option<bool> {
        let lock_file = self.lock_file.as_ref()?;
        match record_lock::ask(lock_file.as_fd(), engaged_byte(process.to_word())) {
            Ok(ByteLock::Free) => Some(false),
            // Of another process: only somebody who means harm shares what is not its own.
            Ok(ByteLock::Process(pid)) => Some(pid == process.pid),
            Ok(ByteLock::Unseen | ByteLock::Description) | Err(_) => None,
        }
    }

    /// The lock file, unless the server has closed all descriptors and opened another file under this number.
    fn open_lock_file(&self) -> Option<&OwnedFd> {
        let lock_file = self.lock_file.as_ref()?;
        let id = FileId::of(lock_file).ok()?;
        (id.tag() == self.lock_tag).then_some(lock_file)
    }

    /// Whether exactly this process, of our pid namespace, shares its byte: so it is alive. `false` proves
    /// nothing.
    pub(crate) fn is_proven(&self, process: &Identity) -> bool {
        self.lock_file.as_ref().is_some_and(|fd| membership::is_proven(fd.as_fd(), process))
    }

    /// Whether exactly this process, of our pid namespace, is a member for certain.
    pub(crate) fn is_certain(&self, process: &Identity, registry: Option<(FileId, &Path)>) -> bool {
        self.lock_file.as_ref().is_some_and(|fd| membership::is_certain(fd.as_fd(), process, registry))
    }

    /// Who is none of the members.
    pub(crate) fn strangers(&self, limit: Duration) -> Strangers<'_> {
        let lock_file = self.lock_file.as_ref().map(|fd| (fd.as_fd(), self.lock_tag()));
        Strangers::new(lock_file, self.id.zip(self.path.as_deref()), limit)
    }

    /// Whether a process, other than this one, is a member that is alive, by its byte in the lock file.
    /// `None`: no proof either way.
    pub(crate) fn is_member(&self, process: &Identity, lock_tag: u32) -> Option<bool> {
        let lock_file = self.lock_file.as_ref().filter(|_| lock_tag == self.lock_tag())?;
        membership::is_member(lock_file.as_fd(), process)
    }
}

/// What would keep a server that starts from using the files of this path, as far as it shows without making, locking or
/// changing anything.
pub(crate) fn look(path: &Path) -> Result<()> {
    files::look_at_folder(path)?;
    let lock_at = lock_path(path);
    let lock_file = look_at(&lock_at)?;
    if let Some((_, stat)) = &lock_file {
        files::check_lock_file(&lock_at, stat)?;
    }
    match find(path)? {
        // Anything else is replaced, if nobody uses it.
        Some((_, Err(error))) if error.kind() == ErrorKind::NotARegistry && lock_file.is_none() => Err(error),
        Some(_) if lock_file.is_some() => Ok(()),
        _ => files::may_make(path),
    }
}

fn look_at(path: &Path) -> Result<Option<(OwnedFd, Stat)>> {
    files::look_at(path).map_err(|e| Error::file("look at", path, e))
}

fn make_bells() -> Result<[Bell; 2]> {
    let make = || Bell::new().map_err(|e| Error::io("make a bell of the node", e));
    Ok([make()?, make()?])
}

/// The geometry, if the file is just as long as it asks for.
fn has_size_of(fd: &OwnedFd, geometry: Geometry) -> Option<Geometry> {
    let stat = rustix::fs::fstat(fd).ok()?;
    (u64::try_from(stat.st_size) == Ok(geometry.file_size() as u64)).then_some(geometry)
}

/// The registry at `path`, open for writing, and its geometry or what is wrong with it; `None` if there is none.
fn find(path: &Path) -> Result<Option<(OwnedFd, Result<Geometry>)>> {
    let Some(fd) = files::open_own(path, OFlags::RDWR, 0o022)? else { return Ok(None) };
    let vfs = fstatvfs(&fd).map_err(|e| Error::file("look at", path, e.into()))?;
    if vfs.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(Error::file("write to", path, Errno::ROFS.into()));
    }
    let geometry = geometry_of(&fd, path).map_err(|e| Error::file("read", path, e))?;
    Ok(Some((fd, geometry)))
}

/// What the header of a registry's file says of it, or what is wrong with that.
pub(crate) fn geometry_of(fd: &OwnedFd, path: &Path) -> io::Result<Result<Geometry>> {
    let size = rustix::fs::fstat(fd)?.st_size;
    match Region::read(fd.as_fd(), Geometry::SMALLEST, size_of::<Header>()) {
        Ok(copy) => Ok(read_geometry(copy.header(), u64::try_from(size).unwrap_or(0), path)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(Err(Error::new(
            ErrorKind::NotARegistry,
            format!(
                "{} is truncated: it has {size} bytes, less than the first page of a registry (remove it, or set \
                 another `path`)",
                path.display()
            ),
        ))),
        Err(e) => Err(e),
    }
}

fn map(fd: &OwnedFd, path: &Path, geometry: Geometry) -> Result<Region> {
    Region::map(fd.as_fd(), geometry).map_err(|e| Error::file("get room for", path, e))
}

/// Makes the file under a temporary name nobody sees, so that no reader ever finds half of one.
fn create(path: &Path, name: &str, geometry: Geometry) -> Result<Region> {
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
        ftruncate(&fd, geometry.file_size() as u64).map_err(failed("make"))?;
        let region = map(&fd, path, geometry)?;
        initialise(region.header(), name, geometry);
        std::fs::rename(&temporary, path).map_err(|e| Error::file("make", path, e))?;
        Ok(region)
    })();
    if made.is_err() {
        // The error that is reported is the first one.
        let _ = std::fs::remove_file(&temporary);
    }
    made
}
