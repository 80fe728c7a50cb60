//! `headcount wait` on a real nginx: each condition, and each exit code.

mod program;
mod scripted;

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use scripted::{Running, headcount, quick, run, setup, start};
use testkit::{Folder, Kind, Nginx, Signal, permit, process};

#[test]
fn a_node_that_is_as_wanted_ends_it_at_once() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup());
    let ended = run(&nginx, &["wait", "--reloaded", "--drained", "--workers", "4"]).ended(0);
    assert_eq!(
        ended.out,
        "generation 1 serves with 4 workers; 4 workers of generation 1 serving; no older generation is left\n"
    );
    nginx.end(Signal::QUIT);
}

#[test]
fn wrong_use_ends_with_2() {
    for wrong in [
        &["wait"][..],
        &["wait", "--timeout", "1s"],
        &["wait", "--stopped", "--reloaded"],
        &["wait", "--drained", "--newer-than", "1"],
        &["wait", "--workers", "many"],
        &["wait", "--drained", "--timeout", "soon"],
    ] {
        program::run(&mut program::headcount(wrong)).ended(2);
    }
}

#[test]
fn a_slow_client_holds_up_the_draining() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(2));
    let client = nginx.slow_client();
    nginx.reload_and_settle(2);
    let drains = format!("1 draining (pid {})", client.worker);
    let row = format!("pid {}: worker ", client.worker);
    nginx.wait_for("the other one to leave", scripted::LONG, |all| all.at_least(1, Kind::WorkerExited, 1));
    let late =
        run(&nginx, &["wait", "--drained", "--timeout", "200ms"]).ended(1).complains(&drains).complains(&row);
    assert!(late.err.contains("of generation 1, draining for "), "{late:#?}");
    assert_eq!(late.out, "");
    // The new generation serves all the same.
    run(&nginx, &["wait", "--reloaded", "--newer-than", "1"])
        .ended(0)
        .says("generation 2 serves with 2 workers");
    let waiting = start(&nginx, &["wait", "--drained"]);
    waiting.says("waiting: generation 1 is left");
    client.finish();
    let ended = waiting.end().ended(0).says("no older generation is left");
    // A line for each change, and there was one.
    assert!(ended.err.lines().count() <= 3, "{ended:#?}");
    nginx.end(Signal::QUIT);
}

#[test]
fn stopped_is_the_kernels_word() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(2).allow_kills());
    run(&nginx, &["wait", "--stopped", "--timeout", "100ms"])
        .ended(1)
        .complains(&format!("pid {}: master, serving for", nginx.master()));
    let waiting = start(&nginx, &["wait", "--stopped"]);
    waiting.says("waiting: alive: 1 master");
    scripted::quit(&nginx);
    waiting.end().ended(0).says("no master or worker of the node is alive");

    nginx.run();
    nginx.ready(2);
    let waiting = start(&nginx, &["wait", "--stopped"]);
    let drained = start(&nginx, &["wait", "--reloaded", "--newer-than", "2"]);
    waiting.says("waiting: alive: 1 master");
    scripted::kill_everything(&nginx);
    waiting.end().ended(0);
    // It may be started again, so that is waited on; and said.
    drained.says("waiting: no master or worker of the node is alive");
    nginx.run();
    drained.end().ended(0).says("generation 3 serves with 2 workers");
    nginx.end(Signal::QUIT);
}

#[test]
fn a_node_that_died_is_not_reloaded_and_not_undrained() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(2));
    nginx.kill_all();
    run(&nginx, &["wait", "--reloaded", "--timeout", "100ms"])
        .ended(1)
        .complains("no master or worker of the node is alive; master ");
    run(&nginx, &["wait", "--workers", "0", "--drained", "--stopped"]).ended(0);
}

#[test]
fn orphans_serve_and_are_no_reload() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(2));
    let master = nginx.master();
    nginx.family();
    process::send(master, Signal::KILL);
    nginx.wait_gone(master);
    run(&nginx, &["wait", "--reloaded", "--timeout", "100ms"])
        .ended(1)
        .complains(&format!("master {master} of generation 1 is gone"))
        .complains("orphaned for");
    run(&nginx, &["wait", "--workers", "2"]).ended(0);
}

#[test]
fn a_node_that_is_to_come_is_waited_for_if_it_was_named() {
    let _permit = permit();
    let nginx = Nginx::prepare(setup().workers(2));
    run(&nginx, &["wait", "--stopped"]).ended(0).says("there is no node");
    run(&nginx, &["wait", "--reloaded", "--timeout", "100ms"]).ended(1).complains("there is no node at ");
    let waiting = start(&nginx, &["wait", "--reloaded"]);
    waiting.says("waiting: there is no node at ");
    nginx.run();
    waiting.end().ended(0).says("generation 1 serves with 2 workers");
    nginx.end(Signal::QUIT);

    let mut by_name = program::headcount(["wait", "--workers", "1", "--node", "shop", "--timeout", "100ms"]);
    by_name.env("HEADCOUNT_RUNTIME_DIR", nginx.at("run"));
    program::run(&mut by_name).ended(1).complains("there is no node shop");
}

#[test]
fn without_a_name_there_must_be_one_node() {
    let folder = Folder::new();
    let program =
        |args: &[&str]| program::run(program::headcount(args).env("HEADCOUNT_RUNTIME_DIR", folder.path()));
    program(&["wait", "--reloaded"]).ended(4).complains("no node was found");
    program(&["wait", "--stopped"]).ended(0);
    folder.write("a.registry", "garbage");
    program(&["wait", "--reloaded"]).ended(4).complains("a.registry is no headcount registry");
    folder.write("b.registry", "garbage");
    program(&["wait", "--stopped"]).ended(4).complains("choose one with --node (a, b)");
}

