//! A thread that turns the watch into bytes on a unix socket, for hosts that can wait for nothing else.
//!
//! Lua in nginx is one: it can read from a socket, but not wait for a descriptor. The thread polls the watch
//! and writes bytes. It touches no registry, takes no lock, and knows nothing of workers.
//!
//! The socket must have a path to connect to, and a path is something that others can get at: so it is
//! unlinked before the first byte, reached through a descriptor of this process only
//! (`/proc/self/fd/N`), and asks who has connected.

use std::ffi::c_char;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};

use headcount_core::{ErrorKind, GenerationId};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use crate::border::{Failure, check_pointer, copy_string, entry};
use crate::codes::HEADCOUNT_OK;
use crate::handle::{self, Handle};
use crate::watch::watch_of;

/// "Look at the watch."
const LOOK: u8 = b'E';
/// "That was the last byte."
const QUIT: u8 = b'Q';

/// A running waker, as the rest of the process holds it. Dropping it does not end the thread.
pub(crate) struct Waker {
    pub(crate) generation: GenerationId,
    control: Arc<Control>,
}

struct Control {
    event: OwnedFd,
    stop: AtomicBool,
}

impl Control {
    fn ring(&self) {
        // It can only fail when nobody has listened for 2^64 rings.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}

impl Waker {
    pub(crate) fn rearm(&self) {
        self.control.ring();
    }

    pub(crate) fn stop(&self) {
        self.control.stop.store(true, Release);
        self.control.ring();
    }

    /// Starts the thread. The second part of the answer is what to connect to.
    fn start(watch: BorrowedFd<'_>, generation: GenerationId, folders: &[PathBuf]) -> Result<(Waker, String), Failure> {
        let failed = |e: io::Error| Failure::io("start the waker", e);
        let (listener, place) = listen(folders)?;
        let path = format!("/proc/self/fd/{}", place.as_raw_fd());
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| failed(e.into()))?;
        let control = Arc::new(Control { event, stop: AtomicBool::new(false) });
        // A descriptor of its own: the other may be closed, and its number used again, at any moment.
        let watch = watch.try_clone_to_owned().map_err(failed)?;
        let thread = Thread { control: Arc::clone(&control), watch };
        without_signals(|| {
            let builder = std::thread::Builder::new().name("headcount-waker".to_owned()).stack_size(128 * 1024);
            builder.spawn(move || thread.run(listener, place))
        })
        .map_err(failed)?;
        Ok((Waker { generation, control }, path))
    }
}

/// A new thread inherits the signal mask: the host's signals are for the host's threads.
fn without_signals<T>(make: impl FnOnce() -> T) -> T {
    let mut all = std::mem::MaybeUninit::uninit();
    let mut before = std::mem::MaybeUninit::uninit();
    // SAFETY: the first call fills `all`, the second reads it and fills `before`; neither can fail with
    // these arguments.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    let made = make();
    // SAFETY: `before` was filled above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    made
}

/// A listening socket in the first folder that lets us, and a descriptor of its place there, which is
/// gone by then.
fn listen(folders: &[PathBuf]) -> Result<(OwnedFd, OwnedFd), Failure> {
    let mut last = None;
    for folder in folders {
        match listen_in(folder) {
            Ok(made) => return Ok(made),
            Err(e) => last = Some((folder, e)),
        }
    }
    let tried: Vec<_> = folders.iter().map(|f| f.display().to_string()).collect();
    let tail = last.map_or(String::new(), |(folder, e)| format!(" (in {}: {e})", folder.display()));
    Err(Failure::new(
        ErrorKind::Permission,
        format!("no socket can be made in {}{tail}: let the workers write to one of them", tried.join(", ")),
    ))
}

fn listen_in(folder: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
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
    Ok((socket, place))
}

fn nonce() -> u32 {
    // Not a secret: who connects is checked. It only keeps processes of several pid namespaces apart.
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) as u32
}

/// What the thread owns.
struct Thread {
    control: Arc<Control>,
    watch: OwnedFd,
}

