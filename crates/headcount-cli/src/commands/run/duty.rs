//! A command that runs while this process leads a role: started when it is elected, again if it ends, and ended when the role is lost.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use headcount_report::age;
use rustix::event::PollFd;

use crate::child::{Child, Variable, said};
use crate::hooks::backoff::Backoff;
use crate::hooks::command::end_group;
use crate::hooks::log::Log;
use crate::poll;

/// What is to run, and how.
pub struct Duty<'a> {
    pub command: &'a [OsString],
    /// Between two starts, if it ends by itself.
    pub backoff: Backoff,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    pub log: &'a Log,
}

/// From an election to the loss.
pub struct Tenure {
    pub token: u64,
    /// The command, and since when it runs.
    runs: Option<(Child, Instant)>,
    /// Otherwise it is started then.
    next: Instant,
    /// How often it has ended soon.
    failures: u32,
}

impl Tenure {
    pub fn new(token: u64) -> Tenure {
        Tenure { token, runs: None, next: Instant::now(), failures: 0 }
    }
}

impl Duty<'_> {
    /// Starts the command if it does not run. `tick` is called again and again while this waits for an end.
    pub fn look(
        &self,
        tenure: &mut Tenure,
        variables: impl FnOnce() -> Vec<Variable>,
        tick: &mut dyn FnMut(),
    ) -> anyhow::Result<()> {
        if let Some((child, since)) = tenure.runs.take_if(|(child, _)| child.has_ended()) {
            self.ended(child, since, tenure, tick)?;
        }
        if tenure.runs.is_none() && tenure.next <= Instant::now() {
            match Child::start(self.command, &variables(), true) {
                Ok(child) => {
                    self.log.note(format_args!("runs the command as process {}", child.pid()));
                    tenure.runs = Some((child, Instant::now()));
                }
                Err(error) => self.again(tenure, &format!("{error:#}")),
            }
        }
        Ok(())
    }

    /// It has ended by itself. What it has left running must not run beside the next one.
    fn ended(
        &self,
        child: Child,
        since: Instant,
        tenure: &mut Tenure,
        tick: &mut dyn FnMut(),
    ) -> anyhow::Result<()> {
        let ran = since.elapsed();
        let how = self.bury(child, tick)?;
        if ran > self.backoff.longest() {
            tenure.failures = 0;
        }
        self.again(tenure, &format!("the command ended after {}: {how}", age(ran)));
        Ok(())
    }

    fn again(&self, tenure: &mut Tenure, why: &str) {
        tenure.failures = tenure.failures.saturating_add(1);
        let wait = self.backoff.wait(tenure.failures, fastrand::f64());
        tenure.next = Instant::now() + wait;
        self.log.warn(format_args!("{why}; it is run again in {}", age(wait)));
    }

    /// Ends the command, if it runs.
    pub fn end(&self, tenure: Option<Tenure>, tick: &mut dyn FnMut()) -> anyhow::Result<()> {
        if let Some((child, _)) = tenure.and_then(|tenure| tenure.runs) {
            let how = self.bury(child, tick)?;
            self.log.note(format_args!("ended the command: {how}"));
        }
        Ok(())
    }

    /// Ends what is left of its group, and says how it ended itself.
    fn bury(&self, child: Child, tick: &mut dyn FnMut()) -> anyhow::Result<String> {
        end_group(child.group(), self.grace, tick);
        Ok(said(child.reap()?))
    }
}

/// Waits for the end of the command, if it runs, or until one of these is ready.
pub fn wait(tenure: Option<&Tenure>, others: &mut [PollFd<'_>], limit: Duration) -> anyhow::Result<()> {
    match tenure.and_then(|tenure| tenure.runs.as_ref()) {
        Some((child, _)) => child.wait(others, limit),
        None => poll::wait(others, Some(limit)),
    }
}
