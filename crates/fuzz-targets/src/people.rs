//! Processes that a registry may name. A corpus is kept for other days and other machines, so it has stand-ins for the living:
//! this process, its parent, a child. Any other number is most likely of nobody.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::room;

/// The pids of the stand-ins: the highest there can be, which the kernel gives to nobody on a machine with fewer processes.
pub(crate) const FIRST_STAND_IN: u32 = (1 << 22) - 16;

/// A living process as a registry names it.
#[derive(Clone, Copy)]
pub(crate) struct Person {
    pub(crate) pid: u32,
    /// The inode of its pidfds.
    pub(crate) birth: u64,
}

impl Person {
    fn of(pid: u32) -> Person {
        let birth = i32::try_from(pid).ok().and_then(Pid::from_raw).and_then(|pid| {
            let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
            Some(rustix::fs::fstat(fd.as_fd()).ok()?.st_ino)
        });
        Person { pid, birth: birth.unwrap_or(0) }
    }

    /// In one word: see docs/format.md.
    pub(crate) fn word(self) -> u64 {
        2 << 62 | u64::from(self.pid) << 40 | self.birth & ((1 << 40) - 1)
    }
}

/// This process, its parent, and a child.
pub(crate) fn living() -> &'static [Person; 3] {
    static LIVING: OnceLock<[Person; 3]> = OnceLock::new();
    LIVING.get_or_init(|| {
        [std::process::id(), std::os::unix::process::parent_id(), room::keeper()].map(Person::of)
    })
}

/// Who stands behind a pid of a corpus; `None`: nobody in particular.
pub(crate) fn behind(pid: u32) -> Option<Person> {
    living().get(pid.checked_sub(FIRST_STAND_IN)? as usize).copied()
}

/// The inode of this process's pid namespace, as a registry has it.
pub(crate) fn namespace() -> u32 {
    std::fs::metadata("/proc/self/ns/pid").map_or(0, |meta| meta.ino() as u32)
}

/// The boot that we are in, as a registry has it.
pub(crate) fn boot_id() -> [u64; 2] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let value = u128::from_str_radix(&digits, 16).unwrap_or(0);
    [(value >> 64) as u64, value as u64]
}
