//! The thread itself, and how the rest of the process talks to it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::{Arc, OnceLock};

use headcount_core::internal::spawn_without_signals;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, SocketFlags};

use super::socket::Listener;

/// "The watch is readable."
const READABLE: u8 = b'E';
/// "A lock that is waited for may be free."
const TRY: u8 = b'L';
/// "That was the last byte."
const QUIT: u8 = b'Q';

/// How the rest of the process talks to the thread.
pub(super) struct Control {
    bell: OwnedFd,
    stop: AtomicBool,
    /// The next byte may be written. Cleared by the thread with each byte.
    armed: AtomicBool,
    /// The connection, once it is there.
    peer: OnceLock<OwnedFd>,
}

impl Control {
    pub(super) fn rearm(&self) {
        // Most often it is: then there is no reason to wake the thread.
        if !self.armed.swap(true, AcqRel) {
            self.ring();
        }
    }

    fn ring(&self) {
        // It can only fail after 2^64 rings that nobody has heard.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Release);
        // Here and now: a starved thread must not be what a worker's end waits for.
        if let Some(peer) = self.peer.get() {
            say_goodbye(peer);
        }
        self.ring();
    }

    /// Whether the host listens.
    pub(super) fn is_connected(&self) -> bool {
        self.peer.get().is_some() && !self.is_stopped()
    }

    /// A lock can be tried. `false`: nobody listens any more.
    pub(super) fn say_try(&self) -> bool {
        self.peer.get().is_some_and(|peer| send(peer, TRY))
    }

    /// Silences the bell. Whether it had rung is for `poll` to say.
    fn hear(&self) {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Acquire)
    }
}

/// Starts the thread. It owns `watch`, a descriptor of its own: another one's number may be used again for
/// something else at any moment.
pub(super) fn start(watch: OwnedFd, listener: Listener) -> io::Result<Arc<Control>> {
    let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let control = Arc::new(Control {
        bell,
        stop: AtomicBool::new(false),
        armed: AtomicBool::new(true),
        peer: OnceLock::new(),
    });
    let its_own = Arc::clone(&control);
    spawn_without_signals("headcount-waker", move || {
        if let Some(peer) = accept(&its_own, listener) {
            run(&its_own, &watch, its_own.peer.get_or_init(|| peer));
        }
    })?;
    Ok(control)
}

/// Waits for this very process to connect; nobody else is to come after it. `None`: told to stop before,
/// or it cannot be waited for.
fn accept(control: &Control, listener: Listener) -> Option<OwnedFd> {
    loop {
        let mut fds =
            [PollFd::new(&control.bell, PollFlags::IN), PollFd::new(&listener.socket, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return None,
        }
        control.hear();
        // Also when it was told to stop: who has connected already waits for the last byte.
        match rustix::net::accept_with(&listener.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(peer) => {
                let who = rustix::net::sockopt::socket_peercred(&peer);
                if who.is_ok_and(|who| who.pid == rustix::process::getpid()) {
                    return Some(peer);
                }
            }
            Err(Errno::AGAIN) if control.is_stopped() => return None,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            // Out of descriptors, most likely: trying again at once would only burn CPU.
            Err(_) => return None,
        }
    }
}

fn run(control: &Control, watch: &OwnedFd, peer: &OwnedFd) {
    // The check comes after the connection is where `stop` finds it: one of the two says goodbye, or both.
    while !control.is_stopped() {
        let armed = control.armed.load(Acquire);
        let wanted = if armed { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = [
            PollFd::new(&control.bell, PollFlags::IN),
            PollFd::new(peer, PollFlags::empty()),
            PollFd::new(watch, wanted),
        ];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => break,
        }
        let [rung, gone, readable] = [0, 1, 2].map(|i| !fds[i].revents().is_empty());
        if gone {
            // The reader has closed its end.
            return;
        }
        if rung {
            control.hear();
            if control.is_stopped() {
                break;
            }
        } else if armed && readable {
            // First, or whoever acts on the byte at once would find nothing to arm.
            control.armed.store(false, Release);
            if !send(peer, READABLE) {
                return;
            }
        }
    }
    say_goodbye(peer);
}

/// Said twice, the second time goes nowhere.
fn say_goodbye(peer: &OwnedFd) {
    if send(peer, QUIT) {
        // Fails if the reader was quicker.
        let _ = rustix::net::shutdown(peer, Shutdown::Write);
    }
}

fn send(peer: &OwnedFd, byte: u8) -> bool {
    rustix::net::send(peer, &[byte], SendFlags::NOSIGNAL).is_ok()
}
