//! Faults of the whole server: reloads, stops, lost masters, lost files.

use std::time::Duration;

use testkit::{Signal, process};

use super::Life;
use crate::checker::Class;
use crate::plan::{Fault, Orphans, Told};
use crate::server::is_empty_for;

/// nginx gives its workers some seconds after TERM, and then kills them.
const STOP_LIMIT: Duration = Duration::from_secs(20);

impl Life<'_> {
    pub(super) fn act_on_server(&mut self, fault: &Fault) {
        match fault {
            Fault::Reload { workers } => self.reload(*workers),
            Fault::Reloads { workers, gap_ms } => {
                for &workers in workers {
                    self.reload(workers);
                    std::thread::sleep(Duration::from_millis(u64::from(*gap_ms)));
                }
            }
            Fault::BadReload { why } => {
                self.server.configure(Some(*why));
                let before = self.server.log().matches("[emerg]").count();
                self.tell_master(Signal::HUP);
                // It has read it when it complains; a master that is busy may be late.
                self.wait(Duration::from_secs(5), |life| {
                    life.server.log().matches("[emerg]").count() > before
                });
                self.server.configure(None);
            }
            Fault::StopServer { how, group } => {
                self.stop(*how, *group);
                self.start();
            }
            Fault::LoseMaster { orphans, after_ms } => self.lose_master(*orphans, *after_ms),
            Fault::KillNode => {
                // Also who was just being forked.
                if let Err(error) = self.server.kill_all(self.kernel) {
                    self.violation(Class::Hung, error);
                }
                self.start();
            }
            Fault::Winch { after_ms } => {
                self.undo(usize::MAX);
                self.tell_master(Signal::WINCH);
                // A master that finds both signals at once reloads first, and then sends all away.
                let left =
                    self.wait(Duration::from_secs(5), |life| life.server.serving(life.kernel).is_empty());
                if !left {
                    self.note("  some still serve");
                }
                std::thread::sleep(Duration::from_millis(u64::from(*after_ms)));
                self.tell_master(Signal::HUP);
            }
            Fault::LoseFiles { lock, after_ms } => self.lose_files(*lock, *after_ms),
            Fault::Twins { workers } => self.twins(*workers),
            Fault::Upgrade { back, interruption, after_ms } => {
                self.upgrade(*back, *interruption, *after_ms);
            }
            other => self.violation(Class::Hung, format!("nobody can do this: {other}")),
        }
    }

    pub(super) fn tell_master(&mut self, signal: Signal) {
        match self.server.master() {
            Some(master) => process::send(master, signal),
            None => self.note("  there is no master"),
        }
    }

    fn reload(&mut self, workers: u32) {
        if self.front.is_nginx() {
            self.server.workers = workers;
            self.server.configure(None);
        }
        self.tell_master(Signal::HUP);
    }

    pub(super) fn start(&mut self) {
        self.descriptors.clear();
        if let Err(error) = self.server.start() {
            self.violation(Class::Hung, error);
        }
    }

    fn is_gone_within(&mut self, limit: Duration) -> bool {
        let mut since = None;
        self.wait(limit, |life| {
            life.server.reap();
            // Of who was just being forked, we hear a moment later.
            let is_empty = life.server.family(life.kernel).is_empty();
            is_empty_for(&mut since, is_empty, life.kernel.lag())
        })
    }

    /// Waits until all are gone; who is not is killed.
    pub(super) fn ensure_gone(&mut self) {
        let gone = self.is_gone_within(STOP_LIMIT);
        if !gone {
            let left = self.server.family(self.kernel);
            let titles: Vec<String> = left
                .iter()
                .map(|&pid| {
                    format!("{pid} {} {:?}", process::title(pid), process::stat(pid).map(|s| s.state))
                })
                .collect();
            self.violation(
                Class::Hung,
                format!("still there {STOP_LIMIT:?} after they were told to stop: {titles:?}"),
            );
            if let Err(error) = self.server.kill_all(self.kernel) {
                self.violation(Class::Hung, error);
            }
        }
    }

    pub(super) fn stop(&mut self, how: Told, group: bool) {
        // Whoever stands cannot leave by itself; only nginx's TERM and INT end in SIGKILL.
        if how == Told::Quit || !self.front.is_nginx() || group {
            self.undo(usize::MAX);
        }
        let Some(master) = self.server.master() else { return self.note("  there is no master to stop") };
        let group_of = |pid| process::stat(pid).map(|stat| stat.group);
        let ours = group_of(std::process::id() as i32);
        let theirs = group_of(master).filter(|&theirs| group && Some(theirs) != ours);
        match theirs.and_then(rustix::process::Pid::from_raw) {
            Some(theirs) => {
                // It may be gone by now.
                let _ = rustix::process::kill_process_group(theirs, how.signal());
            }
            None => process::send(master, how.signal()),
        }
        self.ensure_gone();
    }

    /// What was said before has been checked; what is said after the reload begins with the generation that this brings.
    fn lose_files(&mut self, lock: bool, after_ms: u32) {
        self.rest();
        if !self.out.violations.is_empty() {
            return;
        }
        self.close_chapter();
        let registry = self.server.registry();
        let mut files = vec![registry.clone()];
        files.extend(lock.then(|| registry.with_extension("lock")));
        for file in files {
            if let Err(error) = std::fs::remove_file(&file) {
                self.note(&format!("  {}: {error}", file.display()));
            }
        }
        std::thread::sleep(Duration::from_millis(u64::from(after_ms)));
        let old = self.server.workers(self.kernel);
        self.tell_master(Signal::HUP);
        // Whoever kills the master before takes what the node was with it.
        let goes_on = self.wait(Duration::from_secs(5), |life| {
            let head = life.status().ok().and_then(|status| status["head"].as_u64());
            head.is_some_and(|head| head > life.chapter.seq)
        });
        if !goes_on {
            self.violation(
                Class::Missed,
                "the registry was removed, and 5 s after a reload there is none that goes on",
            );
        }
        self.registry_size = None;
        self.registries_lost += 1;
        // They tell in the old one what happens to them, under numbers of its own.
        let are_gone = self.wait(STOP_LIMIT, |_| !old.iter().any(|&pid| process::is_alive(pid)));
        if !are_gone {
            self.violation(Class::Hung, format!("workers of before a reload did not leave: {old:?}"));
        }
    }

    fn lose_master(&mut self, orphans: Orphans, after_ms: u32) {
        self.undo(usize::MAX);
        let Some(master) = self.server.master() else { return };
        process::send(master, Signal::KILL);
        self.server.reap();
        std::thread::sleep(Duration::from_millis(u64::from(after_ms)));
        let left = self.server.workers(self.kernel);
        let each = |signal| left.iter().for_each(|&pid| process::send(pid, signal));
        match orphans {
            Orphans::Killed => {
                if let Err(error) = self.server.kill_all(self.kernel) {
                    self.violation(Class::Hung, error);
                }
            }
            Orphans::ToldToLeave(how) => each(how.signal()),
            Orphans::Outlast => {
                self.start();
                return self.kill_orphans();
            }
        }
        // One that was just forked may not have heard.
        if !self.is_gone_within(Duration::from_secs(5)) {
            self.remark("orphans that had to be told again");
            for pid in self.server.family(self.kernel) {
                process::send(pid, Signal::KILL);
            }
        }
        self.ensure_gone();
        self.start();
    }
}
