//! Row 42: a local user puts files, FIFOs, sockets, links, leases and registries of any name wherever he may, while root's
//! server runs and every command of the program runs as root.
//!
//! Each test has a mount namespace of its own: what it puts into `/run` and `/dev/shm` is there for nobody else.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use testkit::guard::{Guard, LONGEST_SLEEP};
use testkit::program::{self, Run, headcount};
use testkit::wait::poll;
use testkit::{
    Folder, Integration, Nginx, Room, Setup, Signal, Stranger, User, artifacts, http, permit, process,
};

const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(5);
const MOST_MEMORY_KIB: u64 = 96 << 10;
const MOST_CPU: Duration = Duration::from_secs(2);

/// Where nobody's nodes are looked for.
const HIS: &str = "/dev/shm/headcount-65534";
const OURS: &str = "/run/headcount/edge.registry";

const NOBODY: [&str; 5] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];

/// A host of the test's own: `/run` and `/dev/shm` are empty.
fn host() -> Result<Room, String> {
    Room::new(
        &["--mount"],
        "mount -t tmpfs -o mode=0755 tmpfs /run; mount -t tmpfs -o mode=1777 tmpfs /dev/shm; mkdir /run/user",
    )
}

struct Ground {
    room: Room,
    guard: Guard,
    stranger: Stranger,
    own: Folder,
    wrongs: Vec<String>,
}

impl Ground {
    fn new() -> Option<Ground> {
        let room = host().map_err(|why| eprintln!("skipped: {why}")).ok()?;
        let own = Folder::new();
        // Where the user can reach it.
        std::fs::copy(artifacts::attacker(), own.at("attacker")).expect("our own folder");
        Some(Ground { room, guard: Guard::new(), stranger: Stranger::new(), own, wrongs: Vec::new() })
    }

    /// Root's server, with its registry in the default place.
    fn server(&self) -> Nginx {
        let setup =
            Setup::new(Integration::Lua).workers(2).option("node", "\"edge\"").option("lock_timeout", "2");
        let setup = setup.default_place().env("HEADCOUNT_RUNTIME_DIR", "").allow_kills();
        Nginx::start_ready(setup.inside(&self.room))
    }

    fn user(&self, attack: &str, folder: &Path, name: &str, model: Option<&Path>) -> User {
        let strangers = [self.stranger.pid()];
        let before = self.room.enter();
        let user = User::attack(&before, &self.own.at("attacker"), attack, folder, name, model, &strangers);
        assert!(user.said().starts_with("ready"), "{attack}: {}", user.said());
        eprintln!("{attack} of {}: {}", name, user.said());
        user
    }

    fn run(&self, words: &[&str], limit: Duration) -> Run {
        let name = format!("headcount {}", words.join(" "));
        program::begin(&mut headcount(&self.room.enter(), words), &name, &self.guard).end(limit)
    }

    fn judge(&mut self, run: &Run) {
        if run.overdue {
            self.wrongs.push(format!("{} had to be killed after {:?}", run.name, run.took));
        } else if run.code.is_none_or(|code| !(0..=4).contains(&code)) && !run.name.contains(" top") {
            self.wrongs.push(format!("{} ended with {:?}: {}", run.name, run.code, run.err));
        }
        if run.err.contains("panicked") {
            self.wrongs.push(format!("{}: {}", run.name, run.err));
        }
    }

    /// Every command, with this choice of a node.
    fn every(&mut self, which: &[&str]) -> Vec<Run> {
        let state = self.own.at("run.state");
        let runs = program::run_every(&self.room.enter(), which, &state, LIMIT, &self.guard);
        let _ = std::fs::remove_file(state);
        runs.iter().for_each(|run| self.judge(run));
        runs
    }

