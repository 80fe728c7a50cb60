//! What happens to etcd, and what it is spared.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use etcd_client::{AlarmAction, AlarmType};
use testkit::{Signal, permit, process};

use super::fleet::{Fleet, Server, TTL, host, key};
use crate::scripted::Running;

#[test]
fn while_etcd_is_away_the_host_goes_on_and_then_tells_what_is_true() {
    let _permit = permit();
    let mut fleet = Fleet::new();
    let mut a = fleet.host("a");
    let server = Server::start(&a, 2);
    a.join();
    a.sees_node("a", "serving");
    let follower = Running::start(&a.folder, a.command(&["cluster", "events", "--follow", "--json"]));
    follower.says("host_joined");
    fleet.etcd.kill();
    a.agent().says("etcd does not answer");
    follower.says("etcd does not answer");
    // Its nodes, and what it answers on the host, are not touched.
    let victim = server.lose_one();
    let page = testkit::http::get(&a.socket(), "/metrics").expect("it answers");
    assert!(page.body.contains("headcount_agent_cluster_connected 0"), "{}", page.body);
    a.cluster(&["status"]).ended(4).complains("etcd does not answer").complains("refused");
    fleet.etcd.restart();
    a.agent().says("is there again");
    follower.says(&format!("\"pid\":{victim}"));
    follower.says("etcd answers again");
    a.sees_node("a", "serving");
    assert_eq!(a.events_of("worker_died").len(), 1);
    // Said once each.
    let said = a.agent().err();
    for what in ["etcd does not answer", "is there again"] {
        assert_eq!(said.matches(what).count(), 1, "{what}:\n{said}");
    }
    assert_eq!(follower.err().matches("etcd does not answer").count(), 1);
    assert_eq!(follower.out().matches("worker_died").count(), 1);
    // The lease has outlived it, so nobody was told anything.
    assert_eq!((a.events_of("host_joined").len(), a.events_of("host_lost").len()), (1, 0));
}

/// A read that takes so long is given up; a write is waited for, and the lease is kept meanwhile.
#[test]
fn a_write_that_takes_long_is_no_reason_to_join_again() {
    let _permit = permit();
    let fleet = Fleet::new();
    let mut a = fleet.host_with("a", "ttl = \"8s\"");
    let server = Server::start(&a, 2);
    a.join();
    a.sees_node("a", "serving");
    process::send(fleet.etcd.pid(), Signal::STOP);
    let (victim, began) = (server.lose_one(), Instant::now());
    // Longer than half of the ttl; with a third of it, which may be over since the last keep-alive, shorter than all of it.
    std::thread::sleep(Duration::from_millis(4500).saturating_sub(began.elapsed()));
    process::send(fleet.etcd.pid(), Signal::CONT);
    a.sees("the death", |_| a.events_of("worker_died").iter().any(|e| e["pid"] == victim).then_some(()));
    let said = a.agent().err();
    for what in ["does not answer", "too slowly", "is there again"] {
        assert!(!said.contains(what), "{what}:\n{said}");
    }
    assert_eq!((a.events_of("host_joined").len(), a.events_of("host_lost").len()), (1, 0));
}

/// An etcd that is behind with its writes by more than a second extends no lease, and ends the stream that asks for it.
#[test]
fn an_etcd_that_is_behind_with_its_writes_costs_no_lease() {
    let _permit = permit();
    let fleet = Fleet::new();
    // Long enough for two that are refused, where more runs beside this.
    let ttl = Duration::from_secs(24);
    let mut a = fleet.host_with("a", "ttl = \"24s\"");
    let server = Server::start(&a, 2);
    a.join();
    a.sees_node("a", "serving");
    // So long that each host asks at least once.
    let began = Instant::now();
    fleet.client(async |etcd| behind_for(etcd, ttl / 3 + Duration::from_secs(1)).await);
    let was_behind = began.elapsed();
    let victim = server.lose_one();
    a.sees("the death", |_| a.events_of("worker_died").iter().any(|e| e["pid"] == victim).then_some(()));
    if was_behind > ttl * 2 / 3 {
        eprintln!(
            "skipped: etcd was behind for {was_behind:?}, in which every attempt may have been refused"
        );
        return;
    }
    let said = a.agent().err();
    assert!(!said.contains("waiting for the applied index"), "{said}");
    assert_eq!((a.events_of("host_joined").len(), a.events_of("host_lost").len()), (1, 0), "{said}");
}

