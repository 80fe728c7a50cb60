//! Row 30: registries that are none, or that cannot be had. The server serves all the same.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::wait::PATIENCE;
use crate::{Integration, Kind, Nginx, Setup, Signal, process};

/// Offset of the format's version in a registry: docs/format.md.
const FORMAT_AT: u64 = 8;

fn setup(i: Integration) -> Setup {
    Setup::new(i).workers(2)
}

/// The server starts, serves and stops; the log names the file and the fix; and since the node runs on
/// memory of its own then, every report of a whole life comes as ever.
fn lives_without_it(nginx: &Nginx, path: &Path) {
    nginx.run();
    nginx.must_serve();
    let shown = path.display().to_string();
    let line = nginx.wait_for_log(&format!("a complaint that names {shown}"), |line| {
        line.contains(&shown) && line.contains("[error]")
    });
    let fixes = ["remove", "make ", "set another", "free ", "run the master", "stop the", "mount"];
    assert!(fixes.iter().any(|fix| line.contains(fix)), "no fix is named: {line}");
    whole_life(nginx);
}

fn whole_life(nginx: &Nginx) {
    nginx.ready(1);
    nginx.reload_and_settle(2);
    nginx.wait_ended(1);
    nginx.must_serve();
    let mut ledger = nginx.end(Signal::TERM);
    ledger.cold_start(2);
    ledger.reloaded(2, 2, 2);
    ledger.graceful_end(1, 2, true);
    ledger.fast_end(2, 2, false);
    ledger.nothing_else();
}

/// A registry as a stopped server leaves it, and a server that has not been started yet.
fn used(i: Integration) -> Nginx {
    let nginx = Nginx::start_ready(setup(i));
    nginx.end(Signal::TERM);
    nginx.forget_reports();
    nginx
}

/// What the server has not got is said where its operator looks: by `-t` if that can know it, which makes nothing, at the
/// start, also on the terminal, and at each reload; all of it at the level that nginx shows if it is told nothing else.
pub fn said_where_people_look(i: Integration) {
    let nginx = Nginx::prepare(setup(i));
    fs::write(nginx.registry(), "somebody's notes\n").expect("our own folder");
    let is_it = |line: &&str| line.contains("[error]") && line.contains("on memory of its own");
    let test = nginx.ask(&["-t"]);
    let said = String::from_utf8_lossy(&test.stderr).into_owned();
    assert!(test.status.success(), "{said}");
    // Lua's init does not run in a test.
    assert!(i == Integration::Lua || said.lines().any(|line| is_it(&line)), "{said}");
    assert_eq!(fs::read_dir(nginx.at("run")).expect("our folder").count(), 1, "a test makes nothing");
    nginx.run();
    let lines = |n: usize| {
        nginx.wait_until(&format!("the line, {n} times"), || {
            let log = fs::read_to_string(nginx.at("error.log")).unwrap_or_default();
            let told = |line: &&str| is_it(line) && !line.contains("would run");
            (log.lines().filter(told).count() == n).then_some(())
        });
    };
    lines(1);
    let told = |line: &&str| line.contains("on memory of its own") && !line.contains("would run");
    assert!(nginx.log().lines().filter(told).count() > 1, "the terminal was not told:\n{}", nginx.log());
    nginx.ready(1);
    for n in 2..4 {
        nginx.reload_and_settle(n);
        lines(n as usize);
    }
    nginx.end(Signal::QUIT);
}

/// Two names on one path: a test refuses the second while the first lives, a reload keeps the first, and says so.
pub fn two_names_on_one_path(i: Integration) {
    let nginx = Nginx::start_ready(setup(i).option("node", "\"first\""));
    nginx.change(|setup| setup.option("node", "\"second\""));
    let test = |fine: bool| {
        let test = nginx.ask(&["-t"]);
        let said = String::from_utf8_lossy(&test.stderr).into_owned();
        assert_eq!(test.status.success(), fine || i == Integration::Lua, "{said}");
        assert!(fine || i == Integration::Lua || said.contains("is the registry of node first"), "{said}");
    };
    test(false);
    nginx.reload_and_settle(2);
    let line = nginx.wait_for_log("whose it is", |line| line.contains("is the registry of node first"));
    assert!(line.contains("[error]") && line.contains("cannot be that of node second"), "{line}");
    nginx.end(Signal::QUIT);
    test(true);
}

