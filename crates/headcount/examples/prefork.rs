//! A small pre-forking server: one listener, some workers, reload on HUP, respawn, fast stop on TERM,
//! graceful stop on QUIT. Every report is printed as a line. What its master does stands in `master/mod.rs`.
//!
//! ```text
//! cargo run --example prefork -- 127.0.0.1:8080 /tmp/demo.registry 4
//! kill -HUP  PID   # reload: new workers beside the old ones, which drain
//! kill -KILL WORKER_PID
//! kill -TERM PID
//! ```

mod master;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use headcount::{Generation, Join, Member, Moment, Wait, Worker};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SignalFd};

use master::{Failure, show, signals};

fn main() -> Result<(), Failure> {
    master::run("prefork-example", work)
}

/// A worker's life. Its loop wakes for signals, requests, what happens to the others, and once for each heartbeat.
fn work(generation: &Generation, join: Join, listener: &TcpListener) -> Result<(), Failure> {
    let inbox = SignalFd::with_flags(&signals(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut member = Member::new(generation.clone(), join, Moment::now());
    let mut step = member.join(Moment::now(), Wait::Timeout)?;
    let mut leaving = false;
    loop {
        step.transitions.run(show);
        if leaving && !step.unsaid {
            member.leave(Wait::Timeout)?.run(show);
            return Ok(());
        }
        let mut fds = vec![
            PollFd::new(inbox.as_fd(), PollFlags::POLLIN),
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(member.watch_fd().filter(|_| step.listen).map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        // Rounded up, so that it is not woken a moment too early.
        match poll(&mut fds, PollTimeout::try_from(step.next + Duration::from_millis(1))?) {
            // It was stopped and goes on, or was frozen: nothing is readable, and it may be time.
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        let told = if ready[0] { inbox.read_signal()? } else { None };
        if let Some(info) = told {
            leaving = true;
            if info.ssi_signo == Signal::SIGQUIT as u32 {
                step = member.begin_drain(Moment::now());
                continue;
            }
        }
        if let Some(worker) = member.worker().filter(|_| ready[1]) {
            serve(listener, worker)?;
        }
        let readable = ready.get(2) == Some(&true);
        step = if readable { member.on_readable(Moment::now()) } else { member.on_time(Moment::now()) };
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
