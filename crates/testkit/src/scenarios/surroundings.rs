//! Rows 31, 38, 46, 48, 49 and 50: crash loops, blocked sentinels, retries that die, and what comes back.

use std::time::Duration;

use serde_json::Value;

use crate::guard::Guard;
use crate::program::{self, headcount};
use crate::setup::Who;
use crate::wait::{PATIENCE, boot_clock};
use crate::{Integration, Kind, Ledger, Nginx, Setup, Signal, process};

/// Without waiting for anything that only comes with time: no heartbeat, no stall.
const AT_ONCE: Duration = Duration::from_millis(500);

fn status(nginx: &Nginx) -> Value {
    let registry = nginx.registry().display().to_string();
    let mut command = headcount(&[], &["status", "--json", "--registry", &registry]);
    let run = program::begin(&mut command, "headcount status", &Guard::new()).end(PATIENCE);
    run.json().pointer("/nodes/0").cloned().unwrap_or_else(|| nginx.fail(&format!("no status: {run:?}")))
}

/// `headcount wait --reloaded`: whether it was content within this time, and what it said.
fn reloaded(nginx: &Nginx, timeout: &str) -> (bool, String) {
    let registry = nginx.registry().display().to_string();
    let arguments = ["wait", "--reloaded", "--timeout", timeout, "--registry", &registry];
    let run =
        program::begin(&mut headcount(&[], &arguments), "headcount wait", &Guard::new()).end(2 * PATIENCE);
    (run.code == Some(0), run.out + &run.err)
}

/// Every worker dies before its event loop turns for the first time.
fn crash_loop(i: Integration, workers: u32, lua: &str) {
    let setup = Setup::new(i).workers(workers).allow_kills().after_init(lua);
    let nginx = Nginx::prepare(setup);
    nginx.launch();
    let wanted = 4 * workers as usize;
    nginx.wait_for("deaths to be told", PATIENCE, |all| all.at_least(wanted, Kind::WorkerDied, 1));
    let (content, said) = reloaded(&nginx, "2s");
    assert!(!content, "a crash loop serves nobody: {said}");
    let node = status(&nginx);
    assert_eq!(node["recent"]["crash_loop"], true, "{node:#}");
    let slots = node["processes"].as_array().map_or(0, Vec::len);
    assert!(slots <= 3 * workers as usize + 2, "slots pile up: {node:#}");
    // Whoever is dead when nginx ends has nobody left to tell it but the master.
    let mut ledger = nginx.end(Signal::TERM);
    let deaths = ledger.take(Kind::WorkerDied, 1);
    ledger.distinct_pids(&deaths, deaths.len() as i64);
    let starts = ledger.take(Kind::WorkerStarted, 1);
    ledger.distinct_pids(&starts, starts.len() as i64);
    let unborn = deaths.iter().filter(|death| !starts.iter().any(|start| start.pid() == death.pid()));
    ledger.same("deaths of those who never started", &unborn.count(), &0);
    ledger.same("generations begun", &ledger.all().of(Kind::GenerationStarted).len(), &1);
}

/// Row 31, slowly: one worker, half a second for each.
pub fn slow_crash_loop(i: Integration) {
    crash_loop(i, 1, "kit.after_join = function() kit.block(0.3) kit.die() end");
}

/// Row 31, as tight as can be: nobody's event loop ever turns.
pub fn tight_crash_loop(i: Integration) {
    crash_loop(i, 4, "kit.after_join = function() kit.die() end");
}

/// Row 32: with the module, in the `init_process` of another module, before or after ours in the configuration.
pub fn dead_in_another_modules_start(i: Integration) {
    let http = "init_worker_by_lua_block { local ffi = require 'ffi' ffi.cdef 'int kill(int, int); int getpid(void);'
        ffi.C.kill(ffi.C.getpid(), 9) }";
    let nginx = Nginx::prepare(Setup::new(i).workers(2).allow_kills().http(http));
    nginx.launch();
    nginx.wait_for("deaths to be told", PATIENCE, |all| all.at_least(8, Kind::WorkerDied, 1));
    let (content, said) = reloaded(&nginx, "2s");
    assert!(!content, "a crash loop serves nobody: {said}");
    let node = status(&nginx);
    assert_eq!(node["recent"]["crash_loop"], true, "{node:#}");
    let mut ledger = nginx.end(Signal::TERM);
    let deaths = ledger.take(Kind::WorkerDied, 1);
    ledger.distinct_pids(&deaths, deaths.len() as i64);
    let starts = ledger.take(Kind::WorkerStarted, 1);
    let unborn = deaths.iter().filter(|death| !starts.iter().any(|start| start.pid() == death.pid()));
    ledger.same("deaths of those who never started", &unborn.count(), &0);
}

