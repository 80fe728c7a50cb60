//! The node lock: one holder at a time, over all processes, while it changes the registry and while its
//! callbacks run.
//!
//! The kernel decides who holds it (a record lock on one byte), so a holder that dies has let go of it in
//! that very moment. There is no kernel call that waits for a record lock with a time-out, without a
//! thread and without a signal; so a waiter sleeps on a futex that every release touches, and looks by
//! itself every few milliseconds for the case that the holder died instead of releasing.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Cause, Event, Kind};
use crate::lifecycle::{Facts, Liveness, Scope, Step};
use crate::node::{Node, NoticeLevel};
use crate::registry::layout::NODE_LOCK_BYTE;
use crate::sys::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sys::{clock, lock, process};

/// How long a call waits for the node lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// As long as the option `lock_timeout` says.
    Timeout,
    /// Not at all: [`ErrorKind::Busy`] if somebody has it.
    Try,
    /// At most this long.
    For(Duration),
}

/// What the lock is held for, as others may read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Open = 1,
    Begin = 2,
    Join = 3,
    Drain = 4,
    Leave = 5,
    Settle = 6,
}

impl Operation {
    pub(crate) fn name(code: u32) -> &'static str {
        match code {
            1 => "open",
            2 => "begin",
            3 => "join",
            4 => "drain",
            5 => "leave",
            6 => "settle",
            _ => "unknown",
        }
    }
}

/// The shortest and the longest sleep between two looks at the lock. The sleeps grow with the time
/// waited, so that a dead holder is noticed early and a slow one costs its waiters nothing to speak of.
const SHORTEST_SLEEP: Duration = Duration::from_millis(1);
const LONGEST_SLEEP: Duration = Duration::from_millis(20);
/// When a waiter tells the log whom it waits for: first, and then again.
const FIRST_WORD: Duration = Duration::from_secs(1);
const NEXT_WORD: Duration = Duration::from_secs(10);
/// How often a callback is run again whose runner died in it. A callback that kills every process must
/// not take the server down with it.
const MOST_TRIES: u32 = 3;

/// The node lock, held by this process.
pub(crate) struct Hold {
    pub(crate) node: Node,
    pid: u32,
    /// How many more steps this hold may take: a bound that only a spoiled registry reaches.
    budget: Cell<usize>,
    /// What the kernel has said of slots since the last callback: asking is what a transition costs most.
    /// Somebody who dies within these microseconds is noticed by the next hold.
    known: RefCell<BTreeMap<u32, (u64, Liveness)>>,
    /// When the steps must have come to an end, callbacks apart.
    until: Cell<u64>,
}

