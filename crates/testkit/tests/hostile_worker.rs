//! Row 41: a worker, as www-data, attacks with all that it inherited, while its server reloads, loses workers, is upgraded
//! and stopped, while another server starts under the same name, and while every command of the program runs as root.
//!
//! The attacker is a child that the worker forks (`testkit/attacker`). What is asserted is about root: its master, its
//! programs, the other server. All that is wrong is collected and said at the end, when the attacker is dead: until
//! then, who is held by it cannot even be killed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::guard::{Guard, LONGEST_SLEEP};
use testkit::program::{self, Run, headcount};
use testkit::wait::{PATIENCE, poll};
use testkit::{Integration, Nginx, Setup, Signal, Stranger, artifacts, http, permit, process};

/// How long anybody may wait for the node lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// What a slow machine may add.
const SLACK: Duration = Duration::from_secs(3);

/// A command of the program takes no lock; a master takes it when it begins a generation, and when it leaves.
const LIMIT: Duration = LOCK_TIMEOUT.saturating_add(SLACK);

/// What root's processes may use. The programs are not optimised.
const MOST_MEMORY_KIB: u64 = 96 << 10;
const MOST_CPU: Duration = Duration::from_secs(2);
const MOST_CPU_SHARE: f64 = 0.25;

struct Siege<'a> {
    nginx: &'a Nginx,
    attack: &'static str,
    guard: Guard,
    stranger: Stranger,
    attackers: Vec<i32>,
    wrongs: Vec<String>,
    begun: Instant,
}

fn setup(integration: Integration) -> Setup {
    let setup = Setup::new(integration).workers(2).option("lock_timeout", "2").allow_kills();
    setup.with_a_traitor()
}

