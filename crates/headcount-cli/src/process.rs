//! What the kernel says of a process that something is to be done to. Hold it by a descriptor first: only then is it still
//! true when that is done.

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::OwnedFd;

/// Opens a process: its number cannot come to mean another one as long as the descriptor is used. `None`: there is none.
pub fn hold(pid: u32) -> anyhow::Result<Option<OwnedFd>> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(number) = number else { bail!("{pid} is not a process id") };
    match pidfd_open(number, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::SRCH) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot open process {pid}")),
    }
}

/// With whose rights it runs. Not by the owner of its folder in `/proc`: of a process that has changed its user that is
/// root.
pub fn user(pid: u32) -> Option<u32> {
    field(&status(pid)?, "Uid:", 1)
}

/// The process id of its parent.
pub fn parent(pid: u32) -> Option<u32> {
    field(&status(pid)?, "PPid:", 0)
}

/// The parent of this process, its parent, and so on.
pub fn ancestors() -> impl Iterator<Item = u32> {
    /// Ids can be given out again meanwhile, so that there is a circle.
    const MOST: usize = 64;
    std::iter::successors(parent(std::process::id()), |&pid| parent(pid))
        .take_while(|&pid| pid > 0)
        .take(MOST)
}

/// Whether a registry of this owner may say that a process of this user belongs to its node.
pub fn may_name(owner: u32, user: u32) -> bool {
    owner == 0 || owner == user
}

fn status(pid: u32) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/status")).ok()
}

/// Of several numbers the one at this place: real, effective, …
fn field(status: &str, name: &str, place: usize) -> Option<u32> {
    let numbers = status.lines().find_map(|line| line.strip_prefix(name))?;
    numbers.split_ascii_whitespace().nth(place)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_roots_registries_speak_for_other_users_processes() {
        assert!(may_name(0, 0) && may_name(0, 1000) && may_name(1000, 1000));
        assert!(!may_name(1000, 0) && !may_name(1000, 1001));
    }

    #[test]
    fn what_counts_is_what_it_may_do() {
        let sudo = "Name:\tsudo\nPPid:\t17\nUid:\t1000\t0\t0\t0\n";
        assert_eq!((field(sudo, "Uid:", 1), field(sudo, "PPid:", 0)), (Some(0), Some(17)));
        assert_eq!(field("Name:\tx\n", "Uid:", 1), None);
        let me = std::process::id();
        assert_eq!(user(me), Some(rustix::process::geteuid().as_raw()));
        assert_eq!(parent(me), rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get() as u32));
        assert_eq!(ancestors().next(), parent(me));
        assert!(ancestors().all(|pid| pid != me));
    }
}
