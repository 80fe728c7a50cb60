//! Rows 17 and 18: callbacks that fail, and callbacks that take their time.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::wait::{PATIENCE, boot_clock};
use crate::{Integration, Kind, Nginx, Reports, Setup, Signal, process};

const FAIL_ONCE: &str = "if kit.once('failure') then error('the callback failed') end";

/// The library may log what it hands on; nginx may log it again.
fn failing(i: Integration, callback: &str) -> Setup {
    Setup::new(i).in_callback(callback, FAIL_ONCE).allow("stack traceback").allow("the callback failed")
}

fn caller_knows(all: &Reports, call: &str) {
    let told = all.notes(call).into_iter().any(|note| {
        note.text("err").contains("the callback failed") && note.text("err").contains("traceback")
    });
    assert!(told, "{call} did not hand on the callback's error with its traceback\n{all}");
}

/// Row 17 in a worker's start.
pub fn error_in_worker_start(i: Integration) {
    let nginx = Nginx::start_ready(failing(i, "on_worker_start"));
    nginx
        .wait_for("all calls to return", PATIENCE, |all| (all.notes("init_worker").len() == 4).then_some(()));
    nginx.must_serve();
    let mut ledger = nginx.end(Signal::TERM);
    caller_knows(ledger.all(), "init_worker");
    // A worker whose callback failed is a worker still.
    ledger.cold_start(4);
    ledger.fast_end(1, 4, false);
    ledger.nothing_else();
}

/// Row 17 in the master.
pub fn error_in_generation_start(i: Integration) {
    let nginx = Nginx::start_ready(failing(i, "on_generation_start"));
    let mut ledger = nginx.end(Signal::QUIT);
    caller_knows(ledger.all(), "init");
    ledger.cold_start(4);
    ledger.graceful_end(1, 4, false);
    ledger.nothing_else();
}

/// Row 17 where nobody called: the error is logged with its traceback, and the next event comes.
pub fn error_in_worker_died(i: Integration) {
    let nginx = Nginx::start_ready(failing(i, "on_worker_died").allow_kills());
    for nth in 0..2 {
        let victim = nginx.workers()[0];
        process::send(victim, Signal::KILL);
        nginx.wait_for("its death and a respawn", PATIENCE, |all| {
            all.of(Kind::WorkerDied).iter().find(|r| r.pid() == victim)?;
            all.at_least(5 + nth, Kind::WorkerStarted, 1)
        });
    }
    nginx.wait_for_log("the error", |line| line.contains("the callback failed"));
    nginx.wait_for_log("its traceback", |line| line.contains("stack traceback"));
    let mut ledger = nginx.end(Signal::QUIT);
    let deaths = ledger.series(Kind::WorkerDied, 1, [3, 3]);
    ledger.distinct_pids(&deaths, 2);
    ledger.take(Kind::WorkerStarted, 1);
    ledger.take(Kind::GenerationStarted, 1);
    ledger.graceful_end(1, 4, false);
    ledger.nothing_else();
}

const ENDED: &str = "was ended by ngx.exit() or the like";

/// Kills a worker; waits for the callback about it, and till as many as that have started.
fn kill_and_wait(nginx: &Nginx, starts: usize) {
    let victim = nginx.workers()[0];
    process::send(victim, Signal::KILL);
    nginx.wait_for("its death and a respawn", PATIENCE, |all| {
        all.of(Kind::WorkerDied).iter().find(|r| r.pid() == victim)?;
        all.at_least(starts, Kind::WorkerStarted, 1)
    });
}

/// Row 17, where no error can be caught: `ngx.exit()` never returns to the callback's caller. The lock is given
/// back all the same, and the same worker's next callback comes.
pub fn exit_in_worker_died(i: Integration) {
    for (heartbeat, body) in [
        ("1", "ngx.exit(ngx.OK)"),
        ("60", "ngx.thread.spawn(function() ngx.exit(ngx.ERROR) end) ngx.sleep(600)"),
    ] {
        let setup = Setup::new(i)
            .workers(2)
            .allow_kills()
            .option("heartbeat_interval", heartbeat)
            .in_callback("on_worker_died", &format!("if kit.once('exit') then {body} end"));
        let nginx = Nginx::start_ready(setup);
        let begin = boot_clock();
        // With two workers, the one that survives tells of the death, and its successor waits for the lock.
        kill_and_wait(&nginx, 3);
        let took = Duration::from_nanos(boot_clock() - begin);
        assert!(took < Duration::from_secs(3), "the lock was given back after {took:?}");
        let line = nginx.wait_for_log("who ended the callback", |line| line.contains(ENDED));
        assert!(line.contains("[error]") && line.contains("on_worker_died"), "{line}");
        let teller = nginx.reports().of(Kind::WorkerDied)[0].runner;
        let events = nginx.json("/events").to_string();
        assert!(events.contains("callback_failed"), "{events}");
        // The watch of that worker, which ended with the callback, is there again.
        let other = nginx.workers().into_iter().find(|&pid| pid != teller).expect("two workers");
        let killed = boot_clock();
        process::send(other, Signal::KILL);
        nginx.wait_for("the next death", PATIENCE, |all| {
            all.of(Kind::WorkerDied).iter().find(|r| r.pid() == other && r.runner == teller)?;
            all.at_least(4, Kind::WorkerStarted, 1)
        });
        let took = Duration::from_nanos(boot_clock() - killed);
        assert!(took < Duration::from_secs(1), "the next death was reported after {took:?}");
        let mut ledger = nginx.end(Signal::QUIT);
        ledger.take(Kind::WorkerDied, 1);
        ledger.take(Kind::WorkerStarted, 1);
        ledger.take(Kind::GenerationStarted, 1);
        ledger.graceful_end(1, 2, false);
        ledger.nothing_else();
    }
}

