//! Two servers that are given one name and one registry, and start at the same moment: two nodes, each with its own workers.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use testkit::{Signal, process};

use super::Life;
use crate::checker::Class;
use crate::journal;
use crate::plan::Told;
use crate::server::Server;

const PATIENCE: Duration = Duration::from_secs(5);

impl Life<'_> {
    /// What was said before has been checked. Which of the two gets the name nobody can tell, so both are stopped in the end,
    /// and what is checked goes on with the next start.
    pub(super) fn twins(&mut self, workers: u32) {
        self.rest();
        if !self.out.violations.is_empty() {
            return;
        }
        self.stop(Told::Quit, false);
        let registry = self.server.registry();
        let mut twin = Server::twin(self.front, workers, &registry);
        let together = std::thread::scope(|scope| {
            let other = scope.spawn(|| twin.start());
            let ours = self.server.start();
            ours.and(other.join().unwrap_or_else(|_| Err("the thread broke".into())))
        });
        match (together, self.server.master(), twin.master()) {
            (Ok(()), Some(ours), Some(theirs)) => self.compare_twins(&registry, [ours, theirs]),
            (Ok(()), ..) => self.violation(Class::Hung, "one of two servers that started together is gone"),
            (Err(error), ..) => self.violation(Class::Hung, error),
        }
        for master in twin.master().into_iter().chain(self.server.master()) {
            process::send(master, Signal::QUIT);
        }
        twin.reap_until_gone();
        for line in crate::checker::bad_lines(&twin.log()) {
            self.violation(Class::Log, line);
        }
        self.ensure_gone();
        self.close_chapter();
        self.start();
    }

    fn compare_twins(&mut self, registry: &PathBuf, masters: [i32; 2]) {
        let second = registry.with_file_name("registry-2");
        let mut wrong = String::new();
        let fits = self.wait(PATIENCE, |_| {
            let kernel: BTreeSet<BTreeSet<i32>> =
                masters.iter().map(|&master| process::children(master).into_iter().collect()).collect();
            let told: Option<BTreeSet<BTreeSet<i32>>> =
                [registry, &second].into_iter().map(|path| workers_in(path)).collect();
            wrong = format!(
                "of two servers that started together, the kernel has {kernel:?}, and status {told:?}"
            );
            told.as_ref() == Some(&kernel)
        });
        if !fits {
            self.violation(Class::Status, wrong);
        }
    }
}

fn workers_in(registry: &std::path::Path) -> Option<BTreeSet<i32>> {
    let output = journal::headcount(registry, &["status", "--json"]).output().ok()?;
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let processes = status["nodes"][0]["processes"].as_array()?;
    let workers =
        processes.iter().filter(|process| process["role"] == "worker" && process["liveness"] == "alive");
    Some(workers.filter_map(|process| Some(process["pid"].as_i64()? as i32)).collect())
}
