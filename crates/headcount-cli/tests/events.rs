//! `headcount events` on a real nginx.

mod program;
mod scripted;

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use headcount::{Cursor, Event, Observer};
use headcount_report::{EventDocument, sentence};
use program::Run;
use scripted::{Running, headcount, run, setup, start};
use serde_json::Value;
use testkit::{Folder, Nginx, Signal, permit, process, wait};

/// The journal as the library reads it.
fn journal(nginx: &Nginx) -> (String, Vec<Event>) {
    let observer = Observer::open(&nginx.registry()).expect("a registry");
    let node = observer.snapshot().expect("a registry").node;
    (node, observer.events(&mut Cursor::oldest(), usize::MAX).expect("a registry").events)
}

#[track_caller]
fn lines(out: &str) -> Vec<Value> {
    // What is being written has no end yet.
    let whole = out.rfind('\n').map_or("", |end| &out[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

fn numbers(lines: &[Value]) -> Vec<u64> {
    lines.iter().filter_map(|line| line["seq"].as_u64()).collect()
}

#[track_caller]
fn json(nginx: &Nginx, args: &[&str]) -> Vec<Value> {
    let all: Vec<&str> = ["events", "--json"].iter().chain(args).copied().collect();
    lines(&run(nginx, &all).ended(0).out)
}

/// A server that was started, reloaded and stopped, so that its journal rests.
fn stopped() -> Nginx {
    let nginx = Nginx::start_ready(setup().workers(2));
    nginx.reload_and_settle(2);
    nginx.end(Signal::QUIT);
    nginx
}

#[test]
fn they_are_the_journal() {
    let _permit = permit();
    let nginx = stopped();
    let (node, events) = journal(&nginx);
    assert!(events.len() > 10);
    let documents: Vec<String> = events
        .iter()
        .map(|event| serde_json::to_string(&EventDocument::new(&node, event)).expect("a document"))
        .collect();
    let text = run(&nginx, &["events", "--json"]).ended(0).out;
    assert_eq!(text.lines().collect::<Vec<_>>(), documents);
    assert_eq!(numbers(&lines(&text)), (1..=events.len() as u64).collect::<Vec<_>>());

    let text = run(&nginx, &["events"]).ended(0).out;
    assert_eq!(text.lines().count(), events.len());
    for (line, event) in text.lines().zip(&events) {
        let (time, what) = line.split_at(23);
        assert_eq!(what, format!("  {}", sentence(event)));
        let digits = time.replace(|c: char| c.is_ascii_digit(), "0");
        assert_eq!(digits, "0000-00-00 00:00:00.000", "{line}");
    }
    let mut coloured = headcount(&nginx.registry(), &["events", "--color", "always"]);
    assert!(program::run(&mut coloured).ended(0).out.contains("\u{1b}["));
}

#[test]
fn a_death_says_how_old_the_worker_was_and_what_it_did_for_how_long() {
    let _permit = permit();
    let quick = setup().workers(2).option("heartbeat_interval", "0.1").option("stall_after", "0.5");
    // By Lua, too.
    let note =
        "kit.note('died', { text = e.state .. ' ' .. tostring(e.age >= e.in_state_for), pid = e.pid })";
    let nginx = Nginx::start_ready(quick.in_callback("on_worker_died", note).allow_kills());
    let client = nginx.slow_client();
    nginx.reload_and_settle(2);
    let new: Vec<_> = nginx.workers().into_iter().filter(|&pid| pid != client.worker).collect();
    let [frozen, serving] = new[..] else { panic!("two new ones: {new:?}") };
    nginx.freeze(frozen);
    nginx.wait_until("it to be reported as stalled", || {
        json(&nginx, &["--kind", "worker_stalled"]).iter().any(|e| e["pid"] == frozen).then_some(())
    });
    for (pid, state) in [(client.worker, "draining"), (frozen, "stalled"), (serving, "serving")] {
        process::send(pid, Signal::KILL);
        let death = nginx.wait_until("its death", || {
            json(&nginx, &["--kind", "worker_died"]).into_iter().find(|e| e["pid"] == pid)
        });
        let seconds = |name: &str| death[name].as_f64().unwrap_or_else(|| panic!("no {name}: {death:#}"));
        let (age, time) = (seconds("age"), seconds("in_state_for"));
        assert_eq!(death["state"], state, "{death:#}");
        assert!(0.0 <= time && time <= age && age < 60.0, "{death:#}");
        let sentence = death["sentence"].as_str().expect("a text");
        assert!(sentence.contains(" old, ") && sentence.contains(&format!(", {state} for ")), "{sentence}");
        let told = nginx.wait_until("the callback", || {
            let reports = nginx.reports();
            let mut notes = reports.notes("died").into_iter();
            notes.find(|n| n.int("pid") == Some(i64::from(pid))).map(|n| n.text("text").to_owned())
        });
        assert_eq!(told, format!("{state} true"));
        let row = format!("{state} for ");
        run(&nginx, &["status"]).ended(0).says(&row);
    }
    nginx.kill_all();
}

#[test]
fn the_time_is_local() {
    let _permit = permit();
    let nginx = stopped();
    let at = |zone: &str| {
        let mut command = headcount(&nginx.registry(), &["events", "-n", "1"]);
        program::run(command.env("TZ", zone)).ended(0).out
    };
    let hour = |line: &str| line[11..13].parse::<u32>().expect("an hour");
    assert_eq!((hour(&at("UTC0")) + 3) % 24, hour(&at("XYZ-3")));
}

#[test]
fn some_of_them() {
    let _permit = permit();
    let nginx = stopped();
    let all = json(&nginx, &[]);
    let last = all.len() as u64;
    assert_eq!(numbers(&all), (1..=last).collect::<Vec<_>>());
    let seqs = |args: &[&str]| numbers(&json(&nginx, args));
    assert_eq!(seqs(&["-n", "2"]), [last - 1, last]);
    assert_eq!(seqs(&["-n", "0"]), [0; 0]);
    assert_eq!(seqs(&["-n", "100000"]).len() as u64, last);
    assert_eq!(seqs(&["--since", "seq:5"]), (5..=last).collect::<Vec<_>>());
    assert_eq!(seqs(&["--since", "5"]), (5..=last).collect::<Vec<_>>());
    assert_eq!(seqs(&["--since", "seq:5", "--lines", "1"]), [last]);
    assert_eq!(seqs(&["--since", "100000"]), [0; 0]);
    assert_eq!(seqs(&["--since", "1d"]).len() as u64, last);
    assert_eq!(seqs(&["--since", "0s"]), [0; 0]);
    // From an event's own time on: to the microsecond, which may cut it off, but not the next one.
    let middle = &all[6];
    let since = seqs(&["--since", middle["timestamp"].as_str().expect("a time")]);
    assert!(matches!(since[0], 6..=8) && since.last() == Some(&last), "{since:?}");
    let kinds = json(&nginx, &["--kind", "worker_started", "--kind", "generation_started"]);
    let of = |kind: &str| kinds.iter().filter(|line| line["kind"] == kind).count();
    assert_eq!((of("worker_started"), of("generation_started"), kinds.len()), (4, 2, 6));
}

#[test]
fn wrong_use_ends_with_2_and_no_node_with_4() {
    let folder = Folder::new();
    let program = |args: &[&str]| -> Run {
        program::run(program::headcount(args).env("HEADCOUNT_RUNTIME_DIR", folder.path()))
    };
    program(&["events", "--kind", "worker_vanished"]).ended(2).complains("worker_started");
    program(&["events", "--since", "yesterday"]).ended(2).complains("allowed are");
    program(&["events", "-n", "-1"]).ended(2);
    program(&["events"]).ended(4).complains("no node was found");
    program(&["events", "--follow"]).ended(4).complains("no node was found");
    let missing = folder.at("x.registry").display().to_string();
    program(&["events", "--registry", &missing]).ended(4).complains("x.registry");
    folder.write("x.registry", "garbage");
    program(&["events", "--registry", &missing]).ended(4).complains("no headcount registry");
    program(&["events"]).ended(4).complains("no headcount registry");
}

#[test]
fn what_was_overwritten_is_counted() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(4).option("journal_records", "64"));
    for generation in 2..=8 {
        nginx.reload_and_settle(generation);
    }
    nginx.end(Signal::QUIT);
    let (_, events) = journal(&nginx);
    let oldest = events[0].seq;
    assert!(oldest > 1 && events.len() == 64, "{oldest}, {}", events.len());
    let found = json(&nginx, &[]);
    assert_eq!(found[0], serde_json::json!({ "node": found[1]["node"], "lost": oldest - 1 }));
    assert_eq!(numbers(&found), (oldest..oldest + 64).collect::<Vec<_>>());
    run(&nginx, &["events"])
        .ended(0)
        .says(&format!("({} events lost: overwritten before they could be read)", oldest - 1));
    // Only what was asked for counts.
    assert_eq!(json(&nginx, &["--since", &(oldest - 3).to_string()])[0]["lost"], 3);
    assert_eq!(json(&nginx, &["-n", "3"]).len(), 3);
    let later = (oldest + 10).to_string();
    assert!(json(&nginx, &["--since", &later]).iter().all(|line| line.get("lost").is_none()));
}

#[test]
fn a_follower_that_was_overrun_says_by_how_many() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(4).option("journal_records", "64"));
    let follower = start(&nginx, &["events", "--follow", "--json"]);
    follower.wait_for("the start", |f| (lines(&f.out()).len() >= 5).then_some(()));
    let seen = numbers(&lines(&follower.out()));
    follower.signal(Signal::STOP);
    for generation in 2..=9 {
        nginx.reload_and_settle(generation);
    }
    scripted::quit(&nginx);
    let (_, events) = journal(&nginx);
    let (first, last) = (events[0].seq, events[63].seq);
    follower.signal(Signal::CONT);
    follower.wait_for("the last event", |f| numbers(&lines(&f.out())).contains(&last).then_some(()));
    follower.signal(Signal::TERM);
    let found = lines(&follower.end().ended(0).out);
    let lost: Vec<_> = found.iter().filter_map(|line| line["lost"].as_u64()).collect();
    // It may have been stopped in the middle of what came after the start.
    let before: Vec<_> = numbers(&found).into_iter().filter(|&seq| seq < first).collect();
    assert!(before.starts_with(&seen), "{seen:?} {before:?}");
    assert_eq!(lost, [first - 1 - before.len() as u64]);
    assert_eq!(numbers(&found).len(), before.len() + 64);
}

