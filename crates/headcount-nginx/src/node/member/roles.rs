//! The roles that the directive names: each worker stands for all of them, and does nothing else about them.

use headcount_core::{Leader, LeaderChange, Wait, Worker};

use crate::nginx::log::{Level, log};

/// A worker's roles.
pub(super) struct Roles {
    /// Those that it does not stand for yet.
    wanted: Vec<String>,
    leaders: Vec<Leader>,
}

impl Roles {
    pub(super) fn new(names: &[String]) -> Roles {
        Roles { wanted: names.to_vec(), leaders: Vec::new() }
    }

    /// What there is to do, after each step of the worker's life. Never waits: what cannot be done now is tried after the next
    /// step.
    pub(super) fn look(&mut self, worker: &Worker) {
        self.wanted.retain(|role| match worker.leader_within(role, Wait::Try) {
            Ok(leader) => {
                self.leaders.push(leader);
                false
            }
            Err(error) if error.is_busy() => true,
            Err(error) => {
                log(Level::Error, &format!("this worker does not stand for the role {role}: {error}"));
                false
            }
        });
        for leader in &self.leaders {
            // Nothing is done that could not be given up at once.
            if leader.poll() == Some(LeaderChange::GiveUp) {
                leader.give_up();
            }
        }
    }

    pub(super) fn leads(&self, role: &str) -> Option<bool> {
        self.leaders.iter().find(|leader| leader.role() == role).map(Leader::is_leader)
    }
}
