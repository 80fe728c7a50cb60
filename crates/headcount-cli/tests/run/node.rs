//! The node as a whole: its death, its next run, and a registry that is another one.

use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use testkit::{Folder, Nginx, Signal, permit, process, wait};

use crate::program;

use super::follower::{Follower, headcount, registry, server};
use super::record::{assert_all_once, cat_to, deliveries, journal, kinds};

/// Kills all of a server at once.
fn kill(nginx: &Nginx) {
    let master = nginx.master();
    let workers = nginx.workers();
    // Or else the master would start others.
    nginx.freeze(master);
    for pid in workers.into_iter().chain([master]) {
        process::send(pid, Signal::KILL);
    }
    nginx.gone();
}

#[test]
fn a_node_that_is_killed_is_reported_once_and_its_next_start_too() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(server(&own).workers(2));
    let seen = own.at("seen");
    let mut run = Follower::start(&own, &["--on", &format!("any={}", cat_to(&seen))]);
    run.wait_until("the start", || (deliveries(&seen).len() == 4).then_some(()));
    kill(&nginx);
    let dead = Instant::now();
    run.wait_until("the node's death", || (deliveries(&seen).last()?.kind() == "node_died").then_some(()));
    // A bench's business is how fast; that it is not by a time-out of the server's is this one's.
    assert!(dead.elapsed() < Duration::from_secs(15), "{:?}", dead.elapsed());
    let died = deliveries(&seen).pop().expect("it is there");
    assert_eq!(
        (died.seq(), died.0["generation"].as_u64(), died.0["total"].as_u64()),
        (None, Some(1), Some(0))
    );

    nginx.run();
    nginx.ready(2);
    let last = journal(&registry(&own)).last().expect("events").seq;
    run.wait_until("the next run", || (deliveries(&seen).last()?.seq()? >= last).then_some(()));
    run.end();
    let all = deliveries(&seen);
    assert_all_once(&all, &registry(&own));
    let of_node: Vec<_> = all.iter().filter(|d| d.is_derived()).cloned().collect();
    assert_eq!(kinds(&of_node), ["node_started", "node_died", "node_started"]);
    // What the next run found came later, and is delivered as what it is.
    let died = all.iter().position(|d| d.kind() == "node_died").expect("one");
    assert_eq!((all[died + 1].kind(), all[died + 1].0["cause"].as_str()), ("worker_died", Some("unclean")));
}

#[test]
fn a_death_in_our_absence_is_reported_before_the_next_start() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(server(&own).workers(1));
    let seen = own.at("seen");
    let rule = format!("node_started,node_stopped,node_died={}", cat_to(&seen));
    let mut run = Follower::start(&own, &["--on", &rule]);
    run.wait_until("the start", || (deliveries(&seen).len() == 1).then_some(()));
    run.end();
    kill(&nginx);
    nginx.run();
    nginx.ready(2);
    let mut run = Follower::start(&own, &["--on", &rule]);
    run.wait_until("death and start", || (deliveries(&seen).len() == 3).then_some(()));
    // Killed, and never started again: found by the kernel's word alone.
    run.end();
    kill(&nginx);
    let mut run = Follower::start(&own, &["--on", &rule]);
    run.wait_until("the second death", || (deliveries(&seen).len() == 4).then_some(()));
    run.end();
    let all = deliveries(&seen);
    assert_eq!(kinds(&all), ["node_started", "node_died", "node_started", "node_died"]);
    let mut ids: Vec<_> = all.iter().map(|d| d.id()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 4, "{ids:?}");
}

