//! A small pre-forking server: one listener, some workers, reload on HUP, respawn, fast stop on TERM,
//! graceful stop on QUIT. Every report is printed as a line.
//!
//! ```text
//! cargo run --example prefork -- 127.0.0.1:8080 /tmp/demo.registry 4
//! kill -HUP  PID   # reload: new workers beside the old ones, which drain
//! kill -KILL WORKER_PID
//! kill -TERM PID
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use headcount::{Begin, Generation, Join, Options, Transition, Wait, Worker};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".into());
    let registry = arguments.next().unwrap_or_else(|| "/tmp/prefork-example.registry".into());
    let workers = arguments.next().map_or(Ok(4), |n| n.parse())?;

    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let master = Options::new("prefork-example")
        .path(registry)
        .heartbeat_interval(Duration::from_millis(200))
        .stall_after(Duration::from_secs(1))
        .open()?;
    println!("listening on {} as master {}", listener.local_addr()?, std::process::id());
    Master { master, listener, workers, children: Vec::new(), generation: None, stopping: false }.run()
}

fn show(transition: &Transition) {
    let e = &transition.event;
    let number = |n: Option<u32>| n.map_or_else(|| "nil".to_owned(), |n| n.to_string());
    println!(
        "{} generation={} pid={} cause={} prev={} mine={} next={} signal={} by={}",
        e.kind,
        e.generation,
        e.pid,
        e.cause,
        number(e.counts.prev),
        e.counts.mine,
        number(e.counts.next),
        e.signal.unwrap_or(0),
        std::process::id(),
    );
}

struct Master {
    master: headcount::Master,
    listener: TcpListener,
    workers: u32,
    /// Process id, worker number, generation.
    children: Vec<(Pid, u32, u64)>,
    generation: Option<Generation>,
    stopping: bool,
}

impl Master {
    fn run(mut self) -> Result<(), Failure> {
        let signals = [Signal::SIGCHLD, Signal::SIGHUP, Signal::SIGTERM, Signal::SIGQUIT];
        let mut set = SigSet::empty();
        signals.into_iter().for_each(|s| set.add(s));
        set.thread_block()?;
        let inbox = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)?;
        self.load()?;
        while !(self.stopping && self.children.is_empty()) {
            let Some(info) = inbox.read_signal()? else { continue };
            match Signal::try_from(info.ssi_signo as i32)? {
                Signal::SIGHUP => {
                    let old: Vec<Pid> = self.children.iter().map(|c| c.0).collect();
                    self.load()?;
                    old.into_iter().for_each(|pid| self.tell(pid, Signal::SIGQUIT));
                }
                Signal::SIGCHLD => self.reap()?,
                signal => {
                    self.stopping = true;
                    self.children.iter().for_each(|c| self.tell(c.0, signal));
                }
            }
        }
        self.master.leave(Wait::Timeout)?.run(show);
        Ok(())
    }

    /// Loads the configuration, which here is none, and starts its workers.
    fn load(&mut self) -> Result<(), Failure> {
        let (generation, transitions) =
            self.master.begin(Begin::new().workers(self.workers), Wait::Timeout)?;
        transitions.run(show);
        self.master.commit(generation.id());
        for number in 0..self.workers {
            self.spawn(&generation, number, false)?;
        }
        self.generation = Some(generation);
        Ok(())
    }

    fn spawn(&mut self, generation: &Generation, number: u32, respawned: bool) -> Result<(), Failure> {
        // SAFETY: this process has one thread, so the child's copy of it is whole.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => self.children.push((child, number, generation.id())),
            ForkResult::Child => {
                let ended = work(generation, number, respawned, &self.listener);
                if let Err(e) = &ended {
                    eprintln!("worker {}: {e}", std::process::id());
                }
                std::process::exit(i32::from(ended.is_err()));
            }
        }
        Ok(())
    }

    fn reap(&mut self) -> Result<(), Failure> {
        loop {
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code << 8),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, signal as i32),
                Ok(WaitStatus::StillAlive) | Err(_) => return Ok(()),
                Ok(_) => continue,
            };
            self.master.node().child_exited(pid.as_raw() as u32, ExitStatus::from_raw(status));
            let Some(at) = self.children.iter().position(|c| c.0 == pid) else { continue };
            let (_, number, of) = self.children.swap_remove(at);
            let current = self.generation.clone().filter(|g| g.id() == of && !self.stopping);
            if let Some(generation) = current {
                self.spawn(&generation, number, true)?;
            }
        }
    }

    fn tell(&self, pid: Pid, signal: Signal) {
        // It may have ended in this moment; then SIGCHLD tells.
        let _ = kill(pid, signal);
    }
}

/// A worker's life.
fn work(
    generation: &Generation,
    number: u32,
    respawned: bool,
    listener: &TcpListener,
) -> Result<(), Failure> {
    let mut set = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGQUIT].into_iter().for_each(|s| set.add(s));
    set.thread_block()?;
    let inbox = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;

    let (worker, transitions) = generation.join(Join::worker(Some(number)).respawned(respawned))?;
    transitions.run(show);
    let mut watch = worker.watch()?;
    loop {
        let mut fds = [
            PollFd::new(inbox.as_fd(), PollFlags::POLLIN),
            PollFd::new(watch.as_fd(), PollFlags::POLLIN),
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut fds, PollTimeout::from(100u8))?;
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        worker.beat();
        if ready[1] {
            match watch.process() {
                Ok(transitions) => transitions.run(show),
                // Somebody else reports something; the descriptor will be readable again.
                Err(e) if e.is_busy() => {}
                Err(e) => return Err(e.into()),
            }
        }
        if ready[2] {
            serve(listener, &worker)?;
        }
        if ready[0]
            && let Some(info) = inbox.read_signal()?
        {
            if info.ssi_signo == Signal::SIGQUIT as u32 {
                worker.drain(Wait::Timeout)?.run(show);
            }
            worker.leave(Wait::Timeout)?.run(show);
            return Ok(());
        }
    }
}

fn serve(listener: &TcpListener, worker: &Worker) -> Result<(), Failure> {
    let (mut stream, _) = match listener.accept() {
        Ok(accepted) => accepted,
        // A sibling was quicker.
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    let begun = Instant::now();
    let mut request = [0; 1024];
    if stream.read(&mut request).is_ok() {
        let counts = worker.node().snapshot().total;
        let body = format!("{counts} workers; generation {}; {:?}\n", worker.generation(), begun.elapsed());
        // A client that has gone is no reason to end.
        let _ = write!(stream, "HTTP/1.0 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    }
    Ok(())
}
