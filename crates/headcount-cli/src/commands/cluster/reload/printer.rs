//! What `headcount cluster reload` prints: a line for each thing that happens, with its time; and beside it what is waited for.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};

use anstyle::Style;
use headcount_cluster::rollout::{Ended, Failure, RolloutValue};
use headcount_cluster::task::{Outcome, Target, TaskState, TaskValue};
use headcount_report::{age, plural};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::clock::{self, Deadline};
use crate::commands::events::text::time;
use crate::commands::wait::progress::Progress;
use crate::escape::{escape, escape_json};
use crate::paint;
use crate::say::say;

pub struct Printer {
    json: bool,
    zone: TimeZone,
    begun: Deadline,
    progress: Option<Progress>,
}

/// A moment that another clock has noted, for people.
pub fn at(seconds: f64) -> String {
    time((seconds.clamp(0.0, 1e10) * 1e9) as u64, &TimeZone::system())
}

/// So many nodes of a wave are named when it begins.
const LISTED: usize = 20;
/// So many nodes are named in what is waited for.
const NAMED: usize = 3;

impl Printer {
    pub fn new(json: bool) -> Printer {
        let begun = Deadline::after(std::time::Duration::ZERO);
        Printer { json, zone: TimeZone::system(), begun, progress: None }
    }

    /// Clears what is waited for.
    pub fn pause(&mut self) {
        self.progress.iter_mut().for_each(Progress::end);
    }

    /// Says beside what is printed.
    pub fn say(&mut self, what: &str) {
        self.pause();
        say(what);
    }

    /// A rollout goes on though nobody reads any more what is printed, as after `| head -1`: it ends as it ends.
    fn print(&mut self, line: &str) -> std::io::Result<()> {
        self.pause();
        let mut out = anstream::stdout().lock();
        match writeln!(out, "{line}").and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }

    fn line(&mut self, style: Style, what: &str) -> std::io::Result<()> {
        let now = time(clock::wall_ns(), &self.zone);
        self.print(&format!("{}{now}{:#}  {style}{}{style:#}", paint::DIM, paint::DIM, escape(what)))
    }

    fn document(&mut self, kind: &str, members: Value) -> std::io::Result<()> {
        let mut document = serde_json::Map::new();
        document.insert("kind".to_owned(), kind.into());
        document.insert("time".to_owned(), (clock::wall_ns() as f64 / 1e9).into());
        if let Value::Object(members) = members {
            document.extend(members);
        }
        self.print(&escape_json(Value::Object(document).to_string()))
    }

    fn plain(&mut self, what: &str) -> std::io::Result<()> {
        self.print(&escape(what))
    }

    /// What is going to be done. `whole`: and nothing follows.
    pub fn plan(&mut self, cluster: &str, record: &RolloutValue, whole: bool) -> std::io::Result<()> {
        if self.json {
            return self.document(
                "plan",
                json!({ "rollout": record.id, "at_most": record.at_most, "drained": record.drained,
                        "timeout": record.timeout, "waves": record.waves, "left_out": record.left_out }),
            );
        }
        self.plain(&summary(cluster, record))?;
        if whole {
            for wave in 0..record.waves.len() {
                self.plain(&in_words(record, wave, usize::MAX))?;
            }
        }
        for left in &record.left_out {
            self.plain(&format!("left out: {}: {}", left.target, left.why))?;
        }
        Ok(())
    }

    pub fn resumed(
        &mut self,
        cluster: &str,
        record: &RolloutValue,
        had_stopped: Option<&Ended>,
    ) -> std::io::Result<()> {
        if self.json {
            return self.plan(cluster, record, false);
        }
        self.plain(&format!(
            "{}; going on with what {} began at {}",
            summary(cluster, record),
            record.by,
            at(record.begun)
        ))?;
        match had_stopped {
            Some(ended) => self.plain(&format!("it had stopped at {}: {}", at(ended.time), ended.why)),
            None => Ok(()),
        }
    }

    pub fn aborted(&mut self, record: &RolloutValue) -> std::io::Result<()> {
        if self.json {
            return self.document("end", json!({ "how": "aborted", "rollout": record.id }));
        }
        self.plain(&format!(
            "ended: the reload of {} that {} began at {}. What has begun on a host goes on there",
            plural(record.nodes as u64, "node"),
            record.by,
            at(record.begun)
        ))
    }

