//! One server's life under one plan.

mod acts;
mod rest;
mod starts;
mod twins;
mod upgrade;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use testkit::wait::boot_clock;
use testkit::{Signal, SlowClient, process, wait};

use crate::checker::{Class, Tally, Violation};
use crate::freezer::Freezer;
use crate::front::Front;
use crate::journal::{self, Follower};
use crate::kernel::Kernel;
use crate::load::Load;
use crate::plan::{Plan, Told};
use crate::server::Server;

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Faults done, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// What was checked.
    pub tally: Tally,
    /// What was found.
    pub violations: Vec<Violation>,
    /// What was done, with times.
    pub history: Vec<String>,
    /// After how many steps a violation was found.
    pub steps: usize,
}

/// What is to be taken back, at the latest before the next rest.
enum Undo {
    Continue { pid: i32, started: u64 },
    Thaw,
    Release(SlowClient),
    Reader(usize),
}

/// What was said up to here, of these generations, is checked and closed: the registry was removed.
#[derive(Clone, Copy, Debug, Default)]
struct Chapter {
    generation: u64,
    seq: u64,
}

/// A server, and all that is going on around it.
struct Life<'a> {
    kernel: &'a Kernel,
    front: Front,
    server: Server,
    follower: Follower,
    readers: Vec<Follower>,
    load: Load,
    freezer: Option<Freezer>,
    /// With the step in which they are due.
    undos: Vec<(usize, Undo)>,
    step: usize,
    rests: usize,
    begun: Instant,
    /// Until when a worker was made to be busy.
    busy_until: Instant,
    wall: u64,
    /// When somebody was made to stand or to hold the lock, from and to.
    hindered: Vec<(u64, u64)>,
    /// Kernel messages lost when it began.
    lost: u32,
    /// Open descriptors of the master at rest, by number of workers; since its start.
    descriptors: BTreeMap<u32, usize>,
    registry_size: Option<u64>,
    /// How many registries were removed under this master.
    registries_lost: usize,
    chapter: Chapter,
    /// Of the last look, which is over the whole life.
    last_tally: Tally,
    out: Outcome,
}

/// Lives it. The folder is kept in `keep` if something was found.
pub fn live(kernel: &Kernel, plan: &Plan, until: Instant, keep: &Path) -> Outcome {
    kernel.forget();
    let mut life = match Life::begin(kernel, plan) {
        Ok(life) => life,
        Err(error) => {
            let violations = vec![Violation::new(Class::Hung, error)];
            return Outcome { violations, ..Outcome::default() };
        }
    };
    life.run(plan, until);
    life.end(keep)
}

impl<'a> Life<'a> {
    fn begin(kernel: &'a Kernel, plan: &Plan) -> Result<Self, String> {
        let mut server = Server::prepare(plan.front, plan.workers);
        let journal = server.folder().at("journal.jsonl");
        let follower =
            Follower::begin(&server.registry(), &journal).map_err(|e| format!("headcount: {e}"))?;
        let output = (!plan.front.is_nginx()).then(|| server.folder().at("stdio.log"));
        let load = Load::begin(&server.socket(), output);
        server.start()?;
        Ok(Self {
            kernel,
            front: plan.front,
            server,
            follower,
            readers: Vec::new(),
            load,
            freezer: None,
            undos: Vec::new(),
            step: 0,
            rests: 0,
            begun: Instant::now(),
            busy_until: Instant::now(),
            wall: crate::journal::wall_ahead(),
            hindered: Vec::new(),
            lost: kernel.lost(),
            descriptors: BTreeMap::new(),
            registry_size: None,
            registries_lost: 0,
            chapter: Chapter::default(),
            last_tally: Tally::default(),
            out: Outcome::default(),
        })
    }

    fn run(&mut self, plan: &Plan, until: Instant) {
        self.rest();
        for step in &plan.steps {
            if !self.out.violations.is_empty() || Instant::now() >= until {
                break;
            }
            self.undo(self.step);
            self.note(&step.fault.to_string());
            *self.out.faults.entry(step.fault.kind()).or_default() += 1;
            self.act(&step.fault);
            self.step += 1;
            std::thread::sleep(Duration::from_millis(u64::from(step.pause)));
            if step.rest {
                self.rest();
            }
        }
        self.out.steps = self.step;
        if self.out.violations.is_empty() {
            self.rest();
        }
    }

