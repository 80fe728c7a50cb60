//! `headcount cluster reload` whose command or agents are killed: each node is reloaded once, or not at all.

use std::process::Command;
use std::time::{Duration, SystemTime};

use testkit::{Signal, permit};

use super::fleet::{Fleet, Server, host, write};
use super::reload::{Shop, generation, may_reload};
use crate::program;
use crate::scripted::Running;

/// Killed at whatever it was doing, and gone on with by another one: each node is reloaded once.
#[test]
fn interrupted_at_each_step_and_resumed_each_is_reloaded_once() {
    let _permit = permit();
    let shop = Shop::open(&["a", "b", "c"], "ttl = \"2s\"");
    let mut expected = 1;
    for step in [
        "3 nodes in 3 waves",
        "wave 1 of 3",
        "a/prefork-example  reloading",
        "a/prefork-example  generation",
        "wave 2 of 3",
        "b/prefork-example  reloading",
        "b/prefork-example  generation",
        "c/prefork-example  reloading",
    ] {
        let command = shop.command(&[]);
        command.says(step);
        command.signal(Signal::KILL);
        drop(command);
        let ended = shop.resume();
        // It may have been through before the signal came.
        expected += 1;
        if ended.code == Some(0) {
            ended.says("going on with what").says("3 nodes serve their new generation");
        }
        assert_eq!(shop.generations(), [expected; 3], "killed at {step:?}");
    }
    // By Ctrl-C it says how to go on, and nobody has to wait.
    shop.servers[1].freeze();
    let command = shop.command(&[]);
    command.says("b/prefork-example  reloading");
    command.signal(Signal::INT);
    command.end().ended(1).complains("interrupted: 1 of 3 nodes through. Go on with").complains("--resume");
    shop.hosts[2].cluster(&["reload"]).ended(4).complains("was interrupted: go on with").complains("3 nodes");
    let other =
        Running::start(&shop.hosts[2].folder, shop.hosts[2].command(&["cluster", "reload", "--resume"]));
    other.says("going on with what");
    shop.servers[1].thaw();
    other.end().ended(0);
    assert_eq!(shop.generations(), [expected + 1; 3]);
}

/// Whatever is killed at whatever moment: no node is ever reloaded twice for one rollout, and all are if it says so.
#[test]
fn killed_at_any_moment_none_is_reloaded_twice() {
    let _permit = permit();
    let rounds = std::env::var("HEADCOUNT_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(6);
    let mut shop = Shop::open(&["a", "b", "c"], "ttl = \"2s\"");
    let (mut before, mut through, mut stopped, mut over) = (shop.generations(), 0, 0, 0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later than 1970");
    let mut seed = now.subsec_nanos();
    eprintln!("seed {seed}");
    let mut chance = |below: u32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) % below
    };
    for round in 0..rounds {
        // One that had stopped is gone on with as well, and asks again for what had failed.
        let mut most = 1;
        let mut command = Some(shop.command(&["--timeout", "3s"]));
        let ended = loop {
            std::thread::sleep(Duration::from_millis(u64::from(chance(200))));
            match chance(8) {
                // The command, and it is gone on with.
                0 | 1 => {
                    drop(command.take());
                    let resumed = shop.hosts[1].command(&["cluster", "reload", "--resume"]);
                    let running = Running::start(&shop.hosts[1].folder, resumed);
                    let answer = running.wait_for("an answer", |r| {
                        let refused = r.err().contains("is reloading this cluster since");
                        (refused || r.out().contains("going on") || r.err().contains("headcount: "))
                            .then_some(refused)
                    });
                    if answer {
                        // Its lease has to run out.
                        running.end().ended(4);
                        shop.servers.iter().for_each(Server::thaw);
                        let run = shop.resume();
                        most += u64::from(run.out.contains("it had stopped"));
                        break run;
                    }
                    most += u64::from(running.out().contains("it had stopped"));
                    command = Some(running);
                }
                // The agent of a host, which comes back.
                2 | 3 => {
                    let number = chance(3) as usize;
                    shop.hosts[number].kill_agent();
                    shop.hosts[number].launch();
                }
                // A server that takes its time.
                4 | 5 => shop.servers[chance(3) as usize].freeze(),
                // etcd, which comes back at once.
                6 => shop.fleet.etcd.restart(),
                _ => {
                    shop.servers.iter().for_each(Server::thaw);
                    break command.take().expect("it runs").end();
                }
            }
        };
        // What has begun on a host ends there.
        shop.servers.iter().for_each(Server::thaw);
        shop.serves(&["a", "b", "c"]);
        let now = shop.generations();
        let more: Vec<u64> = now.iter().zip(&before).map(|(now, before)| now - before).collect();
        assert!(more.iter().all(|more| *more <= most), "round {round}: {more:?}\n{ended:#?}");
        match ended.code {
            Some(0) => {
                through += 1;
                assert!(more.iter().all(|more| *more >= 1), "round {round}: {more:?} {ended:#?}");
            }
            // There was nothing to go on with: it was through, or not begun, when it was killed.
            Some(4) if ended.err.contains("there is no reload to go on with") => over += 1,
            // An agent was killed before it had sent the signal, or after.
            _ => {
                stopped += 1;
                assert!(ended.err.contains("stopped: "), "round {round}: {ended:#?}");
                // A signal that a server has not taken yet is taken before this one.
                shop.hosts[0].cluster(&["reload"]).ended(0);
            }
        }
        before = shop.generations();
    }
    eprintln!(
        "{rounds} rounds: {through} through, {stopped} stopped, {over} over before they could be gone on with"
    );
}

/// As the unit runs it: as nobody, it may reload what is root's with two capabilities, and not without.
#[test]
fn an_agent_without_root_needs_two_capabilities() {
    let _permit = permit();
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only root can start an agent as somebody else");
    }
    let fleet = Fleet::new();
    let a = may_reload(fleet.host("a"), "");
    let _server = Server::start(&a, 1);
    // Where it may make its socket.
    let place = a.folder.join("nobody");
    std::fs::create_dir(&place).expect("our folder");
    std::os::unix::fs::chown(&place, Some(65534), Some(65534)).expect("our folder");
    let text = std::fs::read_to_string(a.config()).expect("our file");
    write(
        &a.config(),
        &text.replace(&a.socket().display().to_string(), &place.join("agent.sock").display().to_string()),
    );
    let copy = a.folder.join("headcount");
    drop(program::of_everybody(&copy, ["agent"]));
    for (capabilities, code) in [("-all", 4), ("-all,+kill,+dac_read_search", 0)] {
        let mut agent = Command::new("setpriv");
        agent.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]);
        agent.arg(format!("--bounding-set={capabilities}"));
        agent.arg(format!("--inh-caps={capabilities}")).arg(format!("--ambient-caps={capabilities}"));
        agent.arg(&copy).arg("agent").arg("--config").arg(a.config()).env("HEADCOUNT_RUNTIME_DIR", &a.folder);
        let agent = Running::start(&a.folder, agent);
        agent.says("has joined");
        a.sees("its node", |status| (host(status, "a")?["nodes"][0]["state"] == "serving").then_some(()));
        let run = a.cluster(&["reload"]).ended(code);
        if code == 4 {
            run.complains("stopped: a/prefork-example: not reloaded: you may not signal master");
        }
        agent.signal(Signal::TERM);
        agent.end().ended(0);
    }
    assert_eq!(generation(&a.folder.join("web.registry")), 2);
}
