//! What callbacks ran, noted in shared memory by those who ran them; and what shall happen in them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use headcount::{Event, Kind, Transition, Transitions};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

const MOST: usize = 4096;

/// One run of a callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub runner: u32,
    pub seq: u64,
    pub kind: Kind,
    pub generation: u64,
    pub subject: u32,
    pub retry: bool,
    /// It came to its end. If not, its runner died in it, or is still in it.
    pub ended: bool,
}

#[repr(C)]
struct Entry {
    runner: AtomicU32,
    kind: AtomicU32,
    seq: AtomicU64,
    generation: AtomicU64,
    subject: AtomicU32,
    retry: AtomicU32,
    state: AtomicU32,
    padding: AtomicU32,
}

#[repr(C)]
struct Memory {
    len: AtomicU32,
    act: AtomicU32,
    act_kind: AtomicU32,
    act_times: AtomicU32,
    act_argument: AtomicU64,
    words: [AtomicU64; 64],
    entries: [Entry; MOST],
}

/// What a callback does besides being noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Kills its process.
    Die = 1,
    /// Panics.
    Panic = 2,
    /// Takes its time.
    Sleep = 3,
}

/// The notes of one test, shared with all processes forked after it was made. Never unmapped: a test makes
/// one or two.
#[derive(Clone, Copy)]
pub struct Callbacks(&'static Memory);

impl Callbacks {
    pub fn new() -> Callbacks {
        let len = size_of::<Memory>();
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let memory = unsafe {
            mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)
        };
        let memory: *const Memory = memory.expect("shared memory").cast();
        // SAFETY: zeroed, page-aligned, of that size, never unmapped, and made of atomics only.
        Callbacks(unsafe { &*memory })
    }

    /// A word of shared memory for the test's own use.
    pub fn word(&self, index: usize) -> &'static AtomicU64 {
        &self.0.words[index]
    }

    /// The pages, for those who want to be told of stores into them.
    pub fn range(&self) -> (usize, usize) {
        (std::ptr::from_ref(self.0) as usize, size_of::<Memory>())
    }

    /// The next `times` callbacks about this kind do this as well.
    pub fn plan(&self, kind: Kind, act: Act, times: u32, argument: Duration) {
        self.0.act_kind.store(kind.code(), SeqCst);
        self.0.act_argument.store(argument.as_millis() as u64, SeqCst);
        self.0.act_times.store(times, SeqCst);
        self.0.act.store(act as u32, SeqCst);
    }

    /// Runs and notes all transitions; gives their events.
    pub fn run(&self, transitions: Transitions) -> Vec<Event> {
        let mut events = Vec::new();
        transitions.run(|t| events.push(self.handle(t)));
        events
    }

    /// The callback that all tests use.
    pub fn handle(&self, transition: &Transition) -> Event {
        let event = &transition.event;
        let index = self.0.len.fetch_add(1, SeqCst) as usize;
        let entry = self.0.entries.get(index).expect("room for another callback's note");
        entry.runner.store(std::process::id(), SeqCst);
        entry.kind.store(event.kind.code(), SeqCst);
        entry.seq.store(event.seq, SeqCst);
        entry.generation.store(event.generation, SeqCst);
        entry.subject.store(event.pid, SeqCst);
        entry.retry.store(u32::from(transition.retry), SeqCst);
        entry.state.store(1, SeqCst);
        self.act(event.kind);
        entry.state.store(2, SeqCst);
        event.clone()
    }

    fn act(&self, kind: Kind) {
        let memory = self.0;
        if memory.act.load(SeqCst) == 0 || memory.act_kind.load(SeqCst) != kind.code() {
            return;
        }
        if memory.act_times.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_err() {
            return;
        }
        match memory.act.load(SeqCst) {
            1 => {
                let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
            }
            2 => panic!("as planned"),
            _ => std::thread::sleep(Duration::from_millis(memory.act_argument.load(SeqCst))),
        }
    }

    /// What was noted, in the order in which it began. A note that was still being made is left out: that
    /// callback had not done anything yet.
    pub fn all(&self) -> Vec<Run> {
        let len = (self.0.len.load(SeqCst) as usize).min(MOST);
        let begun = self.0.entries[..len].iter().filter(|e| e.state.load(SeqCst) != 0);
        begun
            .map(|e| Run {
                runner: e.runner.load(SeqCst),
                seq: e.seq.load(SeqCst),
                kind: Kind::from_code(e.kind.load(SeqCst)).expect("a kind"),
                generation: e.generation.load(SeqCst),
                subject: e.subject.load(SeqCst),
                retry: e.retry.load(SeqCst) != 0,
                ended: e.state.load(SeqCst) == 2,
            })
            .collect()
    }

    pub fn about(&self, kind: Kind) -> Vec<Run> {
        self.all().into_iter().filter(|r| r.kind == kind).collect()
    }

    pub fn forget(&self) {
        for entry in &self.0.entries[..(self.0.len.load(SeqCst) as usize).min(MOST)] {
            entry.state.store(0, SeqCst);
        }
        self.0.len.store(0, SeqCst);
        self.0.act.store(0, SeqCst);
    }
}
