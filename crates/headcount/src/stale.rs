//! Removing the files of a node that is gone, without taking them away from one that just comes.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, fstat, statat, unlinkat};
use rustix::io::Errno;

use crate::engine::opening;
use crate::error::{Error, ErrorKind, Result};
use crate::observer::Observer;
use crate::registry::files::{FileId, check_file, lock_path, make_or_open_lock};
use crate::registry::journal::Cursor;
use crate::registry::membership::has_members;
use crate::sys::clock;
use crate::sys::identity::Liveness;
use crate::sys::process;

/// Removes the registry at `path` and its lock file, if it is certain that nobody is alive who uses
/// them; gives the files that it removed. A lock file without a registry is removed under the same conditions.
///
/// It holds the lock of those who open the node meanwhile. A server that starts at that moment finds out that its lock
/// file was removed, and makes new ones; one that has started is found alive.
///
/// # Errors
/// [`ErrorKind::InUse`] if somebody is alive, or cannot be ruled out to be; [`ErrorKind::Busy`] if somebody else is
/// opening the node; [`ErrorKind::NotFound`] if there is nothing; [`ErrorKind::WrongOwner`] if the files or the folder
/// are not this user's; what [`Observer::open`] says of a registry that it cannot read. Nothing was removed then.
pub fn remove_stale(path: &Path) -> Result<Vec<PathBuf>> {
    let folder = Folder::of(path)?;
    let lock_at = lock_path(path);
    let has_registry = folder.has(path)?;
    if !has_registry && !folder.has(&lock_at)? {
        return Err(Error::new(ErrorKind::NotFound, format!("there is no {}", path.display())));
    }
    if opening::with_lock_file(&lock_at).is_some() {
        return Err(in_use(path, "this very process has it open"));
    }
    let Some(lock_file) = make_or_open_lock(&lock_at)? else {
        return Err(busy(path));
    };
    match flock(&lock_file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK | Errno::INTR) => return Err(busy(path)),
        Err(e) => return Err(Error::of_reader("lock", &lock_at, e.into())),
    }
    let locked = FileId::of(&lock_file).map_err(|e| Error::of_reader("look at", &lock_at, e))?;
    if FileId::at(&lock_at) != Some(locked) {
        return Err(in_doubt(path, "its lock file was replaced a moment ago"));
    }
    // From here on no server opens it, until `lock_file` is closed.
    if has_registry {
        nobody_listed_lives(path)?;
    }
    if has_members(lock_file.as_fd()) {
        return Err(in_use(path, "processes of it are alive"));
    }
    match Openers::of(locked) {
        Openers::Nobody => {}
        Openers::Process(pid) => {
            return Err(in_use(path, &format!("process {pid} has it open, and may be about to use it")));
        }
        Openers::Unknown(pid) => {
            return Err(in_doubt(path, &format!("the open files of process {pid} cannot be looked at")));
        }
    }
    // The lock file last: as long as it is there, it keeps others away.
    let mut removed = Vec::new();
    for file in [path.to_owned(), lock_at] {
        if folder.has(&file)? && folder.remove(&file)? {
            removed.push(file);
        }
    }
    Ok(removed)
}

/// Removes a few of the registries in a folder whose nodes were stopped so long ago, so that those of servers that come and
/// go under names of their own do not pile up. It looks at a few files only; what cannot be removed stays.
pub(crate) fn sweep(folder: &Path, age: Duration) {
    const MOST_LOOKED_AT: usize = 64;
    const MOST_REMOVED: usize = 8;
    let Ok(entries) = fs::read_dir(folder) else { return };
    let registries = entries.flatten().map(|entry| entry.path());
    let registries = registries.filter(|p| p.extension().is_some_and(|e| e == "registry"));
    let stopped = registries.take(MOST_LOOKED_AT).filter(|path| was_stopped_before(path, age) == Some(true));
    let _ = stopped.filter(|path| remove_stale(path).is_ok()).take(MOST_REMOVED).count();
}

/// Whether nobody is left in it to be reported, and its last event is so old. `None`: it cannot be read, or is of another
/// boot, whose clock is not ours.
fn was_stopped_before(path: &Path, age: Duration) -> Option<bool> {
    let observer = Observer::open(path).ok()?;
    observer.registry().ok()?.of_this_boot.filter(|&is_ours| is_ours)?;
    let snapshot = observer.snapshot().ok()?;
    let newest = observer.events(&mut Cursor::at(snapshot.head), 1).ok()?.events.pop()?;
    let is_old = snapshot.boot_ns.saturating_sub(newest.boot_ns) >= clock::nanos(age);
    Some(snapshot.processes.is_empty() && snapshot.generations.is_empty() && is_old)
}