impl Hold {
    pub(crate) fn acquire(node: &Node, wait: Wait, operation: Operation) -> Result<Hold> {
        let inner = &node.inner;
        let limit = match wait {
            Wait::Timeout => inner.settings().lock_timeout,
            Wait::Try => Duration::ZERO,
            Wait::For(limit) => limit,
        };
        let begun = clock::boot_ns();
        let waited = || Duration::from_nanos(clock::boot_ns().saturating_sub(begun));
        let me = std::thread::current().id();

        // First among the threads of this process, for which the kernel knows no difference.
        let mut local = inner.local();
        while let Some(holder) = local.holder {
            if holder == me {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!(
                        "{}: this process holds the node lock already, in a callback that has not ended",
                        inner.place()
                    ),
                ));
            }
            let left = limit.saturating_sub(waited());
            if left.is_zero() {
                drop(local);
                return Err(timed_out(node, wait, limit));
            }
            local = inner.wait_released(local, left);
        }
        local.holder = Some(me);
        drop(local);
        let give_up = || {
            inner.local().holder = None;
            inner.released.notify_one();
        };

        let header = inner.store.region.header();
        let mut next_word = FIRST_WORD;
        loop {
            let word = header.wake_word.load(Acquire);
            match lock::try_lock(inner.store.lock_file.as_fd(), NODE_LOCK_BYTE) {
                Ok(true) => break,
                Ok(false) => {}
                Err(e) => {
                    give_up();
                    return Err(Error::io("take the node lock", e));
                }
            }
            let so_far = waited();
            if so_far >= limit {
                give_up();
                return Err(timed_out(node, wait, limit));
            }
            if so_far >= next_word {
                inner.notice(
                    NoticeLevel::Notice,
                    format!("waiting for the node lock since {so_far:.1?}: {}", holder(node)),
                );
                next_word = so_far + NEXT_WORD;
            }
            let sleep = (so_far / 8).clamp(SHORTEST_SLEEP, LONGEST_SLEEP).min(limit - so_far);
            lock::wait_for_change(&header.wake_word, word, sleep);
        }
        let budget = Cell::new(64 + 8 * inner.store.region.geometry().slots());
        let hold = Hold {
            node: node.clone(),
            pid: process::pid(),
            budget,
            known: RefCell::default(),
            until: Cell::new(0),
        };
        hold.begin_to_count();
        let interrupted = header.holder_operation.load(Acquire) != 0;
        if interrupted {
            // The mark of the dead holder, its pid with it, stays until its damage is mended: should we die
            // in the middle, the next one finds it again.
            hold.repair(header.holder_pid.load(Relaxed));
        }
        header.holder_pid.store(process::pid(), Relaxed);
        header.holder_since.store(clock::boot_ns(), Relaxed);
        header.holder_operation.store(operation as u32, Release);
        Ok(hold)
    }

    /// Not so in a child that was forked in a callback: the lock, and all that is done under it, is its parent's.
    pub(crate) fn is_ours(&self) -> bool {
        self.pid == process::pid()
    }

    pub(crate) fn facts(&self) -> Facts {
        self.facts_as_of(self.node.newest_seq())
    }

    fn facts_as_of(&self, head: u64) -> Facts {
        let inner = &self.node.inner;
        let own = inner.own_slots();
        let mut known = self.known.borrow_mut();
        let mut facts = inner.view().facts_as_of(head, &mut |index, version, pid| {
            let ask = || (version, inner.liveness(&own, index, version, pid));
            let answer = known.entry(index).or_insert_with(ask);
            if answer.0 != version {
                *answer = ask();
            }
            answer.1
        });
        inner.find_joining(&mut facts);
        facts.as_reported = true;
        facts.own = own.iter().map(|s| s.index).collect();
        facts
    }

    /// The next matter to settle. Each takes something away from the table, unless somebody who means harm
    /// puts it back all the time: then this stops, and says so.
    pub(crate) fn next_step(&self, scope: Scope) -> Option<Step> {
        let step = self.facts().next_step(scope)?;
        let left = self.budget.get();
        if left == 0 || clock::boot_ns() > self.until.get() {
            let text = format!(
                "{}: settling does not come to an end, the registry is being spoiled",
                self.node.inner.place()
            );
            self.node.inner.notice(NoticeLevel::Warning, text);
            return None;
        }
        self.budget.set(left - 1);
        Some(step)
    }

    fn begin_to_count(&self) {
        /// A thousand deaths at once take a tenth of it.
        const LONGEST_NS: u64 = 2_000_000_000;
        self.until.set(clock::boot_ns().saturating_add(LONGEST_NS));
    }

    /// The number that the next event will have.
    pub(crate) fn next_seq(&self) -> u64 {
        self.node.inner.store.region.header().head.load(Relaxed).wrapping_add(1)
    }

    /// Completes an event with the counts and the time, and writes it into the journal.
    pub(crate) fn report(&self, mut event: Event) -> Event {
        event.counts = self.facts_as_of(self.next_seq()).counts(event.generation);
        event.time_ns = clock::wall_ns();
        event.boot_ns = clock::boot_ns();
        event.reporter_pid = process::pid();
        event.seq = self.node.inner.journal().append(&event);
        event
    }

    /// Notes that a callback about this event is about to run. Should this process die in it, the next
    /// holder of the lock finds the note.
    pub(crate) fn callback_begins(&self, event: &Event) {
        let header = self.node.inner.store.region.header();
        header.callback_kind.store(event.kind.code(), Relaxed);
        header.callback_since.store(clock::boot_ns(), Relaxed);
        header.callback_seq.store(event.seq, Release);
    }

    pub(crate) fn callback_ends(&self) {
        self.known.borrow_mut().clear();
        self.begin_to_count();
        self.node.inner.store.region.header().callback_seq.store(0, Release);
    }

    /// Undoes what a holder that died left half-done, and notes which callback it died in.
    fn repair(&self, last_holder: u32) {
        let inner = &self.node.inner;
        let header = inner.store.region.header();
        let head = header.head.load(Relaxed);
        header.repairs.fetch_add(1, Relaxed);
        inner.journal().count_newest();
        let never_happened = |seq: &crate::sys::atomic::AtomicU64| {
            if seq.load(Relaxed) > head {
                seq.store(0, Relaxed);
            }
        };
        never_happened(&header.redeliver_seq);
        for slot in inner.view().used_slots() {
            for seq in
                [&slot.started_seq, &slot.exited_seq, &slot.died_seq, &slot.stalled_seq, &slot.recovered_seq]
            {
                never_happened(seq);
            }
            let version = slot.version.load(Relaxed);
            if version % 2 == 1 {
                slot.role.store(0, Relaxed);
                slot.version.store(version.wrapping_add(1), Release);
            }
        }
        for generation in inner.view().used_generations() {
            for seq in [&generation.started_seq, &generation.ended_seq, &generation.abandoned_seq] {
                never_happened(seq);
            }
            let version = generation.version.load(Relaxed);
            if version % 2 == 1 {
                generation.phase.store(0, Relaxed);
                generation.version.store(version.wrapping_add(1), Release);
            }
        }
        let seq = header.callback_seq.load(Acquire);
        if seq != 0 {
            self.callback_died(seq, last_holder);
            header.callback_seq.store(0, Release);
        }
        inner.wake();
    }

    /// Reports that a process died inside of a callback, and has it run again where it must be.
    fn callback_died(&self, seq: u64, pid: u32) {
        let inner = &self.node.inner;
        let header = inner.store.region.header();
        let about = inner.journal().read(seq);
        // If our predecessor in this repair died after reporting it, it is reported already.
        let newest = inner.journal().read(header.head.load(Relaxed));
        if !newest.is_some_and(|e| e.kind == Kind::CallbackDied && e.detail == seq) {
            let mut event =
                Event::new(Kind::CallbackDied, about.as_ref().map_or(Cause::Unknown, |e| e.cause));
            event.generation = about.as_ref().map_or(0, |e| e.generation);
            event.worker_id = about.as_ref().and_then(|e| e.worker_id);
            event.pid = pid;
            event.detail = seq;
            self.report(event);
        }
        let Some(about) = about else { return };
        let again = |tries: &crate::sys::atomic::AtomicU32| {
            let before = tries.load(Relaxed);
            tries.store(before.saturating_add(1), Relaxed);
            if before.saturating_add(1) >= MOST_TRIES {
                inner.notice(
                    NoticeLevel::Warning,
                    format!(
                        "{}: {MOST_TRIES} processes died in the callback about {} (event {seq}); it is not run again",
                        inner.place(),
                        about.kind
                    ),
                );
            }
        };
        match about.kind {
            Kind::WorkerDied | Kind::MasterLost => {
                inner
                    .view()
                    .used_slots()
                    .iter()
                    .filter(|s| s.died_seq.load(Relaxed) == seq)
                    .for_each(|s| again(&s.retry));
            }
            Kind::GenerationStarted | Kind::GenerationEnded | Kind::GenerationAbandoned => inner
                .view()
                .used_generations()
                .iter()
                .filter(|g| {
                    [&g.started_seq, &g.ended_seq, &g.abandoned_seq].iter().any(|s| s.load(Relaxed) == seq)
                })
                .for_each(|g| again(&g.retry)),
            Kind::WorkerStalled | Kind::WorkerRecovered => {
                again(&header.redeliver_tries);
                header.redeliver_seq.store(seq, Release);
            }
            // About the dead process itself: there is nobody left for whom it could be run again.
            _ => {}
        }
    }

    /// Whether a callback that was begun this often may be run once more.
    pub(crate) fn may_retry(tries: u32) -> bool {
        tries < MOST_TRIES
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let inner = &self.node.inner;
        let header = inner.store.region.header();
        let mut local = inner.local();
        if !self.is_ours() {
            return;
        }
        header.holder_operation.store(0, Release);
        header.holder_pid.store(0, Relaxed);
        // It cannot fail for an open descriptor; if it did, the process's end would free the lock. Before
        // another thread of this process may take it, whose lock it would be for the kernel, too.
        let _ = lock::unlock(inner.store.lock_file.as_fd(), NODE_LOCK_BYTE);
        local.holder = None;
        drop(local);
        header.wake_word.fetch_add(1, Release);
        lock::wake_one(&header.wake_word);
        inner.released.notify_one();
    }
}

