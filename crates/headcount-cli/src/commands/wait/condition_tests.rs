use std::time::Duration;

use headcount::{Cause, Doubt};

use super::*;
use crate::commands::wait::unmet;

fn generation(id: GenerationId, phase: Phase, expected: Option<u32>) -> GenerationStatus {
    let mut generation = GenerationStatus::new(id, phase);
    generation.cause = if id == 1 { Cause::Start } else { Cause::Reload };
    (generation.master, generation.master_alive, generation.expected) = (10, Some(true), expected);
    generation
}

fn process(role: Role, generation: GenerationId, pid: u32, state: State) -> ProcessStatus {
    let mut process = ProcessStatus::new(role, pid, state);
    process.generation = generation;
    (process.age, process.in_state_for) = (Duration::from_secs(7_500), Duration::from_secs(192));
    process.heartbeat_age = Duration::from_millis(6_200);
    process
}

fn worker(generation: GenerationId, pid: u32, state: State) -> ProcessStatus {
    let mut worker = process(Role::Worker, generation, pid, state);
    worker.worker_id = Some(pid % 10);
    worker
}

fn master() -> ProcessStatus {
    process(Role::Master, 0, 10, State::Serving)
}

fn node(generations: Vec<GenerationStatus>, processes: Vec<ProcessStatus>) -> Snapshot {
    let mut snapshot = Snapshot::new("x");
    (snapshot.generations, snapshot.processes) = (generations, processes);
    snapshot
}

/// Generation 1 drains, generation 2 has two of three workers.
fn in_between() -> Snapshot {
    node(
        vec![generation(1, Phase::Committed, Some(3)), generation(2, Phase::Committed, Some(3))],
        vec![
            master(),
            worker(1, 11, State::Draining),
            worker(1, 12, State::Stalled),
            worker(2, 20, State::Serving),
            worker(2, 21, State::Serving),
            worker(2, 22, State::Starting),
        ],
    )
}

fn after() -> Snapshot {
    let processes = vec![
        master(),
        worker(2, 20, State::Serving),
        worker(2, 21, State::Serving),
        worker(2, 22, State::Serving),
    ];
    node(vec![generation(2, Phase::Committed, Some(3))], processes)
}

fn all() -> Wanted {
    Wanted { reloaded: true, drained: true, workers: Some(3), ..Wanted::default() }
}

fn why(wanted: &Wanted, snapshot: &Snapshot) -> String {
    unmet::line(&wanted.unmet(Some(snapshot), "x"))
}

