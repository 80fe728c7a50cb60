//! Row 16: a process dies inside a callback, holding the node lock. A seed whose lock outlives its
//! holder spins here for ever.

use std::time::Duration;

use crate::wait::PATIENCE;
use crate::{Integration, Kind, Ledger, Nginx, Report, Setup, Signal, process};

/// A passed-on lock, not one that timed out: the default timeout is 30 seconds.
const AT_ONCE: u64 = 1_000_000_000;

const DIE_ONCE: &str = "if kit.once('death') then kit.die() end";

fn journal(nginx: &Nginx) -> Vec<serde_json::Value> {
    let answer = nginx.json("/events");
    super::identity::objects(&answer).into_iter().filter(|e| e["kind"].is_string()).collect()
}

fn says_who_died(nginx: &Nginx, pid: i32) {
    let events = journal(nginx);
    assert!(
        events.iter().any(|e| e["kind"] == "callback_died" && e["pid"] == pid),
        "the journal does not say that {pid} died in a callback: {events:#?}"
    );
}

fn at_most_one_end_each(ledger: &mut Ledger) {
    let ends = ledger
        .take_if(|r| matches!(r.kind(), Some(Kind::WorkerExited | Kind::WorkerDied)) && !r.flag("retry"));
    ledger.distinct_pids(&ends, ends.len() as i64);
}

/// A worker's own start, by SIGKILL.
pub fn in_worker_start(i: Integration) {
    starting(i, Setup::new(i).allow_kills().in_callback("on_worker_start", DIE_ONCE), "signal");
}

/// A worker's own start, by `os.exit`, which runs destructors on its way.
pub fn in_worker_start_by_exit(i: Integration) {
    let lua = "if kit.once('death') then os.exit(0) end";
    starting(i, Setup::new(i).in_callback("on_worker_start", lua), "exit");
}

fn starting(_: Integration, setup: Setup, cause: &str) {
    let nginx = Nginx::start(setup);
    nginx.wait_for("four workers and the one that died", PATIENCE, |all| {
        all.at_least(5, Kind::WorkerStarted, 1)
    });
    let death =
        nginx.wait_for("its death", PATIENCE, |all| all.of(Kind::WorkerDied).first().map(|r| (*r).clone()));
    says_who_died(&nginx, death.pid());
    let mut ledger = nginx.end(Signal::TERM);
    let starts = ledger.take(Kind::WorkerStarted, 1);
    ledger.distinct_pids(&starts, 5);
    let at = starts.iter().position(|r| r.pid() == death.pid()).expect("it reported its start");
    if let Some(next) = starts.get(at + 1) {
        ledger.holds("the lock passes on at once", next.at - starts[at].at < AT_ONCE);
    }
    ledger.holds("a dead worker starts no second time", starts.iter().all(|r| !r.flag("retry")));
    let told = ledger.one(Kind::WorkerDied, 1);
    ledger.same("cause", told.cause(), cause);
    ledger.take(Kind::GenerationStarted, 1);
    ledger.fast_end(1, 4, false);
    ledger.nothing_else();
}

/// The old generation's end: exactly one worker of it is left to run it, and dies; one of the new
/// generation runs it again.
pub fn in_generation_exit(i: Integration) {
    let setup = Setup::new(i).workers(2).allow_kills().in_callback("on_generation_exit", DIE_ONCE);
    let nginx = Nginx::start_ready(setup);
    nginx.reload_and_settle(2);
    nginx.wait_for("the callback to run again", PATIENCE, |all| all.at_least(2, Kind::GenerationEnded, 1));
    let heirs = nginx.workers();
    says_who_died(&nginx, nginx.reports().of(Kind::GenerationEnded)[0].runner);
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(2);
    ledger.reloaded(2, 2, 2);
    let ends = ledger.take(Kind::GenerationEnded, 1);
    ledger.same("runs", &ends.len(), &2);
    ledger.holds("the first is none", !ends[0].flag("retry"));
    ledger.holds("the second is a retry", ends[1].flag("retry"));
    ledger.same("counts of both", &ends[1].counts(), &(None, Some(0), Some(2)));
    ledger.holds("by a worker that lives", heirs.contains(&ends[1].runner));
    ledger.holds("at once", ends[1].at - ends[0].at < AT_ONCE);
    // It had left, and was told so, before it died in somebody else's business.
    ledger.take(Kind::WorkerDraining, 1);
    let exits = ledger.series(Kind::WorkerExited, 1, [2, 1]);
    ledger.distinct_pids(&exits, 2);
    ledger.graceful_end(2, 2, false);
    ledger.nothing_else();
}

