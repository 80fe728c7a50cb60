//! The process to signal: the right one, or none.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use headcount::{ErrorKind, Observer, ProcessStatus};
use headcount_cluster::regular_file;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use crate::escape::escape_path;
use crate::process;

/// A live process that is part of the node, held by a descriptor: its number cannot come to mean another one.
pub struct Master {
    pub pid: u32,
    /// Only nginx's master is known to answer one signal before it sleeps again.
    pub is_nginx: bool,
    fd: OwnedFd,
}

impl Master {
    /// Opens the process. Check what it is afterwards: only then is what you find true of this process.
    pub fn hold(pid: u32) -> anyhow::Result<Master> {
        let Some(fd) = process::hold(pid)? else {
            bail!("there is no process {pid}. Did the server end and leave its pid file behind?")
        };
        Ok(Master { pid, is_nginx: false, fd })
    }

    /// Makes sure that it is part of the node by what the kernel says: it shares a byte of the node's lock file. A
    /// registry that is shared with a container has numbers of the container's in it.
    ///
    /// A registry may be anybody's, and say anything: only root's may name another user's process, and its lock file is
    /// its own, and no link to one in which somebody else's daemon holds a lock.
    pub fn must_be_of(
        &mut self,
        observer: &Observer,
        registry: &Path,
        listed: &ProcessStatus,
    ) -> anyhow::Result<()> {
        let owner =
            std::fs::symlink_metadata(registry).with_context(|| registry.display().to_string())?.uid();
        let user = self.user().with_context(|| format!("cannot tell who owns process {}", self.pid))?;
        if !process::may_name(owner, user) {
            bail!(
                "process {} belongs to uid {user}, but the registry {} to uid {owner}: it was not signalled, since only \
                 root's registries may name processes of other users",
                self.pid,
                registry.display()
            );
        }
        match observer.is_proven(listed) {
            Ok(true) => {}
            Ok(false) => bail!(
                "process {} does not hold a lock of the registry {} and was not signalled. If the server runs in a \
                 container, run this inside it",
                self.pid,
                registry.display()
            ),
            // Whoever may not read the lock file may not signal its node's master either.
            Err(error) if error.kind() == ErrorKind::Permission => return Err(self.refused()),
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("process {} was not signalled (run headcount doctor for more)", self.pid)
                });
            }
        }
        // Reading its title reads its memory, which a process can make take for ever. A worker that calls itself the master
        // has other rights than the owner; nginx's master has the owner's.
        self.is_nginx = user == owner && has_title(self.pid);
        Ok(())
    }

    pub fn user(&self) -> Option<u32> {
        process::user(self.pid)
    }

    fn refused(&self) -> anyhow::Error {
        let owner = match self.user() {
            None => "another user".to_owned(),
            Some(0) => "root".to_owned(),
            Some(user) => format!("user {user}"),
        };
        anyhow!("you may not signal master {}, which belongs to {owner}: run this as that user", self.pid)
    }

    pub fn is_alive(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.fd.as_fd(), PollFlags::IN)];
        // A pidfd is readable when its process has ended.
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|_| fds[0].revents().is_empty())
    }

    pub fn hang_up(&self) -> anyhow::Result<()> {
        match pidfd_send_signal(&self.fd, Signal::HUP) {
            Ok(()) => Ok(()),
            Err(Errno::PERM) => Err(self.refused()),
            Err(Errno::SRCH) => bail!("master {} has just ended", self.pid),
            Err(error) => Err(error).with_context(|| format!("cannot send SIGHUP to master {}", self.pid)),
        }
    }

    /// `None`: `/proc` does not say.
    pub fn hup(&self) -> Option<Hup> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        Hup::parse(&status)
    }

    /// It sleeps, and the next HUP would wake it: it has answered all before. nginx's master blocks its signals
    /// but for the one call in which it waits for them; between taking one and answering it there is no moment
    /// in which it would look like this.
    pub fn is_at_rest(&self) -> bool {
        self.is_nginx && self.hup().is_some_and(|hup| hup.sleeps && !hup.pending && !hup.blocked)
    }
}

/// How the process stands to SIGHUP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hup {
    pub pending: bool,
    pub blocked: bool,
    pub sleeps: bool,
}

