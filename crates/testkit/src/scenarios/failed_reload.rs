//! Row 9: a reload that fails after the configuration was read, and kinds of failure beside it.

use std::net::TcpListener;

use crate::wait::PATIENCE;
use crate::{Integration, Kind, Ledger, Nginx, Setup, Signal};

/// A socket in a folder that is not there: bind fails at once.
const UNBINDABLE: &str = "unix:@FOLDER@/missing/x.sock";

fn fail_reload(nginx: &Nginx, generation: u64) {
    nginx.reload_with(|setup| setup.listen(UNBINDABLE).allow("missing/x.sock"));
    nginx.wait_for("the generation to be abandoned", PATIENCE, |all| {
        all.at_least(1, Kind::GenerationAbandoned, generation)
    });
}

fn abandoned(ledger: &mut Ledger, generation: u64, prev: i64) {
    let start = ledger.one_with(Kind::GenerationStarted, generation, (Some(prev), Some(0), None));
    ledger.same("cause", start.cause(), "reload");
    let end = ledger.one(Kind::GenerationAbandoned, generation);
    ledger.same("who serves meanwhile", &end.int("prev"), &Some(prev));
}

/// The next stop is a stop.
pub fn then_a_stop_is_a_stop(i: Integration) {
    for (signal, graceful) in [(Signal::QUIT, true), (Signal::TERM, false)] {
        let nginx = Nginx::start_ready(Setup::new(i));
        fail_reload(&nginx, 2);
        nginx.must_serve();
        let mut ledger = nginx.end(signal);
        ledger.cold_start(4);
        abandoned(&mut ledger, 2, 4);
        if graceful {
            ledger.graceful_end(1, 4, false);
        } else {
            ledger.fast_end(1, 4, false);
        }
        ledger.nothing_else();
    }
}

/// The next reload comes from the generation that serves, also after several failures.
pub fn then_a_reload_knows_who_serves(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).workers(2));
    fail_reload(&nginx, 2);
    nginx.reload();
    nginx.wait_for("the second failure", PATIENCE, |all| all.at_least(1, Kind::GenerationAbandoned, 3));
    nginx.change(Setup::no_other_listen);
    nginx.reload_and_settle(4);
    nginx.wait_ended(1);
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(2);
    abandoned(&mut ledger, 2, 2);
    abandoned(&mut ledger, 3, 2);
    ledger.reloaded(4, 2, 2);
    ledger.graceful_end(1, 2, true);
    ledger.graceful_end(4, 2, false);
    ledger.nothing_else();
}

/// The textbook case: somebody else has the port. nginx tries for two and a half seconds.
pub fn a_port_that_is_taken(i: Integration) {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let nginx = Nginx::start_ready(Setup::new(i).workers(2));
    nginx.reload_with(|setup| {
        setup.listen(&address).allow(&format!("{address} failed")).allow("still could not bind()")
    });
    nginx.wait_for("the generation to be abandoned", PATIENCE, |all| {
        all.at_least(1, Kind::GenerationAbandoned, 2)
    });
    drop(taken);
    // The same configuration works now.
    nginx.reload_and_settle(3);
    nginx.wait_ended(1);
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(2);
    abandoned(&mut ledger, 2, 2);
    ledger.reloaded(3, 2, 2);
    ledger.graceful_end(1, 2, true);
    ledger.graceful_end(3, 2, false);
    ledger.nothing_else();
}

/// A worker dies while a generation is announced that never comes.
pub fn a_death_after_it(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).workers(2).allow_kills());
    fail_reload(&nginx, 2);
    // Not the one that tells it: killed in that callback, it would have it told again.
    let teller = nginx.reports().of(Kind::GenerationAbandoned)[0].runner;
    let victim = nginx.workers().into_iter().find(|&pid| pid != teller).expect("two workers");
    crate::process::send(victim, Signal::KILL);
    nginx.wait_for("a respawned worker", PATIENCE, |all| all.at_least(3, Kind::WorkerStarted, 1));
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.take(Kind::GenerationStarted, 2);
    ledger.one(Kind::GenerationAbandoned, 2);
    let death = ledger.one_with(Kind::WorkerDied, 1, (None, Some(1), None));
    ledger.same("who died", &death.pid(), &victim);
    let starts = ledger.take(Kind::WorkerStarted, 1);
    ledger.same("counts of the respawned", &starts[2].counts(), &(None, Some(2), None));
    ledger.same("cause of the respawned", starts[2].cause(), "respawn");
    ledger.graceful_end(1, 2, false);
}

/// A configuration that cannot even be read: nothing was announced, so nothing is abandoned.
pub fn a_configuration_that_is_none(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).workers(2).allow("unknown directive"));
    nginx.configure_nonsense();
    nginx.reload();
    nginx.wait_for_log("nginx's complaint", |line| line.contains("unknown directive"));
    nginx.change(|setup| setup);
    nginx.reload_and_settle(2);
    nginx.wait_ended(1);
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(2);
    ledger.reloaded(2, 2, 2);
    ledger.graceful_end(1, 2, true);
    ledger.graceful_end(2, 2, false);
    ledger.nothing_else();
}

/// The user's own init code fails after headcount's.
pub fn init_code_that_fails(i: Integration) {
    let setup = Setup::new(i).workers(2).allow("init_by_lua").allow("stack traceback");
    let nginx = Nginx::start_ready(setup);
    nginx.reload_with(|setup| setup.after_init("error('the application failed')"));
    nginx.wait_for("the generation to be abandoned", PATIENCE, |all| {
        all.at_least(1, Kind::GenerationAbandoned, 2)
    });
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(2);
    abandoned(&mut ledger, 2, 2);
    ledger.graceful_end(1, 2, false);
    ledger.nothing_else();
}

/// A server that cannot start has no error.log that is open: what the module says goes where nginx's own complaint goes.
pub fn a_start_that_fails(i: Integration) {
    let nginx = Nginx::prepare(Setup::new(i).listen(UNBINDABLE).allow("missing/x.sock"));
    let answer = nginx.ask(&[]);
    assert!(!answer.status.success(), "{answer:?}");
    let said = String::from_utf8_lossy(&answer.stderr);
    for kind in ["generation_started", "generation_abandoned"] {
        let lines = said.lines().filter(|line| line.contains(&format!("[headcount] {kind}"))).count();
        assert_eq!(lines, usize::from(i != Integration::Lua), "{kind} in {said}");
    }
    // No trace of it is left.
    nginx.change(Setup::no_other_listen);
    nginx.run();
    nginx.ready(2);
    nginx.end(Signal::QUIT);
}
