use headcount::{Cause, GenerationStatus, ProcessStatus, Role};

use super::*;

const MS: u64 = 1_000_000;

fn generation(id: GenerationId, phase: Phase) -> GenerationStatus {
    let mut generation = GenerationStatus::new(id, phase);
    (generation.cause, generation.expected) = (Cause::Reload, Some(1));
    (generation.master, generation.master_alive) = (10, Some(true));
    generation
}

fn worker(generation: GenerationId, state: State) -> ProcessStatus {
    let mut worker = ProcessStatus::new(Role::Worker, 20 + u32::try_from(generation).unwrap(), state);
    (worker.generation, worker.worker_id) = (generation, Some(0));
    worker
}

/// One worker serves in each generation of these, unless it is only announced.
fn node(generations: &[(GenerationId, Phase)]) -> Snapshot {
    let committed = generations.iter().filter(|(_, phase)| *phase == Phase::Committed);
    let mut snapshot = Snapshot::new("nginx");
    snapshot.processes = committed.map(|(id, _)| worker(*id, State::Serving)).collect();
    snapshot.generations = generations.iter().map(|&(id, phase)| generation(id, phase)).collect();
    snapshot
}

struct Scene {
    taken: (u64, u64),
    begun: Vec<(GenerationId, u64)>,
    abandoned: Vec<GenerationId>,
    snapshot: Snapshot,
    is_nginx: bool,
    rests_for: Option<Duration>,
}

/// nginx serves with generation 1; our signal was pending at 10 ms and taken at 11 ms.
fn scene() -> Scene {
    Scene {
        taken: (10 * MS, 11 * MS),
        begun: Vec::new(),
        abandoned: Vec::new(),
        snapshot: node(&[(1, Phase::Committed)]),
        is_nginx: true,
        rests_for: None,
    }
}

impl Scene {
    fn verdict(&self) -> Verdict {
        let begun: Vec<_> = self.begun.iter().map(|&(id, begun_ns)| Begun { id, begun_ns }).collect();
        let facts = Facts {
            taken: Taken { not_before_ns: self.taken.0, not_after_ns: self.taken.1 },
            begun: &begun,
            abandoned: &self.abandoned.iter().copied().collect(),
            snapshot: &self.snapshot,
            master: 10,
            is_nginx: self.is_nginx,
            rests_for: self.rests_for,
            drained: false,
        };
        facts.verdict()
    }
}

#[test]
fn the_first_generation_after_the_signal_was_taken_answers() {
    let mut s = Scene {
        begun: vec![(2, 15 * MS)],
        snapshot: node(&[(1, Phase::Committed), (2, Phase::Announced)]),
        ..scene()
    };
    assert_eq!(s.verdict(), Verdict::Wait);
    s.snapshot = node(&[(1, Phase::Committed), (2, Phase::Committed)]);
    assert_eq!(s.verdict(), Verdict::Serves(2));
    s.snapshot.processes[1].state = State::Starting;
    assert_eq!(s.verdict(), Verdict::Wait);
}

#[test]
fn one_that_began_while_the_signal_was_pending_does_not() {
    let two = node(&[(1, Phase::Committed), (2, Phase::Committed)]);
    let mut s = Scene { begun: vec![(2, 9 * MS)], snapshot: two, ..scene() };
    assert_eq!(s.verdict(), Verdict::Wait);
    // Ours is refused.
    s.rests_for = Some(SETTLE);
    assert_eq!(s.verdict(), Verdict::Refused);
    // Ours comes.
    s.begun.push((3, 120 * MS));
    s.snapshot = node(&[(2, Phase::Committed), (3, Phase::Committed)]);
    assert_eq!(s.verdict(), Verdict::Serves(3));
}

#[test]
fn a_newer_one_answers_as_well() {
    let newer = node(&[(2, Phase::Committed), (3, Phase::Committed)]);
    let s = Scene { begun: vec![(2, 15 * MS), (3, 130 * MS)], snapshot: newer, ..scene() };
    assert_eq!(s.verdict(), Verdict::Serves(2));
    // It failed, and ours serves.
    let s = Scene { abandoned: vec![3], snapshot: node(&[(2, Phase::Committed)]), ..s };
    assert_eq!(s.verdict(), Verdict::Serves(2));
}

#[test]
fn what_began_while_we_were_not_looking_is_in_doubt_until_the_master_rests() {
    let two = node(&[(1, Phase::Committed), (2, Phase::Committed)]);
    let mut s = Scene { taken: (10 * MS, 300 * MS), begun: vec![(2, 20 * MS)], snapshot: two, ..scene() };
    assert_eq!(s.verdict(), Verdict::Wait);
    s.rests_for = Some(Duration::ZERO);
    assert_eq!(s.verdict(), Verdict::Serves(2));
    s.begun.push((3, 290 * MS));
    s.snapshot = node(&[(2, Phase::Committed), (3, Phase::Announced)]);
    assert_eq!(s.verdict(), Verdict::Wait);
    s.snapshot = node(&[(2, Phase::Committed), (3, Phase::Committed)]);
    assert_eq!(s.verdict(), Verdict::Serves(3));
    // Too short a time for nginx's pause: it cannot be an earlier one's.
    s = Scene { taken: (10 * MS, 110 * MS), rests_for: None, begun: vec![(2, 20 * MS)], ..s };
    assert_eq!(s.verdict(), Verdict::Serves(2));
}

#[test]
fn an_abandoned_one_is_a_failure_once_the_master_rests() {
    let mut s = Scene { begun: vec![(2, 15 * MS)], abandoned: vec![2], ..scene() };
    assert_eq!(s.verdict(), Verdict::Wait, "ours may be being read");
    s.rests_for = Some(Duration::ZERO);
    assert_eq!(s.verdict(), Verdict::Abandoned(2));
    s.begun.push((3, 20 * MS));
    s.snapshot = node(&[(1, Phase::Committed), (3, Phase::Announced)]);
    assert_eq!(s.verdict(), Verdict::Wait);
    s.abandoned.push(3);
    s.snapshot = node(&[(1, Phase::Committed)]);
    assert_eq!(s.verdict(), Verdict::Abandoned(3));
    s = Scene { is_nginx: false, rests_for: None, ..s };
    assert_eq!(s.verdict(), Verdict::Abandoned(3), "others don't tell that they rest");
}

#[test]
fn nothing_at_all_is_a_refusal_only_when_it_is_certain() {
    let mut s = scene();
    assert_eq!(s.verdict(), Verdict::Wait);
    s.rests_for = Some(SETTLE - Duration::from_millis(1));
    assert_eq!(s.verdict(), Verdict::Wait);
    s.rests_for = Some(SETTLE);
    assert_eq!(s.verdict(), Verdict::Refused);
    s.snapshot.processes[0].state = State::Draining;
    assert_eq!(s.verdict(), Verdict::Uncounted);
    s = Scene { is_nginx: false, rests_for: None, ..scene() };
    assert_eq!(s.verdict(), Verdict::Wait);
}
