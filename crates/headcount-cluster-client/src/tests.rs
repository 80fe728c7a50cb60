//! The client, with an agent that is pretended.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use super::*;
use crate::protocol::Message;

struct Agent {
    _folder: tempfile::TempDir,
    listener: UnixListener,
    client: Client,
}

struct Line {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Agent {
    fn new() -> Agent {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        Agent { client: Client::new(path), listener, _folder: folder }
    }

    /// Has the client connect, and answers with these bytes.
    fn accept(&mut self, answer: &str) -> Line {
        self.client.process();
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        self.client.process();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert_eq!(line, "GET /cluster/session HTTP/1.1\r\n");
        while line != "\r\n" {
            line.clear();
            lines.read_line(&mut line).unwrap();
        }
        let mut this = Line { stream, lines };
        this.say(answer);
        this
    }

    fn welcome(&mut self) -> Line {
        let now = boot_ms();
        let line = self.accept(&format!(
            "HTTP/1.1 101 Switching Protocols\r\n\r\n{{\"say\":\"welcome\",\"version\":1,\"cluster\":\"shop\",\"host\":\"a\",\"ttl\":2000,\"margin\":400,\"now\":{now}}}\n"
        ));
        assert_eq!(self.event(), Event::Connected { cluster: "shop".into(), host: "a".into() });
        line
    }

    fn event(&mut self) -> Event {
        for _ in 0..1000 {
            if let Some(event) = self.client.next_event() {
                return event;
            }
            self.client.wait(Some(Duration::from_millis(20))).unwrap();
            self.client.process();
        }
        panic!("nothing happens");
    }
}

impl Line {
    fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    fn elect(&mut self, token: u64, deadline: u64) {
        self.say(&format!(
            "{{\"say\":\"elected\",\"role\":\"cron\",\"token\":{token},\"deadline\":{deadline}}}\n"
        ));
    }

