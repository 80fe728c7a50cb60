//! The same over all that may happen to a server: failed reloads, upgrades, rollbacks and stops; and what goes on while a function
//! takes its time.

use testkit::wait::PATIENCE;
use testkit::{Kind, Nginx, Signal, http, permit, process};

use super::{LOCKS, STANDS, elected, events, setup, shown, tenures};

/// The one that leads, as soon as it is a worker of this master.
fn leader_of(nginx: &Nginx, master: i32) -> i32 {
    nginx.wait_until(&format!("a leader among the workers of {master}"), || {
        let last = tenures(nginx).into_iter().rfind(|(what, ..)| what == "elected")?;
        let holder = shown(nginx, "role", "cron")?["holder"].as_i64()?;
        (nginx.workers_of(master).contains(&last.1) && holder == i64::from(last.1)).then_some(last.1)
    })
}

/// Each has lost the role before the next one was elected, also the last. One that leaves as soon as it is elected may have had no time to
/// say that it was.
#[track_caller]
fn each_stopped_before_the_next(nginx: &Nginx) {
    let all = tenures(nginx);
    let mut leads = None;
    for (what, pid, _) in &all {
        let is_its_turn = leads.is_none_or(|leader| leader == *pid) && (what != "elected" || leads.is_none());
        assert!(is_its_turn, "{what} {pid}: {all:?}");
        leads = (what != "lost").then_some(*pid);
    }
    assert!(!all.is_empty() && leads.is_none(), "{all:?}");
}

#[test]
fn a_reload_that_cannot_bind_leaves_the_role_where_it_is() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup(3).after_init(STANDS));
    let (first, token) = elected(&nginx, 1);
    nginx.reload_with(|setup| setup.listen("unix:@FOLDER@/missing/x.sock").allow("missing/x.sock"));
    nginx.wait_for("the generation to be abandoned", PATIENCE, |all| {
        all.at_least(1, Kind::GenerationAbandoned, 2)
    });
    let role = shown(&nginx, "role", "cron").expect("the role");
    assert_eq!((&role["holder"], &role["token"]), (&first.into(), &token.into()));
    // It moves with the next one that works.
    nginx.change(testkit::Setup::no_other_listen);
    nginx.reload_and_settle(3);
    let second = leader_of(&nginx, nginx.master());
    assert_eq!(tenures(&nginx).iter().filter(|(what, ..)| what == "elected").count(), 2);
    assert_ne!(second, first);
    nginx.end(Signal::QUIT);
    each_stopped_before_the_next(&nginx);
}

#[test]
fn an_upgrade_takes_the_role_over_and_a_rollback_brings_it_back() {
    const MIGRATES: &str = r#"
        local stand = kit.after_join
        kit.after_join = function()
            stand()
            require("resty.headcount").once("node", "migrate", function() kit.note("migrated") end)
        end
    "#;
    let _permit = permit();
    let nginx = Nginx::start_ready(setup(2).after_init(&format!("{STANDS}\n{MIGRATES}")));
    elected(&nginx, 1);
    let (old, new) = nginx.upgrade();
    nginx.ready(2);
    leader_of(&nginx, new);
    process::send(new, Signal::QUIT);
    nginx.wait_ended(2);
    nginx.wait_gone(new);
    nginx.wait_until("the old pid file", || (nginx.master_if_any() == Some(old)).then_some(()));
    leader_of(&nginx, old);

    // Another one, which stays.
    let (old, new) = nginx.upgrade();
    nginx.ready(3);
    let last = leader_of(&nginx, new);
    process::send(old, Signal::QUIT);
    nginx.wait_ended(1);
    nginx.wait_gone(old);
    assert_eq!(leader_of(&nginx, new), last, "it stays where it is");
    let causes: Vec<String> = events(&nginx, "leader_lost").iter().map(|e| e["cause"].to_string()).collect();
    assert!(causes.iter().all(|cause| cause == "\"superseded\""), "{causes:?}");
    assert_eq!(nginx.reports().notes("migrated").len(), 1, "once while the node lives");
    nginx.end(Signal::QUIT);
    each_stopped_before_the_next(&nginx);
}

