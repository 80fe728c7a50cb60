//! Who on this host waits for what, and who has it. Pure: what happens goes in, with the time, and orders come out.
//!
//! The host has at most one key in etcd for each role, once or lock, however many of its processes want it: they wait here, in
//! their order. Three rules keep two processes from having the same thing:
//! - Nobody has anything after the lease's deadline, and each process is told that deadline.
//! - A key is freed only when its holder has let go, has ended, or the last deadline that it was told of has passed.
//! - A key that was held is never held again: the next tenure has another key, and so a larger token.

mod seats;

use std::collections::{BTreeMap, VecDeque};

use headcount_cluster_client::protocol::{Message, NAME, is_name};

use seats::is_fit;

/// A process that is connected.
pub type SessionId = u64;

/// What can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Somebody has it whenever somebody stands for it.
    Role,
    /// Somebody has it for a while.
    Lock,
    /// Somebody has it until it is done.
    Once,
}

/// A role, a lock or a once, by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct What {
    /// Which of them.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

impl What {
    /// Of this kind and name.
    #[must_use]
    pub fn new(kind: Kind, name: &str) -> What {
        What { kind, name: name.to_owned() }
    }
}

/// How it ends that somebody has something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// As it wished; a once that it ran has succeeded.
    LetGo,
    /// A once that it ran has failed.
    Failed,
    /// Its process has ended.
    Died,
    /// It did not say in time that it is alive.
    Stalled,
    /// Nobody had it yet.
    NotBegun,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Get the key, by an attempt of this number, for whoever is first then.
    Try(What, u64),
    /// It was got: write whom it is for.
    Sign(What, u64, SessionId),
    /// Free the key of this attempt, or do not try any more.
    Free(What, u64, How),
    /// Tell a process.
    Tell(SessionId, Message),
    /// Never use this lease again.
    Abandon,
}