    pub fn wave(&mut self, record: &RolloutValue, wave: usize) -> std::io::Result<()> {
        self.progress = (!self.json).then(|| Progress::new(Deadline::after(record.timeout())));
        match self.json {
            true => self.document("wave", json!({ "wave": wave + 1, "nodes": record.waves[wave] })),
            false => self.line(paint::HEADING, &in_words(record, wave, LISTED)),
        }
    }

    pub fn task(&mut self, target: &Target, task: &TaskValue) -> std::io::Result<()> {
        let report = task.report.as_ref();
        if self.json {
            let kind = match task.state {
                TaskState::Asked => return Ok(()),
                TaskState::Taken => "reloading",
                TaskState::Done => "node",
            };
            let mut members = json!({ "host": target.host, "node": target.node });
            if let (Value::Object(members), Some(report)) = (&mut members, report) {
                members.insert("outcome".to_owned(), json!(report.outcome));
                members.insert("generation".to_owned(), json!(report.generation));
                members.insert("text".to_owned(), json!(report.text));
                members.insert("took".to_owned(), json!(report.took));
            }
            return self.document(kind, members);
        }
        match (task.state, report) {
            (TaskState::Asked, _) => Ok(()),
            (TaskState::Taken, _) => self.line(paint::DIM, &format!("{target}  reloading")),
            (TaskState::Done, Some(report)) => {
                let style = if report.outcome == Outcome::Serving { paint::GOOD } else { paint::ERROR };
                self.line(style, &format!("{target}  {}", report.text))
            }
            (TaskState::Done, None) => self.line(paint::ERROR, &format!("{target}  there is no report")),
        }
    }

    /// What is waited for, where people see it.
    pub fn waiting(&mut self, tasks: &BTreeMap<Target, TaskValue>) {
        let Some(progress) = &mut self.progress else { return };
        let under_way = || tasks.iter().filter(|(_, task)| task.state != TaskState::Done);
        let mut what: Vec<String> = under_way()
            .take(NAMED)
            .map(|(target, task)| match (&task.progress, task.state) {
                (Some(progress), _) => format!("{target}: {progress}"),
                (None, TaskState::Asked) => format!("{target}: its agent has not begun yet"),
                (None, _) => format!("{target} reloads"),
            })
            .collect();
        if let more @ 1.. = under_way().count() - what.len() {
            what.push(format!("and {more} more"));
        }
        progress.show(&escape(&what.join("; ")));
    }

    /// Why nothing begins.
    pub fn blocked(&mut self, why: &[String]) {
        let Some(progress) = &mut self.progress else { return };
        progress.show(&escape(&format!("nothing more begins: {}", why.join("; "))));
    }

    pub fn done(&mut self, record: &RolloutValue) -> std::io::Result<()> {
        if self.json {
            return self.document("end", json!({ "how": "done", "rollout": record.id }));
        }
        let number = record.nodes as u64;
        let verb = if number == 1 { "serves its" } else { "serve their" };
        let took = age(self.begun.elapsed());
        self.line(
            paint::HEADING,
            &format!("{} {verb} new generation; it took {took}", plural(number, "node")),
        )
    }

    /// Of a text for people, the standard error has it.
    pub fn stopped(&mut self, failure: &Failure, text: &str) -> std::io::Result<()> {
        self.pause();
        if self.json {
            let outcome = failure.outcome;
            return self.document("end", json!({ "how": "stopped", "outcome": outcome, "text": text }));
        }
        Ok(())
    }
}

fn summary(cluster: &str, record: &RolloutValue) -> String {
    format!(
        "cluster {cluster}: {} in {}, at most {} at a time",
        plural(record.nodes as u64, "node"),
        plural(record.waves.len() as u64, "wave"),
        record.at_most
    )
}

/// So many of them are named.
fn in_words(record: &RolloutValue, wave: usize, most: usize) -> String {
    let all = &record.waves[wave];
    let nodes: Vec<String> = all.iter().take(most).map(ToString::to_string).collect();
    let more = match all.len() - nodes.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("wave {} of {}: {}{more}", wave + 1, record.waves.len(), nodes.join(", "))
}