/// A registry that is not there is made, and its folder too.
pub fn missing(i: Integration) {
    let nginx = Nginx::prepare(setup(i).option("path", "\"@FOLDER@/run/made/registry\""));
    nginx.run();
    whole_life(&nginx);
    let file = fs::metadata(nginx.at("run/made/registry")).expect("it was made");
    assert_eq!(file.mode() & 0o7777, 0o644, "readable by all, written by its owner");
    assert!(file.len() <= 1 << 20, "under 1 MiB: {}", file.len());
}

/// A folder that is not there and cannot be made.
pub fn folder_that_cannot_be_made(i: Integration) {
    let path = "/proc/headcount-testkit/registry";
    let nginx = Nginx::prepare(setup(i).option("path", &format!("\"{path}\"")));
    lives_without_it(&nginx, Path::new("/proc/headcount-testkit"));
}

/// Cut short: within the first page it is no registry any more and nobody's to touch; behind it the node
/// may make it anew.
pub fn truncated(i: Integration) {
    for size in [0, 100, 5000] {
        let nginx = used(i);
        File::options()
            .write(true)
            .open(nginx.registry())
            .and_then(|file| file.set_len(size))
            .expect("our own file");
        lives_without_it(&nginx, &nginx.registry());
        let now = fs::metadata(nginx.registry()).expect("it is still there").len();
        assert!(size == 5000 || now == size, "a file that is no registry is left alone, {size} bytes: {now}");
    }
}

/// Something else altogether.
pub fn no_registry(i: Integration) {
    let nginx = Nginx::prepare(setup(i));
    let text = "somebody's notes\n".repeat(1000);
    fs::write(nginx.registry(), &text).expect("our own folder");
    lives_without_it(&nginx, &nginx.registry());
    assert_eq!(fs::read_to_string(nginx.registry()).ok(), Some(text), "somebody's file");
}

/// A sound first page, and garbage behind it: the node may fix or refuse it, and must come to no harm.
pub fn corrupt(i: Integration) {
    for byte in [0xff_u8, 0xa5, 0x01] {
        let nginx = used(i);
        overwrite(&nginx.registry(), 4096, byte);
        nginx.run();
        nginx.must_serve();
        nginx.settled();
        nginx.reload();
        nginx.wait_until("another configuration to be loaded", || {
            nginx.log().contains("reconfiguring").then_some(())
        });
        nginx.wait_until("the workers", || (nginx.workers().len() == 2).then_some(()));
        nginx.must_serve();
        // What was reported may be wrong; that everybody lives and leaves is what counts. A crash would be
        // an alert in the log.
        process::send(nginx.master(), Signal::QUIT);
        nginx.gone();
        assert!(nginx.bad_lines().is_empty(), "{:?}", nginx.bad_lines());
    }
}

/// A worker that means harm writes garbage into the registry of a running node.
pub fn corrupt_while_running(i: Integration) {
    for (from, byte) in [(0, 0xff_u8), (0, 0x00), (4096, 0xff), (4096, 0x5a), (128, 0x01)] {
        let nginx = Nginx::start_ready(setup(i).allow_kills());
        overwrite(&nginx.registry(), from, byte);
        let victim = nginx.workers()[0];
        process::send(victim, Signal::KILL);
        nginx.wait_until("a respawned worker", || {
            let now = nginx.workers();
            (now.len() == 2 && !now.contains(&victim)).then_some(())
        });
        let old = nginx.workers();
        nginx.reload();
        nginx.wait_until("the new workers", || {
            let now = nginx.workers();
            (now.len() == 2 && !now.iter().any(|pid| old.contains(pid))).then_some(())
        });
        nginx.must_serve();
        // They leave, too. A TERM meanwhile has nginx complain of a socket that Lua was about to close.
        nginx.wait_until("the old workers' end", || {
            (!old.iter().any(|&pid| process::is_alive(pid))).then_some(())
        });
        process::send(nginx.master(), Signal::TERM);
        nginx.gone();
        assert!(nginx.bad_lines().is_empty(), "{:?}", nginx.bad_lines());
    }
}

fn overwrite(path: &Path, from: u64, byte: u8) {
    let mut file = File::options().read(true).write(true).open(path).expect("our own file");
    let size = file.metadata().expect("it is open").len();
    file.seek(SeekFrom::Start(from)).expect("within the file");
    file.write_all(&vec![byte; (size - from) as usize]).expect("no change of its size");
}

