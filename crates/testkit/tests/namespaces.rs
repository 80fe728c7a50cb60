//! Rows 34 and 35: servers and observers in namespaces of their own. Numbers of processes that are equal by chance make no
//! kinship, and who cannot see a process does not say that it is gone.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use testkit::guard::Guard;
use testkit::program::{self, Run};
use testkit::wait::PATIENCE;
use testkit::{Folder, Integration, Kind, Nginx, Room, Setup, Signal, permit, process};

const PID: [&str; 2] = ["--mount", "--pid"];
const LIMIT: Duration = Duration::from_secs(10);

fn room(kinds: &[&'static str], furnish: &str) -> Option<Room> {
    Room::new(kinds, furnish).map_err(|why| eprintln!("skipped: {why}")).ok()
}

/// Two workers, and a registry that others may name, too.
fn at(place: &Folder, i: Integration) -> Setup {
    let path = format!("\"{}/shop.registry\"", place.path().display());
    Setup::new(i).workers(2).option("path", &path).option("node", "\"shop\"")
}

fn registries(place: &Folder) -> BTreeSet<String> {
    let files = std::fs::read_dir(place.path()).expect("our own folder").flatten();
    let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".registry")).collect()
}

/// Each has told of its own workers, and of nobody else's.
fn both_are_alone(one: Nginx, two: Nginx) {
    for nginx in [one, two] {
        nginx.must_serve();
        let mut ledger = nginx.end(Signal::QUIT);
        ledger.cold_start(2);
        ledger.graceful_end(1, 2, false);
        ledger.nothing_else();
    }
}

fn two(place: &Folder) {
    let names: Vec<String> = registries(place).into_iter().collect();
    assert_eq!(names, ["shop-2.registry", "shop.registry"]);
}

fn equal_masters(i: Integration) {
    let _permit = permit();
    let place = Folder::new();
    let (Some(first), Some(second)) = (room(&PID, ""), room(&PID, "")) else { return };
    first.next_pid(700);
    let one = Nginx::start_ready(at(&place, i).foreground().inside(&first));
    second.next_pid(700);
    let other = Nginx::start_ready(at(&place, i).foreground().inside(&second));
    assert_eq!(process::inner_pid(one.master()), process::inner_pid(other.master()), "by our own doing");
    two(&place);
    both_are_alone(one, other);
}

/// Row 34: two containers with one volume, whose masters have the same number.
#[test]
fn masters_of_one_number_in_two_namespaces() {
    equal_masters(Integration::Lua);
}

#[test]
fn masters_of_one_number_in_two_namespaces_with_the_module() {
    equal_masters(Integration::Native);
}

/// Row 34: the parent of the second has, in its own namespace, the number of the first one's master: as if the second were
/// the new binary of an upgrade.
#[test]
fn a_parent_with_the_number_of_anothers_master() {
    let _permit = permit();
    let place = Folder::new();
    let (Some(first), Some(second)) = (room(&PID, ""), room(&PID, "")) else { return };
    let one = Nginx::start_ready(at(&place, Integration::Lua).inside(&first));
    let number = process::inner_pid(one.master()).expect("it lives");
    second.next_pid(number);
    // The shell that is started now has this number, and stays the server's parent.
    let shell = ["sh", "-c", "\"$@\"; true", "sh"];
    let setup = at(&place, Integration::Lua).foreground().inside(&second).started_by(&shell);
    let other = Nginx::start_ready(setup);
    let parent = process::stat(other.master()).expect("it lives").parent;
    assert_eq!(process::inner_pid(parent), Some(number), "by our own doing");
    two(&place);
    both_are_alone(one, other);
}

