//! Being told when something in a folder comes, goes or is replaced.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::epoll;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::sys::timer::Timer;

/// Between two looks where the kernel does not tell: no inotify instance or watch is left (`fs.inotify.max_user_instances`,
/// `max_user_watches`), or the folder may be entered but not be read.
const LOOKS: Duration = Duration::from_secs(1);
/// Somebody who makes files all the time, in a folder where everybody may, does not keep us busier than this.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks out for changes in some folders, by an inotify instance of its own.
///
/// The descriptor ([`AsFd`]) is readable when there was one; then call [`FolderWatch::changed`]. A folder that is not there
/// is waited for. Where the kernel cannot tell of one of the folders, the descriptor becomes readable every second.
pub struct FolderWatch {
    epoll: OwnedFd,
    inotify: Option<OwnedFd>,
    timer: Timer,
    folders: Vec<PathBuf>,
    watches: Vec<i32>,
    /// Some folder cannot be watched.
    blind: bool,
    /// There was a change just now; what comes in this moment is told after it.
    pauses: bool,
}

const INOTIFY: epoll::EventData = epoll::EventData::new_u64(0);
const TIMER: epoll::EventData = epoll::EventData::new_u64(1);

impl FolderWatch {
    /// Looks out for what comes into these folders, goes, or is renamed, from now on.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Io`] if there is no descriptor left.
    pub fn new(folders: impl IntoIterator<Item = PathBuf>) -> Result<FolderWatch> {
        let mut watch = FolderWatch::of_nothing().map_err(failed)?;
        watch.set(folders)?;
        Ok(watch)
    }

    fn of_nothing() -> io::Result<FolderWatch> {
        let (epoll, timer) = (epoll::create(epoll::CreateFlags::CLOEXEC)?, Timer::new()?);
        epoll::add(&epoll, &timer, TIMER, epoll::EventFlags::IN)?;
        // None is left: then it is looked by time.
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok();
        if let Some(inotify) = &inotify {
            epoll::add(&epoll, inotify, INOTIFY, epoll::EventFlags::IN)?;
        }
        let (folders, watches) = (Vec::new(), Vec::new());
        Ok(FolderWatch { epoll, inotify, timer, folders, watches, blind: false, pauses: false })
    }

    /// Looks out for what changes in these folders instead, from now on.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Io`] if the kernel does not answer.
    pub fn set(&mut self, folders: impl IntoIterator<Item = PathBuf>) -> Result<()> {
        let mut folders: Vec<_> = folders.into_iter().collect();
        folders.sort();
        folders.dedup();
        // Those that are watched are looked at again whenever something has changed.
        if folders == self.folders {
            return Ok(());
        }
        self.folders = folders;
        self.watch().and_then(|()| self.rest()).map_err(failed)
    }

    /// Whether something has changed since this was asked last.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Io`] if the kernel does not answer.
    pub fn changed(&mut self) -> Result<bool> {
        self.look().map_err(failed)
    }

    fn look(&mut self) -> io::Result<bool> {
        let timed = self.timer.has_fired();
        let came = (timed || !self.pauses) && self.drain()?;
        if !came && !timed {
            return Ok(false);
        }
        let changed = came || !self.pauses;
        if changed {
            // A folder that was made anew is another one to the kernel. Before the caller looks: what comes later is told.
            self.watch()?;
        }
        self.pauses = changed;
        self.rest()?;
        Ok(changed)
    }

    fn rest(&mut self) -> io::Result<()> {
        if let Some(inotify) = &self.inotify {
            let flags = if self.pauses { epoll::EventFlags::empty() } else { epoll::EventFlags::IN };
            epoll::modify(&self.epoll, inotify, INOTIFY, flags)?;
        }
        self.timer.set(if self.pauses { Some(PAUSE) } else { self.blind.then_some(LOOKS) })
    }

