//! Hooks for a whole cluster: each event once for all agents, whichever of them dies.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use headcount::Kind;
use testkit::{Signal, permit, process, wait};

use super::fleet::{Fleet, Host, Server, TTL, key};
use crate::record::{Delivered, cat_to, deliveries, journal, kinds};
use crate::scripted::LONG;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Three hosts with this hook, each of which runs its agent.
fn three(fleet: &Fleet, hook: &str) -> Vec<Host> {
    let settings = format!("ttl = \"2s\"\n[[hook]]\nname = \"all\"\nscope = \"cluster\"\n{hook}");
    let mut hosts: Vec<_> = NAMES.iter().map(|name| fleet.host_with(name, &settings)).collect();
    hosts.iter_mut().for_each(Host::join);
    hosts
}

/// Which of them delivers.
#[track_caller]
fn holder(fleet: &Fleet) -> usize {
    let found = wait::poll(LONG, || {
        let kvs =
            fleet.client(async |mut etcd| Ok(etcd.get(key("roles/@hooks/all"), None).await?.take_kvs()));
        let name = kvs.first()?.value_str().ok()?.to_owned();
        NAMES.iter().position(|known| *known == name)
    });
    found.expect("one of them")
}

fn seen(fleet: &Fleet) -> PathBuf {
    fleet.folder.at("seen")
}

/// Waits until all that the server on this host reports is delivered, when so many of its workers have died and so many are alive.
#[track_caller]
fn all_delivered(fleet: &Fleet, hosts: &[Host], at: usize, deaths: usize, workers: usize) {
    let done = wait::poll(LONG, || {
        let journal = journal(&hosts[at].folder.join("web.registry"));
        let count = |kind| journal.iter().filter(|event| event.kind == kind).count();
        let newest = journal.last()?.seq;
        let is_told = |d: &Delivered| d.0["host"] == NAMES[at] && d.seq() == Some(newest);
        let is_quiet = count(Kind::WorkerDied) == deaths && count(Kind::WorkerStarted) == deaths + workers;
        (is_quiet && deliveries(&seen(fleet)).iter().any(is_told)).then_some(())
    });
    done.unwrap_or_else(|| {
        let said: Vec<_> =
            hosts.iter().filter(|host| host.is_running()).map(|host| host.agent().err()).collect();
        panic!("{:?}\n{}", deliveries(&seen(fleet)).last(), said.join("\n----\n"))
    });
}

/// What an event is, wherever it is told.
fn what(event: &serde_json::Value) -> (i64, String, Option<u64>) {
    let kind = event["kind"].as_str().expect("a kind").to_owned();
    (event["revision"].as_i64().expect("a revision"), kind, event["seq"].as_u64())
}

/// All that etcd has since the first that was delivered was delivered, in its order, once or marked. How many were repeated or marked.
#[track_caller]
fn assert_once_or_marked(all: &[Delivered], host: &Host) -> usize {
    let mut once: Vec<&Delivered> = Vec::new();
    let mut again = 0;
    for delivered in all {
        if once.last().is_some_and(|before| before.id() == delivered.id()) {
            again += 1;
            assert!(delivered.is_retry(), "delivered twice and not marked: {delivered:?}");
            continue;
        }
        assert!(once.iter().all(|d| d.id() != delivered.id()), "out of order: {delivered:?}");
        once.push(delivered);
    }
    let kept: Vec<_> = host.events().iter().map(what).collect();
    let told: Vec<_> = once.iter().map(|d| what(&d.0)).collect();
    let first = kept.iter().position(|event| *event == told[0]).expect("it is kept");
    assert_eq!(told, kept[first..]);
    again + once.iter().filter(|d| d.is_retry()).count()
}

