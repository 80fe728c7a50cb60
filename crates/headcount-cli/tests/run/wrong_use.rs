//! What is refused, with which code, and in which words.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::process::Output;

use testkit::{Folder, Nginx, permit};

use super::follower::{Follower, headcount, registry, server};

fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = headcount().args(arguments).output().expect("it runs");
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

#[test]
fn a_rule_that_is_none_is_refused_with_what_is_allowed() {
    for (arguments, said) in [
        (&["--on", "worker_gone=true"][..], "allowed are generation_started, generation_ended"),
        (&["--on", "worker_gone=true"][..], "node_started, node_stopped, node_died, lost, any"),
        (&["--on", "worker_died"][..], "there is no command"),
        (&["--on", "worker_died="][..], "the command is empty"),
        (&["--on", "any=http://"][..], "is not a URL"),
        (&["--on", "any=true", "--on", "any=true"][..], "is given twice"),
        (&["--on", "any=true", "--queue", "0"][..], "0 is not in 1..=1048576"),
        (&["--on", "any=true", "--backoff", "2s..1s"][..], "the second time must be the longer one"),
        (&["--on", "any=true", "--timeout", "soon"][..], "allowed are a number and ms, s, m, h or d"),
        (&["--on", "any=true", "--timeout", "0"][..], "it must be at least 1ms"),
        (&["--on", "any=true", "--from", "monday"][..], "possible values: run, now, oldest"),
        (&[][..], "--on <EVENT[,EVENT…]=COMMAND>"),
    ] {
        let (code, text) = refused(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {text}");
        assert!(text.contains(said), "{arguments:?}: {said:?} is not in {text}");
    }
}

#[test]
fn a_state_file_that_cannot_be_gone_on_with_is_refused_and_left_alone() {
    let own = Folder::new();
    for (name, content, said) in [
        ("version", r#"{"headcount_run": 7}"#, "has version 7, this is headcount "),
        ("corrupt", r#"{"headcount_run": 1, "next_seq": "#, "is corrupt: EOF"),
        ("missing", r#"{"headcount_run": 1, "next_seq": 3}"#, "is corrupt: missing field"),
        ("empty", "", "is corrupt: EOF"),
        ("stranger", r#"{"name": "something else"}"#, "is not a state file of `headcount run`"),
    ] {
        own.write(name, content);
        let path = own.at(name).display().to_string();
        let (code, text) = refused(&["--registry", "/nowhere", "--state", &path, "--on", "any=true"]);
        assert_eq!(code, Some(4), "{name}: {text}");
        assert!(text.contains(said) && text.contains(&path), "{name}: {text}");
        assert_eq!(own.read(name), content);
    }
    let path = own.at("no/such/folder/state").display().to_string();
    let (code, text) = refused(&["--registry", "/nowhere", "--state", &path, "--on", "any=true"]);
    assert_eq!(code, Some(4));
    assert!(text.contains("cannot create") && text.contains("--state"), "{text}");
}

#[test]
fn what_is_no_registry_or_of_another_node_is_refused() {
    let _permit = permit();
    let own = Folder::new();
    own.write("run/garbage.registry", &"x".repeat(8192));
    let garbage = own.at("run/garbage.registry").display().to_string();
    let state = own.at("state.json").display().to_string();
    let (code, text) = refused(&["--registry", &garbage, "--state", &state, "--on", "any=true"]);
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("is no headcount registry") && text.contains(&garbage), "{text}");

    let _nginx = Nginx::start_ready(server(&own).workers(1));
    let mut run = Follower::start(&own, &["--on", "any=true"]);
    run.wait_for_log("worker_started at 2");
    run.end();
    let mut known: serde_json::Value = serde_json::from_str(&own.read("state.json")).expect("a state");
    known["registry"]["node"] = "another".into();
    own.write("state.json", &known.to_string());
    let path = registry(&own).display().to_string();
    let (code, text) = refused(&["--registry", &path, "--state", &state, "--on", "any=true"]);
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("the state file is for node another"), "{text}");
}

#[test]
fn several_nodes_and_none_named_is_refused() {
    let own = Folder::new();
    own.write("run/a.registry", "");
    own.write("run/b.registry", "");
    let output = headcount().env("HEADCOUNT_RUNTIME_DIR", own.at("run")).args(["--on", "any=true"]).output();
    let output = output.expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains("there are 2 nodes on this host: choose one with --node"), "{text}");
}

#[test]
fn links_in_the_place_of_its_files_are_not_followed() {
    let own = Folder::new();
    let state = own.at("state.json").display().to_string();
    own.write("precious", "precious\n");
    for name in ["state.json.lock", "state.json"] {
        std::os::unix::fs::symlink(own.at("precious"), own.at(name)).expect("our own folder");
        let (code, text) = refused(&["--registry", "/nowhere", "--state", &state, "--on", "any=true"]);
        assert_eq!(code, Some(4), "{name}: {text}");
        std::fs::remove_file(own.at(name)).expect("it is there");
    }
    // Written beside it, then put in its place.
    let _permit = permit();
    let nginx = Nginx::start_ready(server(&own).workers(1));
    std::os::unix::fs::symlink(own.at("precious"), own.at("state.json.new")).expect("our own folder");
    let mut run = Follower::start(&own, &["--on", "any=true"]);
    run.wait_until("a state file", || own.at("state.json").exists().then_some(()));
    run.end();
    drop(nginx);
    assert_eq!(own.read("precious"), "precious\n");
}

#[test]
fn a_state_file_of_another_user_is_not_gone_by() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only root can give a file to another user");
    }
    let own = Folder::new();
    let state = own.at("state.json").display().to_string();
    let mut victim = std::process::Command::new("sleep").arg("1000").process_group(0).spawn().expect("sleep");
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", victim.id())).expect("it runs");
    let start_time: u64 = stat.split(' ').nth(21).and_then(|field| field.parse().ok()).expect("a number");
    let flight = serde_json::json!({
        "delivery": { "at": 1, "event": "any", "rule": "0" },
        "attempt": 1, "failures": 0, "running": true, "interrupted": false, "document": {},
        "process": { "pid": victim.id(), "start_time": start_time },
    });
    let known = serde_json::json!({
        "headcount_run": 1, "registry": null, "next_seq": 1, "node_is_up": false, "ask": "never", "finished": [],
        "in_flight": flight,
    });
    own.write("state.json", &known.to_string());
    chown(own.at("state.json"), Some(65534), None).expect("root may");
    let run = ["--registry", "/nowhere", "--state", &state, "--timeout", "100ms", "--on", "any=true"];
    let (code, text) = refused(&run);
    assert!(code == Some(4) && text.contains("belongs to uid 65534"), "{text}");
    assert!(victim.try_wait().expect("our own child").is_none(), "it was ended");
    victim.kill().expect("our own child");
    victim.wait().expect("our own child");
}

