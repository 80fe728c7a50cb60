//! Rows 5 to 8: workers die.

use std::time::Duration;

use crate::wait::{PATIENCE, boot_clock};
use crate::{Integration, Kind, Nginx, Report, Setup, Signal, process};

/// "Within milliseconds", with room for four nginx and a compiler on two cores. No polling of
/// heartbeats, which come once a second, can be this quick.
const AT_ONCE: Duration = Duration::from_millis(250);

fn wait_death(nginx: &Nginx, pid: i32) -> Report {
    nginx.wait_for(&format!("the death of {pid}"), PATIENCE, |all| {
        all.of(Kind::WorkerDied).into_iter().find(|r| r.pid() == pid).cloned()
    })
}

fn wait_starts(nginx: &Nginx, generation: u64, n: usize) {
    nginx.wait_for(&format!("{n} starts in generation {generation}"), PATIENCE, |all| {
        all.at_least(n, Kind::WorkerStarted, generation)
    });
}

/// Row 5, each worker in its turn, so whoever watches the others dies too.
pub fn each_worker_in_turn(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).allow_kills());
    let victims = nginx.workers();
    for (nth, &victim) in victims.iter().enumerate() {
        let since = boot_clock();
        process::send(victim, Signal::KILL);
        let death = wait_death(&nginx, victim);
        let took = Duration::from_nanos(death.at.saturating_sub(since));
        assert!(took < AT_ONCE, "told after {took:?}\n{}", nginx.reports());
        assert!(process::is_alive(death.runner), "told by one that lives: {death}");
        wait_starts(&nginx, 1, 5 + nth);
    }
    let mut ledger = nginx.end(Signal::TERM);
    let deaths = ledger.series(Kind::WorkerDied, 1, [3, 3, 3, 3]);
    ledger.distinct_pids(&deaths, 4);
    for death in &deaths {
        ledger.same("signal", &death.int("signal"), &Some(9));
        ledger.same("exit code", &death.int("exit_code"), &None);
        ledger.same("cause", death.cause(), "signal");
        ledger.holds("a survivor tells it", death.runner != death.pid());
    }
    let starts = ledger.series(Kind::WorkerStarted, 1, [1, 2, 3, 4, 4, 4, 4, 4]);
    ledger.distinct_pids(&starts, 8);
    ledger.take(Kind::GenerationStarted, 1);
    ledger.fast_end(1, 4, false);
    ledger.nothing_else();
}

/// Rows 2, 6 and 3 in one second: a worker is killed and replaced, then a reload, then the stop. The replacement is
/// there, so nothing holds the old generation open, and the stop is seen as one.
pub fn then_a_reload_and_the_stop(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).workers(3).allow_kills());
    let victim = nginx.workers()[1];
    process::send(victim, Signal::KILL);
    wait_death(&nginx, victim);
    wait_starts(&nginx, 1, 4);
    nginx.reload();
    nginx.ready(2);
    nginx.wait_ended(1);
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.take(Kind::GenerationStarted, 1);
    ledger.take(Kind::WorkerStarted, 1);
    ledger.one(Kind::WorkerDied, 1);
    ledger.reloaded(2, 3, 3);
    let end = ledger.graceful_end(1, 3, true);
    let last = ledger.all().of_generation(Kind::WorkerExited, 1).last().map(|r| r.runner);
    ledger.same("its last worker tells the end", &Some(end.runner), &last);
    let end = ledger.graceful_end(2, 3, false);
    ledger.same("counts at the end", &end.counts(), &(None, Some(0), None));
    ledger.nothing_else();
}

/// Row 5, a worker that crashes.
pub fn segmentation_fault(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).allow("exited on signal 11"));
    let victim = nginx.workers()[1];
    process::send(victim, Signal::SEGV);
    let death = wait_death(&nginx, victim);
    assert_eq!(death.int("signal"), Some(11), "{death}");
    assert_eq!(death.cause(), "signal", "{death}");
    wait_starts(&nginx, 1, 5);
    let mut ledger = nginx.end(Signal::TERM);
    ledger.one_with(Kind::WorkerDied, 1, (None, Some(3), None));
    ledger.take(Kind::WorkerStarted, 1);
    ledger.take(Kind::GenerationStarted, 1);
    ledger.fast_end(1, 4, false);
    ledger.nothing_else();
}

