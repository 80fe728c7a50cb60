//! `resty.worker.manager`: the seed's interface to the letter, and its two documented differences.

use std::time::Duration;

use crate::wait::{PATIENCE, boot_clock};
use crate::{Integration, Nginx, Report, Setup, Signal, Who, process};

/// The seed README's Synopsis.
const SYNOPSIS: &str = include_str!("../../../../demo/seed-synopsis.conf");

fn seed(i: Integration) -> Setup {
    Setup::new(i).who(Who::Seed).option("shm", "\"my_shm\"")
}

/// When the whole server stops, nobody listens any more for a callback that connects to it.
const AT_THE_STOP: &str = "http.sock failed";

fn wait_calls(nginx: &Nginx, callback: &str, n: usize) -> Vec<Report> {
    nginx.wait_for(&format!("{n} calls of {callback}"), PATIENCE, |all| {
        let calls = all.called(callback);
        (calls.len() >= n).then(|| calls.into_iter().cloned().collect())
    })
}

fn mine(reports: &[Report]) -> Vec<i64> {
    reports.iter().filter_map(|r| r.int("mine")).collect()
}

/// Unchanged: in its own words in the log, through start, reload, respawn and stop.
pub fn synopsis(i: Integration) {
    // All of it but what belongs to an application that we have not.
    let lines: Vec<&str> = SYNOPSIS.lines().filter(|line| !line.contains("kong")).collect();
    let block = lines
        .join("\n")
        .split_once("http {")
        .and_then(|(_, rest)| rest.rsplit_once('}'))
        .map(|(inside, _)| inside.to_owned())
        .expect("the Synopsis is one http block");
    let nginx = Nginx::start(Setup::new(i).workers(2).who(Who::Own(block)).allow_kills());
    let said = |what: &str, n: usize| {
        nginx.wait_until(&format!("{n} times `{what}` in the log"), || {
            let log = nginx.log();
            // What nginx logs while it starts it also says to the terminal, in lines that begin with its name.
            let lines = log.lines().filter(|line| !line.starts_with("nginx: "));
            let times =
                lines.filter(|l| l.contains(&format!("= {what} =")) || l.contains(&format!("- {what} -")));
            (times.count() == n).then_some(())
        });
    };
    said("Master start", 1);
    said("Worker start", 2);
    nginx.reload();
    said("Master start", 2);
    said("Worker start", 4);
    said("Worker exit", 2);
    said("Master exit", 1);
    let victim = nginx.workers()[0];
    process::send(victim, Signal::KILL);
    said("Worker start", 5);
    nginx.must_serve();
    nginx.end(Signal::TERM);
    said("Worker exit", 4);
    said("Master exit", 2);
    said("Worker start", 5);
}

