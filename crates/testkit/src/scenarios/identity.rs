//! Row 27, and what makes a node a node: two servers never share one by accident.

use serde_json::{Map, Value};

use crate::wait::PATIENCE;
use crate::{Folder, Integration, Kind, Nginx, Setup, Signal, process};

/// All JSON objects in a document, at any depth.
pub fn objects(value: &Value) -> Vec<Value> {
    let mut found = Vec::new();
    match value {
        Value::Array(items) => found.extend(items.iter().flat_map(objects)),
        Value::Object(map) => {
            found.push(value.clone());
            found.extend(map.values().flat_map(objects));
        }
        _ => {}
    }
    found
}

/// The processes in a status document: whatever has a pid and a role.
pub fn processes(status: &Value) -> Vec<Map<String, Value>> {
    objects(status)
        .into_iter()
        .filter_map(|object| match object {
            Value::Object(map) if map.contains_key("pid") && map.contains_key("role") => Some(map),
            _ => None,
        })
        .collect()
}

fn both_live_their_own_lives(one: &Nginx, two: &Nginx) {
    let victim = one.workers()[0];
    process::send(victim, Signal::KILL);
    one.wait_for("a respawned worker", PATIENCE, |all| all.at_least(3, Kind::WorkerStarted, 1));
    two.reload_and_settle(2);
    two.wait_ended(1);
    let mut ledger = one.end(Signal::QUIT);
    ledger.one_with(Kind::WorkerDied, 1, (None, Some(1), None));
    ledger.series(Kind::WorkerStarted, 1, [1, 2, 2]);
    ledger.one_with(Kind::GenerationStarted, 1, (None, Some(0), None));
    ledger.graceful_end(1, 2, false);
    ledger.nothing_else();

    two.must_serve();
    let mut ledger = two.end(Signal::QUIT);
    ledger.cold_start(2);
    ledger.reloaded(2, 2, 2);
    ledger.graceful_end(1, 2, true);
    ledger.graceful_end(2, 2, false);
    ledger.nothing_else();
}

fn named(i: Integration) -> Setup {
    Setup::new(i).workers(2).allow_kills()
}

/// Row 27: the same node name and the same shared dictionary, each its own registry.
pub fn two_servers(i: Integration) {
    let setup = || named(i).option("node", "\"same\"").http("lua_shared_dict my_shm 1m;");
    let one = Nginx::start_ready(setup());
    let two = Nginx::start_ready(setup());
    both_live_their_own_lives(&one, &two);
}

fn in_place(i: Integration, place: &Folder) -> Setup {
    named(i)
        .default_place()
        .prefix(place.path())
        .env("HEADCOUNT_RUNTIME_DIR", &place.path().display().to_string())
}

fn tells_how_to_name(nginx: &Nginx) {
    let line = nginx.wait_for_log("how to name the second node", |line| {
        line.contains("node") && line.contains("name") && !line.contains("[info]")
    });
    assert!(!line.contains("[emerg]"), "{line}");
}

/// Two instances of one package: the same prefix, other configuration files, the default place.
pub fn same_prefix_other_configuration(i: Integration) {
    let place = Folder::new();
    let one = Nginx::start_ready(in_place(i, &place));
    let two = Nginx::start_ready(in_place(i, &place));
    both_live_their_own_lives(&one, &two);
}

/// The same registry by mistake: the second gets a node of its own and is told.
pub fn same_registry_by_mistake(i: Integration) {
    let place = Folder::new();
    let path = format!("\"{}/shared.registry\"", place.path().display());
    let one = Nginx::start_ready(named(i).option("path", &path));
    let two = Nginx::start_ready(named(i).option("path", &path));
    tells_how_to_name(&two);
    both_live_their_own_lives(&one, &two);
}

/// The same name in the default place.
pub fn same_name_by_mistake(i: Integration) {
    let place = Folder::new();
    let one = Nginx::start_ready(in_place(i, &place).option("node", "\"edge\""));
    let two = Nginx::start_ready(in_place(i, &place).option("node", "\"edge\""));
    tells_how_to_name(&two);
    both_live_their_own_lives(&one, &two);
}

/// Of two such servers each one's USR2 child joins its own node.
pub fn upgrade_beside_another(i: Integration) {
    let place = Folder::new();
    let one = Nginx::start_ready(in_place(i, &place).option("node", "\"edge\""));
    let two = Nginx::start_ready(in_place(i, &place).option("node", "\"edge\""));
    for nginx in [&one, &two] {
        let (old, _) = nginx.upgrade();
        nginx.ready(2);
        process::send(old, Signal::QUIT);
        nginx.wait_gone(old);
        let all = nginx.reports();
        let start = all.of_generation(Kind::GenerationStarted, 2);
        assert_eq!(start.len(), 1, "{all}");
        assert_eq!(start[0].cause(), "upgrade", "{all}");
        assert_eq!(start[0].int("prev"), Some(2), "{all}");
    }
    for nginx in [&one, &two] {
        let mut ledger = nginx.end(Signal::QUIT);
        ledger.cold_start(2);
        ledger.take(Kind::GenerationStarted, 2);
        ledger.starts(2, 2, "upgrade");
        ledger.graceful_end(1, 2, true);
        ledger.graceful_end(2, 2, false);
        ledger.nothing_else();
    }
}
