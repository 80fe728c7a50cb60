//! What C's pointers stand for. They are numbers, and never followed: whatever a caller gives does no harm, and what was closed is told
//! from what is open.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use headcount_border::Failure;
use headcount_cluster_client::Events;
use headcount_core::internal::PerProcess;

use crate::border::HEADCOUNT_CLUSTER_ERR_FORKED;
use crate::handle::Handle;

/// A way to the agent of this host, as `headcount_cluster_open` gives it.
pub struct Cluster(());

/// What happens to the fleet, as `headcount_cluster_events_open` gives it.
pub struct EventStream(());

pub(crate) static CLUSTERS: Table<Handle> =
    Table::new("cluster", "headcount_cluster_open", "headcount_cluster_close");
pub(crate) static STREAMS: Table<Mutex<Events>> =
    Table::new("events", "headcount_cluster_events_open", "headcount_cluster_events_close");

/// Looks like an address, and is none.
const STEP: usize = 16;

pub(crate) struct Table<T: 'static> {
    open: PerProcess<Mutex<Open<T>>>,
    next: AtomicUsize,
    argument: &'static str,
    opener: &'static str,
    closer: &'static str,
}

/// What this very process has opened. A forked child begins with nothing: what its parent has opened stays as it is, unused, and is never
/// dropped.
struct Open<T> {
    /// Smaller numbers are its parent's.
    first: usize,
    all: BTreeMap<usize, Arc<T>>,
}

impl<T: Send + Sync + 'static> Table<T> {
    const fn new(argument: &'static str, opener: &'static str, closer: &'static str) -> Table<T> {
        Table { open: PerProcess::new(), next: AtomicUsize::new(STEP), argument, opener, closer }
    }

    fn open(&self) -> MutexGuard<'_, Open<T>> {
        let make = |parent: Option<&Mutex<Open<T>>>| {
            let first = if parent.is_some() { self.next.load(Relaxed) } else { STEP };
            Mutex::new(Open { first, all: BTreeMap::new() })
        };
        self.open.get(make).lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a pointer of it.
    pub(crate) fn add<P>(&self, value: T) -> *mut P {
        let mut open = self.open();
        let number = self.next.fetch_add(STEP, Relaxed);
        open.all.insert(number, Arc::new(value));
        std::ptr::without_provenance_mut(number)
    }

    pub(crate) fn find<P>(&self, pointer: *const P) -> Result<Arc<T>, Failure> {
        let (number, open) = (pointer.addr(), self.open());
        open.all.get(&number).cloned().ok_or_else(|| self.missing(number, open.first))
    }

    pub(crate) fn remove<P>(&self, pointer: *const P) -> Result<Arc<T>, Failure> {
        let (number, mut open) = (pointer.addr(), self.open());
        let first = open.first;
        open.all.remove(&number).ok_or_else(|| self.missing(number, first))
    }

    fn missing(&self, number: usize, first: usize) -> Failure {
        let (argument, opener, closer) = (self.argument, self.opener, self.closer);
        if number == 0 {
            return Failure::invalid(format!("argument `{argument}` is NULL: use what {opener} gave"));
        }
        if number < first && number % STEP == 0 {
            let text = format!(
                "argument `{argument}` was opened by the process that has forked process {}, and is that one's alone: call \
                 {opener} here, after the fork",
                std::process::id()
            );
            return Failure::new(HEADCOUNT_CLUSTER_ERR_FORKED, text);
        }
        Failure::invalid(format!(
            "argument `{argument}` is none that is open: use what {opener} gave, until {closer}"
        ))
    }
}
