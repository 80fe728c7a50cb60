//! Who a process is, in words that nobody can forge and that are never reused: and whether it is alive.
//!
//! A bare process id is neither: it is given out again, and another pid namespace gives out the same ones. So a
//! process is its id, its pid namespace, and its birth.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;

use rustix::fs::{fstat, fstatfs};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::per_process::PerProcess;
use super::process;
use crate::coded::coded;

/// The kernel's answer to "is this process alive?".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Liveness {
    /// It runs.
    Alive,
    /// It has ended.
    Gone,
    /// It cannot be told from here. Never to be taken for gone.
    Unknown(Doubt),
}

impl Liveness {
    /// The name used in C, Lua and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Liveness::Alive => "alive",
            Liveness::Gone => "gone",
            Liveness::Unknown(_) => "unknown",
        }
    }

    /// Where the namespace keeps us from telling, what the proof of membership says.
    pub(crate) fn or_else(self, is_member: impl FnOnce() -> Option<bool>) -> Liveness {
        let Liveness::Unknown(Doubt::OtherNamespace | Doubt::NamespaceUnknown) = self else { return self };
        match is_member() {
            Some(true) => Liveness::Alive,
            Some(false) => Liveness::Gone,
            None => self,
        }
    }
}

coded! {
    /// Why the kernel's answer is unknown.
    #[non_exhaustive]
    Doubt {
        /// The process lives in another pid namespace (a container, say), where its id means nothing to us.
        OtherNamespace = 1, "other_namespace";
        /// We, or the process when it joined, could not find out the own pid namespace: `/proc` is not mounted.
        NamespaceUnknown = 2, "namespace_unknown";
        /// The registry is of another boot, or `/proc` does not tell which boot this is.
        BootUnknown = 3, "boot_unknown";
        /// The kernel refused the question.
        Refused = 4, "refused";
        /// The record changed while we asked.
        Changing = 5, "changing";
    }
}

impl Doubt {
    /// The reason, to be put after "unknown: ".
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Doubt::OtherNamespace => "it runs in another pid namespace; ask from inside its container",
            Doubt::NamespaceUnknown => "its pid namespace is not known; mount /proc",
            Doubt::BootUnknown => "the registry may be of another boot; mount /proc",
            Doubt::Refused => "the kernel refused the question",
            Doubt::Changing => "its record changed during the look; look again",
        }
    }
}

/// What is special about one process among all that ever had, or will have, its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Birth {
    /// Not known, because neither pidfds nor `/proc` tell.
    Unknown,
    /// The inode number of its pidfds (Linux 6.9 and newer): unique until the next boot, in all namespaces.
    Inode(u64),
    /// When it started, in clock ticks since boot: a hundredth of a second is its grain.
    Started(u64),
}

/// In place of the birth of a process of another boot: no process of this one has it.
pub(crate) const OF_ANOTHER_BOOT: Birth = Birth::Inode(0);

impl Birth {
    /// As two words of a record.
    pub(crate) fn to_words(self) -> (u32, u64) {
        match self {
            Birth::Unknown => (0, 0),
            Birth::Inode(n) => (1, n),
            Birth::Started(n) => (2, n),
        }
    }

    pub(crate) fn from_words(kind: u32, value: u64) -> Birth {
        match kind {
            1 => Birth::Inode(value),
            2 => Birth::Started(value),
            _ => Birth::Unknown,
        }
    }
}

/// A process, whoever has its id by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    /// The inode number of its pid namespace, 0 if it is not known.
    pub(crate) namespace: u32,
    pub(crate) birth: Birth,
}

/// What there is under a process id.
enum Found {
    Nobody,
    Somebody { birth: Birth, has_ended: bool },
    Refused,
}

const BIRTH_BITS: u32 = 40;
const PID_BITS: u32 = 22;

impl Identity {
    /// This process.
    pub(crate) fn own() -> Identity {
        static OWN: PerProcess<Identity> = PerProcess::new();
        *OWN.get(|parent| {
            let pid = process::pid();
            // A child that was made with a pid namespace of its own has id 1 in it, and its parent had another.
            let namespace = parent.filter(|_| pid != 1).map_or_else(own_namespace, |p| p.namespace);
            Identity { pid, namespace, birth: birth_of(pid) }
        })
    }

    /// The parent of this process, if it is in our pid namespace.
    pub(crate) fn parent() -> Option<Identity> {
        let pid = process::parent_pid();
        let birth = (pid != 0).then(|| birth_of(pid))?;
        // It may have ended, and its id be somebody else's, between the two questions.
        (process::parent_pid() == pid).then(|| Identity { pid, namespace: Identity::own().namespace, birth })
    }

