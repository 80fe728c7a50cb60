//! The socket that only this process can get at.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use headcount_core::ErrorKind;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, test_kill_process};

use crate::border::entry::Failure;

/// A listening socket, and a descriptor of its place, which is gone from the file system.
pub(super) struct Listener {
    pub(super) socket: OwnedFd,
    place: OwnedFd,
}

impl Listener {
    /// In the first folder that lets us.
    pub(super) fn new(folders: &[PathBuf]) -> Result<Listener, Failure> {
        let mut failures = Vec::new();
        for folder in folders {
            match listen_in(folder) {
                Ok(listener) => return Ok(listener),
                Err(e) => failures.push(format!("{}: {e}", folder.display())),
            }
        }
        Err(Failure::new(
            ErrorKind::Permission,
            format!("no socket can be made ({}): let the workers write to one of these", failures.join("; ")),
        ))
    }

    /// What this process can connect to, until it has.
    pub(super) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.place.as_raw_fd())
    }
}

/// What the name of each of our sockets begins with, for the microseconds that it has one.
const PREFIX: &str = ".headcount-";

/// The pid namespace of this process; `None` where `/proc` does not tell.
fn namespace() -> Option<u64> {
    Some(std::fs::metadata("/proc/self/ns/pid").ok()?.ino())
}

/// Whether the process is gone that made a socket of this name, as far as that can be known.
fn is_of_the_dead(name: &OsStr, own_namespace: Option<u64>) -> bool {
    let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { return false };
    let mut words = rest.split('-');
    let pid = words.next().and_then(|word| word.parse().ok()).and_then(Pid::from_raw);
    let namespace = words.next().and_then(|word| word.parse().ok());
    namespace.is_some()
        && namespace == own_namespace
        && pid.is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH))
}

/// Removes what processes of ours left behind that were killed just between making and unlinking it. A socket
/// that is still in use has no name any more, so that age tells, too.
fn sweep(folder: &Path) {
    const OLD: Duration = Duration::from_secs(60);
    let me = rustix::process::geteuid().as_raw();
    let namespace = namespace();
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|e| e.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes())) {
        let Ok(found) = entry.metadata() else { continue };
        let age = found.modified().ok().and_then(|then| then.elapsed().ok()).unwrap_or_default();
        let is_left = age > OLD || is_of_the_dead(&entry.file_name(), namespace);
        if found.file_type().is_socket() && found.uid() == me && is_left {
            // Another process of ours may be sweeping too.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn listen_in(folder: &Path) -> io::Result<Listener> {
    const TRIES: u32 = 16;
    sweep(folder);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // A bound socket's place gets the mode that the socket has, less the umask.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    let mut bound = Err(Errno::EXIST);
    for n in 0..TRIES {
        let namespace = namespace().unwrap_or(0);
        let path = folder.join(format!("{PREFIX}{}-{namespace}-{}-{n}", std::process::id(), nonce()));
        match rustix::net::bind(&socket, &SocketAddrUnix::new(&path)?) {
            Ok(()) => {
                bound = Ok(path);
                break;
            }
            Err(e @ (Errno::ADDRINUSE | Errno::EXIST)) => bound = Err(e),
            Err(e) => return Err(e.into()),
        }
    }
    let path = bound?;
    let place = rustix::fs::open(&path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    // Whether it can be opened or not, it must not stay.
    rustix::fs::unlink(&path)?;
    let place = place?;
    let stat = rustix::fs::fstat(&place)?;
    let ours = FileType::from_raw_mode(stat.st_mode) == FileType::Socket
        && stat.st_uid == rustix::process::geteuid().as_raw();
    if !ours {
        return Err(io::Error::other("somebody has put something else into its place"));
    }
    rustix::net::listen(&socket, 4)?;
    Ok(Listener { socket, place })
}

fn nonce() -> u32 {
    // Not a secret: who connects is checked. It only keeps processes of several pid namespaces apart.
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_is_swept_away_and_nothing_else() {
        use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW};
        let folder = std::env::temp_dir().join(format!("headcount-sweep-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        // Of a process that lives, of one that is gone, and of one of another namespace, of which nothing is known.
        let here = namespace().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let (me, gone) = (std::process::id(), child.id());
        let names = [
            ".headcount-1-1-1-0".to_owned(),
            format!(".headcount-{me}-{here}-2-0"),
            format!(".headcount-{gone}-{here}-3-0"),
            format!(".headcount-{gone}-1-4-0"),
            ".headcount-file".to_owned(),
        ];
        let [old, young, dead, elsewhere, file] = names.map(|n| folder.join(n));
        // Their descriptors are closed at once: the names stay.
        for socket in [&old, &young, &dead, &elsewhere] {
            drop(std::os::unix::net::UnixListener::bind(socket).unwrap());
        }
        std::fs::write(&file, "").unwrap();
        let long_ago = Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
            last_modification: long_ago,
        };
        for path in [&old, &file] {
            rustix::fs::utimensat(CWD, path, &times, AtFlags::empty()).unwrap();
        }
        let made = Listener::new(std::slice::from_ref(&folder)).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
        left.sort();
        std::fs::remove_dir_all(&folder).unwrap();
        let mut kept = [young, elsewhere, file];
        kept.sort();
        assert_eq!(left, kept, "its own name is gone, the old one's, and the dead one's");
        drop(made);
    }

    #[test]
    fn a_folder_that_lets_nobody_is_named() {
        let error = Listener::new(&[PathBuf::from("/proc")]).err().unwrap();
        let message = headcount_border::Failure::from(error).message;
        assert!(message.contains("/proc: "), "{message}");
    }
}
