//! Who belongs to a node, whatever its table says: by the byte of the lock file that a member shares, which nobody can share
//! in another's name, and by the registry, which all members have mapped.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use crate::registry::files::FileId;
use crate::registry::layout::member_byte;
use crate::sys::clock;
use crate::sys::identity::{Identity, Liveness};
use crate::sys::process;
use crate::sys::record_lock::{self, ByteLock};

/// Whether a process, in whatever pid namespace, is alive and a member. `None`: no proof either way.
pub(crate) fn is_member(lock_file: BorrowedFd<'_>, process: &Identity) -> Option<bool> {
    match record_lock::ask(lock_file, member_byte(process.to_word())) {
        Ok(ByteLock::Free) => Some(false),
        Ok(ByteLock::Process(_) | ByteLock::Unseen) => Some(true),
        Ok(ByteLock::Description) | Err(_) => None,
    }
}

/// Whether exactly this process, of our pid namespace, shares its byte: so it is alive. `false` proves nothing.
pub(crate) fn is_proven(lock_file: BorrowedFd<'_>, process: &Identity) -> bool {
    let by = record_lock::ask(lock_file, member_byte(process.to_word()));
    by.is_ok_and(|by| by == ByteLock::Process(process.pid))
}

/// Whether exactly this process, of our pid namespace, is a member for certain: by its byte or, where a lock of somebody
/// else's hides that, by the registry that it has mapped.
pub(crate) fn is_certain(
    lock_file: BorrowedFd<'_>,
    process: &Identity,
    registry: Option<(FileId, &Path)>,
) -> bool {
    match record_lock::ask(lock_file, member_byte(process.to_word())) {
        Ok(ByteLock::Process(pid)) if pid == process.pid => true,
        Ok(ByteLock::Free | ByteLock::Unseen) | Err(_) => false,
        // Of a description, or in the name of another process: whoever does that means harm.
        Ok(ByteLock::Process(_) | ByteLock::Description) => {
            registry.is_some_and(|(id, path)| maps(process.pid, id, path) == Some(true))
                && process.liveness() == Liveness::Alive
        }
    }
}

/// Whether one of these is a member that is alive.
pub(crate) fn has_kin(lock_file: BorrowedFd<'_>, relatives: &[Identity]) -> bool {
    relatives.iter().any(|process| is_member(lock_file, process) == Some(true))
}

/// Whether any process has proved that it is a member. Cannot be asked: then one may have.
pub(crate) fn has_members(lock_file: BorrowedFd<'_>) -> bool {
    !matches!(record_lock::ask_any(lock_file), Ok(ByteLock::Free))
}

/// Tells who stands in a table without belonging to the node: somebody has written him there. Its answers are good for one
/// look.
pub(crate) struct Strangers<'a> {
    /// And its word. Without it nobody is called a stranger.
    lock_file: Option<(BorrowedFd<'a>, u32)>,
    registry: Option<(FileId, &'a Path)>,
    own_namespace: u32,
    /// Whether nobody of the node can be in another pid namespace.
    is_local: bool,
    known: BTreeMap<Identity, bool>,
    maps: BTreeMap<u32, Option<bool>>,
    /// Asking costs as much as a hostile worker has locks or mappings.
    until: u64,
}

impl<'a> Strangers<'a> {
    /// `limit`: who has not been asked for by then counts as a member.
    pub(crate) fn new(
        lock_file: Option<(BorrowedFd<'a>, u32)>,
        registry: Option<(FileId, &'a Path)>,
        limit: Duration,
    ) -> Strangers<'a> {
        Strangers {
            lock_file,
            registry,
            own_namespace: Identity::own().namespace,
            is_local: false,
            known: BTreeMap::new(),
            maps: BTreeMap::new(),
            until: clock::boot_ns().saturating_add(clock::nanos(limit)),
        }
    }

    /// The node is certainly the asking server's: nobody of it is in another pid namespace.
    pub(crate) fn of_own_node(mut self, is_own: bool) -> Strangers<'a> {
        self.is_local = is_own;
        self
    }

    /// Whether this process is certainly none of the node. `lock_tag`: the lock file in which it has proved itself, as the
    /// table says.
    pub(crate) fn has(&mut self, process: &Identity, lock_tag: u32) -> bool {
        if let Some(&known) = self.known.get(process) {
            return known;
        }
        let found = clock::boot_ns() < self.until
            && self.find(process, lock_tag)
            // One that ends has dropped its proof and its memory, and is alive to the kernel for a moment more.
            && !(self.is_here(process) && process::is_ending(process.pid));
        self.known.insert(*process, found);
        found
    }

    fn find(&mut self, process: &Identity, lock_tag: u32) -> bool {
        let Some((lock_file, tag)) = self.lock_file else { return false };
        let is_here = self.is_here(process);
        if is_here && is_proven(lock_file, process) {
            return false;
        }
        // One whose server has closed all descriptors can prove nothing, but has mapped the registry.
        if is_here {
            if let Some(maps) = self.maps(process.pid) {
                return !maps;
            }
        }
        // One of a container may have proved itself in a lock file that was removed since.
        let cannot_be =
            !is_here && (!process.is_of_a_namespace() || self.is_local && self.own_namespace != 0);
        (tag == lock_tag || cannot_be) && is_member(lock_file, process) == Some(false)
    }

    fn is_here(&self, process: &Identity) -> bool {
        self.own_namespace != 0 && process.namespace == self.own_namespace
    }

    /// Whether a process has mapped the registry; `None` where `/proc` does not tell.
    fn maps(&mut self, pid: u32) -> Option<bool> {
        let (id, path) = self.registry?;
        *self.maps.entry(pid).or_insert_with(|| maps(pid, id, path))
    }
}

/// Whether a process has a file mapped. `None` where `/proc` does not tell.
fn maps(pid: u32, id: FileId, path: &Path) -> Option<bool> {
    let list = std::fs::File::open(format!("/proc/{pid}/maps")).ok()?;
    // Field 5 of a line is the inode number. On a file system in layers it is another one than the file's own: so
    // the name counts as well.
    let (inode, name) = (id.inode.to_string(), path.file_name()?.to_string_lossy());
    for line in BufReader::new(list).lines() {
        let line = line.ok()?;
        if line.split_ascii_whitespace().nth(4) == Some(&inode) || line.contains(&*name) {
            return Some(true);
        }
    }
    Some(false)
}