/// Gives etcd so much to do that it has refused to extend a lease all this time.
async fn behind_for(mut etcd: etcd_client::Client, time: Duration) -> Result<(), etcd_client::Error> {
    use etcd_client::{GetOptions, Txn, TxnOp};
    let counted: Vec<_> = (0..20).map(|part| (0..100).map(move |n| format!("much/{part}/{n}"))).collect();
    for part in counted {
        etcd.txn(Txn::new().and_then(part.map(|key| TxnOp::put(key, "", None)).collect::<Vec<_>>())).await?;
    }
    // A write whose conditions and reads cost it a lot, and this process little.
    let count = TxnOp::get("much/", Some(GetOptions::new().with_prefix().with_count_only()));
    let all: Vec<_> = (0..100).map(|_| count.clone()).chain([TxnOp::put("written", "", None)]).collect();
    let lease = etcd.lease_grant(60, None).await?.id();
    let (mut writers, began) = (tokio::task::JoinSet::new(), Instant::now());
    let mut refused_since: Option<Instant> = None;
    while refused_since.is_none_or(|since| since.elapsed() < time) {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "etcd is not behind with {} writers",
            writers.len()
        );
        let answer = etcd.lease_keep_alive(lease).await;
        refused_since = match answer {
            Err(error) if error.to_string().contains("waiting for the applied index") => {
                refused_since.or_else(|| Some(Instant::now()))
            }
            Err(error) => return Err(error),
            Ok(_) => {
                for _ in 0..20 {
                    let (mut etcd, all) = (etcd.clone(), all.clone());
                    writers.spawn(async move {
                        while etcd.txn(Txn::new().and_then(all.clone())).await.is_ok() {}
                    });
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                None
            }
        };
    }
    Ok(())
}

