//! The hooks of an agent: each event once, whatever becomes of the agent meanwhile.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use testkit::{Folder, Signal, permit, process, wait};

use super::fleet::{Host, Server};
use crate::record::{Delivered, assert_all_once, cat_to, deliveries, journal, kinds};
use crate::scripted::LONG;

fn registry(host: &Host) -> PathBuf {
    host.folder.join("web.registry")
}

fn seen(host: &Host) -> PathBuf {
    host.folder.join("seen")
}

/// A hook for every event, with these further settings.
fn any(host: &Host, settings: &str) -> String {
    format!("[[hook]]\nname = \"all\"\non = [{:?}]\n{settings}", format!("any={}", cat_to(&seen(host))))
}

/// Waits until the last event of the journal is delivered.
#[track_caller]
fn all_delivered(host: &Host) {
    let newest = || journal(&registry(host)).last().map(|event| event.seq);
    let done = wait::poll(LONG, || {
        let newest = newest()?;
        deliveries(&seen(host)).iter().any(|d| d.seq() == Some(newest) && !d.is_derived()).then_some(())
    });
    done.unwrap_or_else(|| {
        panic!("{:?} of {:?}\n{}", deliveries(&seen(host)).last(), newest(), host.agent().err())
    });
}

#[test]
fn a_hook_has_each_event_of_each_node_once_and_goes_on_where_the_agent_before_has_ended() {
    let _permit = permit();
    let folder = Folder::new();
    let mut host = Host::alone(folder.path());
    host.configure(&any(&host, ""));
    host.start("with 1 hook");
    // A node that comes later is followed from its first event on.
    let mut server = Server::start(&host, 2);
    server.lose_one();
    all_delivered(&host);
    for signal in [Signal::TERM, Signal::USR2] {
        host.end(signal).ended(0);
        // Nobody is there to see it.
        server.lose_one();
        host.start("following node");
        all_delivered(&host);
    }
    server.kill();
    wait::poll(LONG, || (deliveries(&seen(&host)).last()?.kind() == "node_died").then_some(()))
        .unwrap_or_else(|| panic!("{}", host.agent().err()));
    let all = deliveries(&seen(&host));
    assert_all_once(&all, &registry(&host));
    let of_node: Vec<_> = all.iter().filter(|d| d.is_derived()).cloned().collect();
    assert_eq!(kinds(&of_node), ["node_started", "node_died"]);
    // One that is removed and made again is followed again.
    fs::remove_file(registry(&host)).expect("our folder");
    wait::poll(Duration::from_millis(300), || None::<()>);
    let _next = Server::start(&host, 1);
    let count = all.len();
    wait::poll(LONG, || (deliveries(&seen(&host)).len() >= count + 3).then_some(()))
        .unwrap_or_else(|| panic!("{}", host.agent().err()));
    all_delivered(&host);
    let all = deliveries(&seen(&host));
    assert_eq!(kinds(&all[count..count + 2]), ["node_started", "generation_started"]);
    assert_all_once(&all[count..], &registry(&host));
    host.end(Signal::TERM).ended(0);
}

