//! A real nginx where something is used up, refused, or not as it was: whatever that is, the server starts, serves, reloads
//! and stops, and what headcount says is right or said to be unknown.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use testkit::guard::Guard;
use testkit::program::{self, headcount};
use testkit::wait::PATIENCE;
use testkit::{Integration, Kind, Nginx, Report, Room, Setup, Signal, permit, process};

/// A test of each integration.
macro_rules! both {
    ($($name:ident $native:ident = $body:path;)*) => {
        $(
            #[test]
            fn $name() {
                let _permit = permit();
                $body(Integration::Lua);
            }

            #[test]
            fn $native() {
                let _permit = permit();
                $body(Integration::Native);
            }
        )*
    };
}

both! {
    no_pidfds no_pidfds_with_the_module = without_pidfds;
    no_descriptors_left no_descriptors_left_with_the_module = without_descriptors;
    no_memory_for_a_registry no_memory_for_a_registry_with_the_module = without_memory;
    a_replacement_with_the_number_of_the_dead a_replacement_with_the_number_of_the_dead_with_the_module = used_again;
    numbers_that_begin_anew numbers_that_begin_anew_with_the_module = begun_anew;
    a_disk_that_is_full_from_the_start_on a_disk_that_is_full_from_the_start_on_with_the_module = full_disk;
    a_server_in_a_time_namespace a_server_in_a_time_namespace_with_the_module = elsewhere_in_time;
    a_reboot_after_a_longer_one a_reboot_after_a_longer_one_with_the_module = later_boot_is_younger;
    a_reboot_after_a_shorter_one a_reboot_after_a_shorter_one_with_the_module = later_boot_is_older;
}

