//! What a `headcount_node *` points to, and the table of all of them.

pub(crate) mod process;
pub(crate) mod singletons;
pub(crate) mod waker;

use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use headcount_core::internal::PerProcess;
use headcount_core::{ErrorKind, GenerationId, Master, Node, NoticeLevel, Transition, Transitions, Worker};

use self::process::{InFlight, Process};
use crate::border::codes::{HEADCOUNT_EVENT, HEADCOUNT_OK};
use crate::border::entry::Failure;
use crate::border::event::EventOut;
use crate::border::words::{HEADCOUNT_LEVEL_ERROR, HEADCOUNT_LEVEL_NOTICE, HEADCOUNT_LEVEL_WARNING};

/// A node, as one process and its forked children hold it. Never freed.
pub struct Handle {
    next: Option<&'static Handle>,
    /// The path by which the core tells nodes apart.
    wanted: PathBuf,
    pub(crate) master: Master,
    pub(crate) node: Node,
    /// What `headcount_beat` beats for: replaced as a whole and never freed, so that a beat takes no lock. That
    /// costs a few bytes whenever a process joins or leaves, which most do once.
    hearts: AtomicPtr<Vec<Worker>>,
    process: PerProcess<Mutex<Process>>,
}

/// Told of each transition as it is handed out: for a host that has a word of its own to say on all of them.
static LISTENER: OnceLock<fn(&Transition)> = OnceLock::new();

/// Sets who is told of each transition as it is handed out, in this process and those forked from it. For ever.
pub fn listen(listener: fn(&Transition)) {
    // Another one can only be the same one, from an earlier configuration.
    let _ = LISTENER.set(listener);
}

/// All handles, newest first.
static FIRST: AtomicPtr<Handle> = AtomicPtr::new(ptr::null_mut());
/// Held while one is added.
pub(crate) static ADDING: PerProcess<Mutex<()>> = PerProcess::new();

/// What a panic may have left behind in our mutexes is consistent at every statement.
pub(crate) fn relock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn first() -> Option<&'static Handle> {
    // SAFETY: NULL, or a handle that was leaked after it was completely made (`Release` in `add`).
    unsafe { FIRST.load(Acquire).as_ref() }
}

pub(crate) fn all() -> impl Iterator<Item = &'static Handle> {
    std::iter::successors(first(), |handle| handle.next)
}

/// The handle that a C pointer stands for. The pointer is only compared, so that no value of it does harm.
pub(crate) fn find(pointer: *const Handle) -> Result<&'static Handle, Failure> {
    all().find(|handle| ptr::eq(*handle, pointer)).ok_or_else(|| {
        let what = if pointer.is_null() { "NULL" } else { "no node" };
        Failure::new(
            ErrorKind::InvalidOption,
            format!("argument `node` is {what}: use what headcount_open gave"),
        )
    })
}

/// The handle of a node that was opened under this path. Only under `ADDING`.
pub(crate) fn by_path(wanted: &Path) -> Option<&'static Handle> {
    all().find(|handle| handle.wanted == wanted)
}

/// The node that this process has joined, or else the one that was opened last.
pub(crate) fn of_this_process() -> Option<&'static Handle> {
    all().find(|handle| handle.worker(0).is_ok()).or_else(first)
}

/// Makes a handle for good. Only under `ADDING`.
pub(crate) fn add(wanted: PathBuf, master: Master) -> &'static Handle {
    let handle = Box::leak(Box::new(Handle {
        next: first(),
        wanted,
        node: master.node().clone(),
        master,
        hearts: AtomicPtr::new(ptr::null_mut()),
        process: PerProcess::new(),
    }));
    FIRST.store(handle, Release);
    handle
}

