//! A worker's whole life as one state machine: it joins, beats, looks after the others, drains, leaves.

mod plan;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

pub use self::plan::MemberState;
use self::plan::{Obstacle, Plan};
use crate::engine::node_lock::Wait;
use crate::engine::process::NoticeLevel;
use crate::engine::sentinel::Watch;
use crate::engine::transitions::Transitions;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Role;
use crate::generation::{Generation, Join};
use crate::sys::clock;
use crate::worker::Worker;

/// A moment on `CLOCK_BOOTTIME`, the clock of all processes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Moment {
        Moment(clock::boot_ns())
    }

    /// This many nanoseconds after the machine's start.
    #[must_use]
    pub fn from_nanos(since_boot: u64) -> Moment {
        Moment(since_boot)
    }
}

/// A worker's life, driven by its event loop.
///
/// It waits for nothing by itself, and reads no clock: the loop calls [`Member::on_time`] when [`Step::next`] has passed,
/// [`Member::on_readable`] when the descriptor is readable, and runs the transitions of the step that each of them gives.
/// The heartbeat is the only timer: a worker at rest wakes once for each.
///
/// ```no_run
/// # fn wait(fd: Option<std::os::fd::BorrowedFd>, limit: std::time::Duration) -> bool { true }
/// # fn is_told_to_stop() -> bool { true }
/// # fn main() -> headcount::Result<()> {
/// # let master = headcount::Options::new("my-server").open()?;
/// # let generation = headcount::Generation::of(master.node(), 1);
/// use headcount::{Join, Member, Moment, Wait};
///
/// let mut member = Member::new(generation, Join::worker(Some(0)), Moment::now());
/// let mut step = member.join(Moment::now(), Wait::Timeout)?;
/// while !is_told_to_stop() {
///     step.transitions.run(|t| println!("{}", t.event.kind));
///     let readable = wait(member.watch_fd(), step.next);
///     step = if readable { member.on_readable(Moment::now()) } else { member.on_time(Moment::now()) };
/// }
/// member.leave(Wait::Timeout)?.run(|t| println!("{}", t.event.kind));
/// # Ok(())
/// # }
/// ```
///
/// What goes wrong on the way is told by [`crate::Node::take_notices`].
pub struct Member {
    generation: Generation,
    join: Join,
    plan: Plan,
    worker: Option<Worker>,
    watch: Option<Watch>,
    /// The last look failed, and this is what was said of it.
    complaint: Option<String>,
}

/// What a [`Member`] has done, and what it needs next.
#[derive(Debug)]
#[must_use]
pub struct Step {
    /// To be run now, under the node lock; there may be none.
    pub transitions: Transitions,
    /// When to call [`Member::on_time`] at the latest.
    pub next: Duration,
    /// How far it has come.
    pub state: MemberState,
    /// Its descriptor is worth waiting for.
    pub listen: bool,
    /// It looks after all others, or is the first to take over from who does; or it stands for a role, or waits for a once. Where waiting for a descriptor is dear,
    /// the rest may do without: they hear of it a heartbeat later if both of these die at once.
    pub on_duty: bool,
    /// It drains, and could not say so yet: its process is not to end before the next step.
    pub unsaid: bool,
}

impl Member {
    /// One that is to join this generation.
    #[must_use]
    pub fn new(generation: Generation, join: Join, now: Moment) -> Member {
        let settings = generation.node().inner.settings();
        // A helper is shown, and that is all.
        let heartbeat = if join.role == Role::Worker { settings.heartbeat_interval } else { Duration::MAX };
        let plan = Plan::new(now.0, heartbeat, settings.lock_timeout);
        Member { generation, join, plan, worker: None, watch: None, complaint: None }
    }

    /// How far it has come.
    #[must_use]
    pub fn state(&self) -> MemberState {
        self.plan.state()
    }

    /// This process as the worker that it is, once it has joined.
    #[must_use]
    pub fn worker(&self) -> Option<&Worker> {
        self.worker.as_ref()
    }

    /// The generation that it belongs to, or is to join.
    #[must_use]
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Readable when there may be something to look at. The same from when it joins till it leaves.
    #[must_use]
    pub fn watch_fd(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(Watch::as_fd)
    }

    /// Joins, now. If that fails it may still come to it: unless its state says that it has left, go on with
    /// [`Member::needs`], and it tries again by itself.
    ///
    /// # Errors
    /// As those of [`Generation::join`].
    pub fn join(&mut self, now: Moment, wait: Wait) -> Result<Step> {
        match self.generation.join(self.join.wait(wait)) {
            Ok((worker, transitions)) => {
                let is_worker = self.join.role == Role::Worker;
                let likely_on_duty = self.join.respawn || self.join.worker_id.is_none_or(|number| number < 2);
                self.plan.joined(now.0, likely_on_duty);
                self.worker = Some(worker);
                if is_worker {
                    self.make_watch(now);
                }
                if let Some(watch) = self.watch.as_mut().filter(|_| likely_on_duty) {
                    watch.watch_sentinel();
                }
                Ok(self.step(now, transitions))
            }
            Err(error) => {
                self.plan.not_joined(now.0, obstacle(&error));
                Err(error)
            }
        }
    }

    /// What it needs next. Does nothing.
    pub fn needs(&self, now: Moment) -> Step {
        self.step(now, Transitions::none())
    }

    /// To be called when [`Step::next`] has passed. Calling it earlier does no harm.
    pub fn on_time(&mut self, now: Moment) -> Step {
        self.act(now, false)
    }

    /// To be called when the descriptor is readable.
    pub fn on_readable(&mut self, now: Moment) -> Step {
        self.act(now, true)
    }

