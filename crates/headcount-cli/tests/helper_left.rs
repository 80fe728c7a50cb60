//! A node of which only a helper is left: every command takes it for a node that is not alive, and says who is left.

mod program;
mod scripted;

use scripted::{Running, headcount, setup};
use testkit::{Folder, Nginx, Signal, permit, process};

#[test]
fn a_helper_alone_does_not_make_a_node_alive() {
    let _permit = permit();
    let own = Folder::new();
    let registry = own.at("run/registry");
    let cache = "proxy_cache_path @FOLDER@/temp/cache keys_zone=cache:1m loader_sleep=1s;";
    let path = format!("\"{}\"", registry.display());
    let nginx = Nginx::start_ready(setup().workers(2).option("path", &path).http(cache).allow_kills());
    let status = || program::run(&mut headcount(&registry, &["status", "--json"])).ended(0).json();
    let helpers = || {
        let node = status()["nodes"][0].take();
        let all = node["processes"].as_array().expect("a list").clone();
        all.iter().filter(|p| p["role"] == "helper").filter_map(|p| p["pid"].as_i64()).collect::<Vec<_>>()
    };
    let titled = |what: &str| nginx.titled(nginx.master(), |title| title.contains(what)).first().copied();
    nginx.wait_until("both cache processes", || (helpers().len() == 2).then_some(()));
    let helper = nginx.wait_until("the cache manager", || titled("cache manager"));
    // The other one ends by itself after a minute, and is not replaced.
    process::send(nginx.wait_until("the cache loader", || titled("cache loader")), Signal::KILL);
    nginx.wait_until("only the cache manager", || (helpers() == [i64::from(helper)]).then_some(()));
    let left = format!("only a helper is left: process {helper}");

    let waiting = Running::start(own.path(), headcount(&registry, &["wait", "--stopped"]));
    waiting.says("waiting: alive: ");
    let rule = format!("node_died=cat > {}", own.at("died").display());
    let state = format!("--state={}", own.at("state").display());
    let follow = headcount(&registry, &["run", "--on", &rule, &state]);
    let following = Running::start(own.path(), follow);
    following.says("following node");

    scripted::kill_everything(&nginx);
    assert!(process::is_alive(helper));
    waiting.end().ended(0).says(&format!("no master or worker of the node is alive; {left}"));
    following.wait_for("node_died", |_| {
        std::fs::read_to_string(own.at("died")).is_ok_and(|text| text.contains("node_died")).then_some(())
    });
    following.signal(Signal::TERM);
    following.end().ended(0);
    program::run(&mut headcount(&registry, &["status"])).ended(0).says(&format!("NOBODY IS ALIVE ({left})"));
    assert_eq!(status()["nodes"][0]["nobody_is_alive"], true);
    let doctor = || program::run(&mut headcount(&registry, &["doctor"]));
    doctor().ended(1).says("no master or worker is alive").says(&left);
    // The helper may still use its files.
    program::run(&mut headcount(&registry, &["doctor", "--clean"])).ended(1).says(&left);
    assert!(registry.exists());

    process::send(helper, Signal::KILL);
    nginx.wait_gone(helper);
    program::run(&mut headcount(&registry, &["doctor", "--clean"])).says("no live process: removed");
    assert!(!registry.exists());
}
