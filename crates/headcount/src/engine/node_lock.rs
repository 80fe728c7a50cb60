//! The node lock: one holder at a time, over all processes, while it changes the registry and while its
//! callbacks run.
//!
//! It is a word in the registry that names a process, and it is worth something only while the kernel says that
//! this process is alive: so a holder that dies has let go of it in that moment. Nothing about it is an object of
//! the kernel that a worker could hold against others. A worker can write any name into it. Then the others wait for a
//! moment, and take it: a holder also shares a byte in the lock file, which nobody can do in another's name.
//!
//! A waiter sleeps on a futex that every release touches, and looks by itself every few milliseconds for the case
//! that the holder died instead of releasing.

mod word;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::coded::coded;
use crate::engine::inner::Inner;
use crate::engine::process::{NoticeLevel, relock};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Kind;
use crate::sys::atomic::Ordering::Relaxed;
use crate::sys::identity::{Identity, Liveness};
use crate::sys::{clock, futex, process, thread};

use self::word::LockWord;

/// How long a call waits for the node lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wait {
    /// As long as the option `lock_timeout` says.
    Timeout,
    /// Not at all: [`ErrorKind::Busy`] if somebody has it.
    Try,
    /// At most this long.
    For(Duration),
}

coded! {
    /// What the lock is held for, as others may read it.
    Operation {
        Open = 1, "open";
        Begin = 2, "begin";
        Join = 3, "join";
        Drain = 4, "drain";
        Leave = 5, "leave";
        Settle = 6, "settle";
        Singletons = 7, "singletons";
    }
}

/// The shortest and the longest sleep between two looks at the lock. The sleeps grow with the time
/// waited, so that a dead holder is noticed early and a slow one costs its waiters nothing to speak of.
const SHORTEST_SLEEP: Duration = Duration::from_millis(1);
const LONGEST_SLEEP: Duration = Duration::from_millis(20);
/// After so many wake-ups in vain a waiter sleeps where nobody can wake it: somebody wakes it all the time.
const MOST_IN_VAIN: u32 = 64;
/// Nobody holds it for so long but in a callback; then it is asked whether the holder really does, and again and again
/// after this time.
const SUSPICIOUS: Duration = Duration::from_millis(50);
/// When a waiter tells the log whom it waits for: first, and then again.
const FIRST_WORD: Duration = Duration::from_secs(1);
const NEXT_WORD: Duration = Duration::from_secs(10);

/// The node lock, held by this process until this is dropped.
pub(crate) struct NodeLock {
    inner: Arc<Inner>,
    pid: u32,
    word: u64,
    interrupted: Option<u32>,
}

/// A thread's turn among the threads of its process.
struct Turn<'a>(&'a Inner);

impl<'a> Turn<'a> {
    /// Threads look the same in the lock's word.
    fn take(inner: &'a Inner, begun: Instant, limit: Duration) -> Option<Result<Turn<'a>>> {
        let process = inner.process();
        let me = thread::id();
        let mut holder = relock(&process.holder);
        while let Some(thread) = *holder {
            if thread == me {
                let text = format!(
                    "{}: this thread holds the node lock already, in a callback that has not ended",
                    inner.place()
                );
                return Some(Err(Error::new(ErrorKind::Busy, text)));
            }
            let left = limit.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return None;
            }
            let waited = process.released.wait_timeout(holder, left);
            holder = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        *holder = Some(me);
        Some(Ok(Turn(inner)))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let process = self.0.process();
        *relock(&process.holder) = None;
        process.released.notify_one();
    }
}

impl NodeLock {
    pub(crate) fn acquire(inner: &Arc<Inner>, wait: Wait) -> Result<NodeLock> {
        let limit = match wait {
            Wait::Timeout => inner.settings().lock_timeout,
            Wait::Try => Duration::ZERO,
            Wait::For(limit) => limit,
        };
        // Not on the boot clock: in a suspended machine the holder cannot go on either.
        let begun = Instant::now();
        let turn = match Turn::take(inner, begun, limit) {
            Some(turn) => turn?,
            None => return Err(timed_out(inner, wait, limit)),
        };
        inner.prove_membership();
        let lock = LockWord::of(inner.header());
        let process = inner.process();
        let word = process.identity.to_word();
        let mut waiting = Waiting { next_word: FIRST_WORD, next_proof: SUSPICIOUS, in_vain: 0 };
        loop {
            let (released, named) = lock.look();
            // Named and yet not the holder: somebody has spoiled it, or it is of a program that this process ran before.
            let is_free = named == 0 || named == word || waiting.is_over(inner, named, begun);
            if is_free {
                // Before it is named, so that no waiter finds it named and not engaged.
                if !process.engage(&inner.store) {
                    inner.cannot_prove();
                }
                if lock.take(named, word) {
                    break;
                }
                process.disengage(&inner.store);
            }
            if is_free {
                continue;
            }
            let so_far = begun.elapsed();
            if so_far >= limit {
                return Err(timed_out(inner, wait, limit));
            }
            waiting.sleep(inner, released, so_far, limit);
        }
        // From here on the turn ends with the lock.
        std::mem::forget(turn);
        let interrupted = lock.interrupted();
        Ok(NodeLock { inner: inner.clone(), pid: process::pid(), word, interrupted })
    }

