//! What comes next, or why it is over.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{RolloutValue, all, find, serves};
use crate::fleet::{Fleet, Host};
use crate::task::{Outcome, Target, TaskState, TaskValue};

/// What is known at one moment.
pub struct View<'a> {
    /// The hosts and their nodes.
    pub fleet: &'a Fleet,
    /// What was asked, and what became of it.
    pub tasks: &'a BTreeMap<Target, TaskValue>,
    /// Those of which nothing was heard for longer than they may take.
    pub overdue: &'a BTreeSet<Target>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Have these reload. They belong to this wave, counted from 0.
    Ask(usize, Vec<Target>),
    /// Some are about to reload, and nothing else can be done until they are through.
    Wait,
    /// Nothing is going on, and nothing may begin, for these reasons. It may pass.
    Blocked(Vec<String>),
    /// One has failed: none begins any more. Take back what nobody has begun, and wait for the others.
    Wind(Vec<Target>),
    /// It is over.
    Stop(Failure),
    /// All are through.
    Done,
}

/// Why it is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Of several the gravest.
    pub outcome: Outcome,
    /// Which nodes, and what is the matter with them.
    pub why: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why.join("; "))
    }
}

impl RolloutValue {
    /// What to do next.
    #[must_use]
    pub fn next(&self, view: &View<'_>) -> Step {
        let state = |target: &Target| view.tasks.get(target).map(|task| task.state);
        let is_under_way = |target: &&Target| {
            matches!(state(target), Some(TaskState::Asked | TaskState::Taken))
                && !view.overdue.contains(*target)
        };
        let under_way: BTreeSet<&Target> = self.targets().filter(is_under_way).collect();
        if let Some(failure) = self.failure(view) {
            let not_begun: Vec<_> =
                self.targets().filter(|target| state(target) == Some(TaskState::Asked)).cloned().collect();
            return match (not_begun.is_empty(), under_way.is_empty()) {
                (false, _) => Step::Wind(not_begun),
                (true, false) => Step::Wait,
                (true, true) => Step::Stop(failure),
            };
        }
        let mut unavailable = self.not_serving(view.fleet);
        unavailable.extend(under_way.iter().map(|target| ((*target).clone(), "reloads".to_owned())));
        for (number, wave) in self.waves.iter().enumerate() {
            let is_lost = |target: &&Target| view.fleet.hosts.get(&target.host).is_some_and(Host::is_lost);
            let is_passed_over = |target: &&Target| self.skip_lost && is_lost(target);
            let open: Vec<&Target> =
                wave.iter().filter(|t| state(t).is_none() && !is_passed_over(t)).collect();
            let is_unsettled =
                |target: &&Target| state(target).is_some() && unavailable.contains_key(*target);
            let unsettled: Vec<&Target> = wave.iter().filter(is_unsettled).collect();
            if open.is_empty() && unsettled.is_empty() {
                continue;
            }
            let (mut begin, mut why) = (Vec::new(), Vec::new());
            for target in open {
                match find(view.fleet, target) {
                    Some((host, _)) if host.is_lost() => why.push(format!("host {} is lost", target.host)),
                    None => why.push(format!("{target} is gone")),
                    Some((_, value)) if !value.reload => {
                        why.push(format!("{target}: its agent's configuration does not allow it any more"));
                    }
                    Some(_) if !view.fleet.unreadable.is_empty() => {
                        why.extend(
                            view.fleet.unreadable.keys().map(|key| format!("the key {key} cannot be read")),
                        );
                    }
                    Some(_) => {
                        // One that does not serve is counted already.
                        let more = usize::from(!unavailable.contains_key(target));
                        if unavailable.len() + more <= self.at_most {
                            unavailable.insert(target.clone(), "reloads".to_owned());
                            begin.push(target.clone());
                        }
                    }
                }
            }
            if !begin.is_empty() {
                return Step::Ask(number, begin);
            }
            if !under_way.is_empty() {
                return Step::Wait;
            }
            why.extend(unavailable.iter().map(|(target, state)| format!("{target}: {state}")));
            why.dedup();
            return Step::Blocked(why);
        }
        Step::Done
    }

    /// What has failed so far, if something has.
    fn failure(&self, view: &View<'_>) -> Option<Failure> {
        let mut failed = Vec::new();
        for target in self.targets() {
            let task = view.tasks.get(target);
            let report = task.and_then(|task| task.report.as_ref());
            let state = task.map(|task| task.state);
            // Too late is too late, whatever came then.
            if view.overdue.contains(target) {
                let is_lost = view.fleet.hosts.get(&target.host).is_some_and(Host::is_lost);
                let why = match (is_lost, state) {
                    (true, _) => "its host is lost",
                    (false, Some(TaskState::Taken)) => "its agent has not said what became of it",
                    (false, Some(TaskState::Done)) => "its agent has said too late what became of it",
                    (false, _) => "its agent has not begun it. See the log of headcount agent there",
                };
                failed.push((Outcome::TimedOut, format!("{target}: {why}")));
            } else if state == Some(TaskState::Done) {
                match report {
                    Some(report) if report.outcome == Outcome::Serving => {}
                    Some(report) => failed.push((report.outcome, format!("{target}: {}", report.text))),
                    None => failed.push((Outcome::Unknown, format!("{target}: there is no report"))),
                }
            }
        }
        let outcome = failed.iter().map(|(outcome, _)| *outcome).max_by_key(|outcome| gravity(*outcome))?;
        Some(Failure { outcome, why: failed.into_iter().map(|(_, why)| why).collect() })
    }

    /// All nodes that count and do not serve, as far as is known, with their states.
    fn not_serving(&self, fleet: &Fleet) -> BTreeMap<Target, String> {
        let does_not_count: BTreeSet<&Target> =
            self.left_out.iter().filter(|left| left.lost).map(|left| &left.target).collect();
        let mut found: BTreeMap<Target, String> = all(fleet, self.node.as_deref())
            .filter(|(_, host, value)| !host.is_here() || !serves(value))
            .map(|(at, host, value)| {
                let state = if host.is_here() { &value.state } else { "its host is lost" };
                (at.target(), state.to_owned())
            })
            .filter(|(target, _)| !does_not_count.contains(target))
            .collect();
        for target in self.targets().filter(|target| find(fleet, target).is_none()) {
            found.insert(target.clone(), "gone".to_owned());
        }
        found
    }
}

/// Which of several is told by the exit code.
fn gravity(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Refused => 3,
        Outcome::Failed | Outcome::NotAllowed => 2,
        Outcome::TimedOut | Outcome::Unknown => 1,
        Outcome::Serving => 0,
    }
}
