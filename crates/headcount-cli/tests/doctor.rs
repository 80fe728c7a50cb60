//! `headcount doctor` on a real nginx.

mod program;

use std::os::unix::process::CommandExt;
use std::path::Path;

use serde_json::Value;
use testkit::{Integration, Nginx, Setup, Signal, permit, permit_alone, process};

use program::{Run, dead, headcount, kill_all, run};

fn nginx() -> Nginx {
    let setup =
        Setup::new(Integration::Lua).workers(2).default_place().option("node", "\"shop\"").allow_kills();
    Nginx::start_ready(setup)
}

/// Over all of the server's own folder, as if that were the host's.
fn doctor(nginx: &Nginx, more: &[&str]) -> Run {
    run(headcount(["doctor"]).args(more).env("HEADCOUNT_RUNTIME_DIR", nginx.at("run")))
}

fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("our folder").flatten();
    let mut names: Vec<_> = entries.map(|e| e.file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

const ALL: [&str; 2] = ["shop.registry", "shop.registry.lock"];

/// The findings' texts.
fn findings(document: &Value) -> Vec<&str> {
    let checks = document["checks"].as_array().expect("a list").iter();
    checks.filter(|c| c["level"] == "finding").map(|c| c["text"].as_str().expect("a text")).collect()
}

#[test]
fn a_node_that_lives_is_well_and_stays() {
    let _permit = permit();
    let nginx = nginx();
    let document = doctor(&nginx, &["--json"]).ended(0).json();
    assert_eq!((findings(&document).len(), &document["kernel"]["pidfd"]), (0, &true.into()), "{document:#}");
    doctor(&nginx, &[])
        .ended(0)
        .says("no problems found")
        .says("node shop, format 3")
        .says("3 processes alive")
        .says("lock file: belongs to uid")
        .says("of 1024 slots used");
    doctor(&nginx, &["--clean", "--node", "shop"]).ended(0);
    // Nor when all of it stands still.
    let all: Vec<_> = nginx.workers().into_iter().chain([nginx.master()]).collect();
    all.iter().for_each(|&pid| nginx.freeze(pid));
    doctor(&nginx, &["--clean"]).ended(0);
    all.iter().for_each(|&pid| nginx.thaw(pid));
    assert_eq!(files(&nginx.at("run")), ALL);
    nginx.must_serve();
    nginx.end(Signal::QUIT);
}

#[test]
fn a_node_that_was_killed_is_removed_and_nothing_else_is() {
    let _permit = permit();
    let nginx = nginx();
    kill_all(&nginx);
    let folder = nginx.at("run");
    std::fs::write(folder.join("shop.registry.mine"), "not theirs").expect("write");
    std::fs::write(folder.join("other.registry"), "something else").expect("write");
    let document = doctor(&nginx, &["--json"]).ended(1).json();
    let found = findings(&document);
    assert!(found.iter().any(|text| text.contains("nobody is alive")), "{document:#}");
    assert!(found.iter().any(|text| text.contains("other.registry")), "{document:#}");
    doctor(&nginx, &[]).ended(1).says("FIX").says("headcount doctor --clean");
    assert_eq!(files(&folder).len(), 4, "it only looks");

    let text = doctor(&nginx, &["--clean"]).ended(1).says("other.registry is no headcount registry").out;
    for name in ALL {
        assert!(text.contains(&format!("removed {}", folder.join(name).display())), "{text}");
    }
    assert_eq!(files(&folder), ["other.registry", "shop.registry.mine"]);
    std::fs::remove_file(folder.join("other.registry")).expect("remove");
    doctor(&nginx, &[]).ended(0);
    // And the server comes back as if nothing had been there.
    nginx.forget_reports();
    nginx.run();
    doctor(&nginx, &[]).ended(0).says("node shop");
    nginx.end(Signal::QUIT);
}

#[test]
fn an_orphan_keeps_its_registry() {
    let _permit = permit();
    let nginx = nginx();
    let (master, workers) = (nginx.master(), nginx.workers());
    process::send(master, Signal::KILL);
    process::send(workers[0], Signal::KILL);
    dead(&[master, workers[0]]);
    doctor(&nginx, &["--clean"]).ended(0).says("alive");
    assert_eq!(files(&nginx.at("run")), ALL);
    kill_all(&nginx);
    doctor(&nginx, &["--clean"]).ended(0);
    assert_eq!(files(&nginx.at("run")), [""; 0]);
}

#[test]
fn a_registry_that_was_removed_under_its_server() {
    let _permit = permit();
    let nginx = nginx();
    std::fs::remove_file(nginx.at("run/shop.registry")).expect("remove");
    doctor(&nginx, &[]).ended(1).says("without a registry").says("if its server runs, restart it");
    doctor(&nginx, &["--clean"]).ended(1).says("not removed").says("in use");
    assert_eq!(files(&nginx.at("run")), &ALL[1..]);
    kill_all(&nginx);
    doctor(&nginx, &["--clean"]).ended(0).says("removed");
    assert_eq!(files(&nginx.at("run")), [""; 0]);
}

#[test]
fn a_node_without_a_file_is_found() {
    // Other tests' doctors would find it, too.
    let _permit = permit_alone();
    let setup = Setup::new(Integration::Lua).workers(2).option("node", "\"lost\"");
    let nginx = Nginx::prepare(setup);
    std::fs::write(nginx.registry(), "somebody's notes").expect("our own folder");
    nginx.run();
    nginx.ready(1);
    doctor(&nginx, &[])
        .ended(1)
        .says("node lost")
        .says("runs on memory of its own (3 processes")
        .says("fix: ");
    // Whoever asks for one registry is not told of others.
    doctor(&nginx, &["--registry", "/nowhere"]).ended(4);
    nginx.end(Signal::QUIT);
    let folder = tempfile::tempdir().expect("a folder");
    run(headcount(["doctor"]).env("HEADCOUNT_RUNTIME_DIR", folder.path())).ended(0);
}

#[test]
fn a_name_that_was_taken_is_shown() {
    let _permit = permit();
    let first = nginx();
    let run_folder = format!("\"{}/shop.registry\"", first.at("run").display());
    let setup =
        Setup::new(Integration::Lua).workers(1).option("node", "\"shop\"").option("path", &run_folder);
    let second = Nginx::start_ready(setup);
    let line = second.wait_for_log("whose name it is", |line| line.contains("is in use"));
    assert!(line.contains("[error]"), "{line}");
    doctor(&first, &[])
        .ended(0)
        .says("note")
        .says("if its server asks for the name shop: that is in use by another");
    second.end(Signal::QUIT);
    first.end(Signal::QUIT);
}

#[test]
fn an_ordinary_user_is_told_what_he_may_not_do() {
    if !process::is_root() {
        return eprintln!("SKIPPED: only root can become somebody else");
    }
    let _permit = permit();
    let nginx = nginx();
    let copy = nginx.at("headcount");
    let nobody = |more: &[&str]| {
        let mut command = program::of_everybody(&copy, ["doctor"]);
        run(command.args(more).env("HEADCOUNT_RUNTIME_DIR", nginx.at("run")).uid(65_534).gid(65_534))
    };
    nobody(&[]).ended(0).says("processes alive");
    nginx.end(Signal::QUIT);
    nobody(&["--clean"]).ended(1).says("not removed").says("belongs to uid 0");
    assert_eq!(files(&nginx.at("run")), ALL);
    // What he may not even read.
    testkit::chmod(&nginx.at("run/shop.registry"), 0o600);
    nobody(&[]).ended(4).says("run headcount doctor as the registry's owner or as root");
    testkit::chmod(&nginx.at("run"), 0o700);
    nobody(&[]).ended(4).says("cannot be read");
}

#[test]
fn without_any_node_and_with_wrong_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let on =
        |more: &[&str]| run(headcount(["doctor"]).args(more).env("HEADCOUNT_RUNTIME_DIR", folder.path()));
    on(&[]).ended(0).says("kernel ").says("no problems found");
    on(&["--node", "shop"]).ended(4).complains("there is no node shop");
    let missing = folder.path().join("missing.registry");
    run(headcount(["doctor", "--registry"]).arg(&missing)).ended(4).says("missing.registry");
    on(&["--wipe"]).ended(2).complains("--wipe");
}
