//! The examples of docs/singletons.md do what the page says.

use testkit::{Integration, Nginx, Setup, Signal, permit};

/// The blocks of the page that stand for themselves, by the heading that they are below.
fn example(heading: &str) -> String {
    let page = include_str!("../../../docs/singletons.md");
    let section =
        page.split(&format!("\n### {heading}\n")).nth(1).unwrap_or_else(|| panic!("no heading {heading}"));
    let block = section.split("```lua\n").nth(1).and_then(|rest| rest.split("```").next());
    block.unwrap_or_else(|| panic!("no example below {heading}")).to_owned()
}

fn start(workers: u32, heading: &str) -> Nginx {
    let code = format!("kit.after_join = function()\n{}\nend", example(heading));
    let cached = "local v = ngx.shared.cache:get(ngx.var.arg_key) ngx.say(tostring(v))";
    let setup = Setup::new(Integration::Lua)
        .workers(workers)
        .option("heartbeat_interval", "0.1")
        .http("lua_shared_dict cache 1m;")
        .page("/cached", cached)
        .after_init(&code);
    Nginx::start_ready(setup)
}

fn cached(nginx: &Nginx, key: &str) -> String {
    nginx.get(&format!("/cached?key={key}")).body.trim().to_owned()
}

/// Which workers have written this line.
fn writers(log: &str, line: &str) -> Vec<String> {
    let pid =
        |l: &str| l.split("] ").nth(1).and_then(|rest| rest.split('#').next()).unwrap_or("?").to_owned();
    let mut all: Vec<_> = log.lines().filter(|l| l.contains(line)).map(pid).collect();
    all.dedup();
    all
}

#[test]
fn a_timer_runs_on_one_worker_and_moves_at_a_reload() {
    const LINE: &str = "one worker of all of them does this";
    let _permit = permit();
    let nginx = start(4, "A timer on one worker");
    nginx.wait_until("some ticks", || (nginx.log().matches(LINE).count() >= 5).then_some(()));
    assert_eq!(writers(&nginx.log(), LINE).len(), 1);
    nginx.reload_and_settle(2);
    nginx.wait_until("another one", || (writers(&nginx.log(), LINE).len() == 2).then_some(()));
    assert_eq!(nginx.log().matches("another worker does it from now on").count(), 1);
    nginx.end(Signal::QUIT);
}

#[test]
fn a_cache_is_warmed_once() {
    let _permit = permit();
    let nginx = start(4, "Warm a cache once for each configuration");
    nginx.wait_until("a warm cache", || (cached(&nginx, "answer") == "42").then_some(()));
    let done = || {
        nginx.json("/events")[0]
            .as_array()
            .map_or(0, |all| all.iter().filter(|e| e["kind"] == "once_done").count())
    };
    nginx.wait_until("the word of it", || (done() == 1).then_some(()));
    nginx.reload_and_settle(2);
    nginx.wait_until("the next generation's", || (done() == 2).then_some(()));
    nginx.end(Signal::QUIT);
}

#[test]
fn a_node_is_registered_by_one_worker() {
    let _permit = permit();
    let nginx = start(2, "Register the node, and deregister it");
    let first = nginx.wait_until("it to be registered", || cached(&nginx, "registered").parse::<f64>().ok());
    nginx.reload_and_settle(2);
    nginx.wait_until("it to be registered by another", || {
        cached(&nginx, "registered").parse::<f64>().ok().filter(|token| *token > first)
    });
    nginx.end(Signal::QUIT);
}

#[test]
fn a_lock_excludes() {
    let _permit = permit();
    let nginx = start(4, "A lock");
    nginx.wait_until("all four", || (cached(&nginx, "rotations") == "4").then_some(()));
    nginx.end(Signal::QUIT);
}