/// Who holds the lock, since when and what for, in words.
fn holder(node: &Node) -> String {
    let inner = &node.inner;
    let header = inner.store.region.header();
    let now = clock::boot_ns();
    let age = |since: u64| Duration::from_nanos(now.saturating_sub(since));
    let pid = match lock::test(inner.store.lock_file.as_fd(), NODE_LOCK_BYTE) {
        Ok(lock::ByteLock::Held(pid)) if pid != 0 => pid,
        _ => header.holder_pid.load(Relaxed),
    };
    let callback = match Kind::from_code(header.callback_kind.load(Relaxed)) {
        Some(kind) if header.callback_seq.load(Relaxed) != 0 => {
            format!(
                "in the callback about {kind}, which runs since {:.1?}",
                age(header.callback_since.load(Relaxed))
            )
        }
        _ => format!("in {}", Operation::name(header.holder_operation.load(Relaxed))),
    };
    format!(
        "process {pid} of {} holds it since {:.1?}, {callback}",
        inner.place(),
        age(header.holder_since.load(Relaxed))
    )
}

fn timed_out(node: &Node, wait: Wait, limit: Duration) -> Error {
    match wait {
        Wait::Try => Error::new(ErrorKind::Busy, format!("the node lock is not free: {}", holder(node))),
        Wait::Timeout | Wait::For(_) => Error::new(
            ErrorKind::LockTimeout,
            format!(
                "the node lock was not to be had within {limit:?}: {} (mend that callback, or set `lock_timeout` higher)",
                holder(node)
            ),
        ),
    }
}
