//! What one process has of a node: its memberships, its watch, and what it is acting on.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::ThreadId;

use headcount_core::{ErrorKind, GenerationId, Member, Transitions, Watch, Worker};

use crate::border::entry::Failure;
use crate::handle::singletons::Singletons;
use crate::handle::waker::Waker;

/// What is true of one process only. A forked child starts it afresh. What it inherited stays as it is, with its
/// descriptors: it is the parent's, and ending it properly would speak for the parent.
#[derive(Default)]
pub(crate) struct Process {
    pub(super) notices: VecDeque<(u32, String)>,
    pub(crate) in_flight: Option<InFlight>,
    pub(super) workers: Vec<Worker>,
    /// All that this process has beaten for: another thread may still read an older one. Kept, so that it is no leak.
    pub(super) published_hearts: Vec<&'static Vec<Worker>>,
    pub(crate) member: Option<Member>,
    watch: Option<(GenerationId, Watch)>,
    pub(crate) waker: Option<Waker>,
    pub(crate) singletons: Singletons,
    /// It has been a worker, so it never becomes a master, whatever it forks.
    pub(super) joined_once: bool,
}

/// Transitions of which one is being acted on.
pub(crate) struct InFlight {
    pub(super) transitions: Transitions,
    pub(super) thread: ThreadId,
}

// SAFETY: the transitions must stay on the thread that got them. They are handed out again by `take_in_flight` alone,
// which gives them to no other thread; and nobody drops them, since a handle and what it holds live for ever.
unsafe impl Send for InFlight {}

impl Process {
    pub(crate) fn worker(&self, generation: GenerationId) -> Option<&Worker> {
        match generation {
            0 => self.workers.iter().max_by_key(|w| w.generation()),
            id => self.workers.iter().find(|w| w.generation() == id),
        }
    }

    /// The descriptor of the watch, that of a member or one that is made if there is none yet, and whose it is.
    pub(crate) fn watch_fd(&mut self) -> Result<(GenerationId, BorrowedFd<'_>), Failure> {
        if self.member.is_none() {
            self.watch()?;
        }
        let of_member = self.member.as_ref().and_then(|m| Some((m.generation().id(), m.watch_fd()?)));
        let of_watch = || self.watch.as_ref().map(|(generation, watch)| (*generation, watch.as_fd()));
        of_member
            .or_else(of_watch)
            .ok_or_else(|| Failure::new(ErrorKind::WrongState, "this process has no watch"))
    }

    /// The watch of a process that looks by itself, made if it is not there yet.
    pub(crate) fn watch(&mut self) -> Result<(GenerationId, &mut Watch), Failure> {
        let wrong = |message: &str| Failure::new(ErrorKind::WrongState, message);
        if self.member.is_some() {
            return Err(wrong("a member looks in headcount_member_on_readable and headcount_member_on_time"));
        }
        let Some(worker) = self.worker(0) else {
            return Err(wrong("only a process that has joined has a watch"));
        };
        if self.watch.is_none() {
            self.watch = Some((worker.generation(), worker.watch()?));
        }
        match &mut self.watch {
            Some((generation, watch)) => Ok((*generation, watch)),
            None => Err(wrong("this process has no watch")),
        }
    }

    pub(super) fn end_watch_of(&mut self, generation: GenerationId) {
        if let Some(waker) = self.waker.take_if(|waker| waker.generation == generation) {
            waker.stop();
        }
        self.watch.take_if(|(of, _)| *of == generation);
    }

    pub(crate) fn end_watch(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.stop();
        }
        self.watch = None;
    }
}
