//! The same small server as `prefork`, whose workers run tokio: each a runtime of its own, on one thread, made after
//! the fork. The watch is one descriptor more in its reactor, the heartbeat a timer that ticks in the loop that does the
//! work, so that a loop that hangs does not beat.
//!
//! ```text
//! cargo run --example prefork_tokio -- 127.0.0.1:8080 /tmp/demo.registry 4
//! ```

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use headcount::{Begin, Generation, Join, Options, Transition, Wait, Worker};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

type Failure = Box<dyn std::error::Error>;

const HEARTBEAT: Duration = Duration::from_millis(200);

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".into());
    let registry = arguments.next().unwrap_or_else(|| "/tmp/prefork-tokio-example.registry".into());
    let workers = arguments.next().map_or(Ok(4), |n| n.parse())?;

    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let master = Options::new("prefork-tokio-example")
        .path(registry)
        .heartbeat_interval(HEARTBEAT)
        .stall_after(Duration::from_secs(1))
        .open()?;
    println!("listening on {} as master {}", listener.local_addr()?, std::process::id());
    Master { master, listener, workers, children: Vec::new() }.run()
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

/// The master has no runtime and no thread: it forks.
struct Master {
    master: headcount::Master,
    listener: TcpListener,
    workers: u32,
    /// Process id, worker number, generation.
    children: Vec<(Pid, u32, Generation)>,
}

/// The signals that a process waits for instead of being interrupted by them.
fn signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGHUP, Signal::SIGTERM, Signal::SIGQUIT].into_iter().collect()
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

    fn load(&mut self) -> Result<Generation, Failure> {
        let (generation, transitions) =
            self.master.begin(Begin::new().workers(self.workers), Wait::Timeout)?;
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
                let ended = work(generation, join, &self.listener);
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
            self.master.node().child_exited(pid.as_raw() as u32, ExitStatus::from_raw(status));
            if let Some(at) = self.children.iter().position(|c| c.0 == pid) {
                let (_, number, generation) = self.children.swap_remove(at);
                ended.push((number, generation));
            }
        }
    }
}

fn tell(children: impl IntoIterator<Item = Pid>, signal: Signal) {
    // One may have ended in this moment; then SIGCHLD tells.
    children.into_iter().for_each(|pid| _ = kill(pid, signal));
}

/// A worker's life. It joins before it has a runtime: until then there is nothing that could be held up.
fn work(generation: &Generation, join: Join, listener: &TcpListener) -> Result<(), Failure> {
    let (worker, transitions) = generation.join(join)?;
    transitions.run(show);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(&worker, listener.try_clone()?))?;
    Ok(())
}

async fn serve(worker: &Worker, listener: TcpListener) -> Result<(), Failure> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    // SAFETY: a watch keeps its one descriptor open for as long as it lives, which is as long as its `AsyncFd`.
    let registered = unsafe { AsyncFd::register_with_interest(worker.watch()?, Interest::READABLE) };
    let mut watch = registered.map_err(|e| e.into_parts().1)?;
    let (mut stop, mut drain) = (signal(SignalKind::terminate())?, signal(SignalKind::quit())?);
    // What came before there was somebody to hear it, comes now.
    signals().thread_unblock()?;

    let mut heartbeat = interval(HEARTBEAT);
    let mut requests = JoinSet::new();
    let mut draining = false;
    while !(draining && requests.is_empty()) {
        tokio::select! {
            _ = heartbeat.tick() => worker.beat(),
            ready = watch.readable_mut() => {
                let mut ready = ready?;
                // Before looking, so that what comes after it makes it readable again.
                ready.clear_ready();
                match ready.get_inner_mut().process() {
                    Ok(transitions) => transitions.run(show),
                    // Somebody else reports something; the descriptor will be readable again.
                    Err(e) if e.is_busy() => {}
                    Err(e) => return Err(e.into()),
                }
            }
            accepted = listener.accept(), if !draining => {
                let (stream, _) = accepted?;
                requests.spawn(answer(stream, worker.clone()));
            }
            Some(_) = requests.join_next() => {}
            Some(()) = drain.recv() => {
                draining = true;
                patiently(|wait| worker.drain(wait)).await?.run(show);
            }
            Some(()) = stop.recv() => break,
        }
    }
    patiently(|wait| worker.leave(wait)).await?.run(show);
    Ok(())
}

/// Waits for the node lock without holding up the other tasks of this worker.
async fn patiently<T>(mut call: impl FnMut(Wait) -> headcount::Result<T>) -> headcount::Result<T> {
    loop {
        match call(Wait::Try) {
            Err(e) if e.is_busy() => sleep(Duration::from_millis(5)).await,
            answer => return answer,
        }
    }
}

async fn answer(mut stream: TcpStream, worker: Worker) {
    let mut request = [0; 1024];
    let limit = Duration::from_secs(5);
    if let Ok(Ok(1..)) = timeout(limit, stream.read(&mut request)).await {
        // Time enough to be told to drain meanwhile.
        if request.starts_with(b"GET /slow") {
            sleep(Duration::from_millis(300)).await;
        }
        let body =
            format!("{} workers; generation {}\n", worker.node().snapshot().total, worker.generation());
        let head = format!("HTTP/1.0 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        // A client that has gone is no reason to end.
        let _ = stream.write_all((head + &body).as_bytes()).await;
    }
}