    fn verdict(mut self) {
        for seen in self.guard.seen() {
            eprintln!("{}: {:?}, {} KiB", seen.what, seen.cpu, seen.peak_kib);
            if seen.longest_sleep > LONGEST_SLEEP {
                let text =
                    format!("{} was in state D for {:?} ({})", seen.what, seen.longest_sleep, seen.slept_in);
                self.wrongs.push(text);
            }
            if seen.cpu > MOST_CPU {
                self.wrongs.push(format!("{} used {:?} of processor time", seen.what, seen.cpu));
            }
            if seen.peak_kib > MOST_MEMORY_KIB {
                self.wrongs.push(format!("{} used {} KiB", seen.what, seen.peak_kib));
            }
        }
        self.wrongs.extend(self.stranger.complaint());
        assert!(
            self.wrongs.is_empty(),
            "{} things are wrong:\n- {}",
            self.wrongs.len(),
            self.wrongs.join("\n- ")
        );
    }
}

fn pids(node: &Value, role: &str) -> Vec<i64> {
    let all = node["processes"].as_array().into_iter().flatten();
    let mut pids: Vec<i64> = all
        .filter(|p| p["role"] == role && p["liveness"] == "alive")
        .filter_map(|p| p["pid"].as_i64())
        .collect();
    pids.sort_unstable();
    pids
}

/// He attacks in his own folder, by the name of root's node and by another. Root's programs look at all nodes, at root's
/// own and at his.
fn in_his_own_folder(attack: &str) {
    let _permit = permit();
    let Some(mut ground) = Ground::new() else { return };
    let nginx = ground.server();
    let model = Path::new(OURS);
    let folder = Path::new(HIS);
    let _namesake = ground.user(attack, folder, "edge.registry", Some(model));
    let other = if attack == "links" { folder.join("more") } else { folder.to_owned() };
    let _other = ground.user(attack, &other, "shop.registry", Some(model));

    ground.every(&[]);
    ground.every(&["--node", "shop"]);
    for run in ground.every(&["--node", "edge"]) {
        // Whatever he has, this is root's node, and it is alive.
        if run.name.starts_with("headcount status --json") {
            let node = run.json().pointer("/nodes/0").cloned().unwrap_or_default();
            let mut workers: Vec<i64> = nginx.workers().into_iter().map(i64::from).collect();
            workers.sort_unstable();
            if node["path"] != OURS || pids(&node, "worker") != workers {
                ground
                    .wrongs
                    .push(format!("status shows another node than {OURS} with {workers:?}: {node:#}"));
            }
        }
        if run.name.starts_with("headcount wait --stopped") && run.code != Some(1) {
            ground.wrongs.push(format!("the node has stopped, says {}: {run:?}", run.name));
        }
    }
    // Whoever is named there as a master is none of his.
    let run = ground.run(&["reload", "--node", "shop", "--timeout", "1s"], LIMIT);
    ground.judge(&run);
    if run.code == Some(0) {
        ground.wrongs.push(format!("a stranger's node was reloaded: {run:?}"));
    }
    let run = ground.run(&["doctor", "--clean"], LIMIT);
    ground.judge(&run);
    let run = ground.run(&["reload", "--node", "edge", "--timeout", "10s"], Duration::from_secs(15));
    ground.judge(&run);
    if run.code != Some(0) {
        ground.wrongs.push(format!("root's own node was not reloaded: {run:?}"));
    }
    // He is gone, what he has put there stays.
    nginx.end(Signal::QUIT);
    ground.verdict();
}

