//! A moment of rest: nothing more is done, all must have been said, and all that is said must be what the kernel says.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;
use testkit::{Signal, process};

use super::{Chapter, Life};
use crate::checker::{self, Call, Class, Evidence, Tally, Violation};
use crate::deeds::{self, Deed, ONCES, ROLE};
use crate::front::Front;
use crate::journal::{self, Event, Kind, headcount};

/// For the server itself.
const PATIENCE: Duration = Duration::from_secs(20);
/// For headcount, once the server stands still.
const HEADCOUNT: Duration = Duration::from_secs(5);
/// For the end of a generation whose master was killed before a worker had joined: ten seconds after its begin.
const GENERATION: Duration = Duration::from_secs(15);

impl Life<'_> {
    pub(super) fn rest(&mut self) {
        if !self.out.violations.is_empty() {
            return;
        }
        self.rests += 1;
        if self.kernel.lost() != self.lost {
            return self
                .violation(Class::Blind, "messages of the kernel were lost: this life proves nothing");
        }
        self.undo(usize::MAX);
        self.clear_traps();
        if self.comes_to_rest() && self.status_fits() {
            self.all_was_said();
            self.readers_have_all();
            if self.rests.is_multiple_of(5) && Instant::now() > self.busy_until {
                self.is_quiet();
            }
            self.does_not_grow();
        }
        let bad = checker::bad_lines(&self.server.log());
        for line in bad {
            self.violation(Class::Log, line);
        }
        self.note(&format!("rest {}", self.rests));
    }

    fn comes_to_rest(&mut self) -> bool {
        let wanted = self.server.workers as usize;
        let full = |life: &mut Self| {
            life.server.reap();
            let all = life.server.workers(life.kernel);
            all.len() == wanted
                && life.server.serving(life.kernel) == all
                && life.server.family(life.kernel).len() == wanted + 1
        };
        if self.wait(Duration::from_secs(4), full) {
            return true;
        }
        let there = self.server.workers(self.kernel).len();
        if self.front.is_nginx() && self.server.master().is_some() && there != wanted {
            // A master that is told to reload and to send its workers away within one sleep does it in this order. And one that
            // was ever sent WINCH starts all its workers again when an upgrade is rolled back, though they are there.
            self.remark(match there {
                0 => "servers without workers, reloaded once more: nginx had heard HUP before WINCH",
                _ if there > wanted => {
                    "servers with too many workers, reloaded once more: nginx has it from WINCH"
                }
                _ => "servers with too few workers, reloaded once more",
            });
            self.tell_master(Signal::HUP);
        }
        if self.wait(PATIENCE, full) {
            return true;
        }
        let family = self.server.family(self.kernel);
        let show = |pid: &i32| {
            format!("{pid} {} {:?}", process::title(*pid), process::stat(*pid).map(|s| (s.state, s.parent)))
        };
        let titles: Vec<String> = family.iter().map(show).collect();
        self.violation(
            Class::Hung,
            format!("{wanted} workers did not come to rest within {PATIENCE:?}: {titles:?}"),
        );
        false
    }

    pub(super) fn status(&self) -> Result<Value, String> {
        let output =
            headcount(&self.server.registry(), &["status", "--json"]).output().map_err(|e| e.to_string())?;
        let status: Value = serde_json::from_slice(&output.stdout).map_err(|e| {
            format!(
                "{e}: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            )
        })?;
        Ok(status["nodes"][0].clone())
    }

    fn status_fits(&mut self) -> bool {
        let mut wrong = String::new();
        let begun = Instant::now();
        let fits = self.wait(GENERATION, |life| {
            let kernel: BTreeSet<i32> = life.server.workers(life.kernel).into_iter().collect();
            let has_singletons = life.front.has_singletons();
            let compared = life.status().and_then(|status| {
                compare(&status, &kernel, life.server.master())?;
                if has_singletons { compare_singletons(&status, &kernel) } else { Ok(()) }
            });
            match compared {
                Ok(()) => return true,
                Err(error) => wrong = error,
            }
            false
        });
        if !fits {
            // A master that was busy hears of a fault when all was at rest already.
            let wanted = self.server.workers as usize;
            let moved = self.server.serving(self.kernel).len() != wanted;
            if moved && self.comes_to_rest() {
                return self.status_fits();
            }
            self.violation(Class::Status, wrong);
            return false;
        }
        if begun.elapsed() > HEADCOUNT {
            self.remark(
                "rests that waited for a generation whose master was killed before any worker had joined",
            );
        }
        *self.out.tally.counts.entry("comparisons of status with the kernel").or_default() += 1;
        if self.rests.is_multiple_of(4) {
            self.metrics_fit();
        }
        true
    }

    fn metrics_fit(&mut self) {
        let wanted = f64::from(self.server.workers);
        let mut wrong = String::new();
        // One that was killed a moment ago may have lived until now, as the kernel says too.
        let fits = self.wait(HEADCOUNT, |life| {
            let Ok(output) = headcount(&life.server.registry(), &["status", "--metrics"]).output() else {
                return false;
            };
            let text = String::from_utf8_lossy(&output.stdout);
            let value = |metric: &str, label: &str| -> Option<f64> {
                let line = text.lines().find(|line| line.starts_with(metric) && line.contains(label))?;
                line.rsplit(' ').next()?.parse().ok()
            };
            let workers = value("headcount_generation_workers{", "current");
            let expected = value("headcount_workers_expected{", "");
            wrong = format!("{workers:?} workers and {expected:?} expected, and there are {wanted}:\n{text}");
            (workers, expected) == (Some(wanted), Some(wanted))
        });
        if !fits {
            self.violation(Class::Status, wrong);
        }
        *self.out.tally.counts.entry("comparisons of metrics with the kernel").or_default() += 1;
    }

    /// All that had to be said is said within the time, and is right.
    fn all_was_said(&mut self) {
        let (mut found, mut tally) = (Vec::new(), Tally::default());
        self.wait(HEADCOUNT, |life| {
            match life.judge() {
                Ok((violations, counted)) => (found, tally) = (violations, counted),
                Err(error) => found = vec![Violation::new(Class::Gap, error)],
            }
            if !found.is_empty() {
                // Each look costs as much as all that was said so far.
                std::thread::sleep(Duration::from_millis(20));
            }
            found.is_empty()
        });
        for violation in found {
            self.violation(violation.class, violation.text);
        }
        // Of all since the start of this life: the last one counts.
        self.last_tally = tally;
    }

    /// Readers that were stopped midway go on where they were.
    fn readers_have_all(&mut self) {
        for mut reader in std::mem::take(&mut self.readers) {
            let mut wrong = String::new();
            let has_all = self.wait(HEADCOUNT, |life| {
                let all = |life: &Self| -> Result<(), String> {
                    let head = life.status()?["head"].as_u64().ok_or("the status has no head")?;
                    let (events, lost) = journal::parse(&reader.text(), life.wall)?;
                    match (events.last().map_or(0, |event| event.seq), checker::numbers(&events, 1).first()) {
                        (_, Some(violation)) => Err(violation.to_string()),
                        (last, None) if last == head && lost == 0 => Ok(()),
                        (last, None) => Err(format!("it is at {last} of {head} and has lost {lost}")),
                    }
                };
                all(life).map_err(|error| wrong = error).is_ok()
            });
            if !has_all {
                let lives = reader.lives();
                self.violation(
                    Class::Gap,
                    format!("a reader that had been stopped (it lives: {lives}): {wrong}"),
                );
            }
            *self.out.tally.counts.entry("readers that went on after they were stopped").or_default() += 1;
        }
    }

    fn judge(&self) -> Result<(Vec<Violation>, Tally), String> {
        let (events, lost) = journal::parse(&self.follower.text(), self.wall)?;
        let head = self.status()?["head"].as_u64().ok_or("the status has no head")?;
        let last = events.last().map_or(0, |event| event.seq);
        if last != head || lost != 0 {
            return Err(format!(
                "the journal's head is {head}, and its reader is at {last} and has lost {lost}"
            ));
        }
        let Chapter { generation, seq } = self.chapter;
        let begins = |event: &Event| event.kind == Kind::GenerationStarted && event.generation > generation;
        let from = events.iter().position(begins).unwrap_or(events.len());
        let events = &events[from..];
        let first = events.first().map_or(seq + 1, |event| event.seq);
        if generation > 0 && first <= seq {
            return Err(format!("the journal had come to {seq}, and goes on with {first}"));
        }
        let mut calls = self.calls()?;
        calls.retain(|call| call.generation > generation);
        let processes = self.kernel.all();
        let complete = self.kernel.source() == crate::kernel::Source::Connector;
        let hindered = &self.hindered;
        let deeds = self.deeds(events);
        Ok(checker::check(&Evidence {
            processes: &processes,
            complete,
            first,
            events,
            calls: &calls,
            deeds: &deeds,
            hindered,
        }))
    }

    /// Of the workers that these events are about.
    fn deeds(&self, events: &[Event]) -> Vec<Deed> {
        let read = |name| self.server.folder().read(name);
        let mut deeds = match self.front {
            Front::Lua | Front::Both => deeds::recorded(&read("reports.jsonl")),
            Front::Module => Vec::new(),
            Front::Rust => deeds::printed(&read("stdio.log")),
        };
        let started = events.iter().filter(|event| event.kind == Kind::WorkerStarted);
        let ours: BTreeSet<i32> = started.filter_map(|event| event.pid).collect();
        deeds.retain(|deed| ours.contains(&deed.pid));
        deeds.sort_by_key(|deed| deed.at);
        deeds
    }

    fn calls(&self) -> Result<Vec<Call>, String> {
        let read = |name| self.server.folder().read(name);
        match self.front {
            Front::Lua | Front::Both => recorded(&read("reports.jsonl")),
            Front::Module => Ok(logged(&read("error.log"), self.chapter.generation)),
            Front::Rust => Ok(printed(&read("stdio.log"))),
        }
    }

    /// Nobody has anything to do, and nobody does anything.
    fn is_quiet(&mut self) {
        const TIME: Duration = Duration::from_millis(500);
        self.load.rest(true);
        std::thread::sleep(Duration::from_millis(100));
        let used = |life: &Self| -> Vec<(i32, Duration)> {
            let family = life.server.family(life.kernel);
            family.into_iter().filter_map(|pid| Some((pid, process::stat(pid)?.cpu))).collect()
        };
        let before = used(self);
        std::thread::sleep(TIME);
        let after = used(self);
        self.load.rest(false);
        for ((pid, before), (same, after)) in before.iter().zip(&after) {
            // The kernel counts in ticks of 10 ms.
            if pid == same && after.saturating_sub(*before) > Duration::from_millis(50) {
                self.violation(
                    Class::Busy,
                    format!("process {pid} used {:?} within {TIME:?} at rest", after.saturating_sub(*before)),
                );
            }
        }
        *self.out.tally.counts.entry("looks at processor time at rest").or_default() += 1;
    }

    fn does_not_grow(&mut self) {
        let size = std::fs::metadata(self.server.registry()).map(|meta| meta.len()).ok();
        match (self.registry_size, size) {
            (Some(before), Some(now)) if before != now => {
                self.violation(Class::Growth, format!("the registry has {now} bytes, and had {before}"));
            }
            _ => {}
        }
        self.registry_size = size.or(self.registry_size);
        let Some(master) = self.server.master() else { return };
        let open = process::open_descriptors(master);
        let first = *self.descriptors.entry(self.server.workers).or_insert(open);
        // nginx keeps the channels of workers that have just left until it hears of their end; and a master four descriptors of each
        // registry that was removed under it.
        let most = first + 4 + 4 * self.registries_lost;
        let fits = self.wait(HEADCOUNT, |_| process::open_descriptors(master) <= most);
        if !fits {
            let open = process::open_descriptors(master);
            self.violation(Class::Growth, format!("the master has {open} descriptors, and had {first}"));
        }
        *self.out.tally.counts.entry("looks at sizes and descriptors").or_default() += 1;
    }
}

