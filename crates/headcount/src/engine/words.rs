//! The words of a lock that has a name, and those of a role. Nothing here knows who is alive.

use crate::lifecycle::SingletonState;
use crate::registry::layout::Singleton;
use crate::sys::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use crate::sys::atomic::{AtomicU32, AtomicU64};

/// Of a lock: who holds it, when it was last released, and which dead holder the next one is to hear of.
#[derive(Clone, Copy)]
pub(crate) struct NamedWord<'a> {
    named: &'a AtomicU64,
    released: &'a AtomicU32,
    abandoned_by: &'a AtomicU32,
    broken_from: &'a AtomicU64,
    last_dead: &'a AtomicU64,
}

impl<'a> NamedWord<'a> {
    pub(crate) fn of(x: &'a Singleton) -> NamedWord<'a> {
        NamedWord {
            named: &x.word,
            released: &x.released,
            abandoned_by: &x.abandoned_by,
            broken_from: &x.broken_from,
            last_dead: &x.last_dead,
        }
    }

    /// How often it was released, and who is named: in this order, so that who then sleeps until it is released again has
    /// missed nothing.
    pub(crate) fn look(self) -> (u32, u64) {
        let released = self.released.load(Acquire);
        (released, self.named.load(Acquire))
    }

    /// Takes it from the one who was seen to be named, and perhaps to be dead.
    pub(crate) fn take(self, named: u64, word: u64, is_dead: bool) -> bool {
        if is_dead {
            // First of all: whoever dies between the two leaves it to be reported.
            self.broken_from.store(named, Release);
        }
        self.named.compare_exchange(named, word, AcqRel, Acquire).is_ok()
    }

    /// Lets it go again right after it was taken, since the record is just being changed. Who comes next hears of the dead one in its place.
    pub(crate) fn put_back(self, word: u64, dead_pid: Option<u32>) {
        if let Some(pid) = dead_pid {
            self.abandoned_by.store(pid, Release);
        }
        self.release(word);
    }

    /// The dead holder that this one, who has just taken it, is to hear of.
    pub(crate) fn hear(self) -> Option<u32> {
        let is_known = self.abandoned_by.load(Relaxed) != 0;
        is_known.then(|| self.abandoned_by.swap(0, AcqRel))
    }

    pub(crate) fn release(self, word: u64) {
        // Failing means that somebody has spoiled it: then it is no longer ours.
        let _ = self.named.compare_exchange(word, 0, AcqRel, Relaxed);
        // Before it is asked whether anybody waits.
        self.released.fetch_add(1, SeqCst);
    }

    /// Takes it from a dead holder, for nobody. While the record's version is odd: whoever takes it meanwhile looks at that, and
    /// lets it go again.
    pub(crate) fn abandon(self, dead: u64, pid: u32) {
        self.last_dead.store(dead, Relaxed);
        // Failing means that somebody has taken it already, and knows of it.
        if self.named.compare_exchange(dead, 0, AcqRel, Relaxed).is_ok() {
            self.abandoned_by.store(pid, Release);
        }
        let _ = self.broken_from.compare_exchange(dead, 0, AcqRel, Relaxed);
        self.released.fetch_add(1, Release);
    }
}

/// Of a role: the token of who leads, and how it is with it.
#[derive(Clone, Copy)]
pub(crate) struct RoleWord<'a> {
    token: &'a AtomicU64,
    state: &'a AtomicU32,
}

impl<'a> RoleWord<'a> {
    pub(crate) fn of(x: &'a Singleton) -> RoleWord<'a> {
        RoleWord { token: &x.word, state: &x.state }
    }

    /// The token of who leads; 0: nobody.
    #[inline]
    pub(crate) fn leads(self) -> u64 {
        self.token.load(Acquire)
    }

    pub(crate) fn is(self, state: SingletonState) -> bool {
        self.state.load(Acquire) == state.code()
    }

    /// The leader has stopped. What it did until then is seen by whoever leads next.
    pub(crate) fn give_up(self) {
        // In this order: it may be asked between the two.
        for from in [SingletonState::Held, SingletonState::Asked] {
            let given_up = SingletonState::GivenUp.code();
            // Failing means that it was not so.
            let _ = self.state.compare_exchange(from.code(), given_up, AcqRel, Acquire);
        }
    }

    /// The leader is to give it up, if it has not by itself.
    pub(crate) fn ask(self) {
        let (held, asked) = (SingletonState::Held.code(), SingletonState::Asked.code());
        let _ = self.state.compare_exchange(held, asked, AcqRel, Relaxed);
    }

    /// From here on nobody leads.
    pub(crate) fn ends(self) {
        self.token.store(0, Release);
    }

    /// From here on this one leads.
    pub(crate) fn begins(self, token: u64) {
        self.token.store(token, Release);
    }
}

/// See `registry/seqlock.rs`.
#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;
    use crate::registry::seqlock::rewrite;

