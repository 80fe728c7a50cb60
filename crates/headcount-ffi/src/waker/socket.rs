//! The socket that only this process can get at.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use headcount_core::ErrorKind;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::border::Failure;

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

fn listen_in(folder: &Path) -> io::Result<Listener> {
    const TRIES: u32 = 16;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // A bound socket's place gets the mode that the socket has, less the umask.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    let mut bound = Err(Errno::EXIST);
    for n in 0..TRIES {
        let path = folder.join(format!(".headcount-{}-{}-{n}", std::process::id(), nonce()));
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
