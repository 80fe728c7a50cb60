//! Rows 2a and 21: a worker that finishes its work and takes no new.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::thread;

use crate::wait::PATIENCE;
use crate::{Integration, Kind, Nginx, Setup, Signal, chmod, process};

/// Uses everything that a draining worker's callback may use, and notes what worked.
const WHOLE_API: &str = r#"
    local slept = pcall(ngx.sleep, 0.001)
    local socket = ngx.socket.tcp()
    local connected, err = socket:connect("unix:" .. kit.folder .. "/peer.sock")
    local answer
    if connected then
      socket:send("hello\n")
      answer = socket:receive("*l")
      socket:close()
    end
    local timer = ngx.timer.at(0, function() kit.note("timer", {}) end)
    kit.note("api", { slept = slept, answer = answer, err = err, timer = timer and true or false })
"#;

fn peer(nginx: &Nginx) {
    let listener = UnixListener::bind(nginx.at("peer.sock")).expect("our own folder");
    chmod(&nginx.at("peer.sock"), 0o777);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut line = String::new();
            let mut reader = BufReader::new(&stream);
            if reader.read_line(&mut line).is_ok() {
                let _ = (&stream).write_all(format!("you said {line}").as_bytes());
            }
        }
    });
}

fn callbacks_had_the_whole_api(nginx: &Nginx) {
    nginx.wait_for("what the callbacks could do", PATIENCE, |all| {
        (all.notes("api").len() >= 2 && all.notes("timer").len() >= 2).then_some(())
    });
    let all = nginx.reports();
    for note in all.notes("api") {
        let fits = note.flag("slept") && note.flag("timer") && note.text("answer") == "you said hello";
        assert!(fits, "a draining worker's callback lacks something: {note}");
    }
}

fn begins_to_drain(i: Integration, how: impl Fn(&Nginx), next: bool) {
    let nginx = Nginx::prepare(Setup::new(i).workers(2).in_callback("on_worker_draining", WHOLE_API));
    peer(&nginx);
    nginx.run();
    nginx.ready(1);
    let client = nginx.slow_client();
    let held = client.worker;
    how(&nginx);
    nginx.wait_for("both workers to drain and one to leave", PATIENCE, |all| {
        all.at_least(2, Kind::WorkerDraining, 1)?;
        all.at_least(1, Kind::WorkerExited, 1)
    });
    assert!(process::is_alive(held), "the held worker has work to do");
    if i != Integration::Native {
        callbacks_had_the_whole_api(&nginx);
    }
    let all = nginx.reports();
    let exits = all.of_generation(Kind::WorkerExited, 1);
    assert!(exits.iter().all(|r| r.pid() != held), "told before it left\n{all}");

    client.finish();
    nginx.wait_gone(held);
    let mut ledger = nginx.end(Signal::QUIT);
    let draining = ledger.all().of_generation(Kind::WorkerDraining, 1);
    ledger.holds("each of the two drains once", draining.len() == 2);
    let counted: Vec<_> = draining.iter().map(|r| r.int("draining")).collect();
    // The first one may be gone before the second begins; the model knows. Never less than itself.
    ledger.holds("a draining worker counts itself", counted.iter().all(|n| *n >= Some(1)));
    ledger.graceful_end(1, 2, next);
}

/// Row 2a, reload.
pub fn on_reload(i: Integration) {
    begins_to_drain(
        i,
        |nginx| {
            nginx.reload();
            nginx.ready(2);
        },
        true,
    );
}

/// Row 2a, QUIT.
pub fn on_quit(i: Integration) {
    begins_to_drain(i, |nginx| process::send(nginx.master(), Signal::QUIT), false);
}

/// Row 2a, WINCH.
pub fn on_winch(i: Integration) {
    begins_to_drain(i, |nginx| process::send(nginx.master(), Signal::WINCH), false);
}

/// Row 2a: `worker_shutdown_timeout` ends the draining; the exit is told like any other.
pub fn shutdown_timeout(i: Integration) {
    let setup = Setup::new(i).workers(2).main("worker_shutdown_timeout 300ms;").allow("open socket");
    let nginx = Nginx::start_ready(setup);
    let client = nginx.slow_client();
    nginx.reload();
    nginx.ready(2);
    nginx.wait_ended(1);
    drop(client);
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(2);
    ledger.reloaded(2, 2, 2);
    ledger.graceful_end(1, 2, true);
    ledger.graceful_end(2, 2, false);
    ledger.nothing_else();
}

/// Row 21: the listing shows a worker that drains, and for how long.
pub fn shown_while_draining(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).workers(2));
    let client = nginx.slow_client();
    let held = client.worker;
    nginx.reload_and_settle(2);
    let age = || {
        nginx.wait_until("the draining worker and its age in the status", || {
            let status = nginx.json("/status");
            let shown = super::identity::processes(&status).into_iter().find(|p| p["pid"] == held)?;
            let draining = shown.values().any(|value| value == "draining");
            // Whatever it is called, it is a number that tells how long or since when.
            let age = shown
                .iter()
                .find(|(name, _)| name.contains("drain") && !name.contains("count"))
                .or_else(|| shown.iter().find(|(name, _)| name.contains("age")))
                .and_then(|(_, value)| value.as_f64())?;
            draining.then_some(age)
        })
    };
    let first = age();
    assert!(first >= 0.0);
    // Other workers of the old generation leave; this one is still shown.
    nginx.wait_for("the other one to leave", PATIENCE, |all| all.at_least(1, Kind::WorkerExited, 1));
    age();
    client.finish();
    nginx.wait_ended(1);
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.graceful_end(1, 2, true);
    ledger.graceful_end(2, 2, false);
}