#[test]
fn a_reload_that_fails_ends_it_with_3() {
    let _permit = permit();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let nginx = Nginx::start_ready(setup().workers(2));
    let waiting = start(&nginx, &["wait", "--reloaded", "--newer-than", "1"]);
    waiting.says("waiting: no generation newer than 1");
    nginx.reload_with(|setup| {
        setup.listen(&address).allow(&format!("{address} failed")).allow("still could not bind()")
    });
    waiting.says("generation 2 has begun");
    waiting.end().ended(3).complains("generation 2 was abandoned").complains("error log");
    // The same for one who comes late, as a script does that sent the signal before.
    run(&nginx, &["wait", "--reloaded", "--newer-than", "1"])
        .ended(3)
        .complains("generation 2 was abandoned");
    // Whoever does not ask for a newer one gets what serves.
    run(&nginx, &["wait", "--reloaded"]).ended(0).says("generation 1 serves");
    drop(taken);
    nginx.reload();
    run(&nginx, &["wait", "--reloaded", "--newer-than", "2"]).ended(0).says("generation 3 serves");
    nginx.end(Signal::QUIT);
}

#[test]
fn a_worker_that_hangs_does_not_serve() {
    let _permit = permit();
    let nginx = Nginx::start_ready(quick());
    let victim = nginx.workers()[1];
    let waiting = start(&nginx, &["wait", "--workers", "3"]);
    waiting.says("waiting: generation 1: 4 workers serving, not 3");
    nginx.freeze(victim);
    waiting.end().ended(0).says("3 workers of generation 1 serving");
    let late = run(&nginx, &["wait", "--reloaded", "--timeout", "100ms"]).ended(1);
    let late = late.complains(&format!("3 of 4 workers serving, 1 stalled (pid {victim})"));
    assert!(late.err.contains("stalled, its last heartbeat is "), "{late:#?}");
    nginx.thaw(victim);
    run(&nginx, &["wait", "--reloaded", "--workers", "4"]).ended(0);
    nginx.end(Signal::QUIT);
}

#[test]
fn an_upgrade_is_drained_when_the_old_master_has_let_go() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(2));
    let waiting = start(&nginx, &["wait", "--reloaded", "--newer-than", "1"]);
    let (old, _) = nginx.upgrade();
    waiting.end().ended(0).says("generation 2 serves with 2 workers");
    run(&nginx, &["wait", "--drained", "--timeout", "100ms"])
        .ended(1)
        .complains("generation 1 is left: 2 serving");
    process::send(old, Signal::QUIT);
    run(&nginx, &["wait", "--drained", "--reloaded"]).ended(0);
    nginx.end(Signal::QUIT);
}

#[test]
fn a_crash_loop_is_no_reload() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(1).allow_kills());
    nginx.reload_with(|setup| setup.in_callback("on_worker_start", "kit.die()"));
    nginx.wait_for("two starts that fail", scripted::LONG, |all| all.at_least(2, Kind::WorkerStarted, 2));
    run(&nginx, &["wait", "--reloaded", "--newer-than", "1", "--timeout", "1s"])
        .ended(1)
        .complains("generation 2: 0 of 1 worker serving");
}

#[test]
fn somebody_who_may_only_read_is_answered_as_well() {
    if !process::is_root() {
        eprintln!("skipped: it takes root to become somebody else");
        return;
    }
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(2));
    let copy = nginx.at("headcount");
    let as_nobody = |args: &[&str]| {
        program::run(
            program::of_everybody(&copy, args)
                .arg("--registry")
                .arg(nginx.registry())
                .uid(65_534)
                .gid(65_534),
        )
    };
    as_nobody(&["wait", "--reloaded", "--workers", "2"]).ended(0);
    as_nobody(&["wait", "--stopped", "--timeout", "0"]).ended(1);
    as_nobody(&["reload"]).ended(4).complains("you may not signal master").complains("belongs to root");
    nginx.end(Signal::QUIT);
}

#[test]
fn a_registry_that_was_made_anew_is_looked_at() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(2));
    let waiting = Running::start(nginx.folder(), headcount(&nginx.registry(), &["wait", "--workers", "3"]));
    waiting.says("waiting: generation 1: 2 workers serving, not 3");
    scripted::quit(&nginx);
    nginx.forget_reports();
    std::fs::remove_file(nginx.registry()).expect("it was there");
    nginx.change(|setup| setup.workers(3));
    nginx.run();
    waiting.end().ended(0).says("3 workers of generation 1 serving");
    nginx.end(Signal::QUIT);
}

/// In a terminal: one line that is rewritten, and nothing of it left at the end.
#[test]
fn on_a_terminal_the_line_is_rewritten() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(2));
    let program = format!(
        "stty columns 60; exec {} wait --workers 3 --timeout 1s --registry {}",
        env!("CARGO_BIN_EXE_headcount"),
        nginx.registry().display()
    );
    // The one of util-linux, which every system has: it is a terminal.
    let ended =
        program::run(Command::new("script").args(["-qec", &program, "/dev/null"]).stdin(Stdio::null()))
            .ended(1);
    let (line, rest) = ended.out.rsplit_once("\r\u{1b}[K").expect("a line that is rewritten");
    assert!(line.contains(" of 1.0 s  generation 1: 2 workers serving, not 3"), "{ended:#?}");
    assert!(line.matches("\r\u{1b}[K").count() >= 3, "it is alive: {ended:#?}");
    assert!(!line.contains('\n'), "{ended:#?}");
    assert!(line.split("\r\u{1b}[K").all(|one| one.chars().count() < 60), "{ended:#?}");
    assert!(rest.contains("headcount:") && rest.contains("timed out after 1.0 s"), "{ended:#?}");
    nginx.end(Signal::QUIT);
}