#[test]
fn each_event_of_each_host_is_delivered_once_though_three_run() {
    let _permit = permit();
    let fleet = Fleet::new();
    let rule = format!("any={}", cat_to(&seen(&fleet)));
    let mut hosts = three(&fleet, &format!("on = [{rule:?}]\n"));
    let first = holder(&fleet);
    hosts[first].agent().says("hook all: delivers for the cluster shop");
    let servers: Vec<_> = hosts.iter().map(|host| Server::start(host, 1)).collect();
    for server in &servers {
        server.lose_one();
    }
    (0..3).for_each(|at| all_delivered(&fleet, &hosts, at, 1, 1));
    // One that is stopped hands on at once, and the next one goes on where it was.
    let began = Instant::now();
    hosts[first].end(Signal::TERM).ended(0);
    let second = wait::poll(LONG, || Some(holder(&fleet)).filter(|now| *now != first)).expect("another one");
    assert!(began.elapsed() < TTL + Duration::from_secs(5), "{:?}", began.elapsed());
    let other = (first + 1) % 3;
    servers[other].lose_one();
    hosts[second].agent().says("hook all: delivers for the cluster shop");
    all_delivered(&fleet, &hosts, other, 2, 1);
    let all = deliveries(&seen(&fleet));
    assert_eq!(assert_once_or_marked(&all, &hosts[other]), 0, "nobody died");
    let host_of = |d: &Delivered| d.0["host"].as_str().expect("a host").to_owned();
    assert!(NAMES.iter().all(|name| all.iter().any(|d| host_of(d) == *name && d.kind() == "worker_died")));
    assert!(all[0].id().starts_with("shop/"), "{}", all[0].id());
    assert!(kinds(&all).contains(&"host_left"));
    // A node's name limits it; a change is a change for whoever has it.
    let node = format!(
        "ttl = \"2s\"\n[[hook]]\nname = \"all\"\nscope = \"cluster\"\nnode = \"other\"\non = [{rule:?}]\n"
    );
    for host in [second, 3 - first - second] {
        hosts[host].configure_cluster(&fleet, NAMES[host], &node);
        hosts[host].agent().signal(Signal::HUP);
        hosts[host].agent().says("reloaded: ");
    }
    wait::poll(LONG, || {
        let said: String = [second, 3 - first - second].iter().map(|n| hosts[*n].agent().err()).collect();
        (said.matches("delivers for the cluster").count() >= 2).then_some(())
    })
    .expect("it begins anew");
    let count = deliveries(&seen(&fleet)).len();
    servers[other].lose_one();
    hosts[other].sees("it", |_| (hosts[other].events_of("worker_died").len() == 5).then_some(()));
    wait::poll(Duration::from_millis(500), || None::<()>);
    assert_eq!(deliveries(&seen(&fleet)).len(), count);
}

#[test]
fn whoever_is_killed_in_the_middle_each_event_is_delivered_once_or_marked() {
    const KILLS: usize = 6;
    let _permit = permit();
    let fleet = Fleet::new();
    let rule = format!("any=e=$(cat); sleep 0.05; echo \"$e\" >> '{}'", seen(&fleet).display());
    let mut hosts = three(&fleet, &format!("on = [{rule:?}]\n"));
    let server = Server::start(&hosts[0], 2);
    for kill in 0..KILLS {
        let victim = holder(&fleet);
        hosts[victim].agent().says("delivers for the cluster");
        server.lose_one();
        server.lose_one();
        wait::poll(Duration::from_micros(kill as u64 * 37_919 % 150_000), || None::<()>);
        hosts[victim].kill_agent();
        hosts[victim].start("cluster shop: host");
        wait::poll(LONG, || {
            (holder(&fleet) != victim || hosts[victim].agent().err().contains("delivers")).then_some(())
        })
        .expect("somebody goes on");
    }
    all_delivered(&fleet, &hosts, 0, 2 * KILLS, 2);
    let all = deliveries(&seen(&fleet));
    let marked = assert_once_or_marked(&all, &hosts[0]);
    assert!(marked <= KILLS, "{marked} by {KILLS} kills");
    assert!(kinds(&all).iter().filter(|kind| **kind == "worker_died").count() >= 2 * KILLS);
}

