//! Who watches whom.
//!
//! One worker, the sentinel, watches every other process; every other worker watches only the sentinel.
//! When it dies, stalls, drains or leaves, one of them takes over. Deaths are pushed by the kernel (a pidfd
//! becomes readable), overdue heartbeats are looked for when the earliest could be overdue.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::engine::node_lock::{Hold, Operation, Wait};
use crate::engine::transitions::{Stage, Transitions};
use crate::error::{Error, Result};
use crate::event::Role;
use crate::lifecycle::{Facts, Intent, Liveness, Progress, Scope, SlotFacts};
use crate::node::{Node, SlotRef};
use crate::sys::atomic::Ordering::{AcqRel, Acquire, Release};
use crate::sys::process::PidfdState;
use crate::sys::{clock, pipe, process};

/// What a worker is told about the other processes of its node.
///
/// It is one descriptor that any event loop can wait on. Whenever that is readable, call
/// [`Watch::process`], which never blocks for more than a millisecond, and run the transitions that it gives.
///
/// It belongs to the process that made it, and to one thread of it at a time.
pub struct Watch {
    node: Node,
    me: SlotRef,
    epoll: OwnedFd,
    /// Makes the descriptor readable when it is time to look. `None`: whoever drives this keeps the time, by `due`.
    timer: Option<OwnedFd>,
    watched: HashMap<u32, Watched>,
    most_watched: usize,
    /// When a slot's process was first seen to be dead without anybody telling yet how it ended.
    dead_since: HashMap<(u32, u64), u64>,
    ear: Ear,
    /// Since when the node lock has been held by somebody else.
    busy_since: Option<u64>,
    /// When to look again at the latest.
    due: Cell<u64>,
    /// The last look found this process to be sentinel or deputy.
    on_duty: bool,
    /// After a sleep of our own (a suspended machine, a stopped process) nobody is judged before this.
    judge_not_before: u64,
    looks: Looks,
}

/// What a look has found.
enum Look {
    Nothing,
    /// A death whose cause is still to be told.
    Later,
    Report(Hold),
}

/// The last looks: who is woken in vain again and again (many workers join at once, or somebody means harm) rests a
/// little before the next one.
#[derive(Default)]
struct Looks {
    last: u64,
    /// In a row, each soon after the one before.
    in_vain: u32,
}

impl Looks {
    const SHORTEST_REST: u64 = 5_000_000;
    const LONGEST_REST: u64 = 20_000_000;
    const MOST_IN_VAIN: u32 = 4;

    /// How long to rest now: longer, the longer it has been in vain.
    fn rest(&self, now: u64) -> Option<Duration> {
        let doubled = self.in_vain.checked_sub(Looks::MOST_IN_VAIN)?;
        let rest = Looks::LONGEST_REST.min(Looks::SHORTEST_REST << doubled.min(8));
        let until = self.last.saturating_add(rest);
        (now < until).then(|| Duration::from_nanos(until - now))
    }

    fn note(&mut self, now: u64, in_vain: bool) {
        let soon = now < self.last.saturating_add(2 * Looks::LONGEST_REST);
        self.in_vain = match (in_vain, soon) {
            (false, _) => 0,
            (true, true) => self.in_vain.saturating_add(1),
            (true, false) => 1,
        };
        self.last = now;
    }
}

/// How a process listens to the wake-up pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ear {
    Deaf,
    /// Told of each wake-up, and leaves it to the sentinel, unless that is not fit any more: a sentinel that drains
    /// may have no loop that looks after the others, and it does not die, so that nothing else would tell. A sentinel
    /// that drains listens like this, too: what it took out of the pipe, its deputy would not find.
    Deputy,
    Sentinel,
}

struct Watched {
    version: u64,
    pid: u32,
    pidfd: OwnedFd,
}