/// Row 34: two that start at the same moment and go into the background.
fn at_the_same_moment(i: Integration) {
    const ROUNDS: usize = 40;
    let _permit = permit();
    let place = Folder::new();
    let both = [(); 2].map(|()| Nginx::prepare(at(&place, i).workers(1)));
    let mut merged = Vec::new();
    for round in 1..=ROUNDS {
        let started = both.each_ref().map(|nginx| {
            nginx.forget_reports();
            nginx.command(&[]).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn()
        });
        for mut start in started.into_iter().flatten() {
            assert!(start.wait().expect("our own child").success());
        }
        for nginx in &both {
            nginx.settled();
            // Of two that became one, the second's first generation is not number 1.
            nginx.wait_for("a worker's start", PATIENCE, |all| {
                all.0.iter().any(|report| report.callback == Kind::WorkerStarted.callback()).then_some(())
            });
        }
        let found = registries(&place);
        if found.len() != 2 {
            merged.push(round);
        }
        for nginx in &both {
            process::send(nginx.master(), Signal::QUIT);
        }
        both.iter().for_each(Nginx::gone);
        for entry in std::fs::read_dir(place.path()).expect("our own folder").flatten() {
            if entry.file_name().to_string_lossy().starts_with("shop") {
                std::fs::remove_file(entry.path()).expect("our own file");
            }
        }
    }
    assert!(
        merged.is_empty(),
        "in {} of {ROUNDS} rounds two servers became one node: {merged:?}",
        merged.len()
    );
}

#[test]
fn two_starts_at_the_same_moment() {
    at_the_same_moment(Integration::Lua);
}

#[test]
fn two_starts_at_the_same_moment_with_the_module() {
    at_the_same_moment(Integration::Native);
}

fn restarted(i: Integration, same_number: bool) {
    let _permit = permit();
    let place = Folder::new();
    let (Some(mut first), Some(second)) = (room(&PID, ""), room(&PID, "")) else { return };
    first.next_pid(700);
    let one = Nginx::start_ready(at(&place, i).inside(&first));
    // What the next one's processes are called is not up to it.
    second.next_pid(if same_number { 700 } else { 1_400 });
    let family = one.family();
    first.end();
    one.gone();
    assert!(family.iter().all(|&pid| !process::is_alive(pid)));
    let other = Nginx::start(at(&place, i).inside(&second));
    other.ready(2);
    assert_eq!(registries(&place).into_iter().collect::<Vec<_>>(), ["shop.registry"]);
    let mut ledger = other.end(Signal::QUIT);
    let start = ledger.one_with(Kind::GenerationStarted, 2, (None, Some(0), None));
    ledger.same("the run before", start.text("previous_run"), "unclean");
    ledger.same("workers of the run before", &start.int("previous_workers"), &Some(2));
    ledger.starts(2, 2, "start");
    ledger.graceful_end(2, 2, false);
}

/// As `docker restart` does after `docker kill`: the registry is there, its pid namespace is not.
#[test]
fn a_container_that_was_killed_and_started_again() {
    restarted(Integration::Lua, false);
}

#[test]
fn a_container_that_was_killed_and_started_again_with_the_same_numbers() {
    restarted(Integration::Lua, true);
}

#[test]
fn a_container_that_was_killed_and_started_again_with_the_module() {
    restarted(Integration::Native, true);
}

/// A node whose server runs somewhere, and somebody who cannot see its processes.
struct View<'a> {
    nginx: &'a Nginx,
    /// Words before the program's name.
    observer: Vec<String>,
    who: &'a str,
    guard: Guard,
}

const AS_NOBODY: [&str; 5] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];

impl<'a> View<'a> {
    fn new(nginx: &'a Nginx, mut observer: Vec<String>, nobody: bool, who: &'a str) -> Self {
        if nobody {
            observer.extend(AS_NOBODY.map(str::to_owned));
        }
        View { nginx, observer, who, guard: Guard::new() }
    }

    fn command(&self, words: &[&str]) -> Command {
        program::of_everybody(&self.nginx.at("headcount"), &self.observer, words)
    }

    fn run(&self, words: &[&str]) -> Run {
        let path = self.nginx.registry().display().to_string();
        let words = [words, &["--registry", &path]].concat();
        program::begin(&mut self.command(&words), &words.join(" "), &self.guard).end(LIMIT)
    }

