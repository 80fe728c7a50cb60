//! Exactly once: a test takes from the ledger what the contract promises, and then nothing may be left.

use std::fmt::Debug;

use crate::model;
use crate::report::{Counts, Kind, Report, Reports};

/// The reports of a run that nobody has asked for yet.
#[derive(Debug)]
pub struct Ledger {
    all: Reports,
    left: Vec<Report>,
}

impl Ledger {
    /// Opens the books over events that have a callback; their counts are checked one by one against
    /// a model that replays them.
    #[track_caller]
    pub fn new(all: Reports) -> Self {
        if let Err(broken) = model::check(&all) {
            panic!("{broken}\nall reports:\n{all}");
        }
        Self::unchecked(all)
    }

    /// The same without the model: for reports of the seed's interface, which counts differently.
    pub fn unchecked(all: Reports) -> Self {
        let left = all
            .0
            .iter()
            .filter(|r| !r.callback.starts_with("note:") && r.callback != "on_event")
            .cloned()
            .collect();
        Self { all, left }
    }

    /// Everything, taken or not.
    pub fn all(&self) -> &Reports {
        &self.all
    }

    /// Takes all of one kind and generation.
    pub fn take(&mut self, kind: Kind, generation: u64) -> Vec<Report> {
        self.take_if(|r| r.callback == kind.callback() && r.generation() == generation)
    }

    /// Takes all of one callback by its name.
    pub fn take_called(&mut self, callback: &str) -> Vec<Report> {
        self.take_if(|r| r.callback == callback)
    }

    /// Takes whatever fits.
    pub fn take_if(&mut self, mut fits: impl FnMut(&Report) -> bool) -> Vec<Report> {
        let (taken, left) = std::mem::take(&mut self.left).into_iter().partition(|r| fits(r));
        self.left = left;
        taken
    }

    /// Takes the only one of its kind and generation.
    #[track_caller]
    pub fn one(&mut self, kind: Kind, generation: u64) -> Report {
        let mut taken = self.take(kind, generation);
        if taken.len() != 1 {
            self.fail(&format!(
                "{} of generation {generation} must be reported once, and was {} times",
                kind.name(),
                taken.len()
            ));
        }
        taken.remove(0)
    }

    /// Takes the only one, which must carry these counts.
    #[track_caller]
    pub fn one_with(&mut self, kind: Kind, generation: u64, counts: Counts) -> Report {
        let report = self.one(kind, generation);
        self.same(&format!("counts of {report}"), &report.counts(), &counts);
        report
    }

    /// Takes all of one kind and generation, whose `mine` must be exactly this series in this order.
    #[track_caller]
    pub fn series(
        &mut self,
        kind: Kind,
        generation: u64,
        mine: impl IntoIterator<Item = i64>,
    ) -> Vec<Report> {
        let taken = self.take(kind, generation);
        let got: Vec<i64> = taken.iter().map(|r| r.int("mine").unwrap_or(-1)).collect();
        let expected: Vec<i64> = mine.into_iter().collect();
        self.same(&format!("`mine` of each {} of generation {generation}", kind.name()), &got, &expected);
        taken
    }

    /// Every worker of a generation that came by `cause`: one to `workers`, each value once.
    #[track_caller]
    pub fn starts(&mut self, generation: u64, workers: i64, cause: &str) -> Vec<Report> {
        let taken = self.series(Kind::WorkerStarted, generation, 1..=workers);
        for report in &taken {
            self.same(&format!("cause of {report}"), &report.cause(), &cause);
            self.same(&format!("runner of {report}"), &report.runner, &report.pid());
        }
        let mut ids: Vec<i64> = taken.iter().filter_map(|r| r.int("worker_id")).collect();
        ids.sort_unstable();
        self.same("worker ids", &ids, &(0..workers).collect());
        taken
    }

