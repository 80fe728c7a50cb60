//! A node whose master is the test process itself, with its workers.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use headcount::{
    Begin, Cursor, Event, Generation, Join, Kind, Master, Node, Options, ProcessStatus, Role, State, Wait,
};

use super::callbacks::Callbacks;
use super::journal::{Truth, check};
use super::worker::{Habit, worker};
use super::{Child, Place, news, wait_for};

pub struct Home {
    pub place: Place,
    pub master: Master,
    pub node: Node,
    pub callbacks: Callbacks,
    pub truth: Truth,
}

impl Home {
    pub fn new() -> Home {
        Home::with(|options| options)
    }

    pub fn with(change: impl FnOnce(Options) -> Options) -> Home {
        let place = Place::new();
        let master = change(place.options()).open().expect("open a node");
        let node = master.node().clone();
        let notices = node.take_notices();
        assert!(notices.is_empty(), "{notices:?}");
        Home { place, master, node, callbacks: Callbacks::new(), truth: Truth::default() }
    }

    pub fn announce(&self, workers: u32) -> Generation {
        let (generation, transitions) =
            self.master.begin(Begin::new().workers(workers), Wait::Timeout).expect("begin");
        self.callbacks.run(transitions);
        generation
    }

    pub fn begin(&mut self, workers: u32) -> Generation {
        let generation = self.announce(workers);
        self.truth.committed.push((generation.id(), self.head()));
        self.master.commit(generation.id());
        generation
    }

    /// A worker that beats and watches.
    pub fn serving(&self, generation: &Generation, number: u32) -> Child {
        worker(generation, self.callbacks, Habit::Serving, Join::worker(Some(number)))
    }

    /// A worker that does nothing unless told.
    pub fn quiet(&self, generation: &Generation, number: u32) -> Child {
        worker(generation, self.callbacks, Habit::Quiet, Join::worker(Some(number)))
    }

    pub fn respawned(&self, generation: &Generation, number: u32, habit: Habit) -> Child {
        worker(generation, self.callbacks, habit, Join::worker(Some(number)).respawned(true))
    }

    pub fn head(&self) -> u64 {
        self.node.newest_seq()
    }

    /// Kills a child, and tells the node what a master would.
    pub fn kill(&mut self, child: &mut Child) {
        self.truth.dead.push((child.pid(), self.head()));
        let status = child.kill();
        self.node.child_exited(child.pid(), ExitStatus::from_raw(status));
    }

    pub fn events(&self) -> Vec<Event> {
        news(&self.node, &mut Cursor::oldest())
    }

    pub fn about(&self, kind: Kind) -> Vec<Event> {
        self.events().into_iter().filter(|e| e.kind == kind).collect()
    }

    /// Waits until an event of this kind about this process is in the journal.
    pub fn wait_for(&self, kind: Kind, pid: u32) -> Event {
        wait_for(&format!("{kind} of {pid}"), || self.about(kind).into_iter().find(|e| e.pid == pid))
    }

    /// Waits until the callback of such an event has ended.
    pub fn wait_for_callback(&self, kind: Kind, pid: u32) {
        wait_for(&format!("the callback of {kind} of {pid}"), || {
            self.callbacks.about(kind).iter().any(|r| r.subject == pid && r.ended).then_some(())
        });
    }

    pub fn process(&self, pid: u32) -> ProcessStatus {
        let found = self.node.snapshot().processes.into_iter().find(|p| p.pid == pid);
        found.unwrap_or_else(|| panic!("process {pid} is not in the table"))
    }

    pub fn state(&self, pid: u32) -> State {
        self.process(pid).state
    }

    pub fn workers(&self) -> Vec<ProcessStatus> {
        self.node.snapshot().processes.into_iter().filter(|p| p.role == Role::Worker).collect()
    }

    /// No worker and no generation is left; then everything must be right.
    pub fn check(&self) {
        wait_for("the table to be empty", || {
            let snapshot = self.node.snapshot();
            let rest =
                snapshot.processes.iter().all(|p| p.role == Role::Master) && snapshot.generations.is_empty();
            rest.then_some(())
        });
        check(&self.events(), &self.callbacks.all(), &self.truth);
    }
}

/// The workers leave one after the other.
pub fn leave_all<'a>(workers: impl IntoIterator<Item = &'a mut Child>) {
    for child in workers {
        child.tell("leave");
        child.ended_well();
    }
}

/// A moment in which something that must not happen could.
pub fn moment() {
    std::thread::sleep(Duration::from_millis(60));
}

/// (prev, mine, next) of an event, as the contract writes it.
pub fn triple(event: &Event) -> (Option<u32>, u32, Option<u32>) {
    (event.counts.prev, event.counts.mine, event.counts.next)
}
