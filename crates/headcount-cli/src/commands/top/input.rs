//! What comes from outside: keys, a new size, signals. Each comes from a thread of its own through one channel, so that
//! drawing never waits for reading: reading from a terminal that is gone never returns.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::Duration;
use std::{io, process, thread};

use nix::unistd::{getppid, getsid};
use ratatui::crossterm::event::{self, Event};
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::Signal;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::terminal;

/// How long the drawing thread may take to end after it was told.
const GRACE: Duration = Duration::from_secs(2);

pub enum Input {
    Terminal(Event),
    /// The keyboard can no longer be read.
    Unreadable(io::Error),
    /// SIGINT: as Ctrl-C.
    Interrupted,
    /// A signal that ends the program.
    Ends(i32),
    Stop,
    Continued,
}

/// What has come. The descriptor is readable when there is something.
pub struct Inputs {
    from: Receiver<Input>,
    bell: Arc<OwnedFd>,
}

impl Inputs {
    pub fn next(&self) -> Result<Input, TryRecvError> {
        // First: what comes later rings again. It fails if nobody has rung.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        self.from.try_recv()
    }
}

impl AsFd for Inputs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// Where input is sent.
#[derive(Clone)]
struct InputSender {
    to: Sender<Input>,
    bell: Arc<OwnedFd>,
}

impl InputSender {
    /// Whether somebody still receives it.
    fn send(&self, input: Input) -> bool {
        let sent = self.to.send(input).is_ok();
        // It would be full after 2^64 - 2 unread rings.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        sent
    }
}

/// Starts both threads.
pub fn listen() -> io::Result<Inputs> {
    let (to, from) = channel();
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let to = InputSender { to, bell: Arc::clone(&bell) };
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT])?;
    let signals_to = to.clone();
    thread::Builder::new().name("signals".to_owned()).spawn(move || hear_signals(signals, &signals_to))?;
    thread::Builder::new().name("keys".to_owned()).spawn(move || hear_keys(&to))?;
    Ok(Inputs { from, bell })
}

fn hear_keys(to: &InputSender) {
    loop {
        let input = match event::read() {
            Ok(event) => Input::Terminal(event),
            Err(error) => Input::Unreadable(error),
        };
        let last = matches!(input, Input::Unreadable(_));
        if !to.send(input) || last {
            return;
        }
    }
}

fn hear_signals(mut signals: Signals, to: &InputSender) {
    for signal in signals.forever() {
        let input = match signal {
            SIGINT => Input::Interrupted,
            SIGTSTP => Input::Stop,
            SIGCONT => Input::Continued,
            ends => Input::Ends(ends),
        };
        let ends = matches!(input, Input::Interrupted | Input::Ends(_));
        if !to.send(input) {
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
        Ok(rustix::process::kill_current_process_group(Signal::TSTP)?)
    } else {
        Ok(())
    }
}

/// Without a shell with jobs above us nobody would. The kernel says the same of orphaned process groups.
fn somebody_continues_us() -> bool {
    let parent = getppid();
    // 0 is a parent outside of the pid namespace: a session leader may be there too, and be 0 for both.
    parent.as_raw() != 0 && getsid(Some(parent)).ok() == getsid(None).ok()
}