fn nobody_listed_lives(path: &Path) -> Result<()> {
    for p in &Observer::open(path)?.snapshot()?.processes {
        match p.liveness {
            Liveness::Gone => {}
            Liveness::Alive => return Err(in_use(path, &format!("process {} of it is alive", p.pid))),
            Liveness::Unknown(doubt) => {
                let why =
                    format!("process {} of it may be alive, which is not known: {}", p.pid, doubt.reason());
                return Err(in_doubt(path, &why));
            }
        }
    }
    Ok(())
}

fn busy(path: &Path) -> Error {
    let text = format!("another process is just opening {} (try again)", path.display());
    Error::new(ErrorKind::Busy, text)
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
    fn has(&self, path: &Path) -> Result<bool> {
        match statat(&self.0, name(path), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => check_file(path, &stat, 0o022).map(|()| true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(Error::of_reader("look at", path, e.into())),
        }
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

/// Who has a lock file open, as those do who belong to its node, or are about to. Its locks alone don't tell of a process
/// between two of its steps: forked and not yet joined.
enum Openers {
    Nobody,
    Process(u32),
    /// This process is one of our user's, and its descriptors may not be looked at.
    Unknown(u32),
}

impl Openers {
    fn of(file: FileId) -> Openers {
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

fn opens(pid: u32, file: FileId) -> io::Result<bool> {
    for fd in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Ok(fd) = fd else { continue };
        let Ok(meta) = fs::metadata(fd.path()) else { continue };
        if (FileId { device: meta.dev(), inode: meta.ino() }) == file {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The lock file is its owner's alone, so that only processes of this user can have opened it.
fn may_be_ours(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    can_have_it(&status, rustix::process::geteuid().as_raw())
}

/// Whether a process with this `/proc/PID/status` can use a file that only this user can open. One that is ending, or has
/// ended, has no memory any more, and may be looked at by root alone. One that was started from a file with the setuid bit, as
/// sudo is, has got no descriptor of it.
fn can_have_it(status: &str, user: u32) -> bool {
    let of = |field: &str| status.lines().find_map(|line| line.strip_prefix(field));
    let user = user.to_string();
    // Real, effective, saved, and of the file system.
    let is_user = of("Uid:").is_some_and(|ids| ids.split_ascii_whitespace().skip(1).any(|id| id == user));
    is_user && of("VmSize:").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Begin, Options, Wait};

    #[test]
    fn who_has_ended_or_changed_its_user_has_nothing_open() {
        let status = |ids: &str, memory: &str| format!("Name:\tnginx\nUid:\t{ids}\n{memory}Threads:\t1\n");
        let memory = "VmPeak:\t   15000 kB\nVmSize:\t   15000 kB\n";
        assert!(can_have_it(&status("1000\t1000\t1000\t1000", memory), 1000));
        assert!(!can_have_it(&status("1000\t1000\t1000\t1000", memory), 100));
        assert!(can_have_it(&status("0\t1000\t0\t1000", memory), 1000), "root that acts for us");
        assert!(!can_have_it(&status("1000\t1000\t1000\t1000", ""), 1000), "a zombie");
        assert!(!can_have_it(&status("1000\t0\t0\t0", memory), 1000), "sudo");
        assert!(!can_have_it("", 1000), "it is gone");
    }

    #[test]
    fn a_zombie_is_nobody() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        while !fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap().contains(") Z ") {
            std::thread::yield_now();
        }
        let is_ours = may_be_ours(child.id());
        child.wait().unwrap();
        assert!(!is_ours && may_be_ours(process::pid()));
    }

    /// A server that starts and stops, in a process of its own.
    fn ran(path: &Path) {
        // SAFETY: the child only runs this, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let ran = (|| {
                let master = Options::new("node").path(path).open().ok()?;
                let (generation, transitions) = master.begin(Begin::new().workers(1), Wait::Timeout).ok()?;
                transitions.run(|_| ());
                master.abandon(generation.id());
                master.leave(Wait::Timeout).ok()?.run(|_| ());
                Some(())
            })();
            // SAFETY: ends the child without the test harness.
            unsafe { libc::_exit(i32::from(ran.is_none())) };
        }
        let mut status = 0;
        // SAFETY: our own child, and a place for its status.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
    }

    #[test]
    fn what_a_stopped_server_leaves_is_small_and_goes_away() {
        use std::os::unix::fs::MetadataExt;
        // Where blocks can be given back.
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = folder.path().join("a.registry");
        ran(&path);
        let used = || fs::metadata(&path).unwrap().blocks() * 512;
        assert!(used() <= 16 << 10, "{} bytes", used());
        ran(&path);
        let observer = Observer::open(&path).unwrap();
        assert_eq!(observer.registry().unwrap().runs, 2, "its history is still there");
        assert!(used() <= 16 << 10, "{} bytes", used());
        sweep(folder.path(), Duration::from_secs(3_600));
        assert!(path.exists(), "not yet");
        sweep(folder.path(), Duration::ZERO);
        assert!(!path.exists() && !lock_path(&path).exists());
    }
}
