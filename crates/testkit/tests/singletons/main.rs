//! Who leads, what runs once and who holds a lock, in Lua: the scenarios of docs/singletons.md against a real server.

mod servers;
mod waits;

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::wait::PATIENCE;
use testkit::{Integration, Nginx, Setup, Signal, permit, process};

/// Each worker stands for the role `cron`; what it hears it notes.
const STANDS: &str = r#"
    kit.after_join = function()
        local headcount = require "resty.headcount"
        local ok, err = headcount.leader("cron", {
            on_elected = function(token)
                ngx.sleep(0.001)
                kit.note("elected", { token = token, leads = headcount.is_leader("cron"), phase = ngx.get_phase() })
            end,
            on_lost = function()
                kit.note("losing", { leads = headcount.is_leader("cron") })
                if ngx.get_phase() == "timer" then ngx.sleep(0.02) end
                kit.note("lost", {})
            end,
        })
        kit.note("stood", { ok = ok, err = err })
    end
"#;

fn setup(workers: u32) -> Setup {
    Setup::new(Integration::Lua)
        .workers(workers)
        .option("heartbeat_interval", "0.1")
        .option("stall_after", "1")
        .page("/leads", "ngx.say(tostring(require('resty.headcount').is_leader('cron')))")
}

/// The notes about the role, in their order: what, by whom, and with which token.
fn tenures(nginx: &Nginx) -> Vec<(String, i32, u64)> {
    let reports = nginx.reports();
    let mut all: Vec<_> = ["elected", "losing", "lost"]
        .into_iter()
        .flat_map(|what| reports.notes(what).into_iter().map(move |note| (note.at, what, note)))
        .map(|(at, what, note)| (at, what.to_owned(), note.runner, note.event["token"].as_u64().unwrap_or(0)))
        .collect();
    all.sort_by_key(|(at, ..)| *at);
    all.into_iter().map(|(_, what, pid, token)| (what, pid, token)).collect()
}

fn elected(nginx: &Nginx, number: usize) -> (i32, u64) {
    nginx.wait_until("a leader", || {
        let elections: Vec<_> = tenures(nginx).into_iter().filter(|(what, ..)| what == "elected").collect();
        assert!(elections.is_sorted_by_key(|(.., token)| *token), "{elections:?}");
        elections.get(number - 1).map(|(_, pid, token)| (*pid, *token))
    })
}

fn events(nginx: &Nginx, kind: &str) -> Vec<Value> {
    let all = nginx.json("/events");
    all[0].as_array().expect("a list").iter().filter(|e| e["kind"] == kind).cloned().collect()
}

fn shown(nginx: &Nginx, kind: &str, name: &str) -> Option<Value> {
    let status = nginx.json("/status");
    let all = status[0]["singletons"].as_array()?;
    all.iter().find(|x| x["kind"] == kind && x["name"] == name).cloned()
}

#[test]
fn one_worker_leads_and_a_reload_moves_the_role_in_order() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup(3).after_init(STANDS));
    let (first, token) = elected(&nginx, 1);
    assert!(nginx.workers().contains(&first));
    let role = shown(&nginx, "role", "cron").expect("the role");
    assert_eq!(
        (&role["holder"], &role["token"], &role["state"]),
        (&first.into(), &token.into(), &"held".into())
    );
    for _ in 0..20 {
        let leads = nginx.get("/leads").body.trim().to_owned();
        assert!(leads == "true" || leads == "false", "{leads}");
    }
    nginx.reload_and_settle(2);
    let (second, _) = elected(&nginx, 2);
    assert!(nginx.workers().contains(&second) && second != first);
    let order: Vec<_> = tenures(&nginx).into_iter().map(|(what, pid, _)| (what, pid)).collect();
    let is = |what: &str, pid| (what.to_owned(), pid);
    assert_eq!(
        order,
        [is("elected", first), is("losing", first), is("lost", first), is("elected", second)],
        "on_lost ends before on_elected begins"
    );
    assert_eq!(events(&nginx, "leader_lost")[0]["cause"], "superseded");
    let ledger = nginx.end(Signal::QUIT);
    drop(ledger);
    assert_eq!(tenures(&nginx).last().map(|(what, pid, _)| (what.as_str(), *pid)), Some(("lost", second)));
}

