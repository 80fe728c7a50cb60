//! What happens to the server, one act after the other.

use std::io;
use std::time::Duration;

use headcount::Kind::{
    GenerationAbandoned, GenerationEnded, GenerationStarted, WorkerDied, WorkerDraining, WorkerExited,
    WorkerStarted,
};
use rustix::process::{Pid, Signal};

use crate::failure::Failure;
use crate::report::Callback::{MasterExit, MasterStart, WorkerExit, WorkerStart};
use crate::stage::{Act, Expected, Stage};

/// `worker_processes` in demo/nginx.conf.
const WORKERS: usize = 4;

const STARTED: Expected = Expected {
    callbacks: &[(MasterStart, 1), (WorkerStart, WORKERS)],
    events: &[(GenerationStarted, 1), (WorkerStarted, WORKERS)],
    complaint: None,
};

const RELOADED: Expected = Expected {
    callbacks: &[(MasterStart, 1), (WorkerStart, WORKERS), (WorkerExit, WORKERS), (MasterExit, 1)],
    events: &[
        (GenerationStarted, 1),
        (WorkerStarted, WORKERS),
        (WorkerDraining, WORKERS),
        (WorkerExited, WORKERS),
        (GenerationEnded, 1),
    ],
    complaint: None,
};

const RESPAWNED: Expected = Expected {
    callbacks: &[(WorkerStart, 1)],
    events: &[(WorkerDied, 1), (WorkerStarted, 1)],
    complaint: Some("exited on signal 9"),
};

const ABANDONED: Expected = Expected {
    // The Synopsis has no callback for this; its next callback simply has the right numbers.
    callbacks: &[(MasterStart, 1)],
    events: &[(GenerationStarted, 1), (GenerationAbandoned, 1)],
    complaint: Some("bind() to"),
};

const SUPERSEDED: Expected = Expected {
    callbacks: &[(WorkerExit, WORKERS), (MasterExit, 1)],
    events: &[(WorkerDraining, WORKERS), (WorkerExited, WORKERS), (GenerationEnded, 1)],
    complaint: None,
};

const STOPPED: Expected = Expected {
    callbacks: &[(WorkerExit, WORKERS), (MasterExit, 1)],
    events: &[(WorkerExited, WORKERS), (GenerationEnded, 1)],
    complaint: None,
};

/// Plays all acts.
pub fn play(stage: &mut Stage) -> Result<(), Failure> {
    let version = stage.server().version().map_err(|error| Failure::io("run nginx", &error))?;
    let home = stage.server().home().display().to_string();
    stage
        .screen()
        .title(&format!("{version} from {home}, with the Synopsis of lua-resty-worker-manager's README"));
    stage.screen().legend();

    let command = stage.server().command_line()[0].clone();
    let start = Act {
        title: "Start",
        how: &format!("{command} -p {home}"),
        original: "the same",
        expected: &STARTED,
    };
    stage.act(&start, |server| server.start())?;
    let master = known(stage.server().master(), "read the pid file")?;
    users(stage, master)?;
    serves(stage)?;

    let reload = Act {
        title: "Reload",
        how: &kill("HUP", master),
        original: "the same, but not when a worker began to drain or when it was gone",
        expected: &RELOADED,
    };
    stage.act(&reload, |server| server.signal(master, Signal::HUP))?;
    serves(stage)?;

    let worker = known(stage.server().worker_of(master), "find a worker")?;
    let crash = Act {
        title: "A worker is killed",
        how: &kill("KILL", worker),
        original: "the new worker's start; the death 5 to 25 s later, without a callback",
        expected: &RESPAWNED,
    };
    stage.act(&crash, |server| server.signal(worker, Signal::KILL))?;
    serves(stage)?;

    let address = known(stage.server().listen_where_it_cannot(), "change the configuration")?;
    let failure = Act {
        title: "A reload fails: nginx cannot bind an address",
        how: &format!("listen {address}; {}", kill("HUP", master)),
        original: "the start of a generation that never ends, so that the next stop looks like a reload",
        expected: &ABANDONED,
    };
    stage.act(&failure, |server| server.signal(master, Signal::HUP))?;
    serves(stage)?;
    known(stage.server().listen_properly(), "fix the configuration")?;

    let upgrade = Act {
        title: "A new binary starts beside the old one",
        how: &kill("USR2", master),
        original: "a fresh start",
        expected: &STARTED,
    };
    stage.act(&upgrade, |server| server.signal(master, Signal::USR2))?;
    let hand_over = Act {
        title: "The old binary is told to quit",
        how: &kill("QUIT", master),
        original: "the stop of the whole server",
        expected: &SUPERSEDED,
    };
    stage.act(&hand_over, |server| server.signal(master, Signal::QUIT))?;
    serves(stage)?;

    let master = known(stage.server().master(), "read the pid file")?;
    let stop =
        Act { title: "Stop", how: &kill("TERM", master), original: "nothing at all", expected: &STOPPED };
    stage.act(&stop, |server| server.signal(master, Signal::TERM))?;
    if !stage.server().wait_gone(Duration::from_secs(5)) {
        return Err(Failure::Unexpected(vec!["the server is still there after TERM".into()]));
    }
    let said = stage.said();
    stage.screen().say("");
    stage.screen().title(&format!(
        "{said} lines above: everything that must be reported was, exactly once. The server is gone."
    ));
    Ok(())
}

fn kill(signal: &str, pid: Pid) -> String {
    format!("kill -{signal} {}", pid.as_raw_nonzero())
}

fn known<T>(result: io::Result<T>, action: &str) -> Result<T, Failure> {
    result.map_err(|error| Failure::io(action, &error))
}

/// Which users the processes run as, by the kernel.
fn users(stage: &mut Stage, master: Pid) -> Result<(), Failure> {
    let server = stage.server();
    let worker = known(server.worker_of(master), "find a worker")?;
    let of_master = known(server.user_of(master), "find out who the master runs as")?;
    let of_worker = known(server.user_of(worker), "find out who a worker runs as")?;
    let master = master.as_raw_nonzero();
    stage
        .screen()
        .say(&format!("{:>10}   master ({master}) runs as {of_master}, its workers as {of_worker}", "then"));
    Ok(())
}

/// Whatever happened, the server must answer.
fn serves(stage: &mut Stage) -> Result<(), Failure> {
    let worker = known(stage.server().ask(), "get a page")?;
    let address = stage.server().address();
    stage.screen().say(&format!("{:>10}   {address} serves, by worker ({worker})", "then"));
    Ok(())
}
