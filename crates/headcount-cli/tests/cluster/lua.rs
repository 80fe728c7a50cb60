//! `resty.headcount.cluster` in a real nginx, beside a real agent.

use serde_json::Value;
use testkit::{Integration, Nginx, Setup, Signal, permit};

use super::fleet::{Fleet, Host};

/// Each worker stands for the role `cron` of the cluster; what it hears it notes.
const STANDS: &str = r#"
    kit.after_join = function()
        local cluster = require "resty.headcount.cluster"
        kit.note("stood", { ok = cluster.leader("cron", {
            on_elected = function(token)
                ngx.sleep(0.001)
                kit.note("elected", { token = token, leads = cluster.is_leader("cron") })
            end,
            on_lost = function()
                ngx.sleep(0.02)
                kit.note("lost", { leads = cluster.is_leader("cron") })
            end,
        }) })
        kit.note("asked", { ok = cluster.once("warm", function(attempt)
            ngx.sleep(0.001)
            kit.note("ran", { number = attempt.number, mine = attempt.is_mine() })
        end, { on_settled = function(how) kit.note("settled", { how = how }) end }) })
    end
"#;

const LOCK: &str = r#"
    local cluster = require "resty.headcount.cluster"
    local ok, err = cluster.with_lock("keys", function(lock)
        if ngx.var.arg_again then return select(2, cluster.with_lock("keys", function() end)) end
        
        return (lock.is_mine() and "has " or "lost ") .. lock.token
    end, { timeout = tonumber(ngx.var.arg_timeout or 10) })
    ngx.say(tostring(ok), " ", tostring(err))
"#;

fn setup(host: &Host) -> Setup {
    let place = format!("assert(require('resty.headcount.cluster').use({:?}))", host.socket());
    Setup::new(Integration::Lua)
        .workers(2)
        .after_init(&format!("{place}\n{STANDS}"))
        .page("/leads", "ngx.say(tostring(require('resty.headcount.cluster').is_leader('cron')))")
        .page("/lock", LOCK)
        .page(
            "/fails",
            r#"ngx.say(select(2, pcall(require("resty.headcount.cluster").with_lock, "keys", function() error("on purpose") end)))"#,
        )
        .page("/state", "local s, err = require('resty.headcount.cluster').state() ngx.say(s and #s.hosts or err)")
        .page(
            "/wrong",
            r#"local c = require "resty.headcount.cluster"
            for _, call in ipairs {
                { c.leader, "a b", {} }, { c.leader, "x", { on_won = print } }, { c.leader, "cron", {} }, { c.once, "x", 1 },
                { c.with_lock, "x", print, { timeout = -1 } }, { c.events, 1 }, { c.use, "x" },
            } do
                local ok, err = call[1](call[2], call[3], call[4])
                ngx.say(tostring(ok), " ", err)
            end"#,
        )
        .allow("headcount: c")
        .allow("headcount: the cluster's agent")
        .allow("lua tcp socket connect timed out")
        .allow("connect() to unix:")
}

/// A host whose agent lets everybody have something.
fn host(fleet: &Fleet, name: &str, settings: &str) -> Host {
    let host = fleet.host_with(name, settings);
    let text = std::fs::read_to_string(host.config()).expect("our file");
    super::fleet::write(&host.config(), &text.replace("[cluster]", "claims = [\"*\"]\n[cluster]"));
    host
}

fn notes(nginx: &Nginx, what: &str) -> Vec<(i32, Value)> {
    nginx.reports().notes(what).into_iter().map(|note| (note.runner, note.event.clone())).collect()
}

#[track_caller]
fn elected(nginx: &Nginx, number: usize) -> (i32, u64) {
    nginx.wait_until("a leader", || {
        let all = notes(nginx, "elected");
        let (pid, event) = all.get(number - 1)?;
        assert!(event["leads"] == event["token"], "{event}");
        Some((*pid, event["token"].as_u64()?))
    })
}

fn get(nginx: &Nginx, page: &str) -> String {
    nginx.get(page).body.trim().to_owned()
}

#[test]
fn one_worker_leads_and_a_reload_moves_the_role_in_order() {
    let _permit = permit();
    let fleet = Fleet::new();
    let mut a = host(&fleet, "a", "ttl = \"300s\"");
    a.join();
    let nginx = Nginx::start_ready(setup(&a).allow_kills());
    let (first, old) = elected(&nginx, 1);
    nginx.wait_until("both workers hear of the once", || (notes(&nginx, "settled").len() == 2).then_some(()));
    let ran = notes(&nginx, "ran");
    assert!(ran.len() == 1 && ran[0].1["mine"] == true, "{ran:?}");
    // It dies: the other one has it at once.
    testkit::process::send(first, Signal::KILL);
    let (second, new) = elected(&nginx, 2);
    assert!(new > old && second != first);
    testkit::process::send(nginx.master(), Signal::HUP);
    let (third, newest) = elected(&nginx, 3);
    assert!(newest > new && third != second);
    let reports = nginx.reports();
    let (lost, elections) = (reports.notes("lost"), reports.notes("elected"));
    assert_eq!(lost[0].event["leads"], false);
    assert!(lost[0].at <= elections[2].at, "the old one has ended first");
    nginx.wait_until("the new workers know that it is done", || {
        (notes(&nginx, "settled").len() >= 4).then_some(())
    });
    assert_eq!(notes(&nginx, "ran").len(), 1);
    nginx.end(Signal::QUIT);
}

