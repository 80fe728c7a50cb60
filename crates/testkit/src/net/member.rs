//! Members of an etcd, each on a machine of its own.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Net, Number, Running};
use crate::etcd::ask;
use crate::wait;

/// Several that start on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// One of them.
#[derive(Debug)]
pub struct Member {
    /// Its machine.
    pub machine: Number,
    folder: PathBuf,
    arguments: Vec<String>,
    process: Option<Running>,
}

/// Starts so many, with these further arguments, and waits until all answer.
#[track_caller]
pub fn start_members(net: &mut Net, folder: &Path, number: usize, arguments: &[&str]) -> Vec<Member> {
    let machines: Vec<Number> = (1..=number).map(|n| net.add(&format!("etcd-{n}"))).collect();
    let peer = |net: &Net, machine| format!("http://{}:2380", net.address(machine));
    let all: Vec<_> = machines.iter().map(|&m| format!("{}={}", net.name(m), peer(net, m))).collect();
    let mut members: Vec<Member> = machines
        .iter()
        .map(|&machine| {
            let peer = peer(net, machine);
            let own = [
                format!("--name={}", net.name(machine)),
                format!("--initial-cluster={}", all.join(",")),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--listen-peer-urls={peer}"),
            ];
            let folder = folder.join(net.name(machine));
            std::fs::create_dir_all(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
            Member {
                machine,
                folder,
                arguments: own.into_iter().chain(arguments.iter().map(ToString::to_string)).collect(),
                process: None,
            }
        })
        .collect();
    members.iter_mut().for_each(|member| member.start(net));
    for member in &members {
        let answers = wait::poll(PATIENCE, || member.answers(net).then_some(()));
        answers.unwrap_or_else(|| panic!("etcd does not start:\n{}", member.log()));
    }
    members
}

impl Member {
    fn client(&self, net: &Net) -> SocketAddr {
        (net.address(self.machine), 2379).into()
    }

    /// Where clients find it.
    pub fn url(&self, net: &Net) -> String {
        format!("http://{}", self.client(net))
    }

    /// Its folder, in which is its `data`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What it said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("etcd.log")).unwrap_or_default()
    }

    /// Starts it, with what is on its disk. Its machine must be on.
    #[track_caller]
    pub fn start(&mut self, net: &Net) {
        let log = self.folder.join("etcd.log");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        let url = self.url(net);
        let mut command = net.command(self.machine, "etcd");
        command.args([
            "--logger",
            "zap",
            "--log-level",
            "warn",
            "--listen-client-urls",
            &url,
            "--advertise-client-urls",
            &url,
        ]);
        command.arg("--data-dir").arg(self.folder.join("data")).args(&self.arguments);
        command.stdout(log.try_clone().expect("a descriptor")).stderr(log);
        self.process = Some(Running::start(&mut command));
    }

    /// Kills it. Its data stays.
    pub fn kill(&mut self) {
        drop(self.process.take());
    }

    /// Its process, if it was not killed.
    pub fn process(&mut self) -> Option<&mut Running> {
        self.process.as_mut()
    }

    /// The number of its process, if that is alive.
    pub fn pid(&mut self) -> Option<i32> {
        self.process.as_mut().and_then(|process| process.is_alive().then(|| process.pid()))
    }

    /// Whether it answers, for all of etcd.
    pub fn answers(&self, net: &Net) -> bool {
        self.ask(net, "/health").is_some_and(|text| text.contains("\"true\""))
    }

    /// Whether it is the one that the others follow.
    pub fn is_leader(&self, net: &Net) -> bool {
        self.ask(net, "/metrics").is_some_and(|text| text.contains("\netcd_server_is_leader 1\n"))
    }

    fn ask(&self, net: &Net, path: &str) -> Option<String> {
        net.inside(|| ask(self.client(net), path))
    }
}
