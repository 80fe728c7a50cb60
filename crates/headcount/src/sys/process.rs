//! Asking the kernel about a process, and how it ended.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};

pub(crate) use super::own_pid::pid;

/// The parent's process id; 0 when it is outside of the pid namespace.
pub(crate) fn parent_pid() -> u32 {
    rustix::process::getppid().map_or(0, |p| p.as_raw_nonzero().get() as u32)
}

/// The id of the parent of a process; `None` where `/proc` does not tell.
pub(crate) fn parent_of(pid: u32) -> Option<u32> {
    // Field 4.
    fields(&read_stat(pid)?)?.nth(1)?.parse().ok()
}

/// The children of a process; `None` where `/proc` does not tell, or it is not there.
pub(crate) fn children(pid: u32) -> Option<Vec<u32>> {
    // Those that its other threads have forked are in their lists: servers fork in the first one.
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    list.split_ascii_whitespace().map(|child| child.parse().ok()).collect()
}

/// The start time of a process in clock ticks since boot. Together with the pid it names a process
/// uniquely until the next boot; `None` when there is no such process or `/proc` does not tell.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    parse_start_time(&read_stat(pid)?)
}

/// Whether a process has ended, and its parent has not asked for its status yet. `false` where `/proc` does not tell.
pub(crate) fn is_zombie(pid: u32) -> bool {
    read_stat(pid)
        .is_some_and(|stat| fields(&stat).and_then(|mut f| f.next()).is_some_and(|s| s == "Z" || s == "X"))
}

/// Whether a process is on its way out: none of its threads runs anything of its own any more. `false` where `/proc` does
/// not tell.
pub(crate) fn is_ending(pid: u32) -> bool {
    const PF_EXITING: u64 = 4;
    // One whose first thread has ended may go on with others, as long as it likes: those are asked, too. Who has more of them
    // is not worth the time.
    const MOST_THREADS: usize = 1024;
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let mut flags = threads.flatten().map(|thread| parse_flags(&read_stat_at(&thread.path().join("stat"))?));
    let ends = |flags: Option<u64>| flags.is_none_or(|flags| flags & PF_EXITING != 0);
    let mut asked = flags.by_ref().take(MOST_THREADS).peekable();
    asked.peek().is_some() && asked.all(ends) && flags.next().is_none()
}

/// Whether a process was sent SIGKILL, and has not got round to it. `false` where `/proc` does not tell.
pub(crate) fn is_killed(pid: u32) -> bool {
    const KILL: u64 = 1 << (libc::SIGKILL - 1);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending =
        |line: &str| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")).map(str::to_owned);
    let mut masks = status.lines().filter_map(pending);
    masks.any(|mask| u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & KILL != 0))
}

/// Whether this process has begun a session, and has not only been born into one.
pub(crate) fn leads_a_session() -> bool {
    // Not rustix's: in a container the leader may be outside of the pid namespace and so be 0, which its `Pid` cannot be.
    // SAFETY: asks for a number, of the own process.
    u32::try_from(unsafe { libc::getsid(0) }).is_ok_and(|leader| leader == pid())
}

fn read_stat(pid: u32) -> Option<Vec<u8>> {
    read_stat_at(Path::new(&format!("/proc/{pid}/stat")))
}

fn read_stat_at(path: &Path) -> Option<Vec<u8>> {
    use std::io::Read;
    // Longer than any; and one read is what `std::fs::read` would need seven for: a joining worker has others wait.
    let mut stat = vec![0; 2048];
    let length = std::fs::File::open(path).ok()?.read(&mut stat).ok()?;
    stat.truncate(length);
    Some(stat)
}

/// The fields of `/proc/PID/stat` from the third on, the state. The second, the command, may itself contain spaces and
/// parentheses: so they are counted from its end.
fn fields(stat: &[u8]) -> Option<impl Iterator<Item = &str>> {
    let end = stat.iter().rposition(|&b| b == b')')?;
    Some(std::str::from_utf8(stat.get(end + 1..)?).ok()?.split_ascii_whitespace())
}

fn parse_flags(stat: &[u8]) -> Option<u64> {
    // Field 9.
    fields(stat)?.nth(6)?.parse().ok()
}