/// Arguments and ids in the seed's form, through a start, two reloads and both kinds of stop.
pub fn arguments(i: Integration) {
    for signal in [Signal::QUIT, Signal::TERM] {
        let nginx = Nginx::start(seed(i));
        wait_calls(&nginx, "worker_start", 4);
        for (nth, reload) in [1, 2].into_iter().enumerate() {
            nginx.reload();
            wait_calls(&nginx, "worker_start", 4 * (reload + 1));
            wait_calls(&nginx, "master_exit", nth + 1);
        }
        let mut ledger = nginx.end(signal);
        let starts = ledger.take_called("master_start");
        let ids: Vec<_> = starts.iter().map(|r| r.int("id")).collect();
        ledger.same("master ids", &ids, &vec![Some(1), Some(2), Some(3)]);
        ledger.holds("numbers", starts.iter().all(|r| r.text("id_type") == "number"));
        let counts: Vec<_> = starts.iter().map(Report::counts).collect();
        let expected = [(None, Some(0), None), (Some(4), Some(0), None), (Some(4), Some(0), None)];
        ledger.same("counts of master_start", counts.as_slice(), &expected);

        let workers = ledger.take_called("worker_start");
        ledger.same("mine of worker_start", &mine(&workers), &[1, 2, 3, 4].repeat(3));
        for worker in &workers {
            let id = worker.text("id");
            let own = format!("-{}", worker.runner);
            ledger.holds("ids are <master_id>-<pid>", id.ends_with(&own) && id.len() == own.len() + 1);
        }
        let exits = ledger.take_called("worker_exit");
        ledger.same("mine of worker_exit", &mine(&exits), &[4, 3, 2, 1].repeat(3));
        ledger.holds("reloads have a next", exits[..8].iter().all(|r| r.int("next").is_some()));
        ledger.holds("a stop has none", exits[8..].iter().all(|r| r.int("next").is_none()));
        // "all old workers have already exited", says its README of 0, which it may be till the last is gone.
        ledger.holds("nobody before", exits.iter().all(|r| r.int("prev").unwrap_or(0) == 0));

        let ends = ledger.take_called("master_exit");
        let ids: Vec<_> = ends.iter().map(|r| r.int("id")).collect();
        ledger.same("ids of master_exit", &ids, &vec![Some(1), Some(2), Some(3)]);
        ledger.same("mine of master_exit", &mine(&ends), &vec![0, 0, 0]);
        ledger.same("a stop has no next", &ends[2].int("next"), &None);
        ledger.holds("reloads have", ends[..2].iter().all(|r| r.int("next") > Some(0)));
        ledger.nothing_else();
    }
}

/// The first difference: a respawned worker sees more workers than there are, until the dead one's
/// heartbeat is overdue.
pub fn respawn_shows_in_n_mine(i: Integration) {
    let setup = seed(i).workers(2).option("interval", "0.5").option("failed", "1").allow_kills();
    let nginx = Nginx::start(setup);
    wait_calls(&nginx, "worker_start", 2);
    let kill_one = |n: usize| {
        process::send(nginx.workers()[0], Signal::KILL);
        wait_calls(&nginx, "worker_start", n)[n - 1].int("mine")
    };
    assert_eq!(kill_one(3), Some(3), "one dead, not yet overdue\n{}", nginx.reports());
    // Three in all: the survivor, the new one, and two dead whose heartbeats are fresh.
    assert_eq!(kill_one(4), Some(4), "two dead, not yet overdue\n{}", nginx.reports());
    // The one wait for time to pass: interval and failed, and a little.
    let till = boot_clock() + Duration::from_millis(1800).as_nanos() as u64;
    nginx.wait_until("the heartbeats to be overdue", || (boot_clock() > till).then_some(()));
    assert_eq!(kill_one(5), Some(3), "only the last dead counts\n{}", nginx.reports());
    let mut ledger = nginx.end(Signal::TERM);
    ledger.take_called("master_start");
    ledger.take_called("worker_start");
    let exits = ledger.take_called("worker_exit");
    ledger.same("exits", &exits.len(), &2);
    let ends = ledger.take_called("master_exit");
    ledger.same("one end", &ends.len(), &1);
    ledger.nothing_else();
}

