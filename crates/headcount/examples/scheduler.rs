//! The server of `prefork.rs`, with things that only one of its workers does: `duties/mod.rs`.
//!
//! ```text
//! cargo run --example scheduler -- 127.0.0.1:8080 /tmp/demo.registry 4
//! headcount status --registry /tmp/demo.registry
//! curl http://127.0.0.1:8080/report
//! ```

mod duties;
mod master;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::time::Duration;

use headcount::{Generation, Join, Member, Moment, NamedLock, Wait, Worker};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SignalFd};

use duties::{Scheduler, migrate, warm_up, write_report};
use master::{Failure, show, signals};

fn main() -> Result<(), Failure> {
    master::run("scheduler-example", work)
}

/// A worker's life, as in `prefork.rs`.
fn work(generation: &Generation, join: Join, listener: &TcpListener) -> Result<(), Failure> {
    let inbox = SignalFd::with_flags(&signals(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut member = Member::new(generation.clone(), join, Moment::now());
    let mut step = member.join(Moment::now(), Wait::Timeout)?;
    let mut duties: Option<Duties> = None;
    let mut leaving = false;
    loop {
        step.transitions.run(show);
        if let (None, Some(worker)) = (&duties, member.worker()) {
            duties = Some(Duties::new(worker)?);
        }
        let until_jobs = duties.as_mut().map(Duties::step).transpose()?.flatten();
        if leaving && !step.unsaid {
            if let Some(duties) = duties.take() {
                duties.scheduler.leave();
            }
            member.leave(Wait::Timeout)?.run(show);
            return Ok(());
        }
        let mut fds = vec![
            PollFd::new(inbox.as_fd(), PollFlags::POLLIN),
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(member.watch_fd().filter(|_| step.listen).map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let sleep = until_jobs.map_or(step.next, |jobs| jobs.min(step.next));
        match poll(&mut fds, PollTimeout::try_from(sleep + Duration::from_millis(1))?) {
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
        if let Some(duties) = duties.as_ref().filter(|_| ready[1]) {
            serve(listener, duties)?;
        }
        let readable = ready.get(2) == Some(&true);
        step = if readable { member.on_readable(Moment::now()) } else { member.on_time(Moment::now()) };
    }
}

struct Duties {
    worker: Worker,
    scheduler: Scheduler,
    report: NamedLock,
    has_migrated: bool,
    is_warm: bool,
}

impl Duties {
    fn new(worker: &Worker) -> headcount::Result<Duties> {
        let (scheduler, report) = (Scheduler::stand(worker)?, worker.lock("report")?);
        Ok(Duties { worker: worker.clone(), scheduler, report, has_migrated: false, is_warm: false })
    }

    fn step(&mut self) -> headcount::Result<Option<Duration>> {
        self.has_migrated = self.has_migrated || migrate(&self.worker)?;
        self.is_warm = self.is_warm || warm_up(&self.worker)?;
        Ok(self.scheduler.step())
    }
}

fn serve(listener: &TcpListener, duties: &Duties) -> Result<(), Failure> {
    let (mut stream, _) = match listener.accept() {
        Ok(accepted) => accepted,
        // A sibling was quicker.
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut request = [0; 1024];
    if stream.read(&mut request).is_ok() {
        let wants_report = request.starts_with(b"GET /report ");
        let (status, body) = match wants_report.then(|| write_report(&duties.report)) {
            None => ("200 OK", format!("{} workers\n", duties.worker.node().snapshot().total)),
            Some(Ok(())) => ("200 OK", "the report is written\n".to_owned()),
            Some(Err(error)) => ("503 Busy", format!("{error}\n")),
        };
        // A client that has gone is no reason to end.
        let _ = write!(stream, "HTTP/1.0 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    }
    Ok(())
}
