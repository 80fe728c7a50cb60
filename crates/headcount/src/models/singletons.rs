//! The role and the once of a node: their records, what the holder of the node lock does with them as `engine/session/singletons.rs`
//! does it, and what a worker does without the lock, as `singleton/leader.rs` and `once.rs` do it.

use super::node::{Broken, Node, Session};
use crate::event::Cause;
use crate::lifecycle::{Act, Change, Facts, Intent, SingletonFacts, SingletonKind, SingletonState};

/// Their places.
pub(super) const ROLE: u32 = 0;
pub(super) const ONCE: u32 = 1;

/// What a worker hears of its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Elected(u64),
    GiveUp,
    Lost,
}

impl Node {
    pub(super) fn singleton(&self, index: u32) -> Option<&SingletonFacts> {
        self.singletons.iter().find(|x| x.index == index)
    }

    /// What `singleton_facts` reads.
    pub(super) fn read_singletons(&self) -> Vec<SingletonFacts> {
        let head = self.head();
        let read =
            |x: &SingletonFacts| SingletonFacts { seq: if x.seq <= head { x.seq } else { 0 }, ..x.clone() };
        self.singletons.iter().map(read).collect()
    }

    pub(super) fn next_token(&self) -> u64 {
        self.last_token + u64::from(self.broken != Broken::SameToken || self.last_token == 0)
    }

    /// `Inner::make_singleton`, if there is none.
    fn make(&mut self, index: u32, kind: SingletonKind, state: SingletonState) {
        if self.singleton(index).is_some() {
            return;
        }
        let new = SingletonFacts {
            index,
            kind,
            state,
            name: String::new(),
            word: 0,
            token: 0,
            broken_from: 0,
            last_dead: 0,
            owner: None,
            owner_pid: 0,
            owner_worker_id: None,
            attempts: 0,
            cause: Cause::Unknown,
            wait_status: None,
            since_ns: 0,
            generation: 0,
            asked_ns: 0,
            number: 0,
            next_state: None,
            seq: 0,
        };
        let place = self.singletons.iter().position(|x| x.index > index).unwrap_or(self.singletons.len());
        self.singletons.insert(place, new);
    }

    /// A record is changed, and read again.
    pub(super) fn change_singleton(
        &mut self,
        index: u32,
        session: &mut Session,
        change: impl FnOnce(&mut SingletonFacts),
    ) {
        if let Some(x) = self.singletons.iter_mut().find(|x| x.index == index) {
            change(x);
        }
        // The holder includes what it is about to write.
        let read = self.singleton(index).cloned();
        if let (Some(known), Some(read)) =
            (session.facts.singletons.iter_mut().find(|x| x.index == index), read)
        {
            *known = read;
        }
    }

    /// `Session::apply_singleton`. False: it is about something else.
    pub(super) fn apply_to_singletons(&mut self, change: Change, session: &mut Session) -> bool {
        let now = self.now;
        match change {
            Change::FreeSingleton(index) => {
                self.singletons.retain(|x| x.index != index);
                session.facts.singletons.retain(|x| x.index != index);
            }
            Change::Next(index, state) => {
                self.change_singleton(index, session, |x| x.next_state = Some(state));
            }
            Change::Turn(index) => {
                let forgets = self.broken == Broken::ForgetsDone;
                self.change_singleton(index, session, |x| turn(x, now, forgets));
                session.facts.next_token = self.next_token();
            }
            Change::Nominate { singleton, slot, token } => {
                let Some(leader) = session.facts.slot(slot).cloned() else { return true };
                self.last_token = token;
                self.change_singleton(singleton, session, |x| {
                    (x.token, x.owner, x.owner_pid) = (token, Some(leader.at()), leader.identity.pid);
                    (x.owner_worker_id, x.generation) = (leader.worker_id, leader.generation);
                });
            }
            Change::Ask(index) => {
                let is_broken = self.broken == Broken::NotAsked;
                self.change_singleton(index, session, |x| {
                    x.asked_ns = now;
                    if x.state == SingletonState::Held {
                        x.state = if is_broken { SingletonState::GivenUp } else { SingletonState::Asked };
                    }
                });
            }
            Change::End(index, cause, status) => {
                self.change_singleton(index, session, |x| (x.cause, x.wait_status) = (cause, status));
            }
            _ => return false,
        }
        true
    }