/// Nothing of the worker runs while a function of the user sleeps in the kernel: then it is too late, and what the agent has said of a
/// later deadline lies unread.
#[test]
fn a_lock_that_was_over_in_a_worker_that_stood_still_is_free_for_others() {
    let _permit = permit();
    let fleet = Fleet::new();
    let mut a = host(&fleet, "a", "ttl = \"2s\"");
    a.join();
    let stands_still = r#"
        local ffi = require "ffi"
        pcall(ffi.cdef, "int usleep(unsigned);")
        local ok, err = require("resty.headcount.cluster").with_lock("keys", function(lock)
            ffi.C.usleep(tonumber(ngx.var.arg_ms) * 1000)
            ngx.sleep(0.01)
            return lock.is_mine()
        end)
        ngx.say(tostring(ok), " ", tostring(err))
    "#;
    let nginx = Nginx::start_ready(setup(&a).workers(1).page("/stands_still", stands_still));
    let mut other = headcount_cluster_client::Client::new(a.socket());
    for ms in [1_200, 1_400, 1_600, 1_800] {
        let said = get(&nginx, &format!("/stands_still?ms={ms}"));
        assert!(said.starts_with("true "), "{said}");
        let id = other.lock("keys", None).unwrap();
        let began = std::time::Instant::now();
        while !matches!(other.next_event(), Some(headcount_cluster_client::Event::Locked { .. })) {
            assert!(began.elapsed() < crate::scripted::LONG, "after {ms} ms nobody gets it any more");
            other.wait(Some(std::time::Duration::from_millis(50))).unwrap();
            other.process();
        }
        other.unlock(id);
        other.process();
    }
    nginx.end(Signal::QUIT);
}

/// Of a once that another process is at: who that is, until it is this worker's turn.
#[test]
fn a_worker_that_waits_for_its_turn_knows_who_is_at_it() {
    let _permit = permit();
    let fleet = Fleet::new();
    let mut a = host(&fleet, "a", "ttl = \"300s\"");
    a.join();
    let mut other = headcount_cluster_client::Client::new(a.socket());
    other.once("warm").unwrap();
    let began = std::time::Instant::now();
    while !matches!(other.next_event(), Some(headcount_cluster_client::Event::Run { .. })) {
        assert!(began.elapsed() < crate::scripted::LONG, "nobody else is there");
        other.wait(Some(std::time::Duration::from_millis(50))).unwrap();
        other.process();
    }
    let who = r#"
        local by = require("resty.headcount.cluster").running("warm")
        ngx.say(by and by.pid .. " of " .. by.host .. (by.process and by.since > 1e9 and by.since <= ngx.time() + 1 and "" or "?") or "nobody")
    "#;
    let nginx = Nginx::start_ready(setup(&a).workers(1).page("/who", who));
    let expected = format!("{} of a", std::process::id());
    nginx.wait_until("who is at it", || (get(&nginx, "/who") == expected).then_some(()));
    drop(other);
    nginx.wait_until("its turn", || (notes(&nginx, "ran").len() == 1).then_some(()));
    assert_eq!(get(&nginx, "/who"), "nobody");
    nginx.end(Signal::QUIT);
}

#[test]
fn locks_and_the_fleet() {
    let _permit = permit();
    let fleet = Fleet::new();
    let mut a = host(&fleet, "a", "ttl = \"300s\"");
    a.join();
    let nginx = Nginx::start_ready(setup(&a));
    assert_eq!(get(&nginx, "/state"), "1");
    assert!(get(&nginx, "/lock").starts_with("true has "));
    assert!(get(&nginx, "/lock?again=1").contains("has the lock keys already"));
    assert!(get(&nginx, "/fails").contains("on purpose"), "an error is passed on");
    let mut other = headcount_cluster_client::Client::new(a.socket());
    other.lock("keys", None).unwrap();
    let began = std::time::Instant::now();
    while !matches!(other.next_event(), Some(headcount_cluster_client::Event::Locked { .. })) {
        assert!(began.elapsed() < crate::scripted::LONG, "an error has released it");
        other.wait(Some(std::time::Duration::from_millis(50))).unwrap();
        other.process();
    }
    let vain = get(&nginx, "/lock?timeout=0.3");
    assert!(vain.contains("nil timed out after 300 ms: process") && vain.contains("has it since"), "{vain}");
    drop(other);
    assert!(get(&nginx, "/lock").starts_with("true has "));
    let wrong = get(&nginx, "/wrong");
    for text in [
        "argument `role` is \"a b\"; allowed is 1 to 48",
        "argument `callbacks` is \"on_won\"",
        "stands for the role cron already",
        "argument `fn` is 1",
        "argument `timeout` is -1",
        "argument `socket` is \"x\"; allowed is an absolute path",
    ] {
        assert!(wrong.contains(text), "{text}:\n{wrong}");
    }
    assert_eq!(wrong.lines().filter(|line| line.starts_with("nil ")).count(), 7, "{wrong}");
    nginx.end(Signal::QUIT);
}

#[test]
fn an_agent_that_is_away_is_an_answer_and_it_stands_again_when_it_is_back() {
    let _permit = permit();
    let fleet = Fleet::new();
    let mut a = host(&fleet, "a", "ttl = \"2s\"");
    a.join();
    let nginx = Nginx::start_ready(setup(&a));
    let (_, old) = elected(&nginx, 1);
    a.kill_agent();
    nginx.wait_until("it has lost the role", || (!notes(&nginx, "lost").is_empty()).then_some(()));
    assert_eq!(get(&nginx, "/leads"), "false");
    let began = std::time::Instant::now();
    let vain = get(&nginx, "/lock?timeout=0.3");
    assert!(vain.contains("nil timed out after 0.3 s:") && vain.contains("agent.sock"), "{vain}");
    assert!(get(&nginx, "/state").contains("agent.sock: connection refused"));
    assert!(began.elapsed() < crate::scripted::LONG / 2);
    a.launch();
    let (_, new) = elected(&nginx, 2);
    assert!(new > old);
    nginx.end(Signal::QUIT);
}
