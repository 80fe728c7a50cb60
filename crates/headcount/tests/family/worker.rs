//! A worker that does as it is told.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use headcount::{Generation, Join, Liveness, Node, Transitions, Wait, Watch, Worker};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::callbacks::Callbacks;
use super::deeds::Deeds;
use super::kernel::Later;
use super::{Child, Line, fork};

/// What a worker does without being told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// Beats and watches the others, as a server's worker does.
    Serving,
    /// Nothing at all.
    Quiet,
}

/// Forks a worker and waits until it has joined.
pub fn worker(generation: &Generation, callbacks: Callbacks, habit: Habit, join: Join) -> Child {
    let mut child = start(generation, callbacks, habit, join);
    child.expect("joined");
    child
}

/// Forks a worker that will say `joined`.
pub fn start(generation: &Generation, callbacks: Callbacks, habit: Habit, join: Join) -> Child {
    fork(|line| match generation.join(join) {
        Ok((worker, transitions)) => {
            callbacks.run(transitions);
            line.say("joined");
            let deeds = Deeds::new(&worker);
            Life { worker, callbacks, habit, watch: None, beats: habit == Habit::Serving, deeds }.live(line)
        }
        Err(e) => {
            line.say(&format!("error {}", e.kind().name()));
            2
        }
    })
}

/// Looks at the others, as the sentinel, until all that is known to be open is settled.
pub fn settle(watch: &mut Watch, node: &Node, callbacks: Callbacks) {
    let begun = Instant::now();
    loop {
        let ran = callbacks.run(watch.process().expect("nobody holds the lock")).len();
        let open = node.snapshot().processes.iter().any(|p| p.liveness == Liveness::Gone);
        if ran == 0 && !open || begun.elapsed() > Duration::from_millis(500) {
            return;
        }
    }
}

struct Life {
    worker: Worker,
    callbacks: Callbacks,
    habit: Habit,
    watch: Option<Watch>,
    beats: bool,
    deeds: Deeds,
}

impl Life {
    fn live(mut self, line: &mut Line) -> i32 {
        if self.habit == Habit::Serving {
            self.watch = Some(self.worker.watch().expect("a watch"));
        }
        loop {
            if self.beats {
                self.worker.beat();
            }
            let (told, news) = self.wait(line);
            if news {
                self.process();
            }
            self.deeds.poll();
            if told {
                let Some(order) = line.hear() else { return 0 };
                if let Some(code) = self.obey(&order, line) {
                    return code;
                }
            }
        }
    }

    fn wait(&self, line: &Line) -> (bool, bool) {
        let mut fds = vec![PollFd::new(line.fd(), PollFlags::POLLIN)];
        if let Some(watch) = &self.watch {
            fds.push(PollFd::new(watch.as_fd(), PollFlags::POLLIN));
        }
        let limit = if self.beats { PollTimeout::from(20u8) } else { PollTimeout::NONE };
        poll(&mut fds, limit).expect("poll");
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        (ready[0], ready.get(1).is_some_and(|&r| r))
    }

    fn process(&mut self) {
        let Some(watch) = &mut self.watch else { return };
        match watch.process() {
            Ok(transitions) => drop(self.callbacks.run(transitions)),
            Err(e) => assert!(e.is_busy(), "{e}"),
        }
    }

    /// `Some`: it ends with this code.
    fn obey(&mut self, order: &str, line: &mut Line) -> Option<i32> {
        let report = |callbacks: Callbacks, transitions: headcount::Result<Transitions>| match transitions {
            Ok(transitions) => {
                callbacks.run(transitions);
                "done".to_owned()
            }
            Err(e) => format!("error {}: {e}", e.kind().name()),
        };
        let mut ends = None;
        let answer = match order.split_once(' ').unwrap_or((order, "")) {
            ("beat", _) => {
                self.worker.beat();
                "done".to_owned()
            }
            ("stop beating", _) | ("stop", _) => {
                self.beats = false;
                "done".to_owned()
            }
            ("watch", _) => {
                self.watch = Some(self.worker.watch().expect("a watch"));
                "done".to_owned()
            }
            ("settle", _) => {
                settle(self.watch.as_mut().expect("a watch"), self.worker.node(), self.callbacks);
                "done".to_owned()
            }
            // The machine is suspended, and goes on at a later time.
            ("sleep", number) => {
                Later::begin_by(number.parse().expect("a descriptor"));
                "done".to_owned()
            }
            // As a server whose loop ends when it drains.
            ("look", "away") => {
                self.watch = None;
                "done".to_owned()
            }
            ("drain", _) => report(self.callbacks, self.worker.drain(Wait::Timeout)),
            ("leave", wait) => {
                let wait = wait.parse().map_or(Wait::Timeout, |ms| Wait::For(Duration::from_millis(ms)));
                let answer = report(self.callbacks, self.worker.leave(wait));
                if answer == "done" {
                    ends = Some(0);
                }
                answer
            }
            ("exit", code) => {
                ends = Some(code.parse().expect("an exit code"));
                "done".to_owned()
            }
            _ => self.deeds.obey(order, line),
        };
        line.say(&answer);
        ends
    }
}
