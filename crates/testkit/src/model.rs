//! A second opinion: replays the reports of a run and says which counts each of them had to carry.
//!
//! The contract's tables give counts for the quiet case. Here any interleaving is judged, so that a
//! test on a busy machine is as strict as one on an idle one. The one thing that a replay cannot
//! know is when a process died before its death was reported; there, and only there, both answers pass.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::report::{Kind, Report, Reports};

#[derive(Default)]
struct Worker {
    stalled: bool,
    draining: bool,
}

#[derive(Default)]
struct Generation {
    workers: BTreeMap<i32, Worker>,
    /// It exists for others from its first worker on; before, it is announced.
    had_worker: bool,
}

type World = BTreeMap<u64, Generation>;

/// Replays the callbacks of a run, then asks whether they also ran in the order of what happened.
pub fn check(reports: &Reports) -> Result<(), String> {
    let told: Vec<(Kind, &Report)> = reports.0.iter().filter_map(|r| Some((r.kind()?, r))).collect();
    let mut events = told.clone();
    // Told again, after the first runner died in it: its place in the order has passed.
    events.retain(|(_, report)| !report.flag("retry"));
    events.sort_by_key(|(_, report)| seq(report));
    let mut world = World::new();
    for (at, &(kind, report)) in events.iter().enumerate() {
        if report.text("kind") != kind.name() {
            return Err(format!("{} was called with another kind: {report}", report.callback));
        }
        let leaves_after =
            matches!(kind, Kind::WorkerExited | Kind::GenerationEnded | Kind::GenerationAbandoned);
        if !leaves_after {
            apply(&mut world, kind, report);
        }
        judge(&world, kind, report, &events[at + 1..])?;
        if leaves_after {
            apply(&mut world, kind, report);
        }
    }
    in_order(&told)
}

fn seq(report: &Report) -> i64 {
    report.int("seq").unwrap_or(0)
}

fn in_order(told: &[(Kind, &Report)]) -> Result<(), String> {
    let mut last = 0;
    for (_, report) in told.iter().filter(|(_, report)| !report.flag("retry")) {
        if seq(report) <= last {
            return Err(format!("told out of order, #{} after #{last}: {report}", seq(report)));
        }
        last = seq(report);
    }
    Ok(())
}

fn apply(world: &mut World, kind: Kind, report: &Report) {
    let (id, pid) = (report.generation(), report.pid());
    match kind {
        Kind::GenerationStarted => {
            if report.cause() == "start" {
                // Another run of the node: nothing of the one before is there any more.
                world.clear();
            }
            world.entry(id).or_default();
        }
        Kind::GenerationEnded | Kind::GenerationAbandoned => {
            world.remove(&id);
        }
        Kind::WorkerStarted => {
            let generation = world.entry(id).or_default();
            generation.had_worker = true;
            generation.workers.insert(pid, Worker::default());
        }
        Kind::WorkerExited | Kind::WorkerDied => {
            if let Some(generation) = world.get_mut(&id) {
                generation.workers.remove(&pid);
            }
        }
        Kind::WorkerDraining | Kind::WorkerStalled | Kind::WorkerRecovered => {
            if let Some(worker) = world.get_mut(&id).and_then(|g| g.workers.get_mut(&pid)) {
                match kind {
                    Kind::WorkerDraining => worker.draining = true,
                    _ => worker.stalled = kind == Kind::WorkerStalled,
                }
            }
        }
        Kind::MasterLost => {}
    }
}

/// What will be said next about a process.
fn next_word(pid: i32, later: &[(Kind, &Report)]) -> Option<Kind> {
    later
        .iter()
        .find(|(kind, report)| report.pid() == pid && *kind != Kind::MasterLost)
        .map(|(kind, _)| *kind)
}

/// Live workers, those among them that drain: least and most.
fn count(generation: &Generation, later: &[(Kind, &Report)]) -> (RangeInclusive<i64>, RangeInclusive<i64>) {
    let (mut least, mut most, mut draining_least, mut draining_most) = (0, 0, 0, 0);
    for (&pid, worker) in &generation.workers {
        let next = next_word(pid, later);
        let surely = !worker.stalled && !matches!(next, Some(Kind::WorkerDied | Kind::WorkerStalled));
        let maybe = !worker.stalled || next == Some(Kind::WorkerRecovered);
        least += i64::from(surely);
        most += i64::from(maybe);
        draining_least += i64::from(surely && worker.draining);
        draining_most += i64::from((maybe || worker.stalled) && worker.draining);
    }
    (least..=most, draining_least..=draining_most)
}

