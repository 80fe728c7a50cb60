//! Roles, locks and onces of the whole cluster: who has them, and who has them next.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use headcount_cluster_client::Event;
use serde_json::Value;
use testkit::{Folder, Signal, http, permit, process, wait};

use super::fleet::{FOR_LONG, Fleet, Host, TTL};
use super::process::Process;
use crate::program;
use crate::scripted::{LONG, Running};

/// A command that leads the role `cron`, by the agent of this host. It writes its token into one file for all, again and again.
struct Leader {
    running: Running,
    file: PathBuf,
}

impl Leader {
    fn start(host: &Host, file: &Path) -> Leader {
        let script = format!(
            "while [ -d {0} ]; do echo $HEADCOUNT_LEADER_TOKEN $HEADCOUNT_HOST >> {1}; sleep 0.01; done",
            host.folder.display(),
            file.display()
        );
        let command = host.command(&["cluster", "leader", "cron", "--backoff", "50ms"]);
        let mut command = command;
        command.args(["--", "sh", "-c", &script]);
        Leader { running: Running::start(&host.folder, command), file: file.to_owned() }
    }

    fn tokens(&self) -> Vec<u64> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        text.lines()
            .map(|line| line.split(' ').next().and_then(|token| token.parse().ok()).expect("a token"))
            .collect()
    }

    /// Waits until a tenure writes that is none of these.
    #[track_caller]
    fn other_than(&self, known: &[u64]) -> u64 {
        let found = wait::poll(LONG, || self.tokens().into_iter().find(|token| !known.contains(token)));
        found.unwrap_or_else(|| panic!("nobody leads: {}", self.running.err()))
    }
}

/// Whoever has written with a newer token, nobody has written with an older one after that.
#[track_caller]
fn nobody_wrote_late(leader: &Leader) {
    let tokens = leader.tokens();
    assert!(tokens.is_sorted(), "{tokens:?}");
}

fn roles(host: &Host) -> Value {
    host.cluster(&["leader", "--json"]).ended(0).json()["roles"].clone()
}

#[test]
fn one_leads_in_the_whole_cluster_and_the_next_at_once_when_it_dies() {
    let _permit = permit();
    let fleet = Fleet::new();
    let (mut a, mut b) = (fleet.host_with("a", FOR_LONG), fleet.host_with("b", FOR_LONG));
    a.join();
    b.join();
    a.cluster(&["leader"]).ended(0).says("cluster shop: 0 roles");
    let file = fleet.folder.at("written");
    let first = Leader::start(&a, &file);
    let old = first.other_than(&[]);
    let second = Leader::start(&b, &file);
    second.running.says("standing for cron of the cluster shop, on host b");
    let seen =
        wait::poll(LONG, || (roles(&b)[0]["waiting"] == 1).then(|| roles(&b)[0].clone())).expect("it waits");
    assert_eq!(
        (&seen["role"], &seen["host"], &seen["pid"], &seen["token"], &seen["process"]),
        (&"cron".into(), &"a".into(), &first.running.pid().into(), &old.into(), &"headcount".into())
    );
    b.cluster(&["leader"]).ended(0).says("cron a").says("1 host");
    assert_eq!(first.tokens().iter().filter(|token| **token != old).count(), 0, "only one leads");
    // Its command dies with it.
    first.running.signal(Signal::KILL);
    let new = second.other_than(&[old]);
    assert!(new > old);
    nobody_wrote_late(&second);
    second.running.signal(Signal::TERM);
    second.running.end().ended(0);
    wait::poll(LONG, || roles(&b).as_array()?.is_empty().then_some(())).expect("it has let go");
}

#[test]
fn an_agent_that_is_killed_leaves_its_roles_to_another_and_its_leader_stops_before() {
    let _permit = permit();
    let fleet = Fleet::new();
    let (mut a, mut b) = (fleet.host("a"), fleet.host("b"));
    a.join();
    b.join();
    let file = fleet.folder.at("written");
    let first = Leader::start(&a, &file);
    let old = first.other_than(&[]);
    let second = Leader::start(&b, &file);
    second.running.says("standing for cron");
    let began = Instant::now();
    a.kill_agent();
    first.running.says("ended the command");
    let new = second.other_than(&[old]);
    assert!(began.elapsed() > TTL / 2, "{:?}", began.elapsed());
    assert!(new > old);
    nobody_wrote_late(&second);
    // It stands again as soon as there is an agent.
    a.start("joined");
    second.running.signal(Signal::TERM);
    let newest = first.other_than(&[old, new]);
    assert!(newest > new);
    nobody_wrote_late(&first);
}

