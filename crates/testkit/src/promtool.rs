//! Prometheus's own judgement of metrics.

use std::io::Write;
use std::process::{Command, Stdio};

/// promtool has nothing to say about these metrics.
#[track_caller]
pub fn accepts(metrics: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool (scripts/setup test installs it)");
    promtool.stdin.take().expect("a pipe").write_all(metrics.as_bytes()).expect("promtool reads");
    let out = promtool.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.is_empty(), "promtool: {said}\n{metrics}");
}
