//! The records of roles, onces and locks; and taking a lock that has a name.
//!
//! Such a lock is a word that names a process, as the node lock is. It is taken and released without the node lock, by one
//! change of the word. A waiter sleeps on a futex and asks the kernel every few milliseconds whether the holder lives.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::engine::inner::Inner;
use crate::engine::node_lock::Wait;
use crate::engine::process::{Named, Process, relock};
use crate::engine::words::NamedWord;
use crate::error::{Allowed, Error, ErrorKind, Result};
use crate::event::{GenerationId, Role};
use crate::lifecycle::{SingletonKind, SingletonState, SlotRef};
use crate::registry::layout::{LONGEST_NAME, Singleton, Slot, is_singleton_name};
use crate::registry::seqlock::rewrite;
use crate::sys::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use crate::sys::identity::{Identity, Liveness};
use crate::sys::{clock, futex, thread};

/// A name as a record keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name([u64; 6]);

impl Name {
    /// # Errors
    /// [`ErrorKind::InvalidOption`], with what is allowed. `what`: the thing that is to have the name.
    pub(crate) fn new(what: &'static str, name: &str) -> Result<Name> {
        if !is_singleton_name(name) {
            return Err(Error::option(what, format!("{name:?}"), Allowed::SingletonName));
        }
        let mut bytes = [0u8; LONGEST_NAME];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        let mut words = [0; 6];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = chunk.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        }
        Ok(Name(words))
    }

    fn is_in(&self, x: &Singleton) -> bool {
        x.name.iter().zip(self.0).all(|(word, name)| word.load(Relaxed) == name)
    }
}

impl Inner {
    /// The record of a role, once or lock. `scope`: the generation of a once, else 0.
    pub(crate) fn find_singleton(
        &self,
        kind: SingletonKind,
        name: &Name,
        scope: GenerationId,
    ) -> Option<u32> {
        let is_it = |x: &Singleton| self.is_singleton(x, kind, name, scope);
        let index = self.view().used_singletons().iter().position(is_it)?;
        u32::try_from(index).ok()
    }

    pub(crate) fn is_singleton(
        &self,
        x: &Singleton,
        kind: SingletonKind,
        name: &Name,
        scope: GenerationId,
    ) -> bool {
        x.version.load(Acquire) & 1 == 0
            && x.kind.load(Relaxed) == kind.code()
            && name.is_in(x)
            && (kind != SingletonKind::Once || x.generation.load(Relaxed) == scope)
    }

    /// Makes a record. Only for the holder of the node lock.
    ///
    /// # Errors
    /// [`ErrorKind::Full`].
    pub(crate) fn make_singleton(
        &self,
        kind: SingletonKind,
        name: &Name,
        scope: GenerationId,
    ) -> Result<u32> {
        let region = &self.store.region;
        let number = if kind == SingletonKind::Role { self.free_number()? } else { 0 };
        let me = self.process().identity.to_word();
        let free = region.find_singleton(|x| x.kind.load(Relaxed) == 0);
        // A lock that nobody holds needs no record. Nobody takes it while we have it.
        let is_idle = |x: &Singleton| {
            x.kind.load(Relaxed) == SingletonKind::Lock.code()
                && x.broken_from.load(Relaxed) == 0
                && x.abandoned_by.load(Relaxed) == 0
                && x.word.compare_exchange(0, me, AcqRel, Relaxed).is_ok()
        };
        let Some((index, x)) = free.or_else(|| region.find_singleton(is_idle)) else {
            let (place, there) = (self.place(), region.singletons().len());
            let text = match there == region.geometry().singletons() {
                true => format!(
                    "{place}: all {there} roles, onces and locks are in use; set the option `singletons` higher, stop \
                     the server, remove the registry and start again"
                ),
                false => format!(
                    "{place}: the file system is full, with room for {there} roles, onces and locks; make room in it"
                ),
            };
            return Err(Error::new(ErrorKind::Full, text));
        };
        self.header().singletons_used.fetch_max(index + 1, Release);
        rewrite(&x.version, || {
            for (word, value) in x.name.iter().zip(name.0) {
                word.store(value, Relaxed);
            }
            for word in [
                &x.awaited,
                &x.abandoned_by,
                &x.attempts,
                &x.owner_slot,
                &x.owner_pid,
                &x.cause,
                &x.next_state,
            ] {
                word.store(0, Relaxed);
            }
            for word in [&x.broken_from, &x.last_dead, &x.owner_version, &x.wait_status, &x.asked_ns, &x.seq]
            {
                word.store(0, Relaxed);
            }
            x.owner_worker_id.store(-1, Relaxed);
            x.generation.store(scope, Relaxed);
            x.number.store(number, Relaxed);
            // As those of leaders, tokens of locks grow over a registry that was lost.
            x.token.store(clock::wall_ns() / 1000, Relaxed);
            x.since_ns.store(clock::boot_ns(), Relaxed);
            let state = if kind == SingletonKind::Once { SingletonState::Open } else { SingletonState::Free };
            x.state.store(state.code(), Relaxed);
            x.kind.store(kind.code(), Relaxed);
            x.word.store(0, Release);
        });
        Ok(index)
    }