    /// Stops the server in order, and looks a last time.
    fn end(mut self, keep: &Path) -> Outcome {
        if self.out.violations.is_empty() {
            self.stop(Told::Quit, false);
        }
        self.undo(usize::MAX);
        if let Err(error) = self.server.kill_all(self.kernel) {
            self.violation(Class::Hung, error);
        }
        let last = std::mem::take(&mut self.last_tally);
        self.out.tally.absorb(last);
        *self.out.tally.counts.entry("requests answered meanwhile").or_default() += self.load.answered();
        if !self.out.violations.is_empty() {
            self.server.folder().write("history.txt", &self.out.history.join("\n"));
            let found: Vec<String> = self.out.violations.iter().map(Violation::to_string).collect();
            self.server.folder().write("violations.txt", &found.join("\n"));
            self.server.folder().write("kernel.txt", &self.kernel_text());
            if let Err(error) = self.server.keep(keep) {
                eprintln!("{error}");
            }
        }
        self.out
    }

    fn kernel_text(&self) -> String {
        let mut all = self.kernel.all();
        all.sort_by_key(|process| process.began);
        all.iter().map(|process| format!("{process:?}\n")).collect()
    }

    /// What was said so far is checked and counted; what comes now begins with the next generation.
    fn close_chapter(&mut self) {
        let said = journal::parse(&self.follower.text(), self.wall).unwrap_or_default().0;
        let newest = said.iter().map(|event| event.generation).max().unwrap_or(0);
        self.chapter = Chapter { generation: newest, seq: said.last().map_or(0, |event| event.seq) };
        let counted = std::mem::take(&mut self.last_tally);
        self.out.tally.absorb(counted);
    }

    fn note(&mut self, what: &str) {
        let at = self.begun.elapsed().as_secs_f64();
        self.out.history.push(format!("{at:9.3} {:4} {what}", self.step));
    }

    fn violation(&mut self, class: Class, text: impl Into<String>) {
        // Somebody tidies up /tmp.
        let is_there = self.server.folder().at("run").exists();
        let class = if is_there { class } else { Class::Blind };
        let violation = Violation::new(class, text);
        if self.out.violations.is_empty() {
            self.note("what was found follows");
        }
        self.out.violations.push(violation);
    }

    /// Something that the server's own habits explain, to be counted and not to be blamed.
    fn remark(&mut self, what: &'static str) {
        self.note(what);
        *self.out.tally.counts.entry(what).or_default() += 1;
    }

    /// Somebody stands from now on, for so long, or until that is taken back.
    fn hinder(&mut self, limit: Duration) {
        let now = boot_clock();
        self.hindered.push((now, now + limit.as_nanos() as u64));
    }

    /// Takes back all that is due in this step.
    fn undo(&mut self, step: usize) {
        let stand = |(_, undo): &(usize, Undo)| matches!(undo, Undo::Continue { .. } | Undo::Thaw);
        let stood = self.undos.iter().any(stand);
        self.take_back(step);
        if stood && !self.undos.iter().any(stand) {
            // Who continues has some work to do first.
            let now = boot_clock() + 50_000_000;
            for (_, until) in &mut self.hindered {
                *until = (*until).min(now);
            }
        }
    }

    fn take_back(&mut self, step: usize) {
        let (due, later): (Vec<_>, Vec<_>) = self.undos.drain(..).partition(|(at, _)| *at <= step);
        self.undos = later;
        for (_, undo) in due {
            match undo {
                Undo::Continue { pid, started } => {
                    if process::stat(pid).is_some_and(|stat| stat.started == started) {
                        process::send(pid, Signal::CONT);
                    }
                }
                Undo::Thaw => {
                    if self.freezer.as_ref().is_some_and(|freezer| !freezer.thaw()) {
                        self.violation(Class::Hung, "the cgroup does not thaw");
                    }
                }
                // It may be in a worker that was killed; nobody waits for an answer.
                Undo::Release(client) => drop(client),
                Undo::Reader(at) => {
                    if let Some(reader) = self.readers.get(at) {
                        process::send(reader.pid(), Signal::CONT);
                    }
                }
            }
        }
    }

    /// Waits for something; false when it does not come in time.
    fn wait(&mut self, limit: Duration, mut fits: impl FnMut(&mut Self) -> bool) -> bool {
        wait::poll_closely(limit, || fits(self).then_some(())).is_some()
    }
}
