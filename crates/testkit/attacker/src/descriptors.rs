//! What descriptors a worker has inherited.

use std::fs;
use std::os::fd::RawFd;

/// One of them.
#[derive(Clone, Debug)]
pub struct Descriptor {
    pub fd: RawFd,
    pub what: What,
    pub target: String,
    pub inode: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Pipe,
    File,
    Timer,
    Other,
}

/// All but the first three, and but what is nginx's own business (its log, its lock file, its sockets): what can be
/// done by those can be done to any nginx.
pub fn inherited() -> Vec<Descriptor> {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let fd: RawFd = entry.file_name().to_str()?.parse().ok()?;
            let target = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
            let nginxs =
                target.ends_with(".log") || target.contains("nginx.") || target.starts_with("socket:");
            if fd < 3 || nginxs || target.starts_with("/proc") || target.starts_with("/dev") {
                return None;
            }
            let mut stat: libc::stat = zeroed();
            // SAFETY: `stat` is a valid place for the kernel to write to.
            if unsafe { libc::fstat(fd, &raw mut stat) } != 0 {
                return None;
            }
            let what = match stat.st_mode & libc::S_IFMT {
                libc::S_IFIFO => What::Pipe,
                libc::S_IFREG => What::File,
                _ if target.contains("timerfd") => What::Timer,
                _ => What::Other,
            };
            Some(Descriptor { fd, what, target, inode: stat.st_ino })
        })
        .collect()
}

/// Closes all sockets: the request that began the attack must come to its end, and who stops listening has stopped.
pub fn close_sockets() {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let socket =
        |path| fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"));
    let all = entries.filter(|entry| socket(entry.path()));
    let all: Vec<RawFd> = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for fd in all {
        // SAFETY: nobody uses it in this forked child.
        unsafe { libc::close(fd) };
    }
}

/// A C structure of zeroes.
pub fn zeroed<T: Copy>() -> T {
    // SAFETY: only used for C structures of numbers, for which zeroes are valid.
    unsafe { std::mem::zeroed() }
}

/// Clears or sets O_NONBLOCK, for everybody who shares the description.
pub fn set_blocking(fd: RawFd, blocking: bool) {
    // SAFETY: plain calls about a descriptor.
    unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        let flags = if blocking { flags & !libc::O_NONBLOCK } else { flags | libc::O_NONBLOCK };
        libc::fcntl(fd, libc::F_SETFL, flags);
    }
}