#[test]
fn a_follower_goes_on_through_a_restart_and_a_registry_that_is_made_anew() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(2));
    let follower = start(&nginx, &["events", "-f", "--json"]);
    scripted::quit(&nginx);
    nginx.run();
    nginx.ready(2);
    let started = |generation: u64, of: usize| {
        follower.wait_for("the workers' start", |f| {
            let all = lines(&f.out());
            let workers =
                all.iter().filter(|e| e["kind"] == "worker_started" && e["generation"] == generation);
            (workers.count() == of).then_some(all)
        })
    };
    let all = numbers(&started(2, 2));
    assert_eq!(all, (1..=all.len() as u64).collect::<Vec<_>>(), "each once, in order");

    scripted::quit(&nginx);
    let (_, events) = journal(&nginx);
    nginx.forget_reports();
    std::fs::remove_file(nginx.registry()).expect("it was there");
    follower.says("was removed; waiting for a new one");
    nginx.run();
    nginx.ready(1);
    follower.says("has a new registry");
    let all = numbers(&started(1, 4));
    let (old, new) = all.split_at(events.len());
    assert_eq!(old, (1..=events.len() as u64).collect::<Vec<_>>());
    assert_eq!(new, (1..=new.len() as u64).collect::<Vec<_>>());
    follower.signal(Signal::INT);
    follower.end().ended(0);
    nginx.end(Signal::QUIT);
}