fn compare(status: &Value, kernel: &BTreeSet<i32>, master: Option<i32>) -> Result<(), String> {
    let processes = status["processes"].as_array().ok_or_else(|| format!("no processes: {status}"))?;
    let of = |role: &'static str| processes.iter().filter(move |process| process["role"] == role);
    let pids: BTreeSet<i32> =
        of("worker").filter_map(|process| process["pid"].as_i64()).map(|pid| pid as i32).collect();
    if pids != *kernel {
        return Err(format!("the kernel's workers are {kernel:?}: {status}"));
    }
    if of("worker").any(|process| process["state"] != "serving" || process["liveness"] != "alive") {
        return Err(format!("not all serve: {status}"));
    }
    let masters: Vec<Option<i64>> = of("master").map(|process| process["pid"].as_i64()).collect();
    if masters != [master.map(i64::from)] {
        return Err(format!("the kernel's master is {master:?}: {status}"));
    }
    let generations = status["generations"].as_array().map_or(0, Vec::len);
    let expected = kernel.len() as u64;
    let newest = &status["generations"][generations.saturating_sub(1)];
    if generations != 1 || newest["mine"] != expected || newest["expected"] != expected {
        return Err(format!("not one generation with {expected} workers: {status}"));
    }
    if status["total"] != expected {
        return Err(format!("the total is not {expected}: {status}"));
    }
    Ok(())
}

