//! What runs on a host and has to do with deadlines: its agent, and processes that have something by way of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use testkit::net::Running;
use testkit::{process, wait};

use super::Fleet;
use crate::fault::Number;
use crate::{asleep, tenures};

impl Fleet {
    pub(super) fn start_agent(&mut self, host: Number) {
        let is_on = self.net.is_on(self.hosts[host].machine);
        if is_on && !self.hosts[host].agent.as_mut().is_some_and(Running::is_alive) {
            self.begin(host, |fleet| {
                fleet.hosts[host].start_agent(&fleet.net);
                fleet.hosts[host].agent.as_ref().map_or(0, Running::pid)
            });
        }
    }

    /// Whose clocks are moved with that of their host.
    pub(super) fn moved(&self, host: Number) -> Vec<i32> {
        self.net
            .processes(self.hosts[host].machine)
            .into_iter()
            .filter(|&pid| asleep::is_moved(pid))
            .collect()
    }

    /// Where processes of this host find its agent.
    fn way(&self, host: Number) -> PathBuf {
        self.hosts[host].folder.join("way.sock")
    }

    /// Starts something that has to see the clock of its host. Before it does, no process of that host and its agent come to speak of
    /// deadlines: they would take each other for one in another time namespace.
    fn begin(&mut self, host: Number, start: impl FnOnce(&mut Fleet) -> i32) {
        let Some(asleep) = self.asleep.filter(|_| self.ahead[host] > 0) else {
            start(self);
            return;
        };
        let way = self.way(host);
        fs::remove_file(&way).unwrap_or_else(|e| panic!("{}: {e}", way.display()));
        let pid = start(self);
        let begun =
            wait::poll(wait::PATIENCE, || (asleep::is_moved(pid) || !process::is_alive(pid)).then_some(()));
        assert!(begun.is_some(), "a process of {} does not begin", self.name(host));
        asleep.shift(pid, self.ahead[host]);
        self.open_the_way(host);
    }

    pub(super) fn open_the_way(&self, host: Number) {
        let way = self.way(host);
        symlink(self.hosts[host].folder.join("agent.sock"), &way)
            .unwrap_or_else(|e| panic!("{}: {e}", way.display()));
    }

    /// Stands for a role, takes a lock, runs onces, and appends lines to files that all hosts share.
    pub(super) fn claim(&mut self, host: Number) {
        if !self.net.is_on(self.hosts[host].machine)
            || self.claimants[host].as_mut().is_some_and(Running::is_alive)
        {
            return;
        }
        let program = asleep::claimant().unwrap_or_else(|why| panic!("{why}"));
        let mut command = self.net.command(self.hosts[host].machine, program);
        command.arg("--socket").arg(self.way(host)).arg("--folder").arg(self.folder.path());
        command.args(["--host", self.name(host)]);
        command.stderr(self.log(host, "claimant.log"));
        self.begin(host, |fleet| {
            let claimant = Running::start(&mut command);
            let pid = claimant.pid();
            fleet.claimants[host] = Some(claimant);
            pid
        });
    }

    fn log(&self, host: Number, name: &str) -> fs::File {
        let log = self.hosts[host].folder.join(name);
        let file = fs::File::options().create(true).append(true).open(&log);
        file.unwrap_or_else(|e| panic!("{}: {e}", log.display()))
    }

    /// Stands for a role, and while it leads, appends lines to a file that all hosts share.
    pub(super) fn stand(&mut self, host: Number) {
        if !self.net.is_on(self.hosts[host].machine)
            || self.leaders[host].as_mut().is_some_and(Running::is_alive)
        {
            return;
        }
        let socket = self.way(host).display().to_string();
        let file = self.folder.at(tenures::FILE).display().to_string();
        let arguments = [
            "cluster",
            "leader",
            "campaign",
            "--socket",
            &socket,
            "--",
            "bash",
            "-c",
            tenures::SCRIPT,
            "bash",
            &file,
        ];
        let mut command = self.hosts[host].headcount(&self.net, &arguments);
        let log = self.log(host, "leader.log");
        command.stdout(log.try_clone().expect("a descriptor")).stderr(log);
        self.begin(host, |fleet| {
            let leader = Running::start(&mut command);
            let pid = leader.pid();
            fleet.leaders[host] = Some(leader);
            pid
        });
    }
}
