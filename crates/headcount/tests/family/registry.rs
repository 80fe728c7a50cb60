//! The registry's bytes, for tests that do what no honest process does. The offsets are those of docs/format.md.

use std::os::fd::AsFd;
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

/// The last heartbeat of a process in the first 16 slots.
pub fn heartbeat(path: &Path, pid: u32) -> &'static AtomicU64 {
    let words = words(path);
    let slot = (0..16).map(|i| (SLOTS + i * SLOT) / 8).find(|&at| words[at + 2].load(SeqCst) as u32 == pid);
    &words[slot.expect("a slot with this pid") + 8]
}