    #[derive(Default)]
    struct Words {
        version: AtomicU64,
        named: AtomicU64,
        released: AtomicU32,
        abandoned_by: AtomicU32,
        broken_from: AtomicU64,
        last_dead: AtomicU64,
        state: AtomicU32,
        /// What it guards, or what a leader has done.
        work: AtomicU64,
    }

    impl Words {
        fn lock(&self) -> NamedWord<'_> {
            NamedWord {
                named: &self.named,
                released: &self.released,
                abandoned_by: &self.abandoned_by,
                broken_from: &self.broken_from,
                last_dead: &self.last_dead,
            }
        }

        fn role(&self) -> RoleWord<'_> {
            RoleWord { token: &self.named, state: &self.state }
        }
    }

    #[test]
    fn loom_a_named_lock_has_one_holder_who_sees_what_the_others_did() {
        loom::model(|| {
            let words = Arc::new(Words::default());
            let run = |words: &Words, me: u64| {
                let (_, named) = words.lock().look();
                let takes = named == 0 && words.lock().take(0, me, false);
                if takes {
                    let work = words.work.load(Relaxed);
                    words.work.store(work + 1, Relaxed);
                    words.lock().release(me);
                }
                u64::from(takes)
            };
            let other = {
                let words = words.clone();
                thread::spawn(move || run(&words, 1))
            };
            let taken = run(&words, 2);
            let taken = taken + other.join().unwrap();
            assert!(taken > 0);
            assert_eq!((words.work.load(Relaxed), words.lock().look().1), (taken, 0));
        });
    }

    /// The kernel has told both the one who waits and the one who reports; whoever comes first, the next holder hears of it, once.
    #[test]
    fn loom_whoever_follows_a_dead_holder_hears_of_it() {
        loom::model(|| {
            let words = Arc::new(Words::default());
            words.named.store(9, Relaxed);
            let reporter = {
                let words = words.clone();
                thread::spawn(move || _ = rewrite(&words.version, || words.lock().abandon(9, 9)))
            };
            let (_, named) = words.lock().look();
            let is_dead = named == 9;
            let mut heard = None;
            if words.lock().take(named, 1, is_dead) {
                if words.version.load(Acquire) & 1 == 1 {
                    words.lock().put_back(1, is_dead.then_some(9));
                } else {
                    heard = is_dead.then_some(9).or(words.lock().hear());
                    assert_eq!(heard, Some(9), "named {named}");
                }
            }
            reporter.join().unwrap();
            // Who had to let it go again, or came too late, tries once more.
            if heard.is_none() {
                let (_, named) = words.lock().look();
                assert!(words.lock().take(named, 1, false) && named == 0, "named {named}");
                assert_eq!(words.lock().hear(), Some(9));
            }
            assert_eq!(words.lock().hear(), None);
        });
    }

    /// The leader stops and gives the role up, while it may be asked to; whoever decides hands it on. The next leader sees what the
    /// one before did, and the one before does not lead any more.
    #[test]
    fn loom_the_next_leader_sees_what_the_one_before_did() {
        loom::model(|| {
            let words = Arc::new(Words::default());
            words.state.store(SingletonState::Held.code(), Relaxed);
            words.role().begins(5);
            let leader = {
                let words = words.clone();
                thread::spawn(move || {
                    assert_eq!(words.role().leads(), 5, "nobody takes it before it is given up");
                    words.work.store(1, Relaxed);
                    words.role().give_up();
                })
            };
            let decides = {
                let words = words.clone();
                thread::spawn(move || {
                    words.role().ask();
                    if words.role().is(SingletonState::GivenUp) {
                        words.role().ends();
                        words.role().begins(6);
                    }
                })
            };
            let leads = words.role().leads();
            assert!(leads != 6 || words.work.load(Relaxed) == 1, "two would lead at once");
            leader.join().unwrap();
            decides.join().unwrap();
            assert!(words.role().is(SingletonState::GivenUp));
        });
    }
}
