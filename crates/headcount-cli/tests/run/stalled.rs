//! `--kill-stalled-after`.

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use testkit::{Folder, Nginx, Setup, permit, process};

use super::follower::{Follower, registry, server};

fn quick(own: &Folder) -> Setup {
    server(own).workers(2).option("heartbeat_interval", "0.1").option("stall_after", "0.5")
}

#[test]
fn a_worker_that_stays_stalled_is_killed_and_replaced_and_nobody_else_is() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(quick(&own));
    let [victim, other] = nginx.workers()[..] else { panic!("two workers") };
    let mut run = Follower::start(&own, &["--kill-stalled-after", "1s"]);
    run.wait_for_log("following node");
    nginx.freeze(victim);
    let frozen = Instant::now();
    run.wait_for_log(&format!("(pid {victim}) of generation 1: it had been stalled for more than 1.0 s"));
    assert!(frozen.elapsed() >= Duration::from_millis(1500), "{:?}", frozen.elapsed());
    run.wait_until("its replacement", || {
        let workers = nginx.workers();
        (workers.len() == 2 && workers.contains(&other) && !workers.contains(&victim)).then_some(())
    });
    run.wait_until("its death to be told", || {
        let dead = nginx.reports();
        (dead.of(testkit::Kind::WorkerDied).iter().any(|e| e.pid() == victim && e.int("signal") == Some(9)))
            .then_some(())
    });
    run.end();
    nginx.end(testkit::Signal::QUIT);
}

#[test]
fn one_that_recovers_in_time_lives_and_without_the_option_all_do() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(quick(&own));
    let victim = nginx.workers()[0];
    for arguments in [&["--kill-stalled-after", "60s"][..], &["--on", "worker_stalled=true"]] {
        let mut run = Follower::start(&own, arguments);
        run.wait_for_log("following node");
        nginx.freeze(victim);
        let stalls = nginx.reports().of(testkit::Kind::WorkerRecovered).len() + 1;
        run.wait_until("it to be stalled", || {
            (nginx.reports().of(testkit::Kind::WorkerStalled).len() == stalls).then_some(())
        });
        nginx.thaw(victim);
        run.wait_until("it to recover", || {
            (nginx.reports().of(testkit::Kind::WorkerRecovered).len() == stalls).then_some(())
        });
        run.end();
        assert!(process::is_alive(victim) && !run.log().contains("killed"), "{}", run.log());
        std::fs::remove_file(own.at("state.json")).expect("its state");
    }
    nginx.end(testkit::Signal::QUIT);
}

#[test]
fn a_worker_whose_master_is_gone_is_not_killed() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(quick(&own));
    let victim = nginx.workers()[0];
    process::send(nginx.master(), testkit::Signal::KILL);
    let mut run = Follower::start(&own, &["--kill-stalled-after", "200ms"]);
    nginx.freeze(victim);
    run.wait_for_log(
        "was not killed: it is no child of a live master of the node, so nothing would replace it",
    );
    assert!(process::is_alive(victim));
    run.end();
    nginx.kill_all();
}

/// What a worker that means harm can write: its master is a worker that has stood for a day.
#[test]
fn a_master_that_a_worker_has_written_down_as_a_stalled_worker_is_not_killed() {
    /// docs/format.md
    const SLOTS: (usize, usize) = (4096, 192);
    const GENERATION: usize = 8;
    const PID: usize = 16;
    const ROLE: usize = 24;
    const INTENT: usize = 56;
    const HEARTBEAT: usize = 64;
    const INTENT_SINCE: usize = 72;
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(quick(&own));
    let master = nginx.master();
    let bytes = std::fs::read(registry(&own)).expect("our own file");
    let slots = bytes[SLOTS.0..].chunks_exact(SLOTS.1);
    let is_its = |slot: &[u8]| slot[PID..PID + 4] == master.to_ne_bytes() && slot[ROLE] == 1;
    let index = slots.into_iter().position(is_its).expect("the master's slot");
    let at = SLOTS.0 + index * SLOTS.1;
    let mut run = Follower::start(&own, &["--kill-stalled-after", "200ms"]);
    run.wait_for_log("following node");
    let file = std::fs::File::options().write(true).open(registry(&own)).expect("our own file");
    let write = |field: usize, bytes: &[u8]| {
        file.write_all_at(bytes, (at + field) as u64).expect("our own file");
    };
    write(GENERATION, &1_u64.to_ne_bytes());
    write(HEARTBEAT, &2_u64.to_ne_bytes());
    write(INTENT_SINCE, &1_u64.to_ne_bytes());
    write(INTENT, &2_u32.to_ne_bytes());
    write(ROLE, &2_u32.to_ne_bytes());
    run.wait_for_log(&format!("worker (pid {master}) of generation 1 was not killed"));
    assert!(process::is_alive(master), "{}", run.log());
    run.end();
    nginx.kill_all();
}
