//! What those who ask pay when there are thousands of hosts: the program as it is installed.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use headcount_bench::line;
use testkit::{http, process};

use super::super::{Host, Ours};

/// What a command has used until it ended.
pub struct Used {
    time: Duration,
    cpu: Duration,
    peak_kib: u64,
    pub bytes: usize,
}

impl std::fmt::Display for Used {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Used { time, cpu, peak_kib, bytes } = self;
        write!(
            f,
            "{time:.2?}, {cpu:.2?} of processor time, {} MiB of memory, prints {} KiB",
            peak_kib / 1024,
            bytes / 1024
        )
    }
}

/// Runs it to its end, which must be a success.
pub fn run(mut command: Command) -> Used {
    let begun = Instant::now();
    let mut ours = Ours::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let (pid, is_over) = (ours.pid(), AtomicBool::new(false));
    let mut out = ours.0.stdout.take().expect("it is piped");
    std::thread::scope(|threads| {
        let looking = threads.spawn(|| {
            let mut used = (Duration::ZERO, 0);
            while !is_over.load(Relaxed) {
                let cpu = process::stat(pid).map_or(Duration::ZERO, |stat| stat.cpu);
                used = (used.0.max(cpu), used.1.max(process::peak_kib(pid)));
                std::thread::sleep(Duration::from_millis(2));
            }
            used
        });
        let mut text = Vec::new();
        out.read_to_end(&mut text).expect("a pipe");
        let status = ours.0.wait().expect("our own child");
        let time = begun.elapsed();
        is_over.store(true, Relaxed);
        let (cpu, peak_kib) = looking.join().expect("no panic");
        let mut error = String::new();
        ours.0.stderr.take().expect("it is piped").read_to_string(&mut error).expect("a pipe");
        assert!(status.success(), "{command:?}: {error}");
        Used { time, cpu, peak_kib, bytes: text.len() }
    })
}

/// What can be asked at any time.
pub fn all(asking: &Host, agent: &Ours, hosts: usize) {
    let more = (hosts + 1).to_string();
    for arguments in [
        &["cluster", "status", "--json"][..],
        &["cluster", "status"],
        &["cluster", "wait", "--serving", "--hosts", &more],
        &["cluster", "reload", "--dry-run", "--max-unavailable", "1%"],
        &["cluster", "events", "-n", "20"],
    ] {
        line(&format!("`{}`", arguments.join(" ")), &run(asking.command(arguments)).to_string(), "");
    }
    for what in ["first", "then"] {
        let begun = Instant::now();
        let answer = http::get(&asking.folder.join("agent.sock"), "/cluster").expect("it answers");
        assert_eq!(answer.status, 200, "{}", answer.body);
        let (time, memory) = (begun.elapsed(), process::resident_kib(agent.pid()) / 1024);
        let text = format!("{time:.2?}, {} KiB; the agent has {memory} MiB", answer.body.len() / 1024);
        line(&format!("GET /cluster of an agent, {what}"), &text, "5 s");
    }
}
