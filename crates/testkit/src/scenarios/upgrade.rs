//! Rows 11 to 13: another binary takes over, or does not.

use crate::wait::PATIENCE;
use crate::{Integration, Kind, Ledger, Nginx, Setup, Signal, process};

fn upgraded(ledger: &mut Ledger, master: i32) {
    let start = ledger.one_with(Kind::GenerationStarted, 2, (Some(4), Some(0), None));
    ledger.same("cause", start.cause(), "upgrade");
    ledger.same("run by the new master", &start.runner, &master);
    ledger.starts(2, 4, "upgrade");
}

/// Row 11: the old master QUITs, gracefully.
pub fn taken_over(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i));
    let (old, new) = nginx.upgrade();
    nginx.ready(2);
    process::send(old, Signal::QUIT);
    nginx.wait_ended(1);
    nginx.wait_gone(old);
    nginx.must_serve();
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(4);
    upgraded(&mut ledger, new);
    ledger.graceful_end(1, 4, true);
    ledger.graceful_end(2, 4, false);
    ledger.nothing_else();
}

/// Row 11: the old master is told TERM.
pub fn taken_over_fast(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i));
    let (old, new) = nginx.upgrade();
    nginx.ready(2);
    process::send(old, Signal::TERM);
    nginx.wait_ended(1);
    nginx.wait_gone(old);
    // What comes after an upgrade is an ordinary reload.
    nginx.reload_and_settle(3);
    nginx.wait_ended(2);
    let mut ledger = nginx.end(Signal::TERM);
    ledger.cold_start(4);
    upgraded(&mut ledger, new);
    ledger.fast_end(1, 4, true);
    ledger.reloaded(3, 4, 4);
    ledger.graceful_end(2, 4, true);
    ledger.fast_end(3, 4, false);
    ledger.nothing_else();
}

/// Row 12: the new master QUITs while the old one serves.
pub fn rolled_back(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i));
    let (old, new) = nginx.upgrade();
    nginx.ready(2);
    process::send(new, Signal::QUIT);
    nginx.wait_ended(2);
    nginx.wait_gone(new);
    nginx.wait_until("the old pid file", || (nginx.master_if_any() == Some(old)).then_some(()));
    nginx.must_serve();
    // The node goes on: the next reload comes from the old generation.
    nginx.reload_and_settle(3);
    nginx.wait_ended(1);
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(4);
    upgraded(&mut ledger, new);
    for exit in ledger.all().of_generation(Kind::WorkerExited, 2) {
        ledger.same("prev of the upgrade's exits", &exit.int("prev"), &Some(4));
    }
    let end = ledger.graceful_end(2, 4, false);
    ledger.same("counts at its end", &end.counts(), &(Some(4), Some(0), None));
    ledger.reloaded(3, 4, 4);
    ledger.graceful_end(1, 4, true);
    ledger.graceful_end(3, 4, false);
    ledger.nothing_else();
}

/// Row 12: the old workers had left by WINCH and come back by HUP; then the new master QUITs.
pub fn rolled_back_by_hup(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i));
    let (old, new) = nginx.upgrade();
    nginx.ready(2);
    process::send(old, Signal::WINCH);
    nginx.wait_ended(1);
    process::send(old, Signal::HUP);
    // nginx reads no configuration then: the same generation has workers again.
    nginx.wait_for("the old master's workers to come back", PATIENCE, |all| {
        all.at_least(8, Kind::WorkerStarted, 1)
    });
    process::send(new, Signal::QUIT);
    nginx.wait_ended(2);
    nginx.wait_gone(new);
    nginx.wait_until("the old pid file", || (nginx.master_if_any() == Some(old)).then_some(()));
    let mut ledger = nginx.end(Signal::QUIT);
    let starts = ledger.take(Kind::WorkerStarted, 1);
    let mine: Vec<_> = starts.iter().filter_map(|r| r.int("mine")).collect();
    ledger.same("workers of the first generation", &mine, &vec![1, 2, 3, 4, 1, 2, 3, 4]);
    ledger.same("cause of the first that comes back", starts[4].cause(), "resume");
    let announced = ledger.take(Kind::GenerationStarted, 1);
    ledger.same("cause", announced[0].cause(), "start");
    ledger.holds(
        "told again only as resumed",
        announced[1..].len() <= 1 && announced[1..].iter().all(|r| r.cause() == "resume"),
    );
    upgraded(&mut ledger, new);
    let end = ledger.graceful_end(2, 4, false);
    ledger.same("counts at the upgrade's end", &end.counts(), &(Some(4), Some(0), None));
    // It ended twice: for the upgrade, and at last for the node.
    let ends = ledger.take(Kind::GenerationEnded, 1);
    let next: Vec<_> = ends.iter().map(|r| r.int("next")).collect();
    ledger.same("next at both ends", &next, &vec![Some(4), None]);
    let exits = ledger.series(Kind::WorkerExited, 1, [4, 3, 2, 1, 4, 3, 2, 1]);
    ledger.distinct_pids(&exits, 8);
    ledger.take(Kind::WorkerDraining, 1);
    ledger.nothing_else();
}

/// Row 13: the old master stays without workers.
pub fn old_master_stays(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i));
    let (old, new) = nginx.upgrade();
    nginx.ready(2);
    process::send(old, Signal::WINCH);
    nginx.wait_ended(1);
    assert!(process::is_alive(old), "WINCH leaves the master");
    assert!(nginx.workers_of(old).is_empty());
    nginx.must_serve();
    // A master without workers goes: nobody is lost by that, and nothing ends.
    process::send(old, Signal::QUIT);
    nginx.wait_gone(old);
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(4);
    upgraded(&mut ledger, new);
    let end = ledger.graceful_end(1, 4, true);
    ledger.same("counts at the old one's end", &end.counts(), &(None, Some(0), Some(4)));
    ledger.graceful_end(2, 4, false);
    ledger.nothing_else();
}

/// Row 12, the hard way: the new master is killed, and its workers live on as orphans.
pub fn new_master_killed(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).workers(2).allow_kills());
    let (old, new) = nginx.upgrade();
    nginx.ready(2);
    let orphans = nginx.wait_until("both to be named as workers", || {
        Some(nginx.workers_of(new)).filter(|workers| workers.len() == 2)
    });
    process::send(new, Signal::KILL);
    nginx.wait_for("the loss of the new master", PATIENCE, |all| {
        (!all.of(Kind::MasterLost).is_empty()).then_some(())
    });
    for pid in orphans {
        process::send(pid, Signal::QUIT);
    }
    nginx.wait_ended(2);
    nginx.wait_until("the old pid file", || (nginx.master_if_any() == Some(old)).then_some(()));
    let mut ledger = nginx.end(Signal::TERM);
    ledger.cold_start(2);
    ledger.take(Kind::GenerationStarted, 2);
    ledger.starts(2, 2, "upgrade");
    let lost = ledger.one(Kind::MasterLost, 2);
    ledger.same("who was lost", &lost.pid(), &new);
    ledger.graceful_end(2, 2, false);
    ledger.fast_end(1, 2, false);
    ledger.nothing_else();
}
