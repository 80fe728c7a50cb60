//! `headcount status` on a real nginx.

mod program;

use std::os::unix::process::CommandExt;
use std::process::Command;

use serde_json::Value;
use testkit::wait::PATIENCE;
use testkit::{Integration, Kind, Nginx, Setup, Signal, permit, process};

use program::{Run, dead, headcount, kill_all, run, run_on_terminal};

fn quick() -> Setup {
    Setup::new(Integration::Lua).option("heartbeat_interval", "0.2").option("stall_after", "1").allow_kills()
}

fn command(nginx: &Nginx, more: &[&str]) -> Command {
    let mut command = headcount(["status", "--registry"]);
    command.arg(nginx.registry()).args(more);
    command
}

fn status(nginx: &Nginx) -> Run {
    run(&mut command(nginx, &[])).ended(0)
}

/// The one node, as a document.
fn document(nginx: &Nginx) -> Value {
    let mut all = run(&mut command(nginx, &["--json"])).ended(0).json();
    assert_eq!(
        (all["schema"].as_u64(), all["nodes"].as_array().map(Vec::len)),
        (Some(1), Some(1)),
        "{all:#}"
    );
    all["nodes"][0].take()
}

fn processes<'a>(node: &'a Value, role: &str) -> Vec<&'a Value> {
    node["processes"].as_array().expect("a list").iter().filter(|p| p["role"] == role).collect()
}

fn state(node: &Value, pid: i32) -> String {
    let found = node["processes"].as_array().expect("a list").iter().find(|p| p["pid"] == pid);
    found.map_or("not there", |p| p["state"].as_str().expect("a name")).to_owned()
}

/// What stands in the row of a process, of the text for people.
fn row(text: &str, pid: i32) -> Vec<&str> {
    let pid = pid.to_string();
    let rows =
        text.lines().skip_while(|line| !line.contains("HEARTBEAT")).take_while(|line| !line.is_empty());
    let mut rows = rows.map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.find(|row| row.get(1) == Some(&&*pid)).unwrap_or_else(|| panic!("no row of {pid}:\n{text}"))
}

#[test]
fn a_healthy_node_with_its_four_workers() {
    let _permit = permit();
    let nginx = Nginx::start_ready(quick());
    let node = document(&nginx);
    let mut told: Vec<_> =
        processes(&node, "worker").iter().map(|p| p["pid"].as_i64().expect("a pid")).collect();
    let mut truth: Vec<_> = nginx.workers().into_iter().map(i64::from).collect();
    told.sort_unstable();
    truth.sort_unstable();
    assert_eq!(told, truth);
    assert_eq!(processes(&node, "master")[0]["pid"], nginx.master());
    assert_eq!(node["nobody_is_alive"], false);
    let generation = &node["generations"][0];
    assert_eq!((&generation["expected"], &generation["mine"]), (&4.into(), &4.into()), "{generation:#}");
    assert!(truth.contains(&node["sentinel"].as_i64().expect("a sentinel")));
    assert!(node.get("holder").is_none(), "{node:#}");

    let text = status(&nginx).says("4 workers, all serving").says("4 of 4").says("node lock: free").out;
    assert!(
        text.contains("no deaths, no respawns") && text.contains(&nginx.registry().display().to_string())
    );
    for pid in nginx.workers() {
        assert_eq!(row(&text, pid)[3], "serving", "{text}");
    }
    for line in text.lines().skip(1) {
        assert!(line.chars().count() <= 80, "{line}");
    }
    nginx.end(Signal::QUIT);
    let text = status(&nginx).says("NOBODY IS ALIVE: its server was stopped").out;
    assert!(!text.contains("HEARTBEAT"), "{text}");
}

/// The names and labels of all samples, and the value of one.
fn series(metrics: &str) -> Vec<&str> {
    let samples = metrics.lines().filter(|line| !line.starts_with('#'));
    samples.map(|line| line.rsplit_once(' ').expect("a value").0).collect()
}

#[test]
fn its_metrics_count_on_through_a_reload_and_get_no_new_series_by_it() {
    let _permit = permit();
    let nginx = Nginx::start_ready(quick());
    let metrics = || run(&mut command(&nginx, &["--metrics"])).ended(0).out;
    let name = document(&nginx)["node"].as_str().expect("a name").to_owned();
    let before = metrics();
    testkit::promtool::accepts(&before);
    let started =
        |number| format!("headcount_events_total{{kind=\"worker_started\",node=\"{name}\"}} {number}\n");
    assert!(before.contains(&started(4)), "{before}");
    nginx.reload_and_settle(2);
    nginx.wait_for("the old ones to be gone", PATIENCE, |all| all.at_least(1, Kind::GenerationEnded, 1));
    let after = nginx.wait_until("the first look at the new ones alone", || {
        let metrics = metrics();
        metrics.contains(&format!("headcount_old_generations{{node=\"{name}\"}} 0\n")).then_some(metrics)
    });
    assert!(after.contains(&started(8)), "{after}");
    assert_eq!(series(&before), series(&after));
    kill_all(&nginx);
    let dead = metrics();
    assert!(dead.contains(&format!("headcount_node_up{{node=\"{name}\"}} 0\n")), "{dead}");
}

