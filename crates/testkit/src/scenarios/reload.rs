//! Rows 2, 22 and 23: one reload, many, very many.

use std::collections::BTreeMap;

use crate::wait::PATIENCE;
use crate::{Integration, Kind, Nginx, Setup, Signal, process};

/// Row 2.
pub fn reload(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i));
    nginx.reload();
    nginx.ready(2);
    nginx.wait_ended(1);
    let master = nginx.master();
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(4);
    let start = ledger.reloaded(2, 4, 4);
    ledger.same("the master runs it", &start.runner, &master);
    ledger.graceful_end(1, 4, true);
    // The old generation has ended: there is no prev any more, where the seed says 0 for ever.
    let end = ledger.graceful_end(2, 4, false);
    ledger.same("counts at the end", &end.counts(), &(None, Some(0), None));
    ledger.nothing_else();
}

/// Row 2 with `on_event`: it gets every event that has a callback, each once and in the same order.
pub fn on_event_sees_all(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).workers(2).with_on_event());
    nginx.reload_and_settle(2);
    let ledger = nginx.end(Signal::QUIT);
    let key = |r: &&crate::Report| (r.int("seq"), r.text("kind").to_owned());
    let own: Vec<_> = ledger.all().0.iter().filter(|r| r.kind().is_some()).collect();
    let all = ledger.all().called("on_event");
    let own: Vec<_> = own.iter().map(key).collect();
    let all: Vec<_> = all.iter().map(key).collect();
    ledger.same("what on_event got", &all, &own);
}

/// Row 22: twenty reloads, one worker of every generation still draining, and then they leave in
/// no order: prev and next are the nearest that are still there, which the ledger's model checks at
/// every single report.
pub fn twenty_generations_draining(i: Integration) {
    const RELOADS: u64 = 20;
    let nginx = Nginx::start_ready(Setup::new(i).workers(2));
    let mut clients = BTreeMap::new();
    for generation in 1..=RELOADS {
        let client = nginx.slow_client();
        let all = nginx.reports();
        let starts = all.of_generation(Kind::WorkerStarted, generation);
        assert!(
            starts.iter().any(|r| r.pid() == client.worker),
            "{} is no worker of generation {generation}\n{all}",
            client.worker
        );
        clients.insert(generation, client);
        nginx.reload_and_settle(generation + 1);
        // The one that nobody holds leaves; the other stays.
        nginx
            .wait_for("one worker to leave", PATIENCE, |all| all.at_least(1, Kind::WorkerExited, generation));
    }
    // First from the middle, then the oldest, then the newest, then the rest.
    let mut order = vec![7, 8, 1, 20, 19, 10];
    order.extend((1..=RELOADS).filter(|g| !order.contains(g)).collect::<Vec<_>>());
    for generation in order {
        clients.remove(&generation).expect("each is there once").finish();
        nginx.wait_for(&format!("the end of generation {generation}"), PATIENCE, |all| {
            all.at_least(1, Kind::GenerationEnded, generation)
        });
    }
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(2);
    for generation in 2..=RELOADS + 1 {
        // Exactly: both workers of the one before serve when the configuration is read.
        let start = ledger.reloaded(generation, 2, 2);
        ledger.same("workers over all generations", &start.int("total"), &Some(2 + generation as i64 - 2));
    }
    for generation in 1..=RELOADS {
        ledger.graceful_end(generation, 2, true);
    }
    ledger.graceful_end(RELOADS + 1, 2, false);
    ledger.nothing_else();
}

/// Row 23 in small; the bench does ten thousand. What grows with reloads shows after sixty.
pub fn nothing_grows(i: Integration) {
    const WARM: u64 = 10;
    const LAST: u64 = 70;
    let nginx = Nginx::start_ready(Setup::new(i).workers(1));
    let master = nginx.master();
    let size = || std::fs::metadata(nginx.registry()).expect("the registry").len();
    let mut before = None;
    for generation in 2..=LAST {
        nginx.reload_and_settle(generation);
        nginx.wait_ended(generation - 1);
        // The master keeps a channel to each child that it has not asked for yet.
        nginx.wait_until("the old worker to be reaped", || {
            (process::all().iter().filter(|s| s.parent == master).count() == 1).then_some(())
        });
        if generation == WARM {
            before = Some((
                size(),
                process::open_descriptors(master),
                process::mappings(master),
                process::resident_kib(master),
            ));
        }
    }
    let (file, descriptors, mappings, resident) = before.expect("warmed up");
    assert_eq!(file, size(), "the registry grew");
    nginx.wait_until("no more descriptors than before", || {
        (process::open_descriptors(master) <= descriptors).then_some(())
    });
    let now = process::mappings(master);
    assert!(now <= mappings + 8, "the master's mappings: {mappings}, then {now}");
    let now = process::resident_kib(master);
    // nginx itself keeps a little of every configuration.
    assert!(now < resident + 6 * 1024, "the master's memory: {resident} KiB, then {now}");
    let mut ledger = nginx.end(Signal::QUIT);
    for generation in 1..LAST {
        ledger.graceful_end(generation, 1, true);
    }
    ledger.graceful_end(LAST, 1, false);
}