/// So much may one process want at a time,
pub const MOST_OF_ONE: usize = 64;
/// and all of this host.
pub const MOST: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiter {
    session: SessionId,
    /// Tells one request for a lock from the next.
    id: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Seat {
    Idle,
    Trying(u64),
    Held { attempt: u64, by: Waiter },
}

#[derive(Debug)]
struct Claim {
    seat: Seat,
    /// Without the one who has it.
    queue: VecDeque<Waiter>,
}

#[derive(Debug, Default)]
struct Session {
    /// The last deadline that it was told of.
    told: u64,
    /// It has said that it read that.
    acked: bool,
    /// It has not, in time: nothing is for it before it does.
    silent: bool,
    /// Its connection was closed from here. What it has it may go on to use until its deadline.
    closed: bool,
    /// What it has.
    held: usize,
    /// What it wants or has.
    wants: usize,
}

/// All of it. Times are in milliseconds of `CLOCK_BOOTTIME`.
#[derive(Debug, Default)]
pub struct Book {
    sessions: BTreeMap<SessionId, Session>,
    claims: BTreeMap<What, Claim>,
    /// Until then the lease is ours for certain; 0 without one.
    deadline: u64,
    attempts: u64,
    is_ending: bool,
    orders: Vec<Order>,
}

impl Book {
    /// What is to be done since this was asked last, in this order.
    pub fn orders(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.orders)
    }

    /// Whether anybody wants anything.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        !self.claims.is_empty()
    }

    /// Whether anybody has anything.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.sessions.values().any(|session| session.held > 0)
    }

    /// The process that has this.
    #[must_use]
    pub fn holder(&self, what: &What) -> Option<SessionId> {
        match self.claims.get(what)?.seat {
            Seat::Held { by, .. } => Some(by.session),
            _ => None,
        }
    }

    /// What is being tried or held, with the numbers of the attempts.
    pub fn attempts(&self) -> impl Iterator<Item = (&What, u64)> {
        self.claims.iter().filter_map(|(what, claim)| match claim.seat {
            Seat::Trying(attempt) | Seat::Held { attempt, .. } => Some((what, attempt)),
            Seat::Idle => None,
        })
    }

    /// When [`Book::tick`] has something to do.
    #[must_use]
    pub fn next_tick(&self) -> Option<u64> {
        let told = self.sessions.values().filter(|session| session.held > 0).map(|session| session.told);
        told.chain((self.deadline > 0).then_some(self.deadline)).min()
    }

    /// A process has connected.
    pub fn enter(&mut self, session: SessionId) {
        self.sessions.insert(session, Session { acked: true, ..Session::default() });
    }

    /// It wants this. `id` tells one request for a lock from the next.
    ///
    /// # Errors
    /// Why it cannot be asked for: what is allowed.
    pub fn want(&mut self, session: SessionId, what: What, id: u64) -> Result<(), String> {
        let waiter = Waiter { session, id };
        if !is_name(&what.name) {
            return Err(format!("{:?} is no name of a {}; allowed is {NAME}", what.name, word(what.kind)));
        }
        if self.is_ending {
            return Err("the agent ends".to_owned());
        }
        let total: usize = self.sessions.values().map(|session| session.wants).sum();
        let wants = self.sessions.get(&session).map_or(0, |session| session.wants);
        if wants >= MOST_OF_ONE {
            return Err(format!(
                "this process has or wants {MOST_OF_ONE} roles, onces and locks; allowed are no more"
            ));
        }
        if total >= MOST {
            return Err(format!(
                "the processes of this host have or want {MOST} roles, onces and locks; allowed are no more"
            ));
        }
        if what.kind == Kind::Lock {
            let of_id = self.claims.iter().filter(|(other, _)| other.kind == Kind::Lock);
            if of_id.into_iter().any(|(_, claim)| claim.has(waiter)) {
                return Err(format!(
                    "there is a request {id} already; allowed is each number once at a time"
                ));
            }
        } else if self.claims.get(&what).is_some_and(|claim| claim.has(waiter)) {
            return Err(format!(
                "this process has asked for the {} {} already; allowed is once",
                word(what.kind),
                what.name
            ));
        }
        let claim =
            self.claims.entry(what.clone()).or_insert(Claim { seat: Seat::Idle, queue: VecDeque::new() });
        claim.queue.push_back(waiter);
        self.change(session, |session| session.wants += 1);
        self.advance(&what);
        Ok(())
    }

    /// It wants or has it no more.
    ///
    /// # Errors
    /// It did not want it, or it did not have what only who has it can end.
    pub fn let_go(&mut self, session: SessionId, what: &What, how: How) -> Result<(), String> {
        let nothing = || format!("this process has not asked for the {} {}", word(what.kind), what.name);
        let waiter = Waiter { session, id: 0 };
        let is_wanted = self.claims.get(what).is_some_and(|claim| claim.has(waiter));
        if what.kind == Kind::Once {
            let holder = self.claims.get(what).filter(|_| is_wanted).ok_or_else(nothing)?.holder();
            if holder != Some(waiter) {
                return Err(format!("this process does not run {} now", what.name));
            }
            // It hears how it is settled, as the others do.
            self.free(what, how);
            self.requeue(what, waiter);
        } else {
            if is_wanted {
                self.remove(what, waiter, how);
            }
            // Whatever becomes of it: a process counts these, to tell what comes after it from what was on its way before.
            self.tell(session, Message::Left { role: what.name.clone() });
            if !is_wanted {
                return Err(nothing());
            }
        }
        self.advance(what);
        Ok(())
    }

    /// It wants or has the lock of this request no more.
    ///
    /// # Errors
    /// There is none.
    pub fn unlock(&mut self, session: SessionId, id: u64) -> Result<(), String> {
        let waiter = Waiter { session, id };
        let what = self.lock_of(waiter).ok_or_else(|| format!("there is no lock with the number {id}"))?;
        self.remove(&what, waiter, How::LetGo);
        self.tell(session, Message::Unlocked { id });
        self.advance(&what);
        Ok(())
    }

    /// Which lock this request waits for, if it does.
    #[must_use]
    pub fn waits_for(&self, session: SessionId, id: u64) -> Option<What> {
        let waiter = Waiter { session, id };
        self.lock_of(waiter)
            .filter(|what| self.claims.get(what).is_some_and(|claim| claim.queue.contains(&waiter)))
    }

    /// It has waited for the lock as long as it wished. Nothing happens if it has got it.
    pub fn time_out(&mut self, session: SessionId, id: u64, why: String) {
        let Some(what) = self.waits_for(session, id) else { return };
        self.remove(&what, Waiter { session, id }, How::LetGo);
        self.tell(session, Message::NotLocked { id, name: what.name.clone(), why });
        self.advance(&what);
    }

    /// Its process has ended, or it has closed its connection: it uses nothing any more.
    pub fn gone(&mut self, session: SessionId) {
        self.leave(session, true);
        self.sessions.remove(&session);
    }

    /// Its connection was closed from here, which it may not have noticed: what it has stays its own until its deadline.
    pub fn closed(&mut self, session: SessionId) {
        self.change(session, |session| session.closed = true);
        self.leave(session, false);
        self.sessions.retain(|_, session| !session.closed || session.held > 0);
    }

    fn leave(&mut self, session: SessionId, with_what_it_has: bool) {
        let all: Vec<What> = self.claims.keys().cloned().collect();
        for what in all {
            let Some(claim) = self.claims.get_mut(&what) else { continue };
            claim.queue.retain(|waiter| waiter.session != session);
            if with_what_it_has && claim.holder().is_some_and(|by| by.session == session) {
                self.free(&what, How::Died);
            }
            self.advance(&what);
        }
    }

    /// It is alive, and has read its deadline.
    pub fn acked(&mut self, session: SessionId) {
        let deadline = self.deadline;
        let Some(one) = self.sessions.get_mut(&session) else { return };
        one.acked = true;
        let was_silent = std::mem::take(&mut one.silent);
        if one.held > 0 && deadline > one.told {
            self.renew(session);
        }
        if was_silent {
            self.advance_all();
        }
    }

    /// There is a lease, or it was extended: it lasts until then for certain.
    pub fn renewed(&mut self, deadline: u64) {
        let is_new = self.deadline == 0;
        // What was promised is not taken back.
        let deadline = deadline.max(self.deadline);
        self.deadline = deadline;
        let holders: Vec<SessionId> = self
            .sessions
            .iter()
            // One that was closed hears of no deadline any more.
            .filter(|(_, one)| one.held > 0 && one.acked && !one.closed && one.told < deadline)
            .map(|(id, _)| *id)
            .collect();
        holders.into_iter().for_each(|session| self.renew(session));
        if is_new {
            self.advance_all();
        }
    }

    fn renew(&mut self, session: SessionId) {
        let deadline = self.deadline;
        self.change(session, |one| (one.told, one.acked) = (deadline, false));
        self.tell(session, Message::Renewed { deadline });
    }

    /// This attempt has got the key. Of a once: the number of the attempt to do it, and how the one before ended.
    pub fn held(
        &mut self,
        what: &What,
        attempt: u64,
        token: u64,
        run: Option<(u32, Option<String>)>,
        now: u64,
    ) {
        if now >= self.deadline {
            return self.lapse("etcd did not confirm in time that this host has it");
        }
        let Some(claim) = self.claims.get_mut(what).filter(|claim| claim.seat == Seat::Trying(attempt))
        else {
            return;
        };
        let sessions = &self.sessions;
        let first = claim.queue.iter().position(|waiter| is_fit(sessions, *waiter));
        let Some(by) = first.and_then(|first| claim.queue.remove(first)) else { return self.advance(what) };
        claim.seat = Seat::Held { attempt, by };
        let deadline = self.deadline;
        self.change(by.session, |one| {
            one.held += 1;
            (one.told, one.acked) = (deadline, false);
        });
        self.orders.push(Order::Sign(what.clone(), attempt, by.session));
        let name = what.name.clone();
        self.tell(
            by.session,
            match (what.kind, run) {
                (Kind::Role, _) => Message::Elected { role: name, token, deadline },
                (Kind::Lock, _) => Message::Locked { id: by.id, name, token, deadline },
                (Kind::Once, run) => {
                    let (attempt, last) = run.unwrap_or((1, None));
                    Message::Run { key: name, attempt, last, token, deadline }
                }
            },
        );
    }

    /// The key of this attempt is gone, and not by us.
    pub fn key_gone(&mut self, what: &What, attempt: u64) {
        let Some(claim) = self.claims.get_mut(what) else { return };
        match claim.seat {
            Seat::Trying(trying) if trying == attempt => claim.seat = Seat::Idle,
            Seat::Held { attempt: held, .. } if held == attempt => {
                self.lose(what, "its key in etcd was removed")
            }
            _ => return,
        }
        self.advance(what);
    }

    /// The once is settled: that of the attempt, of which there is nothing left.
    pub fn settled(&mut self, what: &What, attempt: u64, failed: Option<(u32, String)>) {
        if self.claims.get(what).is_none_or(|claim| claim.seat != Seat::Trying(attempt)) {
            return;
        }
        let Some(claim) = self.claims.remove(what) else { return };
        for waiter in claim.queue {
            self.change(waiter.session, |one| one.wants = one.wants.saturating_sub(1));
            let key = what.name.clone();
            self.tell(
                waiter.session,
                match &failed {
                    None => Message::Done { key },
                    Some((attempts, last)) => {
                        Message::Failed { key, attempts: *attempts, last: last.clone() }
                    }
                },
            );
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: u64) {
        if self.deadline > 0 && now >= self.deadline {
            return self.lapse("etcd was not reached in time");
        }
        let late: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, one)| one.held > 0 && one.told <= now)
            .map(|(id, _)| *id)
            .collect();
        for session in late {
            self.change(session, |one| one.silent = true);
            let held: Vec<What> = self.held_by(session);
            for what in held {
                self.orders.extend(
                    self.attempt_of(&what).map(|attempt| Order::Free(what.clone(), attempt, How::Stalled)),
                );
                self.lose(&what, "this process did not answer in time");
                self.advance(&what);
            }
        }
        self.sessions.retain(|_, session| !session.closed || session.held > 0);
    }

    /// The lease is gone, or may be: all is lost at once.
    pub fn lapse(&mut self, why: &str) {
        if self.deadline == 0 {
            return;
        }
        self.deadline = 0;
        self.orders.push(Order::Abandon);
        let all: Vec<What> = self.claims.keys().cloned().collect();
        for what in all {
            self.lose(&what, why);
            if let Some(claim) = self.claims.get_mut(&what) {
                claim.seat = Seat::Idle;
            }
            // There is no lease to try with: this only forgets what nobody wants.
            self.advance(&what);
        }
        self.sessions.retain(|_, session| !session.closed || session.held > 0);
    }

    /// The agent ends: who leads is to stop, nobody gets anything any more.
    pub fn end(&mut self) {
        self.is_ending = true;
        let all: Vec<What> = self.claims.keys().cloned().collect();
        for what in all {
            if let (Kind::Role, Some(session)) = (what.kind, self.holder(&what)) {
                self.tell(session, Message::GiveUp { role: what.name.clone() });
            }
            self.advance(&what);
        }
    }
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Role => "role",
        Kind::Lock => "lock",
        Kind::Once => "once",
    }
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