/// One of the workers leads, and all that is to be done once is done, or has failed.
fn compare_singletons(status: &Value, kernel: &BTreeSet<i32>) -> Result<(), String> {
    let all = status["singletons"].as_array().ok_or_else(|| format!("no singletons: {status}"))?;
    let of = |kind: &'static str, name: &'static str| {
        all.iter().filter(move |x| x["kind"] == kind && x["name"] == name)
    };
    let leads = |role: &Value| {
        let holder = role["holder"].as_i64().map(|pid| pid as i32);
        role["state"] == "held" && holder.is_some_and(|pid| kernel.contains(&pid))
    };
    if of("role", ROLE).count() != 1 || !of("role", ROLE).all(leads) {
        return Err(format!("nobody leads: {status}"));
    }
    for once in ONCES {
        let is_over = |x: &Value| x["state"] == "done" || x["state"] == "failed";
        if of("once", once).count() != 1 || !of("once", once).all(is_over) {
            return Err(format!("{once} is not settled: {status}"));
        }
    }
    Ok(())
}

/// What the recorder wrote.
fn recorded(text: &str) -> Result<Vec<Call>, String> {
    #[derive(Deserialize)]
    struct Line {
        callback: String,
        runner: i32,
        at: f64,
        event: Value,
    }
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut calls = Vec::new();
    for text in whole.lines() {
        // Who is killed as it writes leaves half a line, and the next one writes behind it: no callback's end was told there.
        let starts = text.match_indices("{\"").map(|(at, _)| &text[at..]);
        let whole = starts.filter_map(|text| serde_json::from_str::<Line>(text).ok()).next();
        let line = whole.ok_or_else(|| format!("no line of the recorder: {text}"))?;
        if line.callback.starts_with("on_") {
            let seq = line.event["seq"].as_u64().ok_or_else(|| format!("no number: {}", line.event))?;
            let retry = line.event["retry"].as_bool().unwrap_or(false);
            let generation = line.event["generation"].as_u64().unwrap_or(0);
            calls.push(Call { seq, generation, retry, runner: line.runner, at: Some(line.at as u64) });
        }
    }
    Ok(calls)
}

