//! Row 33: a worker whose timers or connections are used up by others.

use std::time::Duration;

use crate::wait::{PATIENCE, boot_clock};
use crate::{Integration, Kind, Nginx, Setup, Signal, process};

/// Seconds for which the timers of the first generation run, once all have begun.
const BUSY: u64 = 6;

fn busy(i: Integration, timers: u32, most_running: u32) -> Setup {
    let lua = format!(
        "if e.generation ~= 1 then return end
         for n = 1, {timers} do
           ngx.timer.at(0.1 + n % 20 * 0.05, function(premature)
             if premature then return end
             ngx.sleep(1.5)
             if n == 100 then kit.note('busy', {{}}) end
             ngx.sleep({BUSY})
             if n == 100 then kit.note('done', {{}}) end
           end)
         end"
    );
    super::quick(i)
        .workers(2)
        .http(&format!("lua_max_running_timers {most_running};"))
        .in_callback("on_worker_start", &lua)
        .allow("are not enough")
        .allow("failed to run timer")
}

/// Draining begins within a heartbeat, nobody is called stalled, and the workers end with what they have to do.
fn is_not_kept(setup: Setup, how: impl Fn(&Nginx), next: bool) {
    let nginx = Nginx::start_ready(setup);
    let wait = |what: &str| {
        nginx.wait_for(what, PATIENCE, |all| (all.notes(what).len() == 2).then_some(()));
    };
    wait("busy");
    let told = boot_clock();
    how(&nginx);
    nginx.wait_for("both to drain", PATIENCE, |all| all.at_least(2, Kind::WorkerDraining, 1));
    let took = Duration::from_nanos(boot_clock() - told);
    assert!(took < Duration::from_secs(BUSY / 2), "draining began after {took:?}");
    wait("done");
    let done = boot_clock();
    nginx.wait_ended(1);
    let took = Duration::from_nanos(boot_clock() - done);
    assert!(took < Duration::from_secs(3), "the workers were kept for {took:?}");
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(2);
    if next {
        ledger.reloaded(2, 2, 2);
        ledger.graceful_end(2, 2, false);
    }
    ledger.graceful_end(1, 2, next);
    ledger.nothing_else();
}

/// All running timers that there may be.
pub fn timers_used_up(i: Integration) {
    is_not_kept(busy(i, 300, 200), Nginx::reload, true);
}

/// All connections: each running timer has one.
pub fn connections_used_up(i: Integration) {
    is_not_kept(busy(i, 400, 1000), |nginx| process::send(nginx.master(), Signal::QUIT), false);
}
