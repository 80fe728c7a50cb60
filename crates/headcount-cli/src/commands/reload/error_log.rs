//! Why nginx refused its configuration, in its own words: what its master has written to its error log since the signal.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rustix::fs::OFlags;

use crate::escape::escape;

/// So much of the log is looked at.
const MOST: usize = 64 << 10;
/// So much of a line is shown.
const SHOWN: usize = 400;

/// The log of a master, from now on.
pub struct ErrorLog {
    file: File,
    from: u64,
    pid: u32,
}

impl ErrorLog {
    /// nginx's standard error is its error log. `None`: it is no file, or may not be read, which is no reason not to reload.
    pub fn of(pid: u32) -> Option<ErrorLog> {
        let path = format!("/proc/{pid}/fd/2");
        if !std::fs::metadata(&path).ok()?.is_file() {
            return None;
        }
        let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).ok()?;
        let file = File::options().read(true).custom_flags(flags).open(path).ok()?;
        let found = file.metadata().ok()?;
        found.is_file().then(|| ErrorLog { from: found.len(), file, pid })
    }

    /// The first thing that this master has called an emergency since.
    pub fn complaint(&self) -> Option<String> {
        let mut bytes = vec![0; MOST];
        let n = self.file.read_at(&mut bytes, self.from).ok()?;
        complaint(&String::from_utf8_lossy(&bytes[..n]), self.pid)
    }
}

fn complaint(text: &str, pid: u32) -> Option<String> {
    let by_it = format!("[emerg] {pid}#");
    let line = text.lines().find_map(|line| line.split_once(&by_it).map(|(_, rest)| rest))?;
    // The thread's number comes first.
    let what = line.split_once(": ").map_or(line, |(_, what)| what);
    Some(escape(&what.chars().take(SHOWN).collect::<String>()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_complaint_of_this_master_is_meant() {
        let log = "2026/11/26 17:00:00 [notice] 12#12: signal 1 (SIGHUP) received\n\
                   2026/11/26 17:00:00 [emerg] 99#99: somebody else\n\
                   2026/11/26 17:00:00 [emerg] 12#12: unknown directive \"x\" in /etc/nginx.conf:3\n\
                   2026/11/26 17:00:00 [emerg] 12#12: later\n";
        assert_eq!(complaint(log, 12).as_deref(), Some("unknown directive \"x\" in /etc/nginx.conf:3"));
        assert_eq!(complaint(log, 1), None);
        assert_eq!(complaint("[emerg] 7#7: \u{1b}[2J", 7).as_deref(), Some("\\u{1b}[2J"));
        let long = format!("[emerg] 7#7: {}", "x".repeat(9999));
        assert_eq!(complaint(&long, 7).map(|line| line.len()), Some(SHOWN));
    }

    #[test]
    fn only_what_came_since_counts() {
        use std::io::Write;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("error.log");
        let mut file = File::create(&path).unwrap();
        writeln!(file, "[emerg] 7#7: before").unwrap();
        let log = ErrorLog { from: file.metadata().unwrap().len(), file: File::open(&path).unwrap(), pid: 7 };
        assert_eq!(log.complaint(), None);
        writeln!(file, "[emerg] 7#7: after").unwrap();
        assert_eq!(log.complaint().as_deref(), Some("after"));
    }
}
