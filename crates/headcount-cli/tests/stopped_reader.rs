//! A reader never blocks or slows the node, wherever it stands: proven by one that is stopped at each of its system calls
//! while the node reloads. Between two of them it touches nothing that is anybody else's: it has the registry not mapped.

mod program;
mod traced;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use headcount::{Begin, Cursor, Join, Kind, Master, Node, Options, Wait, Worker};
use serde_json::Value;
use testkit::wait::{PATIENCE, poll};
use testkit::{Integration, Nginx, Setup, Signal, permit};

use program::headcount;
use traced::{Ended, Traced};

/// With the lock held by somebody, a reload takes as long as `lock_timeout`, and fails. Without, it takes far less than a
/// millisecond; this is for a machine that is busy with other things.
const LOCK_TIMEOUT: Duration = Duration::from_secs(20);
const BOUND: Duration = Duration::from_secs(5);

/// A server with one worker, all in this process.
struct Server {
    master: Master,
    node: Node,
    worker: Option<Worker>,
    cursor: Cursor,
    folder: tempfile::TempDir,
    longest: Duration,
}

impl Server {
    fn start() -> Server {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("node.registry");
        let options =
            Options::new("node").path(&path).slots(16).journal_records(4096).lock_timeout(LOCK_TIMEOUT);
        let master = options.open().expect("open");
        let node = master.node().clone();
        let mut server =
            Server { master, node, worker: None, cursor: Cursor::oldest(), folder, longest: Duration::ZERO };
        server.turn();
        assert_eq!(server.node.events(&mut server.cursor, usize::MAX).lost, 0);
        server
    }

    fn registry(&self) -> PathBuf {
        self.folder.path().join("node.registry")
    }

    /// A generation begins, its worker joins, the old one's leaves, and with it the old generation ends. None of them
    /// waits for the lock, but the master's, which cannot be told not to.
    fn turn(&mut self) {
        let (generation, transitions) =
            self.master.begin(Begin::new().workers(1), Wait::Timeout).expect("begin");
        transitions.run(|_| ());
        self.master.commit(generation.id());
        let (worker, transitions) = generation.join(Join::worker(Some(0)).wait(Wait::Try)).expect("join");
        transitions.run(|_| ());
        if let Some(old) = self.worker.replace(worker) {
            old.leave(Wait::Try).expect("leave").run(|_| ());
        }
    }

    /// Reloads while the reader stands, and finds what there would be without it.
    fn reload(&mut self, reader: &Traced, step: usize) {
        let begun = Instant::now();
        self.turn();
        let took = begun.elapsed();
        self.longest = self.longest.max(took);
        assert!(took < BOUND, "step {step}: a reload took {took:?} with a reader that stands");
        let batch = self.node.events(&mut self.cursor, usize::MAX);
        let kinds: Vec<_> = batch.events.iter().map(|e| e.kind).collect();
        let expected =
            [Kind::GenerationStarted, Kind::WorkerStarted, Kind::WorkerExited, Kind::GenerationEnded];
        assert_eq!((kinds.as_slice(), batch.lost), (expected.as_slice(), 0), "step {step}");
        let snapshot = self.node.snapshot();
        assert_eq!((snapshot.total, snapshot.generations.len()), (1, 1), "step {step}: {snapshot:#?}");
        // Nor would anybody else be held up: no lock, not even one that is only waited for, and no memory that it could
        // write to. To sleep on, a follower maps a page for reading.
        assert_eq!(reader.locks(), None, "step {step}");
        assert!(!reader.may_write(&self.registry()), "step {step}: it has the registry mapped for writing");
    }
}

/// The reader's steps, and at how many of them it had the registry and the lock file open.
#[derive(Debug, Default)]
struct Steps {
    all: usize,
    with_registry: usize,
    with_locks: usize,
}

impl Steps {
    fn count(&mut self, reader: &Traced, registry: &Path) {
        self.all += 1;
        self.with_registry += usize::from(reader.opens(registry));
        let mut lock = registry.as_os_str().to_owned();
        lock.push(".lock");
        self.with_locks += usize::from(reader.opens(Path::new(&lock)));
    }
}

fn reader(server: &Server, arguments: &[&str]) -> (Command, PathBuf) {
    let out = server.folder.path().join("out");
    let mut command = headcount(arguments);
    command.arg("--registry").arg(server.registry());
    command.stdout(File::create(&out).expect("our own folder")).stderr(Stdio::inherit());
    (command, out)
}

