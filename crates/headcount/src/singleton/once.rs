//! What is to be done once.

use std::time::Duration;

use crate::coded::coded;
use crate::engine::inner::Inner;
use crate::engine::node_lock::{Operation, Wait};
use crate::engine::session::Session;
use crate::engine::singletons::Name;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Cause;
use crate::lifecycle::{Act, Facts, SingletonFacts, SingletonKind, SingletonState};
use crate::sys::atomic::Ordering::Relaxed;
use crate::sys::{clock, process};
use crate::worker::Worker;

coded! {
    /// For how long something stays done.
    #[non_exhaustive]
    OnceScope {
        /// As long as the generation: once for each load of the configuration.
        Generation = 1, "generation";
        /// As long as the node lives: over reloads and upgrades, until it is stopped.
        Node = 2, "node";
    }
}

/// One attempt at something that is to be done once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt {
    /// 1 for the first; three are made at most.
    pub number: u32,
    /// How the attempt before this one ended: it may have done a part.
    pub last: Option<Cause>,
    /// The signal that ended the process of that attempt.
    pub signal: Option<i32>,
}

/// A process that is at something that is to be done once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WhoRuns {
    /// Its process id.
    pub pid: u32,
    /// Its number as a worker.
    pub worker_id: Option<u32>,
    /// For how long.
    pub since: Duration,
}

/// How it is with something that is to be done once.
#[derive(Debug)]
#[must_use]
pub enum Begun {
    /// It is for this process to do it now.
    Run(OnceRun),
    /// It was done.
    Done,
    /// Another process is at it: call again when the worker's [`crate::Watch`] was readable.
    Running(WhoRuns),
    /// It was tried so often, in vain.
    Failed {
        /// How often.
        attempts: u32,
    },
}

/// What came of a call of [`Worker::once`].
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Once<E> {
    /// This call has done it.
    Done,
    /// It was done before.
    AlreadyDone,
    /// Another process is at it.
    Running {
        /// That process.
        by: WhoRuns,
    },
    /// It could not be done.
    Failed {
        /// How often it was tried; after three times it is not tried again.
        attempts: u32,
        /// What this call's attempt gave.
        error: Option<E>,
    },
}

impl Worker {
    /// Does this once in the scope, on whichever process comes first. `key`: 1 to 48 letters, digits, `.`, `_` and `-`.
    ///
    /// Nobody holds any lock while `run` runs: it may take hours. If its process dies in it, or it fails, the next call tries it
    /// again, in whichever process, three times at most.
    ///
    /// # Errors
    /// As those of [`Worker::begin_once`]; and if the end could not be written down within `lock_timeout`.
    ///
    /// ```no_run
    /// # fn migrate() -> std::io::Result<()> { Ok(()) }
    /// # fn f(worker: &headcount::Worker) -> headcount::Result<()> {
    /// use headcount::{Once, OnceScope};
    ///
    /// match worker.once(OnceScope::Node, "migration-7", |_attempt| migrate())? {
    ///     Once::Done | Once::AlreadyDone => {}
    ///     Once::Running { by } => println!("process {} is at it", by.pid),
    ///     Once::Failed { attempts, error } => println!("failed {attempts} times: {error:?}"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn once<E>(
        &self,
        scope: OnceScope,
        key: &str,
        run: impl FnOnce(&Attempt) -> std::result::Result<(), E>,
    ) -> Result<Once<E>> {
        Ok(match self.begin_once(scope, key, Wait::Timeout)? {
            Begun::Done => Once::AlreadyDone,
            Begun::Running(by) => Once::Running { by },
            Begun::Failed { attempts } => Once::Failed { attempts, error: None },
            Begun::Run(once) => {
                let attempt = once.attempt();
                match run(&attempt) {
                    Ok(()) => {
                        once.done()?;
                        Once::Done
                    }
                    Err(error) => {
                        once.failed()?;
                        Once::Failed { attempts: attempt.number, error: Some(error) }
                    }
                }
            }
        })
    }

    /// The first half of [`Worker::once`], for those whose work does not fit into a closure.
    ///
    /// # Errors
    /// [`crate::ErrorKind::InvalidOption`] for a key that is no name; [`crate::ErrorKind::WrongState`] if this process has left,
    /// or is not the one that joined, or is at it already; [`crate::ErrorKind::Full`] if the node has too many roles, onces and
    /// locks; [`crate::ErrorKind::LockTimeout`] or [`crate::ErrorKind::Busy`] if somebody else holds the node lock.
    pub fn begin_once(&self, scope: OnceScope, key: &str, wait: Wait) -> Result<Begun> {
        self.check()?;
        let name = Name::new("key", key)?;
        let inner = &self.node.inner;
        let of = match scope {
            OnceScope::Generation => self.generation(),
            OnceScope::Node => 0,
        };
        let find = || inner.find_singleton(SingletonKind::Once, &name, of);
        // Mostly it was done long ago, and that is for ever.
        if find().is_some_and(|index| is_done(inner, index)) {
            return Ok(Begun::Done);
        }
        let mut session = Session::begin(inner, wait, Operation::Singletons)?;
        session.settle_singletons();
        inner.process().hears_calls.store(true, Relaxed);
        let index = match find() {
            Some(index) => index,
            None => {
                let index = inner.make_singleton(SingletonKind::Once, &name, of)?;
                session.look();
                index
            }
        };
        let Some(x) = session.facts().singleton(index) else {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("{}: the record of {key} is spoiled", inner.place()),
            ));
        };
        Ok(match x.state {
            SingletonState::Done => Begun::Done,
            SingletonState::Failed => Begun::Failed { attempts: x.attempts },
            SingletonState::Running if x.owner_pid == process::pid() => {
                let text = format!("{}: this process is at {key} already", inner.place());
                return Err(Error::new(ErrorKind::WrongState, text));
            }
            SingletonState::Running => Begun::Running(WhoRuns {
                pid: x.owner_pid,
                worker_id: x.owner_worker_id,
                since: clock::elapsed_since(x.since_ns),
            }),
            _ => {
                let last = Some(x.cause).filter(|_| x.attempts > 0);
                let signal = x.wait_status.map(|status| status & 0x7f).filter(|&signal| signal != 0);
                let attempt = Attempt { number: x.attempts + 1, last, signal };
                session.run_once(index, self.slot);
                Begun::Run(OnceRun {
                    worker: self.clone(),
                    index,
                    attempt: Some(attempt),
                    pid: process::pid(),
                })
            }
        })
    }
}

