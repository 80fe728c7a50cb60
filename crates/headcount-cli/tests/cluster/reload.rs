//! `headcount cluster reload` over real agents and servers: each node once, in waves, whoever ends meanwhile.

use serde_json::{Value, json};
use testkit::{Nginx, Setup, Signal, permit};

use super::fleet::{Fleet, Host, Server, host, key, write};
use crate::scripted::{LONG, Running, setup};

/// The example's name for itself.
const NODE: &str = "prefork-example";

/// The same host, whose agent may reload, with further settings of `[agent]`.
pub fn may_reload(host: Host, settings: &str) -> Host {
    let text = std::fs::read_to_string(host.config()).expect("our file");
    write(&host.config(), &text.replacen("[agent]\n", &format!("[agent]\nreload = true\n{settings}\n"), 1));
    host
}

/// Hosts with a server each, all of which serve.
pub struct Shop {
    pub fleet: Fleet,
    pub hosts: Vec<Host>,
    pub servers: Vec<Server>,
}

impl Shop {
    pub fn open(names: &[&str], settings: &str) -> Shop {
        Shop::open_on(Fleet::new(), names, settings)
    }

    fn open_on(fleet: Fleet, names: &[&str], settings: &str) -> Shop {
        let mut hosts: Vec<_> =
            names.iter().map(|name| may_reload(fleet.host_with(name, settings), "")).collect();
        let servers = hosts.iter().map(|host| Server::start(host, 1)).collect();
        hosts.iter_mut().for_each(Host::join);
        let shop = Shop { fleet, hosts, servers };
        shop.serves(names);
        shop
    }

    pub fn serves(&self, names: &[&str]) {
        names.iter().for_each(|name| drop(self.hosts[0].sees_node(name, "serving")));
    }

    /// The generation of each, as its own registry has it.
    pub fn generations(&self) -> Vec<u64> {
        self.hosts.iter().map(|host| generation(&host.folder.join("web.registry"))).collect()
    }

    pub fn command(&self, arguments: &[&str]) -> Running {
        let all: Vec<&str> = ["cluster", "reload"].iter().chain(arguments).copied().collect();
        Running::start(&self.hosts[0].folder, self.hosts[0].command(&all))
    }

    /// Goes on with what was interrupted, as soon as that can be.
    pub fn resume(&self) -> crate::program::Run {
        let done = testkit::wait::poll(LONG, || {
            let run = self.hosts[1].cluster(&["reload", "--resume"]);
            (run.code != Some(4)).then_some(run)
        });
        done.expect("it can be resumed")
    }
}

pub fn generation(registry: &std::path::Path) -> u64 {
    let snapshot = headcount::Observer::open(registry).and_then(|observer| observer.snapshot());
    snapshot.expect("it can be read").generations.iter().map(|g| g.id).max().unwrap_or(0)
}

#[test]
fn all_are_reloaded_in_waves_and_the_first_alone() {
    let _permit = permit();
    let shop = Shop::open(&["a", "b", "c"], "ttl = \"2s\"");
    let a = &shop.hosts[0];
    let options = ["reload", "--first", "1", "--max-unavailable", "2"];
    let plan = a.cluster(&[&options[..], &["--dry-run"]].concat()).ended(0).out;
    let waves = "cluster shop: 3 nodes in 2 waves, at most 2 at a time\n\
                 wave 1 of 2: a/prefork-example\n\
                 wave 2 of 2: b/prefork-example, c/prefork-example\n";
    assert_eq!((plan.as_str(), shop.generations()), (waves, vec![1, 1, 1]));
    a.cluster(&options)
        .ended(0)
        .says("3 nodes in 2 waves")
        .says("a/prefork-example generation 2 serves with 1 worker; it took")
        .says("3 nodes serve their new generation");
    assert_eq!(shop.generations(), [2, 2, 2]);
    // The first was through before the others began.
    let started: Vec<_> =
        a.events_of("generation_started").into_iter().filter(|e| e["generation"] == 2).collect();
    assert_eq!(started[0]["host"], "a", "{started:?}");
    shop.hosts.iter().for_each(|host| host.agent().says("prefork-example: reloading it, as "));
    // For programs.
    let out = a.cluster(&["reload", "--max-unavailable", "34%", "--json"]).ended(0).out;
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).collect::<Vec<_>>();
    assert_eq!((&of("plan")[0]["at_most"], of("wave").len(), of("node").len()), (&json!(1), 3, 3), "{out}");
    assert_eq!((&of("node")[2]["outcome"], &of("node")[2]["generation"]), (&json!("serving"), &json!(3)));
    assert_eq!(lines.last().expect("lines")["how"], "done");
    assert_eq!(shop.generations(), [3, 3, 3]);
    a.cluster(&["reload", "--resume"]).ended(4).complains("there is no reload to go on with");
    a.cluster(&["reload", "--abort"]).ended(4).complains("there is no reload to end");
    a.cluster(&["reload", "--node", "other"]).ended(4).complains("there is no node other");
    for wrong in [
        &["reload", "--first", "0"][..],
        &["reload", "--timeout", "0"],
        &["reload", "--resume", "--drained"],
        &["reload", "--abort", "--node", "x"],
    ] {
        a.cluster(wrong).ended(2);
    }
}

