//! The registry's bytes, for tests that do what no honest process does. The offsets are those of docs/format.md.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use rustix::mm::{MapFlags, ProtFlags, mmap};

const SLOTS: usize = 4096;
const SLOT: usize = 192;

/// Start and length of the mapping of a file in this process.
pub fn mapping(path: &Path) -> Option<(usize, usize)> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the list of mappings");
    let line = maps.lines().find(|l| l.ends_with(&*path.to_string_lossy()))?;
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).expect("an address");
    Some((number(start), number(end) - number(start)))
}

/// The registry as a row of words: the node's own mapping, or a new one, which is never unmapped.
pub fn words(path: &Path) -> &'static [AtomicU64] {
    let (start, len) = mapping(path).unwrap_or_else(|| {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("open the registry");
        let len = file.metadata().expect("its size").len() as usize;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let start = unsafe { mmap(std::ptr::null_mut(), len, protection, flags, file.as_fd(), 0) };
        (start.expect("map the registry") as usize, len)
    });
    // SAFETY: page-aligned, `len` bytes long, never unmapped, and only used through atomics, by everybody.
    unsafe { std::slice::from_raw_parts(start as *const AtomicU64, len / 8) }
}

/// Where the journal begins, in words.
pub fn journal(words: &[AtomicU64]) -> usize {
    let (slots, singletons) = (words[1].load(SeqCst) >> 32, words[792 / 8].load(SeqCst) & 0xffff_ffff);
    (SLOTS + slots as usize * (SLOT + 128) + singletons as usize * 192) / 8
}

/// The words of a slot.
pub fn slot(path: &Path, index: usize) -> &'static [AtomicU64] {
    let at = (SLOTS + index * SLOT) / 8;
    &words(path)[at..at + SLOT / 8]
}

/// The slot of a process, one of the first 16.
pub fn slot_of(path: &Path, pid: u32) -> &'static [AtomicU64] {
    let mut slots = (0..16).map(|index| slot(path, index));
    slots.find(|words| words[2].load(SeqCst) as u32 == pid).expect("a slot with this pid")
}

/// The last heartbeat of a process was when the machine was booted, on either clock.
pub fn silence(path: &Path, pid: u32) {
    let slot = slot_of(path, pid);
    [64 / 8, 144 / 8].iter().for_each(|&word: &usize| slot[word].store(1, SeqCst));
}

/// The word of a slot that has its pid namespace (lower half) and the kind of its birth.
pub const NAMESPACE: usize = 128 / 8;
/// The word of a slot that has its birth.
pub const BIRTH: usize = 32 / 8;
/// Added to a birth, it is nobody's here, and the process's byte in the lock file is still the same.
pub const BORN_ELSEWHERE: u64 = 1 << 40;

/// The word that names who holds the node lock. 16 others follow, which name who waits to join, and 16 with the
/// generations that they wait for.
pub const LOCK: usize = 512 / 8;

/// What the node lock and those who wait to join are called, for a process that is alive and known by its pidfd (Linux 6.9
/// and newer).
pub fn name_of(pid: u32) -> u64 {
    let process = rustix::process::Pid::from_raw(pid as i32).expect("a process id");
    let pidfd = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()).expect("a pidfd");
    let birth = rustix::fs::fstat(&pidfd).expect("its inode").st_ino;
    2 << 62 | u64::from(pid) << 40 | birth & ((1 << 40) - 1)
}

/// Whether a process shares its byte in the lock file. Asked by a child: the own locks are invisible to
/// their holder, and would be lost with the descriptor that the question takes.
pub fn is_proven(registry: &Path, pid: u32) -> bool {
    let name = name_of(pid);
    let mut asker = super::fork(|_| {
        let lock = std::fs::File::open(registry.with_extension("registry.lock")).expect("the lock file");
        let mut question = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 1 + (name & ((1 << 62) - 1)) as libc::off_t,
            l_len: 1,
            l_pid: 0,
        };
        // SAFETY: an open descriptor, and a valid structure for the kernel to read and write.
        let answer = unsafe { libc::fcntl(lock.as_raw_fd(), libc::F_GETLK, &raw mut question) };
        assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
        i32::from(question.l_type == libc::F_UNLCK as libc::c_short || question.l_pid != pid as i32)
    });
    let status = asker.wait();
    assert!(status == 0 || status == 1 << 8, "the asker: {status}");
    status == 0
}