    fn hears(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

#[test]
fn it_stands_leads_and_leads_no_more_from_the_deadline_on_though_nobody_has_said_so() {
    let mut agent = Agent::new();
    agent.client.stand("cron").unwrap();
    assert!(agent.client.stand("cron").is_err() && agent.client.stand("a b").is_err());
    let mut line = agent.welcome();
    assert_eq!(line.hears(), r#"{"do":"stand","role":"cron"}"#);
    line.elect(7, boot_ms() + 60_000);
    assert_eq!(agent.event(), Event::Elected { role: "cron".into(), token: 7 });
    assert_eq!(agent.client.token("cron"), Some(7));
    assert_eq!(line.hears(), r#"{"do":"ack"}"#);
    line.say("{\"say\":\"lost\",\"role\":\"cron\",\"why\":\"x\"}\n");
    assert_eq!(agent.event(), Event::Lost { role: "cron".into(), why: "x".into() });
    let deadline = boot_ms() + 150;
    line.elect(8, deadline);
    assert_eq!(agent.event(), Event::Elected { role: "cron".into(), token: 8 });
    while agent.client.token("cron").is_some() {
        assert!(boot_ms() <= deadline);
    }
    assert!(boot_ms() >= deadline, "not before");
    assert!(matches!(agent.event(), Event::Lost { .. }));
    agent.client.process();
    // The agent may not know: so it stands anew, and what it had is free.
    assert_eq!(
        [line.hears(), line.hears(), line.hears()],
        [r#"{"do":"ack"}"#, r#"{"do":"leave","role":"cron"}"#, r#"{"do":"stand","role":"cron"}"#]
    );
}

/// More may be known of it later, and nothing at all of it with an agent of an older version.
#[test]
fn who_runs_what_another_is_at_is_told() {
    let mut agent = Agent::new();
    agent.client.once("migrate").unwrap();
    let mut line = agent.welcome();
    line.hears();
    line.say("{\"say\":\"running\",\"key\":\"migrate\",\"host\":\"b\"}\n");
    let by = WhoRuns { host: "b".into(), pid: None, process: None, since: None };
    assert_eq!(agent.event(), Event::Running { key: "migrate".into(), by: by.clone() });
    line.say(
        "{\"say\":\"running\",\"key\":\"migrate\",\"host\":\"b\",\"pid\":71,\"process\":\"nginx\",\"since\":1500,\"more\":[]}\n",
    );
    let since = Some(std::time::UNIX_EPOCH + Duration::from_millis(1500));
    let by = WhoRuns { pid: Some(71), process: Some("nginx".into()), since, ..by };
    assert_eq!(agent.event(), Event::Running { key: "migrate".into(), by });
    // However far off its clock is.
    line.say(&format!("{{\"say\":\"running\",\"key\":\"migrate\",\"host\":\"b\",\"since\":{}}}\n", u64::MAX));
    assert!(matches!(agent.event(), Event::Running { .. }));
    assert_eq!(agent.client.run_token("migrate"), None);
    line.say("{\"say\":\"done\",\"key\":\"migrate\"}\n");
    assert_eq!(agent.event(), Event::Done { key: "migrate".into() });
}

/// As this client is one to an agent that says more than it knows.
#[test]
fn what_a_later_version_says_is_skipped() {
    let mut agent = Agent::new();
    agent.client.once("migrate").unwrap();
    let mut line = agent.welcome();
    line.hears();
    line.say("{\"say\":\"flying\",\"key\":\"migrate\"}\n{\"say\":\"done\",\"key\":\"migrate\"}\n");
    assert_eq!(agent.event(), Event::Done { key: "migrate".into() });
}

/// It has not failed: whoever runs it next is told `stalled`.
#[test]
fn what_it_runs_is_late_at_its_deadline() {
    let mut agent = Agent::new();
    agent.client.once("migrate").unwrap();
    let mut line = agent.welcome();
    assert_eq!(line.hears(), r#"{"do":"once","key":"migrate"}"#);
    let deadline = boot_ms() + 150;
    line.say(&format!(
        "{{\"say\":\"run\",\"key\":\"migrate\",\"attempt\":1,\"token\":7,\"deadline\":{deadline}}}\n"
    ));
    assert!(matches!(agent.event(), Event::Run { token: 7, .. }));
    assert!(matches!(agent.event(), Event::RunLost { .. }));
    agent.client.process();
    let said = [line.hears(), line.hears()];
    assert_eq!(said, [r#"{"do":"ack"}"#, r#"{"do":"end","key":"migrate","token":7,"ok":false,"late":true}"#]);
}

#[test]
fn an_election_that_crosses_the_leaving_is_one_that_was_left() {
    let mut agent = Agent::new();
    agent.client.stand("cron").unwrap();
    let mut line = agent.welcome();
    line.hears();
    agent.client.leave("cron");
    agent.client.stand("cron").unwrap();
    agent.client.process();
    line.elect(7, boot_ms() + 60_000);
    line.say("{\"say\":\"left\",\"role\":\"cron\"}\n");
    line.elect(8, boot_ms() + 60_000);
    assert_eq!(agent.event(), Event::Elected { role: "cron".into(), token: 8 });
    assert_eq!(agent.client.token("cron"), Some(8));
}

#[test]
fn a_connection_that_breaks_loses_all_and_the_next_one_asks_again() {
    let mut agent = Agent::new();
    let id = agent.client.lock("keys", Some(Duration::from_secs(60))).unwrap();
    agent.client.stand("cron").unwrap();
    let mut line = agent.welcome();
    line.hears();
    line.elect(7, boot_ms() + 60_000);
    assert!(matches!(agent.event(), Event::Elected { .. }));
    drop(line);
    assert!(matches!(agent.event(), Event::Lost { .. }));
    // It may be closed, or reset, since not all was read.
    assert!(
        matches!(agent.event(), Event::Disconnected { why } if why.contains("connection") || why.contains("Connection"))
    );
    assert_eq!(agent.client.token("cron"), None);
    std::thread::sleep(agent.client.timeout().unwrap() + Duration::from_millis(2));
    let mut line = agent.welcome();
    assert_eq!(line.hears(), r#"{"do":"stand","role":"cron"}"#);
    assert!(line.hears().starts_with(&format!(r#"{{"do":"lock","id":{id},"name":"keys","timeout":"#)));
}

#[test]
fn an_agent_that_is_away_or_refuses_is_said_once_and_a_lock_times_out() {
    let mut client = Client::new("/nowhere/agent.sock");
    let id = client.lock("keys", Some(Duration::from_millis(300))).unwrap();
    let mut events = Vec::new();
    while !matches!(events.last(), Some(Event::NotLocked { .. })) {
        client.wait(None).unwrap();
        client.process();
        events.extend(client.next_event());
    }
    assert!(
        matches!(&events[0], Event::Disconnected { why } if why.contains("/nowhere/agent.sock: No such file")),
        "{events:?}"
    );
    assert!(matches!(&events[1..], [Event::NotLocked { id: of, .. }] if *of == id), "{events:?}");
    let mut agent = Agent::new();
    agent.accept("HTTP/1.1 403 Forbidden\r\ncontent-length: 5\r\n\r\nno :(");
    assert!(matches!(agent.event(), Event::Disconnected { why } if why.ends_with("it refuses: no :(")));
}

#[test]
fn a_process_in_another_time_namespace_is_not_misled() {
    let mut agent = Agent::new();
    agent.client.stand("cron").unwrap();
    let theirs = boot_ms() + 1_000_000;
    let mut line = agent.accept(&format!(
        "HTTP/1.1 101 Switching Protocols\r\n\r\n{{\"say\":\"welcome\",\"version\":1,\"cluster\":\"shop\",\"host\":\"a\",\"ttl\":2000,\"margin\":400,\"now\":{theirs}}}\n"
    ));
    assert!(matches!(agent.event(), Event::Connected { .. }));
    line.elect(7, theirs + 30_000);
    assert!(matches!(agent.event(), Event::Elected { .. }));
    assert!(agent.client.token("cron").is_some());
    assert!(agent.client.time_left() <= Duration::from_secs(30));
}

#[test]
fn every_message_fits_into_a_line() {
    let mut away = Message::Away { why: "process 7 (a\u{1b}[2J\nb) has it".to_owned() };
    away.clean();
    assert_eq!(away, Message::Away { why: "process 7 (a\\u{1b}[2J\\u{a}b) has it".to_owned() });
    for text in ["\u{1}".repeat(5_000), "\"".repeat(5_000), "é".repeat(5_000), "x".to_owned()] {
        let mut messages = [
            Message::Away { why: text.clone() },
            Message::Error { error: text.clone() },
            Message::NotLocked { id: u64::MAX, name: "n".repeat(protocol::LONGEST_NAME), why: text.clone() },
            Message::Running {
                key: "n".repeat(protocol::LONGEST_NAME),
                host: text.clone(),
                pid: Some(u32::MAX),
                process: Some(text.clone()),
                since: Some(u64::MAX),
            },
            Message::Run {
                key: "n".repeat(protocol::LONGEST_NAME),
                attempt: u32::MAX,
                last: Some(text),
                token: u64::MAX,
                deadline: u64::MAX,
            },
        ];
        for message in &mut messages {
            message.clean();
            assert!(serde_json::to_string(message).unwrap().len() <= protocol::LONGEST_LINE);
        }
    }
}

#[test]
fn an_agent_that_stands_still_keeps_nobody_waiting_for_a_lock() {
    let mut agent = Agent::new();
    let mut line = agent.welcome();
    let id = agent.client.lock("keys", Some(Duration::from_millis(50))).unwrap();
    agent.client.process();
    assert!(line.hears().contains("\"do\":\"lock\""));
    let began = boot_ms();
    assert!(
        matches!(agent.event(), Event::NotLocked { id: of, why } if of == id && why.contains("does not answer"))
    );
    assert!((2_000..10_000).contains(&(boot_ms() - began)), "the agent has time to say so itself");
    // So that nobody has it when the agent goes on.
    assert_eq!(line.hears(), format!(r#"{{"do":"unlock","id":{id}}}"#));
}

#[test]
fn an_attempt_is_this_process_s_until_its_deadline() {
    let mut agent = Agent::new();
    agent.client.once("migrate").unwrap();
    let mut line = agent.welcome();
    let deadline = boot_ms() + 60_000;
    line.say(&format!(
        "{{\"say\":\"run\",\"key\":\"migrate\",\"attempt\":1,\"token\":9,\"deadline\":{deadline}}}\n"
    ));
    assert!(matches!(agent.event(), Event::Run { attempt: 1, token: 9, .. }));
    assert_eq!((agent.client.run_token("migrate"), agent.client.run_token("x")), (Some(9), None));
    agent.client.end("migrate", 9, true);
    assert_eq!(agent.client.run_token("migrate"), None);
}

/// Answers one request for a page, in a thread.
fn page(answers: &'static [&'static str]) -> (tempfile::TempDir, PathBuf, std::thread::JoinHandle<()>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("GET /cluster"), "{line}");
        for answer in answers {
            stream.write_all(answer.as_bytes()).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    (folder, path, thread)
}

#[test]
fn the_state_of_the_fleet_is_read_or_it_is_said_why_not() {
    let limit = Duration::from_secs(10);
    let (_folder, path, thread) = page(&["HTTP/1.0 200 OK\r\n\r\n{\"hosts\"", ":[]}\n"]);
    assert_eq!(state(path, limit).unwrap(), "{\"hosts\":[]}");
    thread.join().unwrap();
    let (_folder, path, thread) =
        page(&["HTTP/1.0 503 Service Unavailable\r\nContent-Length: 11\r\n\r\n", "no cluster\n"]);
    let error = state(&path, limit).unwrap_err().to_string();
    assert!(
        error.contains("agent.sock: it refuses: no cluster") && error.contains(path.to_str().unwrap()),
        "{error}"
    );
    thread.join().unwrap();
    // Half of a document is none.
    let (_folder, path, thread) = page(&["HTTP/1.0 200 OK\r\n\r\n{\"hosts\""]);
    assert!(state(path, limit).unwrap_err().to_string().contains("closed the connection"));
    thread.join().unwrap();
    let error = state("/nowhere/agent.sock", limit).unwrap_err();
    assert!(error.to_string().contains("/nowhere/agent.sock: No such file"), "{error}");
    // One that stands still.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let error = state(path, Duration::from_millis(30)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[test]
fn events_come_line_by_line_and_their_end_is_an_error() {
    let (_folder, path, thread) =
        page(&["HTTP/1.0 200 OK\r\n\r\n", "{\"a\":1}\n{\"b\"", ":2}\n", "{\"half\""]);
    let mut events = Events::open(path).unwrap();
    let mut all = Vec::new();
    let error = loop {
        events.wait(Some(Duration::from_secs(10))).unwrap();
        match events.next() {
            Ok(line) => all.extend(line),
            Err(error) => break error,
        }
    };
    assert!(events.is_open());
    assert_eq!(all, ["{\"a\":1}", "{\"b\":2}"]);
    assert!(error.to_string().contains("closed the connection"), "{error}");
    assert!(events.next().is_err(), "and again");
    thread.join().unwrap();
}
