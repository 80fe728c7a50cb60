//! The alerts and the dashboard in `packaging`: they ask for metrics that exist, with labels that these have.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;

use headcount::{GenerationStatus, Kind, Phase, ProcessStatus, Role, Snapshot, State};
use headcount_report::{History, prometheus};
use serde_json::Value;
use testkit::promtool;

fn packaging(name: &str) -> PathBuf {
    std::path::absolute(format!("../../packaging/{name}")).expect("a path")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(packaging(name)).expect("a file")
}

/// The values of each label of each metric of a node that shows all of them.
fn metrics() -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let mut snapshot = Snapshot::new("edge");
    snapshot.event_counts = Kind::ALL.iter().map(|&kind| (kind, 1)).collect();
    for id in [1, 2] {
        let mut generation = GenerationStatus::new(id, Phase::Committed);
        (generation.expected, generation.master_alive) = (Some(1), Some(true));
        snapshot.generations.push(generation);
        let mut worker = ProcessStatus::new(Role::Worker, 7, State::Serving);
        (worker.generation, worker.worker_id) = (id, Some(0));
        snapshot.processes.push(worker);
    }
    let text = prometheus([(&snapshot, &History::default())]).expect("metrics");
    let mut metrics = BTreeMap::<_, BTreeMap<_, BTreeSet<_>>>::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = line.split_once('{').expect("each sample has a label");
        let known = metrics.entry(name.to_owned()).or_default();
        for (label, value) in matchers(labels.split_once('}').expect("labels end").0) {
            known.entry(label).or_default().insert(value);
        }
    }
    metrics
}

/// `a="b", c=~"d|e"` as pairs.
fn matchers(text: &str) -> Vec<(String, String)> {
    let mut pieces = text.split('"');
    let mut pairs = Vec::new();
    while let (Some(label), Some(value)) = (pieces.next(), pieces.next()) {
        let label = label.trim_matches(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        pairs.push((label.to_owned(), value.to_owned()));
    }
    pairs
}

/// Each metric that a text names, with what stands in the braces behind it.
fn asked_for(text: &str) -> Vec<(&str, &str)> {
    let starts = text.match_indices("headcount_").map(|(at, _)| &text[at..]);
    let asked = starts.map(|rest| {
        let name_end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (name, rest) = rest.split_at(name_end);
        let braces =
            rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(inside, _)| inside);
        (name, braces)
    });
    asked.collect()
}

/// Labels that the scrape adds.
const OF_THE_SCRAPE: [&str; 2] = ["job", "instance"];

#[track_caller]
fn exist(expressions: &[String]) {
    let metrics = metrics();
    for expression in expressions {
        let asked = asked_for(expression);
        assert!(!asked.is_empty(), "{expression} asks for nothing of ours");
        for (name, braces) in asked {
            let labels =
                metrics.get(name).unwrap_or_else(|| panic!("{expression}: there is no metric {name}"));
            for (label, values) in matchers(braces) {
                if OF_THE_SCRAPE.contains(&label.as_str()) || values.starts_with('$') {
                    continue;
                }
                let known =
                    labels.get(&label).unwrap_or_else(|| panic!("{expression}: {name} has no {label}"));
                for value in values.split('|') {
                    assert!(known.contains(value), "{expression}: {label} of {name} is never {value}");
                }
            }
        }
    }
}

/// The expressions of the dashboard, and those of its variables.
fn of_dashboard() -> (Vec<String>, Vec<String>) {
    let board: Value = serde_json::from_str(&read("grafana/headcount.json")).expect("JSON");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let panels = list(&board["panels"]);
    assert!(panels.len() > 5, "panels");
    let targets = panels.iter().flat_map(|panel| list(&panel["targets"]));
    let annotations = list(&board["annotations"]["list"]);
    let expressions = targets.chain(annotations).map(|t| text(&t["expr"])).collect();
    let variables = list(&board["templating"]["list"]);
    let queries = variables.iter().filter(|v| v["type"] == "query").map(|v| text(&v["query"]["query"]));
    (expressions, queries.collect())
}

#[test]
fn the_alerts_ask_for_what_there_is() {
    let rules = read("prometheus/headcount.rules.yml");
    // Not the comments, and not the words of the annotations.
    let of_metrics = |line: &&str| line.contains("headcount_") && !line.trim_start().starts_with('#');
    let expressions: Vec<_> = rules.lines().filter(of_metrics).map(str::to_owned).collect();
    assert!(expressions.len() >= 6, "{expressions:?}");
    exist(&expressions);
}

#[test]
fn promtool_is_content_with_the_alerts_and_each_fires_when_it_should() {
    promtool::succeeds(&[
        "check".as_ref(),
        "rules".as_ref(),
        packaging("prometheus/headcount.rules.yml").as_os_str(),
    ]);
    promtool::succeeds(&[
        "test".as_ref(),
        "rules".as_ref(),
        packaging("prometheus/headcount.rules.test.yml").as_os_str(),
    ]);
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let (expressions, queries) = of_dashboard();
    exist(&expressions);
    exist(&queries);
}

#[test]
fn the_expressions_of_the_dashboard_are_sound() {
    let (expressions, _) = of_dashboard();
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    for (n, expression) in expressions.iter().enumerate() {
        // What Grafana puts in.
        let expression = expression.replace("$__rate_interval", "1m").replace("$__interval", "1m");
        let quoted = serde_json::to_string(&expression).expect("a text");
        writeln!(rules, "  - record: panel:{n}\n    expr: {quoted}").expect("memory");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("rules.yml");
    std::fs::write(&file, rules).expect("a file");
    promtool::succeeds(&["check".as_ref(), "rules".as_ref(), file.as_os_str()]);
}