#[test]
fn a_follower_waits_for_a_node_that_was_named() {
    let _permit = permit();
    let nginx = Nginx::prepare(setup().workers(2));
    let follower = start(&nginx, &["events", "--follow", "--kind", "worker_started"]);
    follower.says("waiting for it");
    nginx.run();
    follower.wait_for("two workers", |f| (f.out().lines().count() == 2).then_some(()));
    follower.signal(Signal::TERM);
    let ended = follower.end().ended(0);
    assert!(ended.out.lines().all(|line| line.contains(" of generation 1 started; ")), "{ended:#?}");
    nginx.end(Signal::QUIT);
}

#[test]
fn a_follower_of_what_comes_shows_nothing_of_what_was() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(1));
    let follower = start(&nginx, &["events", "-f", "-n", "0", "--json"]);
    // It has looked once when it waits for signals; a reload before that would be left out rightly.
    nginx.wait_until("it to follow", || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", follower.pid())).ok()?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
        (u64::from_str_radix(caught.trim(), 16).ok()? & 1 << (15 - 1) != 0).then_some(())
    });
    nginx.reload_and_settle(2);
    follower.wait_for("the reload", |f| f.out().contains("generation_ended").then_some(()));
    let found = lines(&follower.out());
    assert_eq!(found[0]["kind"], "generation_started");
    assert_eq!(found[0]["generation"], 2);
    follower.signal(Signal::TERM);
    follower.end().ended(0);
    nginx.end(Signal::QUIT);
}