/// Row 31, once the cause is gone, the next reload serves.
pub fn crash_loop_that_ends(i: Integration) {
    let lua = "kit.after_join = function() if kit.once('a') or kit.once('b') or kit.once('c') then kit.die() end end";
    let nginx = Nginx::prepare(Setup::new(i).workers(1).allow_kills().after_init(lua));
    nginx.launch();
    nginx.wait_for("three deaths", PATIENCE, |all| all.at_least(3, Kind::WorkerDied, 1));
    let (content, said) = reloaded(&nginx, "10s");
    assert!(content, "{said}");
    let mut ledger = nginx.end(Signal::QUIT);
    let deaths = ledger.take(Kind::WorkerDied, 1);
    ledger.distinct_pids(&deaths, 3);
    let starts = ledger.take(Kind::WorkerStarted, 1);
    ledger.distinct_pids(&starts, 4);
    ledger.take(Kind::GenerationStarted, 1);
    ledger.graceful_end(1, 1, false);
    ledger.nothing_else();
}

/// Row 38: the whole node is killed; it is dated by its last sign of life, and is no crash loop.
pub fn killed_with_the_node(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).option("heartbeat_interval", "0.2").allow_kills());
    let node = status(&nginx);
    let alive = |p: &&Value| p["role"] == "worker";
    assert_eq!(node["processes"].as_array().into_iter().flatten().filter(alive).count(), 4, "{node:#}");
    nginx.kill_all();
    let killed = boot_clock();
    // As long as it takes to tell the two moments apart.
    const APART: Duration = Duration::from_secs(3);
    std::thread::sleep(APART);
    nginx.run();
    nginx.ready(2);
    let since = Duration::from_nanos(boot_clock() - killed);
    let node = status(&nginx);
    let deaths = node["deaths"].as_array().cloned().unwrap_or_default();
    assert_eq!(deaths.len(), 4, "{node:#}");
    for death in &deaths {
        let age = death["age"].as_f64().unwrap_or(0.0);
        assert!(age >= APART.as_secs_f64() && age <= since.as_secs_f64() + 2.0, "{since:?}: {death:#}");
        assert!(death["lived"].as_f64().is_some_and(|lived| lived < 30.0), "{death:#}");
    }
    assert_eq!(node["recent"]["crash_loop"], false, "{node:#}");
    nginx.end(Signal::QUIT);
}

/// Row 46: the sentinel stands, and another worker dies.
pub fn stopped_sentinel(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).allow_kills());
    let sentinel = nginx.wait_until("a sentinel", || status(&nginx)["sentinel"].as_i64()) as i32;
    let victim = nginx.workers().into_iter().find(|&pid| pid != sentinel).expect("four workers");
    nginx.freeze(sentinel);
    let since = boot_clock();
    process::send(victim, Signal::KILL);
    let death = nginx.wait_for("the death", PATIENCE, |all| {
        all.of(Kind::WorkerDied).into_iter().find(|r| r.pid() == victim).cloned()
    });
    let took = Duration::from_nanos(death.at.saturating_sub(since));
    assert!(took < AT_ONCE, "told after {took:?}\n{}", nginx.reports());
    nginx.wait_for("its replacement", PATIENCE, |all| all.at_least(5, Kind::WorkerStarted, 1));
    nginx.thaw(sentinel);
    let mut ledger = nginx.end(Signal::TERM);
    let death = ledger.one(Kind::WorkerDied, 1);
    let starts = ledger.take(Kind::WorkerStarted, 1);
    ledger.same("counts at the replacement", &starts[4].int("mine"), &Some(4));
    ledger.holds("the death first", death.int("seq") < starts[4].int("seq"));
    ledger.take(Kind::GenerationStarted, 1);
    ledger.take(Kind::WorkerStalled, 1);
    ledger.take(Kind::WorkerRecovered, 1);
    ledger.fast_end(1, 4, false);
    ledger.nothing_else();
}