/// Row 17 while a worker drains: it does not keep the lock until the last of its requests ends.
pub fn exit_in_worker_draining(i: Integration) {
    let setup = super::quick(i)
        .workers(2)
        .in_callback("on_worker_draining", "if kit.once('exit') then ngx.exit(ngx.OK) end");
    let nginx = Nginx::start_ready(setup);
    let client = nginx.slow_client();
    let other = nginx.slow_client();
    process::send(nginx.master(), Signal::HUP);
    nginx.ready(2);
    nginx.wait_for("both to drain", PATIENCE, |all| all.at_least(2, Kind::WorkerDraining, 1));
    nginx.wait_for_log("who ended the callback", |line| line.contains(ENDED));
    assert!(process::is_alive(client.worker) && process::is_alive(other.worker), "they have work to do");
    // Longer than `stall_after`: it beats again.
    let begin = boot_clock();
    nginx.wait_until("some time", || (boot_clock() > begin + 2_000_000_000).then_some(()));
    let held = [client.worker, other.worker];
    client.finish();
    other.finish();
    for pid in held {
        nginx.wait_gone(pid);
    }
    let ledger = nginx.end(Signal::QUIT);
    let stalled = ledger.all().of(Kind::WorkerStalled).len();
    ledger.holds("nobody stalled", stalled == 0);
    ledger.holds("both left", ledger.all().of_generation(Kind::WorkerExited, 1).len() == 2);
    ledger.holds("and the generation", ledger.all().of_generation(Kind::GenerationEnded, 1).len() == 1);
}

/// Row 17's counterpart: a callback that waits is not taken for one that was ended, whatever is collected.
pub fn waiting_callback(i: Integration) {
    let setup = Setup::new(i).allow_kills().in_callback(
        "on_worker_died",
        "kit.note('slow', {})
         local churn = ngx.thread.spawn(function()
           for _ = 1, 50 do ngx.sleep(0.1) collectgarbage() end
         end)
         coroutine.wrap(function() ngx.sleep(5) end)()
         assert(ngx.thread.wait(churn))
         kit.note('slow_end', {})",
    );
    let nginx = Nginx::start_ready(setup);
    kill_and_wait(&nginx, 5);
    let mut ledger = nginx.end(Signal::TERM);
    nobody_ran_meanwhile(ledger.all());
    let at = |what: &str| ledger.all().notes(what)[0].at;
    assert!(at("slow_end") - at("slow") >= 5_000_000_000, "it waited to its end");
    assert!(!nginx.log().contains(ENDED), "a callback that waits was given up");
    ledger.one(Kind::WorkerDied, 1);
    ledger.take(Kind::WorkerStarted, 1);
    ledger.take(Kind::GenerationStarted, 1);
    ledger.fast_end(1, 4, false);
    ledger.nothing_else();
}

/// Row 17 in the exits, graceful and fast.
pub fn error_in_exits(i: Integration) {
    for (callback, signal) in [
        ("on_worker_exit", Signal::QUIT),
        ("on_worker_exit", Signal::TERM),
        ("on_worker_draining", Signal::QUIT),
        ("on_generation_exit", Signal::TERM),
    ] {
        let nginx = Nginx::start_ready(failing(i, callback));
        let mut ledger = nginx.end(signal);
        ledger.cold_start(4);
        if signal == Signal::QUIT {
            ledger.graceful_end(1, 4, false);
        } else {
            ledger.fast_end(1, 4, false);
        }
        ledger.nothing_else();
        assert!(nginx.log().contains("the callback failed"), "{callback}: the error is lost");
    }
}

const SLOW_ONCE: &str = r#"
    if kit.once("slow") then
      kit.note("slow", {})
      kit.block(3)
      kit.note("slow_end", {})
    end
"#;

fn slow_start(i: Integration, lock_timeout: &str) -> Setup {
    Setup::new(i).in_callback("on_worker_start", SLOW_ONCE).option("lock_timeout", lock_timeout)
}

/// Between the marks that the slow callback set, nobody else's callback ran.
fn nobody_ran_meanwhile(all: &Reports) {
    let at = |what: &str| all.notes(what).first().map_or(0, |note| note.at);
    let (begin, end) = (at("slow"), at("slow_end"));
    assert!(begin > 0 && end > begin, "the slow callback ran to its end\n{all}");
    let meanwhile: Vec<String> = all
        .0
        .iter()
        .filter(|r| r.kind().is_some() && r.at > begin && r.at < end)
        .map(ToString::to_string)
        .collect();
    assert!(meanwhile.is_empty(), "ran while another callback held the lock: {meanwhile:?}\n{all}");
}

