//! The agent's socket: who may ask for what, what is wrong or too much, and what can be read of the fleet.

use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use headcount_cluster_client::Event;
use serde_json::Value;
use testkit::{Signal, http, permit, process, wait};

use super::fleet::{FOR_LONG, Fleet, Host};
use super::process::Process;
use crate::program;
use crate::scripted::{LONG, Running};

/// A session by hand.
struct Raw {
    lines: Lines<BufReader<UnixStream>>,
    stream: UnixStream,
}

impl Raw {
    fn begin(host: &Host) -> Raw {
        let mut stream = UnixStream::connect(host.socket()).expect("it listens");
        stream.set_read_timeout(Some(LONG)).expect("a limit");
        write!(stream, "GET /cluster/session HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: headcount-session/1\r\n\r\n")
            .expect("it reads");
        let mut lines = BufReader::new(stream.try_clone().expect("a descriptor")).lines();
        while !lines.next().expect("a head").expect("a head").is_empty() {}
        let mut raw = Raw { lines, stream };
        assert_eq!(raw.hears()["say"], "welcome");
        raw
    }

    fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).expect("it reads");
    }

    fn hears(&mut self) -> Value {
        serde_json::from_str(&self.lines.next().expect("a line").expect("a line")).expect("JSON")
    }

    fn complains(&mut self, text: &str) {
        let mut message = self.hears();
        // Who says that it leaves a role is answered in any case.
        if message["say"] == "left" {
            message = self.hears();
        }
        let error = message["error"].as_str().unwrap_or_default();
        assert!(message["say"] == "error" && error.contains(text), "{message}");
    }

    fn is_closed(&mut self) -> bool {
        self.lines.next().is_none_or(|line| line.is_err())
    }
}

