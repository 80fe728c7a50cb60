//! Which node a command means that was given no name, and which process: neither strangers nor the dead decide it.

mod program;
mod scripted;

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use program::Run;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use scripted::{Running, setup};
use testkit::{Folder, Nginx, Setup, Signal, permit, process};

fn named(shared: &Folder, name: &str) -> Setup {
    let path = format!("\"{}\"", shared.at(&format!("{name}.registry")).display());
    setup().workers(1).option("path", &path).option("node", &format!("{name:?}"))
}

fn command(shared: &Folder, args: &[&str]) -> Command {
    let mut command = program::headcount(args);
    command.env("HEADCOUNT_RUNTIME_DIR", shared.path());
    command
}

fn run(shared: &Folder, args: &[&str]) -> Run {
    program::run(&mut command(shared, args))
}

fn give_to_nobody(file: &Path) {
    if process::is_root() {
        std::os::unix::fs::chown(file, Some(65_534), Some(65_534)).expect("root may do that");
    }
}

/// The commands that need one node find this one.
fn all_find(shared: &Folder, name: &str) {
    run(shared, &["wait", "--reloaded"]).ended(0);
    run(shared, &["reload"]).ended(0);
    let follower = Running::start(shared.path(), {
        let mut command = command(shared, &["run", "--on", "lost=true"]);
        command.env("STATE_DIRECTORY", shared.at("state"));
        command
    });
    follower.says(&format!("following node {name} "));
    process::send(follower.pid(), Signal::TERM);
    follower.end().ended(0);
}

#[test]
fn a_stopped_node_and_what_is_none_do_not_stand_in_the_way() {
    let _permit = permit();
    let shared = Folder::new();
    let stopped = Nginx::start_ready(named(&shared, "stopped"));
    let live = Nginx::start_ready(named(&shared, "live"));
    run(&shared, &["reload"])
        .ended(4)
        .complains("there are 2 nodes on this host")
        .complains("(live, stopped)");
    run(&shared, &["wait", "--reloaded"]).ended(4).complains("(live, stopped)");
    stopped.end(Signal::QUIT);
    shared.write("zz.registry", "");
    give_to_nobody(&shared.at("zz.registry"));
    mknodat(CWD, shared.at("aa.registry"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("our folder");
    std::fs::create_dir(shared.at("bb.registry")).expect("our folder");
    all_find(&shared, "live");
    let pid = live.master().to_string();
    run(&shared, &["reload", "--pid", &pid]).ended(0);
    run(&shared, &["reload", "--node", "stopped"]).ended(4).complains("has no live master");
    live.end(Signal::QUIT);
}

#[test]
fn a_server_that_could_not_start_does_not_stand_in_the_way() {
    let _permit = permit();
    let shared = Folder::new();
    let live = Nginx::start_ready(named(&shared, "live"));
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let setup = named(&shared, "second").listen(&address).allow(&address).allow("still could not bind()");
    let second = Nginx::prepare(setup);
    let mut trying = second.command(&[]).spawn().expect("nginx can be started");
    second.wait_until("its master to have begun", || shared.at("second.registry").exists().then_some(()));
    // While it tries, and afterwards.
    all_find(&shared, "live");
    assert!(!trying.wait().expect("our own child").success(), "the port is taken");
    all_find(&shared, "live");
    live.end(Signal::QUIT);
}

#[test]
fn only_a_lock_in_the_registrys_own_lock_file_makes_a_process_its_master() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(1));
    let lock = nginx.at("run/registry.lock");
    let aside = nginx.at("aside");
    let reload = || scripted::run(&nginx, &["reload"]).ended(4).complains("was not signalled");
    std::fs::rename(&lock, &aside).expect("our own folder");
    reload().complains("does not hold a lock");
    // A file in which somebody else's daemon may hold a lock.
    std::os::unix::fs::symlink(&aside, &lock).expect("our own folder");
    reload().complains("a symbolic link");
    std::fs::remove_file(&lock).expect("our own folder");
    std::fs::write(&lock, "").expect("our own folder");
    testkit::chmod(&lock, 0o600);
    reload().complains("does not hold a lock");
    std::fs::rename(&aside, &lock).expect("our own folder");
    scripted::run(&nginx, &["reload"]).ended(0).says("generation 2 serves");
    nginx.end(Signal::QUIT);
}

/// Metrics know a node by its name: the registry that a stopped server has left elsewhere says nothing of the one that runs.
#[test]
fn metrics_are_of_the_one_that_lives() {
    let _permit = permit();
    let shared = Folder::new();
    let at = |file: &str| {
        let path = format!("\"{}\"", shared.at(file).display());
        setup().workers(1).option("path", &path).option("node", "\"web\"")
    };
    // Before and behind it in the order of files.
    for other in ["1.registry", "9.registry"] {
        Nginx::start_ready(at(other)).end(Signal::QUIT);
    }
    let live = Nginx::start_ready(at("5.registry"));
    let told = run(&shared, &["status", "--metrics"]).ended(0);
    told.says("headcount_node_up{node=\"web\"} 1")
        .says("headcount_workers{generation=\"current\",node=\"web\",state=\"serving\"} 1");
    live.end(Signal::QUIT);
    run(&shared, &["status", "--metrics"]).ended(0).says("headcount_node_up{node=\"web\"} 0");
}
