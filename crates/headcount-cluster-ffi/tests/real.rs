//! C processes on two hosts, each beside a real agent, with a real etcd. What they do stands in `tests/c/process.c`.

mod support;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testkit::{Etcd, Folder, Signal, artifacts, permit, process, wait};

/// Longer than anything may take on a loaded machine.
const LONG: Duration = Duration::from_secs(60);
/// Longer than a test: what happens sooner has nothing to do with a lease.
const FOR_LONG: &str = "300s";

/// What runs, and all that it has said.
struct Running {
    child: Child,
    said: PathBuf,
}

impl Running {
    fn start(mut command: Command, said: PathBuf) -> Running {
        let file = File::create(&said).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        Running { child: command.spawn().unwrap(), said }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap()
    }

    #[track_caller]
    fn says(&self, text: &str) {
        let found = wait::poll(LONG, || self.said().contains(text).then_some(()));
        found.unwrap_or_else(|| panic!("it does not say {text:?}:\n{}", self.said()));
    }

    /// The token of this election.
    #[track_caller]
    fn elected(&self, number: usize) -> u64 {
        let token =
            || self.said().lines().filter_map(|line| line.strip_prefix("elected ")).nth(number)?.parse().ok();
        wait::poll(LONG, token).unwrap_or_else(|| panic!("it does not lead:\n{}", self.said()))
    }

    fn signal(&self, signal: Signal) {
        process::send(self.child.id() as i32, signal);
    }

