//! Does faults at random to real servers, and compares what headcount says with what the kernel says. `--help` tells the
//! options; docs/reliability.md tells what was found.

mod checker;
mod deeds;
mod freezer;
mod front;
mod journal;
mod kernel;
mod life;
mod load;
mod plan;
mod server;
mod shrink;
mod summary;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use front::Front;
use kernel::Kernel;
use summary::Summary;

/// Does faults at random to real servers, and checks what headcount says of them against the kernel.
#[derive(Parser, Debug)]
struct Arguments {
    /// Determines all faults; one is chosen and printed if none is given.
    #[arg(long)]
    seed: Option<u64>,
    /// Ends after so many faults.
    #[arg(long)]
    faults: Option<u64>,
    /// Ends after so many seconds.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Which servers, in turn: lua, module, both, rust.
    #[arg(long, value_delimiter = ',', default_value = "lua,module,both,rust")]
    front: Vec<Front>,
    /// How many faults a server's life has.
    #[arg(long, default_value_t = 60)]
    length: usize,
    /// Only the life of this number.
    #[arg(long)]
    life: Option<u64>,
    /// Goes on after a violation, until so many lives had one.
    #[arg(long, default_value_t = 10)]
    failures: usize,
    /// Looks for a shorter list of faults that breaks the same promise.
    #[arg(long)]
    shrink: bool,
    /// Where the folders of lives with violations are kept.
    #[arg(long, default_value = "target/campaign")]
    keep: PathBuf,
    /// Takes the truth from /proc, as where the kernel's process events are not to be had.
    #[arg(long)]
    looks: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| testkit::wait::boot_clock() % 1_000_000_007);
    let kernel = Kernel::listen(arguments.looks);
    println!("seed {seed}; the truth comes from {}", kernel.source());
    let began = Instant::now();
    let until = began + Duration::from_secs(arguments.seconds);
    let mut summary = Summary::new(seed);
    let first = arguments.life.unwrap_or(0);
    for number in first.. {
        let enough = arguments.faults.is_some_and(|limit| summary.faults() >= limit);
        let is_over = Instant::now() >= until || enough || arguments.life.is_some_and(|only| number > only);
        if is_over || summary.failures() >= arguments.failures {
            break;
        }
        let front = arguments.front[number as usize % arguments.front.len()];
        let left = arguments.faults.map_or(u64::MAX, |limit| limit - summary.faults());
        let mut plan = plan::plan(seed, number, front, arguments.length);
        plan.steps.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let keep = arguments.keep.join(format!("{seed}-{number}"));
        let outcome = life::live(&kernel, &plan, until, &keep);
        summary.tell(number, &plan, &outcome, &keep);
        if arguments.shrink && !outcome.violations.is_empty() {
            shrink::shrink(&kernel, &plan, &outcome, &keep);
        }
        summary.add(front, outcome);
    }
    summary.print(kernel.source(), began.elapsed());
    if summary.failures() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
