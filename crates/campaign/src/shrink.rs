//! Looks for a shorter list of faults that breaks the same promise. What depends on the moment may not come again: then the
//! list stays as it was.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::kernel::Kernel;
use crate::life::{Outcome, live};
use crate::plan::{Plan, Step};

/// In all.
const LIMIT: Duration = Duration::from_secs(600);
/// What happened once may need some luck to happen again.
const TRIES: usize = 3;

/// Shrinks, and prints what is left.
pub fn shrink(kernel: &Kernel, plan: &Plan, outcome: &Outcome, keep: &Path) {
    let until = Instant::now() + LIMIT;
    let Some(class) = outcome.violations.first().map(|violation| violation.class) else { return };
    let breaks = |steps: &[Step]| {
        let plan = Plan { steps: steps.to_vec(), ..plan.clone() };
        (0..TRIES).any(|_| {
            let again = live(kernel, &plan, until, &keep.join("shrunk"));
            again.violations.iter().any(|violation| violation.class == class)
        })
    };
    let mut steps: Vec<Step> = plan.steps.iter().take(outcome.steps).cloned().collect();
    let mut size = steps.len().div_ceil(2);
    while size > 0 && Instant::now() < until {
        let mut at = 0;
        while at < steps.len() && Instant::now() < until {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + size).min(steps.len()));
            if breaks(&fewer) {
                steps = fewer;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    println!("  shrunk from {} faults to {}:", outcome.steps, steps.len());
    for step in &steps {
        println!("    {}, then {} ms{}", step.fault, step.pause, if step.rest { ", then rest" } else { "" });
    }
}