#[test]
fn an_agent_that_stands_still_has_lost_its_roles_before_another_has_them() {
    let _permit = permit();
    let fleet = Fleet::new();
    let (mut a, mut b) = (fleet.host("a"), fleet.host("b"));
    a.join();
    b.join();
    let file = fleet.folder.at("written");
    let first = Leader::start(&a, &file);
    let old = first.other_than(&[]);
    let second = Leader::start(&b, &file);
    second.running.says("standing for cron");
    a.agent().signal(Signal::STOP);
    let new = second.other_than(&[old]);
    a.agent().signal(Signal::CONT);
    second.running.signal(Signal::TERM);
    let newest = first.other_than(&[old, new]);
    assert!(old < new && new < newest);
    first.running.says("has not confirmed it in time");
    nobody_wrote_late(&first);
}

#[test]
fn a_leader_that_stands_still_loses_the_role_and_hears_so_when_it_goes_on() {
    let _permit = permit();
    let fleet = Fleet::new();
    let (mut a, mut b) = (fleet.host("a"), fleet.host("b"));
    a.join();
    b.join();
    let file = fleet.folder.at("written");
    let first = Leader::start(&a, &file);
    let old = first.other_than(&[]);
    let second = Leader::start(&b, &file);
    second.running.says("standing for cron");
    // With what it runs: a command that goes on alone is what the token is for.
    let commands = process::children(first.running.pid());
    commands.iter().chain([&first.running.pid()]).for_each(|pid| process::send(*pid, Signal::STOP));
    let new = second.other_than(&[old]);
    first.running.signal(Signal::CONT);
    first.running.says("ended the command");
    second.running.signal(Signal::TERM);
    let newest = first.other_than(&[old, new]);
    assert!(old < new && new < newest);
    nobody_wrote_late(&first);
}

#[test]
fn without_etcd_nobody_leads_for_longer_than_the_lease_lasts() {
    let _permit = permit();
    let mut fleet = Fleet::new();
    let mut a = fleet.host("a");
    a.join();
    let leader = Leader::start(&a, &fleet.folder.at("written"));
    let old = leader.other_than(&[]);
    let mut outsider = Process::of(&a);
    let began = Instant::now();
    fleet.etcd.kill();
    leader.running.says("ended the command");
    assert!(began.elapsed() < LONG / 2);
    let number = leader.tokens().len();
    // A lock is not to be had either, and nobody waits for ever to hear so.
    let id = outsider.client.lock("keys", Some(Duration::from_millis(300))).unwrap();
    let why = outsider.until(|event| match event {
        Event::NotLocked { id: of, why } if of == id => Some(why),
        _ => None,
    });
    assert!(why.contains("timed out after ") && why.contains(" ms: etcd does not answer"), "{why}");
    let page = http::get(&a.socket(), "/cluster").expect("it answers");
    assert!(page.status == 503 && page.body.contains("etcd does not answer"), "{page:?}");
    assert_eq!(leader.tokens().len(), number, "it writes no more");
    fleet.etcd.restart();
    let new = leader.other_than(&[old]);
    assert!(new > old);
    nobody_wrote_late(&leader);
}

/// The key of who has a role is not written as long as it has it, so what is watched from there may be compacted long since.
#[test]
fn a_role_that_is_held_for_longer_than_etcd_keeps_its_history_goes_on_over_another_connection() {
    let _permit = permit();
    let mut fleet = Fleet::new();
    let mut a = fleet.host_with("a", "ttl = \"20s\"");
    a.join();
    let leader = Leader::start(&a, &fleet.folder.at("written"));
    let token = leader.other_than(&[]);
    fleet.client(async |mut etcd| {
        etcd.put("x", "1", None).await?;
        let now = etcd.put("x", "2", None).await?.header().expect("a header").revision();
        etcd.compact(now, None).await
    });
    fleet.etcd.restart();
    // What it asks for now is had as well: so the connection lasts.
    let mut other = Process::of(&a);
    let id = other.client.lock("keys", Some(LONG)).unwrap();
    other.until(|event| matches!(event, Event::Locked { id: of, .. } if of == id).then_some(()));
    assert_eq!(leader.tokens().last(), Some(&token));
    let said = a.agent().err().matches("ended the watch").count();
    assert_eq!(said, 0, "{}", a.agent().err());
    assert_eq!(roles(&a)[0]["token"], token);
}

