//! The members and hosts, and what is done to them.

mod begun;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use testkit::net::{Host, Member, Net, Running, start_members};
use testkit::{Folder, Signal, process, wait};

use crate::asleep::Asleep;
use crate::checker::Disturbance;
use crate::clearing;
use crate::fault::{Fault, Number};
use crate::operator;

/// The shortest that there is.
pub const TTL: Duration = Duration::from_secs(2);
/// Of each server.
pub const WORKERS: usize = 2;
/// On a loaded machine, three members take their time.
const PATIENCE: Duration = Duration::from_secs(90);
/// The cluster's name.
const CLUSTER: &str = "campaign";
/// So that it is soon full.
const QUOTA: &str = "25165824";
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// All of it.
pub struct Fleet {
    /// By their numbers.
    pub hosts: Vec<Host>,
    /// By their numbers.
    pub members: Vec<Member>,
    /// On each host, who stands for the role.
    leaders: Vec<Option<Running>>,
    /// On each host, who has a role, locks and onces.
    claimants: Vec<Option<Running>>,
    /// By how many seconds the clock of each host that goes on while it is suspended is ahead of this machine's.
    ahead: Vec<u64>,
    /// How that is done, if it can be done here.
    asleep: Option<Asleep>,
    /// When something was done to which host.
    pub disturbed: Vec<Vec<Disturbance>>,
    /// Where each member is found.
    pub endpoints: Vec<String>,
    /// How often etcd was set back.
    pub set_back: usize,
    is_kept: bool,
    /// Who goes on, and when.
    still: Vec<(Instant, Vec<i32>)>,
    /// Their machines.
    pub net: Net,
    folder: Folder,
}

impl Fleet {
    /// All of it runs.
    pub fn start(hosts: usize) -> Result<Fleet, String> {
        let asleep = Asleep::new().map_err(|why| eprintln!("CLOCK_BOOTTIME does not jump: {why}")).ok();
        let mut net = Net::new()?;
        let folder = Folder::new();
        clearing::mark(&folder);
        // What they do is told by their logs, if a lease has ended that should not have.
        let further = ["--quota-backend-bytes", QUOTA, "--log-level", "debug"];
        let members = start_members(&mut net, folder.path(), 3, &further);
        let endpoints: Vec<String> = members.iter().map(|member| member.url(&net)).collect();
        let cluster = format!(
            "name = \"{CLUSTER}\"\nendpoints = {endpoints:?}\nttl = \"{}s\"\nwrites_per_second = 20",
            TTL.as_secs()
        );
        let hosts: Vec<Host> = (0..hosts)
            .map(|n| {
                let mut host = Host::new(&mut net, folder.path(), &format!("web-{n}"), &cluster);
                set_clock(&host, 0);
                let clock = host.folder.join("clock").display().to_string();
                host.environment = [
                    ("LD_PRELOAD", FAKETIME),
                    ("FAKETIME_TIMESTAMP_FILE", &clock),
                    ("FAKETIME_NO_CACHE", "1"),
                    ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
                    ("FAKETIME_DISABLE_SHM", "1"),
                ]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
                host
            })
            .collect();
        let mut fleet = Fleet {
            disturbed: hosts.iter().map(|_| Vec::new()).collect(),
            leaders: hosts.iter().map(|_| None).collect(),
            claimants: hosts.iter().map(|_| None).collect(),
            ahead: vec![0; hosts.len()],
            asleep,
            hosts,
            members,
            endpoints,
            set_back: 0,
            is_kept: false,
            still: Vec::new(),
            net,
            folder,
        };
        for n in 0..fleet.hosts.len() {
            fleet.hosts[n].start_server(&fleet.net, WORKERS);
            fleet.open_the_way(n);
            fleet.hosts[n].start_agent(&fleet.net);
            fleet.stand(n);
            fleet.claim(n);
        }
        Ok(fleet)
    }