#[test]
fn what_ends_while_etcd_is_away_is_not_repeated() {
    let _permit = permit();
    let mut fleet = Fleet::new();
    let gate = fleet.folder.at("gate");
    let under_way = fleet.folder.at("under-way");
    let rule = format!(
        "worker_died=e=$(cat); : > '{}'; until [ -e '{}' ] || [ ! -d '{}' ]; do sleep 0.01; done; echo \"$e\" >> '{}'",
        under_way.display(),
        gate.display(),
        fleet.folder.path().display(),
        seen(&fleet).display()
    );
    // Long enough for etcd to be away meanwhile.
    let hook = format!("[[hook]]\nname = \"all\"\nscope = \"cluster\"\non = [{rule:?}]\n");
    let mut a = fleet.host_with("a", &format!("ttl = \"60s\"\n{hook}"));
    a.join();
    a.agent().says("delivers for the cluster");
    let server = Server::start(&a, 1);
    let victim = server.lose_one();
    wait::poll(LONG, || under_way.exists().then_some(())).expect("it begins");
    fleet.etcd.kill();
    std::fs::write(&gate, "").expect("our folder");
    wait::poll(LONG, || (deliveries(&seen(&fleet)).len() == 1).then_some(())).expect("it ends");
    a.agent().says("hook all: etcd does not answer");
    fleet.etcd.restart();
    let next = server.lose_one();
    wait::poll(LONG, || (deliveries(&seen(&fleet)).len() == 2).then_some(()))
        .unwrap_or_else(|| panic!("{}", a.agent().err()));
    let all = deliveries(&seen(&fleet));
    let pids: Vec<_> = all.iter().map(|d| (d.0["pid"].as_i64(), d.attempt(), d.is_retry())).collect();
    assert_eq!(pids, [(Some(victim.into()), 1, false), (Some(next.into()), 1, false)]);
}

/// One that stands still is not waited for, and does not go on beside the next one when it wakes up.
#[test]
fn one_that_stood_still_for_too_long_gives_its_turn_up() {
    let _permit = permit();
    let fleet = Fleet::new();
    let (pid, seen) = (fleet.folder.at("pid"), seen(&fleet));
    // It ends with the test, whoever is killed there.
    let rule = format!(
        "worker_died=cat >> '{}'; echo $$ >> '{}'; while [ -d '{}' ]; do sleep 0.05; done",
        seen.display(),
        pid.display(),
        fleet.folder.path().display()
    );
    let hosts = three(&fleet, &format!("timeout = \"1h\"\non = [{rule:?}]\n"));
    let first = holder(&fleet);
    hosts[first].agent().says("delivers for the cluster");
    let server = Server::start(&hosts[(first + 1) % 3], 1);
    server.lose_one();
    let commands = || -> Vec<i32> {
        let text = std::fs::read_to_string(&pid).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    };
    wait::poll(LONG, || (commands().len() == 1).then_some(())).expect("the command runs");
    hosts[first].agent().signal(Signal::STOP);
    wait::poll(LONG, || (commands().len() == 2).then_some(())).expect("the next one repeats it");
    let all = deliveries(&seen);
    assert_eq!(all[0].id(), all[1].id());
    assert!(!all[0].is_retry() && all[1].is_retry());
    hosts[first].agent().signal(Signal::CONT);
    hosts[first].agent().says("hook all: its turn is over");
    let left = commands()[0];
    wait::poll(LONG, || (!process::is_alive(left)).then_some(())).expect("its command is ended");
    assert!(process::is_alive(commands()[1]));
}

#[test]
fn what_is_wrong_is_said() {
    let fleet_less = testkit::Folder::new();
    let host = Host::alone(fleet_less.path());
    let cluster = "[cluster]\nname = \"shop\"\nendpoints = [\"http://127.0.0.1:1\"]\n";
    let hook = "[[hook]]\nname = \"x\"\nscope = \"cluster\"\non = [\"host_lost=true\"]\n";
    let check = |text: &str| {
        host.configure(text);
        crate::program::run(&mut host.command(&["agent", "--check"]))
    };
    check(&format!("{cluster}{hook}")).ended(0).says("with 1 hook");
    check(hook).ended(4).complains("hook x: scope = \"cluster\" needs [cluster]");
    check(&format!("{cluster}{hook}registry = \"/x\"\n"))
        .ended(4)
        .complains("registry: it is a file of one host");
    check(&format!("{cluster}{}", hook.replace("host_lost", "node_died")))
        .ended(4)
        .complains("hook x: on: there is no event \"node_died\"; allowed are generation_started")
        .complains("host_lost");
    check(&hook.replace("cluster", "host")).ended(4).complains("there is no event \"host_lost\"");
    check(&hook.replace("\"cluster\"", "\"world\"")).ended(4).complains("expected `host` or `cluster`");
    assert!(Path::new(&host.config()).exists());
}
