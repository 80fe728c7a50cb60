//! The program `headcount`, run beside a server, with a limit and an eye on what it costs.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::folder::chmod;
use crate::guard::Guard;
use crate::{artifacts, process, wait};

/// How a run ended, and what it said.
#[derive(Clone, Debug)]
pub struct Run {
    /// What was run.
    pub name: String,
    /// None: a signal ended it, or it had to be left behind.
    pub code: Option<i32>,
    /// Its answer.
    pub out: String,
    /// Beside its answer.
    pub err: String,
    /// How long it took.
    pub took: Duration,
    /// It did not end in time, and was killed.
    pub overdue: bool,
}

impl Run {
    /// Its answer as a document.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or(serde_json::Value::Null)
    }
}

/// The program with these arguments, in an environment that says nothing, run by the words that go before it.
pub fn headcount(before: &[String], arguments: &[&str]) -> Command {
    program(&artifacts::program(), before, arguments)
}

/// The same by a copy of the program that everybody may run: where it was built, others may not be allowed to look.
pub fn of_everybody(copy: &Path, before: &[String], arguments: &[&str]) -> Command {
    if !copy.exists() {
        std::fs::copy(artifacts::program(), copy).unwrap_or_else(|e| panic!("{}: {e}", copy.display()));
        chmod(copy, 0o755);
    }
    program(copy, before, arguments)
}

fn program(program: &Path, before: &[String], arguments: &[&str]) -> Command {
    let mut command = match before.split_first() {
        Some((first, more)) => {
            let mut command = Command::new(first);
            command.args(more).arg(program);
            command
        }
        None => Command::new(program),
    };
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// A run that has begun.
pub struct Begun {
    name: String,
    child: Child,
    begun: Instant,
    readers: [std::thread::JoinHandle<String>; 2],
}

/// Begins a run; the guard looks after it.
#[track_caller]
pub fn begin(command: &mut Command, name: &str, guard: &Guard) -> Begun {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    guard.watch(child.id() as i32, name);
    fn reader(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = from.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }
    let readers = [
        reader(child.stdout.take().expect("it was asked for")),
        reader(child.stderr.take().expect("it was asked for")),
    ];
    Begun { name: name.to_owned(), child, begun: Instant::now(), readers }
}

impl Begun {
    /// Its number.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Waits for its end; kills it at the limit, which is counted from its begin.
    pub fn end(mut self, limit: Duration) -> Run {
        let left = limit.saturating_sub(self.begun.elapsed());
        let ended = wait::poll(left, || self.child.try_wait().expect("our own child"));
        let took = self.begun.elapsed();
        let overdue = ended.is_none();
        if overdue {
            // Whoever is held in state D does not even die: he is left behind until his captor is gone.
            let _ = self.child.kill();
        }
        let patience = if overdue { Duration::from_millis(20) } else { wait::PATIENCE };
        let status = ended.or_else(|| wait::poll(patience, || self.child.try_wait().expect("our own child")));
        let text = |reader: std::thread::JoinHandle<String>| {
            let done = wait::poll(patience, || reader.is_finished().then_some(()));
            done.and_then(|()| reader.join().ok()).unwrap_or_default()
        };
        let [out, err] = self.readers;
        Run {
            name: self.name,
            code: status.and_then(|s| s.code()),
            out: text(out),
            err: text(err),
            took,
            overdue,
        }
    }
}

/// Every command of the program: its name, its arguments, and the time that it itself is given to wait.
pub fn every_command(which: &[&str], state: &Path) -> Vec<(String, Vec<String>, Duration)> {
    let second = Duration::from_secs(1);
    let state = state.display().to_string();
    let run = ["run", "--on", "any=true", "--from", "oldest", "--state", &state];
    // What it runs stands last.
    let lock = (["lock", "--timeout", "1s", "program"], ["--", "true"]);
    let leads = (["run", "--as-leader", "program"], ["--", "sleep", "9"]);
    let all: [(&[&str], &[&str], Duration); 10] = [
        (&["status"], &[], Duration::ZERO),
        (&["status", "--json"], &[], Duration::ZERO),
        (&["events", "-n", "50"], &[], Duration::ZERO),
        (&["events", "--json"], &[], Duration::ZERO),
        (&["wait", "--reloaded", "--drained", "--timeout", "1s"], &[], second),
        (&["wait", "--stopped", "--timeout", "1s"], &[], second),
        (&["doctor", "--json"], &[], Duration::ZERO),
        (&run, &[], second),
        (&lock.0, &lock.1, second),
        (&leads.0, &leads.1, second),
    ];
    let words = |part: &[&str], rest: &[&str]| {
        part.iter().chain(which).chain(rest).map(|&word| word.to_owned()).collect()
    };
    all.iter()
        .map(|&(part, rest, own)| (format!("headcount {}", part.join(" ")), words(part, rest), own))
        .collect()
}

/// Runs them all at the same time; those that go on until they are told are told so after their time. Gives what each said
/// within `limit` beyond its own time.
pub fn run_every(
    before: &[String],
    which: &[&str],
    state: &Path,
    limit: Duration,
    guard: &Guard,
) -> Vec<Run> {
    let begun: Vec<_> = every_command(which, state)
        .into_iter()
        .map(|(name, words, own)| {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            (begin(&mut headcount(before, &words), &name, guard), own)
        })
        .chain(std::iter::once((begin_top(before, which, guard), Duration::from_secs(1))))
        .collect();
    begun
        .into_iter()
        .map(|(one, own)| {
            let told_to_end = one.name.starts_with("headcount run") || one.name.starts_with("headcount top");
            if told_to_end {
                std::thread::sleep(own.saturating_sub(one.begun.elapsed()));
                for pid in [one.pid()].into_iter().chain(process::descendants(one.pid())) {
                    process::send(pid, rustix::process::Signal::TERM);
                }
            }
            one.end(own + limit)
        })
        .collect()
}

/// `top` needs a terminal, which `script` gives it.
fn begin_top(before: &[String], which: &[&str], guard: &Guard) -> Begun {
    let top = headcount(&[], &[&["top"], which].concat());
    let mut words = vec![top.get_program().to_string_lossy().into_owned()];
    words.extend(top.get_args().map(|word| word.to_string_lossy().into_owned()));
    let mut all: Vec<String> = before.to_vec();
    all.extend(["script", "--quiet", "--command"].map(str::to_owned));
    all.extend([words.join(" "), "/dev/null".to_owned()]);
    let mut command = Command::new(&all[0]);
    command.args(&all[1..]).env_clear().env("TERM", "xterm").env("PATH", "/usr/bin:/bin");
    let begun = begin(&mut command, "headcount top", guard);
    // The program itself is its grandchild, once it is there.
    let found = wait::poll(Duration::from_secs(2), || {
        let all = process::descendants(begun.pid());
        let mut those = all.into_iter().filter(|&pid| process::title(pid).contains(&words[0]));
        those
            .find(|&pid| !process::title(pid).starts_with("script") && !process::title(pid).starts_with("sh"))
    });
    if let Some(pid) = found {
        guard.watch(pid, &begun.name);
    }
    begun
}