#[test]
fn a_worker_that_drains_behind_a_slow_client_and_why() {
    let _permit = permit();
    let nginx = Nginx::start_ready(quick());
    let client = nginx.slow_client();
    nginx.reload_and_settle(2);
    nginx.wait_for("the three others to leave", PATIENCE, |all| all.at_least(3, Kind::WorkerExited, 1));
    let node = document(&nginx);
    assert_eq!(state(&node, client.worker), "draining");
    let generations = node["generations"].as_array().expect("a list");
    let short: Vec<_> =
        generations.iter().map(|g| (&g["id"], &g["cause"], &g["mine"], &g["draining"])).collect();
    let json = |n: u64| Value::from(n);
    let (start, reload) = (Value::from("start"), Value::from("reload"));
    let expected = [(&json(1), &start, &json(1), &json(1)), (&json(2), &reload, &json(4), &json(0))];
    assert_eq!(short, expected, "{node:#}");
    let text = status(&nginx).says("5 workers: 1 draining, 4 serving").out;
    assert_eq!(row(&text, client.worker)[3], "draining");
    assert!(text.contains("generation 1 has been draining for"), "{text}");
    assert!(text.contains("another generation has taken over"), "{text}");
    client.finish();
    nginx.wait_for("the end of generation 1", PATIENCE, |all| all.at_least(1, Kind::GenerationEnded, 1));
    let text = status(&nginx).says("4 workers, all serving").out;
    assert!(!text.contains("drained"), "{text}");
    nginx.end(Signal::QUIT);
}

#[test]
fn a_worker_that_stands_and_how_long_it_has() {
    let _permit = permit();
    let nginx = Nginx::start_ready(quick());
    let victim = nginx.workers()[1];
    nginx.freeze(victim);
    nginx.wait_until("it to be shown as stalled", || {
        (state(&document(&nginx), victim) == "stalled").then_some(())
    });
    let text = status(&nginx).says("1 stalled").says("3 of 4").out;
    assert_eq!(row(&text, victim)[3], "stalled");
    nginx.thaw(victim);
    nginx.wait_until("it to serve again", || (state(&document(&nginx), victim) == "serving").then_some(()));
    nginx.end(Signal::QUIT);
}

#[test]
fn a_dead_worker_that_nobody_has_asked_for_is_shown_as_died() {
    let _permit = permit();
    let nginx = Nginx::start_ready(quick());
    let (master, workers) = (nginx.master(), nginx.workers());
    // Without a master that waits for it, it stays in the list of processes.
    nginx.freeze(master);
    process::send(workers[0], Signal::KILL);
    dead(&[workers[0]]);
    // From here on, at no instant anything else: in the table, or reported by the sentinel and so among the deaths.
    let mut reported = false;
    nginx.wait_until("the sentinel's report", || {
        let node = document(&nginx);
        let deaths = node["deaths"].as_array().expect("a list");
        reported = deaths.iter().any(|d| d["pid"] == workers[0]);
        match state(&node, workers[0]).as_str() {
            "died" => reported.then_some(()),
            "not there" if reported => Some(()),
            other => panic!("a dead worker is shown as {other}: {node:#}"),
        }
    });
    let text = status(&nginx).says("1 death").out;
    let deaths: String = text.lines().skip_while(|line| !line.contains("DIED")).collect();
    assert!(deaths.contains(&workers[0].to_string()), "{text}");

    // All of them stand: nobody is there to report anything.
    for &pid in &workers[1..] {
        nginx.freeze(pid);
    }
    process::send(workers[1], Signal::KILL);
    dead(&[workers[1]]);
    let node = document(&nginx);
    assert_eq!(state(&node, workers[1]), "died", "{node:#}");
    assert_eq!(row(&status(&nginx).out, workers[1])[3], "died");
    // And all of them die while the master stands.
    for &pid in &workers[2..] {
        process::send(pid, Signal::KILL);
        dead(&[pid]);
    }
    let node = document(&nginx);
    for &pid in &workers[1..] {
        assert_eq!(state(&node, pid), "died", "{node:#}");
    }
    assert_eq!((&node["total"], &node["nobody_is_alive"]), (&0.into(), &false.into()));
    nginx.thaw(master);
    nginx.wait_until("new workers", || (document(&nginx)["total"] == 4).then_some(()));
    status(&nginx).says("respawn");
    nginx.end(Signal::QUIT);
}

