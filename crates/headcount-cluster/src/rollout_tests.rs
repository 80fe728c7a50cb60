use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::task::{Outcome, Report, TaskState, TaskValue};
use crate::value::HostValue;

fn here() -> HostValue {
    serde_json::from_str(r#"{"v":1,"agent":"","place":"","machine":"","pid":1,"birth":1,"since":0.0}"#)
        .unwrap()
}

/// `a serving`, `b lost serving`, `c serving not allowed`.
fn fleet(states: &[&str]) -> Fleet {
    let mut fleet = Fleet::default();
    for text in states {
        let mut words = text.split(' ').peekable();
        let name = words.next().unwrap();
        let is_lost = words.next_if_eq(&"lost").is_some();
        let state = words.next().unwrap().to_owned();
        let reload = words.next().is_none();
        let value = NodeValue { state, reload, generation: Some(1), ..NodeValue::default() };
        let host =
            Host { here: (!is_lost).then(here), known: None, nodes: [("nginx".to_owned(), value)].into() };
        fleet.hosts.insert(name.to_owned(), host);
    }
    fleet
}

fn options(max_unavailable: &str) -> Options {
    Options {
        node: None,
        max_unavailable: max_unavailable.parse().unwrap(),
        first: None,
        drained: false,
        timeout: Duration::from_secs(60),
        skip_lost: false,
    }
}

fn target(host: &str) -> Target {
    Target::new(host, "nginx")
}

fn waves(rollout: &RolloutValue) -> Vec<String> {
    let wave = |wave: &Vec<Target>| wave.iter().map(|t| t.host.as_str()).collect::<Vec<_>>().join(" ");
    rollout.waves.iter().map(wave).collect()
}

fn task(state: TaskState, outcome: Option<Outcome>) -> TaskValue {
    let mut task = TaskValue::reload("me", false, Duration::from_secs(60));
    task.state = state;
    task.report = outcome.map(|outcome| Report::new(outcome, "because"));
    task
}

/// What is asked next, given what became of the others.
fn next(
    rollout: &RolloutValue,
    fleet: &Fleet,
    tasks: &[(&str, TaskState, Option<Outcome>)],
    overdue: &[&str],
) -> Step {
    let tasks = tasks.iter().map(|(host, state, outcome)| (target(host), task(*state, *outcome))).collect();
    let overdue = overdue.iter().map(|host| target(host)).collect();
    rollout.next(&View { fleet, tasks: &tasks, overdue: &overdue })
}

fn ask(wave: usize, hosts: &[&str]) -> Step {
    Step::Ask(wave, hosts.iter().map(|host| target(host)).collect())
}

const DONE: (TaskState, Option<Outcome>) = (TaskState::Done, Some(Outcome::Serving));

#[test]
fn counts() {
    for (text, of_12) in [("2", 2), ("25%", 3), ("1%", 1), ("100%", 12), ("99%", 11)] {
        assert_eq!(text.parse::<Count>().unwrap().of(12), of_12, "{text}");
    }
    for wrong in ["", "0", "0%", "101%", "-1", "+1", "1.5", "%", "2 %", "10000000"] {
        assert!(wrong.parse::<Count>().is_err(), "{wrong}");
    }
}

#[test]
fn the_first_are_alone_and_those_that_do_not_serve_come_first() {
    let five = ["a serving", "b serving", "c short", "d serving", "e serving"];
    let mut options = options("2");
    assert_eq!(waves(&RolloutValue::plan(&fleet(&five), &options).unwrap()), ["c a", "b d", "e"]);
    options.first = Some(Count::Nodes(1));
    assert_eq!(waves(&RolloutValue::plan(&fleet(&five), &options).unwrap()), ["c", "a b", "d e"]);
    options.first = Some(Count::Nodes(9));
    assert_eq!(waves(&RolloutValue::plan(&fleet(&five), &options).unwrap()), ["c a b d e"]);
    options.node = Some("shop".to_owned());
    let refusal = RolloutValue::plan(&fleet(&five), &options).unwrap_err();
    assert_eq!(refusal.to_string(), "there is no node shop that could be reloaded");
}

#[test]
fn what_stands_in_the_way_is_named_before_anything_is_done() {
    for (states, max, said) in [
        (&["a serving", "b lost serving"][..], "1", "lost: b"),
        (&["a serving", "b serving not"], "1", "does not allow it for b/nginx"),
        (
            &["a serving", "b stopped"],
            "1",
            "1 node does not serve already (b/nginx: stopped), and 1 at a time",
        ),
        (&["a short", "b crash_loop", "c serving"], "1", "2 nodes do not serve already"),
        (&["a stopped"], "1", "no node"),
        (&[], "1", "no node"),
    ] {
        let refusal = RolloutValue::plan(&fleet(states), &options(max)).unwrap_err().to_string();
        assert!(refusal.contains(said), "{states:?}: {refusal}");
    }
    let mut unreadable = fleet(&["a serving"]);
    unreadable.unreadable.insert("/x".to_owned(), crate::value::Unreadable::Newer(2));
    assert!(matches!(RolloutValue::plan(&unreadable, &options("1")), Err(Refusal::Unreadable(_))));
    // What is left out is said, and only what is lost is not counted.
    let mut skip = options("2");
    skip.skip_lost = true;
    let rollout = RolloutValue::plan(&fleet(&["a serving", "b lost short", "c stopped"]), &skip).unwrap();
    assert_eq!(waves(&rollout), ["a"]);
    let left: Vec<_> = rollout.left_out.iter().map(|left| (left.target.host.as_str(), left.lost)).collect();
    assert_eq!(left, [("b", true), ("c", false)]);
}

#[test]
fn one_after_the_other_and_the_next_only_when_the_last_serves() {
    let all = fleet(&["a serving", "b serving", "c serving"]);
    let rollout = RolloutValue::plan(&all, &options("1")).unwrap();
    let (done, serving) = DONE;
    assert_eq!(next(&rollout, &all, &[], &[]), ask(0, &["a"]));
    assert_eq!(next(&rollout, &all, &[("a", TaskState::Asked, None)], &[]), Step::Wait);
    assert_eq!(next(&rollout, &all, &[("a", TaskState::Taken, None)], &[]), Step::Wait);
    assert_eq!(next(&rollout, &all, &[("a", done, serving)], &[]), ask(1, &["b"]));
    // Its agent says that it serves, and its host sees it loop in crashes.
    let looping = fleet(&["a crash_loop", "b serving", "c serving"]);
    let blocked = Step::Blocked(vec!["a/nginx: crash_loop".to_owned()]);
    assert_eq!(next(&rollout, &looping, &[("a", done, serving)], &[]), blocked);
    // Another one does not serve.
    let other = fleet(&["a serving", "b serving", "c short"]);
    let blocked = Step::Blocked(vec!["c/nginx: short".to_owned()]);
    assert_eq!(next(&rollout, &other, &[("a", done, serving)], &[]), blocked);
    let through = [("a", done, serving), ("b", done, serving), ("c", done, serving)];
    assert_eq!(next(&rollout, &all, &through, &[]), Step::Done);
}

#[test]
fn a_failure_lets_the_others_of_its_wave_end_and_nothing_begin() {
    let all = fleet(&["a serving", "b serving", "c serving", "d serving", "e serving"]);
    let rollout = RolloutValue::plan(&all, &options("3")).unwrap();
    assert_eq!(next(&rollout, &all, &[], &[]), ask(0, &["a", "b", "c"]));
    let refused = ("a", TaskState::Done, Some(Outcome::Refused));
    let tasks = [refused, ("b", TaskState::Taken, None), ("c", TaskState::Asked, None)];
    assert_eq!(next(&rollout, &all, &tasks, &[]), Step::Wind(vec![target("c")]));
    assert_eq!(next(&rollout, &all, &tasks[..2], &[]), Step::Wait);
    let Step::Stop(failure) = next(&rollout, &all, &[refused, ("b", DONE.0, DONE.1)], &[]) else { panic!() };
    assert_eq!((failure.outcome, failure.to_string()), (Outcome::Refused, "a/nginx: because".to_owned()));
    // One that is not heard of, and one that was refused: the gravest counts.
    let Step::Stop(failure) = next(&rollout, &all, &tasks[..2], &["b"]) else { panic!() };
    assert_eq!((failure.outcome, failure.why.len()), (Outcome::Refused, 2));
    let Step::Stop(failure) = next(&rollout, &all, &[], &["b"]) else { panic!() };
    assert_eq!((failure.outcome, failure.why.len()), (Outcome::TimedOut, 1));
}

#[test]
fn a_host_that_is_lost_meanwhile_counts() {
    let all = fleet(&["a serving", "b serving", "c serving"]);
    let mut rollout = RolloutValue::plan(&all, &options("1")).unwrap();
    let (done, serving) = DONE;
    let lost = fleet(&["a serving", "b lost serving", "c serving"]);
    let Step::Blocked(why) = next(&rollout, &lost, &[("a", done, serving)], &[]) else { panic!() };
    assert!(why[0].contains("host b is lost"), "{why:?}");
    // It may be passed over, but what its node does is not known: so no other may go.
    rollout.skip_lost = true;
    assert!(matches!(next(&rollout, &lost, &[("a", done, serving)], &[]), Step::Blocked(_)));
    rollout.at_most = 2;
    assert_eq!(next(&rollout, &lost, &[("a", done, serving)], &[]), ask(2, &["c"]));
    let gone = fleet(&["a serving", "c serving"]);
    assert!(matches!(next(&rollout, &gone, &[("a", done, serving)], &[]), Step::Blocked(_)));
}

/// What the world does in a simulated run.
#[derive(Clone, Debug)]
struct World {
    /// Does it serve, is it lost, is it stopped.
    nodes: Vec<u8>,
    max: String,
    first: Option<usize>,
    skip_lost: bool,
    /// What happens next, to whom.
    luck: Vec<(u8, prop::sample::Index)>,
}

fn world() -> impl Strategy<Value = World> {
    let max =
        prop_oneof![(1..6_usize).prop_map(|n| n.to_string()), (1..=100_usize).prop_map(|n| format!("{n}%"))];
    let luck = prop::collection::vec((0..12_u8, any::<prop::sample::Index>()), 0..200);
    (prop::collection::vec(0..12_u8, 0..14), max, prop::option::of(1..5_usize), any::<bool>(), luck)
        .prop_map(|(nodes, max, first, skip_lost, luck)| World { nodes, max, first, skip_lost, luck })
}

fn count_out(
    fleet: &Fleet,
    rollout: &RolloutValue,
    tasks: &BTreeMap<Target, TaskValue>,
    overdue: &BTreeSet<Target>,
) -> usize {
    let mut out: BTreeSet<Target> = tasks
        .iter()
        .filter(|(target, task)| task.state != TaskState::Done && !overdue.contains(*target))
        .map(|(target, _)| target.clone())
        .collect();
    for (name, host) in &fleet.hosts {
        let target = target(name);
        let left = rollout.left_out.iter().any(|left| left.lost && left.target == target);
        if !left && (host.here.is_none() || host.nodes["nginx"].state != "serving") {
            out.insert(target);
        }
    }
    out.len()
}

/// Ten thousand nodes, a hundred at a time: each step looks at all of them, and they are through in seconds all the same.
#[test]
fn thousands_of_nodes() {
    let texts: Vec<String> = (0..10_000)
        .map(|n| format!("h{n:05} {}", if n % 4 == 0 { "lost serving" } else { "serving" }))
        .collect();
    let fleet = fleet(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    let mut options = options("100");
    options.skip_lost = true;
    let rollout = RolloutValue::plan(&fleet, &options).unwrap();
    assert_eq!((rollout.nodes, rollout.left_out.len(), rollout.waves.len()), (7500, 2500, 75));
    let (mut tasks, overdue, mut steps) = (BTreeMap::new(), BTreeSet::new(), 0);
    let begun = std::time::Instant::now();
    loop {
        steps += 1;
        match rollout.next(&View { fleet: &fleet, tasks: &tasks, overdue: &overdue }) {
            Step::Ask(_, targets) => targets.into_iter().for_each(|target| {
                tasks.insert(target, task(TaskState::Asked, None));
            }),
            Step::Wait => {
                for task in tasks.values_mut().filter(|task| task.state != TaskState::Done) {
                    *task = self::task(TaskState::Done, Some(Outcome::Serving));
                }
            }
            step => break assert_eq!(step, Step::Done),
        }
    }
    eprintln!("{steps} steps, {:?} each", begun.elapsed() / steps);
    assert_eq!((steps, tasks.len()), (151, 7500));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// Whatever happens: nothing begins that would take away more than may be, each node is asked once at most and in the order of
    /// the waves, nothing begins after a failure, and it ends.
    #[test]
    fn never_too_many_each_once_and_it_ends(world in world()) {
        let state = |kind: u8| match kind { 0 => "lost serving", 1 => "stopped", 2 => "short", _ => "serving" };
        let texts: Vec<String> = world.nodes.iter().enumerate().map(|(n, kind)| format!("h{n:02} {}", state(*kind))).collect();
        let mut fleet = fleet(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        let mut options = options(&world.max);
        (options.first, options.skip_lost) = (world.first.map(Count::Nodes), world.skip_lost);
        let Ok(rollout) = RolloutValue::plan(&fleet, &options) else { return Ok(()) };
        let (mut tasks, mut overdue) = (BTreeMap::<Target, TaskValue>::new(), BTreeSet::new());
        let (mut asked, mut has_failed, mut last_wave) = (Vec::new(), false, 0);
        let mut luck = world.luck.iter();
        let mut steps = 0;
        loop {
            steps += 1;
            prop_assert!(steps < 2000, "it does not end");
            match rollout.next(&View { fleet: &fleet, tasks: &tasks, overdue: &overdue }) {
                Step::Ask(wave, targets) => {
                    prop_assert!(!has_failed && !targets.is_empty() && wave >= last_wave);
                    if wave > last_wave {
                        let before = rollout.waves[..wave].iter().flatten();
                        let is_through = |t: &&Target| tasks.get(*t).is_some_and(|t| t.state == TaskState::Done)
                            || fleet.hosts[&t.host].here.is_none();
                        prop_assert!(before.clone().all(|t| is_through(&t)), "the wave before is not through");
                    }
                    last_wave = wave;
                    for target in targets {
                        prop_assert!(!asked.contains(&target) && rollout.waves[wave].contains(&target));
                        asked.push(target.clone());
                        tasks.insert(target, task(TaskState::Asked, None));
                    }
                    let out = count_out(&fleet, &rollout, &tasks, &overdue);
                    prop_assert!(out <= rollout.at_most, "{out} of {}", rollout.at_most);
                    continue;
                }
                Step::Wind(targets) => {
                    has_failed = true;
                    for target in targets {
                        tasks.remove(&target);
                    }
                    continue;
                }
                Step::Stop(failure) => {
                    prop_assert!(has_failed && !failure.why.is_empty());
                    break;
                }
                Step::Done => {
                    prop_assert!(!has_failed);
                    for target in rollout.targets() {
                        let is_lost = fleet.hosts[&target.host].here.is_none();
                        prop_assert!(asked.contains(target) || (world.skip_lost && is_lost), "{target} was forgotten");
                    }
                    break;
                }
                Step::Blocked(why) => {
                    prop_assert!(!why.is_empty());
                    // It may pass. If it does not, whoever waits gives up.
                    if luck.len() == 0 {
                        break;
                    }
                }
                Step::Wait => {
                    let is_under_way = tasks.iter().any(|(t, task)| task.state != TaskState::Done && !overdue.contains(t));
                    prop_assert!(is_under_way, "it waits for nothing");
                }
            }
            let Some((what, who)) = luck.next() else {
                // What goes on comes to its end.
                for task in tasks.values_mut().filter(|task| task.state != TaskState::Done) {
                    *task = self::task(TaskState::Done, Some(Outcome::Serving));
                }
                continue;
            };
            if rollout.waves.is_empty() { continue }
            let all: Vec<Target> = rollout.targets().cloned().collect();
            let target = &all[who.index(all.len())];
            let host = fleet.hosts.get_mut(&target.host).unwrap();
            match (what, tasks.get_mut(target)) {
                (0..=3, Some(task)) if task.state == TaskState::Asked => task.state = TaskState::Taken,
                (0..=5, Some(task)) if task.state == TaskState::Taken => {
                    let outcome = if *what == 5 { Outcome::Refused } else { Outcome::Serving };
                    has_failed |= outcome != Outcome::Serving;
                    *task = self::task(TaskState::Done, Some(outcome));
                }
                (6, Some(task)) if task.state != TaskState::Done => {
                    has_failed = true;
                    overdue.insert(target.clone());
                }
                (7, _) => host.here = None,
                (8, _) => host.here = Some(here()),
                (9, _) => host.nodes.get_mut("nginx").unwrap().state = "short".to_owned(),
                (10 | 11, _) => host.nodes.get_mut("nginx").unwrap().state = "serving".to_owned(),
                _ => {}
            }
        }
    }
}