/// What the module wrote to error.log. A new master has no error.log while it reads its configuration: its first line comes
/// later than others of that time, and is put where its number belongs: among those of later generations than `after`, since
/// those before have numbers of another registry.
fn logged(text: &str, after: u64) -> Vec<Call> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut calls: Vec<Call> = Vec::new();
    for report in whole.lines().filter_map(|line| testkit::native::report(line, 0)) {
        let Some(seq) = report.int("seq").map(|seq| seq as u64) else { continue };
        let generation = report.generation();
        if generation <= after {
            continue;
        }
        let call = Call { seq, generation, retry: report.flag("retry"), runner: report.runner, at: None };
        let is_late = report.kind() == Some(testkit::Kind::GenerationStarted)
            && matches!(report.cause(), "start" | "upgrade");
        let at = calls.iter().position(|other| is_late && other.seq > seq).unwrap_or(calls.len());
        calls.insert(at, call);
    }
    calls
}

/// What the example server printed.
fn printed(text: &str) -> Vec<Call> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let call = |line: &str| {
        let fact = |name: &str| line.split(' ').find_map(|fact| fact.strip_prefix(name)?.strip_prefix('='));
        Some(Call {
            seq: fact("event")?.parse().ok()?,
            generation: fact("generation")?.parse().ok()?,
            retry: fact("retry")? == "true",
            runner: fact("by")?.parse().ok()?,
            at: None,
        })
    };
    whole.lines().filter_map(call).collect()
}
