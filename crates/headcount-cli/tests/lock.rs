//! `headcount lock` beside a real nginx.

mod program;

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use program::{headcount, run};
use serde_json::Value;
use testkit::{Folder, Integration, Nginx, Setup, Signal, http, permit, process, wait};

const PATIENCE: Duration = Duration::from_secs(60);

/// Where the registry is: not in the server's own folder, where whoever has it open counts as one of the server's processes.
fn registry(own: &Folder) -> PathBuf {
    own.at("run/shop.registry")
}

fn server(own: &Folder) -> Setup {
    Setup::new(Integration::Lua)
        .workers(2)
        .option("path", &format!("\"{}\"", registry(own).display()))
        .option("node", "\"shop\"")
        .option("heartbeat_interval", "0.1")
        .option("stall_after", "1")
        .page(
            "/with-lock",
            "local headcount = require 'resty.headcount'
             local ok, err = headcount.with_lock('keys', function(lock)
                 local path = ngx.var.arg_until
                 repeat
                     ngx.sleep(0.01)
                     local file = io.open(path)
                 until file
                 return lock.abandoned_by or 0
             end, { timeout = 30 })
             ngx.say(ok and 'held ' .. tostring(err) or 'failed: ' .. err)",
        )
        .allow_kills()
}

fn lock<S: AsRef<OsStr>>(own: &Folder, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = headcount(["lock", "--registry"]);
    command.arg(registry(own)).args(arguments);
    command
}

/// Shell that notes what it does and goes on until there is the file `gate`.
fn hold(own: &Folder, gate: &str) -> String {
    let folder = own.path().display();
    format!(
        "echo in $$ $HEADCOUNT_LOCK_ABANDONED_BY >> {folder}/notes; \
         until [ -e {folder}/{gate} ] || [ ! -d {folder} ]; do sleep 0.01; done; echo out $$ >> {folder}/notes"
    )
}