/// At a stop nobody but the master is left to run the end again.
pub fn in_the_nodes_end(i: Integration) {
    let setup = Setup::new(i).workers(2).allow_kills().in_callback("on_generation_exit", DIE_ONCE);
    let nginx = Nginx::start_ready(setup);
    let mut ledger = nginx.end(Signal::TERM);
    ledger.cold_start(2);
    let ends = ledger.take(Kind::GenerationEnded, 1);
    ledger.same("runs", &ends.len(), &2);
    ledger.holds("the second is a retry", ends[1].flag("retry"));
    ledger.exits(1, 2, false);
    ledger.nothing_else();
}

/// A worker's own exit. Whether it counts as exited or as died, it is one of them and not both.
pub fn in_worker_exit(i: Integration) {
    for signal in [Signal::QUIT, Signal::TERM] {
        let setup = Setup::new(i).allow_kills().in_callback("on_worker_exit", DIE_ONCE);
        let nginx = Nginx::start_ready(setup);
        let mut ledger = nginx.end(signal);
        ledger.cold_start(4);
        at_most_one_end_each(&mut ledger);
        ledger.one_with(Kind::GenerationEnded, 1, (None, Some(0), None));
        ledger.take(Kind::WorkerDraining, 1);
    }
}

/// The only worker's exit at a stop: the generation's end is told all the same, by the master.
pub fn in_the_last_workers_exit(i: Integration) {
    let setup = Setup::new(i).workers(1).allow_kills().in_callback("on_worker_exit", "kit.die()");
    let nginx = Nginx::start_ready(setup);
    let mut ledger = nginx.end(Signal::TERM);
    ledger.cold_start(1);
    at_most_one_end_each(&mut ledger);
    ledger.one_with(Kind::GenerationEnded, 1, (None, Some(0), None));
    ledger.nothing_else();
}

/// Whoever tells another's death dies of it: both deaths are told.
pub fn in_worker_died(i: Integration) {
    let setup = Setup::new(i).allow_kills().in_callback("on_worker_died", DIE_ONCE);
    let nginx = Nginx::start_ready(setup);
    let victim = nginx.workers()[0];
    process::send(victim, Signal::KILL);
    nginx.wait_for("two respawned workers", PATIENCE, |all| all.at_least(6, Kind::WorkerStarted, 1));
    let teller = nginx.reports().of(Kind::WorkerDied)[0].runner;
    nginx.wait_for("the teller's death", PATIENCE, |all| {
        all.of(Kind::WorkerDied).iter().any(|r| r.pid() == teller).then_some(())
    });
    says_who_died(&nginx, teller);
    let mut ledger = nginx.end(Signal::TERM);
    let deaths: Vec<Report> =
        ledger.take(Kind::WorkerDied, 1).into_iter().filter(|r| !r.flag("retry")).collect();
    ledger.distinct_pids(&deaths, 2);
    ledger.distinct_per_pid(Kind::WorkerStarted, 1);
    ledger.take(Kind::GenerationStarted, 1);
    ledger.fast_end(1, 4, false);
    ledger.nothing_else();
}

/// The master, while it reloads. Workers are orphans then; they must neither hang nor spin, and leave
/// when they are told.
pub fn in_generation_start(i: Integration) {
    let setup = Setup::new(i)
        .workers(2)
        .in_callback("on_generation_start", "if e.generation == 2 and kit.once('death') then kit.die() end");
    let nginx = Nginx::start_ready(setup);
    let (master, workers) = (nginx.master(), nginx.workers());
    nginx.reload();
    nginx.wait_for("the loss of the master", PATIENCE, |all| {
        (!all.of(Kind::MasterLost).is_empty()).then_some(())
    });
    says_who_died(&nginx, master);
    nginx.must_serve();
    let before: Duration = workers.iter().filter_map(|&pid| process::stat(pid)).map(|s| s.cpu).sum();
    assert!(before < Duration::from_secs(1), "somebody spins: {before:?}");
    for &pid in &workers {
        process::send(pid, Signal::QUIT);
    }
    nginx.gone();
    let mut ledger = nginx.ledger();
    ledger.cold_start(2);
    // A generation whose master died before it had a worker is abandoned, if anybody tells.
    ledger.take(Kind::GenerationStarted, 2);
    ledger.take(Kind::GenerationAbandoned, 2);
    let lost = ledger.take_if(|r| r.kind() == Some(Kind::MasterLost));
    ledger.distinct_pids(&lost, 1);
    ledger.graceful_end(1, 2, false);
    ledger.nothing_else();
}