    /// The process that died while it held the lock; what it left half-done must be repaired first of all.
    pub(crate) fn interrupted(&self) -> Option<u32> {
        self.interrupted
    }

    /// Says who holds it, and what for. Not before a repair: the name of the dead holder stays until its damage is
    /// repaired. Should we die in the middle, the next one finds it again.
    pub(crate) fn sign(&self, operation: Operation) {
        let header = self.inner.header();
        header.holder_since.store(clock::boot_ns(), Relaxed);
        LockWord::of(header).sign(self.pid, operation.code());
    }

    /// Not so in a child that was forked in a callback: the lock, and all that is done under it, is its parent's.
    pub(crate) fn is_ours(&self) -> bool {
        self.pid == process::pid()
    }
}

impl Drop for NodeLock {
    fn drop(&mut self) {
        if !self.is_ours() {
            return;
        }
        let turn = Turn(&self.inner);
        let header = self.inner.header();
        LockWord::of(header).release(self.word);
        self.inner.process().disengage(&self.inner.store);
        futex::wake(&header.released, 1);
        drop(turn);
    }
}

/// One waiter, between two looks.
struct Waiting {
    next_word: Duration,
    next_proof: Duration,
    in_vain: u32,
}

impl Waiting {
    /// Whether the named holder is certainly none.
    fn is_over(&mut self, inner: &Inner, named: u64, begun: Instant) -> bool {
        let so_far = begun.elapsed();
        let holder = Identity::from_word(named);
        if inner.is_gone(named) {
            return true;
        }
        if so_far < self.next_proof {
            return false;
        }
        self.next_proof = so_far + SUSPICIOUS;
        // It cannot say so, if the server has closed all descriptors: then its slot says that. But not of a process that is none
        // of the node.
        let mut strangers = inner.store.strangers(SUSPICIOUS);
        let cannot_say = inner.facts().slots.iter().any(|s| {
            s.lock_tag == 0
                && s.identity.to_word() == named
                && s.liveness != Liveness::Gone
                && !strangers.has(&s.identity, s.lock_tag)
        });
        !cannot_say && inner.store.is_engaged(&holder) == Some(false)
    }

    fn sleep(&mut self, inner: &Inner, released: u32, so_far: Duration, limit: Duration) {
        if so_far >= self.next_word {
            let text = format!("waiting for the node lock since {so_far:.1?}: {}", holder(inner));
            inner.notice(NoticeLevel::Notice, text);
            self.next_word = so_far + NEXT_WORD;
        }
        let sleep = (so_far / 8).clamp(SHORTEST_SLEEP, LONGEST_SLEEP).min(limit - so_far);
        self.in_vain = self.in_vain.saturating_add(1);
        match self.in_vain {
            0..MOST_IN_VAIN => futex::wait_for_change(&inner.header().released, released, sleep),
            _ => std::thread::sleep(sleep),
        }
    }
}

/// Who holds the lock, since when and what for, in words.
fn holder(inner: &Inner) -> String {
    let header = inner.header();
    let age = |since: u64| clock::elapsed_since(since);
    let pid = Identity::from_word(header.lock.load(Relaxed)).pid;
    let callback = match Kind::from_code(header.callback_kind.load(Relaxed)) {
        Some(kind) if header.callback_seq.load(Relaxed) != 0 => {
            format!(
                "in the callback for {kind}, running for {:.1?}",
                age(header.callback_since.load(Relaxed))
            )
        }
        _ => {
            let operation = Operation::from_code(header.holder_operation.load(Relaxed));
            format!("in {}", operation.map_or("unknown", Operation::name))
        }
    };
    let since = age(header.holder_since.load(Relaxed));
    format!("process {pid} of {} has held it for {since:.1?}, {callback}", inner.place())
}

fn timed_out(inner: &Inner, wait: Wait, limit: Duration) -> Error {
    match wait {
        Wait::Try => Error::new(ErrorKind::Busy, format!("the node lock is held: {}", holder(inner))),
        Wait::Timeout | Wait::For(_) => Error::new(
            ErrorKind::LockTimeout,
            format!(
                "timed out after {limit:?} waiting for the node lock: {} (fix that callback, or set `lock_timeout` higher)",
                holder(inner)
            ),
        ),
    }
}
