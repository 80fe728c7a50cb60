//! Commands that fail, and commands that hang.

use std::time::{Duration, Instant};

use testkit::{Folder, Nginx, permit, process};

use super::follower::{Follower, hang, server};
use super::record::{cat_to, deliveries};

#[test]
fn a_command_that_fails_is_tried_again_with_growing_waits() {
    let _permit = permit();
    let own = Folder::new();
    let _nginx = Nginx::start_ready(server(&own).workers(1));
    let seen = own.at("seen");
    let rule = format!("worker_started={}; [ $HEADCOUNT_ATTEMPT -gt 2 ]", cat_to(&seen));
    let start = Instant::now();
    let mut run = Follower::start(&own, &["--on", &rule, "--backoff", "200ms..60s"]);
    run.wait_for_log("attempt 3");
    // At least the halves of 200 ms and 400 ms, that are not by chance.
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    run.end();
    let marks: Vec<_> = deliveries(&seen).iter().map(|d| (d.seq(), d.attempt(), d.is_retry())).collect();
    assert_eq!(marks, [(Some(2), 1, false), (Some(2), 2, false), (Some(2), 3, false)]);
    assert_eq!(run.log().matches("failed").count(), 2, "{}", run.log());
    assert!(run.log().contains("exit code 1; next attempt in"), "{}", run.log());
}

#[test]
fn after_the_last_failure_it_goes_on_with_the_next() {
    let _permit = permit();
    let own = Folder::new();
    let _nginx = Nginx::start_ready(server(&own).workers(2));
    let seen = own.at("seen");
    let rule = format!("worker_started={}; kill -SEGV $$", cat_to(&seen));
    let mut run = Follower::start(&own, &["--on", &rule, "--backoff", "1ms", "--retries", "1"]);
    run.wait_until("both", || (run.log().matches("failed for good").count() == 2).then_some(()));
    run.end();
    let marks: Vec<_> = deliveries(&seen).iter().map(|d| (d.seq(), d.attempt())).collect();
    assert_eq!(marks, [(Some(2), 1), (Some(2), 2), (Some(3), 1), (Some(3), 2)]);
    assert!(run.log().contains("failed for good after 2 attempts: killed by SIGSEGV"), "{}", run.log());
}

#[test]
fn after_the_last_failure_it_ends_if_that_is_wanted_and_tries_again_at_the_next_start() {
    let _permit = permit();
    let own = Folder::new();
    let _nginx = Nginx::start_ready(server(&own).workers(2));
    let seen = own.at("seen");
    let rule = format!("worker_started={}; [ -e '{}' ]", cat_to(&seen), own.at("mended").display());
    let arguments = ["--on", &rule, "--backoff", "1ms", "--retries", "1", "--on-failure", "stop"];
    let mut run = Follower::start(&own, &arguments);
    assert_eq!(run.ended().code(), Some(4), "{}", run.log());
    std::fs::write(own.at("mended"), "").expect("our own folder");
    let mut run = Follower::start(&own, &arguments);
    run.wait_until("the rest", || (deliveries(&seen).len() == 4).then_some(()));
    run.end();
    let marks: Vec<_> = deliveries(&seen).iter().map(|d| (d.seq(), d.attempt(), d.is_retry())).collect();
    let second = (Some(2), 2, false);
    assert_eq!(marks, [(Some(2), 1, false), second, (Some(2), 3, false), (Some(3), 1, false)]);
}

#[test]
fn a_command_that_hangs_is_ended_with_all_that_it_started() {
    let _permit = permit();
    let own = Folder::new();
    let _nginx = Nginx::start_ready(server(&own).workers(1));
    let pids = own.at("pids");
    // A child that does not heed SIGTERM, and a shell that waits for it.
    let rule =
        format!("worker_started=(trap '' TERM; {}) & echo $! $$ >> '{}'; wait", hang(&own), pids.display());
    let mut run = Follower::start(&own, &["--on", &rule, "--timeout", "1s", "--retries", "0"]);
    let started = run.wait_until("the command", || {
        let text = std::fs::read_to_string(&pids).ok()?;
        let pids: Vec<i32> = text.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect();
        (pids.len() == 2).then_some(pids)
    });
    assert!(started.iter().all(|&pid| process::is_alive(pid)), "{started:?}");
    run.wait_for_log("timed out after 1.0 s and was stopped (killed by SIGTERM)");
    for pid in started {
        // Nobody but its parent can wait for the end of one that was killed.
        run.wait_until(&format!("the end of process {pid}"), || (!process::is_alive(pid)).then_some(()));
    }
    run.end();
}

#[test]
fn what_a_command_leaves_in_the_background_is_left_alone() {
    let _permit = permit();
    let own = Folder::new();
    let _nginx = Nginx::start_ready(server(&own).workers(1));
    let pids = own.at("pids");
    let rule = format!("worker_started=({}) > /dev/null 2>&1 & echo $! >> '{}'", hang(&own), pids.display());
    let mut run = Follower::start(&own, &["--on", &rule, "--timeout", "30s"]);
    run.wait_for_log("delivered");
    run.end();
    let pid: i32 = std::fs::read_to_string(&pids).expect("written").trim().parse().expect("a pid");
    assert!(process::is_alive(pid));
    process::send(pid, testkit::Signal::KILL);
}
