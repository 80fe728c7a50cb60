//! `headcount top --cluster`, driven in a terminal.

use testkit::{Signal, permit};

use super::fleet::{Fleet, Host, Server};
use crate::tmux::Tmux;

fn top(host: &Host, arguments: &str) -> Tmux {
    let script = format!(
        "'{}' top --cluster --config '{}' {arguments}\necho $? > code\nexec sleep 1000",
        env!("CARGO_BIN_EXE_headcount"),
        host.config().display(),
    );
    Tmux::run((100, 24), &[("LC_ALL", "C.UTF-8")], &script)
}

#[test]
fn top_shows_all_hosts_live() {
    let _permit = permit();
    let mut fleet = Fleet::new();
    let (mut a, mut b) = (fleet.host("a"), fleet.host("b"));
    a.join();
    let terminal = top(&b, "");
    terminal.shows("the host", |screen| screen.contains("shop  1 host") && screen.contains("no node"));
    let server = Server::start(&a, 2);
    terminal.shows("its node", |screen| screen.contains("a / prefork-example") && screen.contains("2/2"));
    let victim = server.lose_one();
    terminal.shows("the death", |screen| screen.contains(&format!("(pid {victim})")));
    b.join();
    terminal.shows("another host", |screen| screen.contains("2 hosts  1 of 1 node serving"));
    terminal.text("/b");
    terminal.shows("what is typed", |screen| screen.contains("filter: b_"));
    terminal.keys(&["Escape"]);
    drop(b.end(Signal::TERM).ended(0));
    terminal.shows("that it has left", |screen| screen.contains("left"));
    fleet.etcd.kill();
    terminal.shows("that etcd is away", |screen| screen.contains("! AWAY: etcd does not answer"));
    fleet.etcd.restart();
    terminal.shows("that it is back", |screen| !screen.contains("AWAY") && screen.contains("2/2"));
    terminal.keys(&["q"]);
    assert_eq!(terminal.file("code").trim(), "0");
}

#[test]
fn what_top_cannot_show_is_said() {
    let folder = testkit::Folder::new();
    let host = Host::alone(folder.path());
    let ask = |arguments: &[&str]| crate::program::run(&mut host.command(arguments));
    ask(&["top", "--cluster"]).ended(4).complains("use `headcount cluster status`");
    let terminal = top(&host, "");
    terminal.shows("why", |screen| screen.contains("there is no [cluster] in it"));
    assert_eq!(terminal.file("code").trim(), "4");
    let terminal = top(&host, "--registry /x");
    terminal.shows("why", |screen| screen.contains("with --cluster, use --node"));
    assert_eq!(terminal.file("code").trim(), "2");
}