const WAKE_PIPE: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;
/// How long a death may wait for its cause: until the parent has asked for it, or this long.
const CAUSE_PATIENCE: Duration = Duration::from_millis(20);
/// Within one call: as long as a parent usually takes.
const CAUSE_BLOCK: Duration = Duration::from_millis(1);
const BUSY_RETRY: Duration = Duration::from_millis(5);
const LONGEST_BUSY_RETRY: Duration = Duration::from_millis(100);
/// The sentinel looks at everything at least this often, for what no descriptor tells.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Watch {
    pub(crate) fn new(node: Node, me: SlotRef) -> Result<Watch> {
        let now = clock::boot_ns();
        let mut watch = Watch::without_timer(node, me, now)?;
        let failed = |e: rustix::io::Errno| Error::io("make the watch of a worker", e.into());
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)
            .map_err(failed)?;
        let data = epoll::EventData::new_u64(TIMER);
        epoll::add(&watch.epoll, &timer, data, epoll::EventFlags::IN).map_err(failed)?;
        watch.timer = Some(timer);
        // Look at once: there may be something to take over.
        watch.arm(now, Duration::ZERO)?;
        Ok(watch)
    }

    /// One whose owner looks by itself at [`Watch::due`], so that this needs no wake-up of its own.
    pub(crate) fn without_timer(node: Node, me: SlotRef, now: u64) -> Result<Watch> {
        let failed = |e: rustix::io::Errno| Error::io("make the watch of a worker", e.into());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        Ok(Watch {
            node,
            me,
            epoll,
            timer: None,
            watched: HashMap::new(),
            most_watched: process::descriptor_limit() / 4,
            dead_since: HashMap::new(),
            ear: Ear::Deaf,
            busy_since: None,
            due: Cell::new(now),
            on_duty: false,
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
        self.node.inner.store.region.header().sentinel.load(Acquire) == code(self.me)
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
        let only_woken = self.drain_events()?;
        if let Some(rest) = self.looks.rest(now).filter(|_| only_woken) {
            // What is in the pipe stays there, and is found after the rest.
            self.listen(Ear::Deaf)?;
            self.arm(now, rest)?;
            return Ok(Transitions::none());
        }
        let found = self.look(now);
        self.looks.note(now, matches!(found, Ok(Look::Nothing)));
        Ok(match found? {
            Look::Report(hold) => Transitions::new(hold, [Stage::Settle(Scope::Everything)]),
            Look::Nothing | Look::Later => Transitions::none(),
        })
    }

    fn look(&mut self, now: u64) -> Result<Look> {
        // Before the look that counts: whoever wakes us after this, wakes us again.
        let mut is_emptied = false;
        if self.is_sentinel() && self.serves() {
            self.empty_pipe();
            is_emptied = true;
        }
        let facts = self.node.facts();
        let Some(me) = facts.slots.iter().find(|s| s.index == self.me.index && s.version == self.me.version)
        else {
            // We have left.
            self.watched.clear();
            self.on_duty = false;
            self.listen(Ear::Deaf)?;
            self.arm(now, self.longest_sleep())?;
            return Ok(Look::Nothing);
        };
        if me.progress(now, facts.stall_after) == Progress::Overdue {
            // We run, and have not beaten: it was us who slept.
            self.be_patient(now);
        }
        if !self.is_sentinel() && !self.take_over(&facts, me) {
            let deputy = self.deputy(&facts);
            self.watch_office(&facts, deputy);
            self.on_duty = deputy == Some(self.me.index);
            self.listen(if self.on_duty { Ear::Deputy } else { Ear::Deaf })?;
            self.arm(now, self.next_look_at_sentinel(&facts))?;
            return Ok(Look::Nothing);
        }
        // One that drains stays until somebody has taken over, and leaves the wake-up to them.
        let leaves = me.intent == Intent::Draining && self.deputy(&facts).is_some();
        self.listen(if leaves { Ear::Deputy } else { Ear::Sentinel })?;
        self.on_duty = true;
        let facts = if leaves || is_emptied {
            facts
        } else {
            self.empty_pipe();
            self.node.facts()
        };
        self.watch_all(&facts);
        let undecided = self.find_causes(&facts, now);
        if undecided {
            self.arm(now, BUSY_RETRY)?;
            return Ok(Look::Later);
        }
        // Asked again where somebody is gone, whose cause may be known by now.
        let gone = facts.slots.iter().any(|s| s.liveness == Liveness::Gone);
        let facts = if gone { self.node.facts() } else { facts };
        if now < self.judge_not_before && self.only_stalls(&facts)
            || facts.next_step(Scope::Everything).is_none()
        {
            self.arm(now, self.next_look(&facts))?;
            return Ok(Look::Nothing);
        }
        match Hold::acquire(&self.node, Wait::Try, Operation::Settle) {
            Ok(hold) => {
                self.busy_since = None;
                // What comes meanwhile is looked at afterwards.
                self.arm(now, BUSY_RETRY)?;
                Ok(Look::Report(hold))
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
        let settings = self.node.inner.settings();
        if now.saturating_sub(self.due.get()) > ns(settings.stall_after / 2) {
            self.be_patient(now);
        }
    }

    fn be_patient(&mut self, now: u64) {
        self.judge_not_before = now.saturating_add(2 * ns(self.node.inner.settings().heartbeat_interval));
    }

    fn only_stalls(&self, facts: &Facts) -> bool {
        let mut patient = facts.clone();
        patient.stall_after = u64::MAX;
        patient.next_step(Scope::Everything).is_none()
    }

    /// Whether the wake-up pipe, and nothing else, has something to tell.
    fn drain_events(&mut self) -> Result<bool> {
        let mut events = Vec::with_capacity(64);
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&zero)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::io("look at the watch of a worker", e.into())),
        }
        if let Some(timer) = &self.timer {
            // Empty is what it shall be.
            let _ = rustix::io::read(timer, &mut [0; 8]);
        }
        Ok(!events.is_empty() && events.iter().all(|e| e.data.u64() == WAKE_PIPE))
    }

    fn empty_pipe(&self) {
        pipe::drain(&self.node.inner.store.wake_read, &self.node.inner.store.sink);
    }

    fn serves(&self) -> bool {
        let slot = self.node.inner.slot(self.me.index);
        slot.is_ok_and(|slot| Intent::from_code(slot.intent.load(Acquire)) == Intent::Serving)
    }

    /// Becomes the sentinel if there is none that is fit for it.
    fn take_over(&self, facts: &Facts, me: &SlotFacts) -> bool {
        let header = self.node.inner.store.region.header();
        let current = header.sentinel.load(Acquire);
        let holder = facts.slots.iter().find(|s| names(current, s) && s.role == Role::Worker);
        // After a sleep of our own no heartbeat proves anything yet.
        let stall_after = if facts.now < self.judge_not_before { u64::MAX } else { facts.stall_after };
        if holder.is_some_and(|s| s.is_fit(facts.now, stall_after)) {
            return false;
        }
        if me.intent != Intent::Serving
            && facts.slots.iter().any(|s| s.index != me.index && s.is_fit(facts.now, facts.stall_after))
        {
            // Somebody does it who has longer to live.
            return false;
        }
        // Losing the race means that somebody else has become it.
        header.sentinel.compare_exchange(current, code(self.me), AcqRel, Acquire).is_ok()
    }

    /// The first who is to take over: of those who are fit, one of the newest generation, which lives longest.
    fn deputy(&self, facts: &Facts) -> Option<u32> {
        let sentinel = sentinel_index(&self.node);
        let others = facts
            .slots
            .iter()
            .filter(|s| Some(s.index) != sentinel && s.is_fit(facts.now, facts.stall_after));
        others.max_by_key(|s| (s.generation, Reverse(s.index))).map(|s| s.index)
    }

    fn listen(&mut self, ear: Ear) -> Result<()> {
        let pipe = &self.node.inner.store.wake_read;
        let data = epoll::EventData::new_u64(WAKE_PIPE);
        let flags = match ear {
            // Only the sentinel empties it; a deputy is told of each new byte once.
            Ear::Deputy => epoll::EventFlags::IN | epoll::EventFlags::ET,
            _ => epoll::EventFlags::IN,
        };
        let done = match (self.ear, ear) {
            (before, now) if before == now => Ok(()),
            (_, Ear::Deaf) => epoll::delete(&self.epoll, pipe),
            (Ear::Deaf, _) => epoll::add(&self.epoll, pipe, data, flags),
            _ => epoll::modify(&self.epoll, pipe, data, flags),
        };
        self.ear = ear;
        done.map_err(|e| Error::io("listen to the wake-up pipe", e.into()))
    }

    /// The sentinel, and the one who takes over from it: that may have happened since, without our having been told.
    fn watch_office(&mut self, facts: &Facts, deputy: Option<u32>) {
        let (sentinel, me) = (sentinel_index(&self.node), self.me.index);
        let holds_it = |index: u32| [sentinel, deputy].contains(&Some(index)) && index != me;
        self.watched.retain(|index, _| holds_it(*index));
        for slot in facts.slots.iter().filter(|s| holds_it(s.index)) {
            self.watch(slot);
        }
    }

    fn watch_all(&mut self, facts: &Facts) {
        self.watched
            .retain(|index, w| facts.slots.iter().any(|s| s.index == *index && s.version == w.version));
        let me = self.me.index;
        for slot in facts.slots.iter().filter(|s| s.index != me) {
            self.watch(slot);
        }
    }

    fn watch(&mut self, slot: &SlotFacts) {
        if self.watched.get(&slot.index).is_some_and(|w| w.version == slot.version)
            || slot.liveness != Liveness::Alive
        {
            return;
        }
        // The descriptors are the server's first of all. Who is not watched is looked at once a second. One process in
        // many slots is somebody who wants to use them up.
        if self.watched.len() >= self.most_watched || self.watched.values().any(|w| w.pid == slot.pid) {
            return;
        }
        let Ok(pidfd) = process::open_pidfd(slot.pid) else {
            // Gone in this moment (the next look sees it), or no descriptors left (the timer stands in).
            return;
        };
        // Only now is it certain that the pidfd is of that process, and not of one that got its number.
        let still = self.node.inner.liveness(&[], slot.index, slot.version, slot.pid) == Liveness::Alive;
        if !still {
            return;
        }
        let data = epoll::EventData::new_u64(u64::from(slot.index));
        // Edges: a death is one, and the parent's asking for the status is another.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        if epoll::add(&self.epoll, &pidfd, data, flags).is_ok() {
            self.watched.insert(slot.index, Watched { version: slot.version, pid: slot.pid, pidfd });
        }
    }

    /// Asks the kernel how the dead have died. `true`: somebody may tell about one in a moment (the kernel,
    /// once its parent has asked; or its parent, see [`Node::child_exited`]), so that it is to be waited for.
    fn find_causes(&mut self, facts: &Facts, now: u64) -> bool {
        let mut block = CAUSE_BLOCK;
        let mut undecided = false;
        let unexplained = |s: &&SlotFacts| {
            s.liveness == Liveness::Gone
                && s.role != Role::Helper
                && s.exited_seq == 0
                && s.died_seq == 0
                && s.wait_status.is_none()
        };
        self.dead_since.retain(|&(index, version), _| {
            facts.slots.iter().any(|s| s.index == index && s.version == version)
        });
        for slot in facts.slots.iter().filter(unexplained) {
            let begun = clock::boot_ns();
            if let Some(watched) = self.watched.get(&slot.index).filter(|w| w.version == slot.version) {
                let tell = |status: i32| {
                    if let Ok(record) = self.node.inner.slot(slot.index) {
                        record.wait_status.store(1 << 32 | u64::from(status as u32), Release);
                    }
                };
                // Mostly known before the parent has asked, which takes as long again as all the rest.
                let state = process::pidfd_state(watched.pidfd.as_fd(), Duration::ZERO);
                if state == PidfdState::Zombie
                    && let Some(status) = process::zombie_status(slot.pid, slot.start_time)
                {
                    tell(status);
                    continue;
                }
                let state = process::pidfd_state(watched.pidfd.as_fd(), block);
                block = block.saturating_sub(Duration::from_nanos(clock::boot_ns().saturating_sub(begun)));
                if state == PidfdState::Reaped {
                    if let Some(status) = process::wait_status(watched.pidfd.as_fd()) {
                        tell(status);
                    }
                    continue;
                }
            }
            let since = *self.dead_since.entry((slot.index, slot.version)).or_insert(now);
            undecided |= clock::boot_ns().saturating_sub(since) < ns(CAUSE_PATIENCE);
        }
        undecided
    }

    /// Who has no timer of its own is woken by heartbeats, and by nothing else.
    fn longest_sleep(&self) -> Duration {
        match self.timer {
            Some(_) => LONGEST_SLEEP,
            None => LONGEST_SLEEP.max(self.node.inner.settings().heartbeat_interval),
        }
    }

    /// When the earliest heartbeat could be overdue.
    fn next_look(&self, facts: &Facts) -> Duration {
        let longest = self.longest_sleep();
        let deadlines = facts.slots.iter().filter(|s| s.liveness == Liveness::Alive);
        let earliest = deadlines.filter_map(|s| s.stall_deadline(facts.now, facts.stall_after)).min();
        let until = earliest.map_or(longest, |d| Duration::from_nanos(d.saturating_sub(facts.now)));
        let until = until.clamp(Duration::from_millis(1), longest);
        let patience = self.judge_not_before.saturating_sub(facts.now);
        if patience > 0 { until.max(Duration::from_nanos(patience)).min(longest) } else { until }
    }

    /// The others look at the sentinel a little after its heartbeat would be overdue, each at a moment of
    /// its own, so that not all want the office at once.
    fn next_look_at_sentinel(&self, facts: &Facts) -> Duration {
        let (index, longest) = (sentinel_index(&self.node), self.longest_sleep());
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
        let after = after.max(Duration::from_nanos(1));
        let spec = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(after.subsec_nanos()),
            },
        };
        timerfd_settime(timer, TimerfdTimerFlags::empty(), &spec)
            .map(|_| ())
            .map_err(|e| Error::io("set the watch's timer", io::Error::from(e)))
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