    /// It takes no new work from now on. Said at once, or as soon as the node lock is free.
    pub fn begin_drain(&mut self, now: Moment) -> Step {
        self.plan.begin_drain(now.0);
        self.act(now, false)
    }

    /// The heartbeat and nothing else, for a loop that turns while the transitions of its last step still run: asking for
    /// the node lock would be in vain.
    pub fn only_beat(&mut self, now: Moment) -> Step {
        if let Some(worker) = self.worker.as_ref().filter(|_| self.plan.due(now.0, u64::MAX, false).beat) {
            worker.beat_at(now.0);
            self.plan.beaten(now.0);
        }
        let next = self.plan.next_beat().saturating_sub(now.0);
        Step { next: Duration::from_nanos(next), ..self.needs(now) }
    }

    /// It leaves, whatever it was about to do. Does nothing in a process that has not joined.
    ///
    /// # Errors
    /// As those of [`Worker::leave`].
    pub fn leave(&mut self, wait: Wait) -> Result<Transitions> {
        let transitions = match &self.worker {
            Some(worker) => worker.leave(wait)?,
            None => Transitions::none(),
        };
        (self.worker, self.watch) = (None, None);
        self.plan.left();
        Ok(transitions)
    }

    fn act(&mut self, now: Moment, readable: bool) -> Step {
        let due = self.plan.due(now.0, self.look_due(), readable);
        if due.join {
            return self.join_late(now);
        }
        let mut transitions = Transitions::none();
        if due.drain {
            transitions = self.say_that_it_drains(now);
        }
        if due.look && transitions.is_none() {
            self.plan.looked(now.0);
            transitions = self.look(now);
        }
        // The first heartbeat after it has said that it drains is one of its own.
        let beat = due.beat && !(due.drain && self.state() == MemberState::Draining);
        if let Some(worker) = self.worker.as_ref().filter(|_| beat) {
            // One that overslept itself, and has not beaten, judges nobody: so it reports first, and beats in its next step.
            if transitions.is_none() || !worker.is_overdue(now.0) {
                worker.beat_at(now.0);
                self.plan.beaten(now.0);
            }
        }
        self.step(now, transitions)
    }

    fn step(&self, now: Moment, transitions: Transitions) -> Step {
        Step {
            transitions,
            next: self.plan.next(now.0, self.look_due()),
            state: self.plan.state(),
            // After a failure it may stay readable for ever: the next heartbeat tries again.
            listen: self.watch.is_some() && self.complaint.is_none(),
            on_duty: self.watch.as_ref().is_some_and(Watch::is_on_duty)
                || self.plan.may_be_on_duty(now.0)
                || self.hears_calls(),
            unsaid: self.plan.is_unsaid(),
        }
    }

    fn hears_calls(&self) -> bool {
        let inner = &self.generation.node().inner;
        inner.process().hears_calls.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn join_late(&mut self, now: Moment) -> Step {
        match self.join(now, Wait::Try) {
            Ok(step) => {
                self.note(NoticeLevel::Notice, "joined late: this worker is counted from now on".to_owned());
                step
            }
            Err(error) => {
                if self.state() == MemberState::Left {
                    self.note(NoticeLevel::Error, format!("this worker is not counted: {error}"));
                }
                self.needs(now)
            }
        }
    }

    fn say_that_it_drains(&mut self, now: Moment) -> Transitions {
        let Some(worker) = &self.worker else { return Transitions::none() };
        match worker.drain(Wait::Try) {
            Ok(transitions) => {
                self.plan.drained(now.0);
                transitions
            }
            Err(error) => {
                if self.plan.not_drained(now.0, obstacle(&error)) {
                    self.note(NoticeLevel::Error, error.to_string());
                }
                Transitions::none()
            }
        }
    }

    /// Looks at what happened to the others.
    fn look(&mut self, now: Moment) -> Transitions {
        let Some(watch) = &mut self.watch else {
            self.make_watch(now);
            return Transitions::none();
        };
        match watch.process_at(now.0) {
            Ok(transitions) => {
                self.complaint = None;
                transitions
            }
            Err(error) => {
                // Somebody else holds the lock: the watch has said when to look again.
                if !error.is_busy() {
                    self.complain(&error);
                }
                Transitions::none()
            }
        }
    }

    fn make_watch(&mut self, now: Moment) {
        match self.worker.as_ref().map(|worker| worker.watch_without_timer(now.0)) {
            Some(Ok(watch)) => self.watch = Some(watch),
            Some(Err(error)) => self.complain(&error),
            None => {}
        }
    }

    /// When to look at the latest. A failure is tried again with each heartbeat, and not before.
    fn look_due(&self) -> u64 {
        match &self.watch {
            _ if self.join.role != Role::Worker => u64::MAX,
            Some(watch) if self.complaint.is_none() => watch.due(),
            _ => self.plan.next_beat(),
        }
    }

    fn complain(&mut self, error: &Error) {
        let text = error.to_string();
        if self.complaint.as_ref() != Some(&text) {
            self.note(NoticeLevel::Error, text.clone());
            self.complaint = Some(text);
        }
    }

    fn note(&self, level: NoticeLevel, text: String) {
        self.generation.node().inner.notice(level, text);
    }
}

fn obstacle(error: &Error) -> Obstacle {
    match error.kind() {
        ErrorKind::Busy | ErrorKind::LockTimeout | ErrorKind::Io => Obstacle::Passing,
        ErrorKind::Full => Obstacle::Full,
        _ => Obstacle::Lasting,
    }
}