impl<'a> Siege<'a> {
    fn new(nginx: &'a Nginx, attack: &'static str) -> Siege<'a> {
        let stranger = Stranger::new();
        let guard = Guard::new();
        guard.watch(nginx.master(), "the master");
        Siege {
            nginx,
            attack,
            guard,
            stranger,
            attackers: Vec::new(),
            wrongs: Vec::new(),
            begun: Instant::now(),
        }
    }

    /// Has a worker attack from now on.
    fn begin(&mut self) {
        let (nginx, attack) = (self.nginx, self.attack);
        let page = format!("/attack?kind={attack}&strangers={},1", self.stranger.pid());
        let answer = http::get(&nginx.at("attack.sock"), &page).map(|answer| answer.body);
        let attacker: i32 = match answer.as_ref().map(|body| body.trim().parse()) {
            Ok(Ok(pid)) if pid > 1 => pid,
            _ => nginx.fail(&format!("the worker does not attack: {answer:?}")),
        };
        self.attackers.push(attacker);
        let found = nginx.wait_until("the attack to be under way", || {
            std::fs::read_to_string(nginx.at(&format!("markers/attack-{attacker}"))).ok()
        });
        eprintln!("{attack}: {found}");
        assert!(!found.contains("no registry"), "the worker has the registry mapped: {found}");
    }

    fn wrong(&mut self, what: String) {
        eprintln!("{:.1} s: {what}", self.begun.elapsed().as_secs_f64());
        self.wrongs.push(what);
    }

    /// Waits for something that must come whatever the attacker does.
    fn must<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        let begun = Instant::now();
        let came = poll(limit, &mut condition);
        if came.is_none() {
            self.wrong(format!("not within {limit:?}: {what}"));
        } else {
            eprintln!("{:.1} s: {what} after {:?}", self.begun.elapsed().as_secs_f64(), begun.elapsed());
        }
        came
    }

    /// Where its pid file is gone, it has no master, and that is what is wrong then.
    fn master(&self) -> i32 {
        self.nginx.master_if_any().unwrap_or(i32::MAX)
    }

    fn which(&self) -> [String; 2] {
        ["--registry".to_owned(), self.nginx.registry().display().to_string()]
    }

    /// Every command of the program: it ends in time, by itself, whatever it finds.
    fn programs(&mut self, when: &str) {
        let [option, path] = self.which();
        let state = self.nginx.at("run.state");
        let runs = program::run_every(&[], &[&option, &path], &state, LIMIT, &self.guard);
        let _ = std::fs::remove_file(state);
        for run in runs {
            self.judge(when, &run);
        }
    }

    fn judge(&mut self, when: &str, run: &Run) {
        if run.overdue {
            self.wrong(format!("{when}: {} had to be killed after {:?}", run.name, run.took));
        } else if run.code.is_none_or(|code| !(0..=4).contains(&code)) || run.err.contains("panicked") {
            // `script` is ended by the signal that `top` should have ended by.
            if !run.name.starts_with("headcount top") {
                self.wrong(format!("{when}: {} ended with {:?}: {}", run.name, run.code, run.err));
            }
        }
    }

    /// Kills the workers that are there now, one after the other; each is replaced.
    fn kill_workers(&mut self) {
        for victim in self.nginx.workers_of(self.master()) {
            process::send(victim, Signal::KILL);
            let nginx = self.nginx;
            self.must("a worker in place of one that was killed", LIMIT, || {
                let now = nginx.workers_of(nginx.master_if_any()?);
                (now.len() == 2 && !now.contains(&victim)).then_some(())
            });
        }
    }

    /// HUP; the master starts new workers in time.
    fn reload(&mut self, what: &str) {
        let before = process::children(self.master());
        process::send(self.master(), Signal::HUP);
        let nginx = self.nginx;
        self.must(what, LIMIT, || {
            let new = nginx
                .workers_of(nginx.master_if_any()?)
                .into_iter()
                .filter(|pid| !before.contains(pid))
                .count();
            (new == 2).then_some(())
        });
    }

    /// `headcount reload`, which signals the server's master and nobody else.
    fn program_reloads(&mut self) {
        let [option, path] = self.which();
        let arguments = ["reload", &option, &path, "--timeout", "2s"];
        let begun = program::begin(&mut headcount(&[], &arguments), "headcount reload", &self.guard);
        let run = begun.end(Duration::from_secs(2) + LIMIT);
        self.judge("under attack", &run);
    }

    /// Another server with the same registry by mistake: it has its own node, and serves in time.
    fn another_starts(&mut self) {
        let path = format!("\"{}\"", self.nginx.registry().display());
        let setup = setup(self.nginx.integration()).workers(1).option("path", &path);
        let other = Nginx::prepare(setup);
        let mut start = other.command(&[]);
        let begun = program::begin(&mut start, "the other server's start", &self.guard);
        let run = begun.end(LIMIT);
        if run.overdue {
            self.wrong(format!("the other server did not start within {LIMIT:?}"));
            return self.later(other);
        }
        let serves = self.must("the other server serves", LIMIT, || {
            http::get(&other.socket(), "/ping").ok().filter(|answer| answer.status == 200)
        });
        if let Some(master) = other.master_if_any() {
            self.guard.watch(master, "the other server's master");
            if serves.is_some() {
                process::send(master, Signal::QUIT);
                self.must("the other server stops", 2 * LIMIT, || (!process::is_alive(master)).then_some(()));
            }
        }
        self.later(other);
    }

    /// A server that is held can only be ended when its captor is.
    fn later(&mut self, other: Nginx) {
        if other.family().iter().any(|&pid| process::threads(pid).contains(&'D')) {
            self.end_attack();
        }
        other.kill_all();
    }

    /// USR2, and the old master is told to go.
    fn upgrade(&mut self) {
        let nginx = self.nginx;
        let old = self.master();
        process::send(old, Signal::USR2);
        let new = self.must("a new master with its workers after USR2", 2 * LIMIT, || {
            let new = nginx.master_if_any().filter(|&pid| pid != old && process::is_alive(pid))?;
            (nginx.workers_of(new).len() == 2).then_some(new)
        });
        let Some(new) = new else { return };
        self.guard.watch(new, "the new master");
        process::send(old, Signal::QUIT);
        self.must("the old master ends", 2 * LIMIT, || (!process::is_alive(old)).then_some(()));
    }

    fn end_attack(&mut self) {
        for attacker in std::mem::take(&mut self.attackers) {
            process::send(attacker, Signal::KILL);
            self.must("the end of the attacker", LIMIT, || (!process::is_alive(attacker)).then_some(()));
        }
    }

    fn status(&self) -> Value {
        let [option, path] = self.which();
        let arguments = ["status", "--json", &option, &path];
        let run = program::begin(&mut headcount(&[], &arguments), "headcount status", &self.guard).end(LIMIT);
        run.json().pointer("/nodes/0").cloned().unwrap_or_else(|| Value::from(run.out + &run.err))
    }

    /// What the status says is what the kernel says. `Err` says how they differ.
    fn status_is_right(&self) -> Result<(), String> {
        let node = self.status();
        let pids = |role: &str| -> BTreeSet<i64> {
            let all = node["processes"].as_array().into_iter().flatten();
            let alive = all.filter(|p| p["role"] == role && p["liveness"] != "gone");
            alive.filter_map(|p| p["pid"].as_i64()).collect()
        };
        let truth = |all: Vec<i32>| -> BTreeSet<i64> { all.into_iter().map(i64::from).collect() };
        let (masters, workers) = (truth(vec![self.master()]), truth(self.nginx.workers_of(self.master())));
        if (pids("master"), pids("worker")) != (masters.clone(), workers.clone()) {
            return Err(format!("there are {masters:?} and {workers:?}, the status says {node:#}"));
        }
        let total = node["total"].as_u64();
        if total != Some(2) {
            return Err(format!("two workers serve, the status says {total:?}: {node:#}"));
        }
        Ok(())
    }

    fn must_be_right(&mut self, when: &str) {
        let mut why = String::new();
        let right = poll(PATIENCE, || self.status_is_right().map_err(|e| why = e).ok());
        if right.is_none() {
            self.wrong(format!("{when}: {why}"));
        }
    }

    /// The attacker is dead: one reload, and everything is as if he had never been there.
    fn recovers(&mut self) {
        self.reload("new workers after the attack");
        let [option, path] = self.which();
        let arguments = ["wait", "--reloaded", "--drained", "--timeout", "15s", &option, &path];
        let wait =
            program::begin(&mut headcount(&[], &arguments), "headcount wait", &self.guard).end(2 * PATIENCE);
        // Of what a worker has made of the header after the last process was gone, nobody can say more than that.
        let is_spoiled = wait.code == Some(4) && wait.err.contains("is no headcount registry");
        if wait.code != Some(0) && !is_spoiled {
            self.wrong(format!("after the attack: headcount wait --reloaded: {:?} {}", wait.code, wait.err));
        }
        self.must_be_right("after the attack and a reload");
    }

    /// All of the server is gone; the attacker may be left.
    fn stops(&mut self, when: &str) {
        let nginx = self.nginx;
        nginx.family();
        process::send(self.master(), Signal::QUIT);
        let attackers = self.attackers.clone();
        let stopped = self
            .must(when, 2 * LIMIT, || nginx.family().iter().all(|pid| attackers.contains(pid)).then_some(()));
        if stopped.is_none() {
            self.end_attack();
            nginx.kill_all();
        }
    }

    /// He goes on with what he had: the registry is still mapped, the lock file open. The next start serves in time.
    fn stops_and_starts_under_attack(&mut self) {
        let nginx = self.nginx;
        self.stops("a clean stop under attack");
        for stale in ["nginx.pid", "http.sock", "attack.sock"] {
            let _ = std::fs::remove_file(nginx.at(stale));
        }
        let run = program::begin(&mut nginx.command(&[]), "the next start", &self.guard).end(LIMIT);
        if run.overdue {
            return self.wrong(format!("the next start took longer than {LIMIT:?}"));
        }
        self.must("the server serves after a start under attack", LIMIT, || {
            http::get(&nginx.socket(), "/ping").ok().filter(|answer| answer.status == 200)
        });
        self.stops("a clean stop after a start under attack");
    }

    fn starts_again(&mut self) {
        let nginx = self.nginx;
        nginx.kill_all();
        let [option, path] = self.which();
        let arguments = ["wait", "--stopped", "--timeout", "5s", &option, &path];
        let wait =
            program::begin(&mut headcount(&[], &arguments), "headcount wait", &self.guard).end(PATIENCE);
        // Of what a worker has made of the registry after the last process was gone, nobody can say more than that: it is none, or
        // names somebody of whom nothing can be known.
        let is_spoiled = wait.code == Some(4) && wait.err.contains("is no headcount registry")
            || wait.code == Some(1) && wait.err.contains(", unknown,");
        if wait.code != Some(0) && !is_spoiled {
            self.wrong(format!("after the stop: headcount wait --stopped: {:?} {}", wait.code, wait.err));
        }
        nginx.run();
        self.must_be_right("after the next start under the same name");
        // No ledger: what was reported under attack is what the attacker liked.
        self.stops("a clean stop");
    }

    fn verdict(mut self) {
        for seen in self.guard.seen() {
            eprintln!(
                "{}: {:?} in state D, {:?} of processor time, {} KiB",
                seen.what, seen.longest_sleep, seen.cpu, seen.peak_kib
            );
            if seen.longest_sleep > LONGEST_SLEEP {
                let (what, longest) = (&seen.what, seen.longest_sleep);
                self.wrongs.push(format!("{what} was in state D for {longest:?} ({})", seen.slept_in));
            }
            let most = MOST_CPU + seen.since.elapsed().mul_f64(MOST_CPU_SHARE);
            if seen.cpu > most {
                self.wrongs.push(format!("{} used {:?} of processor time", seen.what, seen.cpu));
            }
            if seen.peak_kib > MOST_MEMORY_KIB {
                self.wrongs.push(format!("{} used {} KiB", seen.what, seen.peak_kib));
            }
        }
        self.wrongs.extend(self.stranger.complaint());
        if !self.wrongs.is_empty() {
            self.nginx.fail(&format!(
                "{} things are wrong:\n- {}",
                self.wrongs.len(),
                self.wrongs.join("\n- ")
            ));
        }
    }
}

