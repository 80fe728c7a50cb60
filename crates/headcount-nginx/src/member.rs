//! A worker's life: it joins, beats, looks after the others, drains, leaves.

use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use headcount_core::{Error, ErrorKind, Generation, Join, Transitions, Wait, Watch, Worker};
use ngx::ffi;

use crate::border::entry;
use crate::connection::{Connection, is_asked_to_close};
use crate::log::{Level, log};
use crate::master::{log_notices, report, with_lock};
use crate::nginx;
use crate::state::{State, Tracked, state};
use crate::timer::Timer;

type Joined = (Worker, Transitions);

/// How long a start may wait for the node lock; then the worker serves, and goes on trying.
const JOIN_WAIT: Duration = Duration::from_secs(1);
const DRAIN_WAIT: Duration = Duration::from_millis(50);
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// Until another worker ends, asking is in vain.
const FULL_PAUSE: Duration = Duration::from_secs(1);
/// The first two workers are sentinel and deputy; the others look after them a little later, since where many start at
/// once each would delay the rest of them.
const WATCH_LATER: Duration = Duration::from_millis(250);

/// This process as one of its generation's.
pub(crate) struct Member {
    worker: Worker,
    is_draining: bool,
    tracked: Tracked,
    watch: Option<Watch>,
    connection: Option<Connection>,
    beat: Timer,
    soon: Timer,
    /// Until when to try to say that it drains.
    drain_until: Option<Instant>,
    complained: Option<String>,
}

/// A worker that could not join yet.
pub(crate) struct Waiting {
    tracked: Tracked,
    number: Option<u32>,
    respawned: bool,
    soon: Timer,
    pause: Duration,
}

/// Joins with this process. Waits for the node lock a little; in vain: goes on trying while it serves.
pub(crate) fn start(tracked: Tracked, number: Option<u32>) {
    let mut respawned = false;
    for child in nginx::ended_children() {
        tracked.generation.node().child_exited(child.pid, ExitStatus::from_raw(child.status));
        respawned |= child.is_predecessor;
    }
    let joined = with_lock(JOIN_WAIT, |wait| join(&tracked.generation, number, respawned, wait));
    log_notices(tracked.generation.node());
    match joined {
        Ok(member) => begin(tracked, number, respawned, member),
        Err(error) => {
            log(Level::Error, &format!("this worker is not counted yet: {error}"));
            if may_pass(&error) {
                let waiting =
                    Waiting { tracked, number, respawned, soon: Timer::new(on_soon), pause: SHORTEST_PAUSE };
                waiting.soon.set(waiting.pause);
                state().waiting = Some(waiting);
            }
        }
    }
}

fn join(generation: &Generation, number: Option<u32>, respawned: bool, wait: Wait) -> Result<Joined, Error> {
    generation.join(Join::worker(number).respawned(respawned).wait(wait))
}

/// Whether a later attempt may succeed.
fn may_pass(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Busy | ErrorKind::LockTimeout | ErrorKind::Full | ErrorKind::Io)
}

fn begin(tracked: Tracked, number: Option<u32>, respawned: bool, (worker, transitions): Joined) {
    report(transitions);
    let (beat, soon) = (Timer::new(on_beat), Timer::new(on_soon));
    beat.set(tracked.settings.heartbeat);
    let mut member = Member {
        worker,
        is_draining: false,
        tracked,
        watch: None,
        connection: None,
        beat,
        soon,
        drain_until: None,
        complained: None,
    };
    member.make_watch();
    let at_once = respawned || number.is_none_or(|n| n < 2);
    if at_once {
        member.listen();
    } else {
        member.soon.set(WATCH_LATER);
    }
    state().member = Some(member);
}

impl Member {
    fn make_watch(&mut self) {
        let watch = match self.worker.watch() {
            Ok(watch) => watch,
            Err(error) => return self.complain(&error),
        };
        self.connection = Connection::new(watch.as_raw_fd(), on_watch);
        self.watch = Some(watch);
    }

    /// Has nginx tell when there is something to look at. Without that, each heartbeat looks.
    fn listen(&mut self) {
        let told = self.connection.as_mut().is_some_and(|connection| connection.listen(true));
        if !told && self.complained.is_none() {
            let text = format!(
                "no connection for the watch: deaths are noticed at heartbeats, every {:?}, and not at once; \
                 set worker_connections higher",
                self.tracked.settings.heartbeat
            );
            log(Level::Warn, &text);
            self.complained = Some(text);
        }
    }

    /// Looks at what happened to the others.
    fn settle(&mut self) {
        let Some(watch) = &mut self.watch else { return self.make_watch() };
        match watch.process() {
            Ok(transitions) => {
                report(transitions);
                if self.complained.take().is_some() {
                    self.listen();
                }
            }
            // The descriptor becomes readable again by itself.
            Err(error) if error.is_busy() => {}
            Err(error) => {
                self.complain(&error);
                // It may stay readable for ever: the next heartbeat tries again.
                if let Some(connection) = &mut self.connection {
                    connection.listen(false);
                }
            }
        }
        log_notices(self.worker.node());
    }