#[test]
fn two_at_once_are_refused_and_one_can_be_ended() {
    let _permit = permit();
    let shop = Shop::open(&["a", "b"], "ttl = \"2s\"");
    shop.servers[0].freeze();
    let first = shop.command(&[]);
    first.says("a/prefork-example  reloading");
    for arguments in [&["reload"][..], &["reload", "--resume"], &["reload", "--dry-run"]] {
        shop.hosts[1]
            .cluster(arguments)
            .ended(4)
            .complains(&format!("(process {}) is reloading this cluster since 20", first.pid()))
            .complains("--resume")
            .complains("--abort");
    }
    shop.hosts[1].cluster(&["reload", "--abort"]).ended(0).says("ended: the reload of 2 nodes that");
    first.end().ended(1).complains("it was ended by").complains("0 of 2 nodes through");
    // What has begun goes on there, and the next one may begin.
    shop.servers[0].thaw();
    shop.serves(&["a", "b"]);
    let done = testkit::wait::poll(LONG, || (shop.generations() == [2, 1]).then_some(()));
    done.unwrap_or_else(|| panic!("{:?}", shop.generations()));
    shop.hosts[0].sees_node("a", "serving");
    shop.hosts[1].cluster(&["reload"]).ended(0);
    assert_eq!(shop.generations(), [3, 2]);
}

/// One that stood still for longer than its lease finds that another one goes on, and does nothing more.
#[test]
fn whoever_stood_still_is_replaced() {
    let _permit = permit();
    let shop = Shop::open(&["a", "b"], "ttl = \"2s\"");
    shop.servers[0].freeze();
    let first = shop.command(&[]);
    first.says("a/prefork-example  reloading");
    first.signal(Signal::STOP);
    let second = testkit::wait::poll(LONG, || {
        let command =
            Running::start(&shop.hosts[1].folder, shop.hosts[1].command(&["cluster", "reload", "--resume"]));
        command.wait_for("an answer", |c| {
            (c.out().contains("going on") || c.err().contains("headcount:")).then_some(())
        });
        command.out().contains("going on").then_some(command)
    });
    let second = second.expect("its lease ends");
    first.signal(Signal::CONT);
    first
        .end()
        .ended(1)
        .complains(&format!("(process {}) goes on with it in place of this one", second.pid()));
    shop.servers[0].thaw();
    second.end().ended(0);
    assert_eq!(shop.generations(), [2, 2]);
}

#[test]
fn what_is_not_allowed_is_named_before_anything_is_done() {
    let _permit = permit();
    let fleet = Fleet::new();
    let (mut a, mut b) = (may_reload(fleet.host("a"), ""), fleet.host("b"));
    let _servers = [Server::start(&a, 1), Server::start(&b, 1)];
    a.join();
    b.join();
    a.sees_node("a", "serving");
    a.sees_node("b", "serving");
    a.cluster(&["reload"])
        .ended(4)
        .complains("nothing was reloaded")
        .complains("does not allow it for b/prefork-example");
    // It is a matter of the configuration, and of this node's name. Nobody hears that the host has left.
    let b = may_reload(b, "");
    let text = std::fs::read_to_string(b.config()).expect("our file");
    write(&b.config(), &text.replace("reload = true", &format!("reload = [\"other\", {NODE:?}]")));
    b.agent().signal(Signal::HUP);
    b.agent().says("reloads other, prefork-example when the cluster asks for it");
    a.sees("that it is allowed", |status| (host(status, "b")?["nodes"][0]["reload"] == true).then_some(()));
    a.cluster(&["reload"]).ended(0);
    assert_eq!(a.events_of("host_left").len(), 0);
    for host in [&a, &b] {
        assert_eq!(generation(&host.folder.join("web.registry")), 2);
    }
}

#[test]
fn an_agent_that_dies_midway_is_followed_by_one_that_does_not_reload_again() {
    let _permit = permit();
    // Long enough for a loaded machine.
    let mut shop = Shop::open(&["a", "b"], "ttl = \"60s\"");
    shop.servers[0].freeze();
    let command = shop.command(&[]);
    command.says("a/prefork-example  reloading");
    // What it waits for now, it waits for after the signal.
    command.says("has not taken the signal yet");
    shop.hosts[0].kill_agent();
    shop.hosts[0].start("looking at what became of that");
    shop.servers[0].thaw();
    command
        .end()
        .ended(0)
        .says("a/prefork-example its agent ended while it reloaded; since then: generation 2 serves");
    assert_eq!(shop.generations(), [2, 2]);
}

