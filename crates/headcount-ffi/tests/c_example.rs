//! The C example as a user would run it: started, used, a worker killed, reloaded, stopped.

mod support;

use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// For whatever is waited for: generous, because machines are slow.
const LIMIT: Duration = Duration::from_secs(30);

/// The running example, and all that it has said so far. It goes with the test, whole.
struct Server {
    process: Child,
    lines: Receiver<String>,
    said: Vec<Line>,
    /// How much of `said` has been looked at.
    seen: usize,
}

/// `PID word key=value …`
#[derive(Clone, Debug)]
struct Line {
    by: i32,
    word: String,
    fields: HashMap<String, String>,
    text: String,
}

impl Line {
    fn parse(text: String) -> Line {
        let mut parts = text.split(' ');
        let by = parts.next().unwrap_or_default().parse().unwrap_or_else(|_| panic!("strange line {text:?}"));
        let first = parts.next().unwrap_or_default().to_owned();
        let rest: Vec<_> = parts.collect();
        let word = if first == "event" { rest[0].to_owned() } else { first };
        let fields = rest
            .iter()
            .filter_map(|p| p.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        Line { by, word, fields, text }
    }

    fn get(&self, key: &str) -> &str {
        self.fields.get(key).unwrap_or_else(|| panic!("no {key} in {:?}", self.text))
    }

    fn number(&self, key: &str) -> i32 {
        self.get(key).parse().unwrap_or_else(|_| panic!("{key} is no number in {:?}", self.text))
    }
}

impl Server {
    fn start(folder: &support::Folder) -> Server {
        let program = support::compile("examples/prefork.c", folder.path());
        let mut process = Command::new(program)
            .arg("c-example")
            .arg(folder.path().join("node.registry"))
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let out = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Server { process, lines, said: Vec::new(), seen: 0 }
    }

    /// Waits for `number` lines with this word, and gives them. Lines with other words may come in between.
    fn wait_for(&mut self, word: &str, number: usize) -> Vec<Line> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let found: Vec<_> = self.said[self.seen..].iter().filter(|l| l.word == word).cloned().collect();
            if found.len() >= number {
                assert_eq!(found.len(), number, "{word} came too often:\n{}", self.transcript());
                return found;
            }
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.said.push(Line::parse(line)),
                Err(e) => {
                    panic!("{} of {number} {word} in {LIMIT:?} ({e}):\n{}", found.len(), self.transcript())
                }
            }
        }
    }

    /// Waits for a line with this word that fits.
    fn wait_for_last(&mut self, word: &str, fits: impl Fn(&Line) -> bool) -> Line {
        let deadline = Instant::now() + LIMIT;
        loop {
            let found = self.said[self.seen..].iter().rfind(|l| l.word == word && fits(l));
            if let Some(found) = found {
                return found.clone();
            }
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.said.push(Line::parse(line)),
                Err(e) => panic!("no such {word} in {LIMIT:?} ({e}):\n{}", self.transcript()),
            }
        }
    }

    /// What comes from now on is a new chapter. Nothing of the old one may have been an error.
    fn turn_page(&mut self) {
        let faults: Vec<_> =
            self.said.iter().filter(|l| matches!(l.word.as_str(), "error" | "notice")).collect();
        assert!(faults.is_empty(), "{faults:?}");
        self.seen = self.said.len();
    }

    fn transcript(&self) -> String {
        self.said.iter().map(|l| format!("  {}\n", l.text)).collect()
    }

    fn master(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap()
    }

    fn signal(&self, pid: i32, signal: i32) {
        // SAFETY: kill(2) touches no memory of ours; the pid is one of the server's processes.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SAFETY: as in `signal`; the group is the server's own, and there for as long as we have not waited for it.
        unsafe { libc::kill(-self.master(), libc::SIGKILL) };
        let _ = self.process.wait();
    }
}

fn numbers(lines: &[Line], key: &str) -> Vec<i32> {
    lines.iter().map(|l| l.number(key)).collect()
}

fn pids(lines: &[Line]) -> BTreeSet<i32> {
    lines.iter().map(|l| l.number("pid")).collect()
}

/// Starts the server and checks that what it says of its start is right. Gives its workers.
fn started(server: &mut Server) -> BTreeSet<i32> {
    let generation = server.wait_for("generation_started", 1).remove(0);
    assert_eq!((generation.by, generation.get("cause")), (server.master(), "start"));
    assert_eq!(["prev", "mine", "next"].map(|k| generation.number(k)), [-1, 0, -1]);
    let workers = server.wait_for("worker_started", 4);
    assert_eq!(numbers(&workers, "mine"), [1, 2, 3, 4]);
    assert!(
        workers
            .iter()
            .all(|w| w.by == w.number("pid") && w.get("cause") == "start" && w.number("prev") == -1)
    );
    assert_eq!(workers.iter().map(|w| w.number("worker")).collect::<BTreeSet<_>>(), (0..4).collect());
    pids(&workers)
}

