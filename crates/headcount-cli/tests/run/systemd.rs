//! What is in packaging/ works.

use std::path::PathBuf;
use std::process::Command;

use testkit::{Folder, Nginx, Signal, permit};

use super::follower::{Follower, server};
use super::web::{listener, serve};

fn packaging() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../packaging")
}

#[test]
fn the_units_are_sound() {
    for (unit, instance, starts) in
        [("headcount-run@", "headcount-run@nginx", "run "), ("headcount-agent", "headcount-agent", "agent\n")]
    {
        is_sound(unit, instance, starts);
    }
}

fn is_sound(unit: &str, instance: &str, starts: &str) {
    let own = Folder::new();
    let file = packaging().join(format!("systemd/{unit}.service.in"));
    let text = std::fs::read_to_string(file).expect("the unit");
    // The program need not be installed where the test runs.
    assert_eq!(text.matches(&format!("\nExecStart=@BINDIR@/headcount {starts}")).count(), 1);
    let text = text.replace("@BINDIR@/headcount", env!("CARGO_BIN_EXE_headcount"));
    let path = own.at(&format!("{instance}.service"));
    std::fs::write(&path, text).expect("our own folder");
    let verified = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg(&path)
        .output();
    let Ok(verified) = verified else {
        eprintln!("skipped: there is no systemd-analyze");
        return;
    };
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && !said.contains(unit), "{}: {said}", verified.status);
}

#[test]
fn the_example_registers_and_deregisters() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(server(&own).workers(1));
    let (listener, url) = listener();
    // The registry is not ready at once.
    let requests = serve(listener, &[503]);
    let script = packaging().join("examples/register");
    let rule = format!("node_started,node_stopped,node_died={}", script.display());
    let mut command = Follower::command(&own, &["--on", &rule, "--backoff", "10ms"]);
    let base = url.rsplit_once('/').expect("a path").0;
    command.env("SERVICE_REGISTRY", base).env("SERVICE_NAME", "shop").env("SERVICE_PORT", "8080");
    let mut run = Follower::spawn(&own, command);
    run.wait_for_log("node_started at 1 to rule 1: delivered");
    nginx.end(Signal::QUIT);
    run.wait_for_log("delivered in");
    run.wait_until("the stop", || (requests.lock().expect("no thread has failed").len() == 3).then_some(()));
    run.end();
    let requests = requests.lock().expect("no thread has failed").clone();
    assert_eq!(requests[0].head.lines().next(), Some("PUT /v1/agent/service/register HTTP/1.1"));
    assert_eq!(requests[0].body, requests[1].body);
    let body = &requests[1].body;
    assert_eq!((body["Name"].as_str(), body["Port"].as_u64()), (Some("shop"), Some(8080)));
    let id = body["ID"].as_str().expect("an id");
    assert!(id.starts_with("shop-nginx-"), "{id}");
    let deregister = format!("PUT /v1/agent/service/deregister/{id} HTTP/1.1");
    assert_eq!(requests[2].head.lines().next(), Some(deregister.as_str()));
}