    #[track_caller]
    fn ends_well(mut self) {
        let status = wait::poll(LONG, || self.child.try_wait().unwrap()).expect("it ends");
        assert!(status.success(), "{status}:\n{}", self.said());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, unless the test fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Fleet {
    etcd: Etcd,
    folder: Folder,
    program: PathBuf,
}

impl Fleet {
    fn new() -> Fleet {
        let folder = Folder::new();
        let program = support::compile(Path::new("tests/c/process.c"), folder.path());
        Fleet { etcd: Etcd::start(), folder, program }
    }

    /// Starts the agent of a host.
    fn host(&self, name: &str, ttl: &str) -> Running {
        let place = self.folder.at(name);
        std::fs::create_dir_all(&place).unwrap();
        let text = format!(
            "[agent]\nsocket = {:?}\n[cluster]\nname = \"shop\"\nendpoints = [{:?}]\nhost = {name:?}\nttl = {ttl:?}\n",
            self.socket(name),
            self.etcd.url()
        );
        std::fs::write(place.join("agent.toml"), text).unwrap();
        let mut command = Command::new(artifacts::program());
        command
            .args(["agent", "--config"])
            .arg(place.join("agent.toml"))
            .env("HEADCOUNT_RUNTIME_DIR", &place);
        command.env("STATE_DIRECTORY", place.join("state"));
        let agent = Running::start(command, place.join("agent.log"));
        agent.says("has joined");
        agent
    }

    fn socket(&self, host: &str) -> PathBuf {
        self.folder.at(host).join("agent.sock")
    }

    /// Starts a process of this host.
    fn process(&self, host: &str, what: &str) -> Running {
        let mut command = Command::new(&self.program);
        command.arg(self.socket(host)).arg(what);
        Running::start(command, self.folder.at(&format!("{host}-{what}.log")))
    }
}

#[test]
fn one_leads_and_another_host_at_once_when_it_is_killed_though_a_child_of_it_lives() {
    let _permit = permit();
    let fleet = Fleet::new();
    let (_a, _b) = (fleet.host("a", FOR_LONG), fleet.host("b", FOR_LONG));
    let first = fleet.process("a", "lead-and-fork");
    let old = first.elected(0);
    first.says("child");
    let child = process::children(first.child.id() as i32);
    let second = fleet.process("b", "lead");
    first.signal(Signal::KILL);
    let new = second.elected(0);
    assert!(new > old, "{new} after {old}");
    assert!(!first.said().contains("lost"));
    // Its child has lived up to here.
    assert!(child.len() == 1 && process::is_alive(child[0]), "{child:?}");
    process::send(child[0], Signal::KILL);
}

#[test]
fn a_role_is_lost_here_before_another_has_it_when_the_agent_stands_still_or_dies() {
    let _permit = permit();
    let fleet = Fleet::new();
    let (mut a, _b) = (fleet.host("a", "2s"), fleet.host("b", "2s"));
    let first = fleet.process("a", "lead");
    let old = first.elected(0);
    let second = fleet.process("b", "lead");
    a.signal(Signal::STOP);
    let began = Instant::now();
    first.says("lost");
    assert!(began.elapsed() < LONG / 2);
    assert!(!second.said().contains("elected"), "the margin is between them");
    let new = second.elected(0);
    assert!(new > old);
    a.signal(Signal::CONT);
    // An agent that dies is an end at once.
    second.signal(Signal::KILL);
    let newest = first.elected(1);
    assert!(newest > new);
    let _ = a.child.kill();
    wait::poll(LONG, || (first.said().matches("lost").count() == 2).then_some(())).expect("it leads no more");
}

#[test]
fn an_agent_that_is_stopped_has_its_leader_give_up_first() {
    let _permit = permit();
    let fleet = Fleet::new();
    let (a, _b) = (fleet.host("a", FOR_LONG), fleet.host("b", FOR_LONG));
    let first = fleet.process("a", "lead");
    let old = first.elected(0);
    let second = fleet.process("b", "lead");
    a.signal(Signal::TERM);
    first.says("gives up");
    assert!(second.elected(0) > old);
    a.ends_well();
    // It stands before the next agent.
    let _a = fleet.host("a", FOR_LONG);
    second.signal(Signal::KILL);
    first.elected(1);
}

#[test]
fn what_runs_once_succeeds_once_whoever_dies_over_it() {
    let _permit = permit();
    let fleet = Fleet::new();
    let (_a, _b) = (fleet.host("a", FOR_LONG), fleet.host("b", FOR_LONG));
    let first = fleet.process("a", "once-and-stop");
    first.says("runs 1");
    let second = fleet.process("b", "once");
    second.says(&format!("waits for {} (process) of a\n", first.child.id()));
    first.signal(Signal::KILL);
    second.says("runs 2 died");
    second.says("done");
    second.ends_well();
    let late = fleet.process("a", "once");
    late.says("done");
    assert!(!late.said().contains("runs"));
    late.ends_well();
    fleet.process("a", "fails").ends_well();
}

#[test]
fn a_lock_excludes_is_waited_for_and_passed_on() {
    let _permit = permit();
    let fleet = Fleet::new();
    let _a = fleet.host("a", FOR_LONG);
    fleet.process("a", "lock").ends_well();
}

#[test]
fn threads_share_a_way_to_the_agent_and_closing_it_wakes_those_who_wait() {
    let _permit = permit();
    let fleet = Fleet::new();
    let _a = fleet.host("a", FOR_LONG);
    fleet.process("a", "threads").ends_well();
}

#[test]
fn the_fleet_s_state_and_events_come_until_the_agent_is_away() {
    let _permit = permit();
    let fleet = Fleet::new();
    let mut a = fleet.host("a", FOR_LONG);
    let process = fleet.process("a", "fleet");
    process.says("follows");
    let _b = fleet.host("b", FOR_LONG);
    process.says("host_joined");
    let _ = a.child.kill();
    process.says("ended");
    process.ends_well();
}

#[test]
fn the_example_is_that_of_the_documentation_and_leads_and_migrates() {
    let source = std::fs::read_to_string(support::root().join("examples/scheduler.c")).unwrap();
    let page = std::fs::read_to_string(support::root().join("../../docs/cluster.md")).unwrap();
    let (_, code) = source.split_once(" */\n").unwrap();
    assert!(page.contains(&format!("```c\n{code}```\n")), "docs/cluster.md and examples/scheduler.c differ");
    let _permit = permit();
    let mut fleet = Fleet::new();
    fleet.program = support::compile(Path::new("examples/scheduler.c"), fleet.folder.path());
    let _a = fleet.host("a", FOR_LONG);
    let first = fleet.process("a", "1");
    first.says("leads, as tenure ");
    first.says("migrates, attempt 1");
    let second = fleet.process("a", "2");
    first.signal(Signal::KILL);
    second.says("leads, as tenure ");
    assert!(!second.said().contains("migrates"), "{}", second.said());
}
