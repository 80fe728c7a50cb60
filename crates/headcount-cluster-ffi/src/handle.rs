//! What a `headcount_cluster *` stands for: a client of the agent, which any thread may use.

pub(crate) mod fork;
pub(crate) mod session;
pub(crate) mod table;
pub(crate) mod way;

use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use headcount_border::Failure;
use headcount_cluster_client::Client;

use self::fork::Inherited;
use self::session::Session;
use self::way::Way;
use crate::border::wrong_state;

/// A way to the agent. It belongs to the process that has opened it.
pub(crate) struct Handle {
    pub(crate) socket: PathBuf,
    way: Way,
    state: Mutex<State>,
    /// Something has happened, or the thread that waited for the agent does not any more.
    turn: Condvar,
    inherited: Inherited,
}

struct State {
    /// `None`: it was closed.
    session: Option<Session>,
    /// A thread waits for the agent; it tells the others.
    is_waited_for: bool,
}

impl Handle {
    pub(crate) fn new(socket: PathBuf) -> Result<Handle, Failure> {
        let session = Some(Session::new(Client::new(&socket)));
        let state = Mutex::new(State { session, is_waited_for: false });
        Ok(Handle { socket, way: Way::new()?, state, turn: Condvar::new(), inherited: Inherited::new() })
    }

    /// What a panic may have left behind is consistent at every statement.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the client do what is due, without waiting, and then this.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Session) -> Result<T, Failure>) -> Result<T, Failure> {
        let mut state = self.lock();
        self.step(&mut state, true)?;
        let done = act(session(&mut state)?)?;
        // What was asked for goes out now.
        self.step(&mut state, true)?;
        Ok(done)
    }

    /// Only looks: no system call.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Session) -> T) -> Result<T, Failure> {
        let mut state = self.lock();
        Ok(look(session(&mut state)?))
    }

    pub(crate) fn take_notice(&self) -> Result<Option<(u32, String)>, Failure> {
        Ok(session(&mut self.lock())?.notices.pop_front())
    }

    /// What the owner of an event loop calls.
    pub(crate) fn process(&self) -> Result<(), Failure> {
        self.way.quiet();
        let mut state = self.lock();
        self.step(&mut state, false).map(|_| ())
    }

    /// Waits until this is there, for `limit` at most. `None`: it is not.
    pub(crate) fn wait_for<T>(
        &self,
        limit: Duration,
        mut look: impl FnMut(&mut Session) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        let began = Instant::now();
        let mut state = self.lock();
        loop {
            self.step(&mut state, true)?;
            if let Some(found) = look(session(&mut state)?) {
                // What that has asked for.
                self.step(&mut state, true)?;
                return Ok(Some(found));
            }
            let left = limit.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            if state.is_waited_for {
                state =
                    self.turn.wait_timeout(state, left).map_or_else(|e| e.into_inner().0, |found| found.0);
                continue;
            }
            state.is_waited_for = true;
            drop(state);
            let waited = self.way.wait(left);
            state = self.lock();
            state.is_waited_for = false;
            // Another one takes the turn, if this one has what it waits for.
            self.turn.notify_all();
            waited?;
        }
    }

    /// `tell`: the event loop of this process has something to look at, if something has happened.
    fn step(&self, state: &mut State, tell: bool) -> Result<(), Failure> {
        let is_waited_for = state.is_waited_for;
        let client = session(state)?;
        // A child that is forked meanwhile must not close a descriptor that has come into its place.
        self.inherited.forget();
        let has_happened = client.step();
        let changed = self.way.follow(client.fd(), client.timeout())?;
        self.inherited.note(client.fd());
        if has_happened && tell {
            self.way.ring();
        }
        if has_happened || changed {
            self.turn.notify_all();
            if is_waited_for {
                self.way.wake();
            }
        }
        Ok(())
    }

    pub(crate) fn fd(&self) -> i32 {
        self.way.fd()
    }

    /// All that this process has by it is free. Threads that are inside are told.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        self.inherited.forget();
        state.session = None;
        self.turn.notify_all();
        self.way.wake();
    }
}

fn session(state: &mut State) -> Result<&mut Session, Failure> {
    state.session.as_mut().ok_or_else(|| wrong_state("this was closed by another thread meanwhile"))
}