fn room(kinds: &[&'static str], furnish: &str) -> Option<Room> {
    Room::new(kinds, furnish).map_err(|why| eprintln!("skipped: {why}")).ok()
}

/// What the program says of the server's node; `before` are words that go before it.
fn status(nginx: &Nginx, before: &[String]) -> Value {
    let registry = nginx.registry().display().to_string();
    let mut command = headcount(before, &["status", "--json", "--registry", &registry]);
    let run = program::begin(&mut command, "headcount status", &Guard::new()).end(PATIENCE);
    run.json().pointer("/nodes/0").cloned().unwrap_or_else(|| nginx.fail(&format!("no status: {run:?}")))
}

/// Waits till the program names exactly the kernel's workers, and all of them as serving.
fn is_right(nginx: &Nginx, before: &[String]) {
    nginx.wait_until("status to be the kernel's", || {
        let node = status(nginx, before);
        let all = node["processes"].as_array()?;
        let workers = all.iter().filter(|p| p["role"] == "worker");
        let mut known: Vec<_> = workers.clone().filter_map(|p| p["pid"].as_i64()).collect();
        let inner = |pid: i32| process::inner_pid(pid).map(i64::from);
        let mut truth: Vec<_> = nginx.workers().into_iter().filter_map(inner).collect();
        known.sort_unstable();
        truth.sort_unstable();
        let serving = workers.clone().all(|p| p["state"] == "serving");
        (known == truth && serving && node["total"].as_u64() == Some(known.len() as u64)).then_some(())
    });
}

/// Kills a worker and waits till its death is told, and its replacement has started; `starts` are there then.
fn kill_one(nginx: &Nginx, pid: i32, starts: usize) -> Report {
    let inner = process::inner_pid(pid).expect("it lives");
    let before = nginx.reports().of(Kind::WorkerDied).len();
    process::send(pid, Signal::KILL);
    nginx.wait_for("its replacement", PATIENCE, |all| all.at_least(starts, Kind::WorkerStarted, 1));
    nginx.wait_for("its death", PATIENCE, |all| {
        let deaths = all.of(Kind::WorkerDied);
        deaths.get(before).filter(|death| death.pid() == inner).map(|death| (*death).clone())
    })
}

/// Of two workers one is killed, and the server reloads and stops: all of that is told as ever.
fn whole_life(nginx: &Nginx) -> Report {
    nginx.ready(1);
    nginx.must_serve();
    kill_one(nginx, nginx.workers()[0], 3);
    is_right(nginx, &[]);
    nginx.reload_and_settle(2);
    nginx.wait_ended(1);
    nginx.must_serve();
    is_right(nginx, &[]);
    let mut ledger = nginx.end(Signal::TERM);
    ledger.one_with(Kind::GenerationStarted, 1, (None, Some(0), None));
    let death = ledger.one_with(Kind::WorkerDied, 1, (None, Some(1), None));
    let starts = ledger.series(Kind::WorkerStarted, 1, [1, 2, 2]);
    ledger.same("cause of the third start", starts[2].cause(), "respawn");
    ledger.reloaded(2, 2, 2);
    ledger.graceful_end(1, 2, true);
    ledger.fast_end(2, 2, false);
    ledger.nothing_else();
    death
}

/// A sandbox that knows no pidfds, from before the library is there: as Docker's of old, and as Linux before 5.3.
fn without_pidfds(i: Integration) {
    const REFUSE: &str = r"
        local ffi = require 'ffi'
        ffi.cdef [[
            typedef struct { uint16_t code; uint8_t jt, jf; uint32_t k; } limits_filter;
            typedef struct { uint16_t len; limits_filter *filter; } limits_program;
            int getpid(void);
            int prctl(int, unsigned long, unsigned long, unsigned long, unsigned long);
            long syscall(long, ...);
        ]]
        local steps = ffi.new('limits_filter[4]', {
            { 0x20, 0, 0, 0 }, { 0x15, 0, 1, 434 }, { 0x06, 0, 0, 0x00050000 + @ERRNO@ }, { 0x06, 0, 0, 0x7fff0000 },
        })
        local program = ffi.new('limits_program', { 4, steps })
        local address = tonumber(ffi.cast('uintptr_t', ffi.cast('void *', program)))
        assert(ffi.C.prctl(38, 1, 0, 0, 0) == 0 and ffi.C.prctl(22, 2, address, 0, 0) == 0)
        assert(ffi.C.syscall(434, ffi.cast('long', ffi.C.getpid()), ffi.cast('long', 0)) == -1)
    ";
    for errno in ["1", "38"] {
        let setup = Setup::new(i).workers(2).allow_kills().before_init(&REFUSE.replace("@ERRNO@", errno));
        let nginx = Nginx::start(setup);
        let death = whole_life(&nginx);
        let known = death.int("signal");
        assert!(known.is_none() || known == Some(9), "{death}");
        assert!(!nginx.log().contains("[headcount]: panic"), "{}", nginx.log());
    }
}

/// A worker uses up its descriptors once there is a file `spend`.
const SPENDTHRIFT: &str = r"
    local ffi = require 'ffi'
    pcall(ffi.cdef, 'int open(const char *, int); int access(const char *, int);')
    ngx.timer.at(0, function()
        while ffi.C.access('@FOLDER@/markers/spend', 0) ~= 0 do
            if ngx.worker.exiting() then return end
            ngx.sleep(0.05)
        end
        require('recorder').keep_reports_open()
        while ffi.C.open('/dev/null', 0) >= 0 do end
    end)
";

/// The workers, the sentinel among them, have used up their descriptors; who comes later has some.
fn without_descriptors(i: Integration) {
    const ALL: usize = 100;
    // What nginx says of that, whose master tells its workers by a socket of new ones.
    let setup = Setup::new(i).workers(3).allow_kills().allow("Too many open files").allow("recvmsg()");
    let setup = match i {
        Integration::Native => setup.http(&format!("init_worker_by_lua_block {{ {SPENDTHRIFT} }}")),
        _ => setup.after_init(&format!("kit.after_join = function() {SPENDTHRIFT} end")),
    };
    let nginx = Nginx::start_ready(setup.main(&format!("worker_rlimit_nofile {ALL};")));
    is_right(&nginx, &[]);
    let poor = nginx.workers();
    fs::write(nginx.at("markers/spend"), "").expect("our own folder");
    nginx.wait_until("all workers to be without descriptors", || {
        poor.iter().all(|&pid| process::open_descriptors(pid) >= ALL).then_some(())
    });
    fs::remove_file(nginx.at("markers/spend")).expect("our own file");
    kill_one(&nginx, poor[0], 4);
    // Of this one, nobody of the poor could open a pidfd.
    nginx.settled();
    let newest = nginx.workers().into_iter().find(|pid| !poor.contains(pid)).expect("the replacement");
    kill_one(&nginx, newest, 5);
    is_right(&nginx, &[]);
    nginx.reload();
    nginx.ready(2);
    // nginx cannot tell them any more: it does so by that socket.
    poor[1..].iter().for_each(|&pid| process::send(pid, Signal::QUIT));
    nginx.wait_ended(1);
    nginx.must_serve();
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.take(Kind::GenerationStarted, 1);
    let deaths = ledger.series(Kind::WorkerDied, 1, [2, 2]);
    ledger.distinct_pids(&deaths, 2);
    ledger.series(Kind::WorkerStarted, 1, [1, 2, 3, 3, 3]);
    ledger.reloaded(2, 3, 3);
    ledger.graceful_end(1, 3, true);
    ledger.graceful_end(2, 3, false);
    ledger.nothing_else();
}

/// The server may not have as much memory as its registry takes: neither as a file nor without one.
fn without_memory(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).workers(2));
    let enough = process::peak_of_addresses_kib(nginx.master()) + (12 << 10);
    nginx.end(Signal::TERM);
    // 20 MiB of slots and generations, of which none is used.
    let limit = format!("--as={}", enough << 10);
    let nginx =
        Nginx::start(Setup::new(i).workers(2).option("slots", "65536").started_by(&["prlimit", &limit]));
    nginx.must_serve();
    let shown = nginx.registry().display().to_string();
    nginx.wait_for_log("what is missing, where, and the fix", |line| {
        let parts = ["[error]", shown.as_str(), "Cannot allocate memory", "`slots` lower"];
        parts.iter().all(|part| line.contains(part))
    });
    nginx.reload();
    nginx.wait_until("another configuration to be loaded", || {
        nginx.log().contains("reconfiguring").then_some(())
    });
    nginx.settled();
    nginx.must_serve();
    process::send(nginx.master(), Signal::QUIT);
    nginx.gone();
}