#[test]
fn a_host_that_is_lost_midway_stops_it() {
    let _permit = permit();
    let mut shop = Shop::open(&["a", "b", "c"], "ttl = \"2s\"");
    shop.servers[0].freeze();
    let command = Running::start(
        &shop.hosts[1].folder,
        shop.hosts[1].command(&["cluster", "reload", "--timeout", "2s"]),
    );
    command.says("a/prefork-example  reloading");
    shop.hosts[0].kill_agent();
    command
        .end()
        .ended(1)
        .complains("stopped: a/prefork-example: its host is lost")
        .complains("0 of 3 nodes through");
    shop.servers[0].thaw();
    assert_eq!(shop.generations()[1..], [1, 1]);
    // Nothing begins while one is lost, unless it is said.
    let b = &shop.hosts[1];
    b.sees_host("a", "lost");
    b.cluster(&["reload"]).ended(4).complains("nothing was reloaded: lost: a");
    b.cluster(&["reload", "--skip-lost"])
        .ended(0)
        .says("left out: a/prefork-example: its host is lost")
        .says("2 nodes serve their new generation");
    assert_eq!(shop.generations()[1..], [2, 2]);
}

#[test]
fn etcd_may_go_away_meanwhile() {
    let _permit = permit();
    let mut shop = Shop::open(&["a", "b"], "ttl = \"2s\"");
    shop.servers[0].freeze();
    let command = shop.command(&[]);
    command.says("a/prefork-example  reloading");
    shop.fleet.etcd.kill();
    command.says("etcd does not answer");
    // What has begun goes on, and is told later.
    shop.servers[0].thaw();
    shop.hosts[0].agent().says("prefork-example: generation 2 serves");
    shop.fleet.etcd.restart();
    command.end().ended(0).complains("etcd answers again");
    assert_eq!(shop.generations(), [2, 2]);
}

#[test]
fn a_member_of_etcd_less_does_not_end_it() {
    let _permit = permit();
    let mut shop = Shop::open_on(Fleet::of_three(), &["a", "b"], "ttl = \"2s\"");
    shop.servers[0].freeze();
    let command = shop.command(&[]);
    command.says("a/prefork-example  reloading");
    shop.fleet.leader().kill();
    shop.servers[0].thaw();
    command.end().ended(0).says("2 nodes serve their new generation");
    assert_eq!(shop.generations(), [2, 2]);
}

/// Whatever others write there: it is obeyed only if it is what it should be, and while somebody goes on with it.
#[test]
fn what_others_write_is_not_trusted() {
    let _permit = permit();
    let shop = Shop::open(&["a"], "ttl = \"2s\"");
    let task = |what: &str, more: Value| {
        let mut task =
            json!({ "v": 1, "do": what, "timeout": 1.0, "by": "\u{1b}[2J", "asked": 1.0, "state": "asked" });
        task.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
        task.to_string()
    };
    let taken =
        |before: u64| json!({ "state": "taken", "agent": "another", "taken": 1e300, "before": before });
    let written = [
        ("1", "nonsense".to_owned()),
        ("2", "{\"v\":9}".to_owned()),
        ("3", "x".repeat(20_000)),
        ("4", task("restart", json!({}))),
        // Nobody goes on with it.
        ("5", task("reload", json!({}))),
        // Another agent has taken these.
        ("6", task("reload", taken(1))),
        ("7", task("reload", taken(0))),
    ];
    let at = |id: &str| key(&format!("tasks/a/{NODE}/{id}"));
    shop.fleet.client(async |mut etcd| {
        for (id, value) in &written {
            etcd.put(at(id), value.as_str(), None).await?;
        }
        etcd.put(key("tasks/a/nobody/8"), task("reload", json!({})), None).await?;
        etcd.put(key("tasks/other/web/9"), task("restart", json!({})), None).await?;
        Ok(())
    });
    let read = |key: String| -> Vec<u8> {
        shop.fleet.client(async |mut etcd| Ok(etcd.get(key.as_str(), None).await?.kvs()[0].value().to_vec()))
    };
    let answer = |key: String| {
        let answered = testkit::wait::poll(LONG, || {
            let task: Value = serde_json::from_slice(&read(key.clone())).expect("JSON");
            (task["state"] == "done")
                .then(|| (task["report"]["outcome"].clone(), task["report"]["text"].to_string()))
        });
        answered.unwrap_or_else(|| panic!("{key} is not answered"))
    };
    let (outcome, text) = answer(at("4"));
    assert_eq!((outcome, text.contains("cannot \\\"restart\\\"")), (json!("failed"), true), "{text}");
    let (outcome, text) = answer(at("6"));
    assert_eq!((outcome, text.contains("no generation newer than 1")), (json!("unknown"), true), "{text}");
    let (outcome, text) = answer(at("7"));
    assert_eq!((outcome, text.contains("generation 1 serves")), (json!("serving"), true), "{text}");
    assert_eq!(answer(key("tasks/a/nobody/8")).0, json!("failed"));
    assert_eq!(shop.generations(), [1]);
    // A rollout is not disturbed by any of it, and does what was asked for once.
    shop.hosts[0].cluster(&["reload"]).ended(0);
    assert_eq!(shop.generations(), [2]);
    for id in ["1", "2", "3", "5"] {
        let value = &written.iter().find(|(of, _)| *of == id).expect("it was written").1;
        assert_eq!(read(at(id)), value.as_bytes(), "{id}");
    }
    assert_eq!(read(key("tasks/other/web/9")), task("restart", json!({})).as_bytes());
    let said = shop.hosts[0].agent().err();
    for what in
        ["/1 is skipped: it is not what", "/2 is skipped: it is of version 9", "/3 is skipped: it is longer"]
    {
        assert_eq!(said.matches(what).count(), 1, "{what}:\n{said}");
    }
    assert!(!said.contains('\u{1b}'), "{said}");
    // A record that is none stands in the way, and is left alone.
    shop.fleet.client(async |mut etcd| etcd.put(key("tasks/@rollout"), "{}", None).await);
    shop.hosts[0].cluster(&["reload"]).ended(4).complains("tasks/@rollout cannot be read, and is left alone");
    shop.hosts[0].cluster(&["reload", "--abort"]).ended(4).complains("cannot be read");
    assert_eq!(read(key("tasks/@rollout")), b"{}");
}