#[test]
fn killed_again_and_again_an_agent_delivers_each_event_once_or_marked() {
    const KILLS: u32 = 24;
    let _permit = permit();
    let folder = Folder::new();
    let mut host = Host::alone(folder.path());
    let rule = format!(
        "any=e=$(cat); echo \"$e\" >> '{0}.begun'; sleep 0.01; echo \"$e\" >> '{0}'",
        seen(&host).display()
    );
    host.configure(&format!("[[hook]]\nname = \"slow\"\nnode = \"web\"\non = [{rule:?}]\n"));
    let server = Server::start(&host, 2);
    for kill in 0..KILLS {
        host.launch();
        if kill % 2 == 0 {
            server.lose_one();
        }
        // In steps that don't fit the length of a delivery.
        wait::poll(Duration::from_micros(u64::from(kill) * 7_919 % 120_000), || None::<()>);
        host.kill_agent();
    }
    host.start("following node");
    all_delivered(&host);
    host.end(Signal::TERM).ended(0);
    let begun = deliveries(Path::new(&format!("{}.begun", seen(&host).display())));
    let all = deliveries(&seen(&host));
    assert_eq!(begun, all, "each that began ended before the next began");
    let mut once: Vec<Delivered> = Vec::new();
    let mut again = 0;
    for delivered in all {
        if once.last().is_some_and(|before| before.id() == delivered.id()) {
            again += 1;
            assert!(delivered.is_retry(), "delivered twice and not marked: {delivered:?}");
            continue;
        }
        assert!(once.iter().all(|d| d.id() != delivered.id()), "out of order: {delivered:?}");
        once.push(delivered);
    }
    let marked = once.iter().filter(|d| d.is_retry()).count();
    assert!(marked + again <= KILLS as usize, "{marked} marked and {again} repeated by {KILLS} kills");
    assert!(marked + again > 0, "no kill came while a command was under way: this test tests nothing");
    let seqs: Vec<_> = once.iter().filter(|d| !d.is_derived()).map(Delivered::seq).collect();
    let expected: Vec<_> = journal(&registry(&host)).iter().map(|e| Some(e.seq)).collect();
    assert_eq!(seqs, expected);
}

#[test]
fn a_reload_changes_hooks_and_neither_loses_nor_repeats_anything() {
    let _permit = permit();
    let folder = Folder::new();
    let mut host = Host::alone(folder.path());
    let gate = host.folder.join("gate");
    let (before, after) = (host.folder.join("before"), host.folder.join("after"));
    let gated = format!(
        "any=e=$(cat); : > '{0}.under-way'; until [ -e '{1}' ] || [ ! -d '{2}' ]; do sleep 0.01; done; echo \"$e\" >> '{0}'",
        before.display(),
        gate.display(),
        host.folder.display()
    );
    let hook = |rule: &str| format!("[[hook]]\nname = \"changing\"\non = [{rule:?}]\n");
    host.configure(&(any(&host, "") + &hook(&gated)));
    let server = Server::start(&host, 1);
    host.start("with 2 hooks");
    wait::poll(LONG, || Path::new(&format!("{}.under-way", before.display())).exists().then_some(()))
        .expect("its first delivery has begun");
    all_delivered(&host);
    let undisturbed = host.agent().err().matches("hook all: following node").count();
    // The one under way ends by the old rule, and the others are delivered by the new one.
    host.configure(&(any(&host, "") + &hook(&format!("any={}", cat_to(&after)))));
    host.agent().signal(Signal::HUP);
    host.agent().says("reloaded: ");
    server.lose_one();
    all_delivered(&host);
    assert_eq!(deliveries(&after).len(), 0, "nothing is delivered beside the one under way");
    fs::write(&gate, "").expect("our folder");
    let last = journal(&registry(&host)).last().expect("events").seq;
    wait::poll(LONG, || (deliveries(&after).last()?.seq()? >= last).then_some(()))
        .unwrap_or_else(|| panic!("{}", host.agent().err()));
    let first = deliveries(&before);
    assert_eq!(kinds(&first), ["node_started"]);
    let mut all = deliveries(&after);
    // Of the event that was under way, the new rule has had nothing yet.
    assert_eq!((all[0].kind(), all[0].id()), ("node_started", first[0].id()));
    assert_eq!(host.agent().err().matches("hook all: following node").count(), undisturbed);
    assert_all_once(&all, &registry(&host));
    // Taken out and put back, it goes on where it was.
    host.configure(&any(&host, ""));
    host.agent().signal(Signal::HUP);
    host.agent()
        .wait_for("the second reload", |r| (r.err().matches("reloaded: ").count() == 2).then_some(()));
    server.lose_one();
    all_delivered(&host);
    assert_eq!(deliveries(&after).len(), all.len());
    host.configure(&(any(&host, "") + &hook(&format!("any={}", cat_to(&after)))));
    host.agent().signal(Signal::HUP);
    let last = journal(&registry(&host)).last().expect("events").seq;
    wait::poll(LONG, || (deliveries(&after).last()?.seq()? >= last).then_some(()))
        .unwrap_or_else(|| panic!("{}", host.agent().err()));
    all = deliveries(&after);
    assert_all_once(&all, &registry(&host));
    host.end(Signal::TERM).ended(0);
}

