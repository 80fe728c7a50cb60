//! Carrying out a fault on workers, readers and callbacks. What starts and stops the server is in `starts` and `upgrade`.

use std::time::{Duration, Instant};

use testkit::wait::boot_clock;
use testkit::{Signal, SlowClient, http, process};

use super::{Life, Undo};
use crate::checker::Class;
use crate::freezer::Freezer;
use crate::journal::{Follower, headcount};
use crate::plan::{Fault, Who};

/// Longer than any life.
const UNTIL_UNDONE: Duration = Duration::from_secs(3600);

impl Life<'_> {
    pub(super) fn act(&mut self, fault: &Fault) {
        match fault {
            Fault::Kill { who, how } => self.each(*who, how.signal()),
            Fault::Leave { who, how } => self.each(*who, how.signal()),
            Fault::Newborn { after_us, how } => self.newborn(*after_us, how.signal()),
            Fault::Stop { who, faults } => self.stand(*who, *faults),
            Fault::Freeze { who, faults } => self.freeze(*who, *faults),
            Fault::Spin { for_ms, .. } => {
                self.undo(usize::MAX);
                let page = format!("/spin?s={}", f64::from(*for_ms) / 1000.0);
                self.hinder(Duration::from_millis(u64::from(*for_ms) + 50));
                // Nobody waits for the answer.
                drop(http::send(&self.server.socket(), &page));
                self.busy_until = Instant::now() + Duration::from_millis(u64::from(*for_ms) + 500);
                std::thread::sleep(Duration::from_millis(u64::from(for_ms / 2)));
            }
            Fault::DieInCallback { callback } => {
                self.trap(callback, "die");
                self.provoke(callback);
            }
            Fault::HoldLock { callback, for_ms, kills } => {
                self.trap(callback, &for_ms.to_string());
                self.hinder(Duration::from_millis(u64::from(*for_ms) + 600));
                self.provoke(callback);
                for n in 0..*kills {
                    std::thread::sleep(Duration::from_millis(u64::from(for_ms / (kills + 1))));
                    self.each(Who::One(n.wrapping_mul(7)), Signal::KILL);
                }
            }
            Fault::Drain { clients, faults } => {
                self.undo(usize::MAX);
                for _ in 0..*clients {
                    if let Ok(client) = SlowClient::open(&self.server.socket()) {
                        self.undos.push((self.step + faults, Undo::Release(client)));
                    }
                }
                self.tell_master(Signal::HUP);
            }
            Fault::Reader { kill, faults } => self.reader(*kill, *faults),
            Fault::CrashLoop { deaths } => self.crash_loop(*deaths),
            other => self.act_on_server(other),
        }
    }

    /// The workers that are meant.
    fn meant(&self, who: Who) -> Vec<i32> {
        let all = self.server.workers(self.kernel);
        if all.is_empty() {
            return all;
        }
        let at = |n: u32| n as usize % all.len();
        match who {
            Who::One(n) => vec![all[at(n)]],
            Who::Some(n, many) => {
                (0..many.min(all.len() as u32)).map(|i| all[at(n.wrapping_add(i))]).collect()
            }
            Who::All => all,
            Who::Leader | Who::Holder => {
                self.holders(who == Who::Leader).into_iter().filter(|pid| all.contains(pid)).collect()
            }
            Who::Sentinel | Who::Deputy | Who::Both => {
                let sentinel = self.sentinel().filter(|pid| all.contains(pid));
                let mut others = self.server.serving(self.kernel);
                others.retain(|&pid| Some(pid) != sentinel);
                others.truncate(2);
                match who {
                    Who::Sentinel => sentinel.into_iter().collect(),
                    Who::Deputy => others,
                    _ => sentinel.into_iter().chain(others).collect(),
                }
            }
        }
    }

    /// Who leads; or who holds a lock or is at a once, if anybody is.
    fn holders(&self, leads: bool) -> Option<i32> {
        let status = self.status().ok()?;
        let all = status["singletons"].as_array()?;
        let is_held = |x: &&serde_json::Value| !x["holder"].is_null() && (x["kind"] == "role") == leads;
        let held = all.iter().find(is_held).or_else(|| all.iter().find(|x| !x["holder"].is_null()));
        held?["holder"].as_i64().map(|pid| pid as i32)
    }

    fn sentinel(&self) -> Option<i32> {
        let output = headcount(&self.server.registry(), &["status", "--json"]).output().ok()?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        status["nodes"][0]["sentinel"].as_i64().map(|pid| pid as i32)
    }

    fn each(&mut self, who: Who, signal: Signal) {
        let those = self.meant(who);
        self.note(&format!("  {signal:?} to {those:?}"));
        those.into_iter().for_each(|pid| process::send(pid, signal));
    }

    /// Kills a worker, and its replacement so long after its fork.
    fn newborn(&mut self, after_us: u32, signal: Signal) {
        let Some(master) = self.server.master() else { return };
        let before = boot_clock();
        self.each(Who::One(after_us), Signal::KILL);
        let deadline = Instant::now() + Duration::from_millis(500);
        let born = loop {
            let alive = self.kernel.alive();
            let mut new = alive.into_iter().filter(|child| child.parent == master && child.began > before);
            if let Some(child) = new.next() {
                break child;
            }
            if Instant::now() > deadline {
                return self.note("  no replacement came");
            }
            std::thread::yield_now();
        };
        // Waits for the very moment, and not for a condition: this is the fault.
        let due = born.began + u64::from(after_us) * 1000;
        while boot_clock() < due {
            std::hint::spin_loop();
        }
        self.note(&format!("  {signal:?} to {}, {after_us} us old", born.pid));
        process::send(born.pid, signal);
    }

    fn stand(&mut self, who: Who, faults: usize) {
        let those = self.meant(who);
        self.hinder(UNTIL_UNDONE);
        self.note(&format!("  SIGSTOP to {those:?}"));
        for pid in those {
            let Some(stat) = process::stat(pid) else { continue };
            process::send(pid, Signal::STOP);
            self.undos.push((self.step + faults, Undo::Continue { pid, started: stat.started }));
        }
    }

    fn freeze(&mut self, who: Who, faults: usize) {
        if self.freezer.is_none() {
            self.freezer = Freezer::make();
        }
        let those = self.meant(who);
        self.hinder(UNTIL_UNDONE);
        self.note(&format!("  freezes {those:?}"));
        let Some(freezer) = &self.freezer else {
            return self.remark("no cgroup to freeze in");
        };
        // One that has ended cannot be put in.
        let _ = those.into_iter().filter(|&pid| freezer.freeze(pid)).count();
        self.undos.push((self.step + faults, Undo::Thaw));
    }

    fn trap(&self, callback: &str, what: &str) {
        let (folder, name) = (self.server.folder(), format!("markers/{callback}"));
        // Whole at once: somebody may step into it in this moment.
        folder.write("trap", what);
        testkit::chmod(&folder.at("trap"), 0o666);
        std::fs::rename(folder.at("trap"), folder.at(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    /// Traps that nobody has stepped into.
    pub(super) fn clear_traps(&self) {
        for name in crate::plan::CALLBACKS.into_iter().chain(["crash"]) {
            let _ = std::fs::remove_file(self.server.folder().at(&format!("markers/{name}")));
        }
    }

    /// Makes a callback run.
    fn provoke(&mut self, callback: &str) {
        match callback {
            "on_worker_exit" | "on_worker_draining" => self.each(Who::One(3), Signal::QUIT),
            _ => self.each(Who::One(5), Signal::KILL),
        }
        let trap = self.server.folder().at(&format!("markers/{callback}"));
        self.wait(Duration::from_millis(500), |_| !trap.exists());
    }

    fn reader(&mut self, kill: bool, faults: usize) {
        self.readers.retain_mut(Follower::lives);
        let file = self.server.folder().at(&format!("reader-{}.jsonl", self.step));
        let Ok(mut reader) = Follower::begin(&self.server.registry(), &file) else {
            return self.violation(Class::Hung, "no reader can be started");
        };
        if kill {
            // In the middle of what it reads.
            self.wait(Duration::from_millis(300), |_| !reader.text().is_empty());
            return drop(reader);
        }
        if !reader.lives() {
            return self.violation(Class::Hung, format!("a reader ended by itself: {}", reader.text()));
        }
        process::send(reader.pid(), Signal::STOP);
        self.undos.push((self.step + faults, Undo::Reader(self.readers.len())));
        self.readers.push(reader);
    }

    fn crash_loop(&mut self, deaths: usize) {
        let ended = |life: &Self| life.kernel.all().iter().filter(|process| process.ended.is_some()).count();
        self.server.folder().write("markers/crash", "");
        let before = ended(self);
        self.each(Who::One(1), Signal::KILL);
        self.wait(Duration::from_secs(3), |life| ended(life) > before + deaths);
        self.clear_traps();
    }
}
