//! As `die_anywhere.rs`, for masters: one dies as it starts its node anew, or as it stops it, and another is
//! started afterwards.
#![cfg(target_arch = "x86_64")]

mod family;

use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitStatus;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use headcount::{Begin, Cursor, Event, Join, Kind, Master, Observer, PreviousRun, Wait};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::PidfdFlags;

use family::callbacks::Callbacks;
use family::deadly_store::{self, Tally};
use family::journal::{Truth, check, print};
use family::worker::{Habit, settle, worker};
use family::{Place, alone, fork};

/// One node, of which this process is no part.
struct Stage {
    place: Place,
    callbacks: Callbacks,
    kill_at: u64,
    truth: Truth,
    survived: bool,
    /// The processes of the first run.
    first: Vec<u32>,
}

fn at_every_store(scenario: impl Fn(&mut Stage)) {
    let _alone = alone();
    // Workers whose master was killed become children of this process, which can wait for them then.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("become a subreaper");
    let begun = Instant::now();
    let mut survived = false;
    let mut deaths = 0;
    let callbacks = Callbacks::new();
    while !survived {
        family::ids_must_grow();
        callbacks.forget();
        callbacks.word(0).store(0, SeqCst);
        let mut stage = Stage {
            place: Place::new(),
            callbacks,
            kill_at: deaths + 1,
            truth: Truth::default(),
            survived,
            first: Vec::new(),
        };
        let ended = catch_unwind(AssertUnwindSafe(|| scenario(&mut stage)));
        if let Err(panic) = ended {
            if family::is_void(&*panic) {
                continue;
            }
            eprintln!(
                "the victim was killed before store {}, at {}",
                stage.kill_at,
                callbacks.word(1).load(SeqCst)
            );
            print(&stage.events(), &callbacks.all(), &stage.truth);
            resume_unwind(panic);
        }
        survived = stage.survived;
        deaths += 1;
    }
    assert!(deaths > 20, "the victim made only {deaths} stores: was it armed?");
    eprintln!("{} deaths in {:.1?}", deaths - 1, begun.elapsed());
}

impl Stage {
    fn events(&self) -> Vec<Event> {
        let observer = Observer::open(&self.place.registry()).expect("observe");
        observer.events(&mut Cursor::oldest(), usize::MAX).expect("read").events
    }

    fn head(&self) -> u64 {
        self.events().last().map_or(0, |e| e.seq)
    }

    /// A run of the node that ends with the death of all of its processes. Two workers.
    fn unclean_run(&mut self) {
        let callbacks = self.callbacks;
        let mut master = fork(|line| {
            let master = self.place.open();
            let (generation, transitions) =
                master.begin(Begin::new().workers(2), Wait::Timeout).expect("begin");
            callbacks.run(transitions);
            master.commit(generation.id());
            let join = |number| worker(&generation, callbacks, Habit::Quiet, Join::worker(Some(number)));
            let workers = [join(0), join(1)];
            line.say(&format!("{} {}", workers[0].pid(), workers[1].pid()));
            line.hear();
            0
        });
        let pids = master.hear().expect("a run");
        self.first = pids.split(' ').map(|pid| pid.parse().unwrap_or_else(|_| panic!("{pids}"))).collect();
        master.kill();
        let head = self.head();
        self.truth.committed.push((1, 1));
        for &pid in &self.first {
            // They end by themselves when their master does. Without a word to the node, so that is a death.
            let pid = rustix::process::Pid::from_raw(pid as i32);
            rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).expect("wait for an orphan");
        }
        self.truth.dead.extend(self.first.iter().map(|&pid| (pid, head)));
    }

    /// Opens the node in a new master, and kills that in `act`.
    fn victim<T>(&mut self, prepare: impl FnOnce(&Master) -> T, act: impl FnOnce(&Master, T)) -> u32 {
        let (registry, also) = (self.place.registry(), self.callbacks.range());
        let tally = Tally { stores: self.callbacks.word(0), offset: self.callbacks.word(1) };
        let mut victim = fork(|line| {
            let master = self.place.open();
            let prepared = prepare(&master);
            deadly_store::arm(&registry, also, self.kill_at, tally);
            act(&master, prepared);
            deadly_store::disarm();
            line.say("survived");
            0
        });
        let last_words = victim.hear();
        let status = victim.wait();
        self.survived = last_words.as_deref() == Some("survived");
        assert!(self.survived || last_words.is_none() && status == libc::SIGKILL, "{last_words:?}, {status}");
        self.truth.dead.push((victim.pid(), self.head()));
        victim.pid()
    }

    /// A whole run of the node as it should be, with one worker.
    fn clean_run(&self) -> u32 {
        let callbacks = self.callbacks;
        let mut master = fork(|_| {
            let master = self.place.open();
            let (generation, transitions) =
                master.begin(Begin::new().workers(1), Wait::Timeout).expect("begin");
            callbacks.run(transitions);
            master.commit(generation.id());
            let mut worker = worker(&generation, callbacks, Habit::Serving, Join::worker(Some(0)));
            worker.tell("settle");
            worker.tell("leave");
            worker.ended_well();
            callbacks.run(master.leave(Wait::Timeout).expect("leave"));
            0
        });
        master.ended_well();
        master.pid()
    }

    fn check(&mut self) {
        let observer = Observer::open(&self.place.registry()).expect("observe");
        let snapshot = observer.snapshot().expect("read");
        assert!(snapshot.processes.is_empty(), "left in the table: {:?}", snapshot.processes);
        assert!(snapshot.generations.is_empty(), "left in the table: {:?}", snapshot.generations);
        check(&self.events(), &self.callbacks.all(), &self.truth);
    }
}