/// He was first in a folder of everybody that a server's `path` names. The server serves all the same, through its whole
/// life.
fn in_a_folder_of_everybody(attack: &str) {
    let _permit = permit();
    let Some(mut ground) = Ground::new() else { return };
    let sticky = ground.own.at("sticky");
    std::fs::create_dir(&sticky).expect("our own folder");
    std::fs::set_permissions(&sticky, std::fs::Permissions::from_mode(0o1777)).expect("our own folder");
    let registry = sticky.join("shop.registry");
    let model = model(&ground);
    let user = ground.user(attack, &sticky, "shop.registry", Some(&model));

    let setup = Setup::new(Integration::Lua).workers(2).allow_kills().option("lock_timeout", "2");
    let setup = setup.option("path", &format!("\"{}\"", registry.display())).inside(&ground.room);
    let nginx = Nginx::prepare(setup);
    let run = program::begin(&mut nginx.command(&[]), "nginx", &ground.guard).end(LIMIT);
    if run.overdue {
        ground.wrongs.push(format!("the server did not start within {LIMIT:?}"));
        drop(user);
        nginx.kill_all();
        return ground.verdict();
    }
    let must = |what: &str, wrongs: &mut Vec<String>, condition: &mut dyn FnMut() -> Option<()>| {
        if poll(LIMIT + LOCK_TIMEOUT, condition).is_none() {
            wrongs.push(format!("not in time: {what}"));
        }
    };
    let serves = || http::get(&nginx.socket(), "/ping").ok().filter(|answer| answer.status == 200).map(drop);
    must("the server serves", &mut ground.wrongs, &mut || serves());
    ground.guard.watch(nginx.master(), "the master");
    let registry = registry.display().to_string();
    ground.every(&["--registry", &registry]);
    let old = nginx.workers();
    nginx.reload();
    must("a reload", &mut ground.wrongs, &mut || {
        let now = nginx.workers();
        (now.len() == 2 && now.iter().all(|pid| !old.contains(pid))).then_some(())
    });
    let master = nginx.master();
    process::send(master, Signal::USR2);
    must("an upgrade", &mut ground.wrongs, &mut || {
        let new = nginx.master_if_any().filter(|&new| new != master)?;
        (nginx.workers_of(new).len() == 2).then_some(())
    });
    process::send(master, Signal::QUIT);
    must("the old master's end", &mut ground.wrongs, &mut || (!process::is_alive(master)).then_some(()));
    must("the server serves after an upgrade", &mut ground.wrongs, &mut || serves());
    process::send(nginx.master(), Signal::QUIT);
    must("a clean stop", &mut ground.wrongs, &mut || nginx.family().is_empty().then_some(()));
    drop(user);
    nginx.kill_all();
    ground.verdict();
}

/// A registry as a server that has stopped leaves it.
fn model(ground: &Ground) -> PathBuf {
    let nginx = ground.server();
    let model = ground.own.at("model");
    let copied = ground.room.command("cp").arg(OURS).arg(&model).status().expect("cp");
    assert!(copied.success());
    nginx.end(Signal::QUIT);
    model
}

macro_rules! attacks {
    ($($name:ident)*) => {
        mod own_folder {
            $(#[test] fn $name() { super::in_his_own_folder(stringify!($name)); })*
        }
        mod everybodys_folder {
            $(#[test] fn $name() { super::in_a_folder_of_everybody(stringify!($name)); })*
        }
        #[test]
        fn every_attack_has_its_test() {
            assert_eq!([$(stringify!($name)),*], attacker::user::ATTACKS);
        }
    };
}

attacks! { fifos fifo_locks sockets links leases folders truncated huge largest many impostor noise record_locks }

/// Root has two nodes of one name, of which one is dead; a local user has one of this name, too. Each is shown his own,
/// and root the one that lives.
#[test]
fn whose_node_is_meant() {
    let _permit = permit();
    let Some(ground) = Ground::new() else { return };
    // It leaves its registry, and is dead.
    drop(model(&ground));
    let living = "/dev/shm/headcount-0";
    let setup = Setup::new(Integration::Lua).workers(1).option("node", "\"edge\"").default_place();
    let setup = setup.env("HEADCOUNT_RUNTIME_DIR", living).inside(&ground.room);
    let nginx = Nginx::start_ready(setup);
    let _user = ground.user("impostor", Path::new(HIS), "edge.registry", Some(Path::new(OURS)));

    let path =
        |run: Run| run.json().pointer("/nodes/0/path").cloned().unwrap_or_else(|| Value::from(run.err));
    let status = ["status", "--json", "--node", "edge"];
    assert_eq!(path(ground.run(&status, LIMIT)), format!("{living}/edge.registry"));
    let as_nobody: Vec<String> = ground.room.enter().into_iter().chain(NOBODY.map(str::to_owned)).collect();
    let mut command = program::of_everybody(&ground.own.at("headcount"), &as_nobody, &status);
    let run = program::begin(&mut command, "headcount status of nobody", &ground.guard).end(LIMIT);
    assert_eq!(path(run), format!("{HIS}/edge.registry"));
    nginx.end(Signal::QUIT);
    ground.verdict();
}
