//! Who watches whom.
//!
//! One worker, the sentinel, watches every other process, and so does its deputy; every other worker watches these two.
//! When the sentinel dies, stalls, drains or leaves, the deputy takes over; and what the sentinel has not reported a few
//! milliseconds after it could have been, the deputy reports: a sentinel that does not run must hold nothing up. Deaths
//! are pushed by the kernel (a pidfd becomes readable), overdue heartbeats are looked for when the earliest could be
//! overdue.
//!
//! After a binary upgrade there are two masters, and the workers of each hear the bell of their own. So each master's
//! workers have a deputy, and the sentinel is one of those whose master is the newest: where workers start.

mod watched;

use std::cell::Cell;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{Timespec, epoll};

use watched::Watched;

use crate::engine::inner::Inner;
use crate::engine::look;
use crate::engine::node_lock::{Operation, Wait};
use crate::engine::pace::Looks;
use crate::engine::process::NoticeLevel;
use crate::engine::session::Session;
use crate::engine::transitions::Transitions;
use crate::error::{Error, Result};
use crate::event::Role;
use crate::lifecycle::{Facts, Families, Progress, Scope, SlotFacts, SlotRef, Stage};
use crate::sys::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use crate::sys::clock::nanos as ns;
use crate::sys::identity::Liveness;
use crate::sys::timer::Timer;
use crate::sys::{clock, process};

/// What a worker is told about the other processes of its node.
///
/// It is one descriptor that any event loop can wait on. Whenever that is readable, call
/// [`Watch::process`], which never blocks for more than a millisecond, and run the transitions that it gives.
///
/// It belongs to the process that made it, and to one thread of it at a time.
pub struct Watch {
    inner: Arc<Inner>,
    me: SlotRef,
    epoll: OwnedFd,
    /// Makes the descriptor readable when it is time to look. `None`: whoever drives this keeps the time, by `due`.
    timer: Option<Timer>,
    watched: HashMap<u32, Watched>,
    most_watched: usize,
    /// When a slot's process was first seen to be dead without anybody telling yet how it ended.
    dead_since: HashMap<(u32, u64), u64>,
    is_listening: bool,
    hears_calls: bool,
    /// Since when something has been open that the sentinel should have reported.
    open_since: Option<u64>,
    /// Since when the node lock has been held by somebody else.
    busy_since: Option<u64>,
    /// When to look again at the latest.
    due: Cell<u64>,
    /// The last look found this process to be sentinel or deputy.
    on_duty: bool,
    /// It was said that the registry is not where it was made.
    has_missed_it: bool,
    /// After a sleep of our own (a suspended machine, a stopped process) nobody is judged before this.
    judge_not_before: u64,
    looks: Looks,
}

/// What a look has found.
enum Look {
    Nothing,
    /// A death whose cause is still to be told.
    Later,
    Report(Box<Session>),
}

/// By what the watch has become readable.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Woken {
    Nothing,
    /// The bell alone.
    Bell,
    More,
}

const BELL: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;
const CALLS: u64 = u64::MAX - 2;
const BUSY_RETRY: Duration = Duration::from_millis(5);
const LONGEST_BUSY_RETRY: Duration = Duration::from_millis(100);
/// How long the deputy leaves to the sentinel what there is to report.
const DEPUTY_PATIENCE: Duration = Duration::from_millis(10);
/// The sentinel looks at everything at least this often, for what no descriptor tells.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

impl Watch {
    pub(crate) fn new(inner: Arc<Inner>, me: SlotRef) -> Result<Watch> {
        let now = clock::boot_ns();
        let mut watch = Watch::without_timer(inner, me, now)?;
        let timer = Timer::new().and_then(|timer| {
            let data = epoll::EventData::new_u64(TIMER);
            epoll::add(&watch.epoll, &timer, data, epoll::EventFlags::IN)?;
            Ok(timer)
        });
        watch.timer = Some(timer.map_err(|e| Error::io("make the watch of a worker", e))?);
        // Look at once: there may be something to take over.
        let awake = watch.due();
        watch.arm(now, Duration::ZERO)?;
        watch.due.set(awake);
        Ok(watch)
    }

