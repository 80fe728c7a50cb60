//! Row 28: somebody sets the wall clock.

use std::path::Path;
use std::time::Duration;

use crate::wait::{PATIENCE, boot_clock};
use crate::{Integration, Kind, Nginx, Signal};

const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
const HOUR: i64 = 3600;

/// Stepped by hours, forwards and back, with healthy and with hung workers.
pub fn wall_clock_stepped(i: Integration) {
    assert!(Path::new(FAKETIME).exists(), "{FAKETIME} is missing: apt-get install libfaketime");
    let setup = super::quick(i)
        .env("LD_PRELOAD", FAKETIME)
        .env("FAKETIME_TIMESTAMP_FILE", "@FOLDER@/faketime")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("FAKETIME_NO_CACHE", "1");
    let nginx = Nginx::prepare(setup);
    nginx.folder.replace("faketime", "+0\n");
    nginx.run();
    nginx.ready(1);
    let step = |hours: i64| {
        nginx.folder.replace("faketime", &format!("{:+}h\n", hours));
        nginx.wait_until("the wall clock to jump", || {
            let shown: i64 = nginx.get("/clock").body.trim().parse().ok()?;
            let real = std::time::SystemTime::UNIX_EPOCH.elapsed().ok()?.as_secs() as i64;
            ((shown - real - hours * HOUR).abs() < 60).then_some(())
        });
    };
    // A false stall would show within `stall_after` and a heartbeat: the one wait for time to pass,
    // because nothing is to happen.
    let quiet = |what: &str| {
        let till = boot_clock() + Duration::from_millis(1500).as_nanos() as u64;
        nginx.wait_until("time to pass", || (boot_clock() > till).then_some(()));
        let all = nginx.reports();
        let stalls = all.of(Kind::WorkerStalled).len();
        assert_eq!(stalls, 0, "a false stall after {what}\n{all}");
    };
    step(5);
    quiet("+5 h");
    step(-5);
    quiet("-5 h");

    // A real stall is not missed, whichever way the clock goes meanwhile.
    for (nth, hours) in [-9, 9].into_iter().enumerate() {
        let victim = nginx.workers()[nth];
        nginx.freeze(victim);
        nginx.folder.replace("faketime", &format!("{hours:+}h\n"));
        nginx.wait_for("the stall", PATIENCE, |all| all.at_least(nth + 1, Kind::WorkerStalled, 1));
        nginx.thaw(victim);
        nginx.wait_for("its end", PATIENCE, |all| all.at_least(nth + 1, Kind::WorkerRecovered, 1));
    }
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(4);
    ledger.series(Kind::WorkerStalled, 1, [3, 3]);
    ledger.series(Kind::WorkerRecovered, 1, [4, 4]);
    ledger.graceful_end(1, 4, false);
    ledger.nothing_else();
}