    /// The process that has this id in our pid namespace now.
    pub(crate) fn of(pid: u32) -> Identity {
        Identity { pid, namespace: Identity::own().namespace, birth: birth_of(pid) }
    }

    /// Whether the number of its pid namespace can be one at all: the kernel gives out the upper ones only.
    pub(crate) fn is_of_a_namespace(&self) -> bool {
        (0xEFFF_FFF0..0xF800_0000).contains(&self.namespace)
    }

    /// Whether both are certainly the same process.
    pub(crate) fn is(&self, other: &Identity) -> bool {
        match (self.birth, other.birth) {
            (Birth::Inode(a), Birth::Inode(b)) => a == b,
            (Birth::Started(a), Birth::Started(b)) => {
                a == b && self.pid == other.pid && self.shares_namespace(other) == Some(true)
            }
            _ => false,
        }
    }

    /// Whether its id means the same to us; `None` if that is not known.
    fn shares_namespace(&self, other: &Identity) -> Option<bool> {
        (self.namespace != 0 && other.namespace != 0).then_some(self.namespace == other.namespace)
    }

    /// Whether it is alive: exact, some microseconds.
    pub(crate) fn liveness(&self) -> Liveness {
        /// As many as the kernel can be told to give out.
        const MOST_IDS: u32 = 1 << 22;
        let own = Identity::own();
        // Where the kernel gives out such numbers: a sandbox may have others.
        let is_nowhere = self.namespace != 0 && !self.is_of_a_namespace() && own.is_of_a_namespace();
        if self.pid == 0 || self.pid > MOST_IDS || is_nowhere {
            // No process was ever called so.
            return Liveness::Gone;
        }
        let same_namespace = self.shares_namespace(&own);
        let found = find(self.pid, self.birth);
        if let Found::Somebody { birth: birth @ Birth::Inode(_), has_ended } = found
            && birth == self.birth
        {
            // No other process has it, in any namespace.
            return if has_ended { Liveness::Gone } else { Liveness::Alive };
        }
        match same_namespace {
            Some(true) => {}
            Some(false) => return Liveness::Unknown(Doubt::OtherNamespace),
            None => return Liveness::Unknown(Doubt::NamespaceUnknown),
        }
        match found {
            Found::Nobody => Liveness::Gone,
            Found::Somebody { has_ended: true, .. } => Liveness::Gone,
            // Neither pidfds nor `/proc` told; but that somebody is there, the kernel did tell.
            Found::Somebody { birth: Birth::Unknown, .. } => Liveness::Alive,
            Found::Somebody { .. } if self.birth == Birth::Unknown => Liveness::Alive,
            Found::Somebody { birth, .. } if birth == self.birth => Liveness::Alive,
            Found::Somebody { .. } => Liveness::Gone,
            Found::Refused => Liveness::Unknown(Doubt::Refused),
        }
    }

    /// In one word, good for comparing with that of a process which is known to be there: the namespace is left
    /// out, and of the birth the upper bits. 0 stands for nobody.
    pub(crate) fn to_word(self) -> u64 {
        let (kind, birth) = match self.birth {
            Birth::Inode(n) => (2, n),
            Birth::Started(n) => (1, n),
            Birth::Unknown => (0, 0),
        };
        let pid = u64::from(self.pid) & ((1 << PID_BITS) - 1);
        kind << (PID_BITS + BIRTH_BITS) | pid << BIRTH_BITS | birth & ((1 << BIRTH_BITS) - 1)
    }

    /// The process that a word names, if it is one of our pid namespace.
    pub(crate) fn from_word(word: u64) -> Identity {
        let birth = word & ((1 << BIRTH_BITS) - 1);
        Identity {
            pid: (word >> BIRTH_BITS & ((1 << PID_BITS) - 1)) as u32,
            namespace: Identity::own().namespace,
            birth: match word >> (PID_BITS + BIRTH_BITS) {
                2 => Birth::Inode(birth),
                1 => Birth::Started(birth),
                _ => Birth::Unknown,
            },
        }
    }
}

/// Whether there is a process, perhaps one that has ended and was not asked for yet; `None` if the kernel does not tell.
fn exists(pid: u32) -> Option<bool> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    match test_kill_process(pid) {
        // One that we must not signal is there.
        Ok(()) | Err(Errno::PERM) => Some(true),
        Err(Errno::SRCH) => Some(false),
        Err(_) => None,
    }
}

