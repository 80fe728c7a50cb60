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
    singletons(&open("singletons"), folder.path());
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

/// Looking whether one leads, and locks that have a name.
fn singletons(master: &Master, folder: &Path) {
    heading("roles and named locks");
    let generation = begin(master, 9);
    let (worker, transitions) = generation.join(Join::worker(Some(0))).expect("join");
    drop(transitions);
    // Serving is who has beaten since it joined.
    std::thread::sleep(Duration::from_millis(1));
    worker.beat();
    let leader = worker.leader("bench").expect("stand");
    let begun = Instant::now();
    while !leader.is_leader() {
        leader.poll();
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", master.node().snapshot().singletons);
    }
    let word = AtomicU64::new(1);
    let (leads, floor, ratio) = in_turn(
        101,
        1_000_000,
        || {
            black_box(leader.is_leader());
        },
        || {
            black_box(word.load(Ordering::Acquire));
        },
    );
    line("Leader::is_leader", &format!("{leads:.1?}, a load {floor:.1?}, ratio {ratio:.1}"), "under 5 ns");
    let lock = worker.lock("bench").expect("a lock");
    let mutex = std::sync::Mutex::new(());
    let (held, floor, ratio) = in_turn(
        101,
        100_000,
        || drop(lock.acquire(Wait::Try).expect("nobody else has it")),
        || drop(mutex.lock()),
    );
    line("lock, nobody waits", &format!("{held:.1?}, a mutex {floor:.1?}, ratio {ratio:.1}"), "under 300 ns");
    contended(&generation, folder);
    drop(leader);
    worker.leave(Wait::Timeout).expect("leave").run(|_| {});
}

fn processor_time_of_children() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: it fills `usage`, and cannot fail with these arguments.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time =
        |t: libc::timeval| Duration::from_secs(t.tv_sec as u64) + Duration::from_micros(t.tv_usec as u64);
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Eight processes want one lock: how long it is between a release and the next holder, and what waiting costs.
fn contended(generation: &Generation, folder: &Path) {
    const ROUNDS: usize = 500;
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(folder.join("released"));
    let file = file.expect("a file");
    file.set_len(4096).expect("its size");
    let (protection, shared) =
        (rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE, rustix::mm::MapFlags::SHARED);
    // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
    let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), 4096, protection, shared, &file, 0) };
    // SAFETY: page-aligned, never unmapped, and used as an atomic only.
    let released = unsafe { &*start.expect("a page").cast::<AtomicU64>() };
    let now = || {
        let t = clock_gettime(ClockId::Boottime);
        t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
    };
    let pids: Vec<_> = (1..=8)
        .map(|number| {
            child(|| {
                let (worker, transitions) = generation.join(Join::worker(Some(number))).expect("join");
                drop(transitions);
                let lock = worker.lock("contended").expect("a lock");
                let mut took = Vec::with_capacity(ROUNDS);
                for _ in 0..ROUNDS {
                    let guard = lock.acquire(Wait::For(Duration::from_secs(20))).expect("the lock");
                    let last = released.swap(0, Ordering::AcqRel);
                    if last != 0 {
                        took.push(now().saturating_sub(last).to_string());
                    }
                    // As long as something short takes.
                    std::thread::sleep(Duration::from_micros(200));
                    released.store(now(), Ordering::Release);
                    drop(guard);
                }
                std::fs::write(folder.join(format!("took-{number}")), took.join("\n")).expect("write");
                drop(worker.leave(Wait::Timeout).expect("leave"));
            })
        })
        .collect();
    let (begun, before) = (Instant::now(), processor_time_of_children());
    for pid in pids {
        waitpid(pid, None).expect("wait");
    }
    let (wall, worked) = (begun.elapsed(), processor_time_of_children() - before);
    let took: Vec<_> = (1..=8)
        .flat_map(|number| {
            let text = std::fs::read_to_string(folder.join(format!("took-{number}"))).expect("what it took");
            text.lines().map(|ns| Duration::from_nanos(ns.parse().expect("a number"))).collect::<Vec<_>>()
        })
        .collect();
    line("handover among 8", &Sample::new(took).to_string(), "p50 under 100 µs");
    line(
        "8 × 500 tenures of 0.2 ms",
        &format!("{wall:.2?}, of which {worked:.2?} of a processor"),
        "waiters cost nothing",
    );
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