fn notes(own: &Folder) -> Vec<String> {
    std::fs::read_to_string(own.at("notes")).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// A `headcount lock` that runs, and what it has said.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(own: &Folder, name: &str, mut command: Command) -> Running {
        let log = own.at(name);
        let child = command.stderr(File::create(&log).expect("our own folder")).spawn().expect("it starts");
        Running { child, log }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    #[track_caller]
    fn wait_until<T>(&self, what: &str, condition: impl FnMut() -> Option<T>) -> T {
        wait::poll(PATIENCE, condition).unwrap_or_else(|| panic!("did not come: {what}\n{}", self.log()))
    }

    #[track_caller]
    fn says(&self, text: &str) {
        self.wait_until(text, || self.log().contains(text).then_some(()));
    }

    #[track_caller]
    fn ended(&mut self, code: i32) {
        let status = wait::poll(PATIENCE, || self.child.try_wait().expect("our own child"));
        assert_eq!(status.and_then(|s| s.code()), Some(code), "{}", self.log());
    }

    fn kill(&mut self) {
        process::send(self.pid(), Signal::KILL);
        self.child.wait().expect("our own child");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // It has ended by itself in this moment, or is ended now.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn status(own: &Folder) -> Value {
    let found = run(headcount(["status", "--json", "--registry"]).arg(registry(own))).ended(0).json();
    found["nodes"][0].clone()
}

fn shown(own: &Folder, name: &str) -> Option<Value> {
    status(own)["singletons"].as_array()?.iter().find(|x| x["name"] == name).cloned()
}

fn events(own: &Folder) -> Vec<Value> {
    let all = run(headcount(["events", "--json", "--registry"]).arg(registry(own))).ended(0).out;
    all.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Waits until a command is inside.
#[track_caller]
fn inside(own: &Folder, number: usize) -> Vec<String> {
    let found = wait::poll(PATIENCE, || {
        let inside: Vec<_> = notes(own).into_iter().filter(|note| note.starts_with("in ")).collect();
        (inside.len() == number).then_some(inside)
    });
    found.unwrap_or_else(|| panic!("{number} are not inside: {:?}", notes(own)))
}

#[test]
fn one_runs_at_a_time_and_the_next_one_is_told_whom_it_waits_for() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(server(&own));
    let before = events(&own).len();
    let mut first = Running::start(&own, "first", lock(&own, ["keys", "--", "sh", "-c", &hold(&own, "one")]));
    inside(&own, 1);
    let held = shown(&own, "keys").expect("the lock");
    assert_eq!((&held["state"], &held["holder"]), (&"held".into(), &first.pid().into()));
    assert_eq!(status(&own)["total"], 2, "a visitor is not counted");
    let mut second =
        Running::start(&own, "second", lock(&own, ["keys", "--", "sh", "-c", &hold(&own, "two")]));
    second.says(&format!("waiting for the lock keys: process {} has held it for ", first.pid()));
    assert_eq!(shown(&own, "keys").expect("the lock")["waiters"], 1);
    // Neither the one who does not wait nor the one who waits for long enough goes on without it.
    run(&mut lock(&own, ["-n", "keys", "--", "true"]))
        .ended(1)
        .complains(&format!("the lock keys is taken: process {} has held it for", first.pid()));
    run(&mut lock(&own, ["keys", "-w", "200ms", "-E", "75", "--", "true"]))
        .ended(75)
        .complains(&format!("timed out after 200 ms waiting for the lock keys: process {}", first.pid()));
    // Another lock is another lock.
    run(&mut lock(&own, ["-n", "other", "--", "true"])).ended(0);
    own.write("one", "");
    first.ended(0);
    inside(&own, 2);
    own.write("two", "");
    second.ended(0);
    let kinds: Vec<_> =
        notes(&own).iter().map(|note| note.split(' ').next().unwrap_or("").to_owned()).collect();
    assert_eq!(kinds, ["in", "out", "in", "out"]);
    assert_eq!(events(&own).len(), before, "who comes and goes in order is no news");
    assert!(!status(&own)["processes"].to_string().contains("visitor"), "and leaves nothing");
    nginx.end(Signal::QUIT);
}

#[test]
fn a_holder_that_is_killed_takes_its_command_along_and_the_next_one_is_told() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(server(&own));
    let mut first =
        Running::start(&own, "first", lock(&own, ["keys", "--", "sh", "-c", &hold(&own, "never")]));
    let command: i32 = inside(&own, 1)[0].split(' ').nth(1).and_then(|pid| pid.parse().ok()).expect("a pid");
    let mut second =
        Running::start(&own, "second", lock(&own, ["keys", "--", "sh", "-c", &hold(&own, "two")]));
    second.says("waiting for the lock keys");
    let killed = Instant::now();
    first.kill();
    let told = inside(&own, 2);
    let took = killed.elapsed();
    // Benches say how fast; this says that no time-out is in between.
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(told[1].ends_with(&format!(" {}", first.pid())), "{told:?}");
    second.says(&format!("process {} ended while it held the lock keys", first.pid()));
    wait::poll(PATIENCE, || (!process::is_alive(command)).then_some(()))
        .expect("the first command is killed");
    let abandoned =
        second.wait_until("the event", || events(&own).into_iter().find(|e| e["kind"] == "lock_abandoned"));
    assert_eq!((&abandoned["name"], &abandoned["pid"]), (&"keys".into(), &first.pid().into()));
    own.write("two", "");
    second.ended(0);
    // Nobody waits for it: the server sees it as well.
    own.replace("two", "");
    std::fs::remove_file(own.at("two")).expect("our own file");
    let mut third = Running::start(&own, "third", lock(&own, ["keys", "--", "sh", "-c", &hold(&own, "two")]));
    inside(&own, 3);
    third.kill();
    let told = |e: &Value| e["kind"] == "lock_abandoned" && e["pid"] == third.pid();
    third.wait_until("its event", || events(&own).iter().any(told).then_some(()));
    third.wait_until("no visitor", || {
        (!status(&own)["processes"].to_string().contains("visitor")).then_some(())
    });
    assert_eq!(events(&own).iter().filter(|e| e["kind"] == "lock_abandoned").count(), 2, "each once");
    own.write("two", "");
    run(&mut lock(
        &own,
        ["keys", "--", "sh", "-c", "echo $HEADCOUNT_LOCK_ABANDONED_BY; echo $HEADCOUNT_NODE $HEADCOUNT_LOCK"],
    ))
    .ended(0)
    .says(&format!("{} shop keys", third.pid()));
    run(&mut lock(&own, ["keys", "--", "sh", "-c", "echo \"<$HEADCOUNT_LOCK_ABANDONED_BY>\""]))
        .ended(0)
        .says("<>");
    nginx.end(Signal::QUIT);
}