/// The start of a generation, as its callback was told of it, by this process.
fn start_by(events: &[Event], pid: u32) -> Option<&Event> {
    events.iter().find(|e| e.kind == Kind::GenerationStarted && e.reporter_pid == pid)
}

#[test]
fn a_master_dies_as_it_starts_after_an_unclean_run() {
    at_every_store(|stage| {
        stage.unclean_run();
        let callbacks = stage.callbacks;
        let victim = stage.victim(
            |_| (),
            |master, ()| {
                let (_, transitions) = master.begin(Begin::new().workers(2), Wait::Timeout).expect("begin");
                callbacks.run(transitions);
            },
        );
        let master = stage.clean_run();
        let events = stage.events();
        let start = start_by(&events, master).expect("a start");
        stage.truth.committed.push((start.generation, start.seq));
        stage.check();

        let unclean = Some(PreviousRun::Unclean { generation: 1, workers: 2 });
        let told = callbacks.all().iter().any(|r| r.runner == victim && r.kind == Kind::GenerationStarted);
        if told {
            assert_eq!(start_by(&events, victim).expect("a start").previous_run, unclean);
        } else {
            assert_eq!(start.previous_run, unclean, "nobody was told how the first run ended");
        }
        for pid in &stage.first {
            let died = events.iter().filter(|e| e.kind == Kind::WorkerDied && e.pid == *pid);
            assert_eq!(died.count(), 1);
        }
    });
}

#[test]
fn a_master_dies_as_it_has_the_last_word() {
    at_every_store(|stage| {
        let callbacks = stage.callbacks;
        stage.truth.no_survivors = true;
        stage.victim(
            |master| {
                let (generation, transitions) =
                    master.begin(Begin::new().workers(2), Wait::Timeout).expect("begin");
                callbacks.run(transitions);
                master.commit(generation.id());
                for number in [0, 1] {
                    let mut child = worker(&generation, callbacks, Habit::Quiet, Join::worker(Some(number)));
                    let status = child.kill();
                    master.node().child_exited(child.pid(), ExitStatus::from_raw(status));
                    // For the test, which is not told otherwise.
                    callbacks.word(2 + number as usize).store(u64::from(child.pid()), SeqCst);
                    callbacks.word(4 + number as usize).store(master.node().snapshot().head, SeqCst);
                }
            },
            |master, ()| drop(callbacks.run(master.leave(Wait::Timeout).expect("leave"))),
        );
        for number in [0, 1] {
            let word = |index: usize| callbacks.word(index + number).load(SeqCst);
            stage.truth.dead.push((word(2) as u32, word(4)));
        }
        stage.truth.committed.push((1, 1));
        let master = stage.clean_run();
        let events = stage.events();
        let start = start_by(&events, master).expect("a start");
        stage.truth.committed.push((start.generation, start.seq));
        stage.check();
        if stage.survived {
            assert_eq!(start.previous_run, Some(PreviousRun::Clean));
        }
    });
}

#[test]
fn a_master_dies_as_it_reloads() {
    at_every_store(|stage| {
        let callbacks = stage.callbacks;
        let old_worker = callbacks.word(2);
        let victim = stage.victim(
            |master| {
                let (generation, transitions) =
                    master.begin(Begin::new().workers(1), Wait::Timeout).expect("begin");
                callbacks.run(transitions);
                master.commit(generation.id());
                // It goes on until its master ends, says so, and leaves.
                let mut child = fork(|line| {
                    let (worker, transitions) = generation.join(Join::worker(Some(0))).expect("join");
                    callbacks.run(transitions);
                    let parent = rustix::process::getppid().expect("a master");
                    let parent = rustix::process::pidfd_open(parent, PidfdFlags::empty()).expect("a pidfd");
                    line.say("joined");
                    line.hear();
                    // The line is cut a moment before it has ended.
                    let mut end = [PollFd::new(&parent, PollFlags::IN)];
                    let limit = Timespec { tv_sec: family::PATIENCE.as_secs() as i64, tv_nsec: 0 };
                    assert_eq!(poll(&mut end, Some(&limit)), Ok(1), "the master's end");
                    settle(&mut worker.watch().expect("a watch"), master.node(), callbacks);
                    callbacks.run(worker.leave(Wait::Timeout).expect("leave"));
                    0
                });
                child.expect("joined");
                old_worker.store(u64::from(child.pid()), SeqCst);
                child
            },
            |master, child| {
                // Dropping it would kill it.
                std::mem::forget(child);
                let (_, transitions) = master.begin(Begin::new().workers(1), Wait::Timeout).expect("begin");
                callbacks.run(transitions);
            },
        );
        // Reported by the worker that lost it; then nobody is left.
        let pid = rustix::process::Pid::from_raw(old_worker.load(SeqCst) as i32);
        rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).expect("wait for an orphan");
        let master = stage.clean_run();
        let events = stage.events();
        let start = start_by(&events, master).expect("a start");
        stage.truth.committed.extend([(1, 1), (start.generation, start.seq)]);
        stage.check();
        assert_eq!(events.iter().filter(|e| e.kind == Kind::MasterLost && e.pid == victim).count(), 1);
        assert_eq!(start.previous_run, Some(PreviousRun::Clean));
    });
}