/// The second difference: exit callbacks run when draining begins, may use sockets, and a draining worker
/// is out of the counts.
pub fn exit_when_draining_begins(i: Integration) {
    let lua = r#"
        local socket = ngx.socket.tcp()
        local ok, err = socket:connect("unix:" .. kit.folder .. "/http.sock")
        if ok then
          socket:send("GET /ping HTTP/1.0\r\n\r\n")
          ok, err = socket:receive("*l")
        end
        kit.note("socket", { answer = tostring(ok or err) })
    "#;
    let nginx = Nginx::start(seed(i).workers(2).in_callback("worker_exit", lua).allow(AT_THE_STOP));
    wait_calls(&nginx, "worker_start", 2);
    let client = nginx.slow_client();
    nginx.reload();
    let exits = wait_calls(&nginx, "worker_exit", 2);
    let end = wait_calls(&nginx, "master_exit", 1).remove(0);
    assert!(process::is_alive(client.worker), "it still drains");
    assert!(exits.iter().any(|r| r.runner == client.worker), "and was told already");
    assert_eq!(mine(&exits), [2, 1], "{}", nginx.reports());
    assert_eq!(end.counts(), (None, Some(0), Some(2)), "{end}");
    let all = nginx.reports();
    let answers: Vec<_> = all.notes("socket");
    assert_eq!(answers.len(), 2, "{all}");
    assert!(answers.iter().all(|r| r.text("answer").contains("200 OK")), "{all}");

    // It is out of the counts, so a second reload has one generation before it and not two.
    nginx.wait_until("the old workers to be told", || (nginx.workers().len() == 2).then_some(()));
    nginx.reload();
    let start = wait_calls(&nginx, "master_start", 3).remove(2);
    assert_eq!(start.counts(), (Some(2), Some(0), None), "{start}");
    wait_calls(&nginx, "master_exit", 2);
    let held = client.worker;
    client.finish();
    nginx.wait_gone(held);
    let mut ledger = nginx.end(Signal::QUIT);
    let exits = ledger.take_called("worker_exit");
    ledger.same("each exit once", &mine(&exits), &[2, 1].repeat(3));
    let ends = ledger.take_called("master_exit");
    ledger.same("each end once", &ends.len(), &3);
}

/// What the seed loses: after a reload that failed, a stop is a stop.
pub fn failed_reload(i: Integration) {
    let nginx = Nginx::start(seed(i).workers(2));
    wait_calls(&nginx, "worker_start", 2);
    nginx.reload_with(|setup| setup.listen("unix:@FOLDER@/missing/x.sock").allow("missing/x.sock"));
    wait_calls(&nginx, "master_start", 2);
    nginx.wait_for_log("nginx's complaint", |line| line.contains("missing/x.sock"));
    nginx.must_serve();
    let mut ledger = nginx.end(Signal::TERM);
    let exits = ledger.take_called("worker_exit");
    ledger.same("mine", &mine(&exits), &vec![2, 1]);
    ledger.holds("next is nil", exits.iter().all(|r| r.int("next").is_none()));
    let ends = ledger.take_called("master_exit");
    ledger.same("one end", &ends.len(), &1);
    ledger.same("its counts", &ends[0].counts(), &(None, Some(0), None));
}

/// What the seed loses: a worker that died is not waited for, so its generation ends.
pub fn death_before_a_reload(i: Integration) {
    let nginx = Nginx::start(seed(i).workers(2).allow_kills());
    wait_calls(&nginx, "worker_start", 2);
    let victim = nginx.workers()[0];
    process::send(victim, Signal::KILL);
    wait_calls(&nginx, "worker_start", 3);
    nginx.reload();
    wait_calls(&nginx, "worker_start", 5);
    let end = wait_calls(&nginx, "master_exit", 1).remove(0);
    assert_eq!(end.int("mine"), Some(0), "{end}");
    let mut ledger = nginx.end(Signal::QUIT);
    let exits = ledger.take_called("worker_exit");
    ledger.same("the living alone are counted", &mine(&exits), &vec![2, 1, 2, 1]);
    let ends = ledger.take_called("master_exit");
    ledger.same("each end once", &ends.len(), &2);
}

/// The native options work in its table too; wrong ones are refused by name.
pub fn options(i: Integration) {
    let nginx = Nginx::start(seed(i).workers(1).option("lock_timeout", "5"));
    wait_calls(&nginx, "worker_start", 1);
    assert!(nginx.registry().exists(), "`path` counts");
    nginx.end(Signal::QUIT);
    for (option, lua) in [("interval", "-1"), ("failed", "\"x\""), ("no_such_option", "true")] {
        let nginx = Nginx::start(seed(i).workers(1).option(option, lua));
        nginx.must_serve();
        let all = nginx.reports();
        let refused =
            all.notes("init").iter().any(|note| !note.flag("ok") && note.text("err").contains(option));
        assert!(refused, "{option} = {lua} was not refused by its name\n{all}");
        nginx.end(Signal::TERM);
    }
}
