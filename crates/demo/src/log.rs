//! The server's error log, line by line as it is written.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use crate::clock::boot_ns;
use crate::report::{Callback, Level, Report, Said};

pub struct LogTail {
    file: File,
    /// The beginning of a line whose end is not written yet.
    rest: Vec<u8>,
    changed: OwnedFd,
}

impl LogTail {
    /// Makes the log, empty, and follows it from there.
    pub fn follow(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let changed = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&changed, path, inotify::WatchFlags::MODIFY)?;
        Ok(Self { file, rest: Vec::new(), changed })
    }

    /// Waits until something was written, `timeout` has passed or a signal came.
    pub fn wait(&self, timeout: Duration) -> io::Result<()> {
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.changed, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut notices = inotify::Reader::new(self.changed.as_fd(), &mut space);
        while notices.next().is_ok() {}
        Ok(())
    }

    /// What was written since the last call.
    pub fn read(&mut self) -> io::Result<Vec<Report>> {
        self.file.read_to_end(&mut self.rest)?;
        let at_ns = boot_ns();
        let Some(end) = self.rest.iter().rposition(|&byte| byte == b'\n') else {
            return Ok(Vec::new());
        };
        let lines: Vec<u8> = self.rest.drain(..=end).collect();
        Ok(String::from_utf8_lossy(&lines)
            .lines()
            .filter_map(parse)
            .map(|said| Report { at_ns, said })
            .collect())
    }
}

/// `2026/01/31 12:00:00 [error] 12#12: *3 text`; `None` for what is below a warning.
fn parse(line: &str) -> Option<Said> {
    let (level, rest) = line.split_once(" [")?.1.split_once("] ")?;
    let level = Level::named(level)?;
    let (process, text) = rest.split_once(": ")?;
    let pid = process.split_once('#')?.0.parse().ok()?;
    let framed = |callback: &Callback| {
        let text_of_it = callback.text();
        ["=", "-"].iter().any(|frame| text.contains(&format!("{0} {text_of_it} {0}", frame.repeat(5))))
    };
    Some(match Callback::ALL.into_iter().find(framed) {
        Some(callback) => Said::Callback { callback, pid },
        None => Said::Server { level, text: text.to_owned() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callback_is_told_from_the_servers_own_words() {
        let line = "2026/11/24 22:16:32 [error] 5994#5994: [lua] init_worker_by_lua:3: \
                    --------------------------------- Worker start ---------------------------------, \
                    context: init_worker_by_lua*";
        assert!(matches!(parse(line), Some(Said::Callback { callback: Callback::WorkerStart, pid: 5994 })));

        let line = "2026/11/24 22:16:32 [alert] 7#7: worker process 9 exited on signal 9";
        match parse(line) {
            Some(Said::Server { level: Level::Alert, text }) => {
                assert_eq!(text, "worker process 9 exited on signal 9");
            }
            other => panic!("{other:?}"),
        }
        assert!(parse("2026/11/24 22:16:32 [notice] 7#7: start worker process 9").is_none());
    }
}
