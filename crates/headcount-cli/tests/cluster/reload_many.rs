//! `headcount cluster reload` over a real etcd, with hosts and agents that are only acted: thousands of them, and a command that is
//! killed before and after each single thing that it sends.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, EventType, GetOptions, PutOptions, Txn, TxnOp, WatchOptions,
};
use serde_json::{Value, json};
use testkit::{Signal, permit, wait};
use tokio::sync::{oneshot, watch};

use super::fleet::{Fleet, Host, key};
use crate::program::Run;
use crate::scripted::{LONG, Running};
use crate::traced::Traced;

/// What the agents have done, and what they are to do.
#[derive(Default)]
struct Acts {
    /// How often each host has reloaded.
    reloads: BTreeMap<String, u64>,
    /// Whose configuration is refused.
    refused: BTreeSet<String>,
}

/// The agents of all hosts: each takes what it is asked for, reloads, and says so.
struct Agents {
    acts: Arc<Mutex<Acts>>,
    end: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Agents {
    fn start(fleet: &Fleet) -> Agents {
        let (acts, url) = (Arc::<Mutex<Acts>>::default(), fleet.etcd.url());
        let (end, mut ended) = watch::channel(false);
        let (ready, is_ready) = oneshot::channel();
        let shared = Arc::clone(&acts);
        let thread = std::thread::spawn(move || {
            super::fleet::block_on(async {
                let mut etcd = Client::connect([url], None).await?;
                let options = WatchOptions::new().with_prefix();
                let mut changes = etcd.watch(key("tasks/"), Some(options)).await?;
                ready.send(()).expect("it waits");
                loop {
                    let answer = tokio::select! {
                        answer = changes.message() => answer?.expect("etcd is there"),
                        _ = ended.wait_for(|ended| *ended) => return Ok(()),
                    };
                    for event in answer.events().iter().filter(|event| event.event_type() == EventType::Put) {
                        let kv = event.kv().expect("it has one");
                        let at = kv.key_str().expect("ours").to_owned();
                        let [host, _, id] = at[key("tasks/").len()..].split('/').collect::<Vec<_>>()[..]
                        else {
                            continue;
                        };
                        let task: Value = serde_json::from_slice(kv.value()).expect("JSON");
                        if host.starts_with('@') || task["state"] != "asked" {
                            continue;
                        }
                        let (host, holder) = (host.to_owned(), key(&format!("tasks/@holder/{id}")));
                        let revision = kv.mod_revision();
                        tokio::spawn(act(
                            etcd.clone(),
                            Arc::clone(&shared),
                            host,
                            at,
                            holder,
                            task,
                            revision,
                        ));
                    }
                }
            });
        });
        is_ready.blocking_recv().expect("it begins");
        Agents { acts, end, thread: Some(thread) }
    }

    fn reloads(&self) -> BTreeMap<String, u64> {
        self.acts.lock().expect("it holds").reloads.clone()
    }

    fn refuse(&self, host: &str, is_refused: bool) {
        let refused = &mut self.acts.lock().expect("it holds").refused;
        if is_refused {
            refused.insert(host.to_owned())
        } else {
            refused.remove(host)
        };
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        self.end.send_replace(true);
        let ended = self.thread.take().expect("it runs").join();
        assert!(ended.is_ok() || std::thread::panicking(), "the agents failed");
    }
}

async fn act(
    mut etcd: Client,
    acts: Arc<Mutex<Acts>>,
    host: String,
    at: String,
    holder: String,
    mut task: Value,
    revision: i64,
) {
    (task["state"], task["agent"], task["before"]) = (json!("taken"), json!("acted"), json!(1));
    let put =
        |task: &Value| TxnOp::put(at.clone(), task.to_string(), Some(PutOptions::new().with_ignore_lease()));
    let is_asked = [
        Compare::mod_revision(at.clone(), CompareOp::Equal, revision),
        Compare::create_revision(holder, CompareOp::Greater, 0),
    ];
    let taken = etcd.txn(Txn::new().when(is_asked).and_then([put(&task)])).await.expect("etcd is there");
    if !taken.succeeded() {
        return;
    }
    let is_refused = {
        let mut acts = acts.lock().expect("it holds");
        *acts.reloads.entry(host.clone()).or_default() += 1;
        acts.refused.contains(&host)
    };
    let outcome = if is_refused { "refused" } else { "serving" };
    (task["state"], task["report"]) =
        (json!("done"), json!({ "outcome": outcome, "text": "as it was told" }));
    let is_there = Compare::create_revision(at.clone(), CompareOp::Greater, 0);
    etcd.txn(Txn::new().when([is_there]).and_then([put(&task)])).await.expect("etcd is there");
}

/// Hosts that serve, without anything behind them.
fn pretend(fleet: &Fleet, hosts: &[String], node: &str) {
    let here = json!({ "v": 1, "agent": "0.1.0", "place": "x", "machine": "m", "pid": 7, "birth": 9, "since": 100.0 });
    let serves = json!({ "v": 1, "registry": "a", "head": 3, "time": 100.0, "state": "serving", "generation": 1, "reload": true });
    fleet.client(async |mut etcd| {
        for some in hosts.chunks(50) {
            let puts = some.iter().flat_map(|host| {
                let host_key = key(&format!("hosts/{host}"));
                let node_key = key(&format!("nodes/{host}/{node}"));
                [TxnOp::put(host_key, here.to_string(), None), TxnOp::put(node_key, serves.to_string(), None)]
            });
            etcd.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await?;
        }
        Ok(())
    });
}

/// As if the lease of whoever went on with it had run out.
fn let_go(fleet: &Fleet) {
    fleet.client(async |mut etcd| {
        etcd.delete(key("tasks/@holder/"), Some(DeleteOptions::new().with_prefix())).await.map(drop)
    });
}

/// Killed right before or right after it sends something, at the `number`th of these moments. Its exit code if it ended before.
fn killed_at(host: &Host, arguments: &[&str], number: usize) -> Option<i32> {
    let mut command = host.command(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut traced = Traced::start(&mut command);
    let mut sent = 0;
    loop {
        if let Err(ended) = traced.step() {
            return Some(ended.0);
        }
        sent += usize::from(traced.sends());
        if sent == number {
            // It is killed, and waited for.
            drop(traced);
            return None;
        }
    }
}

/// What somebody sent before being killed may arrive after that, and then the reload is held once more.
fn resumed(fleet: &Fleet, host: &Host) -> Run {
    let run = wait::poll(LONG, || {
        let_go(fleet);
        let run = host.cluster(&["reload", "--resume"]);
        (!run.err.contains("is reloading this cluster since")).then_some(run)
    });
    run.expect("nobody holds it who was killed")
}

fn more(before: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>) -> Vec<u64> {
    ["a", "b", "c"]
        .iter()
        .map(|host| now.get(*host).unwrap_or(&0) - before.get(*host).unwrap_or(&0))
        .collect()
}

/// Before and after each single thing that it sends to etcd it is killed, and so is whoever goes on with it: each node is reloaded once.
#[test]
fn killed_before_and_after_each_thing_it_sends() {
    let _permit = permit();
    let fleet = Fleet::new();
    let asker = fleet.host("asker");
    pretend(&fleet, &["a", "b", "c"].map(str::to_owned), "nginx");
    let agents = Agents::start(&fleet);
    let (mut number, mut halves) = (0, 0);
    loop {
        number += 1;
        let before = agents.reloads();
        let ended = killed_at(&asker, &["cluster", "reload"], number);
        if ended.is_some() {
            assert_eq!((ended, more(&before, &agents.reloads())), (Some(0), vec![1, 1, 1]));
            break;
        }
        let was_begun = more(&before, &agents.reloads()) != [0, 0, 0];
        let_go(&fleet);
        let again = killed_at(&asker, &["cluster", "reload", "--resume"], number);
        let run = resumed(&fleet, &asker);
        let each = more(&before, &agents.reloads());
        match run.code {
            Some(0) => assert_eq!(each, [1, 1, 1], "at {number}: {run:#?}"),
            // It was not begun yet, or it was through.
            _ => {
                run.ended(4).complains("there is no reload to go on with");
                assert!(each == [1, 1, 1] || (each == [0, 0, 0] && !was_begun), "at {number}: {each:?}");
            }
        }
        halves += usize::from(again.is_none() && was_begun);
    }
    eprintln!("killed at each of {} moments, {halves} of them midway and a second time", number - 1);
    assert!(number > 15 && halves > 3, "{number} {halves}");
}

/// One that has stopped is gone on with: what was through is left alone, what failed is asked again; also if whoever goes on with it
/// is killed before and after each thing that it sends.
#[test]
fn one_that_has_stopped_is_gone_on_with() {
    let _permit = permit();
    let fleet = Fleet::new();
    let asker = fleet.host("asker");
    pretend(&fleet, &["a", "b", "c"].map(str::to_owned), "nginx");
    let agents = Agents::start(&fleet);
    let stop = || {
        agents.refuse("b", true);
        asker
            .cluster(&["reload"])
            .ended(3)
            .complains("stopped: b/nginx: as it was told. 1 of 3 nodes through")
            .complains("--resume");
    };
    stop();
    assert_eq!(more(&BTreeMap::new(), &agents.reloads()), [1, 1, 0]);
    // It is not repaired yet.
    asker
        .cluster(&["reload", "--resume"])
        .ended(3)
        .says("it had stopped at 20")
        .complains("1 of 3 nodes through");
    assert_eq!(more(&BTreeMap::new(), &agents.reloads()), [1, 2, 0]);
    agents.refuse("b", false);
    asker.cluster(&["reload", "--resume"]).ended(0).says("3 nodes serve their new generation");
    assert_eq!(more(&BTreeMap::new(), &agents.reloads()), [1, 3, 1]);
    asker.cluster(&["reload", "--resume"]).ended(4).complains("there is no reload to go on with");
    let mut number = 0;
    loop {
        number += 1;
        let before = agents.reloads();
        stop();
        agents.refuse("b", false);
        let ended = killed_at(&asker, &["cluster", "reload", "--resume"], number);
        if ended.is_none() {
            let run = resumed(&fleet, &asker);
            assert!(
                run.code == Some(0) || run.err.contains("there is no reload to go on with"),
                "at {number}: {run:#?}"
            );
        }
        assert_eq!(more(&before, &agents.reloads()), [1, 2, 1], "at {number}");
        if ended.is_some() {
            assert_eq!(ended, Some(0));
            break;
        }
    }
    eprintln!("killed at each of {} moments", number - 1);
    assert!(number > 10, "{number}");
}

/// More nodes, with longer names, than etcd takes in one value.
#[test]
fn thousands_of_nodes_are_reloaded_once() {
    let _permit = permit();
    let fleet = Fleet::new();
    let asker = fleet.host("asker");
    let hosts: Vec<String> = (0..3200).map(|n| format!("{n:04}-{}", "x".repeat(240))).collect();
    let node = "n".repeat(250);
    pretend(&fleet, &hosts, &node);
    let agents = Agents::start(&fleet);
    let counts = |of: u64| agents.reloads().values().filter(|count| **count == of).count();
    let begun = Instant::now();
    let arguments = ["cluster", "reload", "--max-unavailable", "10%", "--timeout", "10m"];
    let first = Running::start(&asker.folder, asker.command(&arguments));
    first.says("wave 3 of 10");
    first.signal(Signal::KILL);
    drop(first);
    let_go(&fleet);
    agents.refuse(&hosts[3000], true);
    let stopped = asker.cluster(&["reload", "--resume"]).ended(3);
    stopped
        .says("3200 nodes in 10 waves, at most 320 at a time; going on with")
        .complains("stopped: 3000-xxx");
    agents.refuse(&hosts[3000], false);
    asker.cluster(&["reload", "--resume"]).ended(0).says("3200 nodes serve their new generation");
    assert_eq!((counts(1), counts(2)), (3199, 1));
    eprintln!("3,200 nodes, interrupted and stopped once: {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(300));
    // The next one leaves nothing of it.
    let begun = Instant::now();
    asker.cluster(&["reload", "--max-unavailable", "100%", "--timeout", "10m"]).ended(0);
    eprintln!("all at once: {:?}", begun.elapsed());
    assert_eq!((counts(2), counts(3)), (3199, 1));
    let below = |rest: &'static str| {
        let options = GetOptions::new().with_prefix().with_count_only();
        fleet.client(async |mut etcd| Ok(etcd.get(key(rest), Some(options)).await?.count()))
    };
    assert_eq!(below("tasks/") - below("tasks/@"), 3200);
}

/// Somebody who may write the prefix writes as much as etcd takes: all of it is named as unreadable, and what is ours is shown.
#[test]
fn values_of_any_length_keep_nobody_from_reading_the_others() {
    let _permit = permit();
    let fleet = Fleet::new();
    let asker = fleet.host("asker");
    pretend(&fleet, &["a".to_owned()], "nginx");
    let long = "x".repeat(1 << 20);
    fleet.client(async |mut etcd| {
        for number in 0..80 {
            etcd.put(key(&format!("nodes/b/{number}")), long.as_str(), None).await?;
        }
        Ok(())
    });
    let status = asker.status();
    assert_eq!(
        (&status["hosts"][0]["host"], status["unreadable"].as_array().map(Vec::len)),
        (&json!("a"), Some(80))
    );
    asker.cluster(&["reload"]).ended(4).complains("nothing was reloaded: the key").complains("and 70 more");
}
