//! The example servers, as their users see them: what they answer, and what they print.

mod family;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use family::{PATIENCE, Place, alone};

/// The body of an answer.
fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    // In one piece: the examples read once.
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    answer.rsplit("\r\n").next().unwrap_or_default().to_owned()
}

/// One running example.
struct Server {
    process: Child,
    address: String,
    lines: Receiver<String>,
    /// Everything it has said so far.
    said: Vec<String>,
    place: Place,
}

/// A line such as `worker_started generation=1 pid=7 …`.
#[derive(Clone, Debug)]
struct Report(String);

impl Report {
    fn is(&self, kind: &str) -> bool {
        self.0.split(' ').next() == Some(kind)
    }

    fn get(&self, field: &str) -> &str {
        let prefix = format!("{field}=");
        self.0
            .split(' ')
            .find_map(|word| word.strip_prefix(&prefix))
            .unwrap_or_else(|| panic!("{field} of {}", self.0))
    }

    fn pid(&self) -> i32 {
        self.get("pid").parse().expect("a number")
    }

    fn by(&self) -> i32 {
        self.get("by").parse().expect("a number")
    }

    fn token(&self) -> u64 {
        self.get("token").parse().expect("a number")
    }

    /// prev, mine, next
    fn counts(&self) -> [&str; 3] {
        ["prev", "mine", "next"].map(|field| self.get(field))
    }
}

impl Server {
    fn start(example: &str) -> Server {
        // target/debug/deps/this-test, target/debug/examples/NAME
        let here = std::env::current_exe().expect("this program");
        let folder = here.parent().and_then(|p| p.parent()).expect("the target folder");
        let program: PathBuf = folder.join("examples").join(example);
        assert!(program.exists(), "{} is missing: cargo builds examples for `cargo test`", program.display());
        let place = Place::new();
        let mut process = Command::new(program)
            .arg("127.0.0.1:0")
            .arg(place.registry())
            .arg("4")
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the example");
        let (sender, lines) = channel();
        let output = BufReader::new(process.stdout.take().expect("a pipe"));
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).for_each(|line| _ = sender.send(line))
        });
        let mut server = Server { process, address: String::new(), lines, said: Vec::new(), place };
        let first = server.line();
        server.address = first.split(' ').nth(2).expect("an address").to_owned();
        server
    }

    fn line(&mut self) -> String {
        let line = self.lines.recv_timeout(PATIENCE);
        let line =
            line.unwrap_or_else(|e| panic!("no line within {PATIENCE:?} ({e}), after {:#?}", self.said));
        self.said.push(line.clone());
        line
    }

    /// The next `count` reports of this kind, each with how many others came before it.
    fn reports(&mut self, kind: &str, count: usize) -> Vec<Report> {
        let mut found = Vec::new();
        while found.len() < count {
            let report = Report(self.line());
            if report.is(kind) {
                found.push(report);
            }
        }
        found
    }

    /// All of this kind that it has ever said, as soon as there are so many that fit.
    fn all(&mut self, kind: &str, count: usize, fits: impl Fn(&Report) -> bool) -> Vec<Report> {
        loop {
            let said = self.said.iter().cloned().map(Report);
            let found: Vec<Report> = said.filter(|report| report.is(kind) && fits(report)).collect();
            if found.len() >= count {
                return found;
            }
            self.line();
        }
    }

    fn tell(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).expect("signal the example");
    }

    fn get(&self, path: &str) -> String {
        get(&self.address, path)
    }

    /// It ends by itself, and has nothing more to say than what is given back.
    fn ends(mut self) -> Vec<Report> {
        let begun = Instant::now();
        let mut rest = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.said.push(line.clone());
            rest.push(Report(line));
        }
        let status = self.process.wait().expect("wait");
        assert!(status.success() && begun.elapsed() < PATIENCE, "{status}, after {:#?}", self.said);
        rest
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // If it has not ended yet, a test has failed: its workers go with it.
        if let Ok(None) = self.process.try_wait() {
            self.tell(Signal::SIGTERM);
            let _ = self.process.wait();
        }
    }
}

