//! `scripts/ansi-to-svg`, which makes the pictures of the documentation.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn drawn(ansi: &str) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/ansi-to-svg");
    let mut child = Command::new(script)
        .args(["--title", "a & b", "--width", "20"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3 is there: scripts/setup test brings it");
    child.stdin.take().expect("a pipe").write_all(ansi.as_bytes()).expect("it reads");
    child.wait_with_output().expect("our own child")
}

#[test]
fn colours_blocks_and_spaces_are_drawn_in_their_places() {
    let ansi = "\x1b[1;31mbold\x1b[0m  <x>\x1b]0;a title\x07\n\x1b[7m rev \x1b[27m\x1b[38;5;208m██▒\x1b[39m\x1b[4mu\x1b[m\x1b[?25h\n\n";
    let output = drawn(ansi);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    insta::assert_snapshot!(String::from_utf8_lossy(&output.stdout));
}

#[test]
fn of_nothing_there_is_no_picture() {
    let output = drawn("");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing to draw"));
}