#[test]
fn a_node_that_was_killed_as_a_whole() {
    let _permit = permit();
    let nginx = Nginx::start_ready(quick());
    let workers = nginx.workers();
    // The master first, or it replaces them; nobody reports while all stand.
    nginx.freeze(nginx.master());
    for &pid in &workers {
        nginx.freeze(pid);
    }
    kill_all(&nginx);
    let text = status(&nginx)
        .says("NOBODY IS ALIVE: 5 processes died, and no process is left to report it.")
        .says("no workers; not counted: 4 died")
        .out;
    for &pid in &workers {
        assert_eq!(row(&text, pid)[3], "died", "{text}");
    }
    assert_eq!(document(&nginx)["nobody_is_alive"], true);
}

#[test]
fn orphans_of_a_killed_master() {
    let _permit = permit();
    let nginx = Nginx::start_ready(quick());
    let master = nginx.master();
    let workers = nginx.workers();
    process::send(master, Signal::KILL);
    dead(&[master]);
    // A look in the moment in which its record changes says only that.
    let text = nginx.wait_until("the lost master in the status", || {
        Some(status(&nginx).out).filter(|text| text.contains("MASTER LOST"))
    });
    assert!(text.contains(&format!("{master} gone")), "{text}");
    for &pid in &workers {
        assert_eq!(row(&text, pid)[3], "orphaned", "{text}");
    }
}

#[test]
fn a_crash_loop_is_called_one() {
    let _permit = permit();
    let nginx = Nginx::start_ready(quick().workers(2));
    assert!(!status(&nginx).out.contains("CRASH LOOP"));
    let mut victim = nginx.workers()[0];
    for nth in 1..=3 {
        process::send(victim, Signal::SEGV);
        victim = nginx.wait_for("its replacement", PATIENCE, |all| {
            all.at_least(nth, Kind::WorkerDied, 1)?;
            all.at_least(2 + nth, Kind::WorkerStarted, 1)?;
            all.of(Kind::WorkerStarted).last().map(|r| r.pid())
        });
    }
    let text = status(&nginx).says("CRASH LOOP: 3 workers died").says("3 deaths, 3 respawns").out;
    // Without the cause only where the kernel does not tell.
    assert!(text.contains("SIGSEGV") || text.contains("cause unknown"), "{text}");
    let node = document(&nginx);
    assert_eq!(
        (&node["recent"]["crash_loop"], &node["recent"]["respawns"]),
        (&true.into(), &3.into()),
        "{node:#}"
    );
    kill_all(&nginx);
    // The server's log says that workers were killed by a signal that no test expects otherwise.
    nginx.forget_reports();
}

#[test]
fn who_holds_the_lock_in_a_slow_callback() {
    let _permit = permit();
    let nginx = Nginx::start_ready(quick().workers(2).in_callback("on_worker_died", "kit.block(600)"));
    process::send(nginx.workers()[0], Signal::KILL);
    let teller =
        nginx.wait_for("the callback", PATIENCE, |all| all.of(Kind::WorkerDied).first().map(|r| r.runner));
    let node = document(&nginx);
    let holder = &node["holder"];
    assert_eq!((&holder["pid"], &holder["callback"]), (&teller.into(), &"worker_died".into()), "{node:#}");
    assert!(holder["held_for"].as_f64() >= holder["callback_for"].as_f64(), "{holder}");
    status(&nginx).says(&format!("(pid {teller}) for ")).says("callback of");
    // The registry still names it; the kernel knows better.
    kill_all(&nginx);
    assert!(document(&nginx).get("holder").is_none());
    status(&nginx).says("node lock: free").says("NOBODY IS ALIVE");
}