#[test]
fn what_is_wrong_is_said_and_what_is_no_line_ends_the_session() {
    let _permit = permit();
    let fleet = Fleet::new();
    let mut a = fleet.host_with("a", FOR_LONG);
    a.join();
    let mut raw = Raw::begin(&a);
    for (line, error) in [
        (r#"{"do":"fly"}"#, "unknown variant `fly`"),
        (r#"{"do":"stand"}"#, "missing field `role`"),
        (r#"{"do":"stand","role":"a b"}"#, "is no name of a role; allowed is 1 to 48"),
        (r#"{"do":"leave","role":"x"}"#, "has not asked for the role x"),
        (r#"{"do":"unlock","id":7}"#, "no lock with the number 7"),
        (r#"{"do":"end","key":"x","token":1,"ok":true}"#, "has not asked for the once x"),
        (r#"{"do":"lock","id":-1,"name":"x"}"#, "invalid value"),
        ("[]", "this is no request"),
    ] {
        raw.say(&format!("{line}\n"));
        raw.complains(error);
    }
    for n in 0..64 {
        raw.say(&format!(
            "{{\"do\":\"once\",\"key\":\"{}\"}}\n",
            "x".repeat(n % 47 + 1) + if n < 47 { "" } else { "-" }
        ));
    }
    raw.say("{\"do\":\"stand\",\"role\":\"one-more\"}\n");
    loop {
        let message = raw.hears();
        if message["say"] == "error" {
            assert!(message["error"].as_str().expect("a text").contains("allowed are no more"), "{message}");
            break;
        }
    }
    for (text, error) in
        [("nonsense\n".to_owned(), "this line is no JSON"), ("x".repeat(5000), "more than 4096 bytes")]
    {
        let mut raw = Raw::begin(&a);
        raw.say(&text);
        raw.complains(error);
        assert!(raw.is_closed());
    }
    let page = http::get(&a.socket(), "/cluster/session").expect("it answers");
    assert!(page.status == 426 && page.body.contains("Upgrade: headcount-session/1"), "{page:?}");
}

#[test]
fn there_is_a_bound_of_processes_and_one_that_does_not_read_is_cut_off() {
    let _permit = permit();
    let fleet = Fleet::new();
    let mut a = fleet.host_with("a", FOR_LONG);
    a.join();
    let mut all: Vec<Raw> = (0..256).map(|_| Raw::begin(&a)).collect();
    let mut refused = Process::of(&a);
    let why = refused.until(|event| match event {
        Event::Disconnected { why } => Some(why),
        _ => None,
    });
    assert!(why.contains("Too many processes"), "{why}");
    all.truncate(1);
    refused.until(|event| matches!(event, Event::Connected { .. }).then_some(()));
    // Each is answered by an error, which it does not read.
    let deaf = &mut all[0];
    deaf.stream.set_write_timeout(Some(Duration::from_millis(200))).expect("a limit");
    let began = Instant::now();
    while began.elapsed() < LONG {
        match deaf.stream.write_all("{\"do\":\"unlock\",\"id\":1}\n".repeat(100).as_bytes()) {
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset
                ) =>
            {
                break;
            }
            _ => {}
        }
    }
    assert!(began.elapsed() < LONG, "it is not cut off");
    refused.client.stand("cron").unwrap();
    refused.until(|event| matches!(event, Event::Elected { .. }).then_some(()));
}

#[test]
fn who_is_not_named_may_read_and_have_nothing() {
    use std::os::unix::process::CommandExt;
    let _permit = permit();
    if !process::is_root() {
        eprintln!("skipped: only root can be somebody else");
        return;
    }
    let fleet = Fleet::new();
    let mut a = fleet.host_with("a", FOR_LONG);
    a.join();
    let copy = fleet.folder.at("headcount");
    let start = |a: &Host| {
        let mut command = program::of_everybody(&copy, ["cluster", "leader", "cron", "--socket"]);
        command.arg(a.socket()).args(["--", "true"]).uid(65534).gid(65534);
        Running::start(&a.folder, command)
    };
    let stranger = start(&a);
    stranger.says("it refuses: user 65534 may not have roles, onces and locks: agent.claims");
    drop(stranger);
    let text = std::fs::read_to_string(a.config()).expect("our file");
    super::fleet::write(&a.config(), &text.replace("[cluster]", "claims = [\"nobody\"]\n[cluster]"));
    a.agent().signal(Signal::HUP);
    a.agent().says("reloaded");
    start(&a).says("leads cron from now on");
    super::fleet::write(&a.config(), &text.replace("[cluster]", "claims = [\"no-such-user\"]\n[cluster]"));
    a.agent().signal(Signal::HUP);
    a.agent().says("agent.claims: there is no user no-such-user");
}

#[test]
fn the_fleet_and_what_happens_to_it_can_be_read_from_the_agent() {
    let _permit = permit();
    let fleet = Fleet::new();
    let (mut a, mut b) = (fleet.host_with("a", FOR_LONG), fleet.host_with("b", FOR_LONG));
    a.join();
    let mut stream = UnixStream::connect(a.socket()).expect("it listens");
    stream.set_read_timeout(Some(LONG)).expect("a limit");
    write!(stream, "GET /cluster/events HTTP/1.0\r\n\r\n").expect("it reads");
    let read = || -> Value {
        serde_json::from_str(&http::get(&a.socket(), "/cluster").expect("an answer").body).expect("JSON")
    };
    assert_eq!(read()["hosts"].as_array().map(Vec::len), Some(1));
    b.join();
    let lines = BufReader::new(stream).lines().map(|line| line.expect("a line"));
    let joined = lines.into_iter().find(|line| line.contains("host_joined")).expect("it is told");
    let joined: Value = serde_json::from_str(&joined).expect("JSON");
    // Not what happened before somebody asked.
    assert_eq!((&joined["host"], &joined["kind"]), (&"b".into(), &"host_joined".into()));
    wait::poll(LONG, || (read()["hosts"].as_array()?.len() == 2).then_some(())).expect("both are here");
    assert_eq!(read(), a.status());
}