fn find(pid: u32, like: Birth) -> Found {
    match process::open_pidfd(pid) {
        Ok(pidfd) => Found::Somebody {
            birth: match (birth_by(&pidfd), like) {
                (Some(birth), Birth::Inode(_)) => birth,
                _ => process::start_time(pid).map_or(Birth::Unknown, Birth::Started),
            },
            has_ended: process::has_ended(pidfd.as_fd()),
        },
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::SRCH) => Found::Nobody,
            // A thread has the id, and so no process.
            Some(Errno::INVAL | Errno::NOENT) => Found::Nobody,
            // No descriptors, or a sandbox without pidfds.
            _ => match exists(pid) {
                Some(false) => Found::Nobody,
                Some(true) => Found::Somebody {
                    birth: process::start_time(pid).map_or(Birth::Unknown, Birth::Started),
                    has_ended: process::is_zombie(pid),
                },
                None => Found::Refused,
            },
        },
    }
}

fn birth_of(pid: u32) -> Birth {
    let by_pidfd = process::open_pidfd(pid).ok().and_then(|pidfd| birth_by(&pidfd));
    by_pidfd.or_else(|| process::start_time(pid).map(Birth::Started)).unwrap_or(Birth::Unknown)
}

/// `None` where all pidfds have the same inode.
fn birth_by(pidfd: &OwnedFd) -> Option<Birth> {
    /// `PID_FS_MAGIC`
    const PIDFS: i64 = 0x5049_4446;
    /// 0 while it is not known. No `OnceLock`: a child that was forked while another thread sets it would wait for ever.
    static NAMES: AtomicU8 = AtomicU8::new(0);
    let names = match NAMES.load(Relaxed) {
        0 => {
            let names = fstatfs(pidfd).is_ok_and(|fs| fs.f_type == PIDFS);
            NAMES.store(1 + u8::from(names), Relaxed);
            names
        }
        known => known == 2,
    };
    names.then(|| fstat(pidfd).ok().map(|stat| Birth::Inode(stat.st_ino))).flatten()
}

/// The inode number of the own pid namespace, 0 if it is not to be found out.
fn own_namespace() -> u32 {
    let number = |inode: u64| u32::try_from(inode).unwrap_or(0);
    if let Ok(meta) = std::fs::metadata("/proc/self/ns/pid") {
        return number(meta.ino());
    }
    let pidfd = process::open_pidfd(process::pid()).ok();
    pidfd.and_then(|fd| process::namespace_of(fd.as_fd())).map_or(0, number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_oneself_and_alive() {
        let own = Identity::own();
        assert_eq!(own.liveness(), Liveness::Alive);
        assert!(own.is(&Identity::of(process::pid())) && own.is_of_a_namespace(), "{own:?}");
        assert_eq!(Identity::from_word(own.to_word()).liveness(), Liveness::Alive);
    }

    #[test]
    fn a_child_is_alive_then_a_zombie_then_nobody() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let identity = Identity::of(child.id());
        assert_eq!(identity.liveness(), Liveness::Alive);
        child.kill().unwrap();
        let pidfd = process::open_pidfd(child.id()).unwrap();
        process::wait_for_end(pidfd.as_fd(), std::time::Duration::from_secs(10));
        assert_eq!(identity.liveness(), Liveness::Gone, "a zombie runs nothing");
        child.wait().unwrap();
        assert_eq!(identity.liveness(), Liveness::Gone);
    }

    #[test]
    fn the_same_id_at_another_time_is_somebody_else() {
        let own = Identity::own();
        let other = |birth| Identity { birth, ..own }.liveness();
        let started = process::start_time(own.pid).unwrap();
        assert_eq!(other(Birth::Started(started)), Liveness::Alive);
        assert_eq!(other(Birth::Started(started + 1)), Liveness::Gone);
        if let Birth::Inode(inode) = own.birth {
            assert_eq!(other(Birth::Inode(inode + 1)), Liveness::Gone);
        }
        assert_eq!(other(Birth::Unknown), Liveness::Alive);
    }

    #[test]
    fn of_another_namespace_nothing_is_known_but_what_is_unique_everywhere() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let gone = Identity::of(child.id());
        child.wait().unwrap();
        let elsewhere = Identity { namespace: gone.namespace + 1, ..gone };
        assert_eq!(elsewhere.liveness(), Liveness::Unknown(Doubt::OtherNamespace));
        assert_eq!(Identity { namespace: 0, ..gone }.liveness(), Liveness::Unknown(Doubt::NamespaceUnknown));
        let own = Identity::own();
        if matches!(own.birth, Birth::Inode(_)) {
            assert_eq!(Identity { namespace: own.namespace + 1, ..own }.liveness(), Liveness::Alive);
        }
    }

    #[test]
    fn a_thread_is_no_process() {
        // SAFETY: it takes no argument and cannot fail.
        let thread = std::thread::spawn(|| unsafe { libc::gettid() as u32 });
        let own = Identity { pid: thread.join().unwrap(), ..Identity::own() };
        assert_eq!(own.liveness(), Liveness::Gone);
    }
}