#[test]
fn workers_and_the_program_have_one_lock() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(server(&own));
    let gate = own.at("gate");
    let (socket, page) = (nginx.socket(), format!("/with-lock?until={}", gate.display()));
    testkit::chmod(own.path(), 0o755);
    let answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| http::get(&socket, &page).expect("an answer").body);
        let holder = nginx.wait_until("a worker that holds it", || shown(&own, "keys")?["holder"].as_i64());
        run(&mut lock(&own, ["-n", "keys", "--", "true"]))
            .ended(1)
            .complains(&format!("(process {holder}) has held it for"))
            .complains("worker ");
        own.write("gate", "");
        asked.join().expect("an answer")
    });
    assert_eq!(answer.trim(), "held 0");
    // The other way round: a worker gets it when the program is killed, and is told.
    let mut program =
        Running::start(&own, "program", lock(&own, ["keys", "--", "sh", "-c", &hold(&own, "never")]));
    inside(&own, 1);
    let answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| http::get(&socket, &page).expect("an answer").body);
        program.kill();
        asked.join().expect("an answer")
    });
    assert_eq!(answer.trim(), format!("held {}", program.pid()));
    nginx.end(Signal::QUIT);
}

#[test]
fn a_lock_outlives_reloads_stops_and_starts_of_the_server() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(server(&own));
    let mut first = Running::start(&own, "first", lock(&own, ["keys", "--", "sh", "-c", &hold(&own, "one")]));
    inside(&own, 1);
    let refused = |what: &str| {
        run(&mut lock(&own, ["-n", "keys", "--", "true"])).ended(1).complains(&first.pid().to_string());
        assert_eq!(shown(&own, "keys").expect("the lock")["holder"], first.pid(), "{what}");
    };
    nginx.reload_and_settle(2);
    refused("after a reload");
    nginx.end(Signal::QUIT);
    refused("of a server that was stopped");
    let said = run(headcount(["status", "--registry"]).arg(registry(&own)));
    said.ended(0).says("NOBODY IS ALIVE");
    nginx.run();
    nginx.ready(3);
    refused("after a start");
    own.write("one", "");
    first.ended(0);
    run(&mut lock(&own, ["-n", "keys", "--", "true"])).ended(0);
    nginx.end(Signal::QUIT);
    // Nobody is there who would report it: whoever comes next does.
    let mut second =
        Running::start(&own, "second", lock(&own, ["keys", "--", "sh", "-c", &hold(&own, "never")]));
    inside(&own, 2);
    second.kill();
    run(&mut lock(&own, ["-n", "keys", "--", "sh", "-c", "echo $HEADCOUNT_LOCK_ABANDONED_BY"]))
        .ended(0)
        .says(&second.pid().to_string());
    assert_eq!(events(&own).last().expect("events")["kind"], "lock_abandoned");
}

#[test]
fn a_registry_that_is_removed_is_said_and_who_waits_takes_part_in_the_new_one() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(server(&own).allow("was removed while its node runs"));
    let mut first = Running::start(&own, "first", lock(&own, ["keys", "--", "sh", "-c", &hold(&own, "one")]));
    inside(&own, 1);
    let mut second =
        Running::start(&own, "second", lock(&own, ["keys", "--", "sh", "-c", &hold(&own, "two")]));
    second.says("waiting for the lock keys");
    // While nobody has it, there is nothing to wait in.
    process::send(second.pid(), Signal::STOP);
    nginx.end(Signal::QUIT);
    nginx.forget_reports();
    std::fs::remove_file(registry(&own)).expect("the registry");
    nginx.run();
    nginx.ready(1);
    process::send(second.pid(), Signal::CONT);
    first.says("its registry was removed or replaced");
    inside(&own, 2);
    own.write("one", "");
    own.write("two", "");
    first.ended(0);
    second.ended(0);
    nginx.end(Signal::QUIT);
}

