//! When this machine stood still: what is late then is nobody's fault.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::checker::Disturbance;

const NAP: Duration = Duration::from_millis(20);
/// Whoever sleeps so much longer was not let go on.
const LATE: Duration = Duration::from_millis(250);

/// A thread that looks.
pub struct Stalls {
    all: Arc<Mutex<Vec<Disturbance>>>,
    ends: Arc<AtomicBool>,
}

impl Stalls {
    /// From now on.
    pub fn look() -> Stalls {
        let (all, ends) = (Arc::<Mutex<Vec<Disturbance>>>::default(), Arc::<AtomicBool>::default());
        let (theirs, end) = (Arc::clone(&all), Arc::clone(&ends));
        std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let from = Instant::now();
                std::thread::sleep(NAP);
                if from.elapsed() > NAP + LATE {
                    let stall = Disturbance { from, to: Some(Instant::now()) };
                    theirs.lock().unwrap_or_else(PoisonError::into_inner).push(stall);
                }
            }
        });
        Stalls { all, ends }
    }

    /// So far.
    pub fn all(&self) -> Vec<Disturbance> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}