#[test]
fn a_leader_that_dies_or_hangs_is_replaced() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup(3).after_init(STANDS).allow_kills());
    let (first, _) = elected(&nginx, 1);
    let begun = Instant::now();
    process::send(first, Signal::KILL);
    let (second, _) = elected(&nginx, 2);
    assert!(begun.elapsed() < Duration::from_secs(2) && second != first);
    assert_eq!(events(&nginx, "leader_lost")[0]["signal"], 9);
    nginx.freeze(second);
    let (third, _) = elected(&nginx, 3);
    assert_ne!(third, second);
    assert_eq!(events(&nginx, "leader_lost")[1]["cause"], "overdue");
    nginx.thaw(second);
    nginx.wait_until("the word of its loss", || {
        tenures(&nginx).iter().any(|(what, pid, _)| what == "lost" && *pid == second).then_some(())
    });
    let reports = nginx.reports();
    let losing = reports.notes("losing").into_iter().find(|n| n.runner == second).expect("a note");
    assert_eq!(losing.event["leads"], false, "it does not lead from the moment when another does");
    nginx.end(Signal::TERM);
}

#[test]
fn a_role_survives_a_failed_reload_and_tokens_grow_over_restarts() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup(2).after_init(STANDS).allow("[emerg]"));
    let (first, token) = elected(&nginx, 1);
    nginx.configure_nonsense();
    nginx.reload();
    nginx.wait_for_log("the refusal", |line| line.contains("[emerg]"));
    assert_eq!(shown(&nginx, "role", "cron").expect("the role")["holder"], first);
    nginx.change(|setup| setup);
    nginx.end(Signal::TERM);
    let gone = tenures(&nginx);
    assert_eq!(gone.last().map(|(what, pid, _)| (what.as_str(), *pid)), Some(("lost", first)), "{gone:?}");
    nginx.run();
    let (_, later) = elected(&nginx, 2);
    assert!(later > token);
    nginx.end(Signal::QUIT);
}

/// `KEYS`: what each worker wants done once for the generation; and one thing for the node.
const ONCE: &str = r#"
    kit.after_join = function()
        local headcount = require "resty.headcount"
        local function run(name)
            return function(attempt)
                ngx.sleep(0.005)
                kit.note(name, attempt)
                if name == "dies" and attempt.number == 1 then kit.die() end
                if name == "raises" then error("no luck") end
                if name == "exits" then ngx.exit(0) end
            end
        end
        for _, key in ipairs { KEYS } do
            headcount.once("generation", key, run(key), {
                on_settled = function(how) kit.note("settled", { key = key, how = how }) end,
            })
        end
        headcount.once("node", "migrate", run("migrate"))
    end
"#;

fn attempts(nginx: &Nginx, name: &str) -> Vec<u64> {
    let number = |note: &&testkit::Report| note.event["number"].as_u64().expect("a number");
    nginx.reports().notes(name).iter().map(number).collect()
}

fn settled(nginx: &Nginx, how: &str) -> usize {
    nginx.reports().notes("settled").iter().filter(|note| note.event["how"] == how).count()
}

#[test]
fn who_dies_in_what_runs_once_leaves_it_to_another() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup(3).after_init(&ONCE.replace("KEYS", "\"dies\"")).allow_kills());
    // One of them is the one that replaces the dead one.
    nginx.wait_until("all to hear of it", || (settled(&nginx, "done") == 3).then_some(()));
    assert_eq!(attempts(&nginx, "dies"), [1, 2]);
    let again = nginx.reports().notes("dies")[1].event.clone();
    assert_eq!(
        (&again["retry"], &again["last"], &again["signal"]),
        (&true.into(), &"signal".into(), &9.into())
    );
    assert_eq!(events(&nginx, "once_failed").len(), 0);
    nginx.end(Signal::QUIT);
}

