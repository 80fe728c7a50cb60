//! What hosts see of each other.

use std::time::Instant;

use serde_json::Value;
use testkit::{Signal, permit, process, wait};

use super::fleet::{Fleet, Server, TTL, host};
use crate::scripted::{LONG, Running};

/// The numbers of a node's events, in etcd's order.
fn numbers(events: &[Value], of: &str) -> Vec<u64> {
    events.iter().filter(|e| e["host"] == of).filter_map(|e| e["seq"].as_u64()).collect()
}

#[test]
fn what_happens_on_one_host_is_seen_on_another() {
    let _permit = permit();
    let fleet = Fleet::new();
    let (mut a, mut b) = (fleet.host("a"), fleet.host("b"));
    a.join();
    b.join();
    let follower = Running::start(&b.folder, b.command(&["cluster", "events", "--follow", "--json"]));
    let server = Server::start(&a, 2);
    follower.says("\"worker_started\"");
    let node = b.sees_node("a", "serving");
    assert_eq!((&node["serving"], &node["expected"], &node["generation"]), (&2.into(), &2.into(), &1.into()));
    let victim = server.lose_one();
    follower.says(&format!("\"pid\":{victim}"));
    b.sees_node("a", "serving");
    b.cluster(&["wait", "--hosts", "2", "--nodes", "1", "--serving"])
        .ended(0)
        .says("1 node serves on 2 hosts");
    process::send(server.master(), Signal::HUP);
    b.cluster(&["wait", "--serving", "--drained", "--generation-newer-than", "1"])
        .ended(0)
        .says("no older generation is left");
    // Each once, in their order, by the journal's own numbers; and what follows live is what is kept.
    let kept = a.events();
    let told = numbers(&kept, "a");
    assert_eq!(told, (told[0]..told[0] + told.len() as u64).collect::<Vec<_>>());
    let last = told.last().expect("events");
    follower.says(&format!("\"seq\":{last}"));
    let lines: Vec<Value> =
        follower.out().lines().map(|line| serde_json::from_str(line).expect("a document")).collect();
    assert_eq!(numbers(&lines, "a"), told);
    let revisions: Vec<_> = kept.iter().map(|event| event["revision"].as_i64()).collect();
    assert!(revisions.is_sorted(), "{revisions:?}");
    follower.signal(Signal::TERM);
    follower.end().ended(0);
    // For people.
    b.cluster(&["status"]).ended(0).says("cluster shop: 2 hosts").says("a prefork-example serving 2");
    b.cluster(&["events", "-n", "1", "--host", "a", "--node", "prefork-example"])
        .ended(0)
        .says("a/prefork-example");
    b.cluster(&["status", "--node", "other"]).ended(0).says("no node other");
}

/// The body of a page, for who accepts this.
fn get_as(socket: &std::path::Path, page: &str, accept: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(socket).expect("it listens");
    write!(stream, "GET {page} HTTP/1.0\r\nHost: test\r\nAccept: {accept}\r\n\r\n").expect("it listens");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    text.split_once("\r\n\r\n").expect("an answer").1.to_owned()
}

#[test]
fn the_page_of_an_agent_shows_all_hosts() {
    let _permit = permit();
    let mut fleet = Fleet::new();
    let (mut a, mut b) = (fleet.host("a"), fleet.host("b"));
    let _server = Server::start(&a, 2);
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("its address");
    drop(free);
    b.configure(&format!(
        "listen = \"{address}\"\n[cluster]\nname = \"shop\"\nendpoints = [{:?}]\nhost = \"b\"\nttl = \"2s\"\n",
        fleet.etcd.url()
    ));
    a.join();
    b.join();
    b.sees_node("a", "serving");
    // With its refreshes.
    let browser = std::process::Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", b.folder.join("browser").display()))
        .arg(format!("http://{address}/"))
        .output()
        .expect("chromium (scripts/setup test installs it)");
    let dom = String::from_utf8_lossy(&browser.stdout);
    for part in
        [">live<", "Cluster shop: 2 hosts", "<td>a</td><td>prefork-example</td>", ">serving</span>", "2 of 2"]
    {
        assert!(dom.contains(part), "{part} is not in\n{dom}");
    }
    let page = get_as(&b.socket(), "/", "text/html");
    assert!(page.contains("\"cluster\":\"shop\"") && page.contains("\"host\":\"a\""), "{page}");
    let ask = |path: &str| -> Value {
        let body = testkit::http::get(&b.socket(), path).expect("it answers").body;
        serde_json::from_str(&body).expect("JSON")
    };
    assert_eq!(ask("/")["cluster"], Value::Null, "it was not asked for");
    let state = |document: &Value| host(&document["cluster"], "a").expect("it is known")["state"].clone();
    let seen = ask("/?cluster");
    assert_eq!((state(&seen), &seen["cluster"]["trouble"]), ("here".into(), &Value::Null));
    assert_eq!(host(&seen["cluster"], "a").expect("a host")["nodes"][0]["state"], "serving");
    drop(a.end(Signal::TERM).ended(0));
    wait::poll(LONG, || (state(&ask("/?cluster")) == "left").then_some(())).expect("it is live");
    fleet.etcd.kill();
    wait::poll(LONG, || ask("/?cluster")["cluster"]["trouble"].is_string().then_some(()))
        .expect("it says so");
    fleet.etcd.restart();
    wait::poll(LONG, || ask("/?cluster")["cluster"]["trouble"].is_null().then_some(()))
        .expect("it is well again");
}

