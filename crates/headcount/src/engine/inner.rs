//! A node as one of its processes holds it: what all the rest of the engine works on.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use crate::engine::liveness::{Asking, liveness_of};
use crate::engine::look::{View, identity_in, status_word};
use crate::engine::process::{Notice, NoticeLevel, Process};
use crate::event::GenerationId;
use crate::lifecycle::{Facts, SlotFacts, SlotRef};
use crate::registry::journal::Journal;
use crate::registry::layout::{Generation as GenerationRecord, Header, Singleton, Slot};
use crate::registry::store::Store;
use crate::sys::clock::nanos;
use crate::sys::identity::{Identity, Liveness};
use crate::sys::per_process::PerProcess;
use crate::sys::process::{self, PidfdState};

/// The timings of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) heartbeat_interval: Duration,
    pub(crate) stall_after: Duration,
    pub(crate) lock_timeout: Duration,
}

pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) name: String,
    /// The path that was asked for; that of the store may be a namesake's.
    pub(crate) wanted: PathBuf,
    /// In what the server did not get what it asked for, if it could not be had when it started.
    pub(crate) shortfall: OnceLock<String>,
    settings: [AtomicU64; 3],
    /// The last event could not be kept.
    loses_events: AtomicBool,
    process: PerProcess<Process>,
}

impl Inner {
    pub(crate) fn new(store: Store, name: String, wanted: PathBuf, settings: Settings) -> Inner {
        let inner = Inner {
            store,
            name,
            wanted,
            shortfall: OnceLock::new(),
            settings: Default::default(),
            loses_events: AtomicBool::new(false),
            process: PerProcess::new(),
        };
        inner.set_settings(settings);
        inner
    }

    pub(crate) fn settings(&self) -> Settings {
        let [heartbeat_interval, stall_after, lock_timeout] =
            self.settings.each_ref().map(|ns| Duration::from_nanos(ns.load(Relaxed)));
        Settings { heartbeat_interval, stall_after, lock_timeout }
    }

    pub(crate) fn set_settings(&self, settings: Settings) {
        let Settings { heartbeat_interval, stall_after, lock_timeout } = settings;
        for (word, value) in self.settings.iter().zip([heartbeat_interval, stall_after, lock_timeout]) {
            word.store(nanos(value), Relaxed);
        }
    }

    /// Tells everybody else of the settings.
    pub(crate) fn publish_settings(&self) {
        let (header, settings) = (self.header(), self.settings());
        header.heartbeat_interval_ns.store(nanos(settings.heartbeat_interval), Relaxed);
        header.stall_after_ns.store(nanos(settings.stall_after), Relaxed);
        header.lock_timeout_ns.store(nanos(settings.lock_timeout), Relaxed);
    }

    /// The state of this very process.
    pub(crate) fn process(&self) -> &Process {
        self.process.get(Process::new)
    }

    /// Says what the server did not get, now and at each reload.
    pub(crate) fn falls_short(&self, text: String) {
        self.notice(NoticeLevel::Error, self.shortfall.get_or_init(|| text).clone());
    }

    pub(crate) fn notice(&self, level: NoticeLevel, text: String) {
        self.process().notice(Notice { level, text });
    }

    /// Says once that the file system is full, until there is room again.
    pub(crate) fn keeps_events(&self, is_kept: bool) {
        let is_said = self.loses_events.swap(!is_kept, Relaxed);
        if !is_kept && !is_said {
            let text = format!(
                "{}: the file system is full, so events are missing in the journal, and callbacks that fail do not run again: make \
                 room in it",
                self.place()
            );
            self.notice(NoticeLevel::Error, text);
        }
    }

    pub(crate) fn header(&self) -> &Header {
        self.store.region.header()
    }