#[test]
fn the_example_starts_serves_replaces_reloads_and_stops() {
    let folder = support::Folder::new("c-example");
    let mut server = Server::start(&folder);
    let port = server.wait_for("listening", 1)[0].get("port").to_owned();
    let workers = started(&mut server);

    let mut answer = String::new();
    TcpStream::connect(format!("127.0.0.1:{port}")).unwrap().read_to_string(&mut answer).unwrap();
    let (pid, generation) = answer.trim().split_once(' ').unwrap();
    assert!(workers.contains(&pid.parse().unwrap()), "{answer} is from none of {workers:?}");
    assert_eq!(generation, "1");

    // One of them schedules, one has migrated, and the one that answered has counted.
    let leader = server.wait_for("schedules", 1).remove(0);
    assert!(workers.contains(&leader.by) && workers.contains(&server.wait_for("migrates", 1)[0].by));
    assert_eq!(server.wait_for("counts", 1)[0].by.to_string(), pid);

    // A worker dies: its death is reported once, by a survivor, and it is replaced.
    server.turn_page();
    let victim = leader.by;
    server.signal(victim, libc::SIGKILL);
    let successor = server.wait_for("worker_started", 1).remove(0);
    let death = server.wait_for("worker_died", 1).remove(0);
    assert_eq!((death.number("pid"), death.get("cause"), death.number("signal")), (victim, "signal", 9));
    let alive = |pid| pid != victim && workers.contains(&pid) || pid == successor.by;
    assert!(alive(death.by), "{death:?} was reported by none of {workers:?}");
    assert_eq!((successor.get("cause"), successor.number("mine")), ("respawn", 4));
    assert_eq!(successor.get("worker"), death.get("worker"));
    let second = server.wait_for("schedules", 1).remove(0);
    let token = |line: &Line| line.get("token").parse::<u64>().unwrap();
    assert!(second.by != victim && token(&second) > token(&leader));

    // A reload: new ones come, old ones drain and leave, and their generation ends.
    server.turn_page();
    server.signal(server.master(), libc::SIGHUP);
    let generation = server.wait_for("generation_started", 1).remove(0);
    assert_eq!((generation.get("cause"), generation.number("prev")), ("reload", 4));
    let new = server.wait_for("worker_started", 4);
    assert_eq!(numbers(&new, "mine"), [1, 2, 3, 4]);
    assert!(new.iter().all(|w| w.get("generation") == "2" && w.get("cause") == "reload"));
    assert_eq!(server.wait_for("worker_draining", 4).len(), 4);
    let exits = server.wait_for("worker_exited", 4);
    assert_eq!(numbers(&exits, "mine"), [4, 3, 2, 1]);
    assert!(
        exits
            .iter()
            .all(|w| w.get("generation") == "1" && w.number("next") >= 0 && w.get("cause") == "superseded")
    );
    let end = server.wait_for("generation_ended", 1).remove(0);
    assert_eq!((end.get("generation"), end.number("mine")), ("1", 0));
    // The role goes to the new ones; until they serve, another old one may have had it. Each has stopped before the next begins.
    let third = server.wait_for_last("schedules", |line| pids(&new).contains(&line.by));
    let tenures = server.said.iter().filter(|l| l.word.starts_with("schedules") && l.by != victim);
    let words: Vec<_> = tenures.map(|l| (l.word.as_str(), l.by)).collect();
    let is_in_turn = |pair: &[(&str, i32)]| pair[0].1 == pair[1].1 && pair[1].0 == "schedules_no_more";
    assert_eq!(words.last(), Some(&("schedules", third.by)), "{words:?}");
    assert!(words.chunks_exact(2).all(is_in_turn), "{words:?}");

    // A stop: everybody leaves, and it ends well.
    server.turn_page();
    server.signal(server.master(), libc::SIGTERM);
    server.wait_for("stopped", 1);
    let exits = server.wait_for("worker_exited", 4);
    assert_eq!(numbers(&exits, "mine"), [4, 3, 2, 1]);
    assert_eq!(pids(&exits), pids(&new));
    assert!(exits.iter().all(|w| w.number("next") == -1 && w.get("cause") == "stop"));
    let end = server.wait_for("generation_ended", 1).remove(0);
    assert_eq!(["prev", "mine", "next"].map(|k| end.number(k)), [-1, 0, -1]);
    assert!(server.process.wait().unwrap().success());
    server.turn_page();
    assert_eq!(server.said.iter().filter(|l| l.word == "worker_died").count(), 1, "{}", server.transcript());
    // Over the death and the reload; and the last leader has stopped, too.
    assert_eq!(server.said.iter().filter(|l| l.word == "migrates").count(), 1, "{}", server.transcript());
    let last = server.said.iter().rfind(|l| l.word.starts_with("schedules")).unwrap();
    // Perhaps another one had it for a moment, which was told to leave next.
    assert_eq!(last.word, "schedules_no_more", "{}", server.transcript());
}