impl Hup {
    fn parse(status: &str) -> Option<Hup> {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let set = |name| u64::from_str_radix(field(name)?, 16).ok();
        let has_hup = |set: u64| set & 1 != 0;
        Some(Hup {
            pending: has_hup(set("SigPnd:")?) || has_hup(set("ShdPnd:")?),
            blocked: has_hup(set("SigBlk:")?),
            sleeps: field("State:")?.starts_with('S'),
        })
    }
}

/// Whether it calls itself nginx's master.
fn has_title(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|title| title.starts_with(b"nginx: master process"))
}

/// More than any pid file holds.
const LONGEST_PID_FILE: usize = 64;

/// The number in a pid file. Nothing else of the file is shown: it may be one that the user may not read, named to a root's
/// script.
pub fn read_pid_file(path: &Path) -> anyhow::Result<u32> {
    let shown = escape_path(path);
    let bytes = match regular_file::read_at_most(path, LONGEST_PID_FILE + 1) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
            "there is no pid file {shown}. Is the server running, and does its configuration name this file?"
        ),
        Err(error) => return Err(error).with_context(|| format!("cannot read the pid file {shown}")),
    };
    let text = std::str::from_utf8(&bytes).ok().filter(|text| text.len() <= LONGEST_PID_FILE);
    let pid = text.and_then(|text| text.trim().parse().ok());
    pid.filter(|&pid: &u32| pid > 0 && i32::try_from(pid).is_ok())
        .with_context(|| format!("{shown} is not a pid file: it contains something else than a process id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_proc() {
        let idle = "Name:\tnginx\nState:\tS (sleeping)\nSigQ:\t0/1\nSigPnd:\t0000000000000000\n\
                    ShdPnd:\t0000000000000000\nSigBlk:\t0000000000000000\nSigIgn:\t0000000040001000\n";
        assert_eq!(Hup::parse(idle), Some(Hup { pending: false, blocked: false, sleeps: true }));
        let busy = idle
            .replace("State:\tS", "State:\tR")
            .replace("SigBlk:\t0000000000000000", "SigBlk:\t0000000018016a07");
        assert_eq!(Hup::parse(&busy), Some(Hup { pending: false, blocked: true, sleeps: false }));
        let told = busy.replace("ShdPnd:\t0000000000000000", "ShdPnd:\t0000000000000001");
        assert!(Hup::parse(&told).is_some_and(|hup| hup.pending));
        assert_eq!(Hup::parse("State:\tS"), None);
    }

    #[test]
    fn what_is_no_pid_file_is_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.pid");
        for (content, pid) in
            [("4711", Some(4711)), (" 4711 \n", Some(4711)), ("root:$6$secret", None), ("", None)]
        {
            std::fs::write(&file, content).unwrap();
            match read_pid_file(&file) {
                Ok(found) => assert_eq!(Some(found), pid),
                Err(error) => assert!(pid.is_none() && !format!("{error:#}").contains("root"), "{error:#}"),
            }
        }
        std::fs::write(&file, format!("{}4711", " ".repeat(LONGEST_PID_FILE))).unwrap();
        assert!(read_pid_file(&file).is_err(), "longer than a pid file");
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]

        /// Only what is nothing but a number is a pid, and nothing of any other file is shown.
        #[test]
        fn any_bytes_are_a_pid_or_are_refused(
            bytes in proptest::string::bytes_regex("[ \\n]{0,3}[0-9]{0,11}[ \\n]{0,3}|(?s-u:.{0,80})|[-+0-9 ]{0,80}").unwrap(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("x.pid");
            std::fs::write(&file, &bytes).unwrap();
            let digits = std::str::from_utf8(&bytes).ok().map(|text| text.trim().trim_start_matches('+'));
            match read_pid_file(&file) {
                Ok(pid) => proptest::prop_assert_eq!(digits.map(|text| text.trim_start_matches('0').to_owned()), Some(pid.to_string())),
                Err(error) => {
                    let said = format!("{error:#}").replace(&file.display().to_string(), "");
                    let expected = " is not a pid file: it contains something else than a process id";
                    proptest::prop_assert_eq!(said, expected);
                }
            }
        }

        #[test]
        fn any_text_is_a_status_of_a_process_or_none(text in "((State|SigPnd|ShdPnd|SigBlk):\\PC{0,18}\n){0,6}|\\PC*") {
            let _ = Hup::parse(&text);
        }
    }
}