/// Row 18: all wait, burn nothing, and have their turn.
pub fn slow_callback(i: Integration) {
    let nginx = Nginx::prepare(slow_start(i, "20"));
    nginx.launch();
    let holder = nginx
        .wait_for("the slow callback", PATIENCE, |all| all.notes("slow").first().map(|note| note.runner));
    // They have been forked and have reached the lock when their CPU time stands still.
    let children = nginx.wait_until("all workers", || {
        let children = nginx.titled(nginx.master(), |_| true);
        (children.len() == 4).then_some(children)
    });
    let begin = boot_clock();
    let settled = Duration::from_millis(700).as_nanos() as u64;
    nginx.wait_until("the waiters to settle", || (boot_clock() > begin + settled).then_some(()));
    let cpu = || -> BTreeMap<i32, Duration> {
        children
            .iter()
            .filter(|&&pid| pid != holder)
            .filter_map(|&pid| Some((pid, process::stat(pid)?.cpu)))
            .collect()
    };
    let before = cpu();
    nginx.wait_for("the end of the slow callback", PATIENCE, |all| all.notes("slow_end").first().map(drop));
    for (pid, after) in cpu() {
        let burnt = after.saturating_sub(before[&pid]);
        // Waiting 2 s in a spin would be 2 s; what follows the wait is milliseconds.
        assert!(burnt < Duration::from_millis(100), "{pid} burnt {burnt:?} while it waited");
    }
    nginx.ready(1);
    let line = nginx.wait_for_log("who holds the lock, and in what", |line| {
        line.contains(&holder.to_string()) && (line.contains("worker_start")) && line.contains("lock")
    });
    assert!(!line.contains("[alert]"), "{line}");
    let mut ledger = nginx.end(Signal::TERM);
    nobody_ran_meanwhile(ledger.all());
    ledger.cold_start(4);
    ledger.fast_end(1, 4, false);
    ledger.nothing_else();
}

/// Row 18: past `lock_timeout` the call returns an error, and the callback does not run unlocked.
pub fn slow_callback_past_the_timeout(i: Integration) {
    let nginx = Nginx::prepare(slow_start(i, "1").workers(3));
    nginx.launch();
    let since =
        nginx.wait_for("the slow callback", PATIENCE, |all| all.notes("slow").first().map(|note| note.at));
    nginx
        .wait_for("all calls to return", PATIENCE, |all| (all.notes("init_worker").len() == 3).then_some(()));
    nginx.settled();
    nginx.must_serve();
    let all = nginx.reports();
    nobody_ran_meanwhile(&all);
    let failed: Vec<_> = all.notes("init_worker").into_iter().filter(|note| !note.flag("ok")).collect();
    assert_eq!(failed.len(), 2, "both waiters give up\n{all}");
    for note in failed {
        assert!(note.text("err").contains("lock"), "the error says what it waited for: {note}");
        let waited = Duration::from_nanos(note.at.saturating_sub(since));
        assert!(
            (Duration::from_millis(700)..Duration::from_millis(2900)).contains(&waited),
            "gave up after {waited:?}"
        );
    }
    let ledger = nginx.end(Signal::TERM);
    ledger.holds("the one that held the lock is a worker", !ledger.all().of(Kind::WorkerStarted).is_empty());
}

/// Row 18: heartbeats go on while a callback runs; nobody who waits is taken for hung.
pub fn heartbeats_during_a_slow_callback(i: Integration) {
    let setup = super::quick(i)
        .allow_kills()
        .in_callback("on_worker_died", "kit.note('slow', {}) kit.block(2) kit.note('slow_end', {})");
    let nginx = Nginx::start_ready(setup);
    let victim = nginx.workers()[0];
    process::send(victim, Signal::KILL);
    let teller = nginx.wait_for("the slow callback's end", PATIENCE, |all| {
        all.notes("slow_end").first().map(|note| note.runner)
    });
    nginx.wait_for("the respawned worker", PATIENCE, |all| all.at_least(5, Kind::WorkerStarted, 1));
    let mut ledger = nginx.end(Signal::TERM);
    nobody_ran_meanwhile(ledger.all());
    // The one that blocked may be called stalled: it was. Nobody else may.
    let hung = ledger.take_if(|r| {
        matches!(r.kind(), Some(Kind::WorkerStalled | Kind::WorkerRecovered)) && r.pid() == teller
    });
    ledger.holds("stalled once, recovered once", hung.len() <= 2);
    ledger.one(Kind::WorkerDied, 1);
    ledger.take(Kind::WorkerStarted, 1);
    ledger.take(Kind::GenerationStarted, 1);
    ledger.take(Kind::WorkerExited, 1);
    ledger.one(Kind::GenerationEnded, 1);
    ledger.nothing_else();
}
