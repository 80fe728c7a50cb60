//! The process to signal: the right one, or none.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

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
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let Some(number) = number else { bail!("{pid} is not a process id") };
        let fd = match pidfd_open(number, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(Errno::SRCH) => {
                bail!("there is no process {pid}. Did the server end and leave its pid file behind?")
            }
            Err(error) => return Err(error).with_context(|| format!("cannot open process {pid}")),
        };
        let title = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        Ok(Master { pid, is_nginx: title.starts_with(b"nginx: master process"), fd })
    }

    /// Makes sure that it is part of the node by what the kernel says: it holds a lock in the node's lock file. A
    /// registry that is shared with a container has numbers of the container's in it.
    ///
    /// A registry may be anybody's, and say anything: only root's may name another user's process, and its lock file is
    /// its own, and no link to one in which somebody else's daemon holds a lock.
    pub fn must_be_of(&self, registry: &Path) -> anyhow::Result<()> {
        let file = lock_path(registry);
        let owner =
            std::fs::symlink_metadata(registry).with_context(|| registry.display().to_string())?.uid();
        let found = std::fs::symlink_metadata(&file).with_context(|| file.display().to_string())?;
        if found.file_type().is_symlink() || found.uid() != owner {
            bail!(
                "{} is a symbolic link, or its owner is not the registry's: process {} was not signalled (run \
                 headcount doctor for more)",
                file.display(),
                self.pid
            );
        }
        let user = self.user().with_context(|| format!("cannot tell who owns process {}", self.pid))?;
        if !may_name(owner, user) {
            bail!(
                "process {} belongs to uid {user}, but the registry {} to uid {owner}: it was not signalled, since only \
                 root's registries may name processes of other users",
                self.pid,
                registry.display()
            );
        }
        let locks = std::fs::read_to_string("/proc/locks").context("cannot read /proc/locks")?;
        if !holds_lock(&locks, found.ino(), self.pid) {
            bail!(
                "process {} does not hold a lock of the registry {} and was not signalled. If the server runs in a \
                 container, run this inside it",
                self.pid,
                registry.display()
            );
        }
        Ok(())
    }

    /// With whose rights it runs. Not by the owner of its folder in `/proc`: of a process that has changed its user
    /// that is root.
    fn user(&self) -> Option<u32> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        effective_user(&status)
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
            Err(Errno::PERM) => {
                let owner = std::fs::metadata(format!("/proc/{}", self.pid)).map_or_else(
                    |_| "another user".to_owned(),
                    |meta| if meta.uid() == 0 { "root".to_owned() } else { format!("user {}", meta.uid()) },
                );
                bail!(
                    "you may not signal master {}, which belongs to {owner}: run this as that user",
                    self.pid
                )
            }
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

fn lock_path(registry: &Path) -> PathBuf {
    let mut name = registry.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// Whether a line such as `3: POSIX  ADVISORY  WRITE 4711 00:1a:5678 64 64` says so. By the inode alone, since some
/// file systems show another device there than they give to stat; a stranger with this pid and a lock on another
/// file of this number is not to be expected.
fn holds_lock(locks: &str, inode: u64, pid: u32) -> bool {
    locks.lines().any(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        // `->` in the second place: it waits for the lock.
        let [_, "POSIX", _, _, holder, file, ..] = words[..] else { return false };
        let number = file.rsplit(':').next().and_then(|n| n.parse().ok());
        holder.parse() == Ok(pid) && number == Some(inode)
    })
}

/// Whether a registry of this owner may say that a process of this user is its master.
fn may_name(owner: u32, user: u32) -> bool {
    owner == 0 || owner == user
}

/// The second of the numbers in `Uid:`, in what `/proc` says of a process's status.
fn effective_user(status: &str) -> Option<u32> {
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    ids.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The number in a pid file.
pub fn read_pid_file(path: &Path) -> anyhow::Result<u32> {
    let text = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
            "there is no pid file {}. Is the server running, and does its configuration name this file?",
            path.display()
        ),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read the pid file {}", path.display()));
        }
    };
    let pid = text.parse().ok().filter(|&pid: &u32| pid > 0 && i32::try_from(pid).is_ok());
    pid.with_context(|| {
        let start: String = text.chars().take(20).collect();
        format!("{} is not a pid file: it contains {start:?}, not a process id", path.display())
    })
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
    fn who_holds_a_lock() {
        let locks = "1: POSIX  ADVISORY  WRITE 4711 00:1a:5678 64 64\n\
                     1: -> POSIX  ADVISORY  WRITE 4712 00:1a:5678 64 64\n\
                     2: FLOCK  ADVISORY  WRITE 4713 00:1a:5678 0 EOF\n";
        assert!(holds_lock(locks, 5678, 4711));
        for (inode, pid) in [(5679, 4711), (5678, 4712), (5678, 4713), (5678, 471)] {
            assert!(!holds_lock(locks, inode, pid), "{inode} {pid}");
        }
    }

    #[test]
    fn a_stranger_is_no_master() {
        let folder = std::env::temp_dir().join(format!("headcount-cli-stranger-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let registry = folder.join("x.registry");
        std::fs::write(&registry, "").unwrap();
        std::fs::write(lock_path(&registry), "").unwrap();
        let error = Master::hold(std::process::id()).unwrap().must_be_of(&registry).unwrap_err().to_string();
        assert!(error.contains("was not signalled"), "{error}");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_link_to_a_strangers_lock_makes_nobody_a_master() {
        let folder = std::env::temp_dir().join(format!("headcount-cli-link-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let registry = folder.join("x.registry");
        std::fs::write(&registry, "").unwrap();
        // A daemon's pid file, on which it has a lock.
        let daemons = std::fs::File::create(folder.join("daemon.pid")).unwrap();
        rustix::fs::fcntl_lock(&daemons, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        std::os::unix::fs::symlink("daemon.pid", lock_path(&registry)).unwrap();
        let daemon = Master::hold(std::process::id()).unwrap();
        let error = daemon.must_be_of(&registry).unwrap_err().to_string();
        assert!(error.contains("is a symbolic link"), "{error}");
        std::fs::remove_file(lock_path(&registry)).unwrap();
        std::fs::rename(folder.join("daemon.pid"), lock_path(&registry)).unwrap();
        daemon.must_be_of(&registry).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn only_roots_registries_speak_for_other_users_processes() {
        assert!(may_name(0, 0) && may_name(0, 1000) && may_name(1000, 1000));
        assert!(!may_name(1000, 0) && !may_name(1000, 1001));
        // Real and effective user differ: what counts is what it may do.
        assert_eq!(effective_user("Name:\tsudo\nUid:\t1000\t0\t0\t0\n"), Some(0));
        assert_eq!(effective_user("Name:\tx\n"), None);
    }
}
