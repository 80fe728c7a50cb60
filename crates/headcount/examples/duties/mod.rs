//! What only one worker of the server does: it schedules (a role), migrates (once while the node lives) and writes a report (under
//! a lock). Each prints what it does, by which process and when, in nanoseconds since boot.

use std::fmt::Arguments;
use std::thread::sleep;
use std::time::{Duration, Instant};

use headcount::{Leader, LeaderChange, NamedLock, Once, OnceScope, Wait, Worker};
use nix::time::{ClockId, clock_gettime};

use crate::master::Failure;

/// A scheduler that runs in one of the workers.
pub struct Scheduler {
    role: Leader,
    /// Of the tenure that this worker is in.
    token: Option<u64>,
    due: Instant,
}

impl Scheduler {
    const EVERY: Duration = Duration::from_millis(50);

    pub fn stand(worker: &Worker) -> headcount::Result<Scheduler> {
        let role = worker.leader("scheduler")?;
        say(format_args!("stands role={}", role.role()));
        Ok(Scheduler { role, token: None, due: Instant::now() })
    }

    /// After each step of the worker's loop. Gives how long the loop may sleep.
    pub fn step(&mut self) -> Option<Duration> {
        match self.role.poll() {
            Some(LeaderChange::Elected { token }) => self.start(token),
            Some(LeaderChange::GiveUp) => {
                self.stop();
                self.role.give_up();
            }
            Some(LeaderChange::Lost) => self.stop(),
            _ => {}
        }
        self.token?;
        if Instant::now() >= self.due {
            self.due = Instant::now() + Scheduler::EVERY;
            self.run_jobs();
        }
        Some(self.due.saturating_duration_since(Instant::now()))
    }

    fn run_jobs(&self) {
        let from = now();
        // `None` from the instant in which another worker is elected. The token goes to whatever the jobs write to.
        if let Some(token) = self.role.token() {
            say(format_args!("jobs token={token} from={from}"));
        }
    }

    fn start(&mut self, token: u64) {
        say(format_args!("elected token={token}"));
        (self.token, self.due) = (Some(token), Instant::now());
    }

    fn stop(&mut self) {
        if let Some(token) = self.token.take() {
            say(format_args!("stopped token={token}"));
        }
    }

    /// This worker ends. What it had is given up when this is dropped, after the scheduler has stopped.
    pub fn leave(mut self) {
        self.stop();
    }
}

/// A migration that runs once while the node lives, on the worker that comes first. False: another worker is at it, and this one asks
/// again after its next step.
pub fn migrate(worker: &Worker) -> headcount::Result<bool> {
    let once = worker.once(OnceScope::Node, "migration-7", |attempt| {
        if let Some(last) = attempt.last {
            say(format_args!("the attempt before ended: {last}"));
        }
        pretend_to_work("migration-7", attempt.number)
    })?;
    Ok(match once {
        Once::Done | Once::AlreadyDone => true,
        Once::Running { .. } => false,
        Once::Failed { attempts, error } => {
            eprintln!("the migration failed {attempts} times: {error:?}");
            // The next call tries again, up to three times.
            error.is_none()
        }
    })
}

/// As `migrate`, for each load of the configuration.
pub fn warm_up(worker: &Worker) -> headcount::Result<bool> {
    let once = worker
        .once(OnceScope::Generation, "warm-up", |attempt| pretend_to_work("warm-up", attempt.number))?;
    Ok(!matches!(once, Once::Running { .. } | Once::Failed { error: Some(_), .. }))
}

fn pretend_to_work(what: &str, attempt: u32) -> Result<(), Failure> {
    say(format_args!("begun once={what} attempt={attempt}"));
    sleep(Duration::from_millis(20));
    say(format_args!("finished once={what} attempt={attempt}"));
    Ok(())
}

/// A report that one worker at a time writes. Who cannot have the lock soon is told who has it.
pub fn write_report(lock: &NamedLock) -> headcount::Result<()> {
    let guard = lock.acquire(Wait::For(Duration::from_millis(200)))?;
    let (token, before) = (guard.token(), guard.abandoned_by().unwrap_or(0));
    say(format_args!("entered lock={} token={token} abandoned_by={before}", lock.name()));
    sleep(Duration::from_millis(5));
    say(format_args!("left lock={} token={token}", lock.name()));
    Ok(())
}

/// One write for one line, so that those of several processes are not mixed.
fn say(what: Arguments<'_>) {
    println!("{what} by={} at={}", std::process::id(), now());
}

fn now() -> u64 {
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    since_boot.as_nanos() as u64
}
