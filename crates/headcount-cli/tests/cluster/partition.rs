//! A role of the cluster through partitions: three members of etcd and three hosts, each on a machine with a network of its own.

use std::path::{Path, PathBuf};
use std::time::Instant;

use testkit::net::{Host, Member, Net, Number, Running, start_members};
use testkit::{Folder, Signal, permit, process, wait};

use crate::scripted::LONG;

/// Long enough that nobody loses anything on a loaded machine.
const TTL: &str = "3s";

struct World {
    net: Net,
    members: Vec<Member>,
    hosts: Vec<Host>,
    /// What leads, or waits, on each.
    leaders: Vec<Running>,
    written: PathBuf,
    _folder: Folder,
}

impl World {
    /// `None`, with a word: it cannot be had here.
    fn new() -> Option<World> {
        let mut net =
            Net::new().inspect_err(|why| eprintln!("SKIPPED: there is no network of our own: {why}")).ok()?;
        let folder = Folder::new();
        let members = start_members(&mut net, folder.path(), 3, &[]);
        let endpoints: Vec<String> = members.iter().map(|member| member.url(&net)).collect();
        let cluster = format!("name = \"shop\"\nendpoints = {endpoints:?}\nttl = {TTL:?}");
        let mut hosts: Vec<Host> =
            ["a", "b", "c"].iter().map(|name| Host::new(&mut net, folder.path(), name, &cluster)).collect();
        let written = folder.at("written");
        let mut leaders = Vec::new();
        for host in &mut hosts {
            host.start_agent(&net);
            leaders.push(lead(&net, host, &written));
        }
        Some(World { net, members, hosts, leaders, written, _folder: folder })
    }

    /// The tokens, with their hosts, in the order in which they were written.
    fn tenures(&self) -> Vec<(u64, String)> {
        let text = std::fs::read_to_string(&self.written).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let line = |line: &str| {
            let (token, host) = line.split_once(' ').expect("token and host");
            (token.parse().expect("a token"), host.to_owned())
        };
        whole.lines().map(line).collect()
    }

    /// Waits until somebody writes with a token that is newer than this.
    #[track_caller]
    fn newer_than(&self, token: u64) -> (u64, usize) {
        let found = wait::poll(LONG, || self.tenures().into_iter().find(|(newer, _)| *newer > token));
        let said = || {
            let of = |host: &Host| {
                let leader = std::fs::read_to_string(host.folder.join("leader.log")).unwrap_or_default();
                format!("{}\n{leader}", host.said())
            };
            self.hosts.iter().map(of).collect::<Vec<_>>().join("----\n")
        };
        numbered(found.unwrap_or_else(|| panic!("nobody leads after {token}\n{}", said())))
    }

    /// Who has written last.
    fn current(&self) -> (u64, usize) {
        numbered(self.tenures().pop().expect("somebody has led"))
    }

    fn machines(&self) -> Vec<Number> {
        self.members.iter().map(|member| member.machine).collect()
    }

    #[track_caller]
    fn leading_member(&self) -> usize {
        let leads = || self.members.iter().position(|member| member.is_leader(&self.net));
        wait::poll(LONG, leads).expect("one of them leads")
    }

    /// Two never wrote in turns: nobody wrote when another already had.
    #[track_caller]
    fn nobody_wrote_late(&self) {
        let tenures = self.tenures();
        let mut last = 0;
        for (number, (token, host)) in tenures.iter().enumerate() {
            assert!(*token >= last, "line {number}: {host} wrote with {token} after {last}");
            last = *token;
        }
    }
}

fn numbered((token, host): (u64, String)) -> (u64, usize) {
    (token, ["a", "b", "c"].iter().position(|name| *name == host).expect("one of ours"))
}

fn lead(net: &Net, host: &Host, written: &Path) -> Running {
    let script = format!(
        "while [ -d {} ]; do echo $HEADCOUNT_LEADER_TOKEN $HEADCOUNT_HOST >> {}; sleep 0.02; done",
        host.folder.display(),
        written.display()
    );
    let log = std::fs::File::create(host.folder.join("leader.log")).expect("our folder");
    let mut command = host.headcount(net, &["cluster", "leader", "cron", "--backoff", "50ms", "--socket"]);
    command.arg(host.folder.join("agent.sock")).args(["--", "sh", "-c", &script]);
    command.stdout(log.try_clone().expect("a descriptor")).stderr(log);
    Running::start(&mut command)
}