    pub(crate) fn free_singleton(&self, index: u32) {
        let Some(x) = self.singleton(index) else { return };
        rewrite(&x.version, || {
            x.kind.store(0, Relaxed);
            x.word.store(0, Release);
        });
    }

    /// Has the header say again how far the table is used, and takes out what is there twice: somebody had hidden the one.
    pub(crate) fn heal_singletons(&self) {
        let all = self.store.region.singletons();
        let end = all.iter().rposition(Singleton::is_taken).map_or(0, |last| last + 1);
        self.header().singletons_used.store(u32::try_from(end).unwrap_or(u32::MAX), Release);
        let mut seen = BTreeSet::new();
        for (index, x) in (0u32..).zip(all).filter(|(_, x)| x.is_taken()) {
            let kind = x.kind.load(Relaxed);
            let scope = if kind == SingletonKind::Once.code() { x.generation.load(Relaxed) } else { 0 };
            if !seen.insert((kind, x.name.each_ref().map(|word| word.load(Relaxed)), scope)) {
                self.free_singleton(index);
            }
        }
    }

    /// A number that no role has.
    fn free_number(&self) -> Result<u32> {
        let roles = self.view().used_singletons().iter();
        let roles = roles.filter(|x| x.kind.load(Relaxed) == SingletonKind::Role.code());
        let taken =
            roles.fold(0u64, |taken, x| taken | 1u64.checked_shl(x.number.load(Relaxed)).unwrap_or(0));
        let number = taken.trailing_ones();
        if number == u64::BITS {
            let text = format!("{}: there are 64 roles, and no more are possible", self.place());
            return Err(Error::new(ErrorKind::Full, text));
        }
        Ok(number)
    }

    /// Takes out of the locks the name of this process where it holds none: somebody has written it there.
    pub(crate) fn disown_locks(&self) {
        let process = self.process();
        let me = process.identity.to_word();
        for (index, x) in (0u32..).zip(self.view().used_singletons()) {
            if x.kind.load(Relaxed) == SingletonKind::Lock.code() && x.word.load(Acquire) == me {
                let named = relock(&process.named);
                if !named.held.iter().any(|(held, _)| *held == index) {
                    release(x, me);
                }
            }
        }
    }
}

/// A named lock as it was taken.
pub(crate) struct Taken {
    pub(crate) token: u64,
    /// The one before died while it held it.
    pub(crate) abandoned_by: Option<u32>,
}

/// As those of the node lock. They grow with the time waited.
const SHORTEST_SLEEP: Duration = Duration::from_millis(1);
const LONGEST_SLEEP: Duration = Duration::from_millis(20);
/// After this time it is asked whether who is named can hold it at all, and again and again.
const SUSPICIOUS: Duration = Duration::from_millis(50);

/// A thread's turn among the threads of its process, which all have the same name in the word.
struct Turn<'a> {
    inner: &'a Inner,
    index: u32,
}

impl<'a> Turn<'a> {
    fn take(inner: &'a Inner, index: u32, name: &str, patience: &mut Patience) -> Result<Turn<'a>> {
        let process = inner.process();
        let me = thread::id();
        let mut named = relock(&process.named);
        while let Some((_, thread)) = named.held.iter().find(|(held, _)| *held == index) {
            if *thread == me {
                let text = format!("{}: this thread holds the lock {name} already", inner.place());
                return Err(Error::new(ErrorKind::WrongState, text));
            }
            let left = patience.left();
            if left.is_zero() {
                return Err(timed_out(inner, index, name, patience.limit));
            }
            named.waiting += 1;
            let waited = process.named_released.wait_timeout(named, left);
            named = waited.unwrap_or_else(PoisonError::into_inner).0;
            named.waiting -= 1;
        }
        named.held.push((index, me));
        Ok(Turn { inner, index })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let process = self.inner.process();
        end_turn(process, &mut relock(&process.named), self.index);
    }
}

/// The next thread of this process has its turn.
fn end_turn(process: &Process, named: &mut Named, index: u32) {
    named.held.retain(|(held, _)| *held != index);
    if named.waiting > 0 {
        process.named_released.notify_all();
    }
}

/// The word in the slot of a process that it waits for a lock, until this is dropped.
struct Waits<'a>(&'a Slot);