/// Who has very many hosts is told what to set, by the one agent that sees all of them.
#[test]
fn a_ttl_that_is_too_short_for_so_many_hosts_is_said_once() {
    let _permit = permit();
    let fleet = Fleet::new();
    let mut a = fleet.host("a");
    a.join();
    let add = |hosts: std::ops::Range<u32>| {
        fleet.client(async |mut etcd| {
            for n in hosts {
                etcd.put(key(&format!("hosts/other-{n}")), "{}", None).await?;
            }
            Ok(())
        });
    };
    // With this one, they are not too many at 2 s: one more is.
    add(0..1_332);
    add(1_332..1_333);
    a.agent().says("1334 hosts with a ttl of 2s ask etcd for 2001 keep-alives a second");
    a.agent().says("set cluster.ttl to \"5s\"");
    add(1_333..1_400);
    // It has seen these when it has seen that this one is gone.
    fleet.client(async |mut etcd| {
        etcd.put(key("known/last"), r#"{"v":1,"presence":"here","since":0,"lease":1}"#, None).await?;
        etcd.put(key("hosts/last"), "{}", None).await?;
        etcd.delete(key("hosts/last"), None).await
    });
    a.sees("its loss", |_| (a.events_of("host_lost").len() == 1).then_some(()));
    assert_eq!(a.agent().err().matches("cluster.ttl").count(), 1, "{}", a.agent().err());
}

#[test]
fn a_lease_that_has_run_out_is_said_and_all_is_told_again() {
    let _permit = permit();
    let fleet = Fleet::new();
    let mut a = fleet.host("a");
    let _server = Server::start(&a, 1);
    a.join();
    a.sees_node("a", "serving");
    let lease = fleet.client(async |mut etcd| Ok(etcd.get(key("hosts/a"), None).await?.kvs()[0].lease()));
    fleet.client(async |mut etcd| etcd.lease_revoke(lease).await);
    a.agent().says("the lease has run out");
    a.agent().says("is there again");
    a.sees_node("a", "serving");
    assert_eq!(a.events_of("host_joined").len(), 2);
}

#[test]
fn what_was_compacted_while_nobody_followed_is_said_and_kept_events_still_come() {
    let _permit = permit();
    let mut fleet = Fleet::new();
    let mut a = fleet.host("a");
    let server = Server::start(&a, 2);
    a.join();
    a.sees_node("a", "serving");
    let follower = Running::start(&a.folder, a.command(&["cluster", "events", "--follow", "--json"]));
    follower.says("host_joined");
    follower.signal(Signal::STOP);
    fleet.etcd.restart();
    a.agent().says("is there again");
    let victim = server.lose_one();
    a.sees("the death", |_| (a.events_of("worker_died").len() == 1).then_some(()));
    fleet.client(async |mut etcd| {
        let now = etcd.get("x", None).await?.header().expect("a header").revision();
        etcd.compact(now, None).await
    });
    follower.signal(Signal::CONT);
    follower.says("etcd has compacted what happened between the revisions");
    follower.says(&format!("\"pid\":{victim}"));
    assert_eq!(follower.out().matches("worker_died").count(), 1);
    // It goes on from there.
    let next = server.lose_one();
    follower.says(&format!("\"pid\":{next}"));
}

/// However much happens on it, a host writes within its bound; and what it does not tell it counts.
#[test]
fn a_crash_loop_does_not_drown_etcd() {
    let _permit = permit();
    let fleet = Fleet::new();
    let mut a = fleet.host_with("a", "writes_per_second = 2");
    let server = Server::start(&a, 4);
    a.join();
    a.sees_node("a", "serving");
    let revision = || {
        fleet.client(async |mut etcd| Ok(etcd.get("x", None).await?.header().expect("a header").revision()))
    };
    let (before, began) = (revision(), Instant::now());
    let mut deaths = 0;
    while began.elapsed() < Duration::from_secs(4) {
        for pid in server.workers() {
            process::send(pid, Signal::KILL);
            deaths += 1;
        }
        a.sees("whatever it tells", |_| Some(()));
    }
    let (writes, seconds) = (revision() - before, began.elapsed().as_secs_f64());
    // The first ten are free.
    let bound = 10.0 + 2.0 * seconds + 1.0;
    assert!(writes as f64 <= bound, "{writes} writes in {seconds} s");
    assert!(deaths > 20 && writes > 2, "{deaths} deaths, {writes} writes");
    a.sees_node("a", "crash_loop");
    a.cluster(&["wait", "--serving", "--timeout", "0"]).ended(1).complains("loop in crashes");
    // All is told in the end, or counted.
    let told = a.sees("the end of it", |status| {
        let node = &host(status, "a")?["nodes"][0];
        let (head, missed) = (node["head"].as_u64()?, node["missed"].as_u64()?);
        let newest = headcount::Observer::open(&a.folder.join("web.registry")).ok()?.newest_seq().ok()?;
        (head == newest).then_some((head, missed))
    });
    let events = a.events().iter().filter(|event| !event["seq"].is_null()).count() as u64;
    let first = a.events().iter().find_map(|event| event["seq"].as_u64()).expect("an event");
    assert_eq!(first + events + told.1, told.0 + 1, "{events} events, {} missed", told.1);
}

/// With three members, one may go, be it the one that leads; and without two of them nobody is told anything that is not so.
#[test]
fn a_member_less_is_no_loss_and_two_less_are_an_etcd_that_is_away() {
    let _permit = permit();
    let mut fleet = Fleet::of_three();
    let (mut a, mut b) = (fleet.host("a"), fleet.host("b"));
    let server = Server::start(&a, 2);
    a.join();
    b.join();
    b.sees_node("a", "serving");
    let follower = Running::start(&b.folder, b.command(&["cluster", "events", "--follow", "--json"]));
    follower.says("host_joined");
    let mut victims = Vec::new();
    for _ in 0..2 {
        fleet.leader().kill();
        victims.push(server.lose_one());
        if victims.len() == 1 {
            follower.says(&format!("\"pid\":{}", victims[0]));
        }
    }
    // Two of three are gone.
    a.agent().says("etcd does not answer");
    a.cluster(&["status"]).ended(4).complains("etcd does not answer");
    for member in [&mut fleet.etcd].into_iter().chain(&mut fleet.others) {
        if member.pid() == 0 {
            member.respawn();
        }
    }
    b.sees("both deaths", |_| (b.events_of("worker_died").len() == 2).then_some(()));
    b.sees_node("a", "serving");
    let died: Vec<_> = b.events_of("worker_died").iter().map(|e| e["pid"].as_i64()).collect();
    assert_eq!(died, victims.iter().map(|&pid| Some(i64::from(pid))).collect::<Vec<_>>());
    assert_eq!((b.events_of("host_lost").len(), b.events_of("host_joined").len()), (0, 2));
}

#[test]
fn a_full_etcd_makes_nobody_lost_and_is_told_all_when_it_has_room() {
    let _permit = permit();
    let fleet = Fleet::with(&["--quota-backend-bytes", "4194304"]);
    let mut a = fleet.host("a");
    let server = Server::start(&a, 2);
    a.join();
    a.sees_node("a", "serving");
    let filled = fleet.client(async |mut etcd| {
        for n in 0..100 {
            if etcd.put("filler", vec![n; 1 << 20], None).await.is_err() {
                return Ok(n);
            }
        }
        Ok(100)
    });
    assert!(filled < 100, "it has a quota");
    let victim = server.lose_one();
    a.agent().says("etcd takes no writes");
    // For longer than its lease, were that not kept.
    let began = Instant::now();
    while began.elapsed() < TTL * 2 {
        let status = a.status();
        assert_eq!(host(&status, "a").expect("it is known")["state"], "here", "{status:#}");
    }
    fleet.client(async |mut etcd| {
        etcd.delete("filler", None).await?;
        let now = etcd.get("x", None).await?.header().expect("a header").revision();
        etcd.compact(now, Some(etcd_client::CompactionOptions::new().with_physical())).await?;
        etcd.defragment().await?;
        let alarm = etcd.alarm(AlarmAction::Get, AlarmType::None, None).await?.alarms()[0].member_id();
        let mut one = etcd_client::AlarmOptions::new();
        one.with_member(alarm);
        etcd.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(one)).await
    });
    a.agent().says("etcd takes writes again");
    a.sees("the death", |_| a.events_of("worker_died").iter().any(|e| e["pid"] == victim).then_some(()));
    assert_eq!(a.agent().err().matches("etcd takes no writes").count(), 1);
    assert_eq!(a.events_of("host_joined").len(), 1);
}

