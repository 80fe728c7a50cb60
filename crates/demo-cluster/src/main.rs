//! Runs three hosts and an etcd of three members, each in a network of its own on this machine, and shows what
//! `headcount cluster events` says on each host, and when.
//!
//! `make demo-cluster` builds what it needs and starts it. It owns every process, network and file that it makes, and all of them
//! go with it, however it ends.

#![forbid(unsafe_code)]

mod acts;
mod expected;
mod fleet;
mod listener;
mod screen;
mod stage;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::stage::{Failure, Stage};

const USAGE: &str = "\
usage: headcount-demo-cluster [--keep]

  --keep   keep the folder with the configurations and logs of all hosts and members";

fn main() -> ExitCode {
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            // What removes the folder looks at this.
            "--keep" => {}
            "--help" | "-h" => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            _ => {
                eprintln!("headcount-demo-cluster: unknown argument {argument}\n{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    let keep = std::env::args().any(|argument| argument == "--keep");
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        if let Err(error) = signal_hook::flag::register(signal, Arc::clone(&interrupted)) {
            eprintln!("headcount-demo-cluster: cannot catch signals: {error}");
            return ExitCode::FAILURE;
        }
    }
    // Ctrl-C reaches the members and agents as well: what then does not start is no failure of theirs.
    let played = catch_unwind(AssertUnwindSafe(|| {
        let mut stage = Stage::build(keep, Arc::clone(&interrupted))?;
        acts::play(&mut stage)
    }));
    if interrupted.load(Ordering::SeqCst) {
        eprintln!("headcount-demo-cluster: interrupted; all hosts and members are gone");
        return ExitCode::from(130);
    }
    match played {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(Failure::Interrupted)) => ExitCode::from(130),
        Ok(Err(failure)) => {
            eprintln!("headcount-demo-cluster: {failure}");
            ExitCode::FAILURE
        }
        // It has said why.
        Err(_) => ExitCode::FAILURE,
    }
}