impl Thread {
    fn run(self, listener: OwnedFd, place: OwnedFd) {
        let Some(peer) = self.accept(&listener) else { return };
        // Nobody else is to come.
        drop((listener, place));
        let mut armed = true;
        loop {
            let watched = if armed { PollFlags::IN } else { PollFlags::empty() };
            let mut fds = [
                PollFd::new(&self.control.event, PollFlags::IN),
                PollFd::new(&peer, PollFlags::empty()),
                PollFd::new(&self.watch, watched),
            ];
            let waited = poll(if armed { &mut fds } else { &mut fds[..2] }, None);
            let [control, gone, watch] = [0, 1, 2].map(|i| waited.is_ok() && !fds[i].revents().is_empty());
            match waited {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => break,
            }
            if control {
                self.hear();
                if self.control.stop.load(Acquire) {
                    break;
                }
                armed = true;
            }
            if gone {
                // The reader has closed its end.
                return;
            }
            // After a rearm the watch is looked at anew, in the next round.
            if armed && !control && watch {
                if !send(&peer, LOOK) {
                    return;
                }
                armed = false;
            }
        }
        send(&peer, QUIT);
        let _ = rustix::net::shutdown(&peer, rustix::net::Shutdown::Both);
    }

    fn hear(&self) {
        let mut count = [0; 8];
        // Empty is what it shall be.
        let _ = rustix::io::read(&self.control.event, &mut count);
    }

    /// Waits for this very process to connect. `None`: told to stop before.
    fn accept(&self, listener: &OwnedFd) -> Option<OwnedFd> {
        loop {
            let mut fds =
                [PollFd::new(&self.control.event, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return None,
            }
            self.hear();
            if self.control.stop.load(Acquire) {
                return None;
            }
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let Ok(peer) = rustix::net::accept_with(listener, flags) else { continue };
            let who = rustix::net::sockopt::socket_peercred(&peer);
            if who.is_ok_and(|who| who.pid == rustix::process::getpid()) {
                return Some(peer);
            }
        }
    }
}

fn send(peer: &OwnedFd, byte: u8) -> bool {
    rustix::net::send(peer.as_fd(), &[byte], SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_ok()
}

/// Starts a thread that writes to a unix socket when the watch's descriptor becomes readable, for hosts that
/// cannot wait for that descriptor themselves. `path` gets what to connect to (64 bytes are enough), once, and
/// only from this process.
///
/// Each byte 'E' means: call `headcount_process` until it returns no event, then `headcount_waker_rearm`; the next
/// one comes only after that. The byte 'Q', or the end of the stream, means that no more come. A waker
/// that runs already is stopped first. The thread touches nothing of the node, and handles no signal. It
/// ends with `headcount_waker_stop`, when this process leaves the newest generation that it joined, joins
/// another, or closes its end of the connection.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_waker_start(node: *mut Handle, path: *mut c_char, capacity: u64) -> i32 {
    const LONGEST_PATH: u64 = 32;
    entry(|| {
        let handle = handle::find(node)?;
        check_pointer(path, "path")?;
        if capacity < LONGEST_PATH {
            return Err(Failure::new(
                ErrorKind::InvalidOption,
                format!("argument `capacity` is {capacity}; allowed is {LONGEST_PATH} and more"),
            ));
        }
        let mut process = handle.process();
        let watch = watch_of(&mut process)?.as_fd().try_clone_to_owned();
        let watch = watch.map_err(|e| Failure::io("start the waker", e))?;
        let generation = process.watch.as_ref().map_or(0, |(generation, _)| *generation);
        if let Some(old) = process.waker.take() {
            old.stop();
        }
        let mut folders = vec![PathBuf::from("/dev/shm"), PathBuf::from("/tmp")];
        folders.extend(handle.node.path().and_then(Path::parent).map(Path::to_owned));
        let (waker, place) = Waker::start(watch.as_fd(), generation, &folders)?;
        process.waker = Some(waker);
        // SAFETY: a buffer of that size, by the caller's word.
        unsafe { copy_string(&place, path, capacity) };
        Ok(HEADCOUNT_OK)
    })
}

/// The last byte was acted on: the next one may come. HEADCOUNT_ERR_WRONG_STATE if no waker runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_waker_rearm(node: *mut Handle) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        let process = handle.process();
        let Some(waker) = &process.waker else {
            return Err(Failure::new(ErrorKind::WrongState, "no waker runs in this process"));
        };
        waker.rearm();
        Ok(HEADCOUNT_OK)
    })
}

/// Stops the waker: 'Q' is written and the connection closed. `generation` 0: whatever it runs for; else only
/// if it runs for that generation, so that an old one does not stop the new one's. Does not wait for the
/// thread. Does nothing if no such waker runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_waker_stop(node: *mut Handle, generation: u64) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        let mut process = handle.process();
        if let Some(waker) = process.waker.take_if(|w| generation == 0 || w.generation == generation) {
            waker.stop();
        }
        Ok(HEADCOUNT_OK)
    })
}
