//! Signals that are passed on to a command.

use nix::unistd::getpgrp;
use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal;
use rustix::termios::tcgetpgrp;

use crate::poll::Signals;

/// Those that people and service managers send to what is to end, or to be told something.
const SIGNALS: [Signal; 6] =
    [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP, Signal::USR1, Signal::USR2];

/// What was sent to this process since it began to catch signals.
pub struct PassedOn {
    caught: Vec<(Signal, Signals)>,
}

impl PassedOn {
    /// Catches them from now on, but for those that this process was told to ignore, as by `nohup`: its command does as well.
    pub fn catch() -> anyhow::Result<PassedOn> {
        let ignored = ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
        let wanted = SIGNALS.into_iter().filter(|signal| ignored >> (signal.as_raw() - 1) & 1 == 0);
        let caught = wanted.map(|signal| Ok((signal, Signals::catch(&[signal.as_raw()])?)));
        Ok(PassedOn { caught: caught.collect::<anyhow::Result<_>>()? })
    }

    /// Those that have come since this was asked last.
    pub fn come(&self) -> Vec<Signal> {
        self.caught.iter().filter(|(_, signals)| signals.came()).map(|(signal, _)| *signal).collect()
    }

    /// Readable when one has come.
    pub fn fds(&self) -> Vec<PollFd<'_>> {
        self.caught.iter().map(|(_, signals)| PollFd::new(signals, PollFlags::IN)).collect()
    }

    /// Whether the terminal has sent it, as far as can be told: then the command, which is in the same process group, has got it
    /// as well.
    pub fn is_from_terminal(&self, signal: Signal) -> bool {
        let by_key = signal == Signal::INT || signal == Signal::QUIT;
        let terminal = || std::fs::File::open("/dev/tty").ok();
        by_key
            && terminal().is_some_and(|terminal| {
                tcgetpgrp(terminal).is_ok_and(|group| group.as_raw_nonzero().get() == getpgrp().as_raw())
            })
    }
}

/// The signals that a process ignores, by its `/proc/PID/status`: bit 0 is signal 1.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_is_read_from_the_status() {
        assert_eq!(ignored("Name:\tx\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\n"), 1 | 1 << 12);
        assert_eq!(ignored(""), 0);
    }
}
