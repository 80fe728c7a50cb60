//! Locks on inherited descriptors: those that outlive their taker, those that make a list long, and `flock`.

use std::os::fd::RawFd;

use crate::descriptors::{Descriptor, What, inherited, zeroed};

fn lockable_files() -> Vec<Descriptor> {
    let mut all = inherited();
    all.retain(|d| matches!(d.what, What::File | What::Pipe));
    all
}

fn lockable() -> Vec<RawFd> {
    lockable_files().iter().map(|d| d.fd).collect()
}

fn lock(fd: RawFd, command: i32, kind: i32, start: i64, len: i64) -> bool {
    let mut lock: libc::flock = zeroed();
    lock.l_type = kind as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    lock.l_start = start;
    lock.l_len = len;
    // SAFETY: `lock` is a valid structure for this call.
    unsafe { libc::fcntl(fd, command, &raw mut lock) == 0 }
}

/// OFD locks on every byte that is free, and somebody who waits for every other.
pub fn open_description() -> String {
    let mut taken = 0;
    let all = lockable();
    for &fd in &all {
        for kind in [libc::F_WRLCK, libc::F_RDLCK] {
            if lock(fd, libc::F_OFD_SETLK, kind, 0, 0) {
                taken += 1;
                continue;
            }
            taken += (0..2048).filter(|&byte| lock(fd, libc::F_OFD_SETLK, kind, byte, 1)).count();
            std::thread::spawn(move || {
                lock(fd, libc::F_OFD_SETLKW, kind, 0, 1);
            });
        }
    }
    format!("{taken} locks taken on {} descriptors", all.len())
}

/// So many record locks of one byte each that whoever asks for one has to read a long list. The kernel takes ever longer
/// for each, so the rest is taken while the attack is under way.
pub fn flood() -> String {
    const LOCKS: i64 = 60_000;
    const AT_ONCE: i64 = 15_000;
    let mut files: Vec<Descriptor> = lockable_files();
    files.sort_by_key(|file| file.inode);
    files.dedup_by_key(|file| file.inode);
    // From the end, so that each finds its place at once; every second byte, so that they do not merge.
    let take = |fd: RawFd, from: i64, to: i64| {
        (from..to).rev().filter(|&i| lock(fd, libc::F_SETLK, libc::F_RDLCK, 2 * i, 1)).count()
    };
    let taken: usize = files.iter().map(|file| take(file.fd, LOCKS - AT_ONCE, LOCKS)).sum();
    let text = format!("{taken} locks taken on {} files", files.len());
    for file in files {
        std::thread::spawn(move || take(file.fd, 0, LOCKS - AT_ONCE));
    }
    text
}

/// `flock`, which is everybody's who shares the description.
pub fn whole_file() -> String {
    let all = lockable();
    // SAFETY: plain calls about a descriptor.
    let take = |fd: &&RawFd| unsafe { libc::flock(**fd, libc::LOCK_EX | libc::LOCK_NB) == 0 };
    let taken = all.iter().filter(take).count();
    for fd in all.clone() {
        std::thread::spawn(move || {
            // SAFETY: as above.
            unsafe { libc::flock(fd, libc::LOCK_EX) }
        });
    }
    format!("{taken} locks taken on {} descriptors", all.len())
}
