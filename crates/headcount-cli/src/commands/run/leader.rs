//! `headcount run --as-leader`: a command that runs on whichever of several processes leads a role.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use headcount::{ErrorKind, Leader, LeaderChange, Visitor, Wait};
use headcount_report::age;
use rustix::event::{PollFd, PollFlags};

use super::args::RunArgs;
use crate::child::{Child, Variable, said};
use crate::hooks::command::end_group;
use crate::hooks::locator::Locator;
use crate::hooks::log::Log;
use crate::hooks::stop::{Stop, TICK};
use crate::outcome::{Outcome, UsageError};
use crate::poll;

/// How long to wait for a node that cannot be taken part in yet.
const PAUSE: Duration = Duration::from_secs(1);
/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

pub fn run(
    role: &str,
    args: &RunArgs,
    locator: &mut Locator,
    stop: &Stop,
    log: &Log,
) -> anyhow::Result<Outcome> {
    while let Some(path) = locator.wait(stop, log)? {
        match Visitor::enter(&path) {
            Ok(visitor) => {
                log.is_well("node");
                stand(role, args, &path, visitor, stop, log)?;
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                locator.is_missing(log);
                stop.wait(PAUSE, &mut || {})?;
            }
            // A server that starts, or has not been started since a reboot.
            Err(e) if e.is_busy() || e.kind() == ErrorKind::WrongState => {
                log.warn_once("node", e);
                stop.wait(PAUSE, &mut || {})?;
            }
            Err(e) => return Err(e).context("cannot take part in the node"),
        }
    }
    Ok(Outcome::Done)
}

/// Stands for the role until this process is to end, or the registry is another one.
fn stand(
    role: &str,
    args: &RunArgs,
    path: &Path,
    visitor: Visitor,
    stop: &Stop,
    log: &Log,
) -> anyhow::Result<()> {
    let leader = visitor.leader(role).map_err(|e| match e.kind() {
        ErrorKind::InvalidOption => UsageError(e.to_string()).into(),
        _ => anyhow::Error::from(e),
    })?;
    let settings = visitor.node().snapshot().settings;
    log.note(format_args!("standing for {role} of node {}", visitor.node().name()));
    let mut candidate = Candidate {
        args,
        log,
        leader: &leader,
        node: visitor.node().name(),
        beat: Beat {
            visitor: &visitor,
            every: (settings.heartbeat_interval / 4).min(Duration::from_millis(250)),
            last: None,
        },
        grace: args.grace.unwrap_or(GRACE).min(settings.stall_after / 4 * 3),
        tenure: None,
    };
    loop {
        candidate.beat.tend();
        let is_current = visitor.is_current();
        if stop.is_asked() || !is_current {
            if !is_current {
                log.warn(format_args!("{} was removed or replaced: {role} is given up", path.display()));
            }
            candidate.end()?;
            break;
        }
        candidate.look()?;
        candidate.sleep(stop)?;
    }
    drop(leader);
    // Otherwise it is seen to be gone.
    let _ = visitor.leave(Wait::For(PAUSE));
    Ok(())
}

/// Its heartbeat.
struct Beat<'a> {
    visitor: &'a Visitor,
    every: Duration,
    last: Option<Instant>,
}

impl Beat<'_> {
    fn tend(&mut self) {
        if self.last.is_none_or(|last| last.elapsed() >= self.every) {
            self.visitor.tend();
            self.last = Some(Instant::now());
        }
    }
}

/// From an election to the loss.
struct Tenure {
    token: u64,
    /// The command, and since when it runs.
    runs: Option<(Child, Instant)>,
    /// Otherwise it is started then.
    next: Instant,
    /// How often it has ended soon.
    failures: u32,
}

struct Candidate<'a> {
    args: &'a RunArgs,
    log: &'a Log,
    leader: &'a Leader,
    node: &'a str,
    beat: Beat<'a>,
    grace: Duration,
    tenure: Option<Tenure>,
}

impl Candidate<'_> {
    /// What is to be done now.
    fn look(&mut self) -> anyhow::Result<()> {
        let (role, now) = (self.leader.role(), Instant::now());
        match self.leader.poll() {
            Some(LeaderChange::Elected { token }) => {
                self.log.note(format_args!("leads {role} from now on (token {token})"));
                self.tenure = Some(Tenure { token, runs: None, next: now, failures: 0 });
            }
            Some(LeaderChange::GiveUp) => {
                self.end()?;
                self.leader.give_up();
                self.log.note(format_args!("gives {role} up: a worker is to lead"));
            }
            Some(LeaderChange::Lost) => {
                self.log
                    .warn(format_args!("has lost {role}: it did not run for too long, and another may lead"));
                self.end()?;
            }
            _ => {}
        }
        let Some(mut tenure) = self.tenure.take() else { return Ok(()) };
        if let Some((child, since)) = tenure.runs.take_if(|(child, _)| child.has_ended()) {
            self.ended(child, since, &mut tenure)?;
        }
        if tenure.runs.is_none() && tenure.next <= Instant::now() {
            self.start(&mut tenure);
        }
        self.tenure = Some(tenure);
        Ok(())
    }

    fn start(&self, tenure: &mut Tenure) {
        let variables: [Variable; 3] = [
            ("HEADCOUNT_NODE", Some(self.node.to_owned())),
            ("HEADCOUNT_LEADER", Some(self.leader.role().to_owned())),
            ("HEADCOUNT_LEADER_TOKEN", Some(tenure.token.to_string())),
        ];
        match Child::start(&self.args.command, &variables, true) {
            Ok(child) => {
                self.log.note(format_args!("runs the command as process {}", child.pid()));
                tenure.runs = Some((child, Instant::now()));
            }
            Err(error) => self.again(tenure, &format!("{error:#}")),
        }
    }

    /// It has ended by itself. What it has left running must not run beside the next one.
    fn ended(&mut self, child: Child, since: Instant, tenure: &mut Tenure) -> anyhow::Result<()> {
        let ran = since.elapsed();
        let how = self.bury(child)?;
        if ran > self.args.settings.backoff.longest() {
            tenure.failures = 0;
        }
        self.again(tenure, &format!("the command ended after {}: {how}", age(ran)));
        Ok(())
    }

    fn again(&self, tenure: &mut Tenure, why: &str) {
        tenure.failures = tenure.failures.saturating_add(1);
        let wait = self.args.settings.backoff.wait(tenure.failures, fastrand::f64());
        tenure.next = Instant::now() + wait;
        self.log.warn(format_args!("{why}; it is run again in {}", age(wait)));
    }

    /// Ends the command, if it runs.
    fn end(&mut self) -> anyhow::Result<()> {
        if let Some((child, _)) = self.tenure.take().and_then(|tenure| tenure.runs) {
            let how = self.bury(child)?;
            self.log.note(format_args!("ended the command: {how}"));
        }
        Ok(())
    }

    /// Ends what is left of its group, and says how it ended itself.
    fn bury(&mut self, child: Child) -> anyhow::Result<String> {
        end_group(child.group(), self.grace, &mut || self.beat.tend());
        Ok(said(child.reap()?))
    }

    fn sleep(&self, stop: &Stop) -> anyhow::Result<()> {
        let signals = PollFd::new(stop, PollFlags::IN);
        match self.tenure.as_ref().and_then(|tenure| tenure.runs.as_ref()) {
            Some((child, _)) => child.wait(&[signals], TICK),
            None => poll::wait(&mut [signals], Some(TICK)),
        }
    }
}