#[test]
fn a_follower_ends_when_nobody_reads_it() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(1));
    let mut command = headcount(&nginx.registry(), &["events", "--follow"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("the program can be started");
    let mut first = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut first).expect("text");
    assert!(first.contains("generation 1 started"), "{first}");
    // The reader is gone, and nothing happens any more on the node.
    let status = wait::poll(scripted::LONG, || child.try_wait().expect("our own child"));
    if status.is_none() {
        child.kill().expect("our own child");
    }
    assert_eq!(status.expect("it ends by itself").code(), Some(0));
    nginx.end(Signal::QUIT);
}

#[test]
fn all_nodes_of_the_host_by_time_with_their_names() {
    let _permit = permit();
    let shared = Folder::new();
    let node = |name: &str| {
        let path = format!("\"{}\"", shared.at(&format!("{name}.registry")).display());
        Nginx::start_ready(setup().workers(1).option("path", &path).option("node", &format!("{name:?}")))
    };
    let program = |args: &[&str]| {
        let mut command = program::headcount(args);
        command.env("HEADCOUNT_RUNTIME_DIR", shared.path());
        command
    };
    let one = node("one");
    // One that cannot be read is named, and does not hide the others.
    shared.write("spoiled.registry", "garbage");
    let follower = Running::start(shared.path(), program(&["events", "--follow", "--json"]));
    let two = node("two");
    follower.wait_for("the second node, which came later", |f| {
        let found = lines(&f.out());
        found.iter().any(|e| e["node"] == "two" && e["kind"] == "worker_started").then_some(())
    });
    process::send(follower.pid(), Signal::TERM);
    follower.end().ended(0).complains("spoiled.registry is no headcount registry");
    std::fs::remove_file(shared.at("spoiled.registry")).expect("our own file");
    one.reload_and_settle(2);
    one.end(Signal::QUIT);
    two.end(Signal::QUIT);
    let found = lines(&program::run(&mut program(&["events", "--json"])).ended(0).out);
    let times: Vec<_> = found.iter().map(|e| e["time"].as_f64().expect("a time")).collect();
    assert!(times.is_sorted(), "{found:#?}");
    for name in ["one", "two"] {
        let own: Vec<_> = found.iter().filter(|e| e["node"] == name).cloned().collect();
        assert_eq!(numbers(&own), (1..=own.len() as u64).collect::<Vec<_>>());
    }
    let names: Vec<_> = found.iter().map(|e| e["node"].as_str().expect("a name")).collect();
    assert!(names.first() == Some(&"one") && names.last() == Some(&"two") && !names.is_sorted(), "{names:?}");
    let text = program::run(&mut program(&["events", "-n", "1"])).ended(0).out;
    assert!(text[23..].starts_with("  two  master "), "{text}");
    program::run(&mut program(&["events", "--since", "seq:1"])).ended(4).complains("choose one with --node");
    program::run(&mut program(&["events", "--since", "seq:1", "--node", "one"])).ended(0);
}

