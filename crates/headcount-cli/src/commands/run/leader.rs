//! `headcount run --as-leader`: a command that runs on whichever of several processes leads a role.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use headcount::{ErrorKind, Leader, LeaderChange, Visitor, Wait};

use rustix::event::{PollFd, PollFlags};

use super::args::RunArgs;
use super::duty::{self, Duty, Tenure};
use crate::hooks::locator::Locator;
use crate::hooks::log::Log;
use crate::hooks::stop::{Stop, TICK};
use crate::outcome::{Outcome, UsageError};

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
        duty: Duty {
            command: &args.command,
            backoff: args.settings.backoff,
            grace: args.grace.unwrap_or(GRACE).min(settings.stall_after / 4 * 3),
            log,
        },
        leader: &leader,
        node: visitor.node().name(),
        beat: Beat {
            visitor: &visitor,
            every: (settings.heartbeat_interval / 4).min(Duration::from_millis(250)),
            last: None,
        },
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

struct Candidate<'a> {
    duty: Duty<'a>,
    leader: &'a Leader,
    node: &'a str,
    beat: Beat<'a>,
    tenure: Option<Tenure>,
}

impl Candidate<'_> {
    /// What is to be done now.
    fn look(&mut self) -> anyhow::Result<()> {
        let (role, log) = (self.leader.role(), self.duty.log);
        match self.leader.poll() {
            Some(LeaderChange::Elected { token }) => {
                log.note(format_args!("leads {role} from now on (token {token})"));
                self.tenure = Some(Tenure::new(token));
            }
            Some(LeaderChange::GiveUp) => {
                self.end()?;
                self.leader.give_up();
                log.note(format_args!("gives {role} up: a worker is to lead"));
            }
            Some(LeaderChange::Lost) => {
                log.warn(format_args!("has lost {role}: it did not run for too long, and another may lead"));
                self.end()?;
            }
            _ => {}
        }
        let Some(tenure) = &mut self.tenure else { return Ok(()) };
        let (token, node) = (tenure.token, self.node);
        let variables = || {
            vec![
                ("HEADCOUNT_NODE", Some(node.to_owned())),
                ("HEADCOUNT_LEADER", Some(role.to_owned())),
                ("HEADCOUNT_LEADER_TOKEN", Some(token.to_string())),
            ]
        };
        let beat = &mut self.beat;
        self.duty.look(tenure, variables, &mut || beat.tend())
    }

    /// Ends the command, if it runs.
    fn end(&mut self) -> anyhow::Result<()> {
        let (tenure, beat) = (self.tenure.take(), &mut self.beat);
        self.duty.end(tenure, &mut || beat.tend())
    }

    fn sleep(&self, stop: &Stop) -> anyhow::Result<()> {
        duty::wait(self.tenure.as_ref(), &mut [PollFd::new(stop, PollFlags::IN)], TICK)
    }
}