fn nginx() -> Setup {
    setup().workers(1).option("node", "\"nginx\"")
}

/// An nginx, and a host whose agent knows it.
fn with_nginx(fleet: &Fleet, name: &str, nginx: &Nginx) -> Host {
    let mut host = may_reload(fleet.host(name), &format!("registries = [{:?}]", nginx.registry()));
    host.join();
    host
}

#[test]
fn a_refused_configuration_stops_it_and_the_rest_is_untouched() {
    let _permit = permit();
    let fleet = Fleet::new();
    let all: Vec<Nginx> = (0..3).map(|_| Nginx::start_ready(nginx().allow("unknown directive"))).collect();
    let hosts: Vec<Host> =
        ["a", "b", "c"].iter().zip(&all).map(|(name, nginx)| with_nginx(&fleet, name, nginx)).collect();
    ["a", "b", "c"].iter().for_each(|name| drop(hosts[0].sees_node(name, "serving")));
    all[1].configure_nonsense();
    let stopped = hosts[0].cluster(&["reload", "--timeout", "10m"]).ended(3);
    stopped
        .complains("stopped: b/nginx: master")
        .complains("refused the configuration")
        .complains("unknown directive \"this\" in ")
        .complains("1 of 3 nodes through");
    let generations = || all.iter().map(|nginx| generation(&nginx.registry())).collect::<Vec<_>>();
    assert_eq!(generations(), [2, 1, 1]);
    all.iter().for_each(Nginx::must_serve);
    all[1].change(|setup| setup);
    hosts[0].cluster(&["reload"]).ended(0).says("3 nodes serve their new generation");
    assert_eq!(generations(), [3, 2, 2]);
    drop(hosts);
    all.into_iter().for_each(|nginx| drop(nginx.end(Signal::QUIT)));
}

#[test]
fn drained_waits_for_a_slow_client_before_the_next() {
    let _permit = permit();
    let fleet = Fleet::new();
    let all: Vec<Nginx> = (0..2).map(|_| Nginx::start_ready(nginx())).collect();
    let hosts: Vec<Host> =
        ["a", "b"].iter().zip(&all).map(|(name, nginx)| with_nginx(&fleet, name, nginx)).collect();
    ["a", "b"].iter().for_each(|name| drop(hosts[0].sees_node(name, "serving")));
    let client = all[0].slow_client();
    hosts[0]
        .cluster(&["reload", "--drained", "--timeout", "2s"])
        .ended(1)
        .complains("stopped: a/nginx: timed out")
        .complains("generation 1 is left");
    let command = Running::start(&hosts[0].folder, hosts[0].command(&["cluster", "reload", "--drained"]));
    command.says("a/nginx: generation 1 is left");
    assert_eq!(generation(&all[1].registry()), 1);
    client.finish();
    command.end().ended(0).says("no older generation is left");
    assert_eq!((generation(&all[0].registry()), generation(&all[1].registry())), (3, 2));
    drop(hosts);
    all.into_iter().for_each(|nginx| drop(nginx.end(Signal::QUIT)));
}