    /// `Worker::leader`.
    pub(super) fn stand(&mut self, session: &mut Session) {
        self.make(ROLE, SingletonKind::Role, SingletonState::Free);
        let pid = session.pid;
        self.slots.iter_mut().filter(|s| s.identity.pid == pid).for_each(|s| s.stands_for |= 1);
        session.facts = self.facts(pid);
    }

    /// `Leader::poll`. Takes no lock.
    pub(super) fn hears(&self, pid: u32) -> Option<Told> {
        let x = self.singleton(ROLE)?;
        let p = self.process(pid);
        let slot = self.slots.iter().find(|s| Some(s.at()) == p.slot);
        if p.duty.token != 0 {
            if x.word != p.duty.token {
                return Some(Told::Lost);
            }
            let is_leaving = slot.is_none_or(|s| matches!(s.intent, Intent::Draining | Intent::Leaving));
            let is_asked = x.state == SingletonState::Asked || is_leaving;
            return (is_asked && !p.duty.is_asked).then_some(Told::GiveUp);
        }
        let is_mine = x.owner.is_some() && x.owner == p.slot;
        (x.word != 0 && is_mine && x.state == SingletonState::Held).then_some(Told::Elected(x.word))
    }

    /// It hears that, and acts on it. Who is to give the role up goes on with `give_up`.
    pub(super) fn hear(&mut self, pid: u32) {
        let told = self.hears(pid);
        let duty = &mut self.process_mut(pid).duty;
        match told {
            Some(Told::Elected(token)) => (duty.token, duty.leads) = (token, true),
            Some(Told::GiveUp) => duty.is_asked = true,
            Some(Told::Lost) => {
                (duty.token, duty.leads, duty.is_asked, duty.is_late) = (0, false, false, false)
            }
            None => {}
        }
    }

    /// It has stopped, and says so. Takes no lock.
    pub(super) fn give_up(&mut self, pid: u32) {
        let duty = &mut self.process_mut(pid).duty;
        let token = duty.token;
        (duty.token, duty.leads, duty.is_asked, duty.is_late) = (0, false, false, false);
        let gives_up = |x: &&mut SingletonFacts| {
            let has_it = matches!(x.state, SingletonState::Asked | SingletonState::Held);
            x.index == ROLE && token != 0 && x.word == token && has_it
        };
        self.singletons.iter_mut().filter(gives_up).for_each(|x| x.state = SingletonState::GivenUp);
    }

    /// `Leader::is_leader`.
    pub(super) fn is_leader(&self, pid: u32) -> bool {
        let token = self.process(pid).duty.token;
        token != 0 && self.singleton(ROLE).is_some_and(|x| x.word == token)
    }

    /// The second half of `Worker::begin_once`.
    pub(super) fn run_once(&mut self, session: &mut Session) {
        self.make(ONCE, SingletonKind::Once, SingletonState::Open);
        session.facts = self.facts(session.pid);
        let (pid, now) = (session.pid, self.now);
        let slot = self.process(pid).slot;
        let is_open = self.singleton(ONCE).is_some_and(|x| x.state == SingletonState::Open);
        if is_open {
            self.change_singleton(ONCE, session, |x| {
                (x.owner, x.owner_pid, x.since_ns) = (slot, pid, now);
                x.attempts += 1;
                x.state = SingletonState::Running;
            });
            self.process_mut(pid).duty.runs = true;
        }
    }

    /// `OnceRun::finish`.
    pub(super) fn end_once(&mut self, session: &mut Session, well: bool) -> Option<Act> {
        let p = self.process_mut(session.pid);
        p.duty.runs = false;
        let slot = p.slot;
        let is_ours = |x: &&SingletonFacts| x.state == SingletonState::Running && x.owner == slot;
        let x = session.facts.singleton(ONCE).filter(is_ours)?;
        if well { Some(x.done()) } else { Facts::failed(&session.facts, ONCE) }
    }
}

fn turn(x: &mut SingletonFacts, now: u64, forgets: bool) {
    x.seq = 0;
    let Some(next) = x.next_state.take() else { return };
    (x.state, x.since_ns) = (next, now);
    match next {
        SingletonState::Held => (x.asked_ns, x.word) = (0, x.token),
        SingletonState::Free | SingletonState::Open | SingletonState::Done | SingletonState::Failed => {
            x.owner = None;
            if x.kind == SingletonKind::Role {
                x.word = 0;
            }
            if next == SingletonState::Done && forgets {
                x.state = SingletonState::Open;
            }
        }
        SingletonState::Asked | SingletonState::GivenUp | SingletonState::Running => {}
    }
}
