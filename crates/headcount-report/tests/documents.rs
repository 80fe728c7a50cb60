//! The documents about a real node, judged by those who are to read them: a JSON parser, promtool, a browser.

use std::process::Command;

use headcount::{Begin, Cursor, Event, Join, Master, Node, Options, Snapshot, Wait};
use headcount_report::{History, NodeDocument, StatusDocument, page, prometheus, sentence};
use serde_json::Value;

/// A node whose only worker is this process, and what it has to tell.
struct World {
    master: Master,
    node: Node,
    _folder: tempfile::TempDir,
}

impl World {
    fn new(name: &str) -> World {
        let folder = tempfile::tempdir().expect("a folder");
        let master = Options::new(name).path(folder.path().join("registry")).open().expect("a node");
        let (generation, transitions) = master.begin(Begin::new().workers(2), Wait::Timeout).expect("begin");
        drop(transitions);
        let (worker, transitions) = generation.join(Join::worker(Some(0))).expect("join");
        drop(transitions);
        // From then on it serves.
        worker.beat();
        World { node: master.node().clone(), master, _folder: folder }
    }

    fn look(&self) -> (Snapshot, Vec<Event>) {
        let events = self.node.events(&mut Cursor::oldest(), usize::MAX).events;
        (self.node.snapshot(), events)
    }

    fn document(&self) -> StatusDocument {
        let (snapshot, events) = self.look();
        let history = History::of(&events, &snapshot);
        StatusDocument::new(vec![NodeDocument::new(&snapshot, &history).with_events(&events)])
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.master.leave(Wait::Timeout).map(drop).expect("the master leaves");
    }
}

#[test]
fn the_json_document() {
    let world = World::new("json");
    let text = serde_json::to_string(&world.document()).expect("JSON");
    let document: Value = serde_json::from_str(&text).expect("it can be read again");
    assert_eq!(document["schema"], 1);
    let node = &document["nodes"][0];
    assert_eq!((&node["node"], &node["total"], &node["head"]), (&"json".into(), &1.into(), &2.into()));
    assert_eq!(node["generations"][0]["expected"], 2);
    let worker = node["processes"].as_array().and_then(|all| all.iter().find(|p| p["role"] == "worker"));
    let worker = worker.expect("the worker");
    assert_eq!((&worker["pid"], &worker["state"]), (&std::process::id().into(), &"serving".into()));
    assert!(worker["heartbeat_age"].as_f64().is_some_and(|age| (0.0..60.0).contains(&age)));
    let kinds: Vec<_> =
        node["events"].as_array().expect("events").iter().map(|e| e["kind"].clone()).collect();
    assert_eq!(kinds, ["generation_started", "worker_started"]);
    assert_eq!(node["recent"]["crash_loop"], false);
}

#[test]
fn promtool_has_nothing_to_say_about_the_metrics() {
    let world = World::new("metrics");
    let (snapshot, events) = world.look();
    let text = prometheus([(&snapshot, &History::of(&events, &snapshot))]).expect("metrics");
    for line in [
        r#"headcount_workers{generation="current",node="metrics",state="serving"} 1"#,
        r#"headcount_workers{generation="old",node="metrics",state="stalled"} 0"#,
        r#"headcount_workers_expected{node="metrics"} 2"#,
        r#"headcount_events_total{kind="worker_started",node="metrics"} 1"#,
        r#"headcount_events_total{kind="worker_died",node="metrics"} 0"#,
        "# TYPE headcount_events_total counter",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    testkit::promtool::accepts(&text);
}

#[test]
fn the_page_shows_the_node_in_a_browser_and_asks_nobody_else() {
    let world = World::new("page");
    let mut document = world.document();
    // What a hostile worker could have written, were the core not to refuse it.
    document.nodes[0].node = "</script><script>document.title='x'</script>".to_owned();
    let html = page(&document).expect("a page");
    assert!(
        !html.contains("http:")
            || html.matches("http:").count() == html.matches("http://www.w3.org/2000/svg").count()
    );
    assert!(!html.contains("https:") && !html.contains("src="), "no outside resource");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("page.html");
    std::fs::write(&file, html).expect("a file");
    let out = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=500", "--dump-dom"])
        .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
        .arg(format!("file://{}", file.display()))
        .output()
        .expect("chromium (scripts/setup test installs it)");
    let dom = String::from_utf8_lossy(&out.stdout);
    for part in [
        "<title>headcount</title>",
        "&lt;/script&gt;&lt;script&gt;document.title='x'&lt;/script&gt;</h1>",
        "time line of the workers",
        &format!("#0 {}</text>", std::process::id()),
        r#"<span class="state serving">serving"#,
        "generation 1 started",
    ] {
        assert!(dom.contains(part), "{part} is not in\n{dom}\n{}", String::from_utf8_lossy(&out.stderr));
    }
}

#[test]
fn each_event_has_a_sentence_without_a_name_of_the_code() {
    let world = World::new("sentences");
    let (_, events) = world.look();
    let said: Vec<_> = events.iter().map(sentence).collect();
    let pid = std::process::id();
    assert_eq!(
        said,
        [
            format!("generation 1 started, master {pid}"),
            format!("worker 0 (pid {pid}) of generation 1 started; 1 worker now"),
        ]
    );
}
