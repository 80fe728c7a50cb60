//! `status()` of the Lua library: the table that `docs/lua.md` describes.

use std::collections::BTreeSet;

use serde_json::Value;
use testkit::wait::{PATIENCE, poll};
use testkit::{Integration, Kind, Nginx, Setup, Signal, permit};

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("a table").keys().map(String::as_str).collect()
}

fn named(names: &str) -> BTreeSet<&str> {
    names.split_whitespace().collect()
}

fn list<'a>(status: &'a Value, name: &str) -> &'a Vec<Value> {
    status[name].as_array().expect("a list")
}

fn status_of(nginx: &Nginx) -> Value {
    // All that the function returned, and that was one thing.
    let mut returned = nginx.json("/status");
    assert_eq!(returned.as_array().map(Vec::len), Some(1), "{returned:#}");
    returned[0].take()
}

fn is_age(value: &Value) -> bool {
    value.as_f64().is_some_and(|age| (0.0..600.0).contains(&age))
}

const IN_CALLBACK: &str = r#"
    if kit.once("looked") then kit.note("held", require("resty.headcount").status()) end
"#;

#[test]
fn the_table_is_as_documented() {
    let _permit = permit();
    let setup = Setup::new(Integration::Lua).workers(2).in_callback("on_worker_start", IN_CALLBACK);
    let nginx = Nginx::start_ready(setup);
    let (master, workers) = (nginx.master(), nginx.workers());
    // A worker is called serving when its loop has turned.
    let is_starting = |process: &Value| process["state"] == "starting";
    let status = poll(PATIENCE, || {
        Some(status_of(&nginx)).filter(|status| !list(status, "processes").iter().any(is_starting))
    })
    .expect("nobody starts for ever");
    assert_eq!(
        keys(&status),
        named("node path head total sentinel generations processes singletons"),
        "{status:#}"
    );
    assert_eq!(status["path"], nginx.registry().to_string_lossy().as_ref());
    assert_eq!((&status["total"], &status["head"]), (&2.into(), &3.into()));
    assert!(workers.contains(&i32::try_from(status["sentinel"].as_i64().expect("a pid")).expect("a pid")));
    let [generation] = list(&status, "generations").as_slice() else { panic!("{status:#}") };
    let expected = named("id phase cause master master_alive age begun expected mine draining");
    assert_eq!(keys(generation), expected, "no neighbours: {generation:#}");
    assert_eq!((&generation["phase"], &generation["cause"]), (&"committed".into(), &"start".into()));
    assert_eq!((&generation["master"], &generation["master_alive"]), (&master.into(), &true.into()));
    assert_eq!((&generation["mine"], &generation["expected"]), (&2.into(), &2.into()));
    assert!(is_age(&generation["age"]) && generation["begun"].as_f64().is_some_and(|begun| begun > 1.7e9));
    let processes = list(&status, "processes");
    assert_eq!(processes.len(), 3, "{status:#}");
    assert_eq!(
        keys(&processes[0]),
        named("pid role generation state liveness cause age in_state_for"),
        "a master never beats"
    );
    assert_eq!((&processes[0]["role"], &processes[0]["pid"]), (&"master".into(), &master.into()));
    for (id, worker) in (0..).zip(&processes[1..]) {
        assert_eq!(
            keys(worker),
            named("pid role generation worker_id state liveness cause age in_state_for heartbeat_age")
        );
        assert_eq!((&worker["role"], &worker["worker_id"]), (&"worker".into(), &Value::from(id)));
        assert_eq!((&worker["state"], &worker["liveness"]), (&"serving".into(), &"alive".into()));
        assert!(workers.iter().any(|pid| worker["pid"] == *pid));
        assert!(["age", "in_state_for", "heartbeat_age"].into_iter().all(|name| is_age(&worker[name])));
    }

    // As a callback saw it that ran under the node lock.
    let held = nginx.wait_for("the callback's status", PATIENCE, |all| {
        all.notes("held").first().map(|note| (note.runner, note.event.clone()))
    });
    let holder = &held.1["holder"];
    assert_eq!(keys(holder), named("pid held_for callback callback_for"), "{holder:#}");
    assert_eq!((&holder["pid"], &holder["callback"]), (&held.0.into(), &"worker_started".into()));
    assert!(is_age(&holder["held_for"]) && is_age(&holder["callback_for"]));

    // With neighbours: the counts of both sides.
    let client = nginx.slow_client();
    nginx.reload_and_settle(2);
    nginx.wait_for("the other one to leave", PATIENCE, |all| all.at_least(1, Kind::WorkerExited, 1));
    let status = status_of(&nginx);
    let [old, new] = list(&status, "generations").as_slice() else { panic!("{status:#}") };
    assert_eq!((&old["mine"], &old["draining"], &old["next"]), (&1.into(), &1.into(), &2.into()));
    assert_eq!((&old["next_draining"], old.get("prev")), (&0.into(), None));
    assert_eq!((&new["prev"], &new["prev_draining"], new.get("next")), (&1.into(), &1.into(), None));
    client.finish();
    nginx.end(Signal::QUIT);
}

#[test]
fn a_large_node_is_whole() {
    let _permit = permit();
    let nginx = Nginx::start_ready(Setup::new(Integration::Lua).workers(120));
    let status = status_of(&nginx);
    let pids: BTreeSet<_> =
        list(&status, "processes").iter().map(|p| p["pid"].as_i64().expect("a pid")).collect();
    let truth: BTreeSet<_> = nginx.workers().into_iter().chain([nginx.master()]).map(i64::from).collect();
    assert_eq!((pids.len(), &status["total"]), (121, &120.into()));
    assert_eq!(pids, truth);
    nginx.end(Signal::QUIT);
}
