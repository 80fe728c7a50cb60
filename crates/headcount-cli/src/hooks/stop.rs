//! Being told to end: the first time after the current delivery, the second time without waiting for that. By SIGTERM and
//! SIGINT, or by another thread.

use std::cell::Cell;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tokio::sync::Notify;

use crate::poll::{self, Signals};

/// How often the journal is read during a delivery.
pub const TICK: Duration = Duration::from_millis(50);

/// Asks a thread to end. It must stay until that thread has ended.
pub struct Asker {
    stream: UnixStream,
    shared: Arc<Shared>,
}

/// Between who asks and who is asked.
#[derive(Default)]
struct Shared {
    urged: AtomicBool,
    told: Notify,
}

impl Asker {
    /// After the current delivery.
    pub fn ask(&self) {
        // If it has ended, or has been asked so often that there is no room, there is nothing to ask for.
        let _ = (&self.stream).write(&[0]);
        self.shared.told.notify_one();
    }

    /// Without waiting for that.
    pub fn urge(&self) {
        self.shared.urged.store(true, Ordering::Release);
        self.ask();
    }
}

/// What signals, or another thread, have asked for. The descriptor is readable when one has come.
pub struct Stop {
    signals: Signals,
    asked: Cell<bool>,
    urged: Cell<bool>,
    shared: Arc<Shared>,
}

impl Stop {
    /// Catches signals from now on.
    pub fn watch() -> anyhow::Result<Stop> {
        let signals = Signals::catch(&[SIGTERM, SIGINT])?;
        // A closed terminal or a service manager's reload is no reason to end. Handled, not ignored: commands would
        // inherit that.
        signal_hook::flag::register(SIGHUP, Arc::default()).context("cannot wait for signals")?;
        Ok(Stop::of(signals, Arc::default()))
    }

    fn of(signals: Signals, shared: Arc<Shared>) -> Stop {
        Stop { signals, asked: Cell::default(), urged: Cell::default(), shared }
    }

    /// For a thread that another one asks to end.
    pub fn by_another() -> anyhow::Result<(Asker, Stop)> {
        let (stream, signals) = Signals::by_another()?;
        let shared = Arc::<Shared>::default();
        Ok((Asker { stream, shared: Arc::clone(&shared) }, Stop::of(signals, shared)))
    }

    /// Whether to end.
    pub fn is_asked(&self) -> bool {
        if self.signals.came() && self.asked.replace(true) {
            self.urged.set(true);
        }
        self.asked.get()
    }

    /// Whether to end at once, without waiting for the current delivery.
    pub fn is_urged(&self) -> bool {
        self.is_asked() && (self.urged.get() || self.shared.urged.load(Ordering::Acquire))
    }

    /// Returns when another thread has asked it to end.
    pub async fn asked(&self) {
        while !self.is_asked() {
            self.shared.told.notified().await;
        }
    }

    /// Waits, or until asked to end. `tick` is called again and again.
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