#[test]
fn a_registry_that_was_made_anew_is_followed_from_its_beginning() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(server(&own).workers(1));
    let seen = own.at("seen");
    let mut run = Follower::start(&own, &["--on", &format!("any={}", cat_to(&seen))]);
    run.wait_until("the start", || (deliveries(&seen).len() == 3).then_some(()));
    nginx.end(Signal::QUIT);
    run.wait_until("the stop", || (deliveries(&seen).last()?.kind() == "master_exited").then_some(()));
    let first = deliveries(&seen);
    std::fs::remove_file(registry(&own)).expect("our own file");
    nginx.forget_reports();
    nginx.run();
    nginx.ready(1);
    run.wait_until("the second registry", || (deliveries(&seen).len() == first.len() + 3).then_some(()));
    run.end();
    let all = deliveries(&seen);
    let second = &all[first.len()..];
    assert_eq!(kinds(second), ["node_started", "generation_started", "worker_started"]);
    assert_all_once(second, &registry(&own));
    assert_ne!(first[0].id(), second[0].id());
    assert!(run.log().contains("was replaced"), "{}", run.log());

    // Gone with its node while we were away, as after a boot: the death is told first.
    kill(&nginx);
    std::fs::remove_file(registry(&own)).expect("our own file");
    nginx.run();
    nginx.ready(1);
    let mut run = Follower::start(&own, &["--on", &format!("any={}", cat_to(&seen))]);
    run.wait_until("the third registry", || (deliveries(&seen).len() == all.len() + 4).then_some(()));
    run.end();
    let third = &deliveries(&seen)[all.len()..];
    assert_eq!(kinds(third), ["node_died", "node_started", "generation_started", "worker_started"]);
    assert_all_once(third, &registry(&own));
}

#[test]
fn a_registry_that_was_removed_under_its_server_is_no_death_and_nothing_is_repeated() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(server(&own).workers(1));
    let seen = own.at("seen");
    let mut run = Follower::start(&own, &["--on", &format!("any={}", cat_to(&seen))]);
    run.wait_until("the start", || (deliveries(&seen).len() == 3).then_some(()));
    let started = |all: &[super::record::Delivered]| {
        kinds(all).iter().filter(|&&kind| kind == "worker_started").count()
    };
    for workers in 2..4 {
        std::fs::remove_file(registry(&own)).expect("our own file");
        nginx.reload();
        nginx.ready(workers);
        run.wait_until("the new worker", || (started(&deliveries(&seen)) == workers as usize).then_some(()));
    }
    run.end();
    let all = deliveries(&seen);
    let nodes: Vec<&str> = kinds(&all).into_iter().filter(|kind| kind.starts_with("node_")).collect();
    assert_eq!(nodes, ["node_started"], "{:?}", kinds(&all));
    assert_eq!(kinds(&all).iter().filter(|&&kind| kind == "generation_started").count(), 3);
    let mut ids: Vec<_> = all.iter().map(|d| d.id()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all.len(), "{ids:?}");
}

#[test]
fn a_node_is_found_by_its_name_as_soon_as_it_is_there() {
    let _permit = permit();
    let own = Folder::new();
    let setup =
        server(&own).workers(1).option("path", &format!("\"{}\"", own.at("run/shop.registry").display()));
    let nginx = Nginx::prepare(setup);
    for (which, name) in [(&["--node", "shop"][..], "by-name"), (&[][..], "the-only-one")] {
        let mut command = headcount();
        command.env("HEADCOUNT_RUNTIME_DIR", own.at("run")).env("STATE_DIRECTORY", own.at(name));
        command.args(which).args(["--on", &format!("any={}", cat_to(&own.at(name).with_extension("seen")))]);
        let mut run = Follower::spawn(&own, command);
        if name == "by-name" {
            run.wait_for_log("waiting for the node shop");
            nginx.run();
            nginx.ready(1);
        }
        run.wait_until("the start", || {
            (deliveries(&own.at(name).with_extension("seen")).len() == 3).then_some(())
        });
        run.end();
        let files: Vec<_> = std::fs::read_dir(own.at(name)).expect("made by it").flatten().collect();
        assert!(files.iter().any(|f| f.file_name().to_string_lossy().starts_with("shop-")), "{files:?}");
    }
}

#[test]
fn a_start_that_is_gone_from_the_journal_is_made_of_what_is_there() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(server(&own).workers(2).option("journal_records", "64"));
    let mut generation = 1;
    while journal(&registry(&own)).iter().any(|e| e.generation == 1) {
        generation += 1;
        nginx.reload_and_settle(generation);
        nginx.wait_for("the old generation's end", wait::PATIENCE, |all| {
            all.at_least(1, testkit::Kind::GenerationEnded, generation - 1)
        });
    }
    // The old one's processes, too.
    nginx.wait_until("nobody but the new ones", || {
        (process::children(nginx.master()).len() == 2).then_some(())
    });
    let seen = own.at("seen");
    let mut run = Follower::start(&own, &["--on", &format!("node_started,node_died={}", cat_to(&seen))]);
    run.wait_until("the start", || (deliveries(&seen).len() == 1).then_some(()));
    let started = deliveries(&seen).remove(0);
    assert_eq!((started.kind(), started.0["generation"].as_u64()), ("node_started", Some(generation)));
    assert_eq!((started.seq(), started.0["total"].as_u64()), (None, Some(2)));
    kill(&nginx);
    run.wait_until("the death", || (deliveries(&seen).len() == 2).then_some(()));
    run.end();
}

