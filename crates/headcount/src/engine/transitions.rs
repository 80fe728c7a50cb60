//! Transitions: what is reported, one after the other, while the node lock is held.
//!
//! A transition is journalled first, then handed out for its callback, and completed when the next one is
//! asked for. Whoever dies in between leaves enough behind for the next holder to go on: a slot or a
//! generation is only freed once its last report has been delivered.

use std::collections::VecDeque;
use std::marker::PhantomData;

use crate::engine::session::Session;
use crate::event::Event;
use crate::lifecycle::{Act, Stage};

/// One event that is to be acted upon, while the node lock is held.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transition {
    /// What happened, with the counts.
    pub event: Event,
    /// A process died while it acted upon this very event: it may have been acted upon in part.
    pub retry: bool,
}

/// The transitions of one call, and the node lock that is held meanwhile.
///
/// Hand each to your handler and then ask for the next one; the lock is released after the last one or
/// when this is dropped. A handler may be slow, fail, or kill its process: the registry stays consistent.
///
/// While this lives, every other process that wants to report something waits. Do not start it and keep it. It stays
/// on its thread, which is the one that has the lock.
#[must_use = "the node lock is held until this is dropped"]
pub struct Transitions {
    session: Option<Session>,
    stages: VecDeque<Stage>,
    current: Option<(Event, Act)>,
    _stays_on_its_thread: PhantomData<*const ()>,
}

impl std::fmt::Debug for Transitions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transitions")
            .field("stages", &self.stages)
            .field("current", &self.current)
            .finish_non_exhaustive()
    }
}

impl Transitions {
    pub(crate) fn new(
        session: impl Into<Option<Session>>,
        stages: impl IntoIterator<Item = Stage>,
    ) -> Transitions {
        Transitions {
            session: session.into(),
            stages: stages.into_iter().collect(),
            current: None,
            _stays_on_its_thread: PhantomData,
        }
    }

    /// Nothing to report, and no lock.
    pub(crate) fn none() -> Transitions {
        Transitions::new(None, [])
    }

    /// Whether there never was anything to report.
    pub(crate) fn is_none(&self) -> bool {
        self.session.is_none()
    }

    /// Completes the transition handed out before, and hands out the next one. `None`: that was the last,
    /// and the lock is released.
    ///
    /// Not an `Iterator`, because an adaptor that collects would complete transitions that nobody has
    /// acted upon.
    #[expect(clippy::should_implement_trait, reason = "see above")]
    pub fn next(&mut self) -> Option<Transition> {
        self.leave_to_parent();
        self.complete();
        while let Some(session) = &mut self.session {
            let Some(&stage) = self.stages.front() else {
                self.session = None;
                break;
            };
            let Some(act) = session.next(stage) else {
                self.stages.pop_front();
                continue;
            };
            if act.is_last {
                self.stages.pop_front();
            }
            match session.carry_out(&act).filter(|event| act.deliver && event.kind.has_callback()) {
                Some(event) => {
                    session.callback_begins(&event);
                    let retry = act.tries > 0;
                    self.current = Some((event.clone(), act));
                    return Some(Transition { event, retry });
                }
                None => session.complete(&act),
            }
        }
        None
    }

    /// Runs `handler` for every transition, then releases the lock. A panic of the handler is noted in
    /// the journal, and passed on with the lock released.
    pub fn run(mut self, mut handler: impl FnMut(&Transition)) {
        while let Some(transition) = self.next() {
            handler(&transition);
        }
    }

    /// Notes in the journal that the callback of the current transition failed. It counts as run.
    pub fn callback_failed(&mut self) {
        if let (Some(session), Some((event, _))) = (&mut self.session, &self.current) {
            session.callback_failed(event);
        }
    }

    /// The process is to end, and will never come back to the callback of the current transition. One that is about others
    /// is run again elsewhere, as if this process had died in it; one that is about this process has failed.
    pub fn callback_cut_short(mut self) {
        let Some((event, _)) = &self.current else { return };
        let Some(session) = self.session.as_mut().filter(|session| session.is_ours()) else { return };
        if session.hand_callback_on(event) {
            self.current = None;
        }
    }

    /// A child that was forked in a callback, and goes on in it, has nothing to do here.
    fn leave_to_parent(&mut self) {
        if self.session.as_ref().is_some_and(|session| !session.is_ours()) {
            self.current = None;
            self.stages.clear();
            self.session = None;
        }
    }

    fn complete(&mut self) {
        if let (Some(session), Some((_, act))) = (&mut self.session, self.current.take()) {
            session.complete(&act);
            session.callback_ends();
        }
    }
}

impl Drop for Transitions {
    fn drop(&mut self) {
        self.leave_to_parent();
        if self.current.is_some() && std::thread::panicking() {
            self.callback_failed();
        }
        // What concerns this process itself must still become a fact; what concerns others is left to
        // them, callbacks and all.
        self.complete();
        self.stages.retain(|s| !matches!(s, Stage::Settle(_)));
        while self.next().is_some() {}
    }
}