    /// All live processes are alive or unknown; if unknown, it says why.
    fn of_a_living_node(&self) {
        let who = self.who;
        let run = self.run(&["status", "--json"]);
        let node = run.json().pointer("/nodes/0").cloned().unwrap_or_default();
        assert_eq!(node["nobody_is_alive"], false, "{who}: {} {node:#}", run.err);
        let all: &[Value] = node["processes"].as_array().map_or(&[], Vec::as_slice);
        assert_eq!(all.len(), 3, "{who}: {node:#}");
        assert!(all.iter().all(|p| p["liveness"] != "gone"), "{who}: {node:#}");
        let unknown = all.iter().any(|p| p["liveness"] == "unknown");

        let run = self.run(&["status"]);
        let text = run.out.replace(['\n', ' '], " ");
        assert!(!text.contains("nobody is alive"), "{who}: {text}");
        if unknown {
            assert!(text.contains("unknown"), "{who}: {text}");
            let reasons = ["namespace", "/proc", "hidepid", "may not", "rights"];
            assert!(reasons.iter().any(|reason| text.contains(reason)), "{who}: does not say why: {text}");
        }

        let run = self.run(&["wait", "--stopped", "--timeout", "2s"]);
        assert_eq!(run.code, Some(1), "{who}: {run:#?}");

        // It reports a node that died within a second of its start, if it does.
        let told = self.nginx.at("markers/told");
        let rule = format!("node_died,node_stopped=echo $HEADCOUNT_EVENT >> {}", told.display());
        let state = self.nginx.at(&format!("markers/{}", who.replace(['/', ' '], "-"))).display().to_string();
        let path = self.nginx.registry().display().to_string();
        let words = ["run", "--on", &rule, "--from", "run", "--state", &state, "--registry", &path];
        let begun = program::begin(&mut self.command(&words), "run", &self.guard);
        std::thread::sleep(Duration::from_secs(4));
        for pid in std::iter::once(begun.pid()).chain(process::descendants(begun.pid())) {
            process::send(pid, Signal::TERM);
        }
        let run = begun.end(LIMIT);
        assert_eq!(std::fs::read_to_string(&told).unwrap_or_default(), "", "{who}: {run:#?}");
        assert!(Path::new(&state).exists(), "{who} kept no state: {run:#?}");
    }
}

fn living(setup: impl FnOnce(Setup) -> Setup) -> Nginx {
    Nginx::start_ready(setup(Setup::new(Integration::Lua).workers(2)))
}

/// Row 35: /proc shows no process of others.
#[test]
fn an_observer_behind_hidepid() {
    let _permit = permit();
    let Some(room) = room(&["--mount"], "mount -t proc -o hidepid=2 proc /proc") else { return };
    let nginx = living(|setup| setup);
    View::new(&nginx, room.enter(), true, "nobody behind hidepid").of_a_living_node();
    nginx.end(Signal::QUIT);
}

#[test]
fn an_observer_in_another_pid_namespace() {
    let _permit = permit();
    let Some(room) = room(&PID, "") else { return };
    let nginx = living(|setup| setup);
    View::new(&nginx, room.enter(), true, "nobody in another pid namespace").of_a_living_node();
    View::new(&nginx, room.enter(), false, "root in another pid namespace").of_a_living_node();
    nginx.end(Signal::QUIT);
}

/// The usual case of containers: the observer is on the host.
#[test]
fn an_observer_of_a_container() {
    let _permit = permit();
    let Some(room) = room(&PID, "") else { return };
    room.next_pid(30_000);
    let nginx = living(|setup| setup.inside(&room));
    View::new(&nginx, Vec::new(), true, "nobody outside of the container").of_a_living_node();
    View::new(&nginx, Vec::new(), false, "root outside of the container").of_a_living_node();
    nginx.end(Signal::QUIT);
}

#[test]
fn an_observer_without_proc() {
    let _permit = permit();
    let Some(room) = room(&["--mount"], "mount -t tmpfs tmpfs /proc") else { return };
    let nginx = living(|setup| setup);
    View::new(&nginx, room.enter(), true, "nobody without /proc").of_a_living_node();
    View::new(&nginx, room.enter(), false, "root without /proc").of_a_living_node();
    nginx.end(Signal::QUIT);
}