impl<'a> Waits<'a> {
    fn say(slot: &'a Slot, index: u32) -> Waits<'a> {
        slot.waits_for.store(index + 1, Relaxed);
        Waits(slot)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waits_for.store(0, Relaxed);
    }
}

/// How long somebody still waits. Its clock begins when it is first asked, and stands still while the machine is suspended: the
/// holder cannot go on then either.
struct Patience {
    limit: Duration,
    begun: Option<Instant>,
}

impl Patience {
    fn new(limit: Duration) -> Patience {
        Patience { limit, begun: None }
    }

    fn so_far(&mut self) -> Duration {
        self.begun.get_or_insert_with(Instant::now).elapsed()
    }

    fn left(&mut self) -> Duration {
        self.limit.saturating_sub(self.so_far())
    }
}

/// One who waits for a lock, between two looks at it.
struct Sleeper<'a> {
    inner: &'a Inner,
    x: &'a Singleton,
    slot: SlotRef,
    index: u32,
    patience: Patience,
    next_proof: Duration,
    has_slept: bool,
    waits: Option<Waits<'a>>,
}

impl<'a> Sleeper<'a> {
    fn new(inner: &'a Inner, x: &'a Singleton, slot: SlotRef, index: u32, patience: Patience) -> Sleeper<'a> {
        let next_proof = SUSPICIOUS;
        Sleeper { inner, x, slot, index, patience, next_proof, has_slept: false, waits: None }
    }

    /// Sleeps until it may have been released since `released` was read. `named` has it. `false`: the time is up.
    fn sleep(&mut self, released: u32, named: u64) -> bool {
        let (so_far, left) = (self.patience.so_far(), self.patience.left());
        if left.is_zero() {
            return false;
        }
        if so_far >= self.next_proof {
            self.next_proof = so_far.saturating_mul(2);
            if !can_hold(self.inner, named) {
                // Somebody has written a name there. Failing means that it has changed.
                let _ = self.x.word.compare_exchange(named, 0, AcqRel, Acquire);
                return true;
            }
        }
        if self.waits.is_none() {
            self.waits = self.inner.slot(self.slot.index).map(|slot| Waits::say(slot, self.index));
        }
        self.has_slept = true;
        self.x.awaited.store(1, SeqCst);
        let sleep = (so_far / 8).clamp(SHORTEST_SLEEP, LONGEST_SLEEP).min(left);
        futex::wait_for_change(&self.x.released, released, sleep);
        true
    }
}

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        if self.has_slept {
            // Others may sleep as well: who took the flag away woke only one.
            self.x.awaited.store(1, Release);
        }
    }
}

/// Waits until the lock in this record can be tried again, and does not take it: nobody has it, who had it is gone, or the record
/// is another lock's by now. `false`: the time is up, or `goes_on`, which is asked every few milliseconds, says no.
pub(crate) fn wait_until_free(
    inner: &Inner,
    slot: SlotRef,
    index: u32,
    name: &Name,
    limit: Duration,
    mut goes_on: impl FnMut() -> bool,
) -> bool {
    let Some(x) = inner.singleton(index) else { return true };
    let mut sleeper = Sleeper::new(inner, x, slot, index, Patience::new(limit));
    loop {
        // In this order, as in `take`.
        let (released, named) = NamedWord::of(x).look();
        if named == 0 || inner.is_gone(named) || !inner.is_singleton(x, SingletonKind::Lock, name, 0) {
            return true;
        }
        if !goes_on() || !sleeper.sleep(released, named) {
            return false;
        }
    }
}

