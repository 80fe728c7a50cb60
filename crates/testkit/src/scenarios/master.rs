//! Rows 14 and 15: the master is killed, or everybody is.

use crate::wait::PATIENCE;
use crate::{Integration, Kind, Nginx, Setup, Signal, process};

/// Row 14.
pub fn killed_master(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i));
    let (master, workers) = (nginx.master(), nginx.workers());
    process::send(master, Signal::KILL);
    nginx.wait_for("the loss of the master", PATIENCE, |all| all.at_least(1, Kind::MasterLost, 1));
    nginx.must_serve();
    let status = nginx.get("/status").body;
    assert!(status.contains("orphaned"), "workers without a master are orphaned: {status}");

    // Counts go on, without anybody who would respawn.
    process::send(workers[0], Signal::KILL);
    nginx.wait_for("a death", PATIENCE, |all| all.at_least(1, Kind::WorkerDied, 1));
    for &pid in &workers[1..] {
        process::send(pid, Signal::QUIT);
    }
    nginx.gone();
    let mut ledger = nginx.ledger();
    ledger.cold_start(4);
    let lost = ledger.one(Kind::MasterLost, 1);
    ledger.same("who was lost", &lost.pid(), &master);
    ledger.same("counts", &lost.counts(), &(None, Some(4), None));
    ledger.holds("told by an orphan", workers.contains(&lost.runner));
    ledger.one_with(Kind::WorkerDied, 1, (None, Some(3), None));
    let end = ledger.graceful_end(1, 3, false);
    ledger.same("counts at the end", &end.counts(), &(None, Some(0), None));
    ledger.nothing_else();
}

/// Row 14 after a reload: two generations lose the one master, and it is told once.
pub fn killed_master_of_two_generations(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).workers(2));
    let client = nginx.slow_client();
    nginx.reload_and_settle(2);
    let left = nginx.wait_for("the other one to leave", PATIENCE, |all| {
        all.of_generation(Kind::WorkerExited, 1).first().map(|r| r.pid())
    });
    // It has said so, and takes a moment to be gone.
    nginx.wait_gone(left);
    let workers = nginx.workers();
    process::send(nginx.master(), Signal::KILL);
    nginx.wait_for("the loss of the master", PATIENCE, |all| {
        (!all.of(Kind::MasterLost).is_empty()).then_some(())
    });
    client.finish();
    nginx.wait_ended(1);
    for pid in workers {
        process::send(pid, Signal::QUIT);
    }
    nginx.gone();
    let mut ledger = nginx.ledger();
    ledger.cold_start(2);
    ledger.reloaded(2, 2, 2);
    let lost = ledger.take_if(|r| r.kind() == Some(Kind::MasterLost));
    ledger.distinct_pids(&lost, 1);
    ledger.graceful_end(1, 2, true);
    ledger.graceful_end(2, 2, false);
    ledger.nothing_else();
}

/// Row 15: nobody was left to tell anything; the next start tells it.
pub fn killed_node(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i));
    kill_node(&nginx);
    nginx.run();
    nginx.ready(2);
    nginx.must_serve();
    let mut ledger = nginx.end(Signal::TERM);
    ledger.cold_start(4);
    let start = ledger.one_with(Kind::GenerationStarted, 2, (None, Some(0), None));
    ledger.same("cause", start.cause(), "start");
    ledger.same("the run before", start.text("previous_run"), "unclean");
    ledger.same("what was running", &start.int("previous_workers"), &Some(4));
    ledger.same("total", &start.int("total"), &Some(0));
    ledger.starts(2, 4, "start");
    ledger.fast_end(2, 4, false);
    ledger.distinct_per_pid(Kind::WorkerDied, 1);
}

/// Row 15, killed in the middle of a reload with an old worker still draining.
pub fn killed_node_of_two_generations(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).workers(2));
    let client = nginx.slow_client();
    nginx.reload_and_settle(2);
    let left = nginx.wait_for("the other one to leave", PATIENCE, |all| {
        all.of_generation(Kind::WorkerExited, 1).first().map(|r| r.pid())
    });
    // It has said so, and takes a moment to be gone.
    nginx.wait_gone(left);
    kill_node(&nginx);
    drop(client);
    nginx.run();
    nginx.ready(3);
    let mut ledger = nginx.end(Signal::QUIT);
    let start = ledger.one_with(Kind::GenerationStarted, 3, (None, Some(0), None));
    ledger.same("the run before", start.text("previous_run"), "unclean");
    ledger.same("what was running", &start.int("previous_workers"), &Some(3));
    ledger.starts(3, 2, "start");
    ledger.graceful_end(3, 2, false);
}

/// The other side of row 15: a run that ended properly says so to the next.
pub fn stopped_node(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).workers(2));
    for (generation, signal) in [(1, Signal::TERM), (2, Signal::QUIT), (3, Signal::INT)] {
        nginx.end(signal);
        nginx.run();
        nginx.ready(generation + 1);
        let all = nginx.reports();
        let start = all.of_generation(Kind::GenerationStarted, generation + 1);
        assert_eq!(start.len(), 1, "{all}");
        assert_eq!(start[0].cause(), "start", "{all}");
        assert_eq!(start[0].text("previous_run"), "clean", "after {signal:?}\n{all}");
    }
    nginx.end(Signal::QUIT);
}

fn kill_node(nginx: &Nginx) {
    let family = nginx.family();
    assert!(family.len() > 2, "master and workers: {family:?}");
    // All stand before the first dies, so that nobody sees another's death.
    for &pid in &family {
        nginx.freeze(pid);
    }
    for &pid in &family {
        process::send(pid, Signal::KILL);
    }
    nginx.gone();
}
