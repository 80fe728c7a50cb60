//! What runs once in the whole cluster: who runs it, who next, and who hears of it.

use std::time::{Duration, SystemTime};

use headcount_cluster_client::{Event, WhoRuns};
use testkit::permit;

use super::fleet::{FOR_LONG, Fleet};
use super::process::Process;

#[test]
fn what_runs_once_succeeds_once_whoever_dies_over_it() {
    let _permit = permit();
    let fleet = Fleet::new();
    let (mut a, mut b) = (fleet.host_with("a", FOR_LONG), fleet.host_with("b", FOR_LONG));
    a.join();
    b.join();
    let (mut one, mut two) = (Process::of(&a), Process::of(&b));
    one.client.once("migrate").unwrap();
    let (first, ..) = one.runs();
    two.client.once("migrate").unwrap();
    drop(one);
    let (second, attempt, last) = two.runs();
    assert_eq!((attempt, last.as_deref(), second > first), (2, Some("died"), true));
    two.client.end("migrate", second, true);
    two.is_done();
    // Whoever comes later knows at once.
    let mut late = Process::of(&a);
    late.client.once("migrate").unwrap();
    late.is_done();
    // What fails three times has failed.
    late.client.once("broken").unwrap();
    for number in 1..=3 {
        let (token, attempt, _) = late.runs();
        assert_eq!(attempt, number);
        late.client.end("broken", token, false);
    }
    let failed = |event| match event {
        Event::Failed { attempts, last, .. } => Some((attempts, last)),
        _ => None,
    };
    assert_eq!(late.until(failed), (3, "failed".to_owned()));
    two.client.once("broken").unwrap();
    assert_eq!(two.until(failed), (3, "failed".to_owned()));
}

#[test]
fn what_runs_once_is_run_again_when_its_host_is_lost() {
    let _permit = permit();
    let fleet = Fleet::new();
    let (mut a, mut b) = (fleet.host("a"), fleet.host_with("b", FOR_LONG));
    a.join();
    b.join();
    let (mut one, mut two) = (Process::of(&a), Process::of(&b));
    one.client.once("migrate").unwrap();
    let (first, ..) = one.runs();
    two.client.once("migrate").unwrap();
    a.kill_agent();
    one.until(|event| matches!(event, Event::RunLost { .. }).then_some(()));
    let (second, attempt, last) = two.runs();
    assert_eq!((attempt, last.as_deref(), second > first), (2, Some("lost"), true));
    // What the first one has to say is of no interest any more.
    a.start("joined");
    one.client.end("migrate", first, true);
    two.client.end("migrate", second, true);
    two.is_done();
    one.is_done();
}

/// Until it is known completely: at first the host alone may be.
#[track_caller]
fn who_runs(process: &mut Process) -> WhoRuns {
    process.until(|event| match event {
        Event::Running { by, .. } if by.pid.is_some() => Some(by),
        _ => None,
    })
}

#[test]
fn whoever_waits_hears_who_runs_it_on_its_own_host_and_on_others() {
    let _permit = permit();
    let fleet = Fleet::new();
    let (mut a, mut b) = (fleet.host_with("a", FOR_LONG), fleet.host_with("b", FOR_LONG));
    a.join();
    b.join();
    let me = std::process::id();
    let name = std::fs::read_to_string("/proc/self/comm").expect("it has a name").trim_end().to_owned();
    let is_me_on = |host: &str, by: &WhoRuns| {
        assert_eq!((by.host.as_str(), by.pid, by.process.as_deref()), (host, Some(me), Some(name.as_str())));
        let since = by.since.expect("it is known since when");
        let age = SystemTime::now().duration_since(since).expect("not later than now");
        assert!(age < Duration::from_secs(300), "{age:?}");
    };
    let (mut one, mut two, mut three) = (Process::of(&a), Process::of(&a), Process::of(&b));
    one.client.once("migrate").unwrap();
    one.runs();
    two.client.once("migrate").unwrap();
    three.client.once("migrate").unwrap();
    is_me_on("a", &who_runs(&mut two));
    is_me_on("a", &who_runs(&mut three));
    // Who comes later hears it as well.
    let mut late = Process::of(&b);
    late.client.once("migrate").unwrap();
    is_me_on("a", &who_runs(&mut late));
    // All of one host die: another one is at it now.
    drop(two);
    drop(one);
    let (token, attempt, last) = three.runs();
    assert_eq!((attempt, last.as_deref()), (2, Some("died")));
    is_me_on("b", &who_runs(&mut late));
    let mut back = Process::of(&a);
    back.client.once("migrate").unwrap();
    is_me_on("b", &who_runs(&mut back));
    three.client.end("migrate", token, true);
    for process in [&mut three, &mut late, &mut back] {
        process.is_done();
    }
    // What is settled nobody is at.
    let mut last = Process::of(&b);
    last.client.once("migrate").unwrap();
    last.until(|event| match event {
        Event::Done { .. } => Some(()),
        Event::Running { by, .. } => panic!("{by:?}"),
        _ => None,
    });
}