/// Start, requests, reload, death and respawn, each as it is printed. Gives the pids of the workers.
fn life(server: &mut Server) -> Vec<i32> {
    let start = &server.reports("generation_started", 1)[0];
    assert_eq!((start.counts(), start.get("cause")), (["nil", "0", "nil"], "start"));
    let first = server.reports("worker_started", 4);
    let mine: Vec<_> = first.iter().map(|r| r.get("mine")).collect();
    assert_eq!(mine, ["1", "2", "3", "4"]);
    assert!(server.get("/").starts_with("4 workers; generation 1"));

    // Reload.
    server.tell(Signal::SIGHUP);
    let start = &server.reports("generation_started", 1)[0];
    assert_eq!((start.counts(), start.get("cause")), (["4", "0", "nil"], "reload"));
    let from = server.said.len();
    let ended = &server.reports("generation_ended", 1)[0];
    assert_eq!((ended.get("generation"), ended.get("cause"), ended.counts()[1]), ("1", "superseded", "0"));
    let between: Vec<Report> = server.said[from..].iter().cloned().map(Report).collect();
    let of = |kind: &str| between.iter().filter(|r| r.is(kind)).cloned().collect::<Vec<_>>();
    let exits = of("worker_exited");
    assert_eq!(exits.iter().map(|r| r.get("mine")).collect::<Vec<_>>(), ["4", "3", "2", "1"]);
    assert!(exits.iter().all(|r| r.get("generation") == "1" && r.get("next") != "nil"), "{exits:#?}");
    assert_eq!(of("worker_draining").len(), 4);
    let mut second = of("worker_started");
    second.extend(server.reports("worker_started", 4 - second.len()));
    assert!(server.get("/").contains("generation 2"));

    // A death, and its respawn.
    let victim = second[1].pid();
    let begun = Instant::now();
    kill(Pid::from_raw(victim), Signal::SIGKILL).expect("kill a worker");
    let (mut died, mut started) = (None, None);
    while died.is_none() || started.is_none() {
        let report = Report(server.line());
        let place = if report.is("worker_died") { &mut died } else { &mut started };
        assert!(place.is_none(), "{report:?} after {place:?}");
        *place = Some(report);
    }
    let (died, started) = (died.expect("a death"), started.expect("a start"));
    eprintln!("a death was reported and mended within {:.1?}", begun.elapsed());
    assert_eq!((died.pid(), died.get("signal"), died.get("cause")), (victim, "9", "signal"));
    assert_eq!((started.get("cause"), started.get("mine"), started.get("prev")), ("respawn", "4", "nil"));
    assert!(server.get("/").starts_with("4 workers"));
    second.iter().filter(|r| r.pid() != victim).map(Report::pid).chain([started.pid()]).collect()
}

#[test]
fn a_removed_registry_is_made_anew_by_a_reload() {
    let _alone = alone();
    let mut server = Server::start("prefork");
    server.reports("worker_started", 4);
    std::fs::remove_file(server.place.registry()).expect("remove");
    server.tell(Signal::SIGHUP);
    let start = &server.reports("generation_started", 1)[0];
    assert_eq!((start.get("generation"), start.get("cause")), ("2", "reload"));
    assert_eq!(start.get("event"), "6", "the journal goes on");
    let observer = headcount::Observer::open(&server.place.registry()).expect("it is there again");
    family::wait_for("the new workers", || {
        let seen = observer.snapshot().expect("a look");
        (seen.total == 4 && seen.generations[0].id == 2).then_some(())
    });
    let ended = &server.reports("generation_ended", 1)[0];
    assert_eq!((ended.get("generation"), ended.get("cause")), ("1", "superseded"));
    server.tell(Signal::SIGTERM);
    let rest = server.ends();
    assert_eq!(rest.iter().filter(|r| r.is("worker_exited") && r.get("generation") == "2").count(), 4);
}

/// What is printed as it stops.
fn stops(server: Server, mut workers: Vec<i32>, draining: usize) {
    let rest = server.ends();
    let of = |kind: &str| rest.iter().filter(|r| r.is(kind)).collect::<Vec<_>>();
    let exits = of("worker_exited");
    assert_eq!(
        exits.iter().map(|r| r.counts()).collect::<Vec<_>>(),
        [["nil", "4", "nil"], ["nil", "3", "nil"], ["nil", "2", "nil"], ["nil", "1", "nil"]]
    );
    assert!(exits.iter().all(|r| r.get("cause") == "stop"), "{exits:#?}");
    let mut pids: Vec<i32> = exits.iter().map(|r| r.pid()).collect();
    pids.sort_unstable();
    workers.sort_unstable();
    assert_eq!(pids, workers);
    assert_eq!((of("worker_draining").len(), of("worker_died").len()), (draining, 0));
    let ended = of("generation_ended");
    assert_eq!((ended.len(), ended[0].counts()), (1, ["nil", "0", "nil"]));
}

fn stopped_by(example: &str, signal: Signal, draining: usize) {
    let _alone = alone();
    let mut server = Server::start(example);
    let workers = life(&mut server);
    server.tell(signal);
    stops(server, workers, draining);
}

#[test]
fn prefork_lives_and_is_stopped() {
    stopped_by("prefork", Signal::SIGTERM, 0);
}

#[test]
fn prefork_lives_and_quits() {
    stopped_by("prefork", Signal::SIGQUIT, 4);
}

/// Who leads, and who has stopped, in this order, but for one that was killed.
fn tenures(said: &[String], victim: i32) -> Vec<(bool, i32)> {
    let all = said.iter().cloned().map(Report).filter(|r| r.is("elected") || r.is("stopped"));
    all.map(|r| (r.is("elected"), r.by())).filter(|(_, pid)| *pid != victim).collect()
}