#[test]
fn what_runs_once_runs_once_and_again_only_after_a_failure() {
    let _permit = permit();
    let keys = ONCE.replace("KEYS", "\"warm\", \"raises\"");
    let nginx = Nginx::start_ready(setup(4).after_init(&keys).allow("no luck").allow("traceback"));
    nginx.wait_until("all to hear of it", || {
        (settled(&nginx, "done") == 4 && settled(&nginx, "failed") == 4).then_some(())
    });
    assert_eq!((attempts(&nginx, "warm"), attempts(&nginx, "raises")), (vec![1], vec![1, 2, 3]));
    assert_eq!(nginx.reports().notes("raises")[1].event["last"], "failed");
    assert!(nginx.log().contains("no luck") && nginx.log().contains("stack traceback"));
    assert_eq!(events(&nginx, "once_failed")[0]["attempts"], 3);
    assert_eq!(shown(&nginx, "once", "raises").expect("it")["state"], "failed");
    nginx.reload_and_settle(2);
    nginx.wait_until("the next generation's", || (attempts(&nginx, "warm").len() == 2).then_some(()));
    nginx.wait_until("the old one's end", || {
        let all = nginx.json("/status");
        let all = all[0]["singletons"].as_array().expect("a list").clone();
        (all.iter().filter(|x| x["name"] == "warm").count() == 1).then_some(())
    });
    assert_eq!(attempts(&nginx, "migrate"), [1], "once for the node");
    nginx.end(Signal::QUIT);
}

#[test]
fn what_is_ended_by_ngx_exit_has_failed_and_ends_nothing_else() {
    let _permit = permit();
    let keys = ONCE.replace("KEYS", "\"exits\"");
    let nginx = Nginx::start_ready(setup(2).after_init(&keys).allow("never returned"));
    nginx.wait_until("all to hear of it", || (settled(&nginx, "failed") == 2).then_some(()));
    assert_eq!(attempts(&nginx, "exits"), [1, 2, 3]);
    assert_eq!(events(&nginx, "once_failed")[0]["attempts"], 3);
    assert_eq!(events(&nginx, "worker_stalled").len(), 0, "heartbeats went on");
    nginx.end(Signal::QUIT);
}

const LOCKS: &str = r#"
    local headcount = require "resty.headcount"
    local got = { headcount.with_lock(ngx.var.arg_name, function(lock)
        require("recorder").note("inside", lock)
        if ngx.var.arg_raise then error("raised inside") end
        if ngx.var.arg_again then return headcount.with_lock(ngx.var.arg_name, function() end) end
        if ngx.var.arg_s then ngx.sleep(tonumber(ngx.var.arg_s)) end
        if ngx.var.arg_die then require("recorder").die() end
        return ngx.worker.pid()
    end, { timeout = tonumber(ngx.var.arg_timeout) }) }
    for i = 1, 3 do got[i] = tostring(got[i]) end
    ngx.say(table.concat(got, "|"))
"#;

#[test]
fn a_lock_excludes_over_all_workers_and_waits_without_blocking() {
    let _permit = permit();
    let nginx = Nginx::start_ready(
        setup(4).page("/lock", LOCKS).allow_kills().allow("raised inside").allow("stack traceback"),
    );
    let socket = nginx.socket();
    let ask = |query: &str| {
        let answer = testkit::http::get(&socket, &format!("/lock?{query}")).expect("an answer");
        answer.body.trim().to_owned()
    };
    assert!(ask("name=keys").starts_with("true|"));
    let again = ask("name=keys&again=1");
    assert!(again.contains("|nil|this coroutine holds the lock keys already"), "{again}");
    let bad = ask("name=a/b");
    assert!(bad.starts_with("nil|argument `name` is \"a/b\"; allowed is 1 to 48 letters"), "{bad}");
    assert!(ask("name=keys&timeout=-1").contains("argument `timeout` is -1"));
    nginx.get("/lock?name=keys&raise=1");
    assert!(ask("name=keys&timeout=0").starts_with("true|"), "it is free after an error");

    std::thread::scope(|scope| {
        let slow = scope.spawn(|| ask("name=slow&s=0.6"));
        nginx.wait_until("it to be held", || shown(&nginx, "lock", "slow").filter(|x| x["state"] == "held"));
        let late = ask("name=slow&timeout=0.1");
        assert!(late.starts_with("nil|timed out after 0.1 s: "), "{late}");
        let begun = Instant::now();
        let waiters: Vec<_> = (0..8).map(|_| scope.spawn(|| ask("name=slow"))).collect();
        // The event loop of whoever waits goes on.
        for _ in 0..20 {
            assert_eq!(nginx.get("/ping").body, "pong\n");
        }
        assert!(slow.join().expect("an answer").starts_with("true|"));
        for waiter in waiters {
            let got = waiter.join().expect("an answer");
            assert!(got.starts_with("true|"), "{got}");
        }
        assert!(begun.elapsed() < PATIENCE);
    });

    // Who dies inside leaves it to the next, who is told.
    let _ = testkit::http::raw(&nginx.socket(), "GET", "/lock?name=keys&die=1");
    assert!(ask("name=keys").starts_with("true|"));
    let inside = nginx.reports().notes("inside").last().expect("a note").event.clone();
    assert!(inside["abandoned_by"].as_u64().is_some(), "{inside}");
    nginx.wait_until("the report", || events(&nginx, "lock_abandoned").first().map(|e| e["name"] == "keys"));
    nginx.end(Signal::QUIT);
}

