//! What somebody else has put where an agent, or a hook, has something of its own.

use std::os::unix::process::CommandExt;

use testkit::{Signal, permit, wait};

use super::fleet::{Fleet, Server, host, key};
use crate::scripted::LONG;

fn put(fleet: &Fleet, values: &[(String, String)]) {
    fleet.client(async |mut etcd| {
        for (key, value) in values {
            etcd.put(key.as_str(), value.as_str(), None).await?;
        }
        Ok(())
    });
}

fn value(fleet: &Fleet, key: &str) -> Option<Vec<u8>> {
    fleet.client(async |mut etcd| Ok(etcd.get(key, None).await?.kvs().first().map(|kv| kv.value().to_vec())))
}

/// Waits until a hook has noted where it begins.
fn hook_begins(fleet: &Fleet) {
    wait::poll(LONG, || value(fleet, &key("hooks/all"))).expect("it notes where it begins");
}

/// It is written anew where the agent has something to say there, which is said; and otherwise left alone, also when the host leaves.
#[test]
fn what_stands_in_a_hosts_own_place_is_said() {
    let _permit = permit();
    let fleet = Fleet::new();
    let mut a = fleet.host("a");
    let others: Vec<_> =
        ["nodes/a/other", "nodes/a/deep/er", "nodes/a/%6F"].map(|at| (key(at), "nonsense".to_owned())).into();
    let ours = ["known/a", "nodes/a/prefork-example"].map(|at| (key(at), "{\"v\":7}".to_owned()));
    put(&fleet, &[&others[..], &ours].concat());
    let server = Server::start(&a, 1);
    a.join();
    let serves = |what: &str| {
        a.sees(what, |status| {
            let node = &host(status, "a")?["nodes"][0];
            (node["node"] == "prefork-example" && node["state"] == "serving").then_some(())
        });
    };
    serves("its node");
    for (key, _) in &ours {
        a.agent().says(&format!("the key {key} is about this host and cannot be read: it is of version 7"));
    }
    a.agent().says(&format!("the key {} is about this host and cannot be read: it is not what", others[0].0));
    // While it runs, as well: with what it has to say next.
    put(&fleet, &[(ours[1].0.clone(), "\u{1b}[2Jnonsense".to_owned())]);
    let status = a.status();
    assert_eq!(status["unreadable"][1]["key"], ours[1].0, "{status:#}");
    server.lose_one();
    serves("its node again");
    a.end(Signal::TERM).ended(0);
    for (key, text) in &others {
        assert_eq!(value(&fleet, key).as_deref(), Some(text.as_bytes()), "{key}");
    }
    assert_eq!(value(&fleet, &ours[1].0), None, "the host has left");
}

/// No agent writes these so. They would be there for ever.
#[test]
fn a_key_under_no_lease_is_named() {
    let _permit = permit();
    let fleet = Fleet::new();
    let hook = "ttl = \"2s\"\n[[hook]]\nname = \"all\"\nscope = \"cluster\"\non = [\"any=true\"]";
    let keys = ["roles/@teller", "roles/@hooks/all"].map(key);
    put(&fleet, &keys.clone().map(|key| (key, "somebody".to_owned())));
    let mut a = fleet.host_with("a", hook);
    a.join();
    for key in &keys {
        a.agent().says(&format!("the key {key} is under no lease"));
    }
    fleet.client(async |mut etcd| {
        for key in &keys {
            etcd.delete(key.as_str(), None).await?;
        }
        Ok(())
    });
    a.agent().says("hook all: delivers for the cluster shop");
    let teller = wait::poll(LONG, || (value(&fleet, &keys[0]).as_deref() == Some(b"a")).then_some(()));
    teller.expect("somebody notes who is lost");
    a.end(Signal::TERM).ended(0);
    put(
        &fleet,
        &[(
            key("hosts/a"),
            r#"{"v":1,"agent":"0","place":"x","machine":"db-7","pid":1,"birth":2,"since":1.0}"#.to_owned(),
        )],
    );
    a.launch().says("there is a host a already: an agent on machine db-7");
    a.agent().says("is under no lease, so that it does not end");
}

/// Whoever may write to etcd may not have any process of a host ended: not by saying that it is a delivery in progress.
#[test]
fn a_process_that_a_record_names_is_ended_only_if_it_is_a_hooks_command() {
    let _permit = permit();
    let fleet = Fleet::new();
    let hook = "ttl = \"2s\"\n[[hook]]\nname = \"all\"\nscope = \"cluster\"\ntimeout = \"1s\"\non = [\"once_done=true\"]";
    let mut a = fleet.host_with("a", hook);
    a.join();
    hook_begins(&fleet);
    let mut bystander = std::process::Command::new("sleep");
    let mut bystander = bystander.arg("600").process_group(0).spawn().expect("it can be started");
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", bystander.id())).expect("our child");
    let born = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(19)).expect("a time");
    let record = format!(
        r#"{{"v":1,"host":"a","tenure":1,"revision":1,"number":1,"finished":[],"in_flight":{{"delivery":{{"at":1,"event":"once_done","rule":"none"}},"attempt":1,"failures":0,"running":true,"interrupted":false,"document":{{"id":"x"}},"process":{{"pid":{},"start_time":{born}}}}}}}"#,
        bystander.id()
    );
    fleet.client(async |mut etcd| {
        etcd.put(key("hooks/all"), record, None).await?;
        etcd.delete(key("roles/@hooks/all"), None).await
    });
    let happens = |number: u32| {
        let at = key(&format!("events/b/web/1f/{number:020}"));
        put(&fleet, &[(at, r#"{"v":1,"kind":"once_done","time":1.0}"#.to_owned())]);
    };
    // It finds out that its turn is over, and takes it again, with this record.
    happens(1);
    a.agent().says("its turn is over");
    a.agent().says("once_done at 1 was interrupted, and its rule is gone: skipped");
    assert_eq!(bystander.try_wait().expect("our child"), None, "it lives");
    bystander.kill().expect("our child");
    bystander.wait().expect("our child");
    happens(2);
    a.agent().wait_for("a delivery", |a| a.err().contains("delivered in").then_some(()));
}

/// The document does not fit into a pipe, and the command does not read it. A name with a NUL is no variable.
#[test]
fn a_document_that_is_too_long_keeps_no_hook() {
    let _permit = permit();
    let fleet = Fleet::new();
    let seen = fleet.folder.at("seen");
    let rule = format!("once_done=echo $HEADCOUNT_HOST >>{}; exec sleep 600", seen.display());
    let hook = format!(
        "ttl = \"2s\"\n[[hook]]\nname = \"all\"\nscope = \"cluster\"\ntimeout = \"1s\"\nretries = 0\non = [{rule:?}]"
    );
    let mut a = fleet.host_with("a", &hook);
    a.join();
    hook_begins(&fleet);
    let long = "x".repeat(65_400);
    let event = |text: &str| format!(r#"{{"v":1,"kind":"once_done","time":1.0,"sentence":"{text}"}}"#);
    let at = |host: &str| key(&format!("events/{host}/web/1f/00000000000000000001"));
    put(&fleet, &[(at("%00b"), event(&long)), (at("c"), event("short"))]);
    let told = wait::poll(LONG, || {
        let text = std::fs::read_to_string(&seen).unwrap_or_default();
        (text.lines().count() == 2).then_some(text)
    });
    assert_eq!(told.as_deref(), Some("\u{fffd}b\nc\n"), "{}", a.agent().err());
}
