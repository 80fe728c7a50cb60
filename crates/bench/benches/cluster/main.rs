//! Many hosts: how soon a death on one is seen on another, when a host that has lost power is lost, and what an agent costs. With a
//! real etcd of one member on this machine, and the program as it is installed.
//!
//! `ONLY=death,lost,idle,thousands` chooses among the parts.

mod thousands;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use headcount_bench::{Sample, heading, line};
use testkit::{Etcd, Folder, Signal, artifacts, http, process, wait};

const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    println!("many hosts, {} processors", std::thread::available_parallelism().map_or(0, usize::from));
    let only = std::env::var("ONLY").unwrap_or_default();
    let parts: [(&str, fn()); 4] =
        [("death", deaths), ("lost", losses), ("idle", idle), ("thousands", thousands::thousands)];
    for (name, part) in parts {
        if only.is_empty() || only.split(',').any(|o| o == name) {
            part();
        }
    }
}

/// What is killed at the end, in any case.
struct Ours(Child);

impl Ours {
    fn start(command: &mut Command) -> Ours {
        Ours(command.stdin(Stdio::null()).spawn().expect("it can be started"))
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        let children = process::children(self.pid());
        let _ = self.0.kill();
        let _ = self.0.wait();
        children.into_iter().for_each(|pid| process::send(pid, Signal::KILL));
    }
}

struct Host {
    folder: PathBuf,
}

impl Host {
    fn new(all: &Folder, etcd: &Etcd, name: &str, settings: &str) -> Host {
        let folder = all.at(name);
        std::fs::create_dir_all(&folder).expect("our folder");
        let text = format!(
            "[agent]\nsocket = {:?}\n[cluster]\nname = \"bench\"\nendpoints = [\"{}\"]\nhost = {name:?}\n{settings}\n",
            folder.join("agent.sock"),
            etcd.url()
        );
        std::fs::write(folder.join("agent.toml"), text).expect("our folder");
        Host { folder }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(artifacts::program());
        command.args(arguments).arg("--config").arg(self.folder.join("agent.toml"));
        command.env("HEADCOUNT_RUNTIME_DIR", &self.folder);
        command
    }

    fn agent(&self) -> Ours {
        let agent = Ours::start(self.command(&["agent"]).stderr(Stdio::null()));
        let answers = || http::get(&self.folder.join("agent.sock"), "/metrics").ok();
        wait::poll(PATIENCE, || {
            answers().filter(|answer| answer.body.contains("cluster_connected 1")).map(drop)
        })
        .expect("it joins");
        agent
    }

    /// What happens in the whole cluster, as the program tells it.
    fn follow(&self) -> (Ours, BufReader<ChildStdout>) {
        let mut command = self.command(&["cluster", "events", "--follow", "--json"]);
        let mut ours = Ours::start(command.stdout(Stdio::piped()));
        let out = BufReader::new(ours.0.stdout.take().expect("it is piped"));
        (ours, out)
    }

    fn server(&self, name: &str, workers: usize) -> Ours {
        server(&self.folder.join(format!("{name}.registry")), workers)
    }
}

fn server(registry: &Path, workers: usize) -> Ours {
    let mut command = Command::new(artifacts::example("prefork"));
    command.arg("127.0.0.1:0").arg(registry).arg(workers.to_string());
    let server = Ours::start(command.stdout(File::create("/dev/null").expect("it is there")));
    wait::poll(PATIENCE, || (process::children(server.pid()).len() == workers).then_some(()))
        .expect("workers");
    server
}

/// Reads on until a line has this, and gives that line.
fn until(out: &mut BufReader<ChildStdout>, part: &str) -> String {
    loop {
        let mut text = String::new();
        assert!(out.read_line(&mut text).expect("a pipe") > 0, "it has ended before {part}");
        if text.contains(part) {
            return text;
        }
    }
}

fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

fn deaths() {
    heading("kill -9 of a worker, until `cluster events --follow` on another host has printed it");
    let (etcd, folder) = (Etcd::start(), Folder::new());
    // Not held back by the bound: this is about the way, not about the queue.
    let a = Host::new(&folder, &etcd, "a", "writes_per_second = 1000");
    let b = Host::new(&folder, &etcd, "b", "");
    let (server, _agents) = (a.server("web", 4), (a.agent(), b.agent()));
    let (_follower, mut out) = b.follow();
    until(&mut out, "host_joined");
    let (mut all, mut after_report) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        let workers = process::children(server.pid());
        let victim = workers[0];
        let killed = Instant::now();
        process::send(victim, Signal::KILL);
        let told = loop {
            let told = until(&mut out, "\"worker_died\"");
            if told.contains(&format!("\"pid\":{victim},")) {
                break told;
            }
        };
        all.push(killed.elapsed());
        let event: serde_json::Value = serde_json::from_str(&told).expect("a document");
        let reported = Duration::from_secs_f64(event["time"].as_f64().expect("a time"));
        after_report.push(wall().saturating_sub(reported));
        // Its replacement is told as well, before the next one goes.
        until(&mut out, "\"worker_started\"");
        let whole =
            || process::children(server.pid()).into_iter().filter(|&pid| process::is_alive(pid)).count();
        wait::poll(PATIENCE, || (whole() == 4).then_some(())).expect("a replacement");
        // Until what that has changed is told: this is about one death, and not about a queue.
        std::thread::sleep(Duration::from_millis(200));
    }
    line("from the SIGKILL", &Sample::new(all).to_string(), "");
    line("from the local report", &Sample::new(after_report).to_string(), "p50 10 ms, p99 100 ms");
}

fn losses() {
    heading("kill -9 of an agent, until another host has printed `host_lost`");
    for ttl in [2, 5] {
        let (etcd, folder) = (Etcd::start(), Folder::new());
        let b = Host::new(&folder, &etcd, "b", "");
        let _agent = b.agent();
        let (_follower, mut out) = b.follow();
        let mut all = Vec::new();
        for n in 0..10 {
            let name = format!("a{n}");
            let a = Host::new(&folder, &etcd, &name, &format!("ttl = \"{ttl}s\""));
            let agent = a.agent();
            until(&mut out, &format!("\"host\":\"{name}\""));
            let killed = Instant::now();
            drop(agent);
            until(&mut out, "\"host_lost\"");
            all.push(killed.elapsed());
        }
        line(
            &format!("ttl {ttl} s"),
            &Sample::new(all).to_string(),
            "ttl to ttl + 1 s after its last sign of life",
        );
    }
}

fn idle() {
    heading("an agent with 10 quiet nodes of 4 workers, for 30 s");
    let (etcd, folder) = (Etcd::start(), Folder::new());
    let a = Host::new(&folder, &etcd, "a", "");
    let _servers: Vec<Ours> = (0..10).map(|n| a.server(&format!("web{n}"), 4)).collect();
    let agent = a.agent();
    let used = || process::stat(agent.pid()).expect("it runs").cpu;
    // What it does at its start is not what it costs.
    std::thread::sleep(Duration::from_secs(5));
    let (before, begun) = (used(), Instant::now());
    std::thread::sleep(Duration::from_secs(30));
    let part = (used() - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    line("processor", &format!("{:.2} % of one", part * 100.0), "0.1 %");
    line(
        "memory",
        &format!("{:.1} MiB resident", process::resident_kib(agent.pid()) as f64 / 1024.0),
        "20 MiB",
    );
}
