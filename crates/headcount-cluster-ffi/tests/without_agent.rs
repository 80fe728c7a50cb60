//! `libheadcount-cluster.so` as C programs see it, without an agent. What they check stands in `tests/c`. With agents and a real etcd:
//! `real.rs`.

mod support;

use std::path::Path;
use std::process::Command;

fn tool(name: &str, arguments: &[&str]) -> String {
    let output = Command::new(name).args(arguments).arg(support::library()).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn it_is_never_unloaded_has_a_name_and_exports_its_own_alone() {
    let dynamic = tool("readelf", &["-d"]);
    let flags = dynamic.lines().find(|line| line.contains("FLAGS_1")).unwrap_or_default();
    assert!(flags.contains("NODELETE"), "{dynamic}");
    assert!(dynamic.contains("Library soname: [libheadcount-cluster.so]"), "{dynamic}");
    let symbols = tool("nm", &["-D", "--defined-only"]);
    let strangers: Vec<_> = symbols.lines().filter(|line| !line.contains(" headcount_cluster_")).collect();
    assert!(strangers.is_empty() && symbols.lines().count() > 20, "{strangers:?}");
}

#[test]
fn bad_arguments_are_named_and_do_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let program = support::compile(Path::new("tests/c/misuse.c"), folder.path());
    let output = Command::new(program).arg(folder.path().join("agent.sock")).output().unwrap();
    assert!(output.status.success(), "{}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
}
