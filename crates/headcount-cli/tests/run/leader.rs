//! `headcount run --as-leader`: a command that runs on one of several processes.

use std::time::Duration;

use serde_json::Value;
use testkit::{Folder, Nginx, Signal, permit, process, wait};

use super::follower::{Follower, PATIENCE, headcount, registry, server};
use crate::program;

/// Notes its start with its token, and its end by SIGTERM; never ends by itself while the test runs.
fn work(own: &Folder) -> String {
    let folder = own.path().display();
    format!(
        "trap 'echo end $$ >> {folder}/notes; exit 0' TERM; echo start $$ $HEADCOUNT_LEADER_TOKEN $HEADCOUNT_LEADER >> {folder}/notes; \
         while [ -d {folder} ]; do sleep 0.01; done"
    )
}

fn start(own: &Folder, more: &[&str], script: &str) -> Follower {
    let mut command = headcount();
    command.arg("--registry").arg(registry(own)).args(["--as-leader", "cron"]).args(more);
    command.args(["--", "sh", "-c", script]);
    Follower::spawn(own, command)
}

/// What starts and ends, with the command's process, and of a start the token.
fn notes(own: &Folder) -> Vec<(String, i32, u64)> {
    let text = std::fs::read_to_string(own.at("notes")).unwrap_or_default();
    let note = |line: &str| {
        let mut words = line.split(' ');
        let what = words.next().unwrap_or_default().to_owned();
        let pid = words.next().and_then(|pid| pid.parse().ok()).expect("a pid");
        (what, pid, words.next().and_then(|token| token.parse().ok()).unwrap_or(0))
    };
    text.lines().map(note).collect()
}

/// The command that was started as this one in a row, and its token.
#[track_caller]
fn started(own: &Folder, number: usize) -> (i32, u64) {
    let found = wait::poll(PATIENCE, || {
        let starts: Vec<_> = notes(own).into_iter().filter(|(what, ..)| what == "start").collect();
        starts.get(number - 1).map(|(_, pid, token)| (*pid, *token))
    });
    found.unwrap_or_else(|| panic!("no start {number}: {:?}\n{}", notes(own), own.read("run.log")))
}

#[track_caller]
fn gone(pid: i32) {
    wait::poll(PATIENCE, || (!process::is_alive(pid)).then_some(())).expect("the process ends");
}

fn role(own: &Folder) -> Value {
    let found = program::run(program::headcount(["status", "--json", "--registry"]).arg(registry(own)));
    let found = found.ended(0).json();
    let all = found["nodes"][0]["singletons"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|x| x["name"] == "cron").unwrap_or(Value::Null)
}

/// Who leads, in the program's words, or a worker.
#[track_caller]
fn leads(own: &Folder, pid: i32) {
    wait::poll(PATIENCE, || (role(own)["holder"] == pid).then_some(()))
        .unwrap_or_else(|| panic!("{pid} does not lead: {}", role(own)));
}

fn setup(own: &Folder) -> testkit::Setup {
    server(own).workers(2).option("heartbeat_interval", "0.1").option("stall_after", "1").page(
        "/stand",
        "local ok, err = require('resty.headcount').leader('cron', {
             on_elected = function() end, on_lost = function() end })
         ngx.say(ok and 'stands' or err)",
    )
}

#[test]
fn the_command_runs_on_one_and_on_the_next_when_that_is_killed_or_told_to_end() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(setup(&own));
    let mut runs = vec![start(&own, &[], &work(&own))];
    let (mut command, mut token) = started(&own, 1);
    assert_eq!(role(&own)["token"], token);
    leads(&own, runs[0].pid());
    runs.push(start(&own, &[], &work(&own)));
    runs.push(start(&own, &[], &work(&own)));
    for run in &runs[1..] {
        run.wait_for_log("standing for cron of node");
    }
    // Killed: the kernel kills the command, too.
    runs[0].kill();
    let (second, later) = started(&own, 2);
    gone(command);
    assert!(later > token, "{later} after {token}");
    (command, token) = (second, later);
    // Told to end: the command has ended before another one is started.
    let leader = runs[1..].iter().position(|run| role(&own)["holder"] == run.pid()).expect("one leads") + 1;
    runs[leader].end();
    assert!(!process::is_alive(command));
    let (third, last) = started(&own, 3);
    assert!(last > token);
    let ends: Vec<_> = notes(&own).into_iter().map(|(what, pid, _)| (what, pid)).collect();
    assert_eq!(ends[2..], [("end".to_owned(), command), ("start".to_owned(), third)]);
    let events =
        program::run(program::headcount(["events", "--json", "--registry"]).arg(registry(&own))).ended(0).out;
    let losses = events.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let causes: Vec<_> = losses.filter(|e| e["kind"] == "leader_lost").map(|e| e["cause"].clone()).collect();
    assert_eq!(causes, ["unknown", "resigned"]);
    for run in &mut runs[1..] {
        if run.pid() != role(&own)["holder"] || process::is_alive(run.pid()) {
            run.signal(Signal::TERM);
        }
    }
    gone(third);
    nginx.end(Signal::QUIT);
}

