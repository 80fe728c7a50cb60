//! Prometheus's own judgement of metrics, rules and expressions.

use std::ffi::OsStr;
use std::io::{ErrorKind, Write};
use std::process::{Command, Stdio};

/// promtool has nothing to say about these metrics. Skipped, with the reason, where it is not installed.
#[track_caller]
pub fn accepts(metrics: &str) {
    let Some((is_content, said)) = run(&["check", "metrics"], metrics) else { return };
    assert!(is_content && said.is_empty(), "promtool: {said}\n{metrics}");
}

/// promtool succeeds with these arguments. Skipped, with the reason, where it is not installed.
#[track_caller]
pub fn succeeds<A: AsRef<OsStr>>(arguments: &[A]) {
    let Some((is_content, said)) = run(arguments, "") else { return };
    assert!(is_content, "promtool: {said}");
}

/// Whether it succeeded, and what it said. `None`: it is not installed.
fn run<A: AsRef<OsStr>>(arguments: &[A], input: &str) -> Option<(bool, String)> {
    let promtool = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut promtool = match promtool {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("skipped: promtool is not installed (`scripts/setup test` brings it)");
            return None;
        }
        spawned => spawned.expect("promtool starts"),
    };
    promtool.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("promtool reads");
    let out = promtool.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    Some((out.status.success(), said.into_owned()))
}