/// The wait status of a process that has ended and whose parent has not asked for it yet. Told to those who might trace
/// it, a sibling of the same user among them; to others it reads as 0. So `None` also stands for "exited with 0".
/// `pidfd` is what it was known by: as long as that says that it was not reaped, its id is nobody else's.
pub(crate) fn zombie_status(pidfd: BorrowedFd<'_>, pid: u32) -> Option<i32> {
    let status = parse_zombie(&read_stat(pid)?)?;
    (pidfd_state(pidfd, Duration::ZERO) == PidfdState::Zombie).then_some(status)
}

fn parse_zombie(stat: &[u8]) -> Option<i32> {
    let mut fields = fields(stat)?;
    // Fields 3 and 52.
    let is_zombie = fields.next()? == "Z";
    fields.nth(48)?.parse().ok().filter(|&status| is_zombie && status != 0)
}

fn parse_start_time(stat: &[u8]) -> Option<u64> {
    let mut fields = fields(stat)?;
    // Field 3 is the state; the start time is field 22.
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// How many descriptors this process may have open.
pub(crate) fn descriptor_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX))
}

/// Opens a descriptor that becomes readable when the process ends.
pub(crate) fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// What a pidfd says right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PidfdState {
    Running,
    /// Ended, and its parent has not asked for its status yet.
    Zombie,
    /// Ended and gone: the wait status can be asked for.
    Reaped,
}

/// What has come of `events` within `limit`.
fn look(pidfd: BorrowedFd<'_>, events: PollFlags, limit: Duration) -> rustix::io::Result<PollFlags> {
    let mut fds = [PollFd::from_borrowed_fd(pidfd, events)];
    poll(&mut fds, Some(&Timespec::try_from(limit).unwrap_or_default()))?;
    Ok(fds[0].revents())
}

/// Whether the process has ended.
pub(crate) fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    look(pidfd, PollFlags::IN, Duration::ZERO).is_ok_and(|events| !events.is_empty())
}

/// Waits at most `limit` for the process to end.
pub(crate) fn wait_for_end(pidfd: BorrowedFd<'_>, limit: Duration) {
    let begun = Instant::now();
    // A signal is no reason to stop waiting.
    while look(pidfd, PollFlags::IN, limit.saturating_sub(begun.elapsed())) == Err(rustix::io::Errno::INTR) {}
}

/// Waits at most `limit` for the process to be gone from its parent's books, and says how far it is.
pub(crate) fn pidfd_state(pidfd: BorrowedFd<'_>, limit: Duration) -> PidfdState {
    let look = |events, limit| look(pidfd, events, limit).unwrap_or(PollFlags::empty());
    let now = look(PollFlags::IN, Duration::ZERO);
    if now.is_empty() {
        return PidfdState::Running;
    }
    if now.contains(PollFlags::HUP) {
        return PidfdState::Reaped;
    }
    // A parent asks within some ten microseconds, then forks a replacement: who has gone to sleep meanwhile is likely to
    // be woken on its processor, behind that. So awake at first, and giving way to whoever has something to do.
    const AWAKE: Duration = Duration::from_micros(250);
    let begun = Instant::now();
    while begun.elapsed() < AWAKE.min(limit) {
        if look(PollFlags::empty(), Duration::ZERO).contains(PollFlags::HUP) {
            return PidfdState::Reaped;
        }
        std::thread::yield_now();
    }
    // No event is asked for, so only the hang-up, which comes with the reaping, ends this wait.
    if !limit.is_zero() && look(PollFlags::empty(), limit).contains(PollFlags::HUP) {
        return PidfdState::Reaped;
    }
    PidfdState::Zombie
}

/// `struct pidfd_info` in its first published size.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ids: [u32; 8],
    exit_code: i32,
}
const _: () = assert!(size_of::<PidfdInfo>() == 64 && std::mem::offset_of!(PidfdInfo, exit_code) == 60);

/// The inode number of the process's pid namespace. `None` before Linux 6.11, and for those of others.
pub(crate) fn namespace_of(pidfd: BorrowedFd<'_>) -> Option<u64> {
    /// `PIDFD_GET_PID_NAMESPACE`
    const GET_PID_NAMESPACE: libc::c_ulong = 0xFF05;
    // SAFETY: the request takes no argument, and gives a new descriptor or -1.
    let namespace = unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_PID_NAMESPACE as _, 0) };
    if namespace < 0 {
        return None;
    }
    // SAFETY: the kernel has just given it to us, so it is nobody else's to close.
    let namespace = unsafe { OwnedFd::from_raw_fd(namespace) };
    rustix::fs::fstat(&namespace).ok().map(|stat| stat.st_ino)
}

