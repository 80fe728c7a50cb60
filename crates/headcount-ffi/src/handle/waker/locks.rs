//! Threads that wait for locks on behalf of an event loop.
//!
//! A futex can be waited for by a thread only. One waits for each lock that the host has asked about, writes a byte when it
//! is worth trying to take it, and waits for the next time. After a while without one it ends.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use headcount_core::ErrorKind;
use headcount_core::internal::spawn_without_signals;

use super::thread::Control;
use crate::border::entry::Failure;
use crate::handle::singletons::Lock;

/// More locks than this many are not waited for at a time.
const MOST: usize = 8;
/// How long a thread waits for its next order.
const IDLE: Duration = Duration::from_secs(10);
/// No host waits longer without asking again.
const LONGEST: Duration = Duration::from_secs(3600);

/// The locks that are waited for.
#[derive(Default)]
pub(super) struct Watched(Mutex<Vec<Arc<Order>>>);

/// One lock, and whether it is waited for at this moment.
struct Order {
    lock: Arc<Lock>,
    is_wanted: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

impl Order {
    fn wants(&self, wants: bool) {
        self.is_wanted.store(wants, Release);
        if let Some(thread) = &*self.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.unpark();
        }
    }
}

impl Watched {
    fn orders(&self) -> MutexGuard<'_, Vec<Arc<Order>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a byte written when this lock can be tried.
    pub(super) fn add(self: &Arc<Self>, control: &Arc<Control>, lock: &Arc<Lock>) -> Result<(), Failure> {
        let mut orders = self.orders();
        if let Some(order) = orders.iter().find(|order| Arc::ptr_eq(&order.lock, lock)) {
            order.wants(true);
            return Ok(());
        }
        if orders.len() >= MOST {
            let text = format!("this process waits for {MOST} locks already; more are not watched at a time");
            return Err(Failure::new(ErrorKind::Full, text));
        }
        let order = Arc::new(Order {
            lock: lock.clone(),
            is_wanted: AtomicBool::new(true),
            thread: Mutex::default(),
        });
        let started = self
            .start(control, &order)
            .map_err(|e| Failure::io("start a thread that waits for a lock", e))?;
        *order.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
        orders.push(order);
        Ok(())
    }

    /// Has no byte written for this lock any more.
    pub(super) fn remove(&self, lock: &Arc<Lock>) {
        if let Some(order) = self.orders().iter().find(|order| Arc::ptr_eq(&order.lock, lock)) {
            order.is_wanted.store(false, Release);
        }
    }

    /// Nobody waits any more: all threads end. After the waker was told to stop.
    pub(super) fn end(&self) {
        for order in self.orders().drain(..) {
            order.wants(false);
        }
    }

    fn start(self: &Arc<Self>, control: &Arc<Control>, order: &Arc<Order>) -> io::Result<Thread> {
        let (watched, control, order) = (self.clone(), control.clone(), order.clone());
        spawn_without_signals("headcount-lock", move || watched.run(&control, &order))
    }

    fn run(&self, control: &Control, order: &Arc<Order>) {
        loop {
            while order.is_wanted.load(Acquire) {
                let goes_on = || order.is_wanted.load(Acquire) && !control.is_stopped();
                match order.lock.named.wait_until_free(LONGEST, goes_on) {
                    Ok(true) => {
                        // First, or whoever acts on the byte at once would find it wanted, and it is not.
                        if order.is_wanted.swap(false, Release) && !control.say_try() {
                            return self.leave(order);
                        }
                    }
                    Ok(false) => {}
                    Err(_) => return self.leave(order),
                }
                if control.is_stopped() {
                    return self.leave(order);
                }
            }
            std::thread::park_timeout(IDLE);
            // Under the lock: whoever orders finds it there and is heard, or does not find it.
            let mut orders = self.orders();
            if control.is_stopped() || !order.is_wanted.load(Acquire) {
                orders.retain(|other| !Arc::ptr_eq(other, order));
                return;
            }
        }
    }

    fn leave(&self, order: &Arc<Order>) {
        self.orders().retain(|other| !Arc::ptr_eq(other, order));
    }
}
