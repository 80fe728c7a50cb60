//! Whose seat it is: how somebody loses it, and who comes after.

use std::collections::BTreeMap;

use headcount_cluster_client::protocol::Message;

use super::{Book, Claim, How, Kind, Order, Seat, Session, SessionId, Waiter, What};

impl Book {
    pub(super) fn held_by(&self, session: SessionId) -> Vec<What> {
        let is_its = |claim: &Claim| claim.holder().is_some_and(|by| by.session == session);
        self.claims.iter().filter(|(_, claim)| is_its(claim)).map(|(what, _)| what.clone()).collect()
    }

    /// The number of the attempt by which it is tried or held.
    #[must_use]
    pub fn attempt_of(&self, what: &What) -> Option<u64> {
        match self.claims.get(what)?.seat {
            Seat::Held { attempt, .. } | Seat::Trying(attempt) => Some(attempt),
            Seat::Idle => None,
        }
    }

    /// Who waits for it, in their order.
    pub fn waiters(&self, what: &What) -> impl Iterator<Item = SessionId> {
        let queue = self.claims.get(what).map(|claim| &claim.queue);
        queue.into_iter().flatten().map(|waiter| waiter.session)
    }

    pub(super) fn lock_of(&self, waiter: Waiter) -> Option<What> {
        let mut locks = self.claims.iter().filter(|(what, _)| what.kind == Kind::Lock);
        locks.find(|(_, claim)| claim.has(waiter)).map(|(what, _)| what.clone())
    }

    /// Whoever has it has it no more, and is told. Who leads a role or runs a once waits for it again.
    pub(super) fn lose(&mut self, what: &What, why: &str) {
        let Some(by) = self.vacate(what) else { return };
        let (name, why) = (what.name.clone(), why.to_owned());
        self.tell(
            by.session,
            match what.kind {
                Kind::Role => Message::Lost { role: name, why },
                Kind::Lock => Message::LockLost { id: by.id, name, why },
                Kind::Once => Message::RunLost { key: name, why },
            },
        );
        let is_closed = self.sessions.get(&by.session).is_none_or(|one| one.closed);
        if what.kind != Kind::Lock && !is_closed {
            self.requeue(what, by);
        }
    }

    /// Nobody has it from now on. Who had it.
    pub(super) fn vacate(&mut self, what: &What) -> Option<Waiter> {
        let claim = self.claims.get_mut(what)?;
        let by = claim.holder()?;
        claim.seat = Seat::Idle;
        self.change(by.session, |one| {
            one.held = one.held.saturating_sub(1);
            one.wants = one.wants.saturating_sub(1);
        });
        Some(by)
    }

    pub(super) fn requeue(&mut self, what: &What, waiter: Waiter) {
        if let Some(claim) = self.claims.get_mut(what) {
            claim.queue.push_back(waiter);
            self.change(waiter.session, |one| one.wants += 1);
        }
    }

    pub(super) fn free(&mut self, what: &What, how: How) {
        if let Some(attempt) = self.attempt_of(what) {
            self.orders.push(Order::Free(what.clone(), attempt, how));
        }
        self.vacate(what);
    }

    pub(super) fn remove(&mut self, what: &What, waiter: Waiter, how: How) {
        let Some(claim) = self.claims.get_mut(what) else { return };
        if claim.holder() == Some(waiter) {
            return self.free(what, how);
        }
        claim.queue.retain(|other| *other != waiter);
        self.change(waiter.session, |one| one.wants = one.wants.saturating_sub(1));
    }

    /// What follows from the state of a claim: somebody is to be found for it, or nobody wants it.
    pub(super) fn advance(&mut self, what: &What) {
        let Some(claim) = self.claims.get_mut(what) else { return };
        let sessions = &self.sessions;
        let is_wanted = !self.is_ending && claim.queue.iter().any(|waiter| is_fit(sessions, *waiter));
        match claim.seat {
            Seat::Idle if is_wanted && self.deadline > 0 => {
                self.attempts += 1;
                claim.seat = Seat::Trying(self.attempts);
                self.orders.push(Order::Try(what.clone(), self.attempts));
            }
            Seat::Trying(attempt) if !is_wanted => {
                claim.seat = Seat::Idle;
                self.orders.push(Order::Free(what.clone(), attempt, How::NotBegun));
            }
            _ => {}
        }
        if self.claims.get(what).is_some_and(|claim| claim.seat == Seat::Idle && claim.queue.is_empty()) {
            self.claims.remove(what);
        }
    }

    pub(super) fn advance_all(&mut self) {
        let all: Vec<What> = self.claims.keys().cloned().collect();
        all.iter().for_each(|what| self.advance(what));
    }

    pub(super) fn change(&mut self, session: SessionId, change: impl FnOnce(&mut Session)) {
        if let Some(one) = self.sessions.get_mut(&session) {
            change(one);
        }
    }

    pub(super) fn tell(&mut self, session: SessionId, message: Message) {
        self.orders.push(Order::Tell(session, message));
    }
}

impl Claim {
    pub(super) fn holder(&self) -> Option<Waiter> {
        match self.seat {
            Seat::Held { by, .. } => Some(by),
            _ => None,
        }
    }

    pub(super) fn has(&self, waiter: Waiter) -> bool {
        self.holder() == Some(waiter) || self.queue.contains(&waiter)
    }
}

pub(super) fn is_fit(sessions: &BTreeMap<SessionId, Session>, waiter: Waiter) -> bool {
    sessions.get(&waiter.session).is_some_and(|one| !one.silent && !one.closed)
}
