//! headcount inside a real nginx: how soon a death is reported, what a start costs, and that a request pays
//! nothing. Each figure stands beside one of the same run.
//!
//! `ORIGINAL` names a checkout of lua-resty-worker-manager to compare the heartbeats with.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use headcount_bench::{Sample, heading, line};
use rustix::time::{ClockId, clock_gettime};
use testkit::{Integration, Kind, Nginx, Report, Setup, Signal, Who, process};

fn main() {
    println!(
        "headcount in nginx, {} processors",
        std::thread::available_parallelism().map_or(0, usize::from)
    );
    let only = std::env::var("ONLY").unwrap_or_default();
    let parts: [(&str, fn()); 9] = [
        ("heartbeat", heartbeats),
        ("idle", deaths_idle),
        ("load", deaths_under_load),
        ("start", start_of_64),
        ("request", request_path),
        ("module-idle", module_deaths_idle),
        ("module-load", module_deaths_under_load),
        ("module-request", module_request_path),
        ("reload", reloads),
    ];
    for (name, part) in parts {
        if only.is_empty() || only.split(',').any(|o| o == name) {
            part();
        }
    }
}

fn now() -> Duration {
    let t = clock_gettime(ClockId::Boottime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

fn at(report: &Report) -> Duration {
    Duration::from_nanos(report.at)
}

/// Kills one worker after the other; gives the time from each SIGKILL to its callback in Lua.
fn kills(nginx: &Nginx, kills: usize) -> Sample {
    let mut delays = Vec::new();
    for n in 0..kills {
        // As reported, not as listed: a process that was just forked is not a worker yet.
        let there = nginx.wait_for("four workers", Duration::from_secs(10), |all| {
            let died: Vec<i32> = all.of(Kind::WorkerDied).into_iter().map(Report::pid).collect();
            let started = all.of(Kind::WorkerStarted).into_iter().map(Report::pid);
            let there: Vec<i32> = started.filter(|pid| !died.contains(pid)).collect();
            (there.len() == 4).then_some(there)
        });
        // Another one each time, the sentinel as often as any other.
        let victim = there[n % 4];
        let begun = now();
        process::send(victim, Signal::KILL);
        let seen = nginx.wait_for("the death's report", Duration::from_secs(10), |all| {
            all.of(Kind::WorkerDied).into_iter().find(|r| r.pid() == victim).map(at)
        });
        delays.push(seen.saturating_sub(begun));
    }
    Sample::new(delays)
}

fn deaths_idle() {
    heading("SIGKILL to on_worker_died in Lua, 4 workers, idle");
    let nginx = Nginx::start_ready(Setup::new(Integration::Lua).allow_kills());
    line("", &kills(&nginx, 200).to_string(), "p50 under 1 ms, p99 under 5 ms");
}

/// The same with the module: the time from each SIGKILL to the record in the journal.
fn kills_in_journal(nginx: &Nginx, kills: usize) -> Sample {
    let observer = headcount::Observer::open(&nginx.registry()).expect("the server's registry");
    let mut cursor = headcount::Cursor::oldest();
    let mut delays = Vec::new();
    for n in 0..kills {
        let there = nginx.wait_until("four workers that serve", || {
            let mut serving: Vec<u32> = observer
                .snapshot()
                .ok()?
                .processes
                .into_iter()
                .filter(|p| p.role == headcount::Role::Worker && p.state == headcount::State::Serving)
                .map(|p| p.pid)
                .collect();
            serving.sort_unstable();
            (serving.len() == 4).then_some(serving)
        });
        let victim = there[n % 4];
        let begun = now();
        process::send(victim as i32, Signal::KILL);
        // The record says when. Reading copies the registry, and would take a processor away from those who report.
        std::thread::sleep(Duration::from_millis(10));
        let recorded = nginx.wait_until("the death's record", || {
            let batch = observer.events(&mut cursor, 1000).ok()?;
            let died = |e: &&headcount::Event| e.kind == headcount::Kind::WorkerDied && e.pid == victim;
            batch.events.iter().find(died).map(|e| Duration::from_nanos(e.boot_ns))
        });
        delays.push(recorded.saturating_sub(begun));
    }
    Sample::new(delays)
}

fn module_deaths_idle() {
    heading("the module: SIGKILL to the record in the journal, 4 workers, idle");
    let nginx = Nginx::start_ready(Setup::new(Integration::Native).without_lua().allow_kills());
    line("", &kills_in_journal(&nginx, 200).to_string(), "p50 under 0.5 ms, p99 under 2 ms");
    drop(nginx);
    let nginx = Nginx::start(Setup::new(Integration::Native).without_lua().who(Who::Nobody).allow_kills());
    line("the kernel's part of it: until the master has asked", &reapings(&nginx, 200).to_string(), "-");
}

/// From SIGKILL to the moment when its pidfd hangs up: nginx's master has asked how its worker ended, so that anybody else
/// can know. No headcount in this server.
fn reapings(nginx: &Nginx, kills: usize) -> Sample {
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let mut delays = Vec::new();
    for n in 0..kills {
        let there = nginx.wait_until("four workers", || {
            let mut there = nginx.workers();
            there.sort_unstable();
            (there.len() == 4).then_some(there)
        });
        // Not before it has settled in its event loop, as in a server at rest.
        std::thread::sleep(Duration::from_millis(10));
        let victim = there[n % 4];
        let pidfd = Pid::from_raw(victim).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let pidfd = pidfd.expect("a worker that lives");
        let begun = now();
        process::send(victim, Signal::KILL);
        let mut fds = [PollFd::new(&pidfd, PollFlags::empty())];
        // Only the hang-up ends it; a signal would only cut one measurement short.
        while poll(&mut fds, None).is_err() {}
        delays.push(now().saturating_sub(begun));
    }
    Sample::new(delays)
}

fn module_deaths_under_load() {
    heading("the module: SIGKILL to the record in the journal, 4 workers, under wrk");
    let port = free_port();
    let setup = Setup::new(Integration::Native).without_lua().allow_kills();
    let nginx = Nginx::start_ready(setup.listen(&format!("127.0.0.1:{port}")));
    let load = Load::start(port, 20);
    std::thread::sleep(Duration::from_millis(500));
    let sample = kills_in_journal(&nginx, 100);
    line(&format!("{:.0} requests/s", load.requests_per_second()), &sample.to_string(), "p99 under 60 ms");
}

/// Load that stops by itself.
struct Load(Child);

impl Load {
    fn start(port: u16, seconds: u32) -> Load {
        let wrk = Command::new("wrk")
            .args(["-t1", "-c32", &format!("-d{seconds}s"), &format!("http://127.0.0.1:{port}/ping")])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("wrk, which scripts/setup installs");
        Load(wrk)
    }

    fn requests_per_second(self) -> f64 {
        let output = self.0.wait_with_output().expect("wrk");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let found = text.lines().find_map(|l| l.strip_prefix("Requests/sec:"));
        found.and_then(|n| n.trim().parse().ok()).unwrap_or_else(|| panic!("wrk said: {text}"))
    }
}

fn deaths_under_load() {
    heading("SIGKILL to on_worker_died in Lua, 4 workers, under wrk");
    let port = free_port();
    let setup = Setup::new(Integration::Lua).allow_kills().listen(&format!("127.0.0.1:{port}"));
    let nginx = Nginx::start_ready(setup);
    let load = Load::start(port, 20);
    std::thread::sleep(Duration::from_millis(500));
    let sample = kills(&nginx, 100);
    line(&format!("{:.0} requests/s", load.requests_per_second()), &sample.to_string(), "p99 under 50 ms");
}

/// From the command to the moment when the last of the workers has run its init_worker.
/// So many that a neighbour on the machine does not decide.
const START_PAIRS: usize = 31;

fn start_of_64() {
    heading("nginx with 64 workers: from its start to the last worker's init_worker");
    // Where a registry lies by default: in memory. The servers' folders may be on a disk.
    let memory = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let registry = memory.path().join("registry");
    let note = r#"init_worker_by_lua_block { require("recorder").note("there") }"#;
    let init = |with: bool| {
        let begin = if with {
            format!("require('resty.headcount').init{{ path = '{}' }}", registry.display())
        } else {
            String::new()
        };
        let join = if with { "require('resty.headcount').init_worker()" } else { "" };
        format!(
            r#"init_by_lua_block {{ require("recorder").folder = "@FOLDER@" {begin} }}
            {}"#,
            note.replace("require(\"recorder\").note", &format!("{join} require(\"recorder\").note"))
        )
    };
    let once = |with: bool| {
        let nginx = Nginx::prepare(Setup::new(Integration::Lua).workers(64).who(Who::Own(init(with))));
        let begun = now();
        nginx.launch();
        // Looking all the time would take one of the two processors away from those who start.
        nginx.wait_until("64 lines of workers", || {
            std::thread::sleep(Duration::from_millis(30));
            let reports = std::fs::read(nginx.at("reports.jsonl")).unwrap_or_default();
            (reports.iter().filter(|&&b| b == b'\n').count() >= 64).then_some(())
        });
        nginx.wait_for("64 workers", Duration::from_secs(30), |all| {
            let notes = all.notes("there");
            (notes.len() == 64).then(|| notes.into_iter().map(at).max()).flatten()
        }) - begun
    };
    once(false);
    let (mut without, mut with, mut added) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..START_PAIRS {
        let plain = once(false);
        let ours = once(true);
        added.push(ours.as_secs_f64() - plain.as_secs_f64());
        without.push(plain);
        with.push(ours);
    }
    added.sort_by(f64::total_cmp);
    let (without, with) = (Sample::new(without).median(), Sample::new(with).median());
    line(
        &format!("median of {START_PAIRS} pairs"),
        &format!("{without:.1?} without, {with:.1?} with; added {:.1} ms", added[added.len() / 2] * 1e3),
        "under 20 ms added",
    );
}

fn request_path() {
    heading("requests per second, nginx without and with headcount, in turn");
    let start = |who: Who| {
        let port = free_port();
        let setup = Setup::new(Integration::Lua).workers(1).who(who).listen(&format!("127.0.0.1:{port}"));
        (Nginx::start(setup), port)
    };
    let (_plain, plain) = start(Who::Nobody);
    let (_ours, ours) = start(Who::Native);
    compare(plain, ours);
}

fn module_request_path() {
    heading("requests per second, nginx without and with the module, in turn");
    let start = |who: Who| {
        let port = free_port();
        let setup = Setup::new(Integration::Native).without_lua().workers(1).who(who);
        (Nginx::start(setup.listen(&format!("127.0.0.1:{port}"))), port)
    };
    let (_plain, plain) = start(Who::Nobody);
    let (_ours, ours) = start(Who::Native);
    compare(plain, ours);
}

/// Pairs of measurements, so that what else the machine does falls on both alike.
fn compare(plain: u16, ours: u16) {
    let measure = |port| Load::start(port, 2).requests_per_second();
    measure(plain);
    measure(ours);
    let mut ratios = Vec::new();
    for round in 0..12 {
        let (without, with) = if round % 2 == 0 {
            let a = measure(plain);
            (a, measure(ours))
        } else {
            let b = measure(ours);
            (measure(plain), b)
        };
        ratios.push(with / without);
    }
    ratios.sort_by(f64::total_cmp);
    let [low, middle, high] = [ratios[0], (ratios[5] + ratios[6]) / 2.0, ratios[11]];
    line(
        "with / without, 12 pairs",
        &format!("median {middle:.3}, from {low:.3} to {high:.3}"),
        "1, within the noise",
    );
}

fn reloads() {
    let count = std::env::var("NGINX_RELOADS").ok().and_then(|n| n.parse().ok()).unwrap_or(50u64);
    heading(&format!("{count} reloads of a real nginx (NGINX_RELOADS), 2 workers"));
    let nginx = Nginx::start_ready(Setup::new(Integration::Lua).workers(2));
    let size = || std::fs::metadata(nginx.registry()).map_or(0, |m| m.len());
    let master = nginx.master();
    let (mut took, mut memory) = (Vec::new(), Vec::new());
    let (size_before, descriptors, maps) =
        (size(), process::open_descriptors(master), process::mappings(master));
    for generation in 2..=count + 1 {
        let begun = Instant::now();
        nginx.reload_and_settle(generation);
        took.push(begun.elapsed());
        memory.push(process::resident_kib(master));
        // The file of reports would be what grows.
        nginx.forget_reports();
    }
    let tenth = (took.len() / 10).max(1);
    let (first, last) =
        (Sample::new(took[..tenth].to_vec()), Sample::new(took[took.len() - tenth..].to_vec()));
    line(
        "a reload, first and last tenth",
        &format!("{:.1?} and {:.1?}", first.median(), last.median()),
        "no growth",
    );
    line("size of the registry", &format!("{size_before} and {} bytes", size()), "no growth");
    line(
        "memory of the master, after the first tenth and now",
        &format!("{} and {} KiB", memory[tenth - 1], memory[memory.len() - 1]),
        "no growth",
    );
    line(
        "descriptors and mappings of the master",
        &format!(
            "{descriptors} and {maps}, now {} and {}",
            process::open_descriptors(master),
            process::mappings(master)
        ),
        "no growth",
    );
}

/// The original library's heartbeat and ours, by the same Lua, in the same worker.
fn heartbeats() {
    heading("heartbeat in Lua, µs a call, beside the original library's");
    let Some(original) = std::env::var("HEADCOUNT_ORIGINAL").ok().filter(|o| !o.is_empty()) else {
        println!(
            "  no checkout of lua-resty-worker-manager was given (make bench ORIGINAL=folder): not compared"
        );
        return;
    };
    let module = Path::new(&original).join("lib/resty/worker/manager.lua");
    assert!(
        module.exists(),
        "{} is not there: ORIGINAL names a checkout of the original library",
        module.display()
    );
    for workers in [4, 16, 64, 256] {
        let conf = HEARTBEAT_CONF.replace("@ORIGINAL@", &module.display().to_string());
        let setup =
            Setup::new(Integration::Lua).workers(workers).who(Who::Own(conf)).allow("failed its heartbeat");
        let nginx = Nginx::start(setup);
        nginx.wait_for("all workers", Duration::from_secs(60), |all| {
            (all.notes("there").len() == workers as usize).then_some(())
        });
        let answer = testkit::http::get(&nginx.at("bench.sock"), "/").expect("an answer").body;
        let figures: Vec<f64> = answer.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let [theirs, ours] = figures[..] else { panic!("the worker said {answer:?}") };
        line(
            &format!("{workers} workers"),
            &format!("original {theirs:.3}, headcount {ours:.4}, ratio {:.0}", theirs / ours),
            "at least 100 at 4, ours the same for each",
        );
    }
}

/// The original's timer function is not exported: it is caught as it is handed to `ngx.timer.at`, and then
/// called as its timer would.
const HEARTBEAT_CONF: &str = r#"
    lua_shared_dict my_shm 5m;
    init_by_lua_block {
        require("recorder").folder = "@FOLDER@"
        require("resty.headcount").init{ path = "@FOLDER@/run/registry" }
        original = assert(loadfile("@ORIGINAL@"))()
        original.on_init_by_lua({ shm = "my_shm", interval = 3600, failed = 3600 })
    }
    init_worker_by_lua_block {
        require("resty.headcount").init_worker()
        local at = ngx.timer.at
        ngx.timer.at = function(delay, callback) original_beat = callback return true end
        original.on_init_worker_by_lua()
        ngx.timer.at = at
        require("recorder").note("there")
    }
    server {
        listen unix:@FOLDER@/bench.sock;
        location / {
            content_by_lua_block {
                local ffi = require "ffi"
                pcall(ffi.cdef, "typedef struct { long sec; long nsec; } testkit_timespec; int clock_gettime(int clock, testkit_timespec *out);")
                local ts = ffi.new("testkit_timespec")
                local function seconds()
                    ffi.C.clock_gettime(1, ts)
                    return tonumber(ts.sec) + tonumber(ts.nsec) / 1e9
                end
                local function microseconds(calls, f, argument)
                    for i = 1, calls / 10 do f(argument) end
                    local begun = seconds()
                    for i = 1, calls do f(argument) end
                    return (seconds() - begun) / calls * 1e6
                end
                local at = ngx.timer.at
                ngx.timer.at = function() return true end
                local theirs = microseconds(2000, original_beat, false)
                ngx.timer.at = at
                local ours = microseconds(2000000, require("resty.headcount").beat)
                ngx.say(theirs, " ", ours)
            }
        }
    }
"#;
