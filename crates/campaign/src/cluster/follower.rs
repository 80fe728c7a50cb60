//! `headcount cluster events --follow` beside the fleet: what it says must be what etcd has.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use testkit::net::Running;
use testkit::wait;

use crate::fleet::Fleet;
use crate::recorder::{History, Record};

/// On a loaded machine, it takes its time to begin.
const PATIENCE: Duration = Duration::from_secs(90);

/// It is killed with this.
pub struct Follower {
    out: PathBuf,
    err: PathBuf,
    /// The revision from which on it must have said everything.
    from: i64,
    _running: Running,
}

/// An event: its revision, host, kind, and number.
type Told = (i64, String, String, Option<u64>);

impl Follower {
    /// Begins to follow what comes after this revision.
    pub fn start(fleet: &Fleet, from: i64) -> Follower {
        let [out, err] = ["follower.out", "follower.err"].map(|name| fleet.folder().join(name));
        let file = |path: &PathBuf| File::create(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        // It ends if etcd does not answer at its begin; once it has told what is kept, it does not.
        let started = wait::poll(PATIENCE, || {
            // It ends with this process, whatever ends that.
            let mut command = fleet.net.beside("setpriv");
            command.args(["--pdeathsig", "KILL", "--"]).arg(testkit::artifacts::program());
            command
                .args(["cluster", "events", "--follow", "--json", "--config"])
                .arg(fleet.hosts[0].config());
            command.stdout(file(&out)).stderr(file(&err));
            let mut running = Running::direct(&mut command);
            let is_told = || fs::metadata(&out).is_ok_and(|found| found.len() > 0);
            let began =
                wait::poll(PATIENCE, || if is_told() { Some(true) } else { running.ended().map(|_| false) });
            began.unwrap_or(false).then_some(running)
        });
        Follower { _running: started.expect("etcd answers at rest"), out, err, from }
    }

    /// Whether it has said that etcd was set back.
    pub fn has_said_set_back(&self) -> bool {
        fs::read_to_string(&self.err).unwrap_or_default().contains("set back")
    }

    /// The last revision that it has told of.
    pub fn revision(&self) -> i64 {
        self.said().last().map_or(0, |told| told.0)
    }

    fn said(&self) -> Vec<Told> {
        let text = fs::read_to_string(&self.out).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let line = |line: &str| {
            let event: Value = serde_json::from_str(line).ok()?;
            Some((
                event["revision"].as_i64()?,
                event["host"].as_str()?.to_owned(),
                event["kind"].as_str()?.to_owned(),
                event["seq"].as_u64(),
            ))
        };
        whole.lines().filter_map(line).collect()
    }

    /// What differs between what it said and this history.
    pub fn compare(&self, history: &History) -> Option<String> {
        let said: Vec<Told> = self.said().into_iter().filter(|told| told.0 > self.from).collect();
        let real: Vec<Told> =
            history.records.iter().filter(|record| record.revision > self.from).filter_map(told).collect();
        if let Some(two) = said.windows(2).find(|two| two[0].0 > two[1].0) {
            return Some(format!("the follower told {:?} after {:?}", two[1], two[0]));
        }
        let mut counts: BTreeMap<Told, i64> = BTreeMap::new();
        said.into_iter().for_each(|told| *counts.entry(told).or_default() += 1);
        real.into_iter().for_each(|told| *counts.entry(told).or_default() -= 1);
        let wrong: Vec<_> = counts.into_iter().filter(|(_, n)| *n != 0).collect();
        let first = wrong.first()?;
        Some(format!(
            "the follower differs in {} events, such as {first:?} (+: told too often, -: not told)",
            wrong.len()
        ))
    }
}

fn told(record: &Record) -> Option<Told> {
    let mut parts = record.key.strip_prefix("events/")?.split('/');
    let event: Value = serde_json::from_str(record.value.as_ref()?).ok()?;
    Some((
        record.revision,
        parts.next()?.to_owned(),
        event["kind"].as_str()?.to_owned(),
        event["seq"].as_u64(),
    ))
}
