//! A worker's life under tokio: a future to await beside everything else, which beats meanwhile.

use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, sleep_until};

use crate::engine::node_lock::Wait;
use crate::engine::transitions::Transitions;
use crate::error::{Error, Result};
use crate::generation::{Generation, Join};
use crate::member::{Member, Moment, Step};
use crate::sys::reactor;

/// How long to sleep while somebody else holds the node lock.
const PAUSE: Duration = Duration::from_millis(5);

/// A [`Member`] whose loop is a task of tokio's.
///
/// ```no_run
/// # async fn serve(generation: &headcount::Generation) -> headcount::Result<()> {
/// # async fn request() {}
/// # async fn stop() {}
/// use headcount::{AsyncMember, Join};
///
/// let (mut member, started) = AsyncMember::join(generation, Join::worker(Some(0))).await?;
/// started.run(|t| println!("{}", t.event.kind));
/// loop {
///     tokio::select! {
///         // In the loop that does the work, so that one that hangs does not beat.
///         transitions = member.next() => transitions.run(|t| println!("{}", t.event.kind)),
///         () = request() => {}
///         () = stop() => break,
///     }
/// }
/// member.leave().await?.run(|t| println!("{}", t.event.kind));
/// # Ok(())
/// # }
/// ```
pub struct AsyncMember {
    member: Member,
    /// The watch's descriptor, registered with the runtime.
    watch: Option<AsyncFd<OwnedFd>>,
    listens: bool,
    due: Instant,
}

impl AsyncMember {
    /// Joins this generation; waits for the node lock, and for nothing else, without holding up other tasks.
    ///
    /// # Errors
    /// As those of [`Generation::join`], and [`crate::ErrorKind::Io`] where the runtime takes no descriptor.
    ///
    /// # Panics
    /// Outside of a runtime with IO and time enabled.
    pub async fn join(generation: &Generation, join: Join) -> Result<(AsyncMember, Transitions)> {
        let limit = generation.node().inner.settings().lock_timeout;
        let mut member = Member::new(generation.clone(), join, Moment::now());
        let step = patiently(limit, |wait| member.join(Moment::now(), wait)).await?;
        let mut this = AsyncMember { member, watch: None, listens: false, due: Instant::now() };
        if let Some(fd) = this.member.watch_fd() {
            let registered = fd.try_clone_to_owned().and_then(reactor::register);
            this.watch =
                Some(registered.map_err(|e| Error::io("have tokio wait for the watch of a worker", e))?);
        }
        let transitions = this.follow(step);
        Ok((this, transitions))
    }

    /// Waits till there is something to report, and beats meanwhile: to be polled for as long as the worker lives. Run
    /// what it gives at once, it holds the node lock. Loses nothing when it is dropped.
    pub async fn next(&mut self) -> Transitions {
        loop {
            let readable = tokio::select! {
                () = sleep_until(self.due) => false,
                yes = readable(self.watch.as_ref().filter(|_| self.listens)) => yes,
            };
            let now = Moment::now();
            let step = if readable { self.member.on_readable(now) } else { self.member.on_time(now) };
            let transitions = self.follow(step);
            if !transitions.is_none() {
                return transitions;
            }
        }
    }

    /// It takes no new work from now on, and says so as soon as the node lock is free. If this is dropped before that,
    /// [`AsyncMember::next`] says it.
    pub async fn drain(&mut self) -> Transitions {
        loop {
            let step = self.member.begin_drain(Moment::now());
            let (unsaid, next) = (step.unsaid, step.next);
            let transitions = self.follow(step);
            if !unsaid || !transitions.is_none() {
                return transitions;
            }
            sleep(next).await;
        }
    }

    /// It leaves: its last words.
    ///
    /// # Errors
    /// As those of [`crate::Worker::leave`].
    pub async fn leave(mut self) -> Result<Transitions> {
        let limit = self.member.generation().node().inner.settings().lock_timeout;
        patiently(limit, |wait| self.member.leave(wait)).await
    }

    /// What it drives.
    #[must_use]
    pub fn member(&self) -> &Member {
        &self.member
    }

    fn follow(&mut self, step: Step) -> Transitions {
        self.listens = step.listen;
        self.due = Instant::now() + step.next;
        step.transitions
    }
}

/// Waits till the descriptor is readable; without one for ever. `false`: the runtime is ending.
async fn readable(watch: Option<&AsyncFd<OwnedFd>>) -> bool {
    let Some(watch) = watch else { return std::future::pending().await };
    match watch.readable().await {
        Ok(mut ready) => {
            // Before looking, so that what comes after it makes it readable again.
            ready.clear_ready();
            true
        }
        Err(_) => false,
    }
}

/// Waits for the node lock without holding up the other tasks of this worker.
async fn patiently<T>(limit: Duration, mut call: impl FnMut(Wait) -> Result<T>) -> Result<T> {
    let until = Instant::now() + limit;
    loop {
        match call(Wait::Try) {
            Err(error) if error.is_busy() && Instant::now() < until => sleep(PAUSE).await,
            answer => return answer,
        }
    }
}