/// Row 48: the runner of a callback dies in it, and so does the runner of the retry.
pub fn retry_that_dies(i: Integration) {
    let lua = "if kit.once('first') or kit.once('second') then kit.die() end";
    let nginx = Nginx::start_ready(Setup::new(i).allow_kills().in_callback("on_worker_died", lua));
    let victim = nginx.workers()[0];
    process::send(victim, Signal::KILL);
    // Who tells it may be a replacement that dies before its own start is told.
    nginx.wait_until("the callback to run to its end, and all workers to serve", || {
        let runs = nginx.reports().of(Kind::WorkerDied).iter().filter(|r| r.pid() == victim).count();
        (runs == 3 && status(&nginx)["total"] == 4).then_some(())
    });
    let answer = nginx.json("/events");
    let died: Vec<Value> =
        super::identity::objects(&answer).into_iter().filter(|e| e["kind"] == "callback_died").collect();
    assert_eq!(died.len(), 2, "{died:#?}");
    assert_eq!(died[0]["about"], died[1]["about"], "{died:#?}");
    assert_ne!(died[0]["pid"], died[1]["pid"], "{died:#?}");
    nginx.end(Signal::TERM);
}

/// Row 36: somebody removes the files of a running node.
pub fn removed_registry(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).workers(2));
    let lock = nginx.at("run/registry.lock");
    for file in [nginx.registry(), lock] {
        std::fs::remove_file(file).expect("a file of our own server");
    }
    let is_said = |line: &str| line.contains("[error]") && line.contains("reload the server");
    nginx.wait_for_log("what is missing, and the fix", is_said);
    nginx.reload();
    nginx.ready(2);
    nginx.wait_ended(1);
    goes_on_in_a_new_one(&nginx, "reload");
}

/// Row 36: and then the server's binary is replaced.
pub fn removed_registry_upgrade(i: Integration) {
    for files in [&["run/registry"][..], &["run/registry", "run/registry.lock"]] {
        let nginx = Nginx::start_ready(Setup::new(i).workers(2));
        for file in files {
            std::fs::remove_file(nginx.at(file)).expect("a file of our own server");
        }
        let (old, _) = nginx.upgrade();
        nginx.ready(2);
        process::send(old, Signal::QUIT);
        nginx.wait_ended(1);
        nginx.wait_gone(old);
        goes_on_in_a_new_one(&nginx, "upgrade");
    }
}

/// Generation 2 is in a registry in place of one that was removed: journal and node go on.
fn goes_on_in_a_new_one(nginx: &Nginx, cause: &str) {
    nginx.wait_for_log("that there is a new one", |line| line.contains("was removed while its server runs"));
    nginx.wait_until("the node to be seen again", || {
        let node = status(nginx);
        (node["total"] == 2 && node["generations"][0]["id"] == 2).then_some(())
    });
    let master = nginx.master();
    nginx.reload_and_settle(3);
    nginx.wait_ended(2);
    process::send(master, Signal::QUIT);
    nginx.gone();
    // Not one ledger: the old workers were counted in the old registry, the new ones in the new one.
    let mut ledger = Ledger::unchecked(nginx.reports());
    ledger.cold_start(2);
    let start = ledger.one_with(Kind::GenerationStarted, 2, (None, Some(0), None));
    ledger.same("cause", start.cause(), cause);
    ledger.same("run by the master that goes on", &start.runner, &master);
    ledger.holds("its number goes on", start.int("seq") > Some(3));
    ledger.starts(2, 2, cause);
    let end = ledger.graceful_end(1, 2, true);
    ledger.same("counts at the old one's end", &end.counts(), &(None, Some(0), Some(0)));
    ledger.reloaded(3, 2, 2);
    ledger.graceful_end(2, 2, true);
    ledger.graceful_end(3, 2, false);
    ledger.nothing_else();
}

