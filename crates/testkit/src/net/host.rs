//! A host: a machine with an agent and a small pre-forking server.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use super::{Net, Number, Running};
use crate::{artifacts, process, wait};

/// What its agent sees is in its folder.
#[derive(Debug)]
pub struct Host {
    /// Its machine.
    pub machine: Number,
    /// Its folder.
    pub folder: PathBuf,
    /// For its agents: names and values.
    pub environment: Vec<(String, String)>,
    /// What runs on it, if it does.
    pub agent: Option<Running>,
    /// The same.
    pub server: Option<Running>,
}

impl Host {
    /// A machine of this name, on which nothing runs yet. `cluster`: what its configuration has for `[cluster]`.
    #[track_caller]
    pub fn new(net: &mut Net, folder: &Path, name: &str, cluster: &str) -> Host {
        let machine = net.add(name);
        let folder = folder.join(name);
        std::fs::create_dir_all(folder.join("run")).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let host = Host { machine, folder, environment: Vec::new(), agent: None, server: None };
        let text = format!(
            "[agent]\nsocket = {:?}\nreload = true\n[cluster]\nhost = {name:?}\n{cluster}\n",
            host.folder.join("agent.sock")
        );
        std::fs::write(host.config(), text).unwrap_or_else(|e| panic!("{}: {e}", host.config().display()));
        host
    }

    /// Its agent's configuration.
    pub fn config(&self) -> PathBuf {
        self.folder.join("agent.toml")
    }

    /// Its nodes' registries: as `/run`, it is empty when the machine has lost its power.
    pub fn runtime(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// `headcount …` on it.
    #[track_caller]
    pub fn headcount(&self, net: &Net, arguments: &[&str]) -> Command {
        let mut command = net.command(self.machine, artifacts::program());
        command.args(arguments).env("HEADCOUNT_RUNTIME_DIR", self.runtime()).env("TZ", "UTC");
        command
    }

    /// Starts its agent, without waiting for anything.
    #[track_caller]
    pub fn start_agent(&mut self, net: &Net) {
        let log = self.folder.join("agent.log");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        // Not for whoever goes into the machine first.
        let mut command = net.command(self.machine, "env");
        command.args(self.environment.iter().map(|(name, value)| format!("{name}={value}")));
        command.arg(artifacts::program()).args(["agent", "--config"]).arg(self.config());
        command.env("HEADCOUNT_RUNTIME_DIR", self.runtime()).env("TZ", "UTC");
        command.stdout(log.try_clone().expect("a descriptor")).stderr(log);
        self.agent = Some(Running::start(&mut command));
    }

    /// What its agents said.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.folder.join("agent.log")).unwrap_or_default()
    }

    /// Starts its server, and waits until all workers are there.
    #[track_caller]
    pub fn start_server(&mut self, net: &Net, workers: usize) {
        let log = self.folder.join("server.log");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        let mut command = net.command(self.machine, artifacts::example("prefork"));
        command.arg("127.0.0.1:0").arg(self.runtime().join("web.registry")).arg(workers.to_string());
        command.stdout(log.try_clone().expect("a descriptor")).stderr(log);
        self.server = Some(Running::start(&mut command));
        let all = wait::poll(wait::PATIENCE, || (self.workers().len() == workers).then_some(()));
        all.unwrap_or_else(|| panic!("{} does not start its workers", self.folder.display()));
    }

    /// The workers of its server that are alive.
    pub fn workers(&self) -> Vec<i32> {
        self.server.as_ref().map_or(Vec::new(), |server| process::children(server.pid()))
    }

    /// Kills its server, the master first.
    pub fn kill_server(&mut self) {
        let workers = self.workers();
        if let Some(mut server) = self.server.take() {
            server.kill();
        }
        workers.into_iter().for_each(|pid| process::send(pid, Signal::KILL));
    }

    /// Its power is lost, with all that runs on it.
    pub fn power_off(&mut self, net: &mut Net) {
        net.power_off(self.machine);
        (self.agent, self.server) = (None, None);
        let runtime = self.runtime();
        std::fs::remove_dir_all(&runtime)
            .and_then(|()| std::fs::create_dir(&runtime))
            .unwrap_or_else(|e| panic!("{}: {e}", runtime.display()));
    }
}