/// From its first system call to its end, with a reload at every one of them, on its way in and on its way out.
fn at_every_step(arguments: &[&str]) -> String {
    let mut server = Server::start();
    let (mut command, out) = reader(&server, arguments);
    let mut reader = Traced::start(&mut command);
    let mut steps = Steps::default();
    let Ended(code) = loop {
        match reader.step() {
            Ok(()) => {
                steps.count(&reader, &server.registry());
                server.reload(&reader, steps.all);
            }
            Err(ended) => break ended,
        }
    };
    eprintln!("{arguments:?}: {steps:?}, the longest reload took {:?}", server.longest);
    assert_eq!(code, 0, "{arguments:?} after {steps:?}");
    // Who is alive is asked of the kernel by other means than locks.
    assert!(steps.all > 100 && steps.with_registry > 10 && steps.with_locks > 10, "{steps:?}");
    std::fs::read_to_string(out).expect("what it said")
}

#[test]
fn status_at_each_of_its_steps() {
    let text = at_every_step(&["status"]);
    assert!(text.contains("node node"), "{text}");
    let document: Value = serde_json::from_str(&at_every_step(&["status", "--json"])).expect("a document");
    assert_eq!(document["nodes"][0]["node"], "node");
}

#[test]
fn doctor_at_each_of_its_steps() {
    let text = at_every_step(&["doctor"]);
    assert!(text.contains("no problems found"), "{text}");
}

#[test]
fn events_at_each_of_its_steps() {
    let text = at_every_step(&["events", "--json"]);
    let first = text.lines().next().expect("there were events");
    assert_eq!(serde_json::from_str::<Value>(first).expect("a document")["kind"], "generation_started");
}

#[test]
fn a_follower_at_each_of_its_steps() {
    let mut server = Server::start();
    let (mut command, out) = reader(&server, &["events", "--follow", "--json"]);
    let mut follower = Traced::start(&mut command);
    let mut steps = Steps::default();
    // It has no end of its own: long enough for it to look again and again.
    while steps.with_registry < 300 {
        if let Err(Ended(code)) = follower.step() {
            panic!("it ended with {code} after {steps:?}");
        }
        steps.count(&follower, &server.registry());
        server.reload(&follower, steps.all);
        assert!(steps.all < 5_000, "it does not read: {steps:?}");
    }
    // And what it says is all there was, once and in order.
    let last = server.node.newest_seq();
    let stopped = follower.leave_stopped();
    stopped.resume();
    let seen = poll(PATIENCE, || {
        let text = std::fs::read_to_string(&out).ok()?;
        let text = &text[..=text.rfind('\n')?];
        let documents = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a document"));
        let seen: Vec<u64> = documents.filter_map(|event| event["seq"].as_u64()).collect();
        (seen.last() == Some(&last)).then_some(seen)
    });
    let seen =
        seen.unwrap_or_else(|| panic!("event {last} does not come: {:?}", std::fs::read_to_string(&out)));
    assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "{seen:?}");
}

/// Stopped by the signal itself at some steps between opening the registry and the end, while nginx reloads.
#[test]
fn nginx_reloads_beside_readers_that_stand() {
    let _permit = permit();
    let nginx = Nginx::start_ready(Setup::new(Integration::Lua).workers(2));
    let command = |out: &Path| {
        let mut command = headcount(["status", "--json", "--registry"]);
        command.arg(nginx.registry()).stdout(File::create(out).expect("our own folder"));
        command
    };
    let out = nginx.at("out");
    let mut reader = Traced::start(&mut command(&out));
    let mut open = Vec::new();
    let mut step = 0;
    while reader.step().is_ok() {
        step += 1;
        if reader.opens(&nginx.registry()) {
            open.push(step);
        }
    }
    assert!(open.len() > 10, "it does not read the registry: {open:?}");
    let chosen = (0..6).map(|nth| open[nth * (open.len() - 1) / 5]);
    // They pile up, each at another step.
    let mut readers = Vec::new();
    for (generation, step) in (2..).zip(chosen) {
        let out = nginx.at(&format!("out{step}"));
        let mut reader = Traced::start(&mut command(&out));
        for _ in 0..step {
            assert!(reader.step().is_ok(), "step {step} of a second run is beyond its end");
        }
        readers.push((reader.leave_stopped(), out));
        nginx.reload_and_settle(generation);
        nginx.wait_for("the old generation's end", PATIENCE, |all| {
            all.at_least(1, testkit::Kind::GenerationEnded, generation - 1)
        });
        nginx.must_serve();
    }
    let generations = u64::try_from(readers.len()).expect("a few") + 1;
    for (reader, out) in readers {
        assert_eq!(reader.go_on(), 0);
        let text = std::fs::read_to_string(out).expect("what it said");
        let document: Value = serde_json::from_str(&text).expect("a document");
        assert_eq!(document["nodes"].as_array().map(Vec::len), Some(1), "{document:#}");
    }
    let mut ledger = nginx.end(Signal::QUIT);
    // As without any reader.
    ledger.cold_start(2);
    for generation in 2..=generations {
        ledger.reloaded(generation, 2, 2);
        ledger.graceful_end(generation - 1, 2, true);
    }
    ledger.graceful_end(generations, 2, false);
    ledger.nothing_else();
}