fn judge(world: &World, kind: Kind, report: &Report, later: &[(Kind, &Report)]) -> Result<(), String> {
    let id = report.generation();
    let wrong = |what: &str, expected: String| {
        Err(format!("{what} should be {expected} by all that was reported before: {report}"))
    };

    if let Some(mine) = world.get(&id) {
        let (live, draining) = count(mine, later);
        // Whether an abandoned generation still counts itself is nobody's business.
        let fits = report.int("mine").is_some_and(|n| live.contains(&n));
        if !fits && kind != Kind::GenerationAbandoned {
            return wrong("mine", format!("{live:?}"));
        }
        // The one that leaves may be called draining or leaving.
        let leaving = i64::from(kind == Kind::WorkerExited);
        let expected = draining.start() - leaving..=*draining.end();
        if let Some(n) = report.int("draining").filter(|n| !expected.contains(n)) {
            return wrong("draining", format!("{expected:?}, not {n}"));
        }
    } else if kind != Kind::MasterLost {
        return Err(format!("of a generation that is not there: {report}"));
    }

    // An announced generation may be skipped or be there with nobody in it.
    let neighbour = |field: &str, candidates: Vec<&Generation>| {
        let said = report.int(field);
        for candidate in candidates {
            let (live, _) = count(candidate, later);
            if said.is_some_and(|n| live.contains(&n)) {
                return Ok(());
            }
            if candidate.had_worker {
                return wrong(field, format!("{live:?}"));
            }
        }
        if said.is_none() { Ok(()) } else { wrong(field, "nil".to_owned()) }
    };
    neighbour("prev", world.range(..id).rev().map(|(_, g)| g).collect())?;
    neighbour("next", world.range(id + 1..).map(|(_, g)| g).collect())?;

    if let Some(total) = report.int("total") {
        let (mut least, mut most) = (0, 0);
        for generation in world.values() {
            let (live, _) = count(generation, later);
            least += live.start();
            most += live.end();
        }
        if !(least..=most).contains(&total) {
            return wrong("total", format!("{least}..={most}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(lines: &[&str]) -> Result<(), String> {
        let text: String = lines
            .iter()
            .enumerate()
            .map(|(at, line)| {
                let (callback, event) = line.split_once(' ').expect("callback and event");
                let kind =
                    Kind::ALL.into_iter().find(|k| k.callback() == callback).expect("a callback's name");
                format!(
                    "{{\"callback\":\"{callback}\",\"runner\":1,\"at\":{at},\"phase\":\"\",\
                     \"event\":{{\"kind\":\"{}\",\"seq\":{},{event}}}}}\n",
                    kind.name(),
                    at + 1
                )
            })
            .collect();
        check(&Reports::parse(&text))
    }

    const START: &str = r#"on_generation_start "generation":1,"pid":9,"cause":"start","mine":0"#;

    #[test]
    fn a_quiet_life_passes() {
        run(&[
            START,
            r#"on_worker_start "generation":1,"pid":10,"mine":1,"total":1"#,
            r#"on_worker_start "generation":1,"pid":11,"mine":2,"total":2"#,
            r#"on_worker_draining "generation":1,"pid":10,"mine":2,"draining":1"#,
            r#"on_worker_exit "generation":1,"pid":10,"mine":2,"draining":1"#,
            r#"on_worker_died "generation":1,"pid":11,"mine":0"#,
            r#"on_generation_exit "generation":1,"pid":9,"mine":0"#,
        ])
        .unwrap();
    }

    #[test]
    fn a_dead_worker_that_is_counted_for_ever_is_seen() {
        let broken = run(&[
            START,
            r#"on_worker_start "generation":1,"pid":10,"mine":1"#,
            r#"on_worker_died "generation":1,"pid":10,"mine":1"#,
        ]);
        assert!(broken.unwrap_err().contains("mine"));
    }

    #[test]
    fn a_ghost_generation_is_seen() {
        let broken = run(&[
            START,
            r#"on_worker_start "generation":1,"pid":10,"mine":1"#,
            r#"on_generation_start "generation":2,"pid":9,"cause":"reload","prev":1,"mine":0"#,
            r#"on_generation_abandoned "generation":2,"pid":9,"prev":1,"mine":0"#,
            r#"on_worker_exit "generation":1,"pid":10,"mine":1,"next":0"#,
        ]);
        assert!(broken.unwrap_err().contains("next"));
    }

    #[test]
    fn a_death_may_show_before_its_report() {
        let lines = |mine: u32| {
            run(&[
                START,
                r#"on_worker_start "generation":1,"pid":10,"mine":1"#,
                r#"on_worker_start "generation":1,"pid":11,"mine":2"#,
                &format!(r#"on_worker_draining "generation":1,"pid":11,"mine":{mine}"#),
                r#"on_worker_died "generation":1,"pid":10,"mine":1"#,
            ])
        };
        lines(1).unwrap();
        lines(2).unwrap();
        lines(3).unwrap_err();
    }
}
