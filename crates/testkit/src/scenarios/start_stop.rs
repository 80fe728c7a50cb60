//! Rows 1, 3, 4, 10, 24 and 26: a node comes and goes.

use crate::{Integration, Kind, Nginx, Setup, Signal, artifacts, process};

/// Row 1, the master being a daemon, which forks after it has read the configuration.
pub fn cold_start(i: Integration) {
    started(Setup::new(i));
}

/// Row 1 with `daemon off`.
pub fn cold_start_in_the_foreground(i: Integration) {
    started(Setup::new(i).foreground());
}

fn started(setup: Setup) {
    let nginx = Nginx::start_ready(setup);
    let mut workers = nginx.workers();
    let mut ledger = nginx.ledger();
    let start = ledger.one_with(Kind::GenerationStarted, 1, (None, Some(0), None));
    ledger.same("cause", start.cause(), "start");
    ledger.holds("no run before this one", matches!(start.text("previous_run"), "" | "none"));
    ledger.holds("run by the master, not by a worker", !workers.contains(&start.runner));
    let starts = ledger.starts(1, 4, "start");
    let mut pids: Vec<i32> = starts.iter().map(|r| r.pid()).collect();
    pids.sort_unstable();
    workers.sort_unstable();
    ledger.same("processes by the kernel", &pids, &workers);
    ledger.nothing_else();
    nginx.must_serve();
    nginx.end(Signal::TERM);
}

/// Row 3.
pub fn graceful_stop(i: Integration) {
    for setup in [Setup::new(i), Setup::new(i).foreground()] {
        let nginx = Nginx::start_ready(setup);
        let mut ledger = nginx.end(Signal::QUIT);
        ledger.cold_start(4);
        let end = ledger.graceful_end(1, 4, false);
        ledger.same("counts at the end", &end.counts(), &(None, Some(0), None));
        ledger.nothing_else();
    }
}

/// Row 4 with TERM.
pub fn fast_stop_by_term(i: Integration) {
    fast_stop(Setup::new(i), Signal::TERM);
    fast_stop(Setup::new(i).foreground(), Signal::TERM);
}

/// Row 4 with INT.
pub fn fast_stop_by_int(i: Integration) {
    fast_stop(Setup::new(i), Signal::INT);
}

/// Row 4 where the configuration calls `exit_worker()` itself: still each exit once.
pub fn fast_stop_with_exit_worker(i: Integration) {
    fast_stop(Setup::new(i).with_exit_worker(), Signal::TERM);
}

/// Row 3 where the configuration calls `exit_worker()` itself.
pub fn graceful_stop_with_exit_worker(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).with_exit_worker());
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(4);
    ledger.graceful_end(1, 4, false);
    ledger.nothing_else();
}

fn fast_stop(setup: Setup, signal: Signal) {
    let nginx = Nginx::start_ready(setup);
    let mut ledger = nginx.end(signal);
    ledger.cold_start(4);
    let end = ledger.fast_end(1, 4, false);
    ledger.same("counts at the end", &end.counts(), &(None, Some(0), None));
    ledger.nothing_else();
}

/// Row 4 while a request runs: nobody waits for it, and the exit is told all the same.
pub fn fast_stop_under_a_request(i: Integration) {
    // nginx's own complaint about the connection that it drops.
    let nginx = Nginx::start_ready(Setup::new(i).workers(2).allow("open socket"));
    let _client = nginx.slow_client();
    let mut ledger = nginx.end(Signal::TERM);
    ledger.cold_start(2);
    ledger.fast_end(1, 2, false);
    ledger.nothing_else();
}

/// Row 10: a check of the configuration leaves no trace, with and without a server.
pub fn configuration_test(i: Integration) {
    let nginx = Nginx::prepare(Setup::new(i));
    let output = nginx.ask(&["-t"]);
    assert!(output.status.success(), "nginx -t: {output:?}");
    let made: Vec<_> = std::fs::read_dir(nginx.at("run")).expect("our folder").flatten().collect();
    assert!(made.is_empty(), "nginx -t made {made:?}");
    assert!(nginx.reports().0.is_empty(), "nginx -t reported\n{}", nginx.reports());

    nginx.run();
    nginx.ready(1);
    let before = nginx.json("/events");
    let output = nginx.ask(&["-t"]);
    assert!(output.status.success(), "nginx -t: {output:?}");
    assert_eq!(before, nginx.json("/events"), "nginx -t left a trace in the journal");

    let mut ledger = nginx.end(Signal::TERM);
    ledger.cold_start(4);
    ledger.fast_end(1, 4, false);
    ledger.nothing_else();
}

