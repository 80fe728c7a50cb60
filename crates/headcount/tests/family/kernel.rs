//! What the kernel can be made to show one process and those that it forks: other mounts, another boot, another time.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::{fork, is_root};

/// Why a test cannot mount anything, if it cannot.
pub fn no_mounts() -> Option<&'static str> {
    match (is_root(), root_is_a_mount_point()) {
        (false, _) => Some("only root can mount"),
        (_, false) => {
            Some("/ is no mount point, as in a plain chroot: what a test mounts would show outside")
        }
        _ => None,
    }
}

/// Whether what a child mounts can be kept from everybody else: in a plain chroot, the mount that all is in has no name.
fn root_is_a_mount_point() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(4) == Some("/"))
}

/// In a child: from here on it has mounts of its own.
fn own_mounts() {
    let (nothing, none) = (std::ptr::null(), std::ptr::null());
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: plain system calls with strings that outlive them; the new mount namespace is this process's own.
    let answers = unsafe {
        [libc::unshare(libc::CLONE_NEWNS), libc::mount(nothing, c"/".as_ptr(), nothing, flags, none)]
    };
    assert_eq!(answers, [0; 2], "mounts of its own: {}", std::io::Error::last_os_error());
}

fn path(path: &Path) -> CString {
    CString::new(path.to_str().expect("a path")).expect("no zero")
}

/// In a child: a file system of its own at this folder.
pub fn mount_tmpfs(folder: &Path, read_only: bool, size: &str) {
    own_mounts();
    let (target, options) = (path(folder), CString::new(format!("size={size},mode=755")).expect("no zero"));
    let flags = if read_only { libc::MS_RDONLY } else { 0 };
    let (tmpfs, options) = (c"tmpfs".as_ptr(), options.as_ptr().cast());
    // SAFETY: as above.
    let answer = unsafe { libc::mount(tmpfs, target.as_ptr(), tmpfs, flags, options) };
    assert_eq!(answer, 0, "mount a file system: {}", std::io::Error::last_os_error());
}

/// In a child: the kernel says that this is another boot. `folder`: for a file.
pub fn another_boot(folder: &Path) {
    own_mounts();
    let file = folder.join("boot_id");
    std::fs::write(&file, "01234567-89ab-cdef-0123-456789abcdef\n").expect("write");
    let (file, target) = (path(&file), c"/proc/sys/kernel/random/boot_id");
    let (from, none) = (file.as_ptr(), std::ptr::null());
    // SAFETY: as above.
    let answer = unsafe { libc::mount(from, target.as_ptr(), none, libc::MS_BIND, none.cast()) };
    assert_eq!(answer, 0, "mount a file: {}", std::io::Error::last_os_error());
}

/// A time at which the machine has been up for longer, by so many seconds, but was not awake for longer.
pub struct Later(File);

impl Later {
    /// `None`: the kernel knows no such thing, or does not let us.
    pub fn by(seconds: u32) -> Option<Later> {
        let mut maker = fork(|line| {
            // SAFETY: a plain system call about the children that this process could have.
            let answer = unsafe { libc::unshare(libc::CLONE_NEWTIME) };
            let set = || std::fs::write("/proc/self/timens_offsets", format!("boottime {seconds} 0\n"));
            line.say(if answer == 0 && set().is_ok() { "made" } else { "refused" });
            line.hear();
            0
        });
        let made = maker.hear().as_deref() == Some("made");
        let file = File::open(format!("/proc/{}/ns/time_for_children", maker.pid())).ok();
        maker.kill();
        file.filter(|_| made).map(Later)
    }

    /// In a process with one thread: it is that time, as if the machine had been suspended just now.
    pub fn begin(&self) {
        let fd = self.0.as_raw_fd();
        // SAFETY: a plain system call about this process; it takes no memory.
        let answer = unsafe { libc::setns(fd, libc::CLONE_NEWTIME) };
        assert_eq!(answer, 0, "another time: {}", std::io::Error::last_os_error());
    }

    /// The same for a worker that is told to `sleep`.
    pub fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// By the number that it has in a forked child.
    pub fn begin_by(number: i32) {
        // SAFETY: as in `begin`.
        let answer = unsafe { libc::setns(number, libc::CLONE_NEWTIME) };
        assert_eq!(answer, 0, "another time: {}", std::io::Error::last_os_error());
    }
}