#[test]
fn scheduler_does_each_thing_on_one_worker() {
    let _alone = alone();
    let mut server = Server::start("scheduler");
    server.reports("worker_started", 4);
    let first = server.all("elected", 1, |_| true).remove(0);
    server.all("jobs", 3, |r| r.by() == first.by() && r.token() == first.token());
    let is = |once: &'static str| move |r: &Report| r.get("once") == once;
    server.all("finished", 1, is("migration-7"));
    server.all("finished", 1, is("warm-up"));
    assert_eq!(server.get("/report"), "the report is written\n");
    let inside = server.all("left", 1, |_| true);
    assert_eq!(server.all("entered", 1, |_| true)[0].by(), inside[0].by());

    // Its death, and a reload.
    kill(Pid::from_raw(first.by()), Signal::SIGKILL).expect("kill the leader");
    let second = server.all("elected", 2, |_| true).remove(1);
    assert!(second.by() != first.by() && second.token() > first.token());
    server.all("worker_started", 5, |_| true);

    // One that hangs: from the election on it leads no more, whenever it looks.
    kill(Pid::from_raw(second.by()), Signal::SIGSTOP).expect("stop the leader");
    let third = server.all("elected", 3, |_| true).remove(2);
    kill(Pid::from_raw(second.by()), Signal::SIGCONT).expect("let it go on");
    server.all("stopped", 1, |r| r.by() == second.by());
    let number = |r: &Report, field| r.get(field).parse::<u64>().expect("a number");
    let late = |r: &Report| r.by() == second.by() && number(r, "from") > number(&third, "at");
    assert_eq!(server.all("jobs", 0, late).len(), 0, "it led after the election");

    server.tell(Signal::SIGHUP);
    let new: Vec<i32> =
        server.all("worker_started", 4, |r| r.get("generation") == "2").iter().map(Report::pid).collect();
    server.all("jobs", 1, |r| new.contains(&r.by()));
    server.all("finished", 2, is("warm-up"));
    server.all("worker_exited", 4, |r| r.get("generation") == "1");

    // It is stopped.
    let before = server.said.clone();
    server.tell(Signal::SIGTERM);
    let rest: Vec<String> = server.ends().into_iter().map(|report| report.0).collect();
    let said = [before, rest].concat();
    let tenures: Vec<_> =
        tenures(&said, first.by()).into_iter().filter(|(_, pid)| *pid != second.by()).collect();
    let is_in_turn = |pair: &[(bool, i32)]| pair[0].0 && pair[1] == (false, pair[0].1);
    assert!(tenures.len() % 2 == 0 && tenures.chunks(2).all(is_in_turn), "{tenures:?}");
    // Each that leaves hands the role on to one that is still there.
    assert!(tenures.last().is_some_and(|(_, pid)| new.contains(pid)), "{tenures:?}");
    let finished =
        |once: &str| said.iter().filter(|line| line.starts_with(&format!("finished once={once} "))).count();
    assert_eq!((finished("migration-7"), finished("warm-up")), (1, 2));
}

#[test]
fn the_patterns_in_the_documentation_are_those_of_the_example() {
    let read = |path: &str| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let (page, example) = (read("../../docs/singletons.md"), read("examples/duties/mod.rs"));
    let blocks: Vec<&str> =
        page.split("```rust\n").skip(1).filter_map(|block| block.split("```").next()).collect();
    assert_eq!(blocks.len(), 2);
    assert!(
        blocks.iter().all(|block| example.contains(block)),
        "docs/singletons.md and examples/duties differ"
    );
}

#[cfg(feature = "tokio")]
#[test]
fn prefork_tokio_lives_and_is_stopped() {
    stopped_by("prefork_tokio", Signal::SIGTERM, 0);
}

#[cfg(feature = "tokio")]
#[test]
fn prefork_tokio_lives_and_quits() {
    stopped_by("prefork_tokio", Signal::SIGQUIT, 4);
}

#[cfg(feature = "tokio")]
#[test]
fn prefork_tokio_finishes_its_requests_before_it_leaves() {
    let _alone = alone();
    let mut server = Server::start("prefork_tokio");
    server.reports("worker_started", 4);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| get(&server.address, "/slow"));
        // It is being worked on when the server is told to quit.
        std::thread::sleep(std::time::Duration::from_millis(100));
        server.tell(Signal::SIGQUIT);
        assert!(slow.join().expect("an answer").contains("generation 1"));
    });
    // Its worker drained for a while beside the others, and left last.
    let rest = server.ends();
    let last = rest.iter().rfind(|r| r.is("worker_exited")).expect("an exit");
    assert_eq!(last.counts(), ["nil", "1", "nil"]);
    assert_eq!(rest.iter().filter(|r| r.is("worker_draining")).count(), 4, "{rest:#?}");
}