    fn complain(&mut self, error: &Error) {
        let text = error.to_string();
        if self.complained.as_ref() != Some(&text) {
            log(Level::Error, &text);
            self.complained = Some(text);
        }
    }

    /// It drains: said at once, or as soon as the node lock is to be had.
    fn drain(&mut self) {
        if self.is_draining {
            return;
        }
        let until =
            *self.drain_until.get_or_insert_with(|| Instant::now() + self.tracked.settings.lock_timeout);
        match self.worker.drain(Wait::For(DRAIN_WAIT)) {
            Ok(transitions) => {
                self.is_draining = true;
                report(transitions);
                // From now on it is judged by its heartbeats again: they go on for as long as anything keeps it.
                self.worker.beat();
            }
            Err(error) if may_pass(&error) && Instant::now() < until => {
                // It would be out of order to leave before that; leaving takes the same lock.
                self.soon.hold_up_exit(true);
                self.soon.set(SHORTEST_PAUSE);
                return;
            }
            Err(error) => {
                self.is_draining = true;
                self.complain(&error);
            }
        }
        self.soon.hold_up_exit(false);
        log_notices(self.worker.node());
    }

    fn beat(&mut self) {
        self.worker.beat();
        if nginx::is_exiting() {
            self.drain();
        }
        let is_told = self.complained.is_none() && self.connection.is_some();
        if !is_told {
            self.settle();
        }
        self.beat.set(self.tracked.settings.heartbeat);
    }

    fn soon(&mut self) {
        if nginx::is_exiting() {
            self.drain();
        }
        self.listen();
    }

    /// The last word, whichever way the process ends.
    fn leave(mut self) {
        self.beat.stop();
        self.soon.stop();
        if let Some(connection) = self.connection.take() {
            connection.end();
        }
        self.watch = None;
        match with_lock(self.tracked.settings.lock_timeout, |wait| self.worker.leave(wait)) {
            Ok(transitions) => report(transitions),
            Err(error) => log(Level::Error, &format!("this worker will be reported as died: {error}")),
        }
        log_notices(self.worker.node());
    }
}

impl Waiting {
    fn again(mut self, state: &mut State) -> Option<(Tracked, Option<u32>, bool, Joined)> {
        if nginx::is_exiting() {
            return None;
        }
        match join(&self.tracked.generation, self.number, self.respawned, Wait::Try) {
            Ok(joined) => {
                log(Level::Notice, "joined late: this worker is counted from now on");
                return Some((self.tracked, self.number, self.respawned, joined));
            }
            Err(error) if may_pass(&error) => {
                let is_full = error.kind() == ErrorKind::Full;
                self.pause = if is_full { FULL_PAUSE } else { (self.pause * 3 / 2).min(LONGEST_PAUSE) };
                self.soon.set(self.pause);
                state.waiting = Some(self);
            }
            Err(error) => log(Level::Error, &format!("this worker is not counted: {error}")),
        }
        None
    }
}

/// Leaves, if this process is a member.
pub(crate) fn leave() {
    let mut state = state();
    let member = state.member.take();
    let waiting = state.waiting.take();
    drop(state);
    if let Some(waiting) = waiting {
        waiting.soon.stop();
    }
    if let Some(member) = member {
        member.leave();
    }
}

/// A process that does not serve. nginx gives it no hook to leave by; that it is gone is noticed.
pub(crate) fn start_helper(tracked: &Tracked) {
    match with_lock(JOIN_WAIT, |wait| tracked.generation.join(Join::helper().wait(wait))) {
        Ok((_, transitions)) => report(transitions),
        Err(error) => log(Level::Notice, &format!("a helper is not shown: {error}")),
    }
    log_notices(tracked.generation.node());
}

/// This process's membership, taken out of the state for as long as it is worked with: nginx, asked for a connection,
/// may close others first, whose access log reads our variables, and so the state.
struct Taken(Option<Member>);

impl Taken {
    fn member(&mut self) -> Option<&mut Member> {
        self.0.as_mut()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // Also after a panic: the process stays a member.
        if let Some(member) = self.0.take() {
            state().member = Some(member);
        }
    }
}

fn take_member() -> Taken {
    Taken(state().member.take())
}

unsafe extern "C" fn on_beat(_: *mut ffi::ngx_event_t) {
    entry("heartbeat", (), || {
        if let Some(member) = take_member().member() {
            member.beat();
        }
    });
}

unsafe extern "C" fn on_soon(_: *mut ffi::ngx_event_t) {
    entry("timer", (), || {
        if let Some(member) = take_member().member() {
            return member.soon();
        }
        let mut state = state();
        let Some(waiting) = state.waiting.take() else { return };
        let joined = waiting.again(&mut state);
        drop(state);
        if let Some((tracked, number, respawned, joined)) = joined {
            begin(tracked, number, respawned, joined);
        }
    });
}

unsafe extern "C" fn on_watch(event: *mut ffi::ngx_event_t) {
    entry("watch", (), || {
        // SAFETY: nginx calls us with the event of our connection.
        let drains = unsafe { is_asked_to_close(event) };
        if let Some(member) = take_member().member() {
            if drains { member.drain() } else { member.settle() }
        }
    });
}