/// A root folder that has the program, what it needs, and the server's registry; nothing else.
fn narrow_root(own: &Folder, nginx: &Nginx) -> Option<(Room, Vec<String>)> {
    let root = own.at("root");
    let parts = ["/usr", "/lib", "/lib64", "/bin"].map(Path::new);
    let mut script = String::new();
    for part in parts.iter().copied().chain([nginx.folder()]) {
        if part.exists() {
            let inside = root.join(part.strip_prefix("/").expect("absolute"));
            let (part, inside) = (part.display(), inside.display());
            script.push_str(&format!("mkdir -p '{inside}'; mount --bind '{part}' '{inside}'\n"));
        }
    }
    let room = room(&["--mount"], &script)?;
    let mut words = room.enter();
    words.extend(["chroot".to_owned(), root.display().to_string()]);
    Some((room, words))
}

#[test]
fn an_observer_in_a_chroot() {
    let _permit = permit();
    let nginx = living(|setup| setup);
    let own = Folder::new();
    let Some((_room, words)) = narrow_root(&own, &nginx) else { return };
    View::new(&nginx, words.clone(), true, "nobody in a chroot").of_a_living_node();
    View::new(&nginx, words, false, "root in a chroot").of_a_living_node();
    nginx.end(Signal::QUIT);
}

/// A server that loses a worker and reloads.
fn lived(setup: Setup) -> Nginx {
    let nginx = Nginx::start_ready(setup.workers(2).allow_kills());
    let victim = nginx.workers()[0];
    process::send(victim, Signal::KILL);
    nginx.wait_for("the respawned worker", PATIENCE, |all| all.at_least(3, Kind::WorkerStarted, 1));
    nginx.reload_and_settle(2);
    nginx.wait_for("the end of generation 1", PATIENCE, |all| all.at_least(1, Kind::GenerationEnded, 1));
    nginx
}

/// A server whose own processes cannot see each other in /proc: all is reported as ever.
fn whole_life(setup: Setup) {
    let nginx = lived(setup);
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.one_with(Kind::GenerationStarted, 1, (None, Some(0), None));
    ledger.one_with(Kind::WorkerDied, 1, (None, Some(1), None));
    ledger.series(Kind::WorkerStarted, 1, [1, 2, 2]);
    ledger.reloaded(2, 2, 2);
    ledger.graceful_end(1, 2, true);
    ledger.graceful_end(2, 2, false);
    ledger.nothing_else();
}

#[test]
fn a_server_behind_hidepid() {
    let _permit = permit();
    let Some(room) = room(&["--mount"], "mount -t proc -o hidepid=2 proc /proc") else { return };
    whole_life(Setup::new(Integration::Lua).inside(&room));
    whole_life(Setup::new(Integration::Native).inside(&room));
}

#[test]
fn a_server_without_proc() {
    let _permit = permit();
    let Some(room) = room(&["--mount"], "mount -t tmpfs tmpfs /proc") else { return };
    whole_life(Setup::new(Integration::Native).inside(&room));
    // The way to the socket by which the library wakes Lua leads through /proc: Lua hears of a death at its next heartbeat,
    // when the replacement may be there already. But it hears of it, once.
    let nginx = lived(Setup::new(Integration::Lua).inside(&room).allow("connect() to unix:/proc/self/fd/"));
    let reports = nginx.reports();
    assert_eq!(reports.of_generation(Kind::WorkerDied, 1).len(), 1, "{reports}");
    assert_eq!(reports.of_generation(Kind::GenerationEnded, 1).len(), 1, "{reports}");
    process::send(nginx.master(), Signal::QUIT);
    nginx.gone();
}

/// It cannot tell which boot this is, nor when its processes were born: who sees it from outside does not call it dead.
#[test]
fn a_server_without_proc_as_others_see_it() {
    let _permit = permit();
    let Some(room) = room(&["--mount"], "mount -t tmpfs tmpfs /proc") else { return };
    let nginx = living(|setup| setup.inside(&room).allow("connect() to unix:/proc/self/fd/"));
    View::new(&nginx, Vec::new(), true, "nobody beside a server without /proc").of_a_living_node();
    View::new(&nginx, Vec::new(), false, "root beside a server without /proc").of_a_living_node();
    process::send(nginx.master(), Signal::QUIT);
    nginx.gone();
}

#[test]
fn a_server_in_a_pid_namespace() {
    let _permit = permit();
    let Some(room) = room(&PID, "") else { return };
    whole_life(Setup::new(Integration::Lua).inside(&room));
    whole_life(Setup::new(Integration::Native).inside(&room));
}