/// Leaving is ending: what the lock guards may be half-done.
#[test]
fn who_is_told_to_leave_inside_a_lock_leaves_it_to_the_next_who_is_told() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup(2).page("/lock", LOCKS));
    let slow = testkit::http::send(&nginx.socket(), "/lock?name=keys&s=60").expect("a request");
    let holder = nginx.wait_until("it to be held", || {
        shown(&nginx, "lock", "keys")?["holder"].as_i64().map(|pid| pid as i32)
    });
    process::send(holder, Signal::TERM);
    let told = nginx.wait_until("the next one", || {
        let answer = testkit::http::get(&nginx.socket(), "/lock?name=keys").ok()?;
        answer.body.starts_with("true|").then(|| nginx.reports().notes("inside")[1].event.clone())
    });
    assert_eq!(told["abandoned_by"], holder);
    let abandoned = events(&nginx, "lock_abandoned");
    assert_eq!((abandoned.len(), &abandoned[0]["cause"]), (1, &"exit".into()));
    drop(slow);
    nginx.end(Signal::QUIT);
}

/// One light thread waits for the lock, or has it, and is ended with its request by another.
const CUT_SHORT: &str = r#"
    local headcount = require "resty.headcount"
    ngx.thread.spawn(function()
        headcount.with_lock("cut", function() ngx.sleep(60) end, { timeout = 60 })
    end)
    ngx.sleep(0.05)
    ngx.say("gone")
    ngx.exit(200)
"#;

#[test]
fn a_request_that_is_ended_while_it_waits_for_a_lock_or_has_it_keeps_nobody() {
    let _permit = permit();
    let nginx = Nginx::start_ready(
        setup(2).page("/lock", LOCKS).page("/cut", CUT_SHORT).allow("was held by a request that was ended"),
    );
    let socket = nginx.socket();
    let ask = |path: &str| testkit::http::get(&socket, path).expect("an answer").body.trim().to_owned();
    std::thread::scope(|scope| {
        let holder = scope.spawn(|| ask("/lock?name=cut&s=0.5"));
        nginx.wait_until("it to be held", || shown(&nginx, "lock", "cut").filter(|x| x["state"] == "held"));
        // In the worker that has it, and in the other one: they queue, and they wait.
        for cut in (0..6).map(|_| scope.spawn(|| ask("/cut"))).collect::<Vec<_>>() {
            assert_eq!(cut.join().expect("an answer"), "gone");
        }
        assert!(holder.join().expect("an answer").starts_with("true|"));
    });
    // Who was next in the meantime has it for a moment, until the collector has found out.
    let got = ask("/lock?name=cut&timeout=20");
    assert!(got.starts_with("true|"), "{got}");
    assert_eq!(ask("/cut"), "gone");
    let got = ask("/lock?name=cut&timeout=20");
    assert!(got.starts_with("true|"), "{got}");
    nginx.end(Signal::QUIT);
}