/// Row 5, a worker that ends itself without having left properly.
pub fn exit_code(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i));
    let _request = crate::http::send(&nginx.socket(), "/exit?code=3").expect("it serves");
    let death =
        nginx.wait_for("a death", PATIENCE, |all| all.of(Kind::WorkerDied).first().map(|r| (*r).clone()));
    assert_eq!(death.int("exit_code"), Some(3), "{death}");
    assert_eq!(death.int("signal").unwrap_or(0), 0, "{death}");
    assert_eq!(death.cause(), "exit", "{death}");
    wait_starts(&nginx, 1, 5);
    let mut ledger = nginx.end(Signal::TERM);
    ledger.one_with(Kind::WorkerDied, 1, (None, Some(3), None));
    ledger.take(Kind::WorkerStarted, 1);
    ledger.take(Kind::GenerationStarted, 1);
    ledger.fast_end(1, 4, false);
    ledger.nothing_else();
}

/// Row 6.
pub fn respawn(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).allow_kills());
    let victim = nginx.workers()[2];
    process::send(victim, Signal::KILL);
    wait_death(&nginx, victim);
    wait_starts(&nginx, 1, 5);
    let mut ledger = nginx.end(Signal::QUIT);
    let death = ledger.one_with(Kind::WorkerDied, 1, (None, Some(3), None));
    ledger.same("who died", &death.pid(), &victim);
    let starts = ledger.take(Kind::WorkerStarted, 1);
    let (first, again) = starts.split_at(4);
    ledger.holds("the first four by start", first.iter().all(|r| r.cause() == "start"));
    let [again] = again else { ledger.fail("one respawn") };
    ledger.same("cause", again.cause(), "respawn");
    ledger.same("counts", &again.counts(), &(None, Some(4), None));
    ledger.holds("its death is told first", death.int("seq") < again.int("seq"));
    let old = first.iter().find(|r| r.pid() == victim).expect("it had started");
    ledger.same("the same place", &again.int("worker_id"), &old.int("worker_id"));
    ledger.take(Kind::GenerationStarted, 1);
    ledger.graceful_end(1, 4, false);
    ledger.nothing_else();
}

/// Row 7: nobody is left who could have seen it.
pub fn every_worker_at_once(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).allow_kills());
    let (master, victims) = (nginx.master(), nginx.workers());
    // The master stands too, so that none is respawned before the last has died.
    for &pid in victims.iter().chain([&master]) {
        nginx.freeze(pid);
    }
    for &pid in &victims {
        process::send(pid, Signal::KILL);
    }
    for &pid in &victims {
        nginx.wait_gone(pid);
    }
    nginx.thaw(master);
    wait_starts(&nginx, 1, 8);
    for &pid in &victims {
        wait_death(&nginx, pid);
    }
    let mut ledger = nginx.end(Signal::TERM);
    let starts = ledger.series(Kind::WorkerStarted, 1, [1, 2, 3, 4, 1, 2, 3, 4]);
    let respawned = &starts[4..];
    ledger.holds("respawned", respawned.iter().all(|r| r.cause() == "respawn"));
    let deaths = ledger.take(Kind::WorkerDied, 1);
    let mut dead: Vec<i32> = deaths.iter().map(Report::pid).collect();
    dead.sort_unstable();
    let mut expected = victims.clone();
    expected.sort_unstable();
    ledger.same("each death once", &dead, &expected);
    for death in &deaths {
        let by_new = respawned.iter().any(|r| r.pid() == death.runner);
        ledger.holds("told by a respawned worker", by_new);
    }
    ledger.take(Kind::GenerationStarted, 1);
    ledger.fast_end(1, 4, false);
    ledger.nothing_else();
}

