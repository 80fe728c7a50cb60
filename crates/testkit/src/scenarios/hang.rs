//! Rows 19 and 20: alive, and not getting on.

use std::time::Duration;

use crate::program::headcount;
use crate::wait::{PATIENCE, boot_clock};
use crate::{Integration, Kind, Nginx, Report, Signal, process};

fn wait_word(nginx: &Nginx, kind: Kind, pid: i32) -> Report {
    nginx.wait_for(&format!("{} of {pid}", kind.name()), PATIENCE, |all| {
        all.of(kind).into_iter().find(|r| r.pid() == pid).cloned()
    })
}

/// A draining worker is judged by its heartbeats from the first one on, since some servers cannot beat while they drain.
fn wait_until_it_beats_while_it_drains(nginx: &Nginx, pid: i32) {
    let registry = nginx.registry().display().to_string();
    nginx.wait_until("a heartbeat of the draining worker", || {
        let status = headcount(&[], &["status", "--json", "--registry", &registry]).output().ok()?;
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).ok()?;
        let all = status.pointer("/nodes/0/processes")?.as_array()?;
        let it = all.iter().find(|p| p["pid"] == pid && p["state"] == "draining")?;
        (it["heartbeat_age"].as_f64()? < it["in_state_for"].as_f64()?).then_some(())
    });
}

/// Row 19, a stopped process.
pub fn stopped(i: Integration) {
    let nginx = Nginx::start_ready(super::quick(i));
    let victim = nginx.workers()[1];
    let since = boot_clock();
    nginx.freeze(victim);
    let stalled = wait_word(&nginx, Kind::WorkerStalled, victim);
    let took = Duration::from_nanos(stalled.at - since);
    // Its last heartbeat was up to 0.2 s before it was stopped.
    assert!(
        (Duration::from_millis(700)..Duration::from_secs(4)).contains(&took),
        "stall_after is 1 s, and it took {took:?}"
    );
    assert!(process::is_alive(victim));
    nginx.thaw(victim);
    let recovered = wait_word(&nginx, Kind::WorkerRecovered, victim);
    assert_eq!(recovered.int("mine"), Some(4), "{recovered}");
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(4);
    let stalled = ledger.one_with(Kind::WorkerStalled, 1, (None, Some(3), None));
    ledger.holds("told by another", stalled.runner != victim);
    ledger.one_with(Kind::WorkerRecovered, 1, (None, Some(4), None));
    ledger.graceful_end(1, 4, false);
    ledger.nothing_else();
}

/// Row 19, an endless loop and a blocking call, each ending by itself.
pub fn busy_or_blocked(i: Integration) {
    for page in ["/spin?s=2.5", "/block?s=2.5"] {
        let nginx = Nginx::start_ready(super::quick(i));
        let _request = crate::http::send(&nginx.socket(), page).expect("it serves");
        nginx.wait_for("a stall and its end", PATIENCE, |all| {
            all.at_least(1, Kind::WorkerStalled, 1)?;
            all.at_least(1, Kind::WorkerRecovered, 1)
        });
        let mut ledger = nginx.end(Signal::QUIT);
        ledger.cold_start(4);
        let stalled = ledger.one_with(Kind::WorkerStalled, 1, (None, Some(3), None));
        let recovered = ledger.one_with(Kind::WorkerRecovered, 1, (None, Some(4), None));
        ledger.same("who", &recovered.pid(), &stalled.pid());
        ledger.graceful_end(1, 4, false);
        ledger.nothing_else();
    }
}

/// Row 19, all but one, so whoever watches the others hangs too.
pub fn all_but_one(i: Integration) {
    for nth in 0..2 {
        let nginx = Nginx::start_ready(super::quick(i));
        let mut victims = nginx.workers();
        // The first and the last: at least one of the two runs stops the watcher.
        victims.remove(nth * 3);
        for &pid in &victims {
            nginx.freeze(pid);
        }
        for &pid in &victims {
            wait_word(&nginx, Kind::WorkerStalled, pid);
        }
        for &pid in &victims {
            nginx.thaw(pid);
        }
        for &pid in &victims {
            wait_word(&nginx, Kind::WorkerRecovered, pid);
        }
        let mut ledger = nginx.end(Signal::QUIT);
        ledger.cold_start(4);
        let stalled = ledger.take(Kind::WorkerStalled, 1);
        ledger.distinct_pids(&stalled, 3);
        let recovered = ledger.take(Kind::WorkerRecovered, 1);
        ledger.distinct_pids(&recovered, 3);
        ledger.graceful_end(1, 4, false);
        ledger.nothing_else();
    }
}

/// Row 20.
pub fn hung_then_dead(i: Integration) {
    let nginx = Nginx::start_ready(super::quick(i).allow_kills());
    let victim = nginx.workers()[1];
    nginx.freeze(victim);
    wait_word(&nginx, Kind::WorkerStalled, victim);
    process::send(victim, Signal::KILL);
    wait_word(&nginx, Kind::WorkerDied, victim);
    nginx.wait_for("the respawned worker", PATIENCE, |all| all.at_least(5, Kind::WorkerStarted, 1));
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.one_with(Kind::WorkerStalled, 1, (None, Some(3), None));
    // Off once, not twice.
    ledger.one_with(Kind::WorkerDied, 1, (None, Some(3), None));
    ledger.series(Kind::WorkerStarted, 1, [1, 2, 3, 4, 4]);
    ledger.take(Kind::GenerationStarted, 1);
    ledger.graceful_end(1, 4, false);
    ledger.nothing_else();
}

/// Row 20, while it drains: it stalls, and dies as the last of its generation.
pub fn hung_while_draining_then_dead(i: Integration) {
    let nginx = Nginx::start_ready(super::quick(i).workers(2).allow_kills());
    let client = nginx.slow_client();
    nginx.reload_and_settle(2);
    wait_until_it_beats_while_it_drains(&nginx, client.worker);
    nginx.freeze(client.worker);
    wait_word(&nginx, Kind::WorkerStalled, client.worker);
    process::send(client.worker, Signal::KILL);
    nginx.wait_ended(1);
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(2);
    ledger.reloaded(2, 2, 2);
    ledger.take(Kind::WorkerDraining, 1);
    ledger.one(Kind::WorkerExited, 1);
    ledger.one_with(Kind::WorkerStalled, 1, (None, Some(0), Some(2)));
    ledger.one_with(Kind::WorkerDied, 1, (None, Some(0), Some(2)));
    ledger.end(1, true);
    ledger.graceful_end(2, 2, false);
    ledger.nothing_else();
}