impl Drop for Siege<'_> {
    fn drop(&mut self) {
        self.attackers.iter().for_each(|&pid| process::send(pid, Signal::KILL));
    }
}

fn besieged(integration: Integration, attack: &'static str) {
    if !process::is_root() {
        return eprintln!("skipped: only where workers drop root's rights is there somebody to defend");
    }
    let _permit = permit();
    let nginx = Nginx::prepare(setup(integration));
    let library = nginx.at("libattacker.so");
    std::fs::copy(artifacts::attackers_library(), library).expect("our own folder");
    nginx.run();
    nginx.ready(1);
    let mut siege = Siege::new(&nginx, attack);
    siege.begin();
    siege.programs("under attack");
    siege.kill_workers();
    siege.reload("new workers after HUP");
    siege.program_reloads();
    siege.another_starts();
    siege.upgrade();
    siege.programs("under attack, after an upgrade");
    siege.end_attack();
    siege.recovers();
    siege.begin();
    siege.stops_and_starts_under_attack();
    siege.end_attack();
    siege.starts_again();
    siege.verdict();
}

macro_rules! attacks {
    ($($attack:ident)*) => {
        mod lua {
            $(#[test] fn $attack() { super::besieged(super::Integration::Lua, stringify!($attack)); })*
        }
        mod module {
            $(#[test] fn $attack() { super::besieged(super::Integration::Native, stringify!($attack)); })*
        }
        #[test]
        fn every_attack_has_its_test() {
            let mut tested = [$(stringify!($attack)),*];
            let mut attacks = attacker::ATTACKS.to_vec();
            tested.sort_unstable();
            attacks.sort_unstable();
            assert_eq!(tested.as_slice(), attacks);
        }
    };
}

attacks! {
    hostage ofd_locks record_locks flock fixed ends lock_words masters_lock siblings_lock strangers_lock joiners holes
    bell_storm bell_silence futexes files strangers noise extremes full
}
