//! Each event once and in order, through the life of a server.

use testkit::{Folder, Kind, Nginx, Signal, permit, process};

use super::follower::{Follower, headcount, registry, server};
use super::record::{assert_all_once, cat_to, deliveries, kinds};

#[test]
fn each_event_is_delivered_once_and_in_order() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::prepare(server(&own).workers(2));
    let seen = own.at("seen");
    let rule = format!("any={}", cat_to(&seen));
    // Before there is a server.
    let mut run = Follower::start(&own, &["--on", &rule]);
    run.wait_for_log("waiting for the registry");
    nginx.run();
    nginx.ready(1);
    nginx.reload_and_settle(2);
    process::send(nginx.workers()[0], Signal::KILL);
    nginx.wait_for("the worker's death and its replacement", testkit::wait::PATIENCE, |all| {
        all.at_least(1, Kind::WorkerDied, 2)?;
        all.at_least(3, Kind::WorkerStarted, 2)
    });
    nginx.end(Signal::QUIT);
    nginx.forget_reports();
    nginx.run();
    nginx.wait_for("the workers after the restart", testkit::wait::PATIENCE, |all| {
        all.at_least(2, Kind::WorkerStarted, 3)
    });
    nginx.end(Signal::TERM);
    let last = super::record::journal(&registry(&own)).last().expect("events").seq;
    run.wait_until("the last event", || {
        let all = deliveries(&seen);
        (all.last()?.seq()? >= last && all.iter().filter(|d| d.kind() == "node_stopped").count() == 2)
            .then_some(())
    });
    run.end();
    let all = deliveries(&seen);
    assert_all_once(&all, &registry(&own));
    let of_node: Vec<_> = all.iter().filter(|d| d.is_derived()).cloned().collect();
    assert_eq!(kinds(&of_node), ["node_started", "node_stopped", "node_started", "node_stopped"]);
    // The node's start comes before the generation's, its stop after.
    assert_eq!(kinds(&all[..2]), ["node_started", "generation_started"]);
    let stop = all.iter().position(|d| d.kind() == "node_stopped").expect("one");
    assert_eq!((all[stop - 1].kind(), all[stop - 1].seq()), ("generation_ended", all[stop].seq()));
    assert_eq!(all[stop - 1].0["cause"], "stop");
    // Nothing is delivered twice by the next one.
    let count = all.len();
    let mut again = Follower::start(&own, &["--on", &rule]);
    again.wait_for_log(&format!("from event {}\n", last + 1));
    again.end();
    assert_eq!(deliveries(&seen).len(), count);
}

#[test]
fn a_command_has_the_event_in_its_environment() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(server(&own).workers(1));
    let seen = own.at("seen");
    let rule =
        format!("worker_died,generation_started=env | grep ^HEADCOUNT_ | sort >> '{}'", seen.display());
    let mut command = Follower::command(&own, &["--on", &rule]);
    // What does not apply is unset, even if somebody had set it.
    command.env("HEADCOUNT_SIGNAL", "77").env("HEADCOUNT_RETRY", "1");
    let mut run = Follower::spawn(&own, command);
    let worker = nginx.workers()[0];
    process::send(worker, Signal::KILL);
    let shown = || std::fs::read_to_string(&seen).unwrap_or_default();
    let text = run.wait_until("two events", || {
        let text = shown();
        (text.matches("HEADCOUNT_TOTAL=").count() == 2).then_some(text)
    });
    run.end();
    let (started, died) = text.split_once("HEADCOUNT_TOTAL=").expect("two blocks");
    for line in [
        "HEADCOUNT_EVENT=generation_started\n",
        "HEADCOUNT_CAUSE=start\n",
        "HEADCOUNT_GENERATION=1\n",
        "HEADCOUNT_SEQ=1\n",
        "HEADCOUNT_ATTEMPT=1\n",
        "HEADCOUNT_MINE=0\n",
        "HEADCOUNT_PREVIOUS_RUN=none\n",
    ] {
        assert!(started.contains(line), "{line:?} in {text}");
    }
    for line in ["HEADCOUNT_EVENT=worker_died\n".to_owned(), format!("HEADCOUNT_PID={worker}\n")] {
        assert!(died.contains(&line), "{line:?} in {text}");
    }
    for name in ["HEADCOUNT_SIGNAL=", "HEADCOUNT_RETRY=", "HEADCOUNT_PREV=", "HEADCOUNT_LOST="] {
        assert!(!started.contains(name), "{name} in {text}");
    }
    assert!(text.contains("HEADCOUNT_NODE=nginx-"), "{text}");
}

#[test]
fn a_command_that_does_not_read_disturbs_nothing() {
    let _permit = permit();
    let own = Folder::new();
    let _nginx = Nginx::start_ready(server(&own).workers(2));
    let seen = own.at("seen");
    let rules = ["worker_started=exec <&-; true".to_owned(), format!("worker_started={}", cat_to(&seen))];
    let mut run = Follower::start(&own, &["--on", &rules[0], "--on", &rules[1]]);
    run.wait_until("both", || (deliveries(&seen).len() == 2).then_some(()));
    run.end();
    assert!(!run.log().contains("warning"), "{}", run.log());
}

#[test]
fn where_to_begin() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(server(&own).workers(1));
    nginx.end(Signal::QUIT);
    nginx.forget_reports();
    nginx.run();
    nginx.ready(2);
    let first_of_run = super::record::journal(&registry(&own))
        .iter()
        .rfind(|e| {
            e.generation == 2
                && e.cause == headcount::Cause::Start
                && e.kind == headcount::Kind::GenerationStarted
        })
        .map(|e| e.seq)
        .expect("its start");
    for (from, first) in [("run", Some(first_of_run)), ("oldest", Some(1)), ("now", None)] {
        let seen = own.at(&format!("seen-{from}"));
        let rule = format!("generation_started,worker_draining={}", cat_to(&seen));
        let mut command = headcount();
        command.arg("--registry").arg(registry(&own)).args(["--from", from, "--on", &rule, "--state"]);
        command.arg(own.at(&format!("state-{from}")));
        let mut run = Follower::spawn(&own, command);
        run.wait_for_log("following node");
        if first.is_some() {
            run.wait_until("the start of the second run", || {
                (deliveries(&seen).last()?.0["generation"] == 2).then_some(())
            });
        }
        // Each way goes on with what comes.
        run.end();
        assert_eq!(deliveries(&seen).first().and_then(|d| d.seq()), first, "{from}");
    }
}