#[test]
fn an_agent_that_stood_still_is_lost_and_joins_again() {
    let _permit = permit();
    let fleet = Fleet::new();
    let (mut a, mut b) = (fleet.host("a"), fleet.host("b"));
    let server = Server::start(&a, 2);
    a.join();
    b.join();
    b.sees_node("a", "serving");
    a.agent().signal(Signal::STOP);
    let victim = server.lose_one();
    b.sees_host("a", "lost");
    a.agent().signal(Signal::CONT);
    a.agent().says("the lease has run out");
    b.sees_host("a", "here");
    b.sees("the death", |_| b.events_of("worker_died").iter().any(|e| e["pid"] == victim).then_some(()));
    let kinds: Vec<_> = b.events().iter().filter(|e| e["host"] == "a").map(|e| e["kind"].clone()).collect();
    assert_eq!(kinds, ["host_joined", "host_lost", "host_joined", "worker_died", "worker_started"]);
}

/// Of a folder, in place of what is there.
fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let done = Command::new("cp").arg("-a").args([from, to]).status().expect("cp");
    assert!(done.success(), "{} to {}", from.display(), to.display());
}

/// Of what etcd does not know any more, a revision tells nothing once the older state has gone on for as long.
#[test]
fn an_etcd_that_was_set_back_and_has_gone_on_is_noticed() {
    let _permit = permit();
    let mut fleet = Fleet::new();
    let mut a = fleet.host("a");
    let server = Server::start(&a, 2);
    a.join();
    a.sees_node("a", "serving");
    let follower = Running::start(&a.folder, a.command(&["cluster", "events", "--follow", "--json"]));
    follower.says("host_joined");
    copy(&fleet.etcd.at("data"), &fleet.etcd.at("older"));
    let first = server.lose_one();
    follower.says(&format!("\"pid\":{first}"));
    a.sees_node("a", "serving");
    follower.signal(Signal::STOP);
    fleet.etcd.kill();
    copy(&fleet.etcd.at("older"), &fleet.etcd.at("data"));
    fleet.etcd.restart();
    // It is told again, and more happens.
    a.sees("the death", |_| (a.events_of("worker_died").len() == 1).then_some(()));
    fleet.client(async |mut etcd| {
        for _ in 0..200 {
            etcd.put("x", "y", None).await?;
        }
        Ok(())
    });
    follower.signal(Signal::CONT);
    follower.says("etcd was set back to an older state");
    let next = server.lose_one();
    follower.says(&format!("\"pid\":{next}"));
    assert_eq!(follower.err().matches("set back").count(), 1);
}