const PID: [&str; 2] = ["--mount", "--pid"];

/// The numbers of processes have wrapped around: the replacement of a worker has the number that the worker had.
fn used_again(i: Integration) {
    const ROUNDS: usize = 4;
    let Some(room) = room(&PID, "") else { return };
    room.next_pid(700);
    let nginx = Nginx::start_ready(Setup::new(i).workers(2).allow_kills().inside(&room));
    let victim = nginx.workers()[1];
    let number = process::inner_pid(victim).expect("it lives");
    for round in 0..ROUNDS {
        let victim = process::outer_pid(room.pid(), number).expect("the replacement has its number");
        room.next_pid(number);
        kill_one(&nginx, victim, 3 + round);
        is_right(&nginx, &room.enter());
    }
    let mut ledger = nginx.end(Signal::TERM);
    ledger.take(Kind::GenerationStarted, 1);
    let deaths = ledger.series(Kind::WorkerDied, 1, [1; ROUNDS]);
    ledger.holds("the number", deaths.iter().all(|death| death.pid() == number));
    let starts = ledger.take(Kind::WorkerStarted, 1);
    let again = starts.iter().filter(|start| start.pid() == number).count();
    ledger.same("starts of processes of this number", &again, &(1 + ROUNDS));
    // Each death stands before the start of who has the number now.
    let order = |all: &[Report]| all.iter().filter_map(|r| r.int("seq")).collect::<Vec<_>>();
    let replacements = order(&starts)[2..].to_vec();
    ledger.holds("the order", order(&deaths).iter().zip(&replacements).all(|(death, start)| death < start));
    ledger.fast_end(1, 2, false);
    ledger.nothing_else();
}

