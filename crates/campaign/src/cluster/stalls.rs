//! When this machine, or etcd on it, stood still: what is late then is nobody's fault.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use etcd_client::Client;
use testkit::net::move_to;

use crate::checker::Disturbance;
use crate::recorder::options;

const NAP: Duration = Duration::from_millis(20);
/// Whoever sleeps so much longer was not let go on.
const LATE: Duration = Duration::from_millis(250);
/// How often etcd is asked for something,
const EVERY: Duration = Duration::from_millis(100);
/// and how soon it must have answered. A third of the shortest `ttl` passes between two signs of life.
const SOON: Duration = Duration::from_millis(400);

/// Threads that look.
pub struct Stalls {
    machine: All,
    etcd: All,
    ends: Arc<AtomicBool>,
}

type All = Arc<Mutex<Vec<Disturbance>>>;

impl Stalls {
    /// From now on.
    pub fn look(network: File, endpoints: Vec<String>) -> Stalls {
        let stalls = Stalls { machine: All::default(), etcd: All::default(), ends: Arc::default() };
        let (machine, end) = (Arc::clone(&stalls.machine), Arc::clone(&stalls.ends));
        std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let from = Instant::now();
                std::thread::sleep(NAP);
                if from.elapsed() > NAP + LATE {
                    note(&machine, from);
                }
            }
        });
        let (etcd, end) = (Arc::clone(&stalls.etcd), Arc::clone(&stalls.ends));
        std::thread::spawn(move || {
            move_to(&network);
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                for endpoint in endpoints.iter().cycle() {
                    // Until it is slow: then another member is asked.
                    ask(endpoint, &etcd, &end).await;
                    if end.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        });
        stalls
    }

    /// So far.
    pub fn all(&self) -> Vec<Disturbance> {
        [&self.machine, &self.etcd].into_iter().flat_map(|all| lock(all).clone()).collect()
    }

    /// How often the machine did.
    pub fn of_machine(&self) -> usize {
        lock(&self.machine).len()
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

async fn ask(endpoint: &str, stalls: &All, end: &AtomicBool) {
    let from = Instant::now();
    let connecting = Client::connect([endpoint], Some(options()));
    let Ok(Ok(mut client)) = tokio::time::timeout(SOON, connecting).await else { return note(stalls, from) };
    while !end.load(Ordering::Relaxed) {
        let from = Instant::now();
        if !matches!(tokio::time::timeout(SOON, client.get("x", None)).await, Ok(Ok(_))) {
            return note(stalls, from);
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn note(stalls: &All, from: Instant) {
    lock(stalls).push(Disturbance { from, to: Some(Instant::now()) });
}

fn lock(stalls: &All) -> std::sync::MutexGuard<'_, Vec<Disturbance>> {
    stalls.lock().unwrap_or_else(PoisonError::into_inner)
}