    pub(crate) fn view(&self) -> View<'_> {
        View { region: &self.store.region }
    }

    pub(crate) fn journal(&self) -> Journal<'_> {
        self.view().journal()
    }

    pub(crate) fn slot(&self, index: u32) -> Option<&Slot> {
        self.store.region.slots_up_to(index as usize + 1).get(index as usize)
    }

    pub(crate) fn singleton(&self, index: u32) -> Option<&Singleton> {
        self.store.region.singletons_up_to(index as usize + 1).get(index as usize)
    }

    pub(crate) fn generation_at(&self, index: u32) -> Option<&GenerationRecord> {
        self.store.region.generations_up_to(index as usize + 1).get(index as usize)
    }

    pub(crate) fn generation_record(&self, id: GenerationId) -> Option<&GenerationRecord> {
        self.view().used_generations().iter().find(|g| {
            g.version.load(Acquire) % 2 == 0 && g.phase.load(Relaxed) != 0 && g.id.load(Relaxed) == id
        })
    }

    /// What a message calls this node.
    pub(crate) fn place(&self) -> String {
        match &self.store.path {
            Some(path) => format!("node {} ({})", self.name, path.display()),
            None => format!("node {} (without a file)", self.name),
        }
    }

    /// Tells the others to look. Never waits.
    pub(crate) fn ring(&self) {
        self.store.bell.ring();
    }

    /// Tells those who stand for roles, or wait for a once, to look. Never waits.
    pub(crate) fn call(&self) {
        self.header().calls.fetch_add(1, Release);
        self.store.calls.ring();
    }

    /// Proves that this process is a member; and gives the word of the lock file for that, 0 if it cannot be proved.
    pub(crate) fn prove_membership(&self) -> u32 {
        self.process().prove_membership(&self.store)
    }

    /// The server has closed the descriptors of this process: its slots say that it can prove nothing.
    pub(crate) fn cannot_prove(&self) {
        if self.store.path.is_some() {
            for slot in self.process().slots() {
                if let Some(record) = self.slot(slot.index) {
                    record.lock_tag.store(0, Relaxed);
                }
            }
        }
    }

    /// Whether this process is in this slot: by its identity as well, since somebody may have spoiled the version.
    pub(crate) fn holds(&self, slot: SlotRef) -> bool {
        self.is_of(slot, self.process())
    }

    fn is_of(&self, slot: SlotRef, process: &Process) -> bool {
        self.slot(slot.index).is_some_and(|record| {
            record.version.load(Acquire) == slot.version && identity_in(record) == process.identity
        })
    }

    /// The slots that this process is in.
    pub(crate) fn own_slots(&self, process: &Process) -> Vec<SlotRef> {
        let mut slots = process.slots();
        slots.retain(|&slot| self.is_of(slot, process));
        slots
    }

    /// Everything at this moment.
    pub(crate) fn facts(&self) -> Facts {
        let process = self.process();
        let own = self.own_slots(process);
        let mut asking = Asking::new(&self.store, &process.locks, &own);
        let mut facts = self.view().facts(&mut |slot| asking.liveness(slot));
        self.find_joining(&mut facts);
        self.find_expected(&mut facts);
        facts.own = own.iter().map(|s| s.index).collect();
        facts
    }

    /// Asks how a dead process ended, where nobody has watched it: known as long as its master has not asked. `held`: what
    /// is kept of it from one question to the next, since an exit with code 0 is only told after the master has asked.
    pub(crate) fn find_cause(&self, dead: &SlotFacts, held: &mut BTreeMap<u32, OwnedFd>) {
        let Some(pidfd) = (match held.entry(dead.index) {
            Entry::Occupied(entry) => Some(entry.into_mut()),
            Entry::Vacant(entry) => {
                let opened = process::open_pidfd(dead.pid()).ok();
                // Only now is it certain that it is that process's.
                let is_its = Identity::of(dead.pid()).is(&dead.identity);
                opened
                    .filter(|_| is_its || dead.identity.liveness() == Liveness::Gone)
                    .map(|fd| entry.insert(fd))
            }
        }) else {
            return;
        };
        let status = match process::pidfd_state(pidfd.as_fd(), Duration::ZERO) {
            PidfdState::Zombie => process::zombie_status(pidfd.as_fd(), dead.pid()),
            PidfdState::Reaped => process::wait_status(pidfd.as_fd()),
            // Its id is another's by now.
            PidfdState::Running => None,
        };
        if let Some(status) = status {
            self.note_end(dead.index, dead.version, status);
        }
    }

    /// Notes how the process in a slot ended.
    pub(crate) fn note_end(&self, index: u32, version: u64, status: i32) {
        if let Some(slot) = self.slot(index).filter(|slot| slot.version.load(Acquire) == version) {
            slot.wait_status.store(status_word(Some(status)), Release);
        }
    }

    /// The exact answer about the process in a slot.
    pub(crate) fn liveness_of(&self, slot: &SlotFacts) -> Liveness {
        liveness_of(&self.store, &slot.identity, slot.lock_tag)
    }

    /// Whether a word names a process that is alive and waits to join or holds the node lock, as far as can be told:
    /// whoever can write into the registry can also write another's name.
    pub(crate) fn is_real(&self, word: u64) -> bool {
        let process = Identity::from_word(word);
        if process.pid == self.process().identity.pid {
            // The own byte is invisible to us.
            return self.process().is_engaged();
        }
        self.store.is_engaged(&process) != Some(false) && process.liveness() == Liveness::Alive
    }

    /// Whether the process that a word names has certainly ended. Words tell no pid namespace: it is that of the node.
    pub(crate) fn is_gone(&self, word: u64) -> bool {
        let namespace = self.process().identity.namespace;
        let is_local = namespace != 0 && self.header().namespace.load(Relaxed) == namespace;
        is_local && Identity::from_word(word).liveness() == Liveness::Gone
    }

    /// Asks of each generation that others have taken over, and that waits for a worker that was forked and has not joined
    /// yet, whether there is one.
    fn find_expected(&self, facts: &mut Facts) {
        for index in facts.awaiting() {
            let Some(master) = facts.generation_at(index).map(|g| g.master_pid) else { continue };
            let is_known = |pid: &u32| facts.slots.iter().any(|s| s.pid() == *pid);
            let is_empty = process::children(master).is_some_and(|children| children.iter().all(is_known));
            facts.generations.iter_mut().filter(|g| g.index == index).for_each(|g| g.nobody_comes = is_empty);
        }
    }

    /// Asks of each generation without living workers whether somebody is about to join it.
    fn find_joining(&self, facts: &mut Facts) {
        let header = self.header();
        for (who, generation) in header.joiners.iter().zip(&header.joining) {
            let (who, id) = (who.load(Acquire), generation.load(Relaxed));
            if who == 0 || !facts.needs_joiner(id) {
                continue;
            }
            if let Some(g) = facts.generations.iter_mut().find(|g| g.id == id && !g.joining) {
                g.joining = self.is_real(who);
            }
        }
    }
}