#[test]
fn a_host_that_loses_power_is_lost_after_its_time_and_not_before() {
    let _permit = permit();
    let fleet = Fleet::new();
    let (mut a, mut b) = (fleet.host("a"), fleet.host("b"));
    b.join();
    let mut server = Server::start(&a, 2);
    a.join();
    b.sees_node("a", "serving");
    let began = Instant::now();
    a.kill_agent();
    server.kill();
    let mut still_there = began;
    let lost = wait::poll(LONG, || {
        let asked = Instant::now();
        let status = b.status();
        let host = host(&status, "a").expect("it is known").clone();
        if host["state"] == "here" {
            still_there = asked;
        }
        (host["state"] == "lost").then_some(host)
    });
    let lost = lost.expect("it is lost");
    // Its last sign of life may be a third of its time old when it dies.
    assert!(began.elapsed() > TTL * 2 / 3, "lost {:?} after its end", began.elapsed());
    assert!(still_there > began, "it was there when it was asked first");
    // Not stopped, not died: not known.
    let node = &lost["nodes"][0];
    assert_eq!((&node["known"], &node["state"]), (&false.into(), &"serving".into()), "{lost:#}");
    b.cluster(&["status"])
        .ended(0)
        .says("lost")
        .says("unknown, was serving")
        .says("it is not known what its nodes do");
    b.cluster(&["wait", "--serving", "--timeout", "0"]).ended(1).complains("host a is lost");
    let noted = b.sees("since when", |status| host(status, "a")?["since"].as_f64());
    assert!(noted > 1e9);
    // Once, and nothing was said of its workers.
    assert_eq!(b.events_of("host_lost").len(), 1);
    assert_eq!(b.events_of("worker_died").len(), 0);
    // It comes back as what it is.
    a.join();
    b.sees_host("a", "here");
    b.sees_node("a", "stopped");
}

#[test]
fn who_was_lost_while_nobody_was_there_to_note_it_is_noted_later() {
    let _permit = permit();
    let fleet = Fleet::new();
    let (mut a, mut b) = (fleet.host("a"), fleet.host("b"));
    a.join();
    a.kill_agent();
    let lost = b.sees_host("a", "lost");
    assert_eq!(lost["since"], Value::Null, "nobody has noted it: {lost:#}");
    b.cluster(&["status"]).ended(0).says("a - lost");
    b.join();
    b.sees("since when", |status| host(status, "a")?["since"].as_f64());
    assert_eq!(b.events_of("host_lost").len(), 1);
}

#[test]
fn an_agent_that_is_replaced_in_time_tells_nobody_and_goes_on_where_the_one_before_was() {
    let _permit = permit();
    let fleet = Fleet::new();
    // Long enough for a loaded machine.
    let (mut a, mut b) = (fleet.host_with("a", "ttl = \"60s\""), fleet.host("b"));
    b.join();
    let server = Server::start(&a, 2);
    a.join();
    b.sees_node("a", "serving");
    let mut victims = vec![server.lose_one()];
    b.sees("the death", |_| (b.events_of("worker_died").len() == 1).then_some(()));
    for how in ["crash", "upgrade"] {
        match how {
            "crash" => a.kill_agent(),
            _ => drop(a.end(Signal::USR2).ended(0)),
        }
        victims.push(server.lose_one());
        assert_eq!(b.events_of("worker_died").len(), victims.len() - 1, "nobody was there to tell it");
        a.start("goes on where the agent before has ended");
        b.sees("what happened meanwhile", |_| {
            (b.events_of("worker_died").len() == victims.len()).then_some(())
        });
    }
    let died: Vec<_> = b.events_of("worker_died").iter().map(|e| e["pid"].as_i64()).collect();
    assert_eq!(died, victims.iter().map(|&pid| Some(i64::from(pid))).collect::<Vec<_>>());
    let told = numbers(&b.events(), "a");
    assert_eq!(told, (told[0]..told[0] + told.len() as u64).collect::<Vec<_>>(), "each once, none missing");
    for kind in ["host_lost", "host_left"] {
        assert_eq!(b.events_of(kind).len(), 0, "{kind}");
    }
    assert_eq!(b.events_of("host_joined").iter().filter(|e| e["host"] == "a").count(), 1);
}

#[test]
fn a_host_that_leaves_has_left_at_once() {
    let _permit = permit();
    let fleet = Fleet::new();
    // Its lease has nothing to do with it.
    let (mut a, b) = (fleet.host_with("a", "ttl = \"300s\""), fleet.host("b"));
    let server = Server::start(&a, 1);
    a.join();
    b.sees_node("a", "serving");
    a.end(Signal::TERM).ended(0).complains("host a has left");
    let status = b.status();
    let left = host(&status, "a").expect("it is known");
    assert_eq!(
        (&left["state"], left["nodes"].as_array().map(Vec::len)),
        (&"left".into(), Some(0)),
        "{left:#}"
    );
    assert_eq!(b.events_of("host_left").len(), 1);
    b.cluster(&["wait", "--hosts", "1", "--timeout", "0"]).ended(1).complains("0 hosts of 1");
    assert_eq!(server.workers().len(), 1, "its node serves on");
    // It may come again.
    a.join();
    b.sees_node("a", "serving");
}

#[test]
fn a_node_whose_registry_is_removed_is_not_told_of_any_more() {
    let _permit = permit();
    let fleet = Fleet::new();
    let mut a = fleet.host("a");
    a.join();
    let mut server = Server::start(&a, 1);
    a.sees_node("a", "serving");
    server.kill();
    a.sees_node("a", "stopped");
    std::fs::remove_file(a.folder.join("web.registry")).expect("our folder");
    a.sees("no node", |status| host(status, "a")?["nodes"].as_array()?.is_empty().then_some(()));
}
