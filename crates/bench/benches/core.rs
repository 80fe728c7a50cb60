//! The core on its own: a heartbeat, a snapshot, a transition, and ten thousand reloads.

use std::hint::black_box;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use headcount::{Begin, Cursor, Follower, Generation, Item, Join, Master, Node, Options, Wait};
use headcount_bench::{Sample, heading, in_turn, line};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use rustix::time::{ClockId, clock_gettime};

fn main() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder on tmpfs");
    let open = |name: &str| {
        let path = folder.path().join(name);
        Options::new("bench").path(path).open().expect("a node")
    };
    println!("headcount core, {} processors", std::thread::available_parallelism().map_or(0, usize::from));
    heartbeat(&open("heartbeat"));
    snapshot(&open("snapshot"));
    starting(&open("starting"));
    following(folder.path());
    let reloads = std::env::var("RELOADS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000);
    ten_thousand_reloads(&open("reloads"), reloads);
}

fn begin(master: &Master, workers: u32) -> Generation {
    let (generation, transitions) =
        master.begin(Begin::new().workers(workers), Wait::Timeout).expect("a generation");
    drop(transitions);
    generation
}

/// Runs `act` in a forked child, which ends with it.
fn child(act: impl FnOnce()) -> Pid {
    // SAFETY: this program has one thread, so the child's copy of it is whole.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            act();
            // Without running the parent's destructors a second time.
            // SAFETY: it ends the process and touches nothing.
            unsafe { libc::_exit(0) }
        }
    }
}

fn worker_that_stays(generation: &Generation, number: u32) -> Pid {
    child(|| {
        let (_worker, transitions) = generation.join(Join::worker(Some(number))).expect("join");
        drop(transitions);
        loop {
            std::thread::park();
        }
    })
}

fn end(pids: &[Pid]) {
    for pid in pids {
        kill(*pid, Signal::SIGKILL).expect("kill");
        waitpid(*pid, None).expect("wait");
    }
}

fn await_total(node: &Node, total: u32) {
    let begun = Instant::now();
    while node.snapshot().total != total {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", node.snapshot());
        std::thread::yield_now();
    }
}

fn heartbeat(master: &Master) {
    heading("heartbeat");
    let generation = begin(master, 1);
    let (worker, transitions) = generation.join(Join::worker(Some(0))).expect("join");
    drop(transitions);
    let word = AtomicU64::new(0);
    let floor = || {
        let t = clock_gettime(ClockId::Boottime);
        word.store(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64, Ordering::Relaxed);
    };
    let (beat, floor, ratio) = in_turn(101, 100_000, || worker.beat(), floor);
    black_box(word.load(Ordering::Relaxed));
    line(
        "Worker::beat",
        &format!("{beat:.1?}, clock read + store {floor:.1?}, ratio {ratio:.2}"),
        "ratio up to 2",
    );
    worker.leave(Wait::Timeout).expect("leave").run(|_| {});
}

fn snapshot(master: &Master) {
    heading("a snapshot, and a transition, beside other workers");
    for workers in [4, 64] {
        let generation = begin(master, workers);
        let pids: Vec<_> = (0..workers).map(|n| worker_that_stays(&generation, n)).collect();
        await_total(master.node(), workers);
        let taken: Vec<_> = (0..2_000)
            .map(|_| {
                let begun = Instant::now();
                black_box(master.node().snapshot());
                begun.elapsed()
            })
            .collect();
        line(&format!("{workers} workers"), &Sample::new(taken).to_string(), "64 workers: under 50 µs");
        let joined: Vec<_> = (0..200)
            .map(|_| {
                let begun = Instant::now();
                let (worker, transitions) = generation.join(Join::worker(None)).expect("join");
                drop(transitions);
                let took = begun.elapsed();
                drop(worker.leave(Wait::Timeout).expect("leave"));
                took
            })
            .collect();
        line(&format!("joining {workers} workers"), &Sample::new(joined).to_string(), "-");
        end(&pids);
    }
}

fn starting(master: &Master) {
    heading("64 workers start at once");
    let generation = begin(master, 64);
    let begun = Instant::now();
    let pids: Vec<_> = (0..64).map(|n| worker_that_stays(&generation, n)).collect();
    let forked = begun.elapsed();
    await_total(master.node(), 64);
    line(
        "fork 64 and have all of them joined",
        &format!("{:.1?}, of which forking {forked:.1?}", begun.elapsed()),
        "-",
    );
    end(&pids);
}

