//! Hosts, their agents and servers, and the etcd that they share.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use testkit::{Etcd, Folder, Signal, artifacts, process, wait};

use crate::program::{self, Run};
use crate::scripted::{LONG, Running};

/// The shortest that etcd knows.
pub const TTL: Duration = Duration::from_secs(2);
/// A setting, longer than a test: what happens sooner has nothing to do with a lease.
pub const FOR_LONG: &str = "ttl = \"300s\"";

/// An etcd, and a folder for all hosts.
pub struct Fleet {
    pub etcd: Etcd,
    /// Its other members.
    pub others: Vec<Etcd>,
    pub folder: Folder,
}

impl Fleet {
    pub fn new() -> Fleet {
        Fleet { etcd: Etcd::start(), others: Vec::new(), folder: Folder::new() }
    }

    /// With these arguments for etcd.
    pub fn with(arguments: &[&str]) -> Fleet {
        Fleet { etcd: Etcd::start_with(arguments), others: Vec::new(), folder: Folder::new() }
    }

    /// With an etcd of three members.
    pub fn of_three() -> Fleet {
        let mut others = Etcd::start_members(3);
        Fleet { etcd: others.remove(0), others, folder: Folder::new() }
    }

    /// The member that the others follow.
    #[track_caller]
    pub fn leader(&mut self) -> &mut Etcd {
        let all = || [&self.etcd].into_iter().chain(&self.others).position(Etcd::is_leader);
        let number = wait::poll(LONG, all).expect("one of them leads");
        if number == 0 { &mut self.etcd } else { &mut self.others[number - 1] }
    }

    fn endpoints(&self) -> Vec<String> {
        [&self.etcd].into_iter().chain(&self.others).map(Etcd::url).collect()
    }

    /// A host whose agent does not run yet.
    pub fn host(&self, name: &str) -> Host {
        self.host_with(name, "ttl = \"2s\"")
    }

    /// The same with these settings of `[cluster]`.
    pub fn host_with(&self, name: &str, settings: &str) -> Host {
        let host = Host { folder: self.folder.at(name), agent: None };
        std::fs::create_dir_all(&host.folder).expect("our folder");
        host.configure_cluster(self, name, settings);
        host
    }

    /// What somebody else does with this etcd.
    pub fn client<T>(
        &self,
        act: impl AsyncFnOnce(etcd_client::Client) -> Result<T, etcd_client::Error>,
    ) -> T {
        block_on(async { act(etcd_client::Client::connect([self.etcd.url()], None).await?).await })
    }
}

pub fn block_on<T>(act: impl Future<Output = Result<T, etcd_client::Error>>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(act).unwrap_or_else(|error| panic!("etcd: {error}"))
}

/// A host: what its agent sees is in its folder.
pub struct Host {
    pub folder: PathBuf,
    agent: Option<Running>,
}

impl Host {
    /// Without a cluster.
    pub fn alone(folder: &Path) -> Host {
        std::fs::create_dir_all(folder).expect("our folder");
        let host = Host { folder: folder.to_owned(), agent: None };
        host.configure("");
        host
    }

    pub fn config(&self) -> PathBuf {
        self.folder.join("agent.toml")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("agent.sock")
    }

    /// Writes its configuration, with the socket in its own folder.
    pub fn configure(&self, cluster: &str) {
        let text = format!("[agent]\nsocket = {:?}\n{cluster}", self.socket());
        std::fs::write(self.config(), text).expect("our folder");
    }

    /// The same as a host of a fleet.
    pub fn configure_cluster(&self, fleet: &Fleet, name: &str, settings: &str) {
        self.configure(&format!(
            "[cluster]\nname = \"shop\"\nendpoints = {:?}\nhost = {name:?}\n{settings}\n",
            fleet.endpoints()
        ));
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program::headcount(arguments);
        command
            .arg("--config")
            .arg(self.config())
            .env("HEADCOUNT_RUNTIME_DIR", &self.folder)
            .env("STATE_DIRECTORY", self.folder.join("state"))
            .env("TZ", "UTC");
        command
    }

    /// `headcount cluster …`, asked from here.
    pub fn cluster(&self, arguments: &[&str]) -> Run {
        let all: Vec<&str> = ["cluster"].iter().chain(arguments).copied().collect();
        program::run(&mut self.command(&all))
    }

    pub fn status(&self) -> Value {
        self.cluster(&["status", "--json"]).ended(0).json()
    }

    pub fn events(&self) -> Vec<Value> {
        let out = self.cluster(&["events", "--json"]).ended(0).out;
        out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
    }