/// Row 8.
pub fn last_draining_worker(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).workers(2).allow_kills());
    let client = nginx.slow_client();
    nginx.reload_and_settle(2);
    nginx.wait_for("the other one to leave", PATIENCE, |all| all.at_least(1, Kind::WorkerExited, 1));
    process::send(client.worker, Signal::KILL);
    let end = nginx.wait_for("the old generation's end", PATIENCE, |all| {
        all.of_generation(Kind::GenerationEnded, 1).first().map(|r| (*r).clone())
    });
    let heirs = nginx.workers();
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(2);
    ledger.reloaded(2, 2, 2);
    ledger.take(Kind::WorkerDraining, 1);
    ledger.one_with(Kind::WorkerExited, 1, (None, Some(2), Some(2)));
    let death = ledger.one_with(Kind::WorkerDied, 1, (None, Some(0), Some(2)));
    ledger.same("who died", &death.pid(), &client.worker);
    let told = ledger.end(1, true);
    ledger.same("its counts", &told.counts(), &(None, Some(0), Some(2)));
    ledger.holds("the death first", death.int("seq") < told.int("seq"));
    ledger.holds("by a worker of a live generation", heirs.contains(&end.runner));
    ledger.graceful_end(2, 2, false);
    ledger.nothing_else();
}

/// Row 29: strangers have the pids of the dead.
pub fn pids_of_strangers(i: Integration) {
    if !process::is_root() {
        eprintln!("skipped: only root sets ns_last_pid");
        return;
    }
    let nginx = Nginx::start_ready(Setup::new(i));
    let workers = nginx.workers();
    let mut dead = workers.clone();
    dead.insert(0, nginx.master());
    for &pid in &dead {
        nginx.freeze(pid);
    }
    for &pid in &dead {
        process::send(pid, Signal::KILL);
    }
    let strangers: Vec<Stranger> = dead.iter().map(|&pid| Stranger::with_pid(&nginx, pid)).collect();
    nginx.run();
    nginx.ready(2);
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(4);
    let start = ledger.one_with(Kind::GenerationStarted, 2, (None, Some(0), None));
    ledger.same("the run before", start.text("previous_run"), "unclean");
    ledger.same("workers of the run before", &start.int("previous_workers"), &Some(4));
    ledger.starts(2, 4, "start");
    let end = ledger.graceful_end(2, 4, false);
    ledger.same("nobody else is there", &end.int("total"), &Some(0));
    ledger.distinct_per_pid(Kind::WorkerDied, 1);
    for stranger in &strangers {
        ledger.holds("no stranger was harmed", process::is_alive(stranger.pid));
    }
}

/// Row 29: one worker's pid, while the node lives.
pub fn pid_of_one_stranger(i: Integration) {
    if !process::is_root() {
        eprintln!("skipped: only root sets ns_last_pid");
        return;
    }
    let nginx = Nginx::start_ready(Setup::new(i).allow_kills());
    let victim = nginx.workers()[0];
    process::send(victim, Signal::KILL);
    wait_starts(&nginx, 1, 5);
    let stranger = Stranger::with_pid(&nginx, victim);
    let next = nginx.workers()[0];
    process::send(next, Signal::KILL);
    wait_starts(&nginx, 1, 6);
    let mut ledger = nginx.end(Signal::QUIT);
    let deaths = ledger.series(Kind::WorkerDied, 1, [3, 3]);
    ledger.distinct_pids(&deaths, 2);
    ledger.series(Kind::WorkerStarted, 1, [1, 2, 3, 4, 4, 4]);
    ledger.take(Kind::GenerationStarted, 1);
    ledger.graceful_end(1, 4, false);
    ledger.nothing_else();
    assert!(process::is_alive(stranger.pid));
}

/// A process that has nothing to do with the server but a pid.
struct Stranger {
    child: std::process::Child,
    pid: i32,
}

impl Stranger {
    fn with_pid(nginx: &Nginx, pid: i32) -> Self {
        // Others fork meanwhile; whoever comes first has the number after the last one.
        nginx.wait_until(&format!("a stranger with pid {pid}"), || {
            std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).ok()?;
            let mut child =
                std::process::Command::new("/bin/sleep").arg("1000").spawn().expect("sleep starts");
            // The kernel tells start times in steps of 10 ms. Who was born in the same step as the dead is the same process to this
            // test's books, which would wait for its end.
            let is_new = !nginx.family().contains(&pid);
            if child.id() as i32 == pid && is_new {
                return Some(Self { child, pid });
            }
            let _ = child.kill();
            let _ = child.wait();
            None
        })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