/// The kernel begins anew with small numbers while the server starts: the youngest have the smallest.
fn begun_anew(i: Integration) {
    let Some(room) = room(&PID, "") else { return };
    let most = room.command("cat").arg("/proc/sys/kernel/pid_max").output().expect("cat").stdout;
    let most: i32 = String::from_utf8_lossy(&most).trim().parse().expect("a number");
    // Two for the server itself, which goes into the background, and then there are none.
    room.next_pid(most - 2);
    let nginx = Nginx::start_ready(Setup::new(i).workers(2).allow_kills().inside(&room));
    let inner = |pid: i32| process::inner_pid(pid).expect("it lives");
    let (master, workers) = (inner(nginx.master()), nginx.workers());
    assert!(master > most - 3 && workers.iter().any(|&pid| inner(pid) < 1_000), "by our own doing");
    kill_one(&nginx, workers[0], 3);
    is_right(&nginx, &room.enter());
    // Killed, and started again with younger numbers.
    nginx.kill_all();
    nginx.forget_reports();
    nginx.run();
    nginx.ready(2);
    is_right(&nginx, &room.enter());
    assert!(inner(nginx.master()) < master, "by our own doing");
    let mut ledger = nginx.end(Signal::QUIT);
    let start = ledger.one_with(Kind::GenerationStarted, 2, (None, Some(0), None));
    ledger.same("the run before", start.text("previous_run"), "unclean");
    ledger.same("workers of the run before", &start.int("previous_workers"), &Some(2));
    ledger.starts(2, 2, "start");
    ledger.graceful_end(2, 2, false);
}

