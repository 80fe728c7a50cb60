//! A worker's life in nginx: the core says what is to be done when, nginx's timer and connection bring it there.

mod roles;

use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Mutex;
use std::time::Duration;

use headcount_core::{Join, Member, MemberState, Moment, Step};
use ngx::ffi;

use crate::nginx::border::entry;
use crate::nginx::connection::{Connection, is_asked_to_close};
use crate::nginx::facts;
use crate::nginx::log::{Level, log};
use crate::nginx::mutex::relock;
use crate::nginx::timer::Timer;
use crate::node::report::{log_notices, report, with_lock};
use crate::node::state::Tracked;
use roles::Roles;

/// How long a start may wait for the node lock; then the worker serves, and goes on trying.
const JOIN_WAIT: Duration = Duration::from_secs(1);

/// This process as one of its generation's, or as one that wants to be.
pub(crate) struct Life {
    member: Member,
    lock_timeout: Duration,
    heartbeat: Duration,
    timer: Timer,
    connection: Option<Connection>,
    roles: Roles,
    /// That nginx cannot tell of deaths has been said.
    complained: bool,
}

/// What this process is as a member, if it is one.
static LIFE: Mutex<Option<Life>> = Mutex::new(None);

/// Whether it is one.
pub(crate) fn is_one() -> bool {
    relock(&LIFE).is_some()
}

/// Whether this process leads in a role for which it stands by the directive. `None`: it does not stand for it.
pub(crate) fn leads(role: &str) -> Option<bool> {
    relock(&LIFE).as_ref().and_then(|life| life.roles.leads(role))
}

/// Joins with this process. Waits for the node lock a little; in vain: goes on trying while it serves.
pub(crate) fn start(tracked: &Tracked, number: Option<u32>) {
    let node = tracked.generation.node();
    let mut respawned = false;
    for child in facts::ended_children() {
        node.child_exited(child.pid, ExitStatus::from_raw(child.status));
        respawned |= child.is_predecessor;
    }
    let join = Join::worker(number).respawned(respawned);
    let mut member = Member::new(tracked.generation.clone(), join, Moment::now());
    let joined = with_lock(JOIN_WAIT, |wait| member.join(Moment::now(), wait));
    let step = joined.unwrap_or_else(|error| {
        log(Level::Error, &format!("this worker is not counted yet: {error}"));
        member.needs(Moment::now())
    });
    let timings = tracked.settings.timings;
    let mut life = Life {
        member,
        lock_timeout: timings.lock_timeout,
        heartbeat: timings.heartbeat_interval,
        timer: Timer::new(on_time),
        connection: None,
        roles: Roles::new(&tracked.settings.roles),
        complained: false,
    };
    life.follow(step);
    *relock(&LIFE) = Some(life);
}

impl Life {
    /// Does what a step asks for.
    fn follow(&mut self, step: Step) {
        report(step.transitions);
        if let Some(worker) = self.member.worker() {
            self.roles.look(worker);
        }
        log_notices(self.member.generation().node());
        if let Some(fd) = self.member.watch_fd() {
            if self.connection.is_none() {
                self.connection = Connection::new(fd.as_raw_fd(), on_watch);
            }
            let told = self.connection.as_mut().is_some_and(|connection| connection.listen(step.listen));
            if !told && !self.complained {
                let text = format!(
                    "no connection for the watch: deaths are noticed at heartbeats, every {:?}, and not at once; \
                     set worker_connections higher",
                    self.heartbeat
                );
                log(Level::Error, &text);
            }
            self.complained = !told;
        }
        if step.state == MemberState::Left {
            self.timer.stop();
        } else {
            self.timer.hold_up_exit(step.unsaid);
            self.timer.set(step.next);
        }
    }

    fn on_time(&mut self) {
        if facts::is_exiting() {
            return self.drain();
        }
        let step = self.member.on_time(Moment::now());
        self.follow(step);
    }

    fn on_readable(&mut self) {
        let step = self.member.on_readable(Moment::now());
        self.follow(step);
    }

    fn drain(&mut self) {
        let step = self.member.begin_drain(Moment::now());
        self.follow(step);
    }

    /// The last word, whichever way the process ends.
    fn leave(mut self) {
        self.timer.stop();
        if let Some(connection) = self.connection.take() {
            connection.end();
        }
        match with_lock(self.lock_timeout, |wait| self.member.leave(wait)) {
            Ok(transitions) => report(transitions),
            Err(error) => log(Level::Error, &format!("this worker will be reported as died: {error}")),
        }
        log_notices(self.member.generation().node());
    }
}

/// Leaves, if this process is a member.
pub(crate) fn leave() {
    let life = relock(&LIFE).take();
    if let Some(life) = life {
        life.leave();
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

/// This process's life, taken out for as long as it is worked with: nginx, asked for a connection, may close others
/// first, and that may call us again.
struct Taken(Option<Life>);

impl Drop for Taken {
    fn drop(&mut self) {
        // Also after a panic: the process stays a member.
        if let Some(life) = self.0.take() {
            *relock(&LIFE) = Some(life);
        }
    }
}

fn with_life(act: impl FnOnce(&mut Life)) {
    let mut taken = Taken(relock(&LIFE).take());
    if let Some(life) = &mut taken.0 {
        act(life);
    }
}

unsafe extern "C" fn on_time(_: *mut ffi::ngx_event_t) {
    entry("timer", (), || with_life(Life::on_time));
}

unsafe extern "C" fn on_watch(event: *mut ffi::ngx_event_t) {
    entry("watch", (), || {
        // SAFETY: nginx calls us with the event of our connection.
        let drains = unsafe { is_asked_to_close(event) };
        with_life(if drains { Life::drain } else { Life::on_readable });
    });
}