#[test]
fn the_command_gets_signals_and_gives_its_exit_code() {
    let _permit = permit();
    let own = Folder::new();
    let nginx = Nginx::start_ready(server(&own));
    run(&mut lock(&own, ["keys", "--", "sh", "-c", "exit 7"])).ended(7);
    run(&mut lock(&own, ["keys", "--", "sh", "-c", "kill -TERM $$"])).ended(143);
    run(&mut lock(&own, ["keys", "--", "/no/such/command"]))
        .ended(127)
        .complains("cannot run /no/such/command");
    run(&mut lock(&own, ["keys", "--", "/etc/passwd"])).ended(126).complains("Permission denied");
    run(lock(&own, ["keys", "--", "cat"]).stdin(File::open("/proc/version").expect("it is there")))
        .ended(0)
        .says("Linux version");
    for (signal, name) in [(Signal::TERM, "TERM"), (Signal::INT, "INT"), (Signal::USR1, "USR1")] {
        let script = format!("trap 'exit 9' {name}; {}", hold(&own, "never"));
        let before = notes(&own).len();
        let mut command = lock(&own, ["keys", "--", "sh", "-c", &script]);
        // No terminal: a session of its own has none.
        command.process_group(0);
        let mut running = Running::start(&own, name, command);
        running.wait_until("it is inside", || (notes(&own).len() > before).then_some(()));
        process::send(running.pid(), signal);
        running.ended(9);
    }
    // While it waits it ends by the signal, and leaves nothing.
    let mut first = Running::start(&own, "first", lock(&own, ["keys", "--", "sh", "-c", &hold(&own, "one")]));
    first.wait_until("it is inside", || shown(&own, "keys")?["holder"].as_i64());
    let mut second = Running::start(&own, "second", lock(&own, ["keys", "--", "true"]));
    second.says("waiting");
    process::send(second.pid(), Signal::TERM);
    let status = second.child.wait().expect("our own child");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
    assert_eq!(status_of_visitors(&own), 1);
    own.write("one", "");
    first.ended(0);
    nginx.end(Signal::QUIT);
}

fn status_of_visitors(own: &Folder) -> usize {
    let all = status(own);
    all["processes"].as_array().expect("a list").iter().filter(|p| p["role"] == "visitor").count()
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let _permit = permit();
    let own = Folder::new();
    run(&mut lock(&own, ["keys", "--", "true"])).ended(4).complains("start its server");
    let nginx = Nginx::start_ready(server(&own));
    run(&mut lock(&own, ["a b", "--", "true"])).ended(2).complains("allowed is 1 to 48 letters");
    run(&mut lock(&own, ["keys"])).ended(2);
    run(&mut lock(&own, ["keys", "-n", "-w", "1s", "--", "true"])).ended(2);
    // It would wait for itself.
    let inner = format!(
        "{} lock --registry {} keys -- true",
        env!("CARGO_BIN_EXE_headcount"),
        registry(&own).display()
    );
    run(&mut lock(&own, ["keys", "--", "sh", "-c", &inner])).ended(4).complains("would wait for itself");
    if process::is_root() {
        testkit::chmod(own.path(), 0o755);
        let copy = own.at("headcount");
        let mut command = program::of_everybody(&copy, ["lock", "--registry"]);
        command.arg(registry(&own)).args(["keys", "--", "true"]).uid(65534).gid(65534);
        run(&mut command).ended(4).complains("belongs to uid 0, and nobody else can take part in its node");
    }
    nginx.end(Signal::QUIT);
}