#[test]
fn what_is_logged_cannot_reach_the_terminal() {
    let own = Folder::new();
    let registry = own.at("\u{1b}[2J.registry").display().to_string();
    let mut command = headcount();
    command.args(["--registry", &registry, "--state", &own.at("state.json").display().to_string()]);
    command.args(["--on", "any=true"]).env("CLICOLOR_FORCE", "1");
    let mut run = Follower::spawn(&own, command);
    run.wait_until("its waiting", || own.read("run.log").contains("waiting for the registry").then_some(()));
    run.end();
    assert!(run.log().contains("\\u{1b}[2J.registry"), "{:?}", run.log());
}

#[test]
fn quiet_is_quiet_as_long_as_all_is_well() {
    let _permit = permit();
    let own = Folder::new();
    let _nginx = Nginx::start_ready(server(&own).workers(1));
    let seen = own.at("seen");
    let rule = format!("worker_started={}", super::record::cat_to(&seen));
    let mut run = Follower::start(
        &own,
        &["--quiet", "--on", &rule, "--on", "generation_started=exit 3", "--retries", "0"],
    );
    run.wait_until("the worker's start", || seen.exists().then_some(()));
    run.end();
    assert_eq!(run.log().lines().count(), 1, "{}", run.log());
    assert!(run.log().contains("failed for good after 1 attempt: exit code 3"), "{}", run.log());
}
