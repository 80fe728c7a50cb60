//! SIGTERM and SIGINT: the first asks to end in order, the second to end what is under way.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How long anything is waited for before signals are looked at again.
pub const TICK: Duration = Duration::from_millis(50);

/// What was asked by signals.
pub struct Stop {
    came: Arc<AtomicBool>,
    asked: Cell<bool>,
    urged: Cell<bool>,
}

impl Stop {
    /// Looks out for signals from now on.
    pub fn watch() -> anyhow::Result<Stop> {
        let came = Arc::default();
        for signal in [SIGTERM, SIGINT] {
            signal_hook::flag::register(signal, Arc::clone(&came)).context("cannot look out for signals")?;
        }
        // The end of a terminal or a service manager's reload is no reason to end. Handled, not ignored: commands would
        // inherit that.
        signal_hook::flag::register(SIGHUP, Arc::default()).context("cannot look out for signals")?;
        Ok(Stop { came, asked: Cell::default(), urged: Cell::default() })
    }

    /// Whether it is to end.
    pub fn is_asked(&self) -> bool {
        if self.came.swap(false, Ordering::Relaxed) && self.asked.replace(true) {
            self.urged.set(true);
        }
        self.asked.get()
    }

    /// Whether it is to end without waiting for what is under way.
    pub fn is_urged(&self) -> bool {
        self.is_asked() && self.urged.get()
    }

    /// Waits, unless it is to end. `tick` is called again and again.
    pub fn wait(&self, time: Duration, tick: &mut dyn FnMut()) {
        let start = Instant::now();
        while !self.is_asked() {
            match time.checked_sub(start.elapsed()) {
                Some(left) if !left.is_zero() => std::thread::sleep(left.min(TICK)),
                _ => break,
            }
            tick();
        }
    }
}