    /// Reads away what is told: what it was does not matter. At most so much that a busy folder cannot keep us here.
    fn drain(&self) -> io::Result<bool> {
        let Some(inotify) = &self.inotify else { return Ok(false) };
        let mut buffer = [0; 16 << 10];
        for n in 0..64 {
            match rustix::io::read(inotify, &mut buffer) {
                Ok(_) => {}
                Err(Errno::AGAIN) => return Ok(n > 0),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }

    fn watch(&mut self) -> io::Result<()> {
        let Some(inotify) = &self.inotify else {
            self.blind = true;
            return Ok(());
        };
        self.blind = false;
        let mut watches = Vec::new();
        for folder in &self.folders {
            match watch_one(inotify.as_fd(), folder, &mut watches) {
                Ok(()) => {}
                Err(Errno::ACCESS | Errno::NOSPC | Errno::NOMEM | Errno::NAMETOOLONG | Errno::LOOP) => {
                    self.blind = true;
                }
                Err(e) => return Err(e.into()),
            }
        }
        for old in self.watches.iter().filter(|old| !watches.contains(old)) {
            // Its folder may be gone, and the watch with it.
            let _ = inotify::remove_watch(inotify, *old);
        }
        self.watches = watches;
        Ok(())
    }
}

fn failed(error: io::Error) -> Error {
    Error::io("watch folders", error)
}

/// Watches a folder, or what is there of the way to it.
fn watch_one(inotify: BorrowedFd<'_>, folder: &Path, watches: &mut Vec<i32>) -> rustix::io::Result<()> {
    let flags = WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    // Each time it comes just then.
    const TRIES: usize = 8;
    for _ in 0..TRIES {
        let mut missing = None;
        for at in folder.ancestors() {
            // An empty one is what is left of a relative path.
            let at = if at.as_os_str().is_empty() { Path::new(".") } else { at };
            match inotify::add_watch(inotify, at, flags) {
                Ok(watch) => {
                    watches.push(watch);
                    break;
                }
                Err(Errno::NOENT | Errno::NOTDIR) => missing = Some(at),
                Err(e) => return Err(e),
            }
        }
        // What was missing when it was tried may have come before its parent was watched.
        if missing.is_none_or(|missing| !missing.is_dir()) {
            return Ok(());
        }
    }
    Ok(())
}

impl AsFd for FolderWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn is_readable(watch: &FolderWatch, limit: Duration) -> bool {
        let limit = Timespec::try_from(limit).unwrap();
        poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&limit)).expect("poll") > 0
    }

    /// Waits until a change is told.
    fn told(watch: &mut FolderWatch) -> bool {
        (0..20).any(|_| is_readable(watch, Duration::from_secs(1)) && watch.changed().expect("look"))
    }

    #[test]
    fn what_comes_and_goes_is_told() {
        let own = tempfile::tempdir().unwrap();
        let mut watch = FolderWatch::new([own.path().to_owned()]).unwrap();
        assert!(!watch.changed().unwrap());
        std::fs::write(own.path().join("a"), "").unwrap();
        assert!(told(&mut watch));
        std::fs::rename(own.path().join("a"), own.path().join("b")).unwrap();
        assert!(told(&mut watch));
        std::fs::remove_file(own.path().join("b")).unwrap();
        assert!(told(&mut watch));
        assert!(!watch.changed().unwrap() && !watch.blind);
    }

    #[test]
    fn a_folder_is_waited_for_and_found_again() {
        let own = tempfile::tempdir().unwrap();
        let folder = own.path().join("a/b");
        let mut watch = FolderWatch::new([folder.clone()]).unwrap();
        for _ in 0..2 {
            std::fs::create_dir(own.path().join("a")).unwrap();
            assert!(told(&mut watch));
            std::fs::create_dir(&folder).unwrap();
            assert!(told(&mut watch));
            std::fs::write(folder.join("x"), "").unwrap();
            assert!(told(&mut watch));
            assert_eq!(watch.watches.len(), 1);
            std::fs::remove_dir_all(own.path().join("a")).unwrap();
            assert!(told(&mut watch));
        }
    }

    #[test]
    fn a_busy_folder_is_looked_at_now_and_then() {
        let own = tempfile::tempdir().unwrap();
        let mut watch = FolderWatch::new([own.path().to_owned()]).unwrap();
        let begun = Instant::now();
        let mut looks = 0;
        while begun.elapsed() < PAUSE * 20 {
            std::fs::write(own.path().join("a"), "").unwrap();
            std::fs::remove_file(own.path().join("a")).unwrap();
            looks += u32::from(watch.changed().unwrap());
        }
        assert!(looks as u128 <= begun.elapsed().as_millis() / PAUSE.as_millis() + 2, "{looks}");
        // The last change is not forgotten.
        std::fs::write(own.path().join("a"), "").unwrap();
        assert!(told(&mut watch));
    }

    #[test]
    fn other_folders_do_not_end_a_pause_for_good() {
        let own = tempfile::tempdir().unwrap();
        let mut watch = FolderWatch::new([own.path().to_owned()]).unwrap();
        std::fs::write(own.path().join("a"), "").unwrap();
        assert!(told(&mut watch) && watch.pauses);
        std::fs::write(own.path().join("b"), "").unwrap();
        watch.set([own.path().to_owned(), own.path().join("c")]).unwrap();
        assert!(told(&mut watch));
    }

    #[test]
    fn without_inotify_it_is_looked_by_time() {
        let own = tempfile::tempdir().unwrap();
        let mut watch = FolderWatch::new([own.path().to_owned()]).unwrap();
        epoll::delete(&watch.epoll, watch.inotify.as_ref().unwrap()).unwrap();
        watch.inotify = None;
        watch.set([own.path().to_owned(), own.path().join("a")]).unwrap();
        assert!(watch.blind && told(&mut watch) && told(&mut watch));
    }
}