/// Made by another version of headcount, which nobody runs any more: whether it is left alone or made
/// anew, the log names the file and the version that it found.
pub fn of_another_version(i: Integration) {
    let nginx = used(i);
    let mut file = File::options().write(true).open(nginx.registry()).expect("our own file");
    file.seek(SeekFrom::Start(FORMAT_AT)).expect("within the file");
    file.write_all(&4711_u32.to_le_bytes()).expect("within the file");
    lives_without_it(&nginx, &nginx.registry());
    assert!(nginx.log().contains("4711"), "the log names the version that it found");
}

/// It belongs to somebody else.
pub fn of_another_owner(i: Integration) {
    if !process::is_root() {
        eprintln!("skipped: only root gives files away");
        return;
    }
    const STRANGER: u32 = 12_345;
    let nginx = used(i);
    chown(nginx.registry(), Some(STRANGER), Some(STRANGER)).expect("we are root");
    lives_without_it(&nginx, &nginx.registry());
    let now = fs::metadata(nginx.registry()).expect("it is still there");
    assert_eq!(now.uid(), STRANGER, "a stranger's file stays the stranger's");
}

/// It lies in a folder where everybody could swap it.
pub fn in_a_folder_of_everybody(i: Integration) {
    let nginx = Nginx::prepare(setup(i).option("path", "\"@FOLDER@/markers/registry\""));
    lives_without_it(&nginx, &nginx.at("markers"));
}

/// A symbolic link: to a file that must stay as it is, and to none.
pub fn symbolic_link(i: Integration) {
    for there in [true, false] {
        let nginx = Nginx::prepare(setup(i));
        let target: PathBuf = nginx.at("precious");
        if there {
            fs::write(&target, "precious").expect("our own folder");
        }
        symlink(&target, nginx.registry()).expect("our own folder");
        lives_without_it(&nginx, &nginx.registry());
        let now = fs::read_to_string(&target).ok();
        assert_eq!(now.as_deref(), there.then_some("precious"), "what the link leads to");
        let link = fs::symlink_metadata(nginx.registry()).expect("it is still there");
        assert!(link.file_type().is_symlink());
    }
}

/// No room.
pub fn disk_full(i: Integration) {
    if !process::is_root() {
        eprintln!("skipped: only root mounts");
        return;
    }
    let nginx = Nginx::prepare(setup(i).option("path", "\"@FOLDER@/full/registry\""));
    let full = Mount::tmpfs(nginx.at("full"));
    lives_without_it(&nginx, &full.at.join("registry"));
    let left: Vec<_> = fs::read_dir(&full.at)
        .expect("it is mounted")
        .flatten()
        .filter(|entry| entry.metadata().is_ok_and(|meta| meta.len() > 0))
        .map(|entry| entry.path())
        .collect();
    assert!(left.is_empty(), "half a registry was left: {left:?}");
}

/// A file system with room for next to nothing, gone when the test is.
struct Mount {
    at: PathBuf,
}

impl Mount {
    fn tmpfs(at: PathBuf) -> Self {
        fs::create_dir_all(&at).expect("our own folder");
        mount("tmpfs", &at, "tmpfs", MountFlags::empty(), Some(c"size=16k,mode=755"))
            .unwrap_or_else(|error| panic!("cannot mount a tmpfs at {}: {error}", at.display()));
        Self { at }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a failed test's server may still have files there.
        let _ = unmount(&self.at, UnmountFlags::DETACH);
    }
}

/// More workers than the registry holds.
pub fn too_many_workers(i: Integration) {
    let nginx = Nginx::start(Setup::new(i).workers(6).option("slots", "4"));
    nginx.must_serve();
    match i {
        Integration::Lua | Integration::Both => refused_by_their_calls(&nginx),
        Integration::Native => refused_by_the_log(&nginx),
    }
    let shown = nginx.registry().display().to_string();
    nginx.wait_for_log("the registry is full", |line| line.contains(&shown) && line.contains("slots"));
    // Those that have a place are told as ever.
    nginx.wait_for("somebody to join", PATIENCE, |all| all.at_least(1, Kind::WorkerStarted, 1));
    let joined = nginx.reports().of(Kind::WorkerStarted).len() as i64;
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.take(Kind::GenerationStarted, 1);
    let starts = ledger.take(Kind::WorkerStarted, 1);
    let first: Vec<_> = starts.iter().take(joined as usize).map(|r| r.int("mine")).collect();
    ledger.same("`mine` of those that had a place", &first, &(1..=joined).map(Some).collect());
    // While some leave, others may find a place yet.
    ledger.distinct_pids(&starts, starts.len() as i64);
    let drained = ledger.take(Kind::WorkerDraining, 1);
    ledger.distinct_pids(&drained, starts.len() as i64);
    let left = ledger.take(Kind::WorkerExited, 1);
    ledger.distinct_pids(&left, starts.len() as i64);
    ledger.end(1, false);
    ledger.nothing_else();
}

