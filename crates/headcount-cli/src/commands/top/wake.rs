//! What wakes the program: keys, a new size, signals. Each comes from a thread of its own through one channel, so that the
//! one that draws never hangs in reading: a terminal that is gone reads as an endless nothing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::Duration;
use std::{io, process, thread};

use ratatui::crossterm::event::{self, Event};
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Signal, getpgrp, getppid, getsid};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::terminal;

/// How long the one that draws has for its end after it was told.
const GRACE: Duration = Duration::from_secs(2);

pub enum Wake {
    Input(Event),
    /// The keyboard cannot be read any more.
    NoInput(io::Error),
    /// SIGINT: as Ctrl-C.
    Interrupted,
    /// A signal that ends the program.
    Ends(i32),
    Stop,
    Continued,
}

/// What has come. The descriptor is readable when there is something.
pub struct Wakes {
    from: Receiver<Wake>,
    bell: Arc<OwnedFd>,
}

impl Wakes {
    pub fn next(&self) -> Result<Wake, TryRecvError> {
        // Before the look: what comes after it rings again. It is not there if nobody has rung.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        self.from.try_recv()
    }
}

impl AsFd for Wakes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// Where what wakes us goes to.
#[derive(Clone)]
struct To {
    to: Sender<Wake>,
    bell: Arc<OwnedFd>,
}

impl To {
    /// Whether there is still somebody to hear it.
    fn send(&self, wake: Wake) -> bool {
        let sent = self.to.send(wake).is_ok();
        // It is full after 2^64 - 2 rings that nobody has heard.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        sent
    }
}

/// Begins to listen.
pub fn listen() -> io::Result<Wakes> {
    let (to, from) = channel();
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let to = To { to, bell: Arc::clone(&bell) };
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT])?;
    let of_signals = to.clone();
    thread::Builder::new().name("signals".to_owned()).spawn(move || hear_signals(signals, &of_signals))?;
    thread::Builder::new().name("keys".to_owned()).spawn(move || hear_keys(&to))?;
    Ok(Wakes { from, bell })
}

fn hear_keys(to: &To) {
    loop {
        let wake = match event::read() {
            Ok(event) => Wake::Input(event),
            Err(error) => Wake::NoInput(error),
        };
        let last = matches!(wake, Wake::NoInput(_));
        if !to.send(wake) || last {
            return;
        }
    }
}

fn hear_signals(mut signals: Signals, to: &To) {
    for signal in signals.forever() {
        let wake = match signal {
            SIGINT => Wake::Interrupted,
            SIGTSTP => Wake::Stop,
            SIGCONT => Wake::Continued,
            ends => Wake::Ends(ends),
        };
        let ends = matches!(wake, Wake::Interrupted | Wake::Ends(_));
        if !to.send(wake) {
            return;
        }
        if ends {
            // The process ends within this time, and this thread with it; otherwise its terminal takes nothing.
            thread::sleep(GRACE);
            terminal::leave_by_force();
            let _ = emulate_default_handler(signal);
            process::exit(128 + signal);
        }
    }
}

/// Ends by the signal that was caught, so that whoever waits for us sees it. The terminal has been left.
pub fn end_by(signal: i32) -> io::Error {
    match emulate_default_handler(signal) {
        Ok(()) => io::Error::other(format!("signal {signal} did not end the process")),
        Err(error) => error,
    }
}

/// Stops until somebody continues us. The terminal has been left.
pub fn stop() -> io::Result<()> {
    if somebody_continues_us() { emulate_default_handler(SIGTSTP) } else { Ok(()) }
}

/// Ctrl-Z: all of our job is stopped, as the terminal itself would do it; we are told like the others.
pub fn stop_job() -> io::Result<()> {
    if somebody_continues_us() {
        Ok(rustix::process::kill_process_group(getpgrp(), Signal::TSTP)?)
    } else {
        Ok(())
    }
}

/// Without a shell with jobs above us nobody would. The kernel says the same of orphaned process groups.
fn somebody_continues_us() -> bool {
    let session = |pid| getsid(pid).ok();
    getppid().is_some_and(|parent| session(Some(parent)) == session(None))
}
