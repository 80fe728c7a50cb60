//! What happens to the fleet, one act after the other.

use testkit::{Signal, process, wait};

use crate::expected::Expected;
use crate::fleet::{TTL, WORKERS};
use crate::screen::BOLD;
use crate::stage::{Failure, Stage};

fn started(host: &str) -> Expected<'_> {
    vec![(host, "generation_started", 1), (host, "worker_started", WORKERS)]
}

fn reloaded(host: &str) -> Expected<'_> {
    let mut all = started(host);
    all.extend([
        (host, "worker_draining", WORKERS),
        (host, "worker_exited", WORKERS),
        (host, "generation_ended", 1),
    ]);
    all
}

const ALL_SERVE: [&str; 8] =
    ["cluster", "wait", "--nodes", "3", "--serving", "--drained", "--timeout", "30s"];

/// Plays all acts.
pub fn play(stage: &mut Stage) -> Result<(), Failure> {
    stage.screen.line(
        BOLD,
        &format!("three members of etcd, three hosts with an nginx each; a host is lost after {TTL}"),
    );
    stage.screen.legend();

    let joined = vec![("web-1", "host_joined", 1), ("web-2", "host_joined", 1), ("web-3", "host_joined", 1)];
    stage.act("The agents start", "headcount agent", &joined, |stage| {
        (0..3).for_each(|host| stage.fleet.start_agent(host));
        Ok(())
    })?;
    let all: Expected<'_> = ["web-1", "web-2", "web-3"].into_iter().flat_map(started).collect();
    stage.act("The servers start", "nginx", &all, |stage| {
        (0..3).try_for_each(|host| stage.fleet.start_server(host))?;
        stage.ask(0, &ALL_SERVE, 0)
    })?;
    stage.ask(0, &["cluster", "status"], 0)?;

    let all: Expected<'_> = ["web-1", "web-2", "web-3"].into_iter().flat_map(reloaded).collect();
    let rollout = ["cluster", "reload", "--drained", "--first", "1", "--max-unavailable", "2"];
    stage.act(
        "The fleet is reloaded: one first, then two",
        &format!("headcount {}", rollout.join(" ")),
        &all,
        |stage| stage.ask(0, &rollout, 0),
    )?;

    let pid = |stage: &Stage| stage.fleet.hosts[1].workers()[0];
    let victim = pid(stage);
    let lost = vec![("web-2", "worker_died", 1), ("web-2", "worker_started", 1)];
    stage.act("A worker of web-2 is killed", "kill -KILL WORKER", &lost, |_| {
        process::send(victim, Signal::KILL);
        Ok(())
    })?;

    let lost = vec![("web-3", "master_lost", 1)];
    stage.act("The master of web-3 is killed", "kill -KILL MASTER", &lost, |stage| {
        if let Some(server) = &mut stage.fleet.hosts[2].server {
            server.kill();
        }
        Ok(())
    })?;
    stage.ask(1, &["cluster", "wait", "--serving", "--timeout", "0"], 1)?;
    let mut again = started("web-3");
    again.extend([("web-3", "worker_died", WORKERS), ("web-3", "generation_ended", 1)]);
    stage.act(
        "Its workers are killed as well, and it is started again",
        "kill -KILL WORKERS; nginx",
        &again,
        |stage| {
            for pid in stage.fleet.workers(2) {
                process::send(pid, Signal::KILL);
                wait::poll(wait::PATIENCE, || (!process::is_alive(pid)).then_some(()));
            }
            stage.fleet.start_server(2)?;
            Ok(())
        },
    )?;

    let member = stage.fleet.leader().ok_or(Failure::Other("no member of etcd leads".to_owned()))?;
    let machine = stage.fleet.members[member].machine;
    let how = format!("power off: {}, which leads", stage.fleet.net.name(machine));
    let lost = vec![("web-2", "worker_died", 1), ("web-2", "worker_started", 1)];
    stage.act("One of three etcd members is lost, and then a worker of web-2", &how, &lost, |stage| {
        stage.fleet.members[member].kill();
        stage.fleet.net.power_off(machine);
        process::send(stage.fleet.hosts[1].workers()[0], Signal::KILL);
        Ok(())
    })?;
    stage.fleet.net.power_on(machine);
    stage.fleet.members[member].start(&stage.fleet.net);

    stage.act("web-3 loses its power", "power off: web-3", &vec![("web-3", "host_lost", 1)], |stage| {
        let fleet = &mut stage.fleet;
        fleet.hosts[2].power_off(&mut fleet.net);
        Ok(())
    })?;
    stage.ask(0, &["cluster", "status"], 0)?;
    stage.fleet.net.power_on(stage.fleet.hosts[2].machine);
    stage.listen_again(2)?;
    let mut back = started("web-3");
    back.push(("web-3", "host_joined", 1));
    stage.act("It has power again", "headcount agent; nginx", &back, |stage| {
        stage.fleet.start_agent(2);
        stage.fleet.start_server(2)?;
        Ok(())
    })?;

    // What web-1 is told while it is cut off, it is told later; so it is compared when all is well again.
    let cut = vec![
        ("web-1", "host_lost", 1),
        ("web-1", "host_joined", 1),
        ("web-1", "worker_died", 1),
        ("web-1", "worker_started", 1),
    ];
    stage.act(
        "web-1 is cut off until it is lost, and loses a worker meanwhile",
        "no packet passes",
        &cut,
        |stage| {
            stage.fleet.cut_off(0);
            process::send(stage.fleet.hosts[0].workers()[0], Signal::KILL);
            let lost = ["cluster", "status", "--json"];
            stage.until(1, &lost, |document| document["hosts"][0]["state"] == "lost")?;
            stage.fleet.net.heal();
            Ok(())
        },
    )?;

    stage.fleet.configure(1, "no_such_directive;")?;
    let how = "headcount cluster reload, with a broken nginx.conf on web-2";
    stage.act(
        "A reload of the fleet is refused by web-2: web-3 is not touched",
        how,
        &reloaded("web-1"),
        |stage| stage.ask(0, &["cluster", "reload", "--drained"], 3),
    )?;
    stage.fleet.configure(1, "")?;
    stage.ask(0, &ALL_SERVE, 0)?;

    let left = vec![("web-1", "host_left", 1), ("web-2", "host_left", 1), ("web-3", "host_left", 1)];
    stage.act("The agents are stopped; the servers go on", "kill -TERM AGENT", &left, |stage| {
        let agents = stage.fleet.hosts.iter().filter_map(|host| host.agent.as_ref());
        agents.for_each(|agent| agent.signal(Signal::TERM));
        Ok(())
    })?;
    let lines = stage.lines();
    stage.screen.line(BOLD, "");
    stage.screen.line(
        BOLD,
        &format!("{lines} events above: each host was told each of them exactly once. Hosts, members and networks are gone."),
    );
    Ok(())
}