fn refused_by_their_calls(nginx: &Nginx) {
    nginx
        .wait_for("all calls to return", PATIENCE, |all| (all.notes("init_worker").len() == 6).then_some(()));
    let all = nginx.reports();
    let refused: Vec<_> = all.notes("init_worker").into_iter().filter(|note| !note.flag("ok")).collect();
    assert!((2..=5).contains(&refused.len()), "at least two of six have no place\n{all}");
    let shown = nginx.registry().display().to_string();
    for note in refused {
        let err = note.text("err");
        assert!(err.contains(&shown) && err.contains("slots"), "names file and option: {note}");
    }
}

fn refused_by_the_log(nginx: &Nginx) {
    nginx.wait_until("each of six to have joined or to be refused", || {
        let refused = nginx.log().matches("this worker is not counted yet").count();
        let joined = nginx.reports().of(Kind::WorkerStarted).len();
        (refused >= 2 && refused + joined == 6).then_some(())
    });
}

/// Directives that are not allowed: nginx refuses the configuration, with a line that names the parameter and what is
/// allowed, and goes on with the one that it has.
pub fn wrong_directives(i: Integration) {
    let nginx = Nginx::start_ready(setup(i).allow("[emerg]"));
    for (option, value, named) in [
        ("no_such_option", "1", "\"no_such_option\" is not known; allowed are"),
        ("heartbeat", "-1", "\"heartbeat\" is \"-1\"; allowed is a time"),
        ("heartbeat", "soon", "\"heartbeat\" is \"soon\"; allowed is a time"),
        ("stall", "500ms", "\"stall\" is 500ms; allowed is more than \"heartbeat\""),
        ("lock_timeout", "0", "\"lock_timeout\" is \"0ms\"; allowed is a time"),
        ("slots", "1", "\"slots\" is \"1\"; allowed is a whole number"),
        ("path", "", "\"path\" is \"\"; allowed is the path of a file"),
        ("node", "../up", "name is \"../up\"; allowed are"),
    ] {
        nginx.change(|setup| setup.option(option, value));
        let output = nginx.ask(&["-t"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(named), "{option}={value} was not refused: {said}");
        assert!(said.contains("[emerg]") && said.contains("nginx.conf:"), "an error as nginx's own: {said}");
        nginx.change(|_| setup(i).allow("[emerg]"));
    }
    nginx.change(|setup| setup.main("headcount twice;"));
    let output = nginx.ask(&["-t"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("\"headcount\" directive is duplicate"), "{said}");
    nginx.must_serve();
    let mut ledger = nginx.end(Signal::TERM);
    ledger.cold_start(2);
    ledger.fast_end(1, 2, false);
    ledger.nothing_else();
}

/// Options that are not allowed: the error names the option and what is allowed, and the server serves.
pub fn wrong_options(i: Integration) {
    for (option, lua) in [
        ("no_such_option", "1"),
        ("heartbeat_interval", "-1"),
        ("heartbeat_interval", "\"soon\""),
        ("stall_after", "0.5"),
        ("stall_after", "90000"),
        ("lock_timeout", "0"),
        ("lock_timeout", "1e300"),
        ("slots", "1"),
        ("slots", "2.5"),
        ("slots", "1e300"),
        ("journal_records", "63"),
        ("path", "\"relative/registry\""),
        ("path", "\"/run/\""),
        ("path", "\"/run\\0/x\""),
        ("node", "\"../up\""),
        ("on_worker_begin", "function() end"),
    ] {
        let nginx = Nginx::start(setup(i).option(option, lua));
        nginx.must_serve();
        let all = nginx.reports();
        let calls = all.notes("init");
        assert!(
            calls.iter().all(|note| !note.flag("ok") && note.text("err").contains(option)),
            "{option} = {lua} was not refused by its name\n{all}"
        );
        nginx.end(Signal::TERM);
    }
}