#[test]
fn a_registry_that_is_cut_off_does_not_end_a_follower_of_all_nodes() {
    let _permit = permit();
    let shared = Folder::new();
    let node = |name: &str| {
        let path = format!("\"{}\"", shared.at(&format!("{name}.registry")).display());
        Nginx::start_ready(setup().workers(1).option("path", &path).option("node", &format!("{name:?}")))
    };
    let one = node("one");
    let cut = shared.at("cut.registry");
    std::fs::copy(shared.at("one.registry"), &cut).expect("our own files");
    let mut command = program::headcount(["events", "--follow", "--json"]);
    command.env("HEADCOUNT_RUNTIME_DIR", shared.path());
    let follower = Running::start(shared.path(), command);
    follower.wait_for("both", |f| {
        let starts = lines(&f.out()).iter().filter(|e| e["kind"] == "worker_started").count();
        (starts == 2).then_some(())
    });
    std::fs::File::create(&cut).expect("our own file");
    let two = node("two");
    follower.wait_for("another node", |f| {
        lines(&f.out()).iter().any(|e| e["node"] == "two" && e["kind"] == "worker_started").then_some(())
    });
    process::send(follower.pid(), Signal::TERM);
    follower.end().ended(0).complains("cut.registry");
    one.end(Signal::QUIT);
    two.end(Signal::QUIT);
}

/// How often the threads of a process have gone to sleep of their own will.
fn sleeps(pid: i32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let of = |path: std::path::PathBuf| {
        let status = std::fs::read_to_string(path.join("status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.expect("a count").trim().parse::<u64>().expect("a number")
    };
    tasks.map(|task| of(task.expect("a thread").path())).sum()
}

#[test]
fn a_follower_of_a_quiet_node_sleeps() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(2));
    let state = format!("--state={}", nginx.at("state").display());
    for arguments in [&["events", "-f"][..], &["run", "--on", "node_died=true", &state]] {
        let follower = start(&nginx, arguments);
        // It is through with what there was when it has slept for a while.
        let mut before = u64::MAX;
        nginx.wait_until("it to have nothing to do", || {
            let now = sleeps(follower.pid());
            wait::poll(Duration::from_millis(500), || None::<()>);
            (std::mem::replace(&mut before, now) == now && now > 2).then_some(())
        });
        let before = sleeps(follower.pid());
        // There is no event of "nothing happened": this one is a measurement over time.
        wait::poll(Duration::from_secs(3), || None::<()>);
        // The look that it takes every ten seconds may fall into them.
        let woken = sleeps(follower.pid()) - before;
        assert!(woken <= 1, "{arguments:?}: {woken} times in three seconds");
        follower.signal(Signal::TERM);
        follower.end().ended(0);
    }
    nginx.end(Signal::QUIT);
}

#[test]
fn registries_that_come_and_go_leave_a_follower_of_all_nodes_no_descriptor() {
    let _permit = permit();
    let nginx = stopped();
    let template = std::fs::read(nginx.registry()).expect("a registry");
    let observer = headcount::Observer::open(&nginx.registry()).expect("a registry");
    let node = observer.snapshot().expect("a snapshot").node;
    let shared = Folder::new();
    let put = |name: &str| {
        std::fs::write(shared.at("new"), &template).expect("our own folder");
        std::fs::rename(shared.at("new"), shared.at(&format!("{name}.registry"))).expect("our own folder");
    };
    put("stays");
    let mut command = program::headcount(["events", "--follow"]);
    command.env("HEADCOUNT_RUNTIME_DIR", shared.path());
    let follower = Running::start(shared.path(), command);
    // What comes from now on is told to have come.
    follower.wait_for("the first node's events", |f| (!f.out().is_empty()).then_some(()));
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", follower.pid())).expect("it runs").count();
    // It may be about to open what it hears signals and watches folders by; that is less than these.
    let mut most = descriptors() + 10;
    for round in 0..4 {
        let names: Vec<_> = (0..50).map(|n| format!("r{round}-{n}")).collect();
        for name in &names {
            put(name);
        }
        for name in &names {
            follower.says(&format!("new node {node}: {}", shared.at(&format!("{name}.registry")).display()));
        }
        for name in &names {
            std::fs::remove_file(shared.at(&format!("{name}.registry"))).expect("our own file");
        }
        for name in &names {
            follower.says(&format!("{name}.registry was removed"));
        }
        most = nginx.wait_until("what it had open of them to be closed", || {
            let now = descriptors();
            (now <= most).then_some(now)
        });
    }
    process::send(follower.pid(), Signal::TERM);
    follower.end().ended(0);
}