#[test]
fn a_lock_excludes_over_all_hosts_is_passed_on_and_who_waits_in_vain_hears_for_whom() {
    let _permit = permit();
    let fleet = Fleet::new();
    let (mut a, mut b) = (fleet.host_with("a", FOR_LONG), fleet.host_with("b", FOR_LONG));
    a.join();
    b.join();
    let (mut one, mut two) = (Process::of(&a), Process::of(&b));
    one.client.lock("keys", None).unwrap();
    let (id, first) = one.locks();
    assert_eq!(one.client.lock_token(id), Some(first));
    let vain = two.client.lock("keys", Some(Duration::from_millis(500))).unwrap();
    let why = two.until(|event| match event {
        Event::NotLocked { id, why } if id == vain => Some(why),
        _ => None,
    });
    assert!(why.contains("timed out after "), "{why}");
    assert!(why.contains("of host a"), "{why}");
    two.client.lock("keys", Some(LONG)).unwrap();
    one.client.unlock(id);
    one.client.process();
    let (_, second) = two.locks();
    assert!(second > first);
    // One who dies frees it.
    one.client.lock("keys", Some(LONG)).unwrap();
    one.client.process();
    drop(two);
    let (_, third) = one.locks();
    assert!(third > second);
}

#[test]
fn an_agent_that_ends_has_its_leaders_stop_first_and_nobody_waits_for_its_lease() {
    let _permit = permit();
    let fleet = Fleet::new();
    let (mut a, mut b) = (fleet.host_with("a", FOR_LONG), fleet.host_with("b", FOR_LONG));
    a.join();
    b.join();
    let file = fleet.folder.at("written");
    let first = Leader::start(&a, &file);
    let old = first.other_than(&[]);
    let second = Leader::start(&b, &file);
    second.running.says("standing for cron");
    a.end(Signal::TERM).ended(0).complains("has left");
    first.running.says("gives cron up: the agent ends");
    let new = second.other_than(&[old]);
    assert!(new > old);
    nobody_wrote_late(&second);
    // Upgraded, the next agent has it again.
    a.join();
    b.end(Signal::USR2).ended(0);
    let newest = first.other_than(&[old, new]);
    assert!(newest > new);
    nobody_wrote_late(&first);
}

#[test]
fn a_key_that_somebody_removes_is_a_role_that_is_lost() {
    let _permit = permit();
    let fleet = Fleet::new();
    let mut a = fleet.host_with("a", FOR_LONG);
    a.join();
    let mut one = Process::of(&a);
    one.client.stand("cron").unwrap();
    let elected = |event| match event {
        Event::Elected { token, .. } => Some(token),
        _ => None,
    };
    let old = one.until(elected);
    assert_eq!(one.client.token("cron"), Some(old));
    fleet.client(async |mut etcd| {
        let options = etcd_client::DeleteOptions::new().with_prefix();
        etcd.delete(super::fleet::key("roles/cron/"), Some(options)).await
    });
    let why = one.until(|event| match event {
        Event::Lost { why, .. } => Some(why),
        _ => None,
    });
    assert!(why.contains("removed"), "{why}");
    assert_eq!(one.client.token("cron"), None);
    assert!(one.until(elected) > old);
}

#[test]
fn without_an_agent_or_a_cluster_it_is_said_at_once() {
    let _permit = permit();
    let folder = Folder::new();
    let mut alone = Host::alone(folder.path());
    let leader = |alone: &Host| {
        Running::start(&alone.folder, {
            let mut command = alone.command(&["cluster", "leader", "cron"]);
            command.args(["--", "true"]);
            command
        })
    };
    let waits = leader(&alone);
    waits.says("No such file or directory (os error 2); trying again");
    waits.signal(Signal::TERM);
    waits.end().ended(0);
    alone.start("without a cluster");
    let waits = leader(&alone);
    waits.says("it refuses: This agent has no cluster");
    for page in ["/cluster", "/cluster/events"] {
        let answer = http::get(&alone.socket(), page).expect("it answers");
        assert!(answer.status == 503 && answer.body.contains("no cluster"), "{answer:?}");
    }
    let wrong = |arguments: &[&str]| program::run(&mut alone.command(arguments));
    wrong(&["cluster", "leader", "cron"]).ended(2);
    wrong(&["cluster", "leader", "a b", "--", "true"]).ended(2).complains("is no name");
    wrong(&["cluster", "leader"]).ended(4).complains("there is no [cluster]");
}
