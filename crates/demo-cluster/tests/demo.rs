//! The demo as `make demo-cluster` runs it, and what it leaves behind: nothing.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use testkit::net::Net;
use testkit::{Signal, permit, process};

fn demo() -> Option<Command> {
    Net::new().inspect_err(|why| eprintln!("SKIPPED: there is no network of our own: {why}")).ok()?;
    Some(Command::new(env!("CARGO_BIN_EXE_headcount-demo-cluster")))
}

#[test]
fn each_host_is_told_each_event_exactly_once() {
    let Some(mut demo) = demo() else { return };
    let _permit = permit();
    let done = demo.output().expect("it can be started");
    let said = String::from_utf8_lossy(&done.stdout);
    let err = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}{err}");
    assert!(said.contains("each of them exactly once"), "{said}");
    for what in ["is lost", "has joined", "has left", "died by SIGKILL", "was lost", "orphaned"] {
        assert!(said.contains(what), "{what}:\n{said}");
    }
}

#[test]
fn nothing_is_left_when_it_is_interrupted() {
    let Some(mut demo) = demo() else { return };
    let _permit = permit();
    let mut child = demo.stdout(Stdio::piped()).spawn().expect("it can be started");
    let out = BufReader::new(child.stdout.take().expect("it is piped"));
    // etcd and all servers run.
    let mut lines = out.lines().map_while(Result::ok);
    lines.find(|line| line.starts_with("3. ")).expect("it comes to the third act");
    let all = process::descendants(child.id() as i32);
    assert!(all.len() > 10, "{all:?}");
    process::send(child.id() as i32, Signal::INT);
    lines.for_each(drop);
    assert_eq!(child.wait().expect("our own child").code(), Some(130));
    let left: Vec<_> = all.into_iter().filter(|&pid| process::is_alive(pid)).map(process::title).collect();
    assert!(left.is_empty(), "{left:?}");
}
