//! The agent without a cluster: one exporter for its host.

use std::os::unix::net::UnixDatagram;

use testkit::{Folder, Signal, http, permit, promtool};

use super::fleet::{Host, Server, write};
use crate::scripted::Running;

fn host(folder: &Folder) -> Host {
    Host::alone(folder.path())
}

#[test]
fn it_answers_for_all_nodes_of_its_host_and_notices_those_that_come() {
    let _permit = permit();
    let folder = Folder::new();
    let mut host = host(&folder);
    host.start("without a cluster");
    let metrics = || http::get(&host.socket(), "/metrics").expect("it answers").body;
    assert!(!metrics().contains("headcount_node_up{"));
    let server = Server::start(&host, 2);
    assert!(metrics().contains("headcount_node_up{node=\"prefork-example\"} 1"), "{}", metrics());
    promtool::accepts(&metrics());
    assert!(!metrics().contains("agent_cluster"), "there is none");
    let json = http::get(&host.socket(), "/").expect("it answers").body;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["nodes"][0]["processes"].as_array().expect("processes").len(), 3);
    let page = http::get(&host.socket(), "/other").expect("it answers");
    assert!(page.status == 404 && page.body.contains("/metrics"), "{page:?}");
    assert_eq!(server.workers().len(), 2);
    let socket = host.socket();
    host.end(Signal::TERM).ended(0);
    assert!(!socket.exists());
}

#[test]
fn a_configuration_that_is_wrong_changes_nothing() {
    let _permit = permit();
    let folder = Folder::new();
    let mut host = host(&folder);
    host.start("without a cluster");
    write(&host.config(), "[agnet]\n");
    host.agent().signal(Signal::HUP);
    host.agent().says("not reloaded, going on as before");
    host.agent().says("unknown field `agnet`");
    http::get(&host.socket(), "/metrics").expect("it answers as before");
    // Not what cannot be done, either.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address");
    write(&host.config(), &format!("[agent]\nsocket = {:?}\nlisten = \"{port}\"\n", host.socket()));
    host.agent().signal(Signal::HUP);
    host.agent().says(&format!("cannot listen on {port} (agent.listen)"));
    // At once after that it is as before.
    let again = testkit::wait::poll(crate::scripted::LONG, || http::get(&host.socket(), "/metrics").ok());
    again.expect("it answers as before");
    drop(taken);
    write(&host.config(), &format!("[agent]\nsocket = {:?}\nlisten = \"{port}\"\n", host.socket()));
    host.agent().signal(Signal::HUP);
    host.agent().says(&format!("and {port}"));
    std::net::TcpStream::connect(port).expect("it listens there now");
    http::get(&host.socket(), "/metrics").expect("and there, too");
    host.end(Signal::INT).ended(0);
}

#[test]
fn what_is_wrong_is_said_before_anything_is_done() {
    let folder = Folder::new();
    let host = host(&folder);
    let check = |text: &str| {
        write(&host.config(), text);
        crate::program::run(&mut host.command(&["agent", "--check"]))
    };
    check("").ended(0).says("is valid: listens on /run/headcount-agent/agent.sock, without a cluster");
    check("[cluster]\nname = \"shop\"\nendpoints = [\"http://127.0.0.1:1\"]\nhost = \"a\"\n")
        .ended(0)
        .says("as host a of the cluster shop at http://127.0.0.1:1");
    check("[cluster]\nname = \"shop\"\n")
        .ended(4)
        .complains("agent.toml")
        .complains("missing field `endpoints`");
    // What would be in the way only later.
    check("[agent]\nclaims = [\"no such user\"]\n").ended(4).complains("there is no user no such user");
    check(&format!("[agent]\nsocket = \"/{}\"\n", "x".repeat(107))).ended(4).complains("has 108 bytes");
    // In one line, without what stands there.
    let said = check("[cluster]\npassword = \"hunter2\"\n")
        .ended(4)
        .complains("line 2, column 1: unknown field `password`")
        .err;
    assert!(said.lines().count() == 1 && !said.contains("hunter2"), "{said}");
    check("[agent]\nsocket = \"/nowhere/x\"\n").ended(0);
    crate::program::run(&mut host.command(&["agent"]))
        .ended(4)
        .complains("cannot listen on /nowhere/x (agent.socket)");
    crate::program::run(&mut host.command(&["agent", "--node", "x"]))
        .ended(2)
        .complains("all nodes of its host");
    let mut missing = crate::program::headcount(["agent", "--config", "/nowhere/agent.toml"]);
    crate::program::run(&mut missing).ended(4).complains("/nowhere/agent.toml: No such file");
    check("").ended(0);
    host.cluster(&["status"]).ended(4).complains("there is no [cluster] in it");
}

#[test]
fn two_agents_do_not_share_a_socket_and_what_one_that_was_killed_left_is_no_hindrance() {
    let _permit = permit();
    let folder = Folder::new();
    let mut host = host(&folder);
    host.start("without a cluster");
    crate::program::run(&mut host.command(&["agent"])).ended(4).complains("another agent answers there");
    host.kill_agent();
    assert!(host.socket().exists());
    host.start("without a cluster");
    http::get(&host.socket(), "/metrics").expect("it answers");
}

#[test]
fn a_service_manager_is_told() {
    let _permit = permit();
    let folder = Folder::new();
    let host = host(&folder);
    let path = folder.at("notify");
    let socket = UnixDatagram::bind(&path).expect("our folder");
    socket.set_read_timeout(Some(crate::scripted::LONG)).expect("a limit");
    let next = || {
        let mut buffer = [0; 256];
        let n = socket.recv(&mut buffer).expect("it is told within the limit");
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    };
    let until = |wanted: &str| while !next().contains(wanted) {};
    let mut command = host.command(&["agent"]);
    // It is told twice as often.
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "500000");
    let agent = Running::start(&host.folder, command);
    assert_eq!(next().trim(), "READY=1");
    until("WATCHDOG=1");
    agent.signal(Signal::HUP);
    until("RELOADING=1");
    until("READY=1");
    until("WATCHDOG=1");
    agent.signal(Signal::TERM);
    until("STOPPING=1");
    agent.end().ended(0);
}
