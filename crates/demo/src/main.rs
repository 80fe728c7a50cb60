//! Runs a real nginx through its life, and shows each report as it comes.
//!
//! `make demo` builds what it needs and starts it. It owns every process and file that it makes, and removes
//! them at the end, even when it is interrupted.

#![forbid(unsafe_code)]

mod acts;
mod clock;
mod failure;
mod journal;
mod log;
mod options;
mod report;
mod screen;
mod server;
mod stage;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::failure::Failure;
use crate::options::Options;
use crate::screen::Screen;
use crate::stage::Stage;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args_os().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{}", options::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("headcount-demo: {message}\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Interrupted) => {
            eprintln!("headcount-demo: interrupted; the server has been stopped and its files removed");
            ExitCode::from(130)
        }
        Err(failure) => {
            eprintln!("headcount-demo: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .map_err(|error| Failure::io("register a signal handler", &error))?;
    }
    let mut stage = Stage::build(options, Screen::new(), interrupted)?;
    let played = acts::play(&mut stage);
    if matches!(played, Err(Failure::Unexpected(_) | Failure::Other(_))) {
        stage.show_log_end();
    }
    played
}