#[test]
fn an_agent_that_is_to_end_does_not_wait_for_a_command_for_ever() {
    let _permit = permit();
    let folder = Folder::new();
    let mut host = Host::alone(folder.path());
    let pid = host.folder.join("pid");
    let rule = format!(
        "worker_started=echo $$ > '{}'; while [ -d '{}' ]; do sleep 0.05; done",
        pid.display(),
        host.folder.display()
    );
    host.configure(&format!("[[hook]]\nname = \"hangs\"\ntimeout = \"1h\"\non = [{rule:?}]\n"));
    let _server = Server::start(&host, 1);
    host.start("with 1 hook");
    let read = || fs::read_to_string(&pid).ok()?.trim().parse::<i32>().ok();
    let pid = wait::poll(LONG, read).expect("the command runs");
    let said = host.end(Signal::TERM).ended(0);
    assert!(said.err.contains("stopped before it was delivered"), "{}", said.err);
    assert!(!process::is_alive(pid));
}

#[test]
fn what_is_wrong_with_a_hook_is_said_with_its_place() {
    let folder = Folder::new();
    let host = Host::alone(folder.path());
    let check = |text: &str| {
        host.configure(text);
        crate::program::run(&mut host.command(&["agent", "--check"]))
    };
    let hook = |settings: &str| format!("[[hook]]\nname = \"x\"\n{settings}");
    let good = hook("on = [\"any=true\"]\n");
    check(&good).ended(0).says("without a cluster, with 1 hook");
    for (text, said) in [
        (hook("on = [\"any=true\"]\ntimout = \"5s\"\n"), "unknown field `timout`, expected one of"),
        (hook("on = [\"any=true\"]\ntimeout = 5\n"), "line 6"),
        (hook("on = [\"any=true\"]\ntimeout = \"0s\"\n"), "it must be at least 1ms"),
        (hook("on = [\"any=true\"]\nqueue = 0\n"), "0 is not in 1 to 1048576"),
        (hook("on = [\"any=true\"]\nfrom = \"start\"\n"), "expected one of `run`, `now`, `oldest`"),
        (hook("on = [\"any=true\"]\nbackoff = \"9s..1s\"\n"), "the second time must be the longer one"),
        (hook("on = [\"worker_gone=true\"]\n"), "there is no event \"worker_gone\"; allowed are"),
        (hook("on = [\"worker_died\"]\n"), "there is no command"),
        (hook(""), "missing field `on`"),
        (hook("on = []\n"), "hook x: on: name at least one rule"),
        (hook("on = [\"any=true\", \"any=true\"]\n"), "hook x: on: \"any=true\" is given twice"),
        (hook("on = [\"any=true\"]\nnode = \"a\"\nregistry = \"/b\"\n"), "only one of them"),
        (hook("on = [\"any=true\"]\nregistry = \"b\"\n"), "b is not an absolute path"),
        (good.clone() + &good, "hook x: there are two of this name"),
        (good.replace("\"x\"", "\"a b\""), "\"a b\" is not a name"),
    ] {
        check(&text).ended(4).complains("agent.toml").complains(said);
    }
    host.configure(&good);
    fs::set_permissions(host.config(), fs::Permissions::from_mode(0o666)).expect("our own file");
    crate::program::run(&mut host.command(&["agent", "--check"]))
        .ended(4)
        .complains("everybody may write it");
}