#[test]
fn an_ordinary_user_sees_what_root_sees() {
    if !process::is_root() {
        return eprintln!("SKIPPED: only root can become somebody else");
    }
    let _permit = permit();
    let nginx = Nginx::start_ready(quick());
    let copy = nginx.at("headcount");
    let nobody = |more: &[&str]| {
        let mut command = program::of_everybody(&copy, ["status", "--registry"]);
        run(command.arg(nginx.registry()).args(more).uid(65_534).gid(65_534)).ended(0)
    };
    let as_nobody = || nobody(&["--json"]).json()["nodes"][0].take();
    let text = nobody(&[]).says("4 workers, all serving").out;
    for pid in nginx.workers() {
        assert_eq!(row(&text, pid)[3], "serving", "{text}");
    }
    // What is left of a dead worker still has its number, and is not taken for alive.
    let workers = nginx.workers();
    nginx.freeze(nginx.master());
    for &pid in &workers {
        nginx.freeze(pid);
    }
    process::send(workers[0], Signal::KILL);
    dead(&[workers[0]]);
    for node in [as_nobody(), document(&nginx)] {
        assert_eq!(state(&node, workers[0]), "died", "{node:#}");
        assert_eq!(node["nobody_is_alive"], false);
        let unknown = node["processes"].as_array().expect("a list").iter();
        assert_eq!(unknown.filter(|p| p.get("unknown_because").is_some()).count(), 0, "{node:#}");
    }
    kill_all(&nginx);
    assert_eq!(as_nobody()["nobody_is_alive"], true);
    nobody(&[]).says("NOBODY IS ALIVE: 5 processes died");
}

#[test]
fn colours_only_where_somebody_sees_them() {
    let _permit = permit();
    let nginx = Nginx::start_ready(quick().workers(1));
    assert!(!status(&nginx).out.contains('\u{1b}'), "a pipe is no terminal");
    let always = run(&mut command(&nginx, &["--color=always"])).ended(0).out;
    assert!(always.contains("\u{1b}[32mserving"), "{always:?}");
    let (code, text) = run_on_terminal(&mut command(&nginx, &[]));
    assert!(code == Some(0) && text.contains("\u{1b}[32mserving"), "{text:?}");
    let (code, text) = run_on_terminal(command(&nginx, &[]).env("NO_COLOR", "1"));
    assert!(code == Some(0) && text.contains("serving") && !text.contains('\u{1b}'), "{text:?}");
    let (code, text) = run_on_terminal(&mut command(&nginx, &["--color=never"]));
    assert!(code == Some(0) && text.contains("serving") && !text.contains('\u{1b}'), "{text:?}");
    nginx.end(Signal::QUIT);
}

#[test]
fn every_node_of_the_host_also_beside_one_that_cannot_be_read() {
    let _permit = permit();
    let setup = |name: &str| quick().workers(1).default_place().option("node", &format!("\"{name}\""));
    let nginx = Nginx::start_ready(setup("here"));
    let folder = nginx.at("run");
    let all = |more: &[&str]| run(headcount(["status"]).args(more).env("HEADCOUNT_RUNTIME_DIR", &folder));
    all(&[]).ended(0).says("node here");
    all(&["--node", "here"]).ended(0).says("node here");
    all(&["--node", "there"]).ended(4).complains("there is no node there; there are: here");
    std::fs::write(folder.join("spoiled.registry"), "this is none").expect("write");
    let told = all(&[]).ended(4).says("node here").says("1 worker, serving").says("spoiled.registry");
    assert!(told.out.contains("cannot be read"), "{}", told.out);
    let document = all(&["--json"]).ended(4).json();
    assert_eq!(document["nodes"][0]["node"], "here");
    assert_eq!(document["unreadable"][0]["kind"], "not_a_registry");
    nginx.end(Signal::QUIT);
}

#[test]
fn without_any_node() {
    let folder = tempfile::tempdir().expect("a folder");
    let none =
        |more: &[&str]| run(headcount(["status"]).args(more).env("HEADCOUNT_RUNTIME_DIR", folder.path()));
    none(&[]).ended(4).complains("no node was found on this host").complains("--registry");
    let document = none(&["--json"]).ended(4).json();
    assert_eq!(document["nodes"].as_array().map(Vec::len), Some(0));
    let missing = folder.path().join("missing.registry");
    let text = run(headcount(["status", "--registry"]).arg(&missing)).ended(4).out;
    assert!(text.contains("missing.registry") && text.contains("cannot be read"), "{text}");
    none(&["--no-such-option"]).ended(2).complains("--no-such-option");
    none(&["--node", "a", "--registry", "b"]).ended(2);
}

#[test]
fn whoever_has_had_enough_of_it_is_no_error() {
    let _permit = permit();
    let nginx = Nginx::start_ready(quick().workers(1));
    for arguments in [["status", "--registry"], ["doctor", "--registry"]] {
        let (read, write) = rustix::pipe::pipe().expect("a pipe");
        drop(read);
        let status =
            headcount(arguments).arg(nginx.registry()).stdout(write).status().expect("it can be started");
        assert_eq!(status.code(), Some(0), "{arguments:?}");
    }
    nginx.end(Signal::QUIT);
}
