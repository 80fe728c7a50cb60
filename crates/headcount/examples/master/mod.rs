//! The master of both example servers: it opens the node, forks workers, reaps and replaces them, reloads on HUP, and
//! hands on TERM and QUIT. It has one thread and no event loop, and so nothing that a fork could copy half-way.

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use headcount::{Begin, Generation, Join, Options, Transition, Wait};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

pub type Failure = Box<dyn std::error::Error>;
/// A worker's life.
type Work = fn(&Generation, Join, &TcpListener) -> Result<(), Failure>;

/// The signals that a process waits for instead of being interrupted by them.
pub fn signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGHUP, Signal::SIGTERM, Signal::SIGQUIT].into_iter().collect()
}

/// Runs the server that the arguments ask for: ADDRESS REGISTRY WORKERS.
pub fn run(name: &str, work: Work) -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".into());
    let registry = arguments.next().unwrap_or_else(|| format!("/tmp/{name}.registry"));
    let workers = arguments.next().map_or(Ok(4), |n| n.parse())?;

    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let options = Options::new(name)
        .path(registry)
        .heartbeat_interval(Duration::from_millis(200))
        .stall_after(Duration::from_secs(1));
    let master = options.open()?;
    println!("listening on {} as master {}", listener.local_addr()?, std::process::id());
    Master { options, master, listener, workers, work, children: Vec::new() }.run()
}

pub fn show(transition: &Transition) {
    let e = &transition.event;
    let number = |n: Option<u32>| n.map_or_else(|| "nil".to_owned(), |n| n.to_string());
    println!(
        "{} generation={} pid={} cause={} prev={} mine={} next={} signal={} by={} event={} retry={}",
        e.kind,
        e.generation,
        e.pid,
        e.cause,
        number(e.counts.prev),
        e.counts.mine,
        number(e.counts.next),
        e.signal.unwrap_or(0),
        std::process::id(),
        e.seq,
        transition.retry,
    );
}

struct Master {
    options: Options,
    master: headcount::Master,
    listener: TcpListener,
    workers: u32,
    work: Work,
    /// Process id, worker number, generation.
    children: Vec<(Pid, u32, Generation)>,
}

impl Master {
    fn run(mut self) -> Result<(), Failure> {
        signals().thread_block()?;
        let mut current = self.load()?;
        let mut stopping = false;
        while !(stopping && self.children.is_empty()) {
            match signals().wait()? {
                Signal::SIGHUP => {
                    let old: Vec<Pid> = self.children.iter().map(|c| c.0).collect();
                    current = self.load()?;
                    tell(old, Signal::SIGQUIT);
                }
                Signal::SIGCHLD => {
                    for (number, of) in self.reap() {
                        if of.id() == current.id() && !stopping {
                            self.spawn(&current, number, true)?;
                        }
                    }
                }
                signal => {
                    stopping = true;
                    tell(self.children.iter().map(|c| c.0), signal);
                }
            }
        }
        self.master.leave(Wait::Timeout)?.run(show);
        Ok(())
    }

    /// Loads the configuration, which here is none, and starts its workers.
    fn load(&mut self) -> Result<Generation, Failure> {
        // The same node again; or a new registry for it, if somebody has removed the one before.
        self.master = self.options.open()?;
        let begin = Begin::new().workers(self.workers);
        let (generation, transitions) = self.master.begin(begin, Wait::Timeout)?;
        transitions.run(show);
        self.master.commit(generation.id());
        (0..self.workers).try_for_each(|number| self.spawn(&generation, number, false))?;
        Ok(generation)
    }

    fn spawn(&mut self, generation: &Generation, number: u32, respawned: bool) -> Result<(), Failure> {
        // SAFETY: this process has one thread, so the child's copy of it is whole.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => self.children.push((child, number, generation.clone())),
            ForkResult::Child => {
                let join = Join::worker(Some(number)).respawned(respawned);
                let ended = (self.work)(generation, join, &self.listener);
                if let Err(e) = &ended {
                    eprintln!("worker {}: {e}", std::process::id());
                }
                std::process::exit(i32::from(ended.is_err()));
            }
        }
        Ok(())
    }

    /// Number and generation of those that have ended.
    fn reap(&mut self) -> Vec<(u32, Generation)> {
        let mut ended = Vec::new();
        loop {
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code << 8),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, signal as i32),
                Ok(WaitStatus::StillAlive) | Err(_) => return ended,
                Ok(_) => continue,
            };
            if let Some(at) = self.children.iter().position(|c| c.0 == pid) {
                let (_, number, generation) = self.children.swap_remove(at);
                generation.node().child_exited(pid.as_raw() as u32, ExitStatus::from_raw(status));
                ended.push((number, generation));
            }
        }
    }
}

fn tell(children: impl IntoIterator<Item = Pid>, signal: Signal) {
    // One may have ended in this moment; then SIGCHLD tells.
    children.into_iter().for_each(|pid| _ = kill(pid, signal));
}
