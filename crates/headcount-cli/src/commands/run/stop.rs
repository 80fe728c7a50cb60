//! SIGTERM and SIGINT: the first asks to end in order, the second to end what is under way.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::poll::{self, Signals};

/// While something is delivered: how often the journal is read on meanwhile.
pub const TICK: Duration = Duration::from_millis(50);

/// What was asked by signals. Its descriptor is readable when there is something new.
pub struct Stop {
    signals: Signals,
    asked: Cell<bool>,
    urged: Cell<bool>,
}

impl Stop {
    /// Looks out for signals from now on.
    pub fn watch() -> anyhow::Result<Stop> {
        let signals = Signals::catch(&[SIGTERM, SIGINT])?;
        // The end of a terminal or a service manager's reload is no reason to end. Handled, not ignored: commands would
        // inherit that.
        signal_hook::flag::register(SIGHUP, Arc::default()).context("cannot wait for signals")?;
        Ok(Stop { signals, asked: Cell::default(), urged: Cell::default() })
    }

    /// Whether it is to end.
    pub fn is_asked(&self) -> bool {
        if self.signals.came() && self.asked.replace(true) {
            self.urged.set(true);
        }
        self.asked.get()
    }

    /// Whether it is to end without waiting for what is under way.
    pub fn is_urged(&self) -> bool {
        self.is_asked() && self.urged.get()
    }

    /// Waits, unless it is to end. `tick` is called again and again.
    pub fn wait(&self, time: Duration, tick: &mut dyn FnMut()) -> anyhow::Result<()> {
        let start = Instant::now();
        while !self.is_asked() {
            match time.checked_sub(start.elapsed()) {
                Some(left) if !left.is_zero() => {
                    poll::wait(&mut [PollFd::new(&self.signals, PollFlags::IN)], Some(left.min(TICK)))?;
                }
                _ => break,
            }
            tick();
        }
        Ok(())
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}
