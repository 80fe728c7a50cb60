//! The server's error log, line by line as it is written.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::iter;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use rustix::fs::inotify;
use rustix::io::Errno;

use crate::clock::boot_ns;
use crate::report::{Callback, Level, Report, Said};

pub struct LogTail {
    lines: Receiver<io::Result<Report>>,
}

impl LogTail {
    /// Makes the log, empty, and follows it from there.
    ///
    /// On a thread, so that a line gets its time when it arrives, whatever is being printed then.
    pub fn follow(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let changed = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&changed, path, inotify::WatchFlags::MODIFY)?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            // Ends with the first line that nobody wants any more, or with the program.
            if let Err(error) = read_on(file, &changed, &sender) {
                let _ = sender.send(Err(error));
            }
        });
        Ok(Self { lines })
    }

    /// What has arrived since the last call; waits for the first of it, but not longer than `timeout`.
    pub fn read(&self, timeout: Duration) -> io::Result<Vec<Report>> {
        match self.lines.recv_timeout(timeout) {
            Ok(first) => iter::once(first).chain(self.lines.try_iter()).collect(),
            Err(RecvTimeoutError::Timeout) => Ok(Vec::new()),
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the reader of error.log has ended")),
        }
    }
}

fn read_on(mut file: File, changed: &OwnedFd, lines: &Sender<io::Result<Report>>) -> io::Result<()> {
    // Begins with the part of a line whose end is not written yet.
    let mut text = Vec::new();
    let mut space = [MaybeUninit::uninit(); 4096];
    let mut notices = inotify::Reader::new(changed, &mut space);
    loop {
        match notices.next() {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        file.read_to_end(&mut text)?;
        let at_ns = boot_ns();
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let arrived: Vec<u8> = text.drain(..whole).collect();
        for said in String::from_utf8_lossy(&arrived).lines().filter_map(parse) {
            if lines.send(Ok(Report { at_ns, said })).is_err() {
                return Ok(());
            }
        }
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