#[test]
fn one_that_hangs_loses_it_and_ends_its_command_when_it_wakes() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(setup(&own));
    let mut first = start(&own, &[], &work(&own));
    let (command, token) = started(&own, 1);
    let mut second = start(&own, &[], &work(&own));
    second.wait_for_log("standing for cron");
    first.signal(Signal::STOP);
    let (_, later) = started(&own, 2);
    assert!(later > token);
    leads(&own, second.pid());
    assert!(process::is_alive(command), "nobody can tell it");
    first.signal(Signal::CONT);
    gone(command);
    first.wait_for_log("has lost cron");
    first.end();
    second.end();
    nginx.end(Signal::QUIT);
}

#[test]
fn a_command_that_ends_is_run_again_and_one_that_does_not_is_killed() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(setup(&own));
    let folder = own.path().display();
    let fails = format!("echo start $$ $HEADCOUNT_LEADER_TOKEN >> {folder}/notes; exit 3");
    let mut run = start(&own, &["--backoff", "20ms..100ms"], &fails);
    let tokens: Vec<_> = (1..=4).map(|number| started(&own, number).1).collect();
    assert!(tokens.iter().all(|token| *token == tokens[0]), "it keeps the role: {tokens:?}");
    run.wait_for_log("the command ended after");
    assert!(run.log().contains("exit code 3; it is run again in"), "{}", run.log());
    run.end();
    let before = notes(&own).len();
    // Neither it nor what it has started in its group hears SIGTERM.
    let deaf = format!(
        "trap '' TERM; sh -c 'echo child $$ >> {folder}/notes; while [ -d {folder} ]; do sleep 0.01; done' & \
         echo start $$ $HEADCOUNT_LEADER_TOKEN >> {folder}/notes; while [ -d {folder} ]; do sleep 0.01; done"
    );
    let mut run = start(&own, &["--grace", "100ms"], &deaf);
    run.wait_until("both run", || (notes(&own).len() == before + 2).then_some(()));
    run.end();
    for (_, pid, _) in &notes(&own)[before..] {
        gone(*pid);
    }
    nginx.end(Signal::QUIT);
}

#[test]
fn workers_come_first_and_the_server_may_stop_and_start() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(setup(&own));
    let mut run = start(&own, &[], &work(&own));
    let (first, token) = started(&own, 1);
    nginx.end(Signal::QUIT);
    nginx.run();
    nginx.ready(2);
    nginx.reload_and_settle(3);
    assert!(process::is_alive(first));
    assert_eq!((&role(&own)["token"], &role(&own)["holder"]), (&token.into(), &run.pid().into()));
    // In one request after the other each worker comes to stand for it.
    assert_eq!(nginx.get("/stand").body.trim(), "stands");
    run.wait_for_log("gives cron up: a worker is to lead");
    gone(first);
    let leader = wait::poll(PATIENCE, || {
        let holder = role(&own)["holder"].as_i64()?;
        nginx.workers().into_iter().find(|pid| i64::from(*pid) == holder)
    });
    leader.expect("a worker leads");
    // With its last candidate among the workers it comes back.
    nginx.end(Signal::QUIT);
    let (_, later) = started(&own, 2);
    assert!(later > token);
    run.end();
}

#[test]
fn it_waits_for_its_node_and_takes_part_in_a_new_registry() {
    let _permit = permit();
    let own = Folder::new();
    let mut run = start(&own, &[], &work(&own));
    run.wait_for_log("waiting for the registry");
    let nginx = Nginx::start_ready(setup(&own).allow("was removed while its node runs"));
    let (first, token) = started(&own, 1);
    nginx.end(Signal::QUIT);
    nginx.forget_reports();
    std::fs::remove_file(registry(&own)).expect("the registry");
    gone(first);
    run.wait_for_log("was removed or replaced: cron is given up");
    nginx.run();
    nginx.ready(1);
    let (_, later) = started(&own, 2);
    assert!(later > token, "also over a registry that was lost");
    run.end();
    nginx.end(Signal::QUIT);
}

#[test]
fn what_does_not_go_together_is_refused() {
    for arguments in [
        &["--as-leader", "cron"][..],
        &["--as-leader", "cron", "--on", "any=true", "--", "true"],
        &["--as-leader", "cron", "--timeout", "1s", "--", "true"],
        &["--on", "any=true", "--", "true"],
        &["--on", "any=true", "--grace", "1s"],
    ] {
        let output = headcount().args(["--registry", "/nowhere"]).args(arguments).output().expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    }
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(setup(&own));
    let mut command = headcount();
    command.arg("--registry").arg(registry(&own)).args(["--as-leader", "a b", "--", "true"]);
    let output = command.output().expect("it runs");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("allowed is 1 to 48 letters"), "{output:?}");
    nginx.end(Signal::QUIT);
    // Nothing of it is left.
    let left = wait::poll(Duration::from_secs(20), || {
        let found = program::run(program::headcount(["status", "--json", "--registry"]).arg(registry(&own)));
        (!found.out.contains("visitor")).then_some(())
    });
    assert!(left.is_some());
}