/// Row 37: workers are told to go, and their master is not.
pub fn recycled(i: Integration) {
    for (workers, signal) in [(1, Signal::TERM), (1, Signal::QUIT), (3, Signal::TERM), (3, Signal::QUIT)] {
        let nginx = Nginx::start_ready(Setup::new(i).workers(workers));
        for &pid in &nginx.workers() {
            process::send(pid, signal);
        }
        let all_twice = 2 * workers as usize;
        nginx.wait_for("their replacements", PATIENCE, |all| all.at_least(all_twice, Kind::WorkerStarted, 1));
        let mut ledger = nginx.end(Signal::QUIT);
        let exits = ledger.take(Kind::WorkerExited, 1);
        ledger.distinct_pids(&exits, all_twice as i64);
        let (recycled, stopped) = exits.split_at(workers as usize);
        ledger.holds("they were recycled", recycled.iter().all(|r| r.cause() == "recycled"));
        ledger.holds("then the node stopped", stopped.iter().all(|r| r.cause() == "stop"));
        let starts = ledger.take(Kind::WorkerStarted, 1);
        ledger.distinct_pids(&starts, all_twice as i64);
        let replacements = &starts[workers as usize..];
        ledger.holds("the others replace them", replacements.iter().all(|r| r.cause() == "respawn"));
        ledger.take(Kind::WorkerDraining, 1);
        ledger.one(Kind::GenerationStarted, 1);
        let end = ledger.one(Kind::GenerationEnded, 1);
        ledger.same("cause of the end", end.cause(), "stop");
        ledger.nothing_else();
    }
}

/// A relative of row 37: the next configuration does without headcount, so nobody replaces the workers that leave.
pub fn no_longer_in_the_configuration(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).workers(2));
    nginx.reload_with(|setup| setup.who(Who::Nobody));
    nginx.wait_ended(1);
    nginx.must_serve();
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(2);
    let exits = ledger.exits(1, 2, false);
    ledger.holds("the node stopped", exits.iter().all(|r| r.cause() == "stop"));
    ledger.take(Kind::WorkerDraining, 1);
    let end = ledger.one(Kind::GenerationEnded, 1);
    ledger.same("cause of the end", end.cause(), "stop");
    ledger.nothing_else();
}

/// Row 49: an upgrade is rolled back when the old workers had left already.
pub fn resumed_generation_knows_its_size(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i));
    let (old, new) = nginx.upgrade();
    nginx.ready(2);
    process::send(old, Signal::WINCH);
    nginx.wait_ended(1);
    process::send(old, Signal::HUP);
    nginx.wait_for("the old workers to come back", PATIENCE, |all| all.at_least(8, Kind::WorkerStarted, 1));
    process::send(new, Signal::QUIT);
    nginx.wait_ended(2);
    nginx.wait_gone(new);
    let node = status(&nginx);
    let expected: Vec<&Value> =
        node["generations"].as_array().into_iter().flatten().map(|g| &g["expected"]).collect();
    assert_eq!(expected, [&Value::from(4)], "{node:#}");
    nginx.wait_until("the old pid file", || (nginx.master_if_any() == Some(old)).then_some(()));
    nginx.end(Signal::QUIT);
}

/// Row 50: a worker of a superseded generation died before it had joined.
pub fn one_that_never_joined(i: Integration) {
    // Only one of them, and only in the first generation.
    let lua = "kit.before_join = function() if kit.once('slow') then kit.block(30) end end";
    let nginx = Nginx::prepare(Setup::new(i).workers(2).allow_kills().after_init(lua));
    nginx.launch();
    nginx.wait_for("the other one", PATIENCE, |all| all.at_least(1, Kind::WorkerStarted, 1));
    let joined = nginx.reports().of(Kind::WorkerStarted)[0].pid();
    let slow = nginx.wait_until("the one that has not joined", || {
        process::children(nginx.master()).into_iter().find(|&pid| pid != joined)
    });
    nginx.reload();
    nginx.wait_for("the new workers", PATIENCE, |all| all.at_least(2, Kind::WorkerStarted, 2));
    nginx.wait_for("the old one to leave", PATIENCE, |all| all.at_least(1, Kind::WorkerExited, 1));
    let since = boot_clock();
    process::send(slow, Signal::KILL);
    nginx.wait_ended(1);
    let took = Duration::from_nanos(boot_clock() - since);
    assert!(took < Duration::from_secs(4), "its end was told after {took:?}\n{}", nginx.reports());
    let mut ledger: Ledger = nginx.end(Signal::QUIT);
    ledger.take(Kind::GenerationStarted, 1);
    ledger.take(Kind::WorkerStarted, 1);
    ledger.take(Kind::WorkerDraining, 1);
    ledger.take(Kind::WorkerExited, 1);
    let end = ledger.one(Kind::GenerationEnded, 1);
    ledger.same("counts at its end", &end.counts(), &(None, Some(0), Some(2)));
    ledger.take(Kind::GenerationStarted, 2);
    ledger.starts(2, 2, "reload");
    ledger.graceful_end(2, 2, false);
    ledger.nothing_else();
}
