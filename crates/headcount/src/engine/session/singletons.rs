//! Changes of roles, onces and locks, under the node lock.

use super::Session;
use crate::engine::look::status_word;
use crate::engine::words::{NamedWord, RoleWord};
use crate::lifecycle::{Change, Facts, SingletonKind, SingletonState, SlotRef};
use crate::registry::layout::Singleton;
use crate::registry::seqlock::rewrite;
use crate::sys::atomic::Ordering::{AcqRel, Relaxed, Release};
use crate::sys::identity::Identity;
use crate::sys::{clock, futex, process};

impl Session {
    /// Does what there is to do about roles, onces and locks.
    pub(crate) fn settle_singletons(&mut self) {
        self.clear(Facts::next_about_singletons);
    }

    /// The process in this slot is at it from now on.
    pub(crate) fn run_once(&mut self, index: u32, slot: SlotRef) {
        let now = clock::boot_ns();
        let worker_id = self.facts.slot(slot.index).and_then(|s| s.worker_id);
        self.change_singleton(index, |x| {
            x.owner_version.store(slot.version, Relaxed);
            x.owner_slot.store(slot.index + 1, Relaxed);
            x.owner_pid.store(process::pid(), Relaxed);
            x.owner_worker_id.store(number(worker_id), Relaxed);
            x.attempts.store(x.attempts.load(Relaxed).saturating_add(1), Relaxed);
            x.since_ns.store(now, Relaxed);
            x.state.store(SingletonState::Running.code(), Release);
        });
    }

    pub(super) fn apply_singleton(&mut self, change: Change, now: u64) {
        match change {
            Change::FreeSingleton(index) => {
                let known = self.facts.singleton(index).filter(|x| x.kind == SingletonKind::Lock);
                let me = self.inner.process().identity.to_word();
                let is_ours = |word| {
                    let x = self.inner.singleton(index);
                    x.is_some_and(|x| x.word.compare_exchange(word, me, AcqRel, Relaxed).is_ok())
                };
                // Of a lock that somebody has taken meanwhile nothing is freed.
                if known.is_none_or(|x| is_ours(x.word)) {
                    self.inner.free_singleton(index);
                }
                self.facts.singletons.retain(|x| x.index != index);
            }
            Change::Next(index, state) => {
                self.change_singleton(index, |x| x.next_state.store(state.code(), Relaxed));
            }
            Change::Turn(index) => {
                self.change_singleton(index, |x| turn(x, now));
                self.facts.next_token = self.inner.view().next_token();
            }
            Change::Nominate { singleton, slot, token } => {
                let Some(leader) = self.facts.slot(slot).cloned() else { return };
                self.inner.header().last_token.store(token, Relaxed);
                self.change_singleton(singleton, |x| {
                    x.token.store(token, Relaxed);
                    x.owner_version.store(leader.version, Relaxed);
                    x.owner_slot.store(leader.index + 1, Relaxed);
                    x.owner_pid.store(leader.pid(), Relaxed);
                    x.owner_worker_id.store(number(leader.worker_id), Relaxed);
                    x.generation.store(leader.generation, Relaxed);
                });
            }
            Change::Ask(index) => self.change_singleton(index, |x| {
                x.asked_ns.store(now, Relaxed);
                RoleWord::of(x).ask();
            }),
            Change::End(index, cause, status) => self.change_singleton(index, |x| {
                x.cause.store(cause.code(), Relaxed);
                x.wait_status.store(status_word(status), Relaxed);
            }),
            Change::Unlock(index, word) => self.change_singleton(index, |x| {
                NamedWord::of(x).abandon(word, Identity::from_word(word).pid);
                futex::wake(&x.released, 1);
            }),
            _ => {}
        }
    }

    /// As `change_slot`. Readers see all of a change or nothing.
    pub(super) fn change_singleton(&mut self, index: u32, change: impl FnOnce(&Singleton)) {
        let (head, Some(singleton)) = (self.next_seq(), self.inner.singleton(index)) else { return };
        rewrite(&singleton.version, || change(singleton));
        let read = self.inner.view().singleton(index, head);
        self.facts.singletons.retain(|x| x.index != index || read.is_some());
        if let (Some(known), Some(read)) = (self.facts.singletons.iter_mut().find(|x| x.index == index), read)
        {
            *known = read;
        }
    }
}

/// A worker's number as a word of a record.
pub(crate) fn number(worker_id: Option<u32>) -> i32 {
    worker_id.and_then(|id| i32::try_from(id).ok()).unwrap_or(-1)
}

/// What was announced comes to be.
fn turn(x: &Singleton, now: u64) {
    let next = SingletonState::from_code(x.next_state.load(Relaxed));
    x.seq.store(0, Relaxed);
    let Some(next) = next else { return };
    x.next_state.store(0, Relaxed);
    x.state.store(next.code(), Release);
    x.since_ns.store(now, Relaxed);
    match next {
        SingletonState::Held => {
            x.asked_ns.store(0, Relaxed);
            // From here on it leads.
            RoleWord::of(x).begins(x.token.load(Relaxed));
        }
        SingletonState::Free | SingletonState::Open | SingletonState::Done | SingletonState::Failed => {
            x.owner_slot.store(0, Relaxed);
            if x.kind.load(Relaxed) == SingletonKind::Role.code() {
                RoleWord::of(x).ends();
            }
        }
        SingletonState::Asked | SingletonState::GivenUp | SingletonState::Running => {}
    }
}