/// Slot and claim in one word: the index, and the lower half of the version.
fn code(slot: SlotRef) -> u64 {
    ((slot.version & 0xffff_ffff) << 32) | (u64::from(slot.index) + 1)
}

/// Whether a slot is the one that a sentinel's word names, and not only has its index.
pub(crate) fn names(word: u64, slot: &SlotFacts) -> bool {
    word == code(SlotRef { index: slot.index, version: slot.version })
}

fn sentinel_index(node: &Node) -> Option<u32> {
    index_of(node.inner.store.region.header().sentinel.load(Acquire))
}

/// The slot that a sentinel's word names.
fn index_of(word: u64) -> Option<u32> {
    u32::try_from(word & 0xffff_ffff).ok()?.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_woken_in_vain_again_and_again_rests() {
        const MS: u64 = 1_000_000;
        let mut looks = Looks::default();
        let mut now = 1_000 * MS;
        let mut rests = Vec::new();
        for _ in 0..8 {
            rests.push(looks.rest(now).map_or(0, |rest| rest.as_millis()));
            now += MS;
            looks.note(now, true);
        }
        assert_eq!(rests, [0, 0, 0, 0, 5, 10, 20, 20]);
        assert_eq!(looks.rest(now + 20 * MS), None, "rested");
        looks.note(now, false);
        assert_eq!(looks.rest(now), None, "there is something to do");
        for _ in 0..8 {
            now += 1_000 * MS;
            looks.note(now, true);
        }
        assert_eq!(looks.rest(now), None, "once in a while is not again and again");
    }

    #[test]
    fn the_sentinels_word_names_its_slot() {
        let slot = SlotRef { index: 7, version: 12 };
        assert_eq!(index_of(code(slot)), Some(7));
        assert_eq!(index_of(0), None);
    }
}
