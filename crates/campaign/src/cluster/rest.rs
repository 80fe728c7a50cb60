//! When nothing goes wrong any more, what etcd has must be the truth, which the kernel tells.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use serde_json::Value;
use testkit::net::Running;
use testkit::process;

use crate::checker::{Checker, Tally};
use crate::fault::Number;
use crate::fleet::{Fleet, WORKERS};

/// The node of the example server.
const NODE: &str = "prefork-example";

/// What differs, for each host.
pub fn differences(fleet: &mut Fleet, checker: &Checker) -> Vec<String> {
    let all = 0..fleet.hosts.len();
    let mut wrong: Vec<String> = all.filter_map(|host| difference(fleet, checker, host)).collect();
    wrong.extend(checker.untold().into_iter().map(|what| format!("nobody has told of {what}")));
    wrong
}

fn difference(fleet: &mut Fleet, checker: &Checker, host: Number) -> Option<String> {
    let name = fleet.name(host).to_owned();
    let value = |key: String| -> Option<Value> { serde_json::from_str(checker.now.get(&key)?).ok() };
    let Some(there) = value(format!("hosts/{name}")) else { return Some(format!("{name} is not there")) };
    // What is there may be of an agent that is gone, under a lease that will yet end.
    if !is_of_its_agent(fleet, host, &there) {
        return Some(format!("{name} is there, but not by the agent that runs: {there}"));
    }
    if value(format!("known/{name}")).is_none_or(|known| known["presence"] != "here") {
        return Some(format!("{name} is not known as here: {:?}", checker.now.get(&format!("known/{name}"))));
    }
    let servers = fleet.servers(host).len();
    let has_master = fleet.hosts[host].server.as_mut().is_some_and(Running::is_alive);
    let Some(node) = value(format!("nodes/{name}/{NODE}")) else {
        return Some(format!("the node of {name} is not there"));
    };
    let state = node["state"].as_str().unwrap_or_default();
    let right = match (has_master, servers) {
        // Three young workers that died in the last two minutes are a loop.
        (true, n) => {
            n == WORKERS + 1
                && node["serving"] == WORKERS
                && (state == "serving" || state == "crash_loop" && node["deaths"].as_u64() >= Some(3))
        }
        (false, 0) => state == "stopped",
        (false, _) => state == "orphaned",
    };
    (!right)
        .then(|| format!("of {name}, {servers} processes live, master: {has_master}, and etcd has {node}"))
}

fn is_of_its_agent(fleet: &Fleet, host: Number, there: &Value) -> bool {
    let Some(pid) = fleet.hosts[host].agent.as_ref().map(Running::pid) else { return false };
    let Ok(namespace) = std::fs::metadata(format!("/proc/{pid}/ns/pid")).map(|found| found.ino()) else {
        return false;
    };
    let inner = process::inner_pid(pid);
    let place = there["place"].as_str().unwrap_or_default();
    inner.is_some()
        && there["pid"].as_i64() == inner.map(i64::from)
        && place.ends_with(&format!(":{namespace}"))
}

/// Compares what was told of each node's events with its own journal.
pub fn journals(fleet: &Fleet, checker: &Checker, tally: &mut Tally) -> Vec<String> {
    let mut wrong = Vec::new();
    for host in 0..fleet.hosts.len() {
        let name = fleet.name(host);
        let Some((registry, head)) = checker.head(name, NODE) else { continue };
        let mut command = fleet.hosts[host].headcount(&fleet.net, &["events", "--json", "--registry"]);
        let path = fleet.hosts[host].runtime().join("web.registry");
        let answer = command.arg(path).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let text = String::from_utf8_lossy(&answer.stdout);
        let journal: BTreeMap<u64, Value> = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|event| Some((event["seq"].as_u64()?, event)))
            .collect();
        let Some((&newest, _)) = journal.last_key_value() else {
            wrong.push(format!("{name} has no journal: {}", String::from_utf8_lossy(&answer.stderr)));
            continue;
        };
        if newest != head {
            wrong.push(format!("the newest event of {name} is {newest}, and {head} was told last"));
        }
        for (number, event) in journal {
            let key = format!("events/{name}/{NODE}/{registry}/{number:020}");
            let Some(told) = checker.now.get(&key) else { continue };
            tally.add("events compared with the journal", 1);
            let told: Value = serde_json::from_str(told).unwrap_or_default();
            if told["kind"] != event["kind"]
                || told["pid"] != event["pid"]
                || told["boot_time"] != event["boot_time"]
            {
                wrong.push(format!("{key}: told is {told}, and the journal has {event}"));
            }
        }
    }
    wrong
}