    /// Those of one kind.
    pub fn events_of(&self, kind: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["kind"] == kind).collect()
    }

    /// Starts its agent, without waiting for anything.
    pub fn launch(&mut self) -> &Running {
        self.agent = Some(Running::start(&self.folder, self.command(&["agent"])));
        self.agent()
    }

    /// Starts its agent, and waits until it says this.
    pub fn start(&mut self, says: &str) {
        self.launch().says(says);
    }

    pub fn join(&mut self) {
        self.start("has joined");
    }

    pub fn is_running(&self) -> bool {
        self.agent.is_some()
    }

    pub fn agent(&self) -> &Running {
        self.agent.as_ref().expect("it was started")
    }

    /// Ends its agent by a signal, and gives what it said.
    pub fn end(&mut self, signal: Signal) -> Run {
        let agent = self.agent.take().expect("it was started");
        agent.signal(signal);
        agent.end()
    }

    /// Kills its agent, as a crash does.
    pub fn kill_agent(&mut self) {
        // It is killed, and waited for.
        drop(self.agent.take());
    }

    /// Waits until `headcount cluster status --json` fits.
    #[track_caller]
    pub fn sees<T>(&self, what: &str, mut fits: impl FnMut(&Value) -> Option<T>) -> T {
        let mut last = Value::Null;
        let found = wait::poll(LONG, || {
            // etcd may not be there yet.
            let answer = self.cluster(&["status", "--json"]);
            last = if answer.code == Some(0) { answer.json() } else { Value::from(answer.err) };
            (answer.code == Some(0)).then(|| fits(&last)).flatten()
        });
        found.unwrap_or_else(|| panic!("{what} is not seen: {last:#}"))
    }

    /// Waits until this host is in this state.
    #[track_caller]
    pub fn sees_host(&self, name: &str, state: &str) -> Value {
        self.sees(&format!("{name} as {state}"), |status| {
            host(status, name).filter(|host| host["state"] == state).cloned()
        })
    }

    /// Waits until the only node of this host is in this state.
    #[track_caller]
    pub fn sees_node(&self, name: &str, state: &str) -> Value {
        self.sees(&format!("the node of {name} as {state}"), |status| {
            let node = &host(status, name)?["nodes"][0];
            (node["state"] == state).then(|| node.clone())
        })
    }
}

pub fn host<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status["hosts"].as_array().expect("hosts").iter().find(|host| host["host"] == name)
}

/// A small pre-forking server: the example of the core.
pub struct Server {
    child: Child,
    registry: PathBuf,
}

impl Server {
    /// On this host, with so many workers that serve.
    pub fn start(host: &Host, workers: usize) -> Server {
        Server::start_at(host, "web.registry", workers)
    }

    /// The same, with this registry.
    pub fn start_at(host: &Host, registry: &str, workers: usize) -> Server {
        let log = File::create(host.folder.join("server.log")).expect("our folder");
        let mut command = Command::new(artifacts::example("prefork"));
        let registry = host.folder.join(registry);
        command.arg("127.0.0.1:0").arg(&registry).arg(workers.to_string());
        let child =
            command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log).spawn();
        let server = Server { child: child.expect("it can be started"), registry };
        let all = wait::poll(LONG, || (server.serving().len() == workers).then_some(()));
        all.expect("it starts its workers");
        server
    }

    pub fn master(&self) -> i32 {
        self.child.id() as i32
    }

    /// Those that have joined, the oldest first: of one that is killed before that, nobody is told.
    fn serving(&self) -> Vec<i32> {
        let read = headcount::Observer::open(&self.registry).and_then(|node| node.snapshot());
        let processes = read.map(|snapshot| snapshot.processes).unwrap_or_default();
        let serves = |pid: &i32| {
            processes.iter().any(|p| p.pid as i32 == *pid && p.state == headcount::State::Serving)
        };
        self.workers().into_iter().filter(serves).collect()
    }

    pub fn workers(&self) -> Vec<i32> {
        process::children(self.master()).into_iter().filter(|&pid| process::is_alive(pid)).collect()
    }

    /// Kills one worker, and waits until another has taken its place. Which one that was.
    #[track_caller]
    pub fn lose_one(&self) -> i32 {
        let before = self.serving();
        let victim = before[0];
        process::send(victim, Signal::KILL);
        let replaced = wait::poll(LONG, || {
            let now = self.serving();
            (now.len() == before.len() && !now.contains(&victim)).then_some(())
        });
        replaced.expect("it is replaced");
        victim
    }

    /// Its master does nothing until it is thawed: what it is told it takes then.
    pub fn freeze(&self) {
        process::send(self.master(), Signal::STOP);
    }

    pub fn thaw(&self) {
        process::send(self.master(), Signal::CONT);
    }

    /// A clean stop. Its registry stays.
    pub fn stop(mut self) {
        process::send(self.master(), Signal::TERM);
        let ended = wait::poll(LONG, || self.child.try_wait().expect("our child"));
        assert!(ended.expect("it ends").success());
    }

    /// Kills all of it, the master first.
    pub fn kill(&mut self) {
        let workers = process::children(self.master());
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in workers {
            process::send(pid, Signal::KILL);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The key of something in the tests' cluster.
pub fn key(rest: &str) -> String {
    format!("/headcount/v1/shop/{rest}")
}

/// A file with this text.
pub fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("our folder");
}