#[test]
fn what_stands_in_the_way_of_a_reload() {
    let unmet = all().unmet(Some(&in_between()), "x");
    insta::assert_snapshot!(unmet::not_reached(Duration::from_secs(60), &unmet), @"
    timed out after 1 m: generation 2: 2 of 3 workers serving, 1 starting (pid 22); generation 1 is left: 1 draining (pid 11), 1 stalled (pid 12); generation 2: 2 workers serving, not 3, 1 starting (pid 22)
      pid 22: worker 2 of generation 2, starting for 3 m 12 s, started 2 h 5 m ago
      pid 11: worker 1 of generation 1, draining for 3 m 12 s, started 2 h 5 m ago
      pid 12: worker 2 of generation 1, stalled, its last heartbeat is 6.2 s old, started 2 h 5 m ago
    ");
    assert!(all().unmet(Some(&after()), "x").is_empty());
    insta::assert_snapshot!(
        all().reached(Some(&after()), "x"),
        @"generation 2 serves with 3 workers; 3 workers of generation 2 serving; no older generation is left"
    );
}

#[test]
fn starting_is_not_serving_and_neither_is_stalled_draining_or_unknown() {
    let reloaded = Wanted { reloaded: true, ..Wanted::default() };
    let workers = Wanted { workers: Some(3), ..Wanted::default() };
    for state in
        [State::Starting, State::Stalled, State::Draining, State::Leaving, State::Died, State::Unknown]
    {
        let mut snapshot = after();
        snapshot.processes[3] = worker(2, 22, state);
        assert!(
            why(&reloaded, &snapshot).contains("2 of 3 workers serving, 1"),
            "{state:?}: {}",
            why(&reloaded, &snapshot)
        );
        assert!(!why(&workers, &snapshot).is_empty(), "{state:?}");
    }
    // Without a number from the server: all that have come must be through their start.
    let mut snapshot = after();
    snapshot.generations[0].expected = None;
    assert_eq!(why(&reloaded, &snapshot), "");
    snapshot.processes[3].state = State::Starting;
    assert_eq!(why(&reloaded, &snapshot), "generation 2: 2 workers serving, 1 starting (pid 22)");
}

#[test]
fn a_generation_on_its_way_is_waited_for() {
    let reloaded = Wanted { reloaded: true, ..Wanted::default() };
    let mut snapshot = after();
    snapshot.generations.push(generation(3, Phase::Announced, Some(3)));
    assert_eq!(why(&reloaded, &snapshot), "generation 3 has begun, its master 10 has started no worker yet");
    snapshot.generations[1].phase = Phase::Abandoned;
    assert_eq!(why(&reloaded, &snapshot), "");
    let newer = Wanted { newer_than: Some(2), ..reloaded };
    assert_eq!(why(&newer, &snapshot), "no generation newer than 2 has begun");
}

#[test]
fn a_master_must_live_for_a_reload_and_not_for_workers() {
    let mut snapshot = after();
    snapshot.generations[0].master_alive = Some(false);
    snapshot.processes.remove(0);
    for p in &mut snapshot.processes {
        p.state = State::Orphaned;
    }
    let reloaded = Wanted { reloaded: true, ..Wanted::default() };
    assert_eq!(why(&reloaded, &snapshot), "master 10 of generation 2 is gone");
    assert_eq!(why(&Wanted { workers: Some(3), ..Wanted::default() }, &snapshot), "");
    assert!(
        why(&Wanted { workers: Some(2), ..Wanted::default() }, &snapshot)
            .contains("3 workers serving, not 2")
    );
}

#[test]
fn a_generation_whose_master_is_gone_or_unknown_says_so() {
    let reloaded = Wanted { reloaded: true, ..Wanted::default() };
    let mut snapshot = after();
    snapshot.generations.push(generation(3, Phase::Announced, Some(3)));
    snapshot.generations[1].master_alive = Some(false);
    assert_eq!(why(&reloaded, &snapshot), "generation 3 has begun, its master 10 is gone");
    let mut snapshot = after();
    snapshot.generations[0].master_alive = None;
    snapshot.processes[0].liveness = Liveness::Unknown(Doubt::OtherNamespace);
    assert_eq!(
        why(&reloaded, &snapshot),
        "it is not known whether master 10 of generation 2 is alive: it runs in another pid namespace; ask from inside its \
         container"
    );
}

#[test]
fn the_kernel_says_who_is_alive() {
    let stopped = Wanted { stopped: true, ..Wanted::default() };
    let mut snapshot = in_between();
    assert_eq!(
        why(&stopped, &snapshot),
        "alive: 1 draining (pid 11), 1 master (pid 10), 2 serving (pids 20, 21), 1 stalled (pid 12), 1 starting (pid 22)"
    );
    for p in &mut snapshot.processes {
        (p.liveness, p.state) = (Liveness::Gone, State::Died);
    }
    assert_eq!(why(&stopped, &snapshot), "");
    // Nobody is left to report that generation 1 has ended.
    assert_eq!(why(&Wanted { drained: true, ..Wanted::default() }, &snapshot), "");
    assert!(why(&all(), &snapshot).starts_with(
        "no master or worker of the node is alive; generation 2: 0 of 3 workers serving, 3 died"
    ));
    // One that cannot be told is not taken for gone.
    snapshot.processes[1].liveness = Liveness::Unknown(Doubt::OtherNamespace);
    assert!(!why(&stopped, &snapshot).is_empty());
}

#[test]
fn a_helper_that_is_left_alone_is_told_of_and_not_waited_for() {
    let stopped = Wanted { stopped: true, ..Wanted::default() };
    let mut snapshot = after();
    snapshot.processes.push(process(Role::Helper, 2, 30, State::Serving));
    assert_eq!(why(&stopped, &snapshot), "alive: 1 master (pid 10), 3 serving (pids 20, 21, 22)");
    for p in snapshot.processes.iter_mut().filter(|p| p.role != Role::Helper) {
        (p.liveness, p.state) = (Liveness::Gone, State::Died);
    }
    assert_eq!(why(&stopped, &snapshot), "");
    let left = "no master or worker of the node is alive; only a helper is left: process 30";
    assert_eq!(stopped.reached(Some(&snapshot), "x"), left);
    assert!(why(&all(), &snapshot).starts_with(left), "{}", why(&all(), &snapshot));
}

#[test]
fn an_end_that_is_not_reported_is_waited_for() {
    let mut snapshot = after();
    snapshot.generations.insert(0, generation(1, Phase::Committed, Some(3)));
    let drained = Wanted { drained: true, ..Wanted::default() };
    assert_eq!(why(&drained, &snapshot), "generation 1 has no process left, but its end is not reported yet");
}

#[test]
fn a_node_that_is_not_there_is_stopped_and_nothing_else() {
    assert!(Wanted { stopped: true, ..Wanted::default() }.unmet(None, "x").is_empty());
    assert_eq!(unmet::line(&all().unmet(None, "at /run/x")), "there is no node at /run/x");
}

#[test]
fn a_crash_loop_in_few_words() {
    let mut snapshot = after();
    snapshot.processes.truncate(1);
    snapshot.processes.extend((100..200).map(|pid| worker(2, pid, State::Died)));
    for (nth, p) in snapshot.processes.iter_mut().enumerate() {
        p.age = Duration::from_millis(5_000 - 10 * nth as u64);
    }
    snapshot.processes.push(worker(2, 200, State::Starting));
    let reloaded = Wanted { reloaded: true, ..Wanted::default() };
    insta::assert_snapshot!(unmet::not_reached(Duration::from_secs(60), &reloaded.unmet(Some(&snapshot), "x")), @"
    timed out after 1 m: generation 2: 0 of 3 workers serving, 100 died, 1 starting (pid 200)
      pid 200: worker 0 of generation 2, starting for 3 m 12 s, started 2 h 5 m ago
      pid 199: worker 9 of generation 2, died, started 4.0 s ago
      pid 198: worker 8 of generation 2, died, started 4.0 s ago
      pid 197: worker 7 of generation 2, died, started 4.0 s ago
      and 97 more that are gone
    ");
}