/// Takes the lock in this record. `None`: it is another lock's by now.
pub(crate) fn take(
    inner: &Inner,
    me: SlotRef,
    index: u32,
    (text, name): (&str, &Name),
    wait: Wait,
) -> Result<Option<Taken>> {
    let limit = match wait {
        Wait::Timeout => inner.settings().lock_timeout,
        Wait::Try => Duration::ZERO,
        Wait::For(limit) => limit,
    };
    let Some(x) = inner.singleton(index) else { return Ok(None) };
    let mut patience = Patience::new(limit);
    let turn = Turn::take(inner, index, text, &mut patience)?;
    let word = inner.process().identity.to_word();
    let mut abandoned_by = None;
    let mut sleeper = Sleeper::new(inner, x, me, index, patience);
    loop {
        // In this order: who then sleeps until it is released has missed nothing.
        let (released, named) = NamedWord::of(x).look();
        let is_dead = named != 0 && named != word && inner.is_gone(named);
        if (named == 0 || named == word || is_dead) && NamedWord::of(x).take(named, word, is_dead) {
            let dead_pid = is_dead.then(|| Identity::from_word(named).pid);
            if !inner.is_singleton(x, SingletonKind::Lock, name, 0) {
                NamedWord::of(x).put_back(word, dead_pid);
                wake_one(x);
                return Ok(None);
            }
            abandoned_by = abandoned_by.or(dead_pid);
            break;
        }
        if !inner.is_singleton(x, SingletonKind::Lock, name, 0) {
            return Ok(None);
        }
        if named == 0 || is_dead {
            continue;
        }
        if !sleeper.sleep(released, named) {
            return Err(timed_out(inner, index, text, limit));
        }
    }
    drop(sleeper);
    abandoned_by = NamedWord::of(x).hear().or(abandoned_by);
    if abandoned_by.is_some() {
        // The death is to be reported, if it is not yet.
        inner.ring();
    }
    x.since_ns.store(clock::boot_ns(), Relaxed);
    // Only the holder counts, so this needs no exchange.
    let token = x.token.load(Relaxed).wrapping_add(1);
    x.token.store(token, Relaxed);
    std::mem::forget(turn);
    Ok(Some(Taken { token, abandoned_by }))
}

/// Whether this process has the lock in this record.
pub(crate) fn is_held(inner: &Inner, index: u32) -> bool {
    let is_ours = |x: &Singleton| x.word.load(Relaxed) == inner.process().identity.to_word();
    inner.singleton(index).is_some_and(is_ours)
        && relock(&inner.process().named).held.iter().any(|(held, _)| *held == index)
}

/// The lock in this record is this process's no more: it is released, unless `is_left` to the next, who is told of this process's
/// end. `false`: this process does not have it.
pub(crate) fn let_go(inner: &Inner, index: u32, is_left: bool) -> bool {
    let Some(x) = inner.singleton(index) else { return false };
    let process = inner.process();
    let me = process.identity.to_word();
    let mut named = relock(&process.named);
    // Another thread whose turn it is may still wait for another process. This one does not; if the word is not ours all the same,
    // somebody has spoiled it.
    let is_ours = |thread| x.word.load(Relaxed) == me || thread == thread::id();
    if !named.held.iter().any(|&(held, thread)| held == index && is_ours(thread)) {
        return false;
    }
    if !is_left {
        release(x, me);
    }
    end_turn(process, &mut named, index);
    true
}

/// Lets go of it, and wakes one of those who sleep.
fn release(x: &Singleton, word: u64) {
    NamedWord::of(x).release(word);
    wake_one(x);
}

/// Whoever says that it waits after this has looked finds that the lock was released since, and does not sleep.
fn wake_one(x: &Singleton) {
    if x.awaited.load(SeqCst) != 0 {
        x.awaited.store(0, Relaxed);
        futex::wake(&x.released, 1);
    }
}

/// Whether a process of this name can hold a lock: it is a worker, a helper or a visitor of this node.
fn can_hold(inner: &Inner, word: u64) -> bool {
    inner
        .facts()
        .slots
        .iter()
        .any(|s| s.role != Role::Master && s.liveness != Liveness::Gone && s.identity.to_word() == word)
}

fn timed_out(inner: &Inner, index: u32, name: &str, limit: Duration) -> Error {
    let x = inner.singleton(index);
    let word = x.map_or(0, |x| x.word.load(Acquire));
    let since = clock::elapsed_since(x.map_or(0, |x| x.since_ns.load(Relaxed)));
    let facts = inner.facts();
    let holder = facts.slots.iter().find(|s| s.identity.to_word() == word);
    let who = match holder.and_then(|s| s.worker_id) {
        Some(id) => format!("worker {id} (process {})", Identity::from_word(word).pid),
        None => format!("process {}", Identity::from_word(word).pid),
    };
    let place = inner.place();
    match limit.is_zero() {
        true => {
            Error::new(ErrorKind::Busy, format!("{place}: {who} has held the lock {name} for {since:.1?}"))
        }
        false => Error::new(
            ErrorKind::LockTimeout,
            format!(
                "{place}: timed out after {limit:?} waiting for the lock {name}: {who} has held it for {since:.1?}"
            ),
        ),
    }
}