    /// One whose owner looks by itself at [`Watch::due`], so that this needs no wake-up of its own.
    pub(crate) fn without_timer(inner: Arc<Inner>, me: SlotRef, now: u64) -> Result<Watch> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|e| Error::io("make the watch of a worker", e.into()))?;
        // A process may also be stopped between its joining and this: it is known to have been awake at its last beat.
        let awake = inner.slot(me.index).map_or(now, |slot| slot.heartbeat_ns.load(Relaxed).min(now));
        Ok(Watch {
            inner,
            me,
            epoll,
            timer: None,
            watched: HashMap::new(),
            most_watched: process::descriptor_limit() / 4,
            dead_since: HashMap::new(),
            is_listening: false,
            hears_calls: false,
            open_since: None,
            busy_since: None,
            due: Cell::new(awake),
            on_duty: false,
            has_missed_it: false,
            judge_not_before: 0,
            looks: Looks::default(),
        })
    }

    /// When to look again at the latest, on the clock of `process_at`.
    pub(crate) fn due(&self) -> u64 {
        self.due.get()
    }

    /// Whether this process reports what happens to the others, or is the first to take over from who does.
    pub(crate) fn is_on_duty(&self) -> bool {
        self.on_duty
    }

    /// Whether this process is the sentinel of its node.
    #[must_use]
    pub fn is_sentinel(&self) -> bool {
        self.inner.header().sentinel.load(Acquire) == code(self.me)
    }

    /// Looks at what happened, and reports what is for this process to report. To be called whenever the
    /// descriptor is readable; calling it more often does no harm.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Busy`] when another process holds the node lock: the descriptor becomes readable
    /// again by itself, and nothing is lost. [`crate::ErrorKind::Io`] when there are no descriptors left.
    pub fn process(&mut self) -> Result<Transitions> {
        self.process_at(clock::boot_ns())
    }

    /// The same, with the time (`CLOCK_BOOTTIME`) as the caller has it.
    pub(crate) fn process_at(&mut self, now: u64) -> Result<Transitions> {
        self.notice_own_sleep(now);
        let by = self.drain_events()?;
        // Called for nothing, in a rest: as by who was told twice of one ring.
        let is_resting = self.on_duty && !self.is_listening;
        let is_vain = by == Woken::Bell || (by == Woken::Nothing && is_resting);
        if let Some(rest) = self.looks.rest(now).filter(|_| is_vain) {
            // Rung in vain again and again: deaf for as long as the rest takes, and then it looks in any case.
            self.listen(false)?;
            self.arm(now, rest)?;
            return Ok(Transitions::none());
        }
        let found = self.look(now);
        self.looks.note(now, matches!(found, Ok(Look::Nothing)));
        Ok(match found? {
            Look::Report(session) => Transitions::new(*session, [Stage::Settle(Scope::Everything)]),
            Look::Nothing | Look::Later => Transitions::none(),
        })
    }

    fn look(&mut self, now: u64) -> Result<Look> {
        if self.is_listening {
            self.inner.store.bell.await_ring();
        }
        self.hear_calls()?;
        self.inner.disown_locks();
        let mut facts = self.inner.facts();
        self.notice_own_sleep_since(now, facts.now);
        let Some(me) = facts.slots.iter().find(|s| s.at() == self.me).filter(|_| self.inner.holds(self.me))
        else {
            // We have left.
            self.watched.clear();
            self.on_duty = false;
            self.listen(false)?;
            self.arm(now, self.longest_sleep())?;
            return Ok(Look::Nothing);
        };
        if me.progress(now, facts.stall_after) == Progress::Overdue {
            // We run, and have not beaten: it was us who slept.
            self.be_patient(now);
        }
        let families = Families::of(&facts);
        let deputy = facts.deputy(&families, sentinel_index(&self.inner), me);
        let is_deputy = deputy == Some(self.me.index);
        let is_sentinel = self.is_sentinel() || self.take_over(&facts, &families, me);
        self.on_duty = is_sentinel || is_deputy;
        if is_sentinel && !self.has_missed_it && self.inner.store.is_missing() {
            self.has_missed_it = true;
            let text = format!(
                "{}: its registry was removed or replaced while its server runs, so `headcount` cannot see it; reload the server, \
                 which makes a new one",
                self.inner.place()
            );
            self.inner.notice(NoticeLevel::Error, text);
        }
        if self.on_duty {
            if !self.is_listening {
                self.listen(true)?;
                // A bell that has ever rung is readable, so to listen wakes us once: after a rest that would be again in
                // vain, and the next rest would follow, and so on for ever.
                self.drain_events()?;
                // What was rung before we could hear it.
                return self.look(now);
            }
            self.watch_those(&facts, |_| true);
        } else {
            self.listen(false)?;
            // The one who takes over as well: that may have happened since, without our having been told.
            let office = [sentinel_index(&self.inner), deputy];
            self.watch_those(&facts, |index| office.contains(&Some(index)));
            self.arm(now, self.next_look_at_sentinel(&facts))?;
            return Ok(Look::Nothing);
        }
        facts.is_patient = facts.now < self.judge_not_before;
        if facts.next_step(Scope::Everything).is_none() {
            self.open_since = None;
            self.arm(
                now,
                if is_sentinel { self.next_look(&facts) } else { self.next_look_at_sentinel(&facts) },
            )?;
            return Ok(Look::Nothing);
        }
        if !is_sentinel {
            let since = *self.open_since.get_or_insert(now);
            let left = DEPUTY_PATIENCE.saturating_sub(Duration::from_nanos(now.saturating_sub(since)));
            if !left.is_zero() {
                self.arm(now, left)?;
                return Ok(Look::Later);
            }
        }
        if self.find_causes(&facts, now) {
            self.arm(now, BUSY_RETRY)?;
            return Ok(Look::Later);
        }
        match Session::begin(&self.inner, Wait::Try, Operation::Settle) {
            Ok(session) if self.notice_own_sleep_since(now, session.facts().now) => {
                drop(session);
                self.arm(now, BUSY_RETRY)?;
                Ok(Look::Later)
            }
            Ok(mut session) => {
                if session.facts().now >= self.judge_not_before {
                    session.judge();
                }
                self.busy_since = None;
                self.open_since = None;
                // What comes meanwhile is looked at afterwards.
                self.arm(now, BUSY_RETRY)?;
                Ok(Look::Report(Box::new(session)))
            }
            Err(error) => {
                // The longer it has taken, the longer it will: a slow callback is not to be counted out.
                let busy_for = now.saturating_sub(*self.busy_since.get_or_insert(now));
                self.arm(now, Duration::from_nanos(busy_for / 8).clamp(BUSY_RETRY, LONGEST_BUSY_RETRY))?;
                Err(error)
            }
        }
    }

    /// If this process itself did not run for long, the others' heartbeats look old although nobody had a
    /// chance to beat: they get one interval first.
    fn notice_own_sleep(&mut self, now: u64) {
        self.notice_own_sleep_since(self.due.get(), now);
    }

    /// The same for a moment at which it was awake: a process may also be stopped in the middle of a look.
    fn notice_own_sleep_since(&mut self, awake: u64, now: u64) -> bool {
        let has_slept = now.saturating_sub(awake) > ns(self.inner.settings().stall_after / 2);
        if has_slept {
            self.be_patient(now);
        }
        has_slept
    }

    fn be_patient(&mut self, now: u64) {
        self.judge_not_before = now.saturating_add(2 * ns(self.inner.settings().heartbeat_interval));
    }

    fn drain_events(&mut self) -> Result<Woken> {
        let mut events = Vec::with_capacity(64);
        let now = Timespec::default();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::io("look at the watch of a worker", e.into())),
        }
        if let Some(timer) = &self.timer {
            timer.has_fired();
        }
        let is_bell = |event: &epoll::Event| event.data.u64() == BELL;
        Ok(match events.is_empty() {
            true => Woken::Nothing,
            false if events.iter().all(is_bell) => Woken::Bell,
            false => Woken::More,
        })
    }

    /// Becomes the sentinel if there is none that is fit for it.
    fn take_over(&self, facts: &Facts, families: &Families, me: &SlotFacts) -> bool {
        let header = self.inner.header();
        let current = header.sentinel.load(Acquire);
        let holder = facts.slots.iter().find(|s| look::is_sentinel(current, s) && s.role == Role::Worker);
        facts.takes_over(families, holder, me, facts.now >= self.judge_not_before)
            // Losing the race means that somebody else has become it.
            && header.sentinel.compare_exchange(current, code(self.me), AcqRel, Acquire).is_ok()
    }

    fn listen(&mut self, wanted: bool) -> Result<()> {
        if self.is_listening == wanted {
            return Ok(());
        }
        let bell = &self.inner.store.bell;
        let done = if wanted {
            // Told of each ring once, and nobody reads it.
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&self.epoll, bell, epoll::EventData::new_u64(BELL), flags)
        } else {
            epoll::delete(&self.epoll, bell)
        };
        done.map_err(|e| Error::io("listen to the bell of the node", e.into()))?;
        self.is_listening = wanted;
        Ok(())
    }

    /// Whoever stands for a role, or waits for a once, is told by a bell of their own.
    fn hear_calls(&mut self) -> Result<()> {
        let calls = &self.inner.store.calls;
        if !self.hears_calls && self.inner.process().hears_calls.load(Relaxed) {
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&self.epoll, calls, epoll::EventData::new_u64(CALLS), flags)
                .map_err(|e| Error::io("listen to a bell of the node", e.into()))?;
            self.hears_calls = true;
        }
        if self.hears_calls {
            calls.await_ring();
        }
        Ok(())
    }

    /// Who has no timer of its own is woken by heartbeats, and by nothing else.
    fn longest_sleep(&self) -> Duration {
        match self.timer {
            Some(_) => LONGEST_SLEEP,
            None => LONGEST_SLEEP.max(self.inner.settings().heartbeat_interval),
        }
    }

    /// When the earliest heartbeat could be overdue.
    fn next_look(&self, facts: &Facts) -> Duration {
        let longest = self.longest_sleep();
        let deadlines = facts.slots.iter().filter(|s| s.liveness == Liveness::Alive);
        let stalls = deadlines.filter_map(|s| s.stall_deadline(facts.now, facts.stall_after));
        let earliest = stalls.chain(facts.answer_deadlines()).min();
        let until = earliest.map_or(longest, |d| Duration::from_nanos(d.saturating_sub(facts.now)));
        let until = until.clamp(Duration::from_millis(1), longest);
        let patience = self.judge_not_before.saturating_sub(facts.now);
        if patience > 0 { until.max(Duration::from_nanos(patience)).min(longest) } else { until }
    }

    /// The others look at the sentinel a little after its heartbeat would be overdue, each at a moment of
    /// its own, so that not all want the office at once.
    fn next_look_at_sentinel(&self, facts: &Facts) -> Duration {
        let (index, longest) = (sentinel_index(&self.inner), self.longest_sleep());
        let sentinel = facts.slots.iter().find(|s| Some(s.index) == index && s.liveness == Liveness::Alive);
        let Some(sentinel) = sentinel else { return BUSY_RETRY };
        let until = match sentinel.stall_deadline(facts.now, facts.stall_after) {
            Some(deadline) => Duration::from_nanos(deadline.saturating_sub(facts.now)),
            None => longest,
        };
        until.min(longest) + Duration::from_millis(1 + u64::from(self.me.index % 32))
    }

    fn arm(&self, now: u64, after: Duration) -> Result<()> {
        self.due.set(now.saturating_add(ns(after)));
        let Some(timer) = &self.timer else { return Ok(()) };
        timer.set(Some(after)).map_err(|e| Error::io("set the watch's timer", e))
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl std::os::fd::AsRawFd for Watch {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.epoll)
    }
}

fn code(slot: SlotRef) -> u64 {
    look::sentinel_word(slot.index, slot.version)
}

fn sentinel_index(inner: &Inner) -> Option<u32> {
    look::sentinel_index(inner.header().sentinel.load(Acquire))
}

#[cfg(test)]
mod tests;