/// Row 10: `-s reload` and `-s quit` only send a signal; the process that sends it is nobody.
pub fn signal_commands(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).workers(2));
    assert!(nginx.ask(&["-s", "reload"]).status.success());
    nginx.ready(2);
    nginx.wait_ended(1);
    assert!(nginx.ask(&["-s", "quit"]).status.success());
    nginx.gone();
    let mut ledger = nginx.ledger();
    ledger.cold_start(2);
    ledger.reloaded(2, 2, 2);
    ledger.graceful_end(1, 2, true);
    ledger.graceful_end(2, 2, false);
    ledger.nothing_else();

    nginx.run();
    nginx.ready(3);
    assert!(nginx.ask(&["-s", "stop"]).status.success());
    nginx.gone();
    let mut ledger = nginx.ledger();
    ledger.fast_end(3, 2, false);
}

/// Row 24: four workers, two, eight.
pub fn worker_count_changes(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i));
    nginx.change(|setup| setup.workers(2));
    nginx.reload_and_settle(2);
    nginx.change(|setup| setup.workers(8));
    nginx.reload_and_settle(3);
    for old in [1, 2] {
        nginx.wait_ended(old);
    }
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(4);
    // The old ones may still be leaving when the next reload comes; the model knows how many.
    for (generation, workers) in [(2, 2), (3, 8)] {
        let start = ledger.one(Kind::GenerationStarted, generation);
        ledger.same("cause", start.cause(), "reload");
        ledger.starts(generation, workers, "reload");
    }
    ledger.graceful_end(1, 4, true);
    ledger.graceful_end(2, 2, true);
    ledger.graceful_end(3, 8, false);
    ledger.nothing_else();
}

/// Row 26: start, start, exit, exit, all in one process.
pub fn one_process_is_all(i: Integration) {
    for signal in [Signal::QUIT, Signal::TERM] {
        let nginx = Nginx::start_ready(Setup::new(i).single_process());
        let master = nginx.master();
        nginx.must_serve();
        let mut ledger = nginx.end(signal);
        let order: Vec<_> = ledger.all().0.iter().filter_map(|r| r.kind()).collect();
        let mut expected =
            vec![Kind::GenerationStarted, Kind::WorkerStarted, Kind::WorkerExited, Kind::GenerationEnded];
        // OpenResty's nginx drains in its one process, which nginx's own does not.
        if artifacts::openresty().is_some() && signal == Signal::QUIT {
            expected.insert(2, Kind::WorkerDraining);
            ledger.take(Kind::WorkerDraining, 1);
        }
        ledger.same("order", order.as_slice(), expected.as_slice());
        ledger.one_with(Kind::GenerationStarted, 1, (None, Some(0), None));
        let start = ledger.one_with(Kind::WorkerStarted, 1, (None, Some(1), None));
        ledger.same("the worker", &start.pid(), &master);
        ledger.one_with(Kind::WorkerExited, 1, (None, Some(1), None));
        ledger.one_with(Kind::GenerationEnded, 1, (None, Some(0), None));
        ledger.nothing_else();
    }
}

/// Row 25: processes that do not serve are helpers, never workers.
pub fn cache_processes_are_helpers(i: Integration) {
    let setup = Setup::new(i)
        .workers(2)
        .allow_kills()
        .http("proxy_cache_path @FOLDER@/temp/cache keys_zone=cache:1m loader_sleep=1s;");
    let nginx = Nginx::start_ready(setup);
    let is_manager = |title: &str| title.contains("cache manager");
    let manager =
        nginx.wait_until("the cache manager", || nginx.titled(nginx.master(), is_manager).first().copied());
    let shown = |pid: i32| {
        nginx.wait_until(&format!("helper {pid} in the status"), || {
            let status = nginx.json("/status");
            super::identity::processes(&status)
                .into_iter()
                .any(|p| p["pid"] == pid && p["role"] == "helper")
                .then_some(())
        });
    };
    shown(manager);
    // Its death is no worker's death, and its successor is a helper again.
    process::send(manager, Signal::KILL);
    let next = nginx.wait_until("another cache manager", || {
        nginx.titled(nginx.master(), is_manager).into_iter().find(|&pid| pid != manager)
    });
    shown(next);
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(2);
    ledger.graceful_end(1, 2, false);
    ledger.nothing_else();
}