    /// Its name in the cluster.
    pub fn name(&self, host: Number) -> &str {
        self.net.name(self.hosts[host].machine)
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn machines(&self) -> (Vec<usize>, Vec<usize>) {
        (self.hosts.iter().map(|h| h.machine).collect(), self.members.iter().map(|m| m.machine).collect())
    }

    /// From now on, it may be lost.
    fn disturb(&mut self, host: Number) {
        let all = &mut self.disturbed[host];
        if all.last().is_none_or(|last| last.to.is_some()) {
            all.push(Disturbance { from: Instant::now(), to: None });
        }
    }

    /// Everything is well again.
    pub fn undisturbed(&mut self) {
        for all in &mut self.disturbed {
            if let Some(last) = all.last_mut().filter(|last| last.to.is_none()) {
                last.to = Some(Instant::now());
            }
        }
    }

    /// Lets those go on whose time has come; all of them, if so asked. When the next one goes on.
    pub fn go_on(&mut self, all: bool) -> Option<Instant> {
        let now = Instant::now();
        self.still.retain(|(until, pids)| {
            let is_over = all || *until <= now;
            if is_over {
                // Whoever waits for one that was stopped has stopped as well.
                let ways: Vec<i32> = pids
                    .iter()
                    .filter_map(|&pid| process::stat(pid))
                    .map(|stat| stat.parent)
                    .filter(|&parent| process::title(parent).starts_with("nsenter "))
                    .collect();
                pids.iter().chain(&ways).for_each(|&pid| process::send(pid, Signal::CONT));
            }
            !is_over
        });
        self.still.iter().map(|(until, _)| *until).min()
    }

    fn stop(&mut self, pids: Vec<i32>, milliseconds: u64) {
        pids.iter().for_each(|&pid| process::send(pid, Signal::STOP));
        self.still.push((Instant::now() + Duration::from_millis(milliseconds), pids));
    }

    /// All processes of its server, also those whose master is gone.
    pub fn servers(&self, host: Number) -> Vec<i32> {
        let all = self.net.processes(self.hosts[host].machine).into_iter();
        all.filter(|&pid| process::is_alive(pid) && process::title(pid).contains("examples/prefork"))
            .collect()
    }

    /// Ends what is left of its server.
    fn kill_server(&mut self, host: Number) {
        self.hosts[host].server = None;
        for pid in self.servers(host) {
            process::send(pid, Signal::KILL);
        }
        let gone = wait::poll(wait::PATIENCE, || self.servers(host).is_empty().then_some(()));
        assert!(gone.is_some(), "a killed server does not end");
    }

    fn start_server(&mut self, host: Number) {
        let is_on = self.net.is_on(self.hosts[host].machine);
        if !is_on || self.hosts[host].server.as_mut().is_some_and(Running::is_alive) {
            return;
        }
        self.kill_server(host);
        self.hosts[host].start_server(&self.net, WORKERS);
    }

    fn end_agent(&mut self, host: Number, signal: Signal) {
        let Some(mut agent) = self.hosts[host].agent.take() else { return };
        agent.signal(Signal::CONT);
        agent.signal(signal);
        let ended = wait::poll(wait::PATIENCE, || agent.ended());
        assert!(ended.is_some(), "an agent does not end by {signal:?}");
    }

    fn start_member(&mut self, member: Number) {
        let is_alive = self.members[member].pid().is_some();
        if !is_alive {
            self.net.power_on(self.members[member].machine);
            self.members[member].start(&self.net);
        }
    }

    /// Does it. Not all can be done at any time: then nothing happens. `seen`: the revision up to which history was read.
    pub fn suffer(&mut self, fault: &Fault, seen: i64) {
        for host in 0..self.hosts.len() {
            if fault.touches(host) {
                self.disturb(host);
            }
        }
        let (hosts, members) = self.machines();
        let but = |all: &[usize], one: usize| all.iter().copied().filter(|&m| m != one).collect::<Vec<_>>();
        match *fault {
            Fault::WorkerKilled(n) => {
                self.hosts[n].workers().first().into_iter().for_each(|&pid| process::send(pid, Signal::KILL));
            }
            Fault::WorkersKilled(n, number) => {
                for _ in 0..number {
                    self.hosts[n]
                        .workers()
                        .first()
                        .into_iter()
                        .for_each(|&pid| process::send(pid, Signal::KILL));
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            Fault::Reload(n) => {
                if let Some(server) = &self.hosts[n].server {
                    server.signal(Signal::HUP);
                }
            }
            Fault::MasterKilled(n) => self.hosts[n].server = None,
            Fault::ServerKilled(n) => self.kill_server(n),
            Fault::ServerStarted(n) => self.start_server(n),
            Fault::AgentKilled(n) => self.hosts[n].agent = None,
            Fault::AgentStopped(n, time) => {
                let pid = self.hosts[n].agent.as_ref().map(Running::pid);
                self.stop(pid.into_iter().filter(|&pid| process::is_alive(pid)).collect(), time);
            }
            Fault::AgentStarted(n) => self.start_agent(n),
            Fault::AgentReplaced(n) => {
                self.end_agent(n, Signal::USR2);
                self.start_agent(n);
            }
            Fault::AgentLeaves(n) => self.end_agent(n, Signal::TERM),
            Fault::HostSuspended(n, time) => {
                let all = self.net.processes(hosts[n]);
                self.stop(all, time);
            }
            Fault::HostOff(n) => {
                self.hosts[n].power_off(&mut self.net);
                (self.leaders[n], self.claimants[n], self.ahead[n]) = (None, None, 0);
            }
            Fault::ClaimantKilled(n) => {
                self.claimants[n] = None;
                self.claim(n);
            }
            Fault::ClaimantStopped(n, time) => {
                let pid = self.claimants[n].as_ref().map(Running::pid).filter(|&pid| process::is_alive(pid));
                self.stop(pid.into_iter().collect(), time);
            }
            Fault::HostAsleep(n, time, seconds) => {
                self.stop(self.net.processes(hosts[n]), time);
                if let Some(asleep) = self.asleep {
                    self.ahead[n] += seconds;
                    self.moved(n).into_iter().for_each(|pid| asleep.shift(pid, self.ahead[n]));
                }
            }
            Fault::LeaderKilled(n) => self.leaders[n] = None,
            Fault::HostOn(n) => self.host_on(n),
            Fault::ClockJumps(n, seconds) => set_clock(&self.hosts[n], seconds),
            Fault::MemberKilled(n) => self.members[n].kill(),
            Fault::MemberStopped(n, time) => {
                let pid = self.members[n].pid();
                self.stop(pid.into_iter().collect(), time);
            }
            Fault::MemberStarted(n) => self.start_member(n),
            Fault::MemberOff(n) => {
                self.net.power_off(members[n]);
                self.members[n].kill();
            }
            Fault::HostCutOff(n) => self.net.part(&hosts[n..=n], &members),
            Fault::HostDeaf(n) => members.iter().for_each(|&m| self.net.cut(m, hosts[n])),
            Fault::HostMute(n) => members.iter().for_each(|&m| self.net.cut(hosts[n], m)),
            Fault::HostCutFromOne(n, m) => self.net.part(&hosts[n..=n], &members[m..=m]),
            Fault::MemberCutOff(m) => {
                self.net.part(&members[m..=m], &but(&members, members[m]));
                self.net.part(&members[m..=m], &hosts);
            }
            Fault::MemberDeaf(m) => {
                but(&members, members[m]).iter().for_each(|&other| self.net.cut(other, members[m]));
            }
            Fault::MemberMute(m) => {
                but(&members, members[m]).iter().for_each(|&other| self.net.cut(members[m], other));
            }
            Fault::MemberAlone(m) => self.net.part(&members[m..=m], &but(&members, members[m])),
            Fault::AllMembersApart => members.iter().for_each(|&m| self.net.part(&[m], &but(&members, m))),
            Fault::Island(n, m) => {
                self.net.part(&[members[m]], &but(&members, members[m]));
                self.net.part(&[hosts[n]], &but(&members, members[m]));
            }
            Fault::SlowHost(n, kbit) => self.net.slow(hosts[n], kbit),
            Fault::SlowMember(m, kbit) => self.net.slow(members[m], kbit),
            Fault::Healed => self.net.heal(),
            // Without a quorum, it cannot be done.
            Fault::Full => drop(operator::with(&self.net, &self.endpoints, operator::fill)),
            Fault::Compacted => {
                drop(operator::with(&self.net, &self.endpoints, async |client| {
                    operator::compact(client, seen).await
                }));
            }
            Fault::Defragmented(m) => {
                drop(operator::with(&self.net, &self.endpoints[m..=m], operator::defragment));
            }
            Fault::Kept => self.keep(),
            Fault::SetBack => self.set_back(),
        }
    }

    fn host_on(&mut self, host: Number) {
        if !self.net.is_on(self.hosts[host].machine) {
            self.net.power_on(self.hosts[host].machine);
            self.start_server(host);
            self.start_agent(host);
            self.stand(host);
            self.claim(host);
        }
    }

    /// As a snapshot of all machines of etcd at one instant.
    fn keep(&mut self) {
        let pids: Vec<i32> = self.members.iter_mut().filter_map(Member::pid).collect();
        pids.iter().for_each(|&pid| process::send(pid, Signal::STOP));
        for member in &self.members {
            copy(&member.folder().join("data"), &member.folder().join("kept"));
        }
        pids.iter().for_each(|&pid| process::send(pid, Signal::CONT));
        self.is_kept = true;
    }

    fn set_back(&mut self) {
        if !self.is_kept {
            return;
        }
        self.members.iter_mut().for_each(Member::kill);
        for member in &self.members {
            copy(&member.folder().join("kept"), &member.folder().join("data"));
        }
        (0..self.members.len()).for_each(|member| self.start_member(member));
        self.set_back += 1;
    }

    /// Makes everything well but the servers: those stay as they are. History up to `seen` is not needed any more.
    pub fn make_well(&mut self, seen: i64) -> Result<(), String> {
        self.net.heal();
        self.go_on(true);
        (0..self.members.len()).for_each(|member| self.start_member(member));
        let mut last = String::new();
        let room = wait::poll(PATIENCE, || {
            operator::make_room(&self.net, &self.endpoints, seen).map_err(|why| last = why).ok()
        });
        room.ok_or_else(|| format!("etcd cannot be given room: {last}"))?;
        let answer = wait::poll(PATIENCE, || {
            self.members.iter().all(|member| member.answers(&self.net)).then_some(())
        });
        answer.ok_or("the members of etcd do not come to answer")?;
        for host in 0..self.hosts.len() {
            set_clock(&self.hosts[host], 0);
            self.host_on(host);
            self.start_agent(host);
            self.stand(host);
            self.claim(host);
        }
        Ok(())
    }

    /// Servers that are gone are started again.
    pub fn start_servers(&mut self) {
        (0..self.hosts.len()).for_each(|host| self.start_server(host));
    }
}

/// For its agent. The servers keep the right time.
fn set_clock(host: &Host, seconds: i64) {
    // No kernel has a clock before 1970.
    let seconds = seconds.max(-1_700_000_000);
    let new = host.folder.join("clock.new");
    // At once: whoever reads it meanwhile finds the old or the new one.
    let done =
        fs::write(&new, format!("{seconds:+}")).and_then(|()| fs::rename(&new, host.folder.join("clock")));
    done.unwrap_or_else(|e| panic!("{}: {e}", new.display()));
}

/// Of a folder, in place of what is there.
fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let done = Command::new("cp").args(["-a", "--sparse=always"]).args([from, to]).status().expect("cp");
    assert!(done.success(), "{} to {}", from.display(), to.display());
}
