//! What Lua in one worker is short of: requests that are ended, the collector's time, timers.

use testkit::{Nginx, Signal, http, permit};

use super::{LOCKS, elected, settled, setup, shown};

/// How many wait in the worker for the lock `cut`.
const QUEUE: &str = r#"
    local i = 0
    repeat
        i = i + 1
        local name, turns = debug.getupvalue(require("resty.headcount.locks").poll, i)
        if name == "turns" then ngx.say(#turns.cut.queue) end
    until not name
"#;

/// ngx_lua keeps a request's own coroutine to use it again, other than those of light threads.
#[test]
fn a_request_whose_own_coroutine_is_ended_while_it_waits_for_a_lock_keeps_nobody() {
    const CUT_SHORT: &str = r#"
        ngx.thread.spawn(function()
            ngx.sleep(0.05)
            ngx.say("gone")
            ngx.exit(200)
        end)
        require("resty.headcount").with_lock("cut", function() ngx.sleep(60) end, { timeout = 60 })
    "#;
    let _permit = permit();
    let nginx =
        Nginx::start_ready(setup(1).page("/lock", LOCKS).page("/cut", CUT_SHORT).page("/queue", QUEUE));
    let socket = nginx.socket();
    let ask = |path: &str| http::get(&socket, path).expect("an answer").body.trim().to_owned();
    std::thread::scope(|scope| {
        let holder = scope.spawn(|| ask("/lock?name=cut&s=4"));
        nginx.wait_until("it to be held", || shown(&nginx, "lock", "cut").filter(|x| x["state"] == "held"));
        for cut in (0..3).map(|_| scope.spawn(|| ask("/cut"))).collect::<Vec<_>>() {
            assert_eq!(cut.join().expect("an answer"), "gone");
        }
        // The queue of a lock that is held for long does not grow by those who are gone.
        nginx.wait_until("them to be forgotten", || (ask("/queue") == "0").then_some(()));
        for cut in (0..3).map(|_| scope.spawn(|| ask("/cut"))).collect::<Vec<_>>() {
            assert_eq!(cut.join().expect("an answer"), "gone");
        }
        assert!(holder.join().expect("an answer").starts_with("true|"));
    });
    let got = ask("/lock?name=cut&timeout=20");
    assert!(got.starts_with("true|"), "{got}");
    nginx.end(Signal::QUIT);
}

#[test]
fn many_locks_that_are_held_for_long_keep_the_collector_no_busier_than_one() {
    const COUNTS: &str = r#"
        local collect = collectgarbage
        kit.collections = 0
        collectgarbage = function(...)
            kit.collections = kit.collections + 1
            return collect(...)
        end
    "#;
    const MANY: &str = r#"
        local headcount, kit, threads = require "resty.headcount", require "recorder", {}
        local before = kit.collections
        for i = 1, 100 do
            threads[i] = ngx.thread.spawn(function()
                assert(headcount.with_lock("many" .. i, function() ngx.sleep(2.5) end))
            end)
        end
        for i = 1, 100 do ngx.thread.wait(threads[i]) end
        ngx.say(kit.collections - before)
    "#;
    let _permit = permit();
    let nginx = Nginx::start_ready(setup(1).before_init(COUNTS).page("/many", MANY));
    let answer = nginx.get("/many");
    let collections: u32 = answer.body.trim().parse().expect("a number");
    // After one second and after two.
    assert!((1..=10).contains(&collections), "{collections}");
    nginx.end(Signal::QUIT);
}

/// ngx_lua takes a timer, and does not run it if too many run at that moment: nobody is told.
#[test]
fn where_no_timer_can_run_a_once_and_a_role_go_on_all_the_same() {
    const STANDS: &str = r#"
        kit.after_join = function()
            local headcount = require "resty.headcount"
            -- With the thread of heartbeats these are all.
            ngx.timer.at(0, function() ngx.sleep(4) end)
            assert(headcount.once("node", "seed", function() end, {
                on_settled = function(how) kit.note("settled", { key = "seed", how = how }) end,
            }))
            assert(headcount.leader("cron", {
                on_elected = function(token) kit.note("elected", { token = token }) end,
            }))
        end
    "#;
    let _permit = permit();
    let nginx = Nginx::start_ready(
        setup(1)
            .http("lua_max_running_timers 2;")
            .after_init(STANDS)
            .allow("lua_max_running_timers are not enough"),
    );
    elected(&nginx, 1);
    nginx.wait_until("the once to be settled", || (settled(&nginx, "done") == 1).then_some(()));
    nginx.end(Signal::QUIT);
}