#[test]
fn a_node_that_changes_its_master_is_no_other_node() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(server(&own).workers(1));
    let seen = own.at("seen");
    let rule = format!("node_started,node_stopped,node_died,master_exited,master_lost={}", cat_to(&seen));
    let mut run = Follower::start(&own, &["--on", &rule]);
    let (old, _) = nginx.upgrade();
    nginx.ready(2);
    process::send(old, Signal::QUIT);
    nginx.wait_gone(old);
    run.wait_until("the old master's leave", || {
        (deliveries(&seen).last()?.kind() == "master_exited").then_some(())
    });
    // The new one is killed. Its worker serves on, so the node lives.
    let worker = nginx.workers()[0];
    process::send(nginx.master(), Signal::KILL);
    run.wait_until("the loss", || (deliveries(&seen).last()?.kind() == "master_lost").then_some(()));
    process::send(worker, Signal::KILL);
    run.wait_until("the death", || (deliveries(&seen).last()?.kind() == "node_died").then_some(()));
    run.end();
    assert_eq!(kinds(&deliveries(&seen)), ["node_started", "master_exited", "master_lost", "node_died"]);
}

#[test]
fn a_start_is_never_taken_for_a_death() {
    const STARTS: u64 = 12;
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::prepare(server(&own).workers(2));
    let seen = own.at("seen");
    let mut run =
        Follower::start(&own, &["--on", &format!("node_started,node_stopped,node_died={}", cat_to(&seen))]);
    for start in 1..=STARTS {
        nginx.run();
        nginx.ready(start);
        nginx.end(if start % 2 == 0 { Signal::QUIT } else { Signal::TERM });
    }
    let all = run.wait_until("the last stop", || {
        let all = deliveries(&seen);
        (all.len() as u64 >= 2 * STARTS).then_some(all)
    });
    run.end();
    let expected: Vec<_> = (0..STARTS).flat_map(|_| ["node_started", "node_stopped"]).collect();
    assert_eq!(kinds(&all), expected);
}

#[test]
fn it_needs_no_rights_but_to_read_the_registry() {
    const WWW_DATA: u32 = 33;
    if !process::is_root() {
        eprintln!("skipped: to be somebody else takes root");
        return;
    }
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(server(&own).workers(1));
    let seen = own.at("markers/seen");
    let mut command = program::of_everybody(&own.at("headcount"), ["run"]);
    command.arg("--registry").arg(registry(&own)).arg("--state").arg(own.at("markers/state.json"));
    command.args(["--on", &format!("any={}", cat_to(&seen))]).uid(WWW_DATA).gid(WWW_DATA);
    let mut run = Follower::spawn(&own, command);
    run.wait_until("the start", || (deliveries(&seen).len() == 3).then_some(()));
    kill(&nginx);
    run.wait_until("the death", || (deliveries(&seen).last()?.kind() == "node_died").then_some(()));
    run.end();
    assert!(!run.log().contains("warning"), "{}", run.log());
}

#[test]
fn following_costs_next_to_nothing() {
    let _permit = permit();
    let own = Folder::new();
    let _nginx = Nginx::start_ready(server(&own).workers(4));
    let run = Follower::start(&own, &["--on", "node_died=true"]);
    run.wait_for_log("following node");
    let cpu = || process::stat(run.pid()).expect("it runs").cpu;
    let (start, before) = (Instant::now(), cpu());
    // There is no event of "nothing happened": this one is a measurement over time.
    wait::poll(Duration::from_secs(6), || None::<()>);
    let used = (cpu() - before).as_secs_f64() / start.elapsed().as_secs_f64();
    // Of an optimised program it is a tenth of that.
    assert!(used < 0.02, "{used} of a core");
}
