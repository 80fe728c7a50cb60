//! What is printed: each life in a line, each violation with all that reproduces it, and the sums at the end.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::checker::{Class, Tally};
use crate::front::Front;
use crate::kernel::Source;
use crate::life::Outcome;
use crate::plan::Plan;

/// The lines of history that are printed with a violation.
const HISTORY: usize = 40;
/// Violations that are printed of each life: the others follow from them, mostly.
const MOST: usize = 8;

/// All lives together.
pub struct Summary {
    seed: u64,
    faults: BTreeMap<&'static str, u64>,
    fronts: BTreeMap<&'static str, u64>,
    classes: BTreeMap<Class, u64>,
    tally: Tally,
    lives: u64,
    failures: usize,
    /// Lives of which nothing is counted, because nothing is proven.
    blind: u64,
}

impl Summary {
    /// Nothing yet.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            faults: BTreeMap::new(),
            fronts: BTreeMap::new(),
            classes: BTreeMap::new(),
            tally: Tally::default(),
            lives: 0,
            failures: 0,
            blind: 0,
        }
    }

    /// Faults so far.
    pub fn faults(&self) -> u64 {
        self.faults.values().sum()
    }

    /// Lives with a violation.
    pub fn failures(&self) -> usize {
        self.failures
    }

    /// Prints a life.
    pub fn tell(&self, number: u64, plan: &Plan, outcome: &Outcome, keep: &Path) {
        let found = outcome.violations.len();
        let events = outcome.tally.counts.get("events").copied().unwrap_or(0);
        println!(
            "life {number}: {}, {} workers, {} faults, {events} events, {found} violations",
            plan.front, plan.workers, outcome.steps
        );
        if found == 0 {
            return;
        }
        let from = outcome.history.len().saturating_sub(HISTORY);
        for line in &outcome.history[from..] {
            println!("  {line}");
        }
        for violation in outcome.violations.iter().take(MOST) {
            println!("  {violation}");
        }
        if found > MOST {
            println!("  and {} more", found - MOST);
        }
        println!("  kept in {}", keep.display());
        println!(
            "  again: headcount-campaign --seed {} --life {number} --front {} --length {} --seconds 600",
            self.seed,
            plan.front,
            plan.steps.len()
        );
    }

    /// Adds a life.
    pub fn add(&mut self, front: Front, outcome: Outcome) {
        self.lives += 1;
        if outcome.violations.iter().any(|violation| violation.class == Class::Blind) {
            self.blind += 1;
            return;
        }
        self.failures += usize::from(!outcome.violations.is_empty());
        for (kind, n) in outcome.faults {
            *self.faults.entry(kind).or_default() += n;
            *self.fronts.entry(front.name()).or_default() += n;
        }
        for violation in outcome.violations {
            *self.classes.entry(violation.class).or_default() += 1;
        }
        self.tally.absorb(outcome.tally);
    }

    /// Prints the sums.
    pub fn print(&mut self, source: Source, took: Duration) {
        println!(
            "\n{} faults in {} lives, {:.0} s, seed {}",
            self.faults(),
            self.lives,
            took.as_secs_f64(),
            self.seed
        );
        println!("the truth came from {source}");
        for (front, n) in &self.fronts {
            println!("{n:>9}  faults on {front}");
        }
        for (kind, n) in &self.faults {
            println!("{n:>9}  {kind}");
        }
        println!("checked:");
        for (what, n) in &self.tally.counts {
            println!("{n:>9}  {what}");
        }
        histogram("the kernel's exit to the journal", &mut self.tally.to_journal);
        histogram("the kernel's exit to the callback", &mut self.tally.to_callback);
        histogram(
            "the kernel's exit to the journal while workers stood or the lock was held",
            &mut self.tally.hindered,
        );
        histogram("the end of one leader to the next, with somebody fit", &mut self.tally.without_leader);
        if self.blind > 0 {
            println!(
                "{:>9}  LIVES THAT PROVE NOTHING AND ARE NOT COUNTED: messages of the kernel were lost, or the folder was",
                self.blind
            );
        }
        if self.classes.is_empty() {
            println!("no violation");
        }
        for (class, n) in &self.classes {
            println!("{n:>9}  violations: {class}");
        }
    }
}

/// Quantiles, and how many lie below each power of ten.
fn histogram(what: &str, all: &mut [u64]) {
    if all.is_empty() {
        return;
    }
    all.sort_unstable();
    let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize] as f64 / 1e6;
    println!(
        "from {what}, {} times: p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, max {:.0} ms",
        all.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    );
    let limits = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, f64::INFINITY];
    let mut from = 0;
    for limit in limits {
        let to = all.partition_point(|&ns| ns as f64 / 1e6 <= limit);
        if to > from {
            println!("{:>9}  up to {limit} ms", to - from);
        }
        from = to;
    }
}