#[test]
fn each_stop_has_the_leader_stop_first_and_the_next_start_elects_with_a_larger_token() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup(3).after_init(STANDS));
    for signal in [Signal::QUIT, Signal::TERM, Signal::INT] {
        let before = tenures(&nginx).iter().map(|(.., token)| *token).max();
        let pid = leader_of(&nginx, nginx.master());
        let after = tenures(&nginx).into_iter().rfind(|(what, at, _)| what == "elected" && *at == pid);
        assert!(after.expect("it was elected").2 >= before.unwrap_or(0));
        nginx.end(signal);
        each_stopped_before_the_next(&nginx);
        if signal != Signal::INT {
            nginx.run();
        }
    }
    let tokens: Vec<u64> = tenures(&nginx).iter().map(|t| t.2).filter(|token| *token > 0).collect();
    assert!(tokens.len() >= 3 && tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
}

/// One worker blocks for seconds in what is done once, and another one sleeps inside a lock.
#[test]
fn what_takes_seconds_holds_up_no_report() {
    const SLOW: &str = r#"
        kit.after_join = function()
            require("resty.headcount").once("node", "slow", function()
                kit.note("begun")
                kit.block(3)
                kit.note("finished")
            end)
        end
    "#;
    let _permit = permit();
    let setup = setup(4).option("stall_after", "10").after_init(SLOW).page("/lock", LOCKS).allow_kills();
    let nginx = Nginx::start_ready(setup);
    let note = |what: &str| nginx.reports().notes(what).first().map(|note| (note.runner, note.at));
    let (busy, _) = nginx.wait_until("the function to begin", || note("begun"));
    // The one that is busy may be handed the request, too: then it is answered later.
    let requests: Vec<_> =
        (0..4).map(|_| http::send(&nginx.socket(), "/lock?name=keys&s=60").expect("a request")).collect();
    let holder = nginx.wait_until("a lock to be held", || note("inside")).0;
    let is_idle = |pid: &i32| ![busy, holder].contains(pid);
    let victim = nginx.workers().into_iter().find(is_idle).expect("a third one");
    process::send(victim, Signal::KILL);
    nginx.wait_for("its death", PATIENCE, |all| all.at_least(1, Kind::WorkerDied, 1));
    nginx.wait_for("its replacement", PATIENCE, |all| all.at_least(5, Kind::WorkerStarted, 1));
    assert_eq!(shown(&nginx, "lock", "keys").expect("the lock")["holder"], holder);
    let (_, finished) = nginx.wait_until("the function to end", || note("finished"));
    let reports = nginx.reports();
    for kind in [Kind::WorkerDied, Kind::WorkerStarted] {
        let last = reports.of(kind).last().map(|report| report.at).expect("a report");
        assert!(last < finished, "{kind:?} was told only after the function had ended");
    }
    nginx.wait_until("the word of it", || events(&nginx, "once_done").first().map(drop));
    drop(requests);
    nginx.end(Signal::TERM);
}

#[test]
fn where_nothing_can_be_waited_for_a_lock_that_somebody_has_is_an_error_that_says_so() {
    const LOGS: &str = r#"log_by_lua_block {
        if not ngx.var.arg_log then return end
        local ok, err = require("resty.headcount").with_lock("keys", function() end)
        require("recorder").note("logged", { ok = ok or false, err = err or "none" })
    }"#;
    let _permit = permit();
    let nginx = Nginx::start_ready(setup(2).page("/lock", LOCKS).http(LOGS));
    let logged = |number: usize| {
        http::get(&nginx.socket(), "/ping?log=1").expect("an answer");
        let note = || nginx.reports().notes("logged").get(number).map(|note| note.event.clone());
        nginx.wait_until("the phase to be over", note)
    };
    assert_eq!(logged(0)["ok"], true, "it is free");
    let slow = http::send(&nginx.socket(), "/lock?name=keys&s=1").expect("a request");
    nginx.wait_until("it to be held", || shown(&nginx, "lock", "keys").filter(|x| x["state"] == "held"));
    let err = logged(1)["err"].as_str().expect("an error").to_owned();
    assert!(err.ends_with("; and in phase `log` nothing can be waited for"), "{err}");
    nginx.wait_until("it to be free", || shown(&nginx, "lock", "keys").filter(|x| x["state"] == "free"));
    assert_eq!(logged(2)["ok"], true, "nothing was left held");
    drop(slow);
    nginx.end(Signal::QUIT);
}