/// From the moment an event has its time to the moment a reader, which slept until then, has it in hand.
fn following(folder: &Path) {
    heading("an event of a quiet node, until a follower in another process has it");
    // The folder of a test is its user's alone.
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).expect("open the folder");
    for (reader, id) in [("root", None), ("uid 65534", Some(65534))] {
        if id.is_some() && !rustix::process::geteuid().is_root() {
            line(reader, "skipped: only root can become somebody else", "-");
            continue;
        }
        let path = folder.join(reader.replace(' ', "-"));
        // Its own process, as a server has.
        let writer = child(|| {
            let master = Options::new("bench").path(&path).open().expect("a node");
            let generation = begin(&master, 1);
            loop {
                std::thread::sleep(Duration::from_millis(2));
                let (worker, transitions) = generation.join(Join::worker(None)).expect("join");
                drop(transitions);
                std::thread::sleep(Duration::from_millis(2));
                drop(worker.leave(Wait::Timeout).expect("leave"));
            }
        });
        let (from, to) = rustix::pipe::pipe().expect("a pipe");
        let reader_pid = child(|| {
            if let Some(id) = id {
                // SAFETY: plain system calls of a process with one thread.
                assert_eq!(unsafe { libc::setresuid(id, id, id) }, 0);
            }
            let mut follower = Follower::new(&path, Cursor::at(1)).expect("follow");
            let mut seen = 0;
            while seen < 2_100 {
                let item = follower.next_within(None).expect("wait");
                let now = clock_gettime(ClockId::Boottime);
                let now = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
                let Some(Item::Events(events)) = item else { continue };
                for event in events {
                    seen += 1;
                    // The first ones were there before.
                    if seen > 100 {
                        let took = now.saturating_sub(event.boot_ns);
                        rustix::io::write(&to, &took.to_ne_bytes()).expect("tell");
                    }
                }
            }
        });
        drop(to);
        let mut bytes = Vec::new();
        std::fs::File::from(from).read_to_end(&mut bytes).expect("hear");
        waitpid(reader_pid, None).expect("wait");
        end(&[writer]);
        let took = bytes
            .chunks_exact(8)
            .map(|b| Duration::from_nanos(u64::from_ne_bytes(b.try_into().expect("eight bytes"))));
        line(reader, &Sample::new(took.collect()).to_string(), "p50 under 1 ms");
    }
}

/// What a reload leaves behind: nothing.
fn ten_thousand_reloads(master: &Master, reloads: usize) {
    heading(&format!("{reloads} reloads, 2 workers each"));
    let path = master.node().path().expect("a file").to_owned();
    let size = || std::fs::metadata(&path).expect("the registry").len();
    // Without the registry, whose journal fills up to its fixed size.
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
        let line = status.lines().find(|l| l.starts_with("RssAnon")).expect("RssAnon");
        line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).expect("a number")
    };
    let reload = || {
        let begun = Instant::now();
        let generation = begin(master, 2);
        let transition = begun.elapsed();
        master.commit(generation.id());
        let pids: Vec<_> = (0..2)
            .map(|n| {
                child(|| {
                    let (worker, transitions) = generation.join(Join::worker(Some(n))).expect("join");
                    drop(transitions);
                    worker.leave(Wait::Timeout).expect("leave").run(|_| {});
                })
            })
            .collect();
        for pid in pids {
            waitpid(pid, None).expect("wait");
        }
        transition
    };
    for _ in 0..100 {
        reload();
    }
    // Its memory is there before, so that it is not what grows.
    let mut all = vec![Duration::MAX; reloads];
    let (size_before, resident_before) = (size(), resident());
    for took in &mut all {
        *took = reload();
    }
    let tenth = (reloads / 10).max(1);
    let (first, last) = (Sample::new(all[..tenth].to_vec()), Sample::new(all[reloads - tenth..].to_vec()));
    let ratio = last.median().as_secs_f64() / first.median().as_secs_f64();
    line(
        "beginning a generation, first and last tenth",
        &format!("{:.1?} and {:.1?}, ratio {ratio:.2}", first.median(), last.median()),
        "no growth",
    );
    line("size of the registry", &format!("{size_before} and {} bytes", size()), "no growth");
    line("private memory of the master", &format!("{resident_before} and {} KiB", resident()), "no growth");
    let left = master.node().snapshot();
    line(
        "left in the table",
        &format!("{} generations, {} workers", left.generations.len(), left.total),
        "0 and 0",
    );
}