/// None of its leases are there any more.
#[test]
fn an_etcd_that_was_set_back_to_before_a_host_was_there_is_told_all_the_same() {
    let _permit = permit();
    let mut fleet = Fleet::new();
    copy(&fleet.etcd.at("data"), &fleet.etcd.at("older"));
    let mut a = fleet.host("a");
    let server = Server::start(&a, 2);
    a.join();
    let first = server.lose_one();
    a.sees("a death", |_| (a.events_of("worker_died").len() == 1).then_some(()));
    fleet.etcd.kill();
    copy(&fleet.etcd.at("older"), &fleet.etcd.at("data"));
    fleet.etcd.restart();
    a.agent().says("is there again");
    let next = server.lose_one();
    let both = [first, next].map(|pid| Some(i64::from(pid)));
    a.sees("the other death", |_| {
        let pids: Vec<_> = a.events_of("worker_died").iter().map(|e| e["pid"].as_i64()).collect();
        (pids == both || pids == both[1..]).then_some(())
    });
}

#[test]
fn an_etcd_that_was_set_back_is_said_and_told_again() {
    let _permit = permit();
    let mut fleet = Fleet::new();
    let mut a = fleet.host("a");
    let server = Server::start(&a, 2);
    a.join();
    a.sees_node("a", "serving");
    let follower = Running::start(&a.folder, a.command(&["cluster", "events", "--follow", "--json"]));
    follower.says("host_joined");
    // While nobody writes: an agent writes only when something happens.
    copy(&fleet.etcd.at("data"), &fleet.etcd.at("older"));
    let lost = server.lose_one();
    follower.says(&format!("\"pid\":{lost}"));
    // So that it is behind by more than the host has to tell again.
    fleet.client(async |mut etcd| {
        for _ in 0..200 {
            etcd.put("x", "y", None).await?;
        }
        Ok(())
    });
    // Its progress is told with what the follower watches.
    let seen = server.lose_one();
    follower.says(&format!("\"pid\":{seen}"));
    fleet.etcd.kill();
    copy(&fleet.etcd.at("older"), &fleet.etcd.at("data"));
    fleet.etcd.restart();
    follower.says("etcd was set back to an older state");
    a.agent().says("is there again");
    // What it does not know any more is told again, once.
    a.sees("both deaths", |_| (a.events_of("worker_died").len() == 2).then_some(()));
    let next = server.lose_one();
    follower.says(&format!("\"pid\":{next}"));
}