/// The file system of the registry fills up as soon as the server has started, and stays full: over a death, a reload, an
/// upgrade, a stop, a start, and a reload after the registry was removed.
fn full_disk(i: Integration) {
    let Some(room) = room(&["--mount"], "true") else { return };
    let nginx = Nginx::prepare(Setup::new(i).workers(2).allow_kills().inside(&room));
    let run = nginx.at("run");
    let inside = |script: &str| {
        let done = room.command("sh").args(["-c", script]).output().expect("a shell");
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    inside(&format!("mount -t tmpfs -o size=256k,mode=755 tmpfs '{}'", run.display()));
    nginx.run();
    nginx.ready(1);
    inside(&format!("cat /dev/zero > '{}/ballast'", run.display()));
    let left = inside(&format!("df --output=avail '{}' | tail -1", run.display()));
    assert_eq!(left.trim(), "0", "it is full");
    let words = room.enter();
    kill_one(&nginx, nginx.workers()[0], 3);
    is_right(&nginx, &words);
    nginx.reload_and_settle(2);
    nginx.wait_ended(1);
    let (old, _) = nginx.upgrade();
    nginx.ready(3);
    process::send(old, Signal::QUIT);
    nginx.wait_gone(old);
    nginx.wait_ended(2);
    is_right(&nginx, &words);
    nginx.must_serve();
    let mut ledger = nginx.end(Signal::TERM);
    ledger.one_with(Kind::GenerationStarted, 1, (None, Some(0), None));
    ledger.one_with(Kind::WorkerDied, 1, (None, Some(1), None));
    ledger.series(Kind::WorkerStarted, 1, [1, 2, 2]);
    ledger.reloaded(2, 2, 2);
    ledger.graceful_end(1, 2, true);
    ledger.one_with(Kind::GenerationStarted, 3, (Some(2), Some(0), None));
    ledger.starts(3, 2, "upgrade");
    ledger.graceful_end(2, 2, true);
    ledger.fast_end(3, 2, false);
    ledger.nothing_else();
    // What a stopped server gives back is taken, too; what it needs is there again at its start, or it says so.
    inside(&format!("cat /dev/zero > '{}/more'", run.display()));
    nginx.forget_reports();
    nginx.run();
    nginx.must_serve();
    let shown = nginx.registry().display().to_string();
    nginx.wait_for_log("what is full, and the fix", |line| {
        let parts = ["[error]", shown.as_str(), "No space left", "free some room", "on memory of its own"];
        parts.iter().all(|part| line.contains(part))
    });
    nginx.ready(1);
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(2);
    ledger.graceful_end(1, 2, false);
    ledger.nothing_else();
}

/// A registry on a disk. One worker outlives the reboot, to be somebody else of the same number and even of the same birth.
fn rebooted(i: Integration, first: &[&'static str], second: &[&'static str]) {
    let boot = |id: u8| {
        format!(
            "mount -t tmpfs tmpfs /run; echo 0000000{id}-1111-2222-3333-444444444444 > /run/boot_id
             mount --bind /run/boot_id /proc/sys/kernel/random/boot_id"
        )
    };
    let (Some(first), Some(second)) = (room(first, &boot(1)), room(second, &boot(2))) else { return };
    let nginx = Nginx::start_ready(Setup::new(i).workers(2).allow_kills().inside(&first));
    // What was a crash loop then is none now.
    for starts in 3..6 {
        kill_one(&nginx, nginx.workers()[0], starts);
    }
    assert_eq!(status(&nginx, &first.enter())["recent"]["crash_loop"], true);
    let (master, workers) = (nginx.master(), nginx.workers());
    nginx.freeze(workers[1]);
    process::send(master, Signal::KILL);
    process::send(workers[0], Signal::KILL);
    nginx.wait_gone(master);
    nginx.wait_gone(workers[0]);
    let killed = std::time::SystemTime::now();
    // As long as it takes to tell the two moments apart.
    const APART: Duration = Duration::from_secs(2);
    std::thread::sleep(APART);
    nginx.forget_reports();
    nginx.change(|setup| setup.inside(&second));
    let words = second.enter();
    let node = status(&nginx, &words);
    assert_eq!((&node["nobody_is_alive"], &node["of_this_boot"]), (&true.into(), &false.into()), "{node:#}");
    nginx.run();
    nginx.ready(2);
    is_right(&nginx, &words);
    let node = status(&nginx, &words);
    assert_eq!(node["recent"]["crash_loop"], false, "{node:#}");
    assert_eq!(nginx.json("/status").pointer("/nodes/0/recent/crash_loop").unwrap_or(&false.into()), &false);
    let registry = nginx.registry().display().to_string();
    let mut command = headcount(&words, &["events", "--json", "--registry", &registry]);
    let run = program::begin(&mut command, "headcount events", &Guard::new()).end(PATIENCE);
    let events: Vec<Value> = run.out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let ends: Vec<_> =
        events.iter().filter(|e| e["kind"] == "worker_died" && e["cause"] == "unclean").collect();
    assert_eq!(ends.len(), 2, "{run:#?}");
    for end in ends {
        let killed = killed.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
        let at = end["time"].as_f64().unwrap_or(0.0);
        assert!(
            (killed - 5.0..killed + 1.0).contains(&at),
            "dated by its last sign of life: {killed} {end:#}"
        );
        assert!(end["signal"].is_null() && end["exit_code"].is_null(), "{end:#}");
        assert!(end["heartbeat_age"].is_null(), "of another clock: {end:#}");
    }
    assert!(process::is_alive(workers[1]), "the stranger was not harmed");
    process::send(workers[1], Signal::KILL);
    nginx.wait_gone(workers[1]);
    let mut ledger = nginx.end(Signal::QUIT);
    let start = ledger.one_with(Kind::GenerationStarted, 2, (None, Some(0), None));
    ledger.same("cause", start.cause(), "start");
    ledger.same("the run before", start.text("previous_run"), "unclean");
    ledger.same("workers of the run before", &start.int("previous_workers"), &Some(2));
    ledger.holds("its number goes on", start.int("seq") > Some(10));
    ledger.starts(2, 2, "start");
    ledger.graceful_end(2, 2, false);
}

const LATE: [&str; 3] = ["--mount", "--time", "--boottime=8640000"];

/// In there, all is as ever; and who looks from outside, where it is another time, does not call anybody dead.
fn elsewhere_in_time(i: Integration) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's version");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u32>().ok());
    if (numbers.next(), numbers.next()) < (Some(6), Some(9)) {
        return eprintln!(
            "skipped: before Linux 6.9 a process is told by its start, which depends on who asks"
        );
    }
    let Some(room) = room(&LATE, "true") else { return };
    let nginx = Nginx::start_ready(Setup::new(i).workers(2).allow_kills().inside(&room));
    let node = status(&nginx, &[]);
    let all = node["processes"].as_array().cloned().unwrap_or_default();
    assert_eq!((all.len(), &node["total"]), (3, &2.into()), "{node:#}");
    assert!(all.iter().all(|p| p["liveness"] == "alive"), "{node:#}");
    let node = status(&nginx, &room.enter());
    let ages = node["processes"].as_array().into_iter().flatten().filter_map(|p| p["age"].as_f64());
    assert!(ages.clone().count() == 3 && ages.into_iter().all(|age| age < 60.0), "{node:#}");
    whole_life(&nginx);
}