    /// Every worker of a generation leaving gracefully, and the generation's end, told apart from a
    /// node's stop by `next`.
    #[track_caller]
    pub fn graceful_end(&mut self, generation: u64, workers: i64, next: bool) -> Report {
        let draining = self.take(Kind::WorkerDraining, generation);
        self.distinct_pids(&draining, workers);
        for report in &draining {
            self.same(&format!("runner of {report}"), &report.runner, &report.pid());
        }
        let order: Vec<(i32, u64)> = draining.iter().map(|r| (r.pid(), r.at)).collect();
        let exits = self.exits(generation, workers, next);
        for exit in &exits {
            if !order.iter().any(|&(pid, at)| pid == exit.pid() && at < exit.at) {
                self.fail(&format!("left without having drained first: {exit}"));
            }
        }
        self.end(generation, next)
    }

    /// The same on TERM and INT, where nobody drains.
    #[track_caller]
    pub fn fast_end(&mut self, generation: u64, workers: i64, next: bool) -> Report {
        self.exits(generation, workers, next);
        self.end(generation, next)
    }

    /// `worker_exit`, mine = W..1.
    #[track_caller]
    pub fn exits(&mut self, generation: u64, workers: i64, next: bool) -> Vec<Report> {
        let exits = self.series(Kind::WorkerExited, generation, (1..=workers).rev());
        self.distinct_pids(&exits, workers);
        for report in &exits {
            let said = report.int("next").is_some();
            self.same(&format!("whether there is a next in {report}"), &said, &next);
        }
        exits
    }

    /// `generation_exit` once, after the last worker of it, mine = 0.
    #[track_caller]
    pub fn end(&mut self, generation: u64, next: bool) -> Report {
        let end = self.one(Kind::GenerationEnded, generation);
        self.same(&format!("mine of {end}"), &end.int("mine"), &Some(0));
        let said = end.int("next").is_some();
        self.same(&format!("whether there is a next in {end}"), &said, &next);
        let after = |r: &&Report| r.kind().is_some() && r.generation() == generation && r.at > end.at;
        if let Some(late) = self.all.0.iter().find(after) {
            self.fail(&format!("{late}\nwas reported after its generation's end: {end}"));
        }
        end
    }

    /// So many reports, each about another process.
    #[track_caller]
    pub fn distinct_pids(&self, reports: &[Report], n: i64) {
        let mut pids: Vec<i32> = reports.iter().map(Report::pid).collect();
        pids.sort_unstable();
        pids.dedup();
        if pids.len() as i64 != n || reports.len() as i64 != n {
            let what = reports.first().map_or("these", |r| r.callback.as_str());
            self.fail(&format!("{what}: {n} processes once each, but {} reports on {pids:?}", reports.len()));
        }
    }

    /// Takes all of one kind and generation: as many as there may be, but no process twice.
    #[track_caller]
    pub fn distinct_per_pid(&mut self, kind: Kind, generation: u64) -> Vec<Report> {
        let taken = self.take(kind, generation);
        self.distinct_pids(&taken, taken.len() as i64);
        taken
    }

    /// Everything has been taken: nothing was reported twice, and nothing that must not be.
    #[track_caller]
    pub fn nothing_else(&self) {
        if !self.left.is_empty() {
            self.fail(&format!("reported beyond the contract:\n{}", Reports(self.left.clone())));
        }
    }

    /// Equality whose failure shows the whole run.
    #[track_caller]
    pub fn same<T: PartialEq + Debug + ?Sized>(&self, what: &str, got: &T, expected: &T) {
        if got != expected {
            self.fail(&format!("{what}: {got:?}, but the contract says {expected:?}"));
        }
    }

    /// A claim whose failure shows the whole run.
    #[track_caller]
    pub fn holds(&self, what: &str, truth: bool) {
        if !truth {
            self.fail(&format!("does not hold: {what}"));
        }
    }

    /// Fails the test with the whole run.
    #[track_caller]
    pub fn fail(&self, why: &str) -> ! {
        panic!("{why}\nall reports:\n{}", self.all)
    }
}