#[test]
fn the_side_without_a_quorum_gives_up_before_the_other_side_leads() {
    let _permit = permit();
    let Some(mut world) = World::new() else { return };
    world.newer_than(0);
    for round in ["both ways", "one way", "the other way", "with a member", "its agent stands still", "power"]
    {
        let (token, host) = world.current();
        let began = Instant::now();
        let machine = world.hosts[host].machine;
        let members = world.machines();
        match round {
            "both ways" => world.net.part(&[machine], &members),
            "one way" => members.iter().for_each(|member| world.net.cut(machine, *member)),
            "the other way" => members.iter().for_each(|member| world.net.cut(*member, machine)),
            // The leader of etcd, and this host, on one side.
            "with a member" => {
                let leading = world.leading_member();
                let others: Vec<Number> = (0..3).filter(|n| *n != leading).map(|n| members[n]).collect();
                let mut with: Vec<Number> = world.hosts.iter().map(|host| host.machine).collect();
                with.retain(|other| *other != machine);
                world.net.part(&[machine, members[leading]], &others);
                world.net.part(&[members[leading]], &with);
            }
            "its agent stands still" => {
                world.hosts[host].agent.as_ref().expect("it runs").signal(Signal::STOP);
            }
            _ => world.hosts[host].power_off(&mut world.net),
        }
        let next = world.newer_than(token);
        let took = began.elapsed();
        assert!(next.1 != host, "{round}: {} leads again: {next:?}", world.net.name(machine));
        world.nobody_wrote_late();
        world.net.heal();
        match round {
            "its agent stands still" => {
                world.hosts[host].agent.as_ref().expect("it runs").signal(Signal::CONT)
            }
            "power" => {
                world.net.power_on(machine);
                world.hosts[host].start_agent(&world.net);
                world.leaders[host] = lead(&world.net, &world.hosts[host], &world.written);
            }
            _ => {}
        }
        eprintln!("{round}: from {host} to {}, after {took:?}", next.1);
        // What had been cut off stands again.
        let stands = wait::poll(LONG, || {
            let mut command = world.net.beside(testkit::artifacts::program());
            command.args(["cluster", "leader", "--json", "--config"]).arg(world.hosts[0].config());
            let out = command.output().ok()?.stdout;
            let roles: serde_json::Value = serde_json::from_slice(&out).ok()?;
            (roles["roles"][0]["waiting"] == 2).then_some(())
        });
        stands.unwrap_or_else(|| panic!("{round}: not all stand again"));
    }
    world.nobody_wrote_late();
}

#[test]
fn a_member_that_stands_still_and_goes_on_misleads_nobody() {
    let _permit = permit();
    let Some(mut world) = World::new() else { return };
    let (first, _) = world.newer_than(0);
    let mut last = first;
    for _ in 0..2 {
        let leading = world.leading_member();
        let member = world.members[leading].pid().expect("it runs");
        process::send(member, Signal::STOP);
        // Another one leads etcd, and somebody the role: the same host or another.
        let leads = |world: &World| {
            world
                .members
                .iter()
                .enumerate()
                .position(|(n, member)| n != leading && member.is_leader(&world.net))
        };
        wait::poll(LONG, || leads(&world)).expect("another one leads");
        let number = world.tenures().len();
        wait::poll(LONG, || (world.tenures().len() > number + 50).then_some(())).expect("somebody goes on");
        world.nobody_wrote_late();
        process::send(member, Signal::CONT);
        wait::poll(LONG, || world.members[leading].answers(&world.net).then_some(())).expect("it is back");
        let number = world.tenures().len();
        wait::poll(LONG, || (world.tenures().len() > number + 50).then_some(())).expect("somebody goes on");
        world.nobody_wrote_late();
        let newest = world.tenures().last().expect("a line").0;
        assert!(newest >= last);
        last = newest;
    }
}