/// A waiter is woken by the waker and not by its own looks: with the lock passed around, it would otherwise take it milliseconds.
#[test]
fn a_lock_that_is_released_is_passed_on_at_once() {
    const ROUNDS: &str = r#"
        local headcount = require "resty.headcount"
        local until_when = ngx.now() + tonumber(ngx.var.arg_s)
        local rounds = 0
        while ngx.now() < until_when do
            assert(headcount.with_lock("ring", function() ngx.sleep(0.002) end, { timeout = 10 }))
            rounds = rounds + 1
            ngx.update_time()
        end
        ngx.say(ngx.worker.pid(), " ", rounds)
    "#;
    let _permit = permit();
    let nginx = Nginx::start_ready(setup(4).page("/rounds", ROUNDS));
    let socket = nginx.socket();
    let threads = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    // All of them may come to one worker, which then waits for no other: so they ask until that was seen.
    let is_seen = AtomicBool::new(false);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let ask = || loop {
            let body = testkit::http::get(&socket, "/rounds?s=0.5").expect("an answer").body;
            if is_seen.load(Relaxed) || begun.elapsed() > 2 * PATIENCE {
                return body;
            }
        };
        let all: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        nginx.wait_until("threads that wait for the lock", || {
            // nginx's own, the waker, and one for the lock.
            (nginx.workers().into_iter().map(threads).max() >= Some(3)).then_some(())
        });
        nginx.wait_until("waiters that are seen", || {
            shown(&nginx, "lock", "ring").filter(|x| x["waiters"].as_u64() >= Some(1))
        });
        is_seen.store(true, Relaxed);
        for one in all {
            let body = one.join().expect("an answer");
            let rounds: u32 = body.trim().rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number");
            assert!(rounds > 0, "{body}");
        }
    });
    // Nobody waits any more: a quiet worker has no thread but the watchers'.
    nginx.end(Signal::QUIT);
}

#[test]
fn wrong_use_is_an_error_that_says_what_is_allowed() {
    const WRONG: &str = r#"
        kit.before_join = function()
            local headcount = require "resty.headcount"
            local _, err = headcount.leader("cron", {})
            kit.note("early", { err = err })
        end
        kit.after_join = function()
            local headcount = require "resty.headcount"
            local function note(...) kit.note("wrong", { err = (select(2, ...)) }) end
            note(headcount.leader("a b", {}))
            note(headcount.leader("cron", { on_election = print }))
            note(headcount.leader("cron", { on_lost = 1 }))
            note(headcount.once("cluster", "x", print))
            note(headcount.once("node", "", print))
            note(headcount.once("node", "x", 7))
            note(headcount.with_lock("x"))
            headcount.leader("cron", {})
            note(headcount.leader("cron", {}))
        end
    "#;
    let _permit = permit();
    let nginx = Nginx::start_ready(setup(1).after_init(WRONG));
    let reports =
        nginx.wait_until("the notes", || Some(nginx.reports()).filter(|r| r.notes("wrong").len() == 8));
    let errors: Vec<String> =
        reports.notes("wrong").iter().map(|n| n.event["err"].as_str().unwrap_or("none").to_owned()).collect();
    for (error, expected) in errors.iter().zip([
        "argument `role` is \"a b\"; allowed is 1 to 48 letters",
        "argument `callbacks` is \"on_election\"; allowed is a table with `on_elected` and `on_lost`",
        "argument `on_lost` is 1; allowed is a function",
        "argument `scope` is \"cluster\"; allowed is \"generation\" or \"node\"",
        "argument `key` is \"\"; allowed is 1 to 48 letters",
        "argument `fn` is 7; allowed is a function",
        "argument `fn` is nil; allowed is a function",
        "this worker stands for the role cron already; allowed is once",
    ]) {
        assert!(error.starts_with(expected), "{error}");
    }
    let early = reports.notes("early")[0].event["err"].as_str().expect("an error").to_owned();
    assert_eq!(early, "leader() is for workers: call it in init_worker_by_lua after init_worker(), or later");
    nginx.end(Signal::QUIT);
}
