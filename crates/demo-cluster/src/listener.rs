//! `headcount cluster events --follow` on one host: each line with the time at which it came.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Instant;

use serde_json::Value;

/// A line that was said on a host.
pub struct Said {
    /// The number of the host on which it was said.
    pub on: usize,
    pub at: Instant,
    pub what: What,
}

pub enum What {
    /// An event, as its document.
    Event(Value),
    /// Something else, for people.
    Word(String),
}

/// It ends with its machine, or with this.
pub struct Listener(Child);

impl Listener {
    pub fn start(mut command: Command, on: usize, to: &Sender<Said>) -> Result<Listener, String> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("cannot start {command:?}: {error}"))?;
        if let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) {
            listen(out, on, to.clone(), |line| {
                serde_json::from_str(&line).map_or(What::Word(line), What::Event)
            });
            listen(err, on, to.clone(), What::Word);
        }
        Ok(Listener(child))
    }
}

/// On a thread, so that a line gets its time when it comes, whatever is being printed then.
fn listen(from: impl Read + Send + 'static, on: usize, to: Sender<Said>, what: fn(String) -> What) {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            // Nobody listens any more: the demo ends.
            if to.send(Said { on, at: Instant::now(), what: what(line) }).is_err() {
                return;
            }
        }
    });
}

impl Drop for Listener {
    fn drop(&mut self) {
        for pid in testkit::process::descendants(self.0.id() as i32) {
            testkit::process::send(pid, testkit::Signal::KILL);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