fn is_done(inner: &Inner, index: u32) -> bool {
    inner.singleton(index).is_some_and(|x| x.state.load(Relaxed) == SingletonState::Done.code())
}

/// Something that is to be done once, and that this process is at. Dropping it without a word means that it failed.
#[must_use = "say whether it was done"]
pub struct OnceRun {
    worker: Worker,
    index: u32,
    attempt: Option<Attempt>,
    pid: u32,
}

impl std::fmt::Debug for OnceRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnceRun").field("attempt", &self.attempt).finish_non_exhaustive()
    }
}

impl OnceRun {
    /// Which attempt it is, and how the last one ended.
    #[must_use]
    pub fn attempt(&self) -> Attempt {
        self.attempt.unwrap_or(Attempt { number: 0, last: None, signal: None })
    }

    /// It was done.
    ///
    /// # Errors
    /// [`crate::ErrorKind::LockTimeout`] if somebody else holds the node lock all the time;
    /// [`crate::ErrorKind::WrongState`] if it is no longer this process's.
    pub fn done(mut self) -> Result<()> {
        self.finish(true, Wait::Timeout)
    }

    /// It was not done. Another one tries, if this was not the third attempt.
    ///
    /// # Errors
    /// As those of [`OnceRun::done`].
    pub fn failed(mut self) -> Result<()> {
        self.finish(false, Wait::Timeout)
    }

    /// Says whether it was done. Can be called again if somebody else holds the node lock; then it is still this process that is at
    /// it.
    ///
    /// # Errors
    /// As those of [`OnceRun::done`]; [`crate::ErrorKind::Busy`] as well.
    pub fn finish(&mut self, well: bool, wait: Wait) -> Result<()> {
        if self.attempt.is_none() || self.pid != process::pid() {
            return Ok(());
        }
        let inner = &self.worker.node.inner;
        let mut session = Session::begin(inner, wait, Operation::Singletons)?;
        self.attempt = None;
        let is_ours = |x: &&SingletonFacts| {
            x.kind == SingletonKind::Once
                && x.state == SingletonState::Running
                && x.owner == Some(self.worker.slot)
        };
        if session.facts().singleton(self.index).filter(is_ours).is_none() {
            let text = format!("{}: this process is not at it any more", inner.place());
            return Err(Error::new(ErrorKind::WrongState, text));
        }
        let mut act = end(session.facts(), self.index, well);
        session.clear(|_| act.take());
        session.settle_singletons();
        Ok(())
    }
}

fn end(facts: &Facts, index: u32, well: bool) -> Option<Act> {
    if well { Some(facts.singleton(index)?.done()) } else { facts.failed(index) }
}

impl Drop for OnceRun {
    fn drop(&mut self) {
        // Nobody is left to tell of an error; the worker's end says the same.
        let _ = self.finish(false, Wait::Timeout);
    }
}