impl Handle {
    /// The state of this very process.
    pub(crate) fn process(&self) -> MutexGuard<'_, Process> {
        relock(self.process.get(|parent| {
            if parent.is_some() {
                self.forget_hearts();
            }
            Mutex::default()
        }))
    }

    /// What this thread is acting on.
    fn take_in_flight(&self) -> Option<Transitions> {
        let me = std::thread::current().id();
        self.process().in_flight.take_if(|in_flight| in_flight.thread == me).map(|i| i.transitions)
    }

    /// Hands out the next transition, or says that there is none and the lock is free.
    pub(crate) fn deliver(&self, mut transitions: Transitions, out: EventOut) -> i32 {
        let Some(transition) = transitions.next() else { return HEADCOUNT_OK };
        if let Some(listener) = LISTENER.get() {
            listener(&transition);
        }
        let thread = std::thread::current().id();
        self.process().in_flight = Some(InFlight { transitions, thread });
        out.fill(&transition);
        HEADCOUNT_EVENT
    }

    /// Completes what was handed out, and hands out what is next.
    pub(crate) fn deliver_next(&self, failed: bool, out: EventOut) -> i32 {
        let Some(mut transitions) = self.take_in_flight() else { return HEADCOUNT_OK };
        if failed {
            transitions.callback_failed();
        }
        self.deliver(transitions, out)
    }

    /// Ends a callback that this thread began and will never come back to.
    pub(crate) fn end_unfinished(&self) {
        if let Some(transitions) = self.take_in_flight() {
            transitions.callback_cut_short();
        }
    }

    /// This process as a member of that generation; 0: of the newest that it has joined.
    pub(crate) fn worker(&self, generation: GenerationId) -> Result<Worker, Failure> {
        let process = self.process();
        process.worker(generation).cloned().ok_or_else(|| {
            let what = if generation == 0 {
                "any generation".to_owned()
            } else {
                format!("generation {generation}")
            };
            Failure::new(
                ErrorKind::WrongState,
                format!(
                    "process {} has not joined {what} of node {}, or has left it",
                    std::process::id(),
                    self.node.name()
                ),
            )
        })
    }

    pub(crate) fn joined(&self, worker: Worker) {
        let mut process = self.process();
        process.joined_once = true;
        // The watch belongs to the newest generation; the older one's is of no use any more.
        process.end_watch();
        process.workers.push(worker);
        self.publish_hearts(&mut process);
    }

    pub(crate) fn left(&self, generation: GenerationId) {
        let mut process = self.process();
        process.workers.retain(|w| w.generation() != generation);
        process.member.take_if(|member| member.generation().id() == generation);
        process.end_watch_of(generation);
        if process.workers.is_empty() {
            process.singletons.leave();
        }
        self.publish_hearts(&mut process);
    }

    fn publish_hearts(&self, process: &mut Process) {
        if process.workers.is_empty() {
            return self.forget_hearts();
        }
        let hearts: &'static Vec<Worker> = Box::leak(Box::new(process.workers.clone()));
        process.published_hearts.push(hearts);
        self.hearts.store(ptr::from_ref(hearts).cast_mut(), Release);
    }

    /// Also for a forked child, which must not beat for its parent: allocates nothing and takes no lock.
    pub(crate) fn forget_hearts(&self) {
        self.hearts.store(ptr::null_mut(), Release);
    }

    #[inline]
    pub(crate) fn beat(&self) -> Result<(), Failure> {
        // SAFETY: NULL, or leaked by `publish_hearts` and never changed after.
        let Some(hearts) = (unsafe { self.hearts.load(Acquire).as_ref() }) else {
            return self.worker(0).map(|worker| worker.beat());
        };
        hearts.iter().for_each(Worker::beat);
        Ok(())
    }

    /// Whether this process could be a master that went into the background.
    pub(crate) fn may_adopt(&self) -> bool {
        !self.process().joined_once
    }

    pub(crate) fn note(&self, level: u32, text: String) {
        self.process().notices.push_back((level, text));
    }

    pub(crate) fn next_notice(&self) -> Option<(u32, String)> {
        let notices = &mut self.process().notices;
        for notice in self.node.take_notices() {
            let level = match notice.level {
                NoticeLevel::Notice => HEADCOUNT_LEVEL_NOTICE,
                NoticeLevel::Error => HEADCOUNT_LEVEL_ERROR,
                _ => HEADCOUNT_LEVEL_WARNING,
            };
            notices.push_back((level, notice.text));
        }
        notices.pop_front()
    }

    /// Ends what this process has under way, but for its membership.
    pub(crate) fn end(&self) {
        self.process().end_watch();
        self.end_unfinished();
    }
}
