//! Nobody reads what is said: that neither ends what is under way nor changes how it ended.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use testkit::{Signal, permit, process, wait};

use super::fleet::{Fleet, Server};
use super::reload::Shop;
use crate::scripted::LONG;

/// The first line of what it writes there, after which that is closed.
fn first_line(from: impl std::io::Read) -> String {
    let mut line = String::new();
    BufReader::new(from).read_line(&mut line).expect("text");
    line
}

fn code(mut child: Child) -> Option<i32> {
    let status = wait::poll(LONG, || child.try_wait().expect("our child"));
    status.expect("it ends").code()
}

fn silent(command: &mut Command) -> &mut Command {
    command.stdout(Stdio::null()).stderr(Stdio::null())
}

#[test]
fn a_rollout_ends_as_it_ends_though_only_its_first_line_is_read() {
    let _permit = permit();
    let shop = Shop::open(&["a", "b", "c"], "ttl = \"2s\"");
    for (arguments, line) in [(&["reload"][..], "3 nodes in 3 waves"), (&["reload", "--json"], "\"plan\"")] {
        let mut command = shop.hosts[0].command(&[&["cluster"], arguments].concat());
        let mut child = silent(&mut command).stdout(Stdio::piped()).spawn().expect("it can be started");
        let said = first_line(child.stdout.take().expect("a pipe"));
        assert!(said.contains(line), "{said}");
        assert_eq!(code(child), Some(0));
    }
    assert_eq!(shop.generations(), [3, 3, 3]);
}

#[test]
fn whoever_waits_in_vain_says_so_by_its_code_though_nobody_reads_what_it_waits_for() {
    let _permit = permit();
    let fleet = Fleet::new();
    let mut a = fleet.host("a");
    let _server = Server::start(&a, 1);
    a.join();
    a.sees_node("a", "serving");
    let wait = |arguments: &[&str]| {
        let mut child =
            silent(&mut a.command(arguments)).stderr(Stdio::piped()).spawn().expect("it can be started");
        let said = first_line(child.stderr.take().expect("a pipe"));
        assert!(said.starts_with("waiting: "), "{said}");
        // So that there is something to say again.
        let _other = Server::start_at(&a, "other.registry", 1);
        code(child)
    };
    assert_eq!(wait(&["cluster", "wait", "--nodes", "7", "--hosts", "3", "--timeout", "3s"]), Some(1));
    // The same of one host.
    let registry = a.folder.join("web.registry");
    let mut command = crate::program::headcount(["wait", "--workers", "7", "--timeout", "3s", "--registry"]);
    let mut child = silent(command.arg(&registry)).stderr(Stdio::piped()).spawn().expect("it can be started");
    first_line(child.stderr.take().expect("a pipe"));
    assert_eq!(code(child), Some(1));
}

#[test]
fn an_agent_goes_on_though_nobody_reads_its_log() {
    let _permit = permit();
    let mut fleet = Fleet::new();
    let a = fleet.host("a");
    let mut command = a.command(&["agent"]);
    let mut agent = silent(&mut command).stderr(Stdio::piped()).spawn().expect("it can be started");
    first_line(agent.stderr.take().expect("a pipe"));
    a.sees_host("a", "here");
    // It has something to say when etcd is away, and when it answers again.
    let revision = || {
        fleet.client(async |mut etcd| {
            let found = etcd.get(super::fleet::key("hosts/a"), None).await?;
            Ok(found.kvs().first().map(etcd_client::KeyValue::lease))
        })
    };
    let lease = revision().expect("it is there");
    fleet.client(async |mut etcd| etcd.lease_revoke(lease).await);
    let again = wait::poll(LONG, || revision().filter(|now| *now != lease));
    again.expect("it joins again");
    let is_connected = |wanted: &str| {
        let metric = format!("headcount_agent_cluster_connected {wanted}\n");
        let found = wait::poll(LONG, || {
            let page = testkit::http::get(&a.socket(), "/metrics").expect("it answers");
            page.body.contains(&metric).then_some(())
        });
        found.unwrap_or_else(|| panic!("{metric}"));
    };
    fleet.etcd.kill();
    is_connected("0");
    fleet.etcd.restart();
    is_connected("1");
    process::send(agent.id() as i32, Signal::TERM);
    let status = wait::poll(LONG, || agent.try_wait().expect("our child"));
    assert_eq!(status.expect("it ends").code(), Some(0));
    a.sees_host("a", "left");
}