const PIDFD_GET_INFO: libc::c_ulong = 0xC040_FF0B;
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// The wait status of a process that ended, also of one that is no child of ours.
///
/// `None` where the kernel does not tell: before Linux 6.15, or while the parent has not asked yet.
pub(crate) fn wait_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the request carries the size of the structure (64 bytes), which is what `info` has;
    // the kernel writes no further than that.
    let answer = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    (answer == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}

/// Whether the kernel tells how a process ended, tried on a child that ends at once. `None` where no child can be made.
pub(crate) fn tells_exits() -> Option<bool> {
    const CODE: libc::c_int = 7;
    // SAFETY: the child does nothing but what follows.
    let child = match unsafe { libc::fork() } {
        -1 => return None,
        // SAFETY: it may be called after the fork of a threaded process, and runs nothing of the parent's.
        0 => unsafe { libc::_exit(CODE) },
        child => child,
    };
    // A zombie until we wait for it: its number is nobody else's meanwhile.
    let pidfd = u32::try_from(child).ok().and_then(|pid| open_pidfd(pid).ok());
    let child = Pid::from_raw(child)?;
    // Which child it was is known, and how it ended is asked otherwise.
    let _ = retry_on_intr(|| waitpid(Some(child), WaitOptions::empty()));
    Some(pidfd.and_then(|fd| wait_status(fd.as_fd())) == Some(CODE << 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_survives_hostile_command_names() {
        let line = b"7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 424242 1 1 1";
        assert_eq!(parse_start_time(line), Some(424_242));
    }

    #[test]
    fn a_zombie_has_no_start_time() {
        let line = b"7 (a) Z 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 424242 1 1 1";
        assert_eq!(parse_start_time(line), None);
    }

    #[test]
    fn own_start_time_is_known() {
        assert!(start_time(pid()).is_some());
    }

    #[test]
    fn how_a_zombie_ended_is_known_before_its_parent_asks() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = open_pidfd(child.id()).unwrap();
        assert_eq!(zombie_status(pidfd.as_fd(), child.id()), None, "it lives");
        child.kill().unwrap();
        wait_for_end(pidfd.as_fd(), Duration::from_secs(10));
        assert_eq!(zombie_status(pidfd.as_fd(), child.id()), Some(libc::SIGKILL));
        child.wait().unwrap();
        assert_eq!(zombie_status(pidfd.as_fd(), child.id()), None, "it is nobody");
    }

    #[test]
    fn one_whose_first_thread_has_ended_is_not_ending() {
        let script = format!(
            "import ctypes, threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n\
             ctypes.CDLL(None).syscall({}, 0)",
            libc::SYS_exit
        );
        let Ok(mut child) = std::process::Command::new("python3").args(["-c", &script]).spawn() else {
            return eprintln!("skipped: no python3");
        };
        let first_has_ended = || is_zombie(child.id());
        let begun = Instant::now();
        while !first_has_ended() && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(first_has_ended() && !is_ending(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn one_that_has_ended_is_ending() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        wait_for_end(open_pidfd(child.id()).unwrap().as_fd(), Duration::from_secs(10));
        assert!(is_ending(child.id()) && !is_ending(pid()));
        child.wait().unwrap();
    }

    #[test]
    fn one_that_was_killed_before_it_could_run_is_killed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(!is_killed(child.id()));
        let pid = Pid::from_raw(child.id() as i32).unwrap();
        // One that stands is killed all the same, and one that is traced or frozen is not yet: it is met in between or not.
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let begun = Instant::now();
        while !is_killed(child.id()) && !is_ending(child.id()) {
            assert!(begun.elapsed() < Duration::from_secs(10));
        }
        child.wait().unwrap();
        assert!(!is_killed(child.id()));
    }

    #[test]
    fn a_stranger_tells_how_it_ended() {
        let mut child = std::process::Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        let pidfd = open_pidfd(child.id()).unwrap();
        child.wait().unwrap();
        assert_eq!(pidfd_state(pidfd.as_fd(), Duration::from_secs(1)), PidfdState::Reaped);
        // Kernels before 6.15 say nothing; what must not happen is a wrong answer.
        assert!(matches!(wait_status(pidfd.as_fd()), None | Some(0x700)));
    }
}