fn later_boot_is_younger(i: Integration) {
    rebooted(i, &LATE, &["--mount"]);
}

fn later_boot_is_older(i: Integration) {
    rebooted(i, &["--mount"], &LATE);
}

/// No inotify instance is left: whoever follows a node looks from time to time instead, and misses nothing.
#[test]
fn no_inotify_instances_left() {
    let _permit = permit();
    let nginx = Nginx::start_ready(Setup::new(Integration::Lua).workers(2).allow_kills());
    let (registry, out) = (nginx.registry().display().to_string(), nginx.at("markers/followed"));
    let script =
        format!("echo 0 > /proc/sys/user/max_inotify_instances && exec \"$@\" > '{}'", out.display());
    let before = ["unshare", "--user", "--map-root-user", "sh", "-c", &script, "sh"].map(str::to_owned);
    let mut command = headcount(&before, &["events", "--follow", "--json", "--registry", &registry]);
    let follower = program::begin(&mut command, "headcount events --follow", &Guard::new());
    let told = || fs::read_to_string(&out).unwrap_or_default();
    let begun = nginx.wait_until("it to follow, or to be refused", || {
        let refused = !process::is_alive(follower.pid());
        (refused || told().contains("worker_started")).then_some(!refused)
    });
    if !begun {
        eprintln!("skipped: {}", follower.end(PATIENCE).err);
        return;
    }
    let links = fs::read_dir(format!("/proc/{}/fd", follower.pid())).expect("it lives").flatten();
    let links: Vec<_> = links.filter_map(|fd| fs::read_link(fd.path()).ok()).collect();
    assert!(!links.iter().any(|link| link.to_string_lossy().contains("inotify")), "{links:?}");
    kill_one(&nginx, nginx.workers()[0], 3);
    nginx.wait_until("the death to be followed", || told().contains("\"worker_died\"").then_some(()));
    nginx.reload_and_settle(2);
    nginx.wait_until("all to be followed", || told().contains("\"generation_ended\"").then_some(()));
    process::send(follower.pid(), Signal::TERM);
    let run = follower.end(PATIENCE);
    assert!(!run.overdue, "{run:?}");
    nginx.end(Signal::QUIT);
    let seqs: Vec<u64> =
        told().lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()?["seq"].as_u64()).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "each once, in order");
}
